"""What a run keeps of its open layers adds up to what the blocks wrote, as another code path gives it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from random_traits import random_vectors
from traitscope.attribution import opened as opened_module
from traitscope.attribution.attribute import attribute
from traitscope.attribution.opened import _LayerSplitter
from traitscope.captures.opened_writes import OpenedWrites
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel

TOKENS = [1, 30, 41, 52, 63, 74, 85, 96]


def _split(model: LanguageModel, directions: torch.Tensor, layer: int) -> tuple[OpenedWrites, np.ndarray]:
    found: list[LayerInternals] = []
    splitter = _LayerSplitter(model, directions)
    open_layers(model, TOKENS, splitter.needed([layer]), found.append)
    assert found[0].pattern is not None
    return OpenedWrites(**splitter.split(found[0])), found[0].pattern.numpy()


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "gpt2", "olmo2", "olmoe", "granite", "qwen2", "gpt_oss", "gpt_neox"]
)
def test_heads_and_the_strongest_neurons_are_those_of_the_blocks(
    tiny: Callable[..., LanguageModel], architecture: str
) -> None:
    model = tiny(architecture)
    vectors = [random_vectors(model, number) for number in range(2)]
    directions = torch.stack([vector.reader[vector.readout] for vector in vectors])
    blocks = attribute(model, TOKENS, vectors, every_layer=True).blocks
    writes, pattern = _split(model, directions, 1)
    attention, mlp = (next(b for b in blocks if (b.layer, b.kind) == (1, kind)) for kind in ("attention", "mlp"))
    assert writes.towards is not None
    assert writes.attn_scale is not None
    heads = np.einsum("hts,khs,t->kt", pattern, writes.towards, writes.attn_scale)
    np.testing.assert_allclose(heads + attention.bias, attention.write, atol=1e-5)
    assert writes.neuron is not None
    assert writes.neuron_write is not None
    assert mlp.parts is not None
    strongest = np.abs(mlp.parts.terms).argmax(axis=-1)
    assert (writes.neuron[..., 0] == strongest).all()
    terms = np.take_along_axis(mlp.parts.terms, writes.neuron.astype(int), axis=-1)
    np.testing.assert_allclose(writes.neuron_write, terms, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "olmoe"])
def test_what_is_split_is_the_same_however_few_tokens_are_taken_at_once(
    tiny: Callable[..., LanguageModel], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture)
    directions = torch.stack([random_vectors(model, number).reader[2] for number in range(2)])
    whole, _ = _split(model, directions, 1)
    n_neurons = whole.neuron.max() + 1 if whole.neuron is not None else 0
    monkeypatch.setattr(opened_module, "_BLOCK_BYTES", 3 * 8 * int(n_neurons) * (4 * 2 + 3))
    in_blocks, _ = _split(model, directions, 1)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(in_blocks, name), values, err_msg=name)


def test_the_writes_of_all_neurons_at_all_tokens_are_never_held_at_once(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    block, n_tokens, n_directions = model.blocks[1].mlp, 3000, 8
    splitter = _LayerSplitter(model, torch.randn(n_directions, model.anatomy.d_model))
    n_neurons = model.module.config.intermediate_size
    internals = LayerInternals(1, neurons=torch.randn(n_tokens, n_neurons), mlp_scale=torch.ones(n_tokens))
    monkeypatch.setattr(opened_module, "_BLOCK_BYTES", 1_000_000)
    tracemalloc.start()
    try:
        found = splitter._of_neurons(internals, block)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = sum(values.nbytes for values in found.values())
    assert peak < 2 * kept + 2_000_000 < n_directions * n_tokens * n_neurons * 8
