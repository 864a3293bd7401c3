"""The exact terms of trait scores at their readouts, from one replay of a generation's token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from traitscope.analysis.attribution import head_writes, neuron_writes, spread_over_experts
from traitscope.checkpoints import Checkpoint
from traitscope.model.blocks import Block
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel
from traitscope.model.pullback import PulledBack, pull_back
from traitscope.model.watch import watch
from traitscope.traits.vectors import TraitVectors

BlockKind = Literal["attention", "mlp"]


@dataclass(frozen=True)
class HeadTerms:
    """Attention split up. ``terms`` is ``[n_traits, heads, n, seq]`` over the tokens that were read.

    ``pattern`` is ``[heads, n, seq]`` and ``sink`` ``[heads, n]`` (None without sinks), the attention weights.
    """

    terms: np.ndarray
    pattern: np.ndarray
    sink: np.ndarray | None


@dataclass(frozen=True)
class NeuronTerms:
    """An MLP split up. ``terms`` is ``[n_traits, n, n_neurons]``, ``activations`` ``[n, n_neurons]``.

    With experts, neuron i of expert e is number ``e * per_expert + i`` and its activation is weighted by the router.
    """

    terms: np.ndarray
    activations: np.ndarray
    per_expert: int | None


@dataclass(frozen=True)
class BlockTerms:
    """One block's write towards every trait, float64.

    Attributes:
        checkpoint: index of the checkpoint behind the block.
        write: ``[n_traits, n]``, what the block added · the trait's reader at R.
        parts: its heads or neurons, or None where ``problem`` says why it cannot be split.
        bias: ``[n_traits, n]``, what is no head's or neuron's.
    """

    layer: int
    kind: BlockKind
    checkpoint: int
    write: np.ndarray
    parts: HeadTerms | NeuronTerms | None
    bias: np.ndarray
    problem: str | None

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
class Attribution:
    """Trait scores at their readouts as sums.

    Attributes:
        positions: the ``n`` positions that were asked for.
        readouts: index of each trait's R.
        start: ``[n_traits, n]``, ``resid_pre.0`` · reader at R.
        blocks: in the order of the forward pass; a trait's are those whose checkpoint is not behind its R.
        score: ``[n_traits, n]``, state at R · reader at R, of the same pass.
    """

    traits: tuple[str, ...]
    positions: tuple[int, ...]
    readouts: tuple[int, ...]
    start: np.ndarray
    blocks: tuple[BlockTerms, ...]
    score: np.ndarray

    def blocks_of(self, trait: int) -> list[BlockTerms]:
        """The blocks that wrote to a trait before its readout."""
        return [block for block in self.blocks if block.checkpoint <= self.readouts[trait]]

    def block_parts(self, trait: int) -> np.ndarray:
        """The terms of a trait's score: ``[n, 1 + n_blocks]``, ``resid_pre.0`` first."""
        return np.stack([self.start[trait], *(block.write[trait] for block in self.blocks_of(trait))], axis=-1)


def attribute(
    model: LanguageModel,
    token_ids: Sequence[int],
    vectors: Sequence[TraitVectors],
    positions: Sequence[int] | None = None,
) -> Attribution:
    """Split the scores of ``vectors`` at ``positions`` (None for all) of a text into their exact terms.

    Raises:
        RuntimeError: attention of some layer is not what it is known as.
    """
    positions = tuple(range(len(token_ids)) if positions is None else positions)
    readouts = tuple(vector.readout for vector in vectors)
    directions = torch.stack([vector.reader[vector.readout] for vector in vectors])
    checkpoints = model.anatomy.checkpoints
    states: dict[int, np.ndarray] = {}
    blocks: list[BlockTerms] = []

    def observe(checkpoint: int, state: torch.Tensor) -> None:
        if checkpoint == 0 or checkpoint in readouts:
            states[checkpoint] = _dotted(state[list(positions)], directions)

    def split(internals: LayerInternals) -> None:
        blocks.extend(_split_layer(model, internals, directions, positions))

    last = max(checkpoints[readout].layer for readout in readouts)
    wanted = {layer: _needed(model, layer) for layer in range(last + 1)}
    with watch(model.module, model.anatomy, observe):
        open_layers(model, token_ids, wanted, split, positions=positions)
    return Attribution(
        traits=tuple(vector.trait for vector in vectors),
        positions=positions,
        readouts=readouts,
        start=states[0],
        blocks=tuple(blocks),
        score=np.stack([states[readout][trait] for trait, readout in enumerate(readouts)]),
    )


