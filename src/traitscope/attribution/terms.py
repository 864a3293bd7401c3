"""The exact terms of a trait's score, as data: blocks, heads with the tokens that they read, neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from traitscope.analysis.attribution import spread_over_experts
from traitscope.model.internals import LayerInternals

BlockKind = Literal["attention", "mlp"]


@dataclass(frozen=True)
class HeadTerms:
    """Attention split up. ``terms`` is ``[n_traits, heads, n, seq]`` over the tokens that were read.

    ``pattern`` is ``[heads, n, seq]`` and ``sink`` ``[heads, n]`` (None without sinks), the attention weights.
    ``neutral`` is ``[n_traits, heads]``, the heads' mean writes over neutral replies (None if they were not given).
    """

    terms: np.ndarray
    pattern: np.ndarray
    sink: np.ndarray | None
    neutral: np.ndarray | None


@dataclass(frozen=True)
class NeuronTerms:
    """An MLP split up. ``terms`` is ``[n_traits, n, n_neurons]``, ``activations`` ``[n, n_neurons]``.

    With experts, neuron i of expert e is number ``e * per_expert + i`` and its activation is weighted by the router.
    ``neutral`` is ``[n_traits, n_neurons]``, the neurons' mean writes over neutral replies (None if not given).
    """

    terms: np.ndarray
    activations: np.ndarray
    per_expert: int | None
    neutral: np.ndarray | None


@dataclass(frozen=True)
class BlockTerms:
    """One block's write towards every trait, float64.

    Attributes:
        checkpoint: index of the checkpoint behind the block.
        write: ``[n_traits, n]``, what the block added · the trait's reader at R.
        parts: its heads or neurons, or None where ``problem`` says why it cannot be split.
        bias: ``[n_traits, n]``, what is no head's or neuron's.
        neutral_write, neutral_bias: ``[n_traits]``, their means over neutral replies; None if not given.
    """

    layer: int
    kind: BlockKind
    checkpoint: int
    write: np.ndarray
    parts: HeadTerms | NeuronTerms | None
    bias: np.ndarray
    problem: str | None
    neutral_write: np.ndarray | None = None
    neutral_bias: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"layer {self.layer} {'MLP' if self.kind == 'mlp' else self.kind}"

    def flat_parts(self) -> np.ndarray | None:
        """All parts with the bias as the last of them: ``[n_traits, n, n_parts]``."""
        if self.parts is None:
            return None
        terms = self.parts.terms
        if isinstance(self.parts, HeadTerms):
            terms = terms.transpose(0, 2, 1, 3).reshape(terms.shape[0], terms.shape[2], -1)
        return np.concatenate([terms, self.bias[..., None]], axis=-1)


@dataclass(frozen=True)
class SteerTerm:
    """What steering added to ``resid_post`` of one layer · every trait's reader at R: ``write`` is ``[n_traits, n]``.

    ``checkpoint`` is the index of the one that it was added to.
    """

    layer: int
    checkpoint: int
    write: np.ndarray


@dataclass(frozen=True)
class Attribution:
    """Trait scores at their readouts as sums.

    Attributes:
        positions: the ``n`` positions that were asked for.
        readouts: index of each trait's R.
        start: ``[n_traits, n]``, ``resid_pre.0`` · reader at R.
        blocks: in the order of the forward pass; a trait's are those whose checkpoint is not behind its R.
        score: ``[n_traits, n]``, state at R · reader at R, of the same pass.
        steers: what steering added, one a steered layer.
    """

    traits: tuple[str, ...]
    positions: tuple[int, ...]
    readouts: tuple[int, ...]
    start: np.ndarray
    blocks: tuple[BlockTerms, ...]
    score: np.ndarray
    steers: tuple[SteerTerm, ...] = ()

    def steers_of(self, trait: int) -> list[SteerTerm]:
        """What steering added at or in front of a trait's readout."""
        return [steer for steer in self.steers if steer.checkpoint <= self.readouts[trait]]

    def blocks_of(self, trait: int) -> list[BlockTerms]:
        """The blocks that wrote to a trait before its readout."""
        return [block for block in self.blocks if block.checkpoint <= self.readouts[trait]]

    def block_parts(self, trait: int) -> np.ndarray:
        """The terms of a trait's score: ``[n, 1 + n_blocks + n_steers]``, ``resid_pre.0`` first."""
        written = [block.write[trait] for block in self.blocks_of(trait)]
        steered = [steer.write[trait] for steer in self.steers_of(trait)]
        return np.stack([self.start[trait], *written, *steered], axis=-1)


@dataclass(frozen=True)
class NeutralBlock:
    """Means of one block over the content tokens of the neutral replies, float32.

    Attributes:
        added: ``[d_model]``, what the block added to the stream.
        inputs: ``[n_inputs]``, concatenated heads or neurons (of all experts), each times the block's scale; empty
            where the block cannot be split.
        bias: what the bias is multiplied with: the block's scale ``[1]``, or that times each expert's weight
            ``[n_experts]``; empty likewise.
    """

    added: np.ndarray
    inputs: np.ndarray
    bias: np.ndarray


NeutralMeans = dict[tuple[int, BlockKind], NeutralBlock]
"""By layer and kind of block."""


def activations_of(
    internals: LayerInternals, positions: Sequence[int], n_experts: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Activations ``[n, n_neurons]`` of a layer's neurons; of experts also their weights ``[n, n_experts]``."""
    asked = list(positions)
    assert internals.neurons is not None
    neurons = array(internals.neurons[asked])
    if n_experts is None:
        return neurons, None
    assert internals.experts is not None
    assert internals.router is not None
    chosen = internals.experts[asked].cpu().numpy()
    return spread_over_experts(neurons, chosen, array(internals.router[asked]), n_experts)


def array(tensor: torch.Tensor | None) -> np.ndarray:
    """A tensor as a float32 array on the CPU."""
    assert tensor is not None
    return tensor.float().cpu().numpy()
