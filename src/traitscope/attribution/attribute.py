"""The exact terms of trait scores at their readouts, from one replay of a generation's token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from traitscope.analysis.attribution import head_writes, neuron_writes
from traitscope.attribution.terms import (
    Attribution,
    BlockKind,
    BlockTerms,
    HeadTerms,
    NeuronTerms,
    NeutralBlock,
    NeutralMeans,
    SteerTerm,
    activations_of,
    array,
)
from traitscope.checkpoints import Checkpoint
from traitscope.model.blocks import Block
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import LanguageModel
from traitscope.model.pullback import PulledBack, pull_back
from traitscope.model.replay import steered
from traitscope.model.steering import Steering
from traitscope.model.watch import watch
from traitscope.traits.vectors import TraitVectors


def attribute(
    model: LanguageModel,
    token_ids: Sequence[int],
    vectors: Sequence[TraitVectors],
    positions: Sequence[int] | None = None,
    neutral: NeutralMeans | None = None,
    *,
    every_layer: bool = False,
    steering: Steering | None = None,
    n_prompt: int = 0,
) -> Attribution:
    """Split the scores of ``vectors`` at ``positions`` (None for all) of a text into their exact terms.

    Args:
        neutral: of ``neutral_means``, to have each term's neutral mean beside it.
        every_layer: also split the blocks behind the last readout, which no score has a part of.
        steering: what the text was generated under; ``n_prompt`` of its tokens are the prompt.

    Raises:
        RuntimeError: attention of some layer is not what it is known as.
    """
    asked = list(range(len(token_ids)) if positions is None else positions)
    readouts = tuple(vector.readout for vector in vectors)
    directions = torch.stack([vector.reader[vector.readout] for vector in vectors])
    checkpoints = model.anatomy.checkpoints
    states: dict[int, np.ndarray] = {}
    blocks: list[BlockTerms] = []

    def observe(checkpoint: int, state: torch.Tensor) -> None:
        if checkpoint == 0 or checkpoint in readouts:
            states[checkpoint] = _dotted(state[asked], directions)

    splitter = _Splitter(model, directions, asked, neutral or {})
    last = model.n_layers - 1 if every_layer else max(checkpoints[readout].layer for readout in readouts)
    wanted = {layer: _needed(model, layer) for layer in range(last + 1)}
    with steered(model, steering, n_prompt, len(token_ids)), watch(model.module, model.anatomy, observe):
        open_layers(model, token_ids, wanted, lambda opened: blocks.extend(splitter.layer(opened)), positions=asked)
    return Attribution(
        traits=tuple(vector.trait for vector in vectors),
        positions=tuple(asked),
        readouts=readouts,
        start=states[0],
        blocks=tuple(blocks),
        score=np.stack([states[readout][trait] for trait, readout in enumerate(readouts)]),
        steers=tuple(_steers(checkpoints, steering, directions, asked, n_prompt)),
    )


def _steers(
    checkpoints: Sequence[Checkpoint],
    steering: Steering | None,
    directions: torch.Tensor,
    positions: Sequence[int],
    n_prompt: int,
) -> Iterator[SteerTerm]:
    if steering is None:
        return
    pushed = np.array([steering.reaches(position, n_prompt) for position in positions])
    names = [checkpoint.name for checkpoint in checkpoints]
    for layer, addition in sorted(steering.additions.items()):
        write = _dotted(addition[None], directions) * pushed
        yield SteerTerm(layer, names.index(f"resid_post.{layer}"), write)


def _dotted(states: torch.Tensor, directions: torch.Tensor) -> np.ndarray:
    """``[n_directions, n]`` float64 of states ``[n, d_model]``."""
    return _float64(directions) @ _float64(states).T


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return array(tensor).astype(np.float64)


def _needed(model: LanguageModel, layer: int) -> set[str]:
    """What has to be opened of a layer, as far as its blocks can be split."""
    found = model.blocks[layer]
    needed = set()
    if found.attention is not None:
        needed |= {"attn_out"} if found.attention.problem else {"attn_out", "pattern", "v"}
    if found.mlp is not None:
        needed |= {"mlp_out"} if found.mlp.problem else {"mlp_out", "neurons"}
    return needed


class _Splitter:
    """Turns opened layers into the terms of their blocks."""

    def __init__(
        self, model: LanguageModel, directions: torch.Tensor, positions: list[int], neutral: NeutralMeans
    ) -> None:
        self._model, self._directions, self._positions, self._neutral = model, directions, positions, neutral

    def layer(self, internals: LayerInternals) -> list[BlockTerms]:
        found = self._model.blocks[internals.layer]
        terms = []
        if found.attention is not None:
            terms.append(self._block(internals, "attention", found.attention, internals.attn_out, self._heads))
        if found.mlp is not None:
            terms.append(self._block(internals, "mlp", found.mlp, internals.mlp_out, self._neurons))
        return terms

    def _block(
        self,
        internals: LayerInternals,
        kind: BlockKind,
        block: Block,
        added: torch.Tensor | None,
        split: Callable[..., tuple[HeadTerms | NeuronTerms, np.ndarray]],
    ) -> BlockTerms:
        assert added is not None
        write = _dotted(added[self._positions], self._directions)
        parts, bias, neutral_bias = None, np.zeros_like(write), None
        neutral = self._neutral.get((internals.layer, kind))
        if block.problem is None:
            pulled = pull_back(self._model, block, self._directions)
            parts, bias = split(pulled, internals, neutral)
            neutral_bias = None if neutral is None else _weighted_bias(pulled, neutral.bias)
        return BlockTerms(
            layer=internals.layer,
            kind=kind,
            checkpoint=_checkpoint_behind(self._model, internals.layer, kind),
            write=write,
            parts=parts,
            bias=bias,
            problem=block.problem,
            neutral_write=None if neutral is None else _float64(self._directions) @ neutral.added,
            neutral_bias=neutral_bias,
        )

    def _heads(
        self, pulled: PulledBack, internals: LayerInternals, neutral: NeutralBlock | None
    ) -> tuple[HeadTerms, np.ndarray]:
        scale = array(internals.attn_scale)[self._positions]
        pattern = array(internals.pattern)
        terms = head_writes(pattern, array(internals.v), pulled.weights, scale)
        sink = None if internals.sink is None else array(internals.sink)
        means = None
        if neutral is not None:
            means = _neutral_inputs(pulled, neutral).reshape(len(terms), len(pattern), -1).sum(axis=-1)
        return HeadTerms(terms, pattern, sink, means), _weighted_bias(pulled, scale[:, None])

    def _neurons(
        self, pulled: PulledBack, internals: LayerInternals, neutral: NeutralBlock | None
    ) -> tuple[NeuronTerms, np.ndarray]:
        scale = array(internals.mlp_scale)[self._positions]
        activations, experts = activations_of(internals, self._positions, pulled.n_experts)
        terms = neuron_writes(activations, pulled.weights, scale)
        means = None if neutral is None else _neutral_inputs(pulled, neutral)
        per_expert = None if pulled.n_experts is None else activations.shape[1] // pulled.n_experts
        bias_scale = scale[:, None] if experts is None else experts * scale[:, None]
        return NeuronTerms(terms, activations, per_expert, means), _weighted_bias(pulled, bias_scale)


def _neutral_inputs(pulled: PulledBack, neutral: NeutralBlock) -> np.ndarray:
    """Mean write of each input of a projection: ``[n_directions, n_inputs]``."""
    return pulled.weights.astype(np.float64) * neutral.inputs


def _weighted_bias(pulled: PulledBack, scale: np.ndarray) -> np.ndarray:
    """What the bias adds: ``[n_directions, ...]`` of scales ``[..., 1]``, or ``[..., n_experts]`` for experts."""
    bias = pulled.bias.astype(np.float64)
    return (bias if pulled.n_experts is not None else bias[:, None]) @ scale.T.astype(np.float64)


def _checkpoint_behind(model: LanguageModel, layer: int, kind: BlockKind) -> int:
    has_mid = model.anatomy.layers[layer].resid_mid is not None
    return model.anatomy.checkpoints.index(
        Checkpoint(layer, "resid_mid" if kind == "attention" and has_mid else "resid_post")
    )