def _dotted(states: torch.Tensor, directions: torch.Tensor) -> np.ndarray:
    """``[n_directions, n]`` float64 of states ``[n, d_model]``."""
    return directions.numpy().astype(np.float64) @ states.float().cpu().numpy().astype(np.float64).T


def _needed(model: LanguageModel, layer: int) -> set[str]:
    """What has to be opened of a layer, as far as its blocks can be split."""
    found = model.blocks[layer]
    needed = set()
    if found.attention is not None:
        needed |= {"attn_out"} if found.attention.problem else {"attn_out", "pattern", "v"}
    if found.mlp is not None:
        needed |= {"mlp_out"} if found.mlp.problem else {"mlp_out", "neurons"}
    return needed


def _split_layer(
    model: LanguageModel, internals: LayerInternals, directions: torch.Tensor, positions: Sequence[int]
) -> list[BlockTerms]:
    found = model.blocks[internals.layer]
    terms = []
    if found.attention is not None:
        parts, bias = None, None
        if found.attention.problem is None:
            parts, bias = _heads(pull_back(model, found.attention, directions), internals, positions)
        terms.append(_block(model, internals, "attention", found.attention, directions, positions, parts, bias))
    if found.mlp is not None:
        parts, bias = None, None
        if found.mlp.problem is None:
            parts, bias = _neurons(pull_back(model, found.mlp, directions), internals, positions)
        terms.append(_block(model, internals, "mlp", found.mlp, directions, positions, parts, bias))
    return terms


def _block(
    model: LanguageModel,
    internals: LayerInternals,
    kind: BlockKind,
    block: Block,
    directions: torch.Tensor,
    positions: Sequence[int],
    parts: HeadTerms | NeuronTerms | None,
    bias: np.ndarray | None,
) -> BlockTerms:
    added = internals.attn_out if kind == "attention" else internals.mlp_out
    assert added is not None
    write = _dotted(added[list(positions)], directions)
    return BlockTerms(
        layer=internals.layer,
        kind=kind,
        checkpoint=_checkpoint_behind(model, internals.layer, kind),
        write=write,
        parts=parts,
        bias=np.zeros_like(write) if bias is None else bias,
        problem=block.problem,
    )


def _checkpoint_behind(model: LanguageModel, layer: int, kind: BlockKind) -> int:
    has_mid = model.anatomy.layers[layer].resid_mid is not None
    return model.anatomy.checkpoints.index(
        Checkpoint(layer, "resid_mid" if kind == "attention" and has_mid else "resid_post")
    )


def _heads(pulled: PulledBack, internals: LayerInternals, positions: Sequence[int]) -> tuple[HeadTerms, np.ndarray]:
    scale = array(internals.attn_scale)[list(positions)]
    pattern = array(internals.pattern)
    terms = head_writes(pattern, array(internals.v), pulled.weights, scale)
    sink = None if internals.sink is None else array(internals.sink)
    return HeadTerms(terms, pattern, sink), pulled.bias[:, None].astype(np.float64) * scale


def _neurons(pulled: PulledBack, internals: LayerInternals, positions: Sequence[int]) -> tuple[NeuronTerms, np.ndarray]:
    scale = array(internals.mlp_scale)[list(positions)]
    activations, expert_weights = activations_of(internals, positions, pulled.bias)
    terms = neuron_writes(activations, pulled.weights, scale)
    if expert_weights is None:
        return NeuronTerms(terms, activations, None), pulled.bias[:, None].astype(np.float64) * scale
    bias = pulled.bias.astype(np.float64) @ expert_weights.T * scale
    return NeuronTerms(terms, activations, pulled.weights.shape[1] // pulled.bias.shape[1]), bias


def activations_of(
    internals: LayerInternals, positions: Sequence[int], bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Activations ``[n, n_neurons]`` of a layer's neurons; with experts also each expert's weight ``[n, n_experts]``.

    ``bias`` is that of the pulled-back projection: it tells the number of experts.
    """
    neurons = array(internals.neurons)[list(positions)]
    if internals.experts is None or internals.router is None:
        return neurons, None
    chosen = internals.experts.cpu().numpy()[list(positions)]
    router = array(internals.router)[list(positions)]
    return spread_over_experts(neurons, chosen, router, bias.shape[1])


def array(tensor: torch.Tensor | None) -> np.ndarray:
    """A tensor as a float32 array on the CPU."""
    assert tensor is not None
    return tensor.float().cpu().numpy()
