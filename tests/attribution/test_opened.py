"""What a run keeps of its open layers adds up to what the blocks wrote, as another code path gives it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from random_traits import random_vectors
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
