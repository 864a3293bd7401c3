"""Bugs caught here: packed weights read as a matrix, vectors of one precision taken for another's, a layer that rounds
by what is in its batch, quantised layers packed, sizes counted from packed bytes, a vague refusal."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tiny_models import tiny_model, tiny_tokenizer
from traitscope.errors import InputError
from traitscope.model.blocks import weight_and_bias
from traitscope.model.facts import facts_of_config, facts_of_module
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.packing import PackedLinears
from traitscope.model.quantisation import QUANTISERS, is_quantised

WEIGHTS_ALONE = ("bnb-4bit", "torchao-int8")
_LAYER = "model.layers.1.mlp.down_proj"

Quantised = Callable[..., LanguageModel]


@pytest.fixture(scope="module")
def quantised(tiny_directory: Path) -> Quantised:
    """``quantised(kind, dtype)``: the tiny Llama, loaded once."""
    kept: dict[tuple[str | None, str], LanguageModel] = {}

    def load(kind: str | None, dtype: str = "float32") -> LanguageModel:
        if (kind, dtype) not in kept:
            kept[kind, dtype] = load_model(str(tiny_directory), device="cpu", dtype=dtype, quantize=kind)
        return kept[kind, dtype]

    return load


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", WEIGHTS_ALONE)
def test_a_weight_is_read_as_the_matrix_that_the_layer_multiplies_with(
    quantised: Quantised, kind: str, dtype: str
) -> None:
    model, plain = quantised(kind, dtype), tiny_model("llama").get_submodule(_LAYER)
    linear = model.module.get_submodule(_LAYER)
    inputs = torch.randn(5, linear.in_features, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.inference_mode():
        computed = linear(inputs).float()
        weight, _ = weight_and_bias(linear)
    assert is_quantised(linear)
    within = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    assert (inputs.float() @ weight.float().T - computed).norm() <= within * computed.norm()
    assert 1e-3 < (weight.float() - plain.weight).norm() / plain.weight.norm() < 0.3


def test_every_kind_is_another_model_whatever_it_is_loaded_from(quantised: Quantised, tiny_directory: Path) -> None:
    prints = {kind: quantised(kind).fingerprint for kind in (None, *QUANTISERS)}
    assert len({found.short for found in prints.values()}) == 1 + len(QUANTISERS)
    assert len({found.tokenizer for found in prints.values()}) == 1
    held = quantised("torchao-int8")
    assert load_model(held.module, held.tokenizer).fingerprint.short not in (None, quantised(None).fingerprint.short)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_row_does_not_depend_on_its_batch(quantised: Quantised, kind: str, dtype: str) -> None:
    """With LLM.int8's outliers apart, one huge input of a neighbour changed what every row computed."""
    linear: Any = quantised(kind, dtype).module.get_submodule(_LAYER)
    rows = torch.randn(2, linear.in_features, generator=torch.Generator().manual_seed(1)).to(
        quantised(kind, dtype).dtype
    )
    rows[1, 0] = 60.0
    with torch.inference_mode():
        together, alone = linear(rows)[0].float(), linear(rows[:1])[0].float()
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance * float(alone.abs().max()))


def test_layers_that_set_outliers_apart_by_batch_are_refused(quantised: Quantised, tiny_directory: Path) -> None:
    module: Any = load_model(str(tiny_directory), device="cpu", quantize="bnb-8bit").module
    module.get_submodule(_LAYER).state.threshold = 6.0
    with pytest.raises(InputError, match=r"llm_int8_threshold=6\.0.*load it with llm_int8_threshold=0\.0"):
        load_model(module, tiny_tokenizer())


@pytest.mark.parametrize("kind", QUANTISERS)
def test_sizes_are_those_of_the_bytes_that_are_kept(quantised: Quantised, kind: str) -> None:
    module = quantised(kind).module
    found, whole = facts_of_module(module), facts_of_module(tiny_model("llama"))
    expected = facts_of_config(tiny_model("llama").config, kind)
    assert found.n_parameters == expected.n_parameters == whole.n_parameters
    assert found.n_quantised == expected.n_quantised > 0
    assert found.weight_bytes(4) == pytest.approx(expected.weight_bytes(4), rel=0.05)
    assert found.weight_bytes(4) < 0.8 * whole.weight_bytes(4)


def test_quantised_layers_are_not_packed(quantised: Quantised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traitscope.model.packing._LEAST_WEIGHTS", 1)
    kept = PackedLinears(quantised("torchao-int8").module)._linears
    assert not [linear for linear in kept if is_quantised(linear)]
    assert len(PackedLinears(quantised(None).module)._linears) > len(kept)


def test_blocks_behind_rounded_inputs_are_not_split(quantised: Quantised) -> None:
    blocks = [block for layer in quantised("bnb-8bit").blocks for block in (layer.attention, layer.mlp)]
    assert all(block and block.problem and "rounds what it reads" in block.problem for block in blocks)
    for kind in WEIGHTS_ALONE:
        assert not any(layer.mlp.problem or layer.attention.problem for layer in quantised(kind).blocks)


def test_what_cannot_be_quantised_is_one_line(tiny_directory: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def refused(match: str, model: str = str(tiny_directory), kind: str = "bnb-8bit") -> None:
        with pytest.raises(InputError, match=match) as error:
            load_model(model, device="cpu", quantize=kind)
        assert "\n" not in str(error.value)

    refused("unknown: use bnb-8bit, bnb-4bit, torchao-int8", kind="int3")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    refused("quantised already", model=str(tmp_path / "some.gguf"))
    done = tmp_path / "done"
    done.mkdir()
    config = json.loads((tiny_directory / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (done / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    refused("quantised already; leave out --quantize", model=str(done))
    gpt2 = tmp_path / "gpt2"
    tiny_model("gpt2").save_pretrained(gpt2)
    tiny_tokenizer().save_pretrained(gpt2)
    refused("it knows none of the layers of GPT2LMHeadModel", model=str(gpt2), kind="torchao-int8")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find_spec(name, *a)
    )
    refused(r"bitsandbytes is missing; install it with: pip install 'traitscope\[bitsandbytes\]'$")


def test_a_plain_layer_is_not_taken_for_a_quantised_one() -> None:
    linear = nn.Linear(4, 3)
    assert not is_quantised(linear)
    assert weight_and_bias(linear)[0] is linear.weight
