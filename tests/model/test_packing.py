"""Bugs caught here: packed weights that compute something else, a layer left packed for who verifies it, hooks lost."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as tf

from conftest import random_bank
from test_decode import assert_same_row
from tiny_models import VOCAB, tiny_tokenizer
from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.packing import PackedLinears
from traitscope.model.sampling import Sampling


@pytest.fixture(scope="module")
def wide() -> LanguageModel:
    """A random Qwen 2 (whose projections have biases) wide enough for its layers to be packed."""
    torch.manual_seed(0)
    config = tf.Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        eos_token_id=2,
    )
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return load_model(module, tiny_tokenizer())


def _decoded(model: LanguageModel, packed: bool):
    model.linears.shapes = model.linears.possible if packed else frozenset()
    prompts = [list(range(60, 60 + n)) for n in (3, 9, 20)]
    return decode(model, prompts, max_new_tokens=8, sampling=Sampling(), seeds=[0] * 3, bank=random_bank(model))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="nothing is packed without oneDNN")
def test_packed_layers_compute_the_same_and_only_while_in_use(wide: LanguageModel) -> None:
    linears = PackedLinears(wide.module)
    linears.shapes = linears.possible
    if not linears.possible:
        pytest.skip("nothing is packed on this processor")
    layer = wide.module.model.layers[0]
    names = {m for m in wide.module.modules() if type(m) is torch.nn.Linear and m.weight.numel() >= 100_000}
    states = torch.randn(3, 5, 512)
    with torch.inference_mode():
        plain = layer.self_attn.q_proj(states)
        with linears.in_use():
            assert {m for m in wide.module.modules() if "forward" in vars(m)} == names
            packed = layer.self_attn.q_proj(states)
    assert not [m for m in wide.module.modules() if "forward" in vars(m)]
    assert not torch.equal(packed, torch.zeros_like(packed))
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_packed_where_the_processor_multiplies_it(wide: LanguageModel) -> None:
    model = load_model(copy.deepcopy(wide.module).bfloat16(), tiny_tokenizer())
    narrow = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    assert bool(model.linears.possible) == narrow
    model.linears.shapes = model.linears.possible
    projection, states = model.module.model.layers[0].self_attn.q_proj, torch.randn(3, 5, 512).bfloat16()
    with torch.inference_mode(), model.linears.in_use():
        assert ("forward" in vars(projection)) == narrow
        packed = projection(states)
    assert packed.dtype == torch.bfloat16
    true = states.double() @ projection.weight.double().T + projection.bias.double()
    torch.testing.assert_close(packed.double(), true, rtol=1e-2, atol=1e-2)


def test_generation_is_the_same_with_and_without(wide: LanguageModel) -> None:
    for packed, plain in zip(_decoded(wide, packed=True), _decoded(wide, packed=False), strict=True):
        assert_same_row(packed, plain)
        assert np.isfinite(packed.logprobs).all()


def test_layers_are_given_back_when_generation_fails(wide: LanguageModel) -> None:
    linears = PackedLinears(wide.module)
    linears.shapes = linears.possible
    with pytest.raises(ValueError, match="row"), linears.in_use():
        raise ValueError("a bad row")
    assert not [m for m in wide.module.modules() if "forward" in vars(m)]
