"""Bugs caught here: a checkpoint read at the wrong tensor, a model accepted that has no such stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from independent import independent_states
from tiny_models import CONFIGS, PARALLEL, VOCAB, tiny_model
from traitscope.checkpoints import checkpoint_index
from traitscope.errors import InputError
from traitscope.model.anatomy import find_anatomy
from traitscope.model.watch import watch

IDS = [5, 9, 200, 31, 77, 12, 150, 6, 44, 91, 18]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_checkpoint_is_the_state_that_another_pass_gives(architecture: str) -> None:
    model = tiny_model(architecture)
    anatomy = find_anatomy(model)
    seen: dict[str, torch.Tensor] = {}
    names = [checkpoint.name for checkpoint in anatomy.checkpoints]
    with torch.inference_mode(), watch(model, anatomy, lambda c, state: seen.update({names[c]: state.clone()})):
        model(input_ids=torch.tensor([IDS]), use_cache=False)
    expected = independent_states(model, architecture, IDS)
    assert list(seen) == list(expected)
    for name, state in expected.items():
        assert (seen[name] - state).norm() <= 1e-5 * state.norm(), name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_bfloat16_models_are_found_alike_and_left_as_they_were(architecture: str) -> None:
    model = tiny_model(architecture)
    expected = find_anatomy(model)
    model = model.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find_anatomy(model)
    assert [layer.resid_mid for layer in found.layers] == [layer.resid_mid for layer in expected.layers]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("architecture", sorted(PARALLEL))
def test_a_parallel_block_has_no_resid_mid_and_says_so(architecture: str) -> None:
    anatomy = find_anatomy(tiny_model(architecture))
    assert [c.name for c in anatomy.checkpoints] == ["resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2"]
    with pytest.raises(InputError, match=r"layer 1 has no resid_mid.*parallel"):
        checkpoint_index(anatomy.checkpoints, 1, "resid_mid")


def test_granite_multipliers_are_measured() -> None:
    layer = find_anatomy(tiny_model("granite")).layers[0]
    assert [round(contribution.scale, 5) for contribution in layer.contributions] == [0.22, 0.22]


def test_norms_after_the_blocks_without_a_residual_stream_are_refused() -> None:
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(InputError, match=r"layer 0, resid_post: what the block added"):
        find_anatomy(model)


def test_a_layer_that_changes_the_stream_unseen_is_refused() -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1]
    forward = layer.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) * 1.001

    layer.forward = scaled
    with pytest.raises(InputError, match="layer 1"):
        find_anatomy(model)


def test_an_encoder_decoder_is_refused() -> None:
    config = tf.T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    model = tf.AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(InputError, match="only decoder-only language models"):
        find_anatomy(model)


def test_hooks_are_gone_after_an_exception() -> None:
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    before = _n_hooks(model)

    def fail(_checkpoint: int, _state: torch.Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch(model, anatomy, fail):
        model(input_ids=torch.tensor([IDS]))
    assert _n_hooks(model) == before
    find_anatomy(model)
    assert _n_hooks(model) == before


def _n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
