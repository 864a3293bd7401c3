"""The terms of one score as a tree that a person can read: the largest ones by name, the others summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traitscope.attribution.terms import Attribution, BlockTerms, HeadTerms, NeuronTerms
from traitscope.traits.vectors import TraitVectors

_NOTABLE_Z = 1e-4
_NOTABLE_SHARE = 0.05
"""A source token is named if it is this share of the sizes of all that a head reads."""


@dataclass(frozen=True)
class Term:
    """One term of a sum.

    Attributes:
        label: for people.
        raw: what it adds to the score.
        neutral: its mean over the model's neutral replies; None where that is not known, as of a single source token.
        z: ``(raw - neutral) / deviation``, or ``raw / deviation`` without a neutral mean. The deviation is that of
            neutral replies' tokens at R, so that the terms of a score add up to its z.
        detail: what it is, for programs: layer, kind, head, position, token, weight, neuron, expert, activation.
        parts: the terms of which it is the sum.
    """

    label: str
    raw: float
    neutral: float | None
    z: float
    detail: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Term, ...] = ()


@dataclass(frozen=True)
class _Tree:
    """What the terms of one trait at one position have in common."""

    attribution: Attribution
    trait: int
    at: int
    deviation: float
    tokens: Sequence[str]
    most: int

    def term(self, label: str, raw: float, neutral: float | None, **rest: Any) -> Term:
        z = (raw - (neutral or 0.0)) / self.deviation
        return Term(label, float(raw), None if neutral is None else float(neutral), float(z), **rest)

    def largest(
        self, raw: np.ndarray, neutral: np.ndarray | None, least_share: float = 0.0, n: int | None = None
    ) -> np.ndarray:
        """Numbers of the terms with the largest z, largest first, without those of hardly any share."""
        sizes = np.abs(raw if neutral is None else raw - neutral)
        order = np.argsort(-sizes, kind="stable")[: n or max(1, self.most - 2)]
        return order[sizes[order] > least_share * sizes.sum()]

    def others(self, what: str, raw: np.ndarray, neutral: np.ndarray | None, named: np.ndarray) -> list[Term]:
        """The sum of the terms that are not named."""
        n_others = len(raw) - len(named)
        if n_others == 0:
            return []
        rest = np.ones(len(raw), bool)
        rest[named] = False
        usual = None if neutral is None else float(neutral[rest].sum())
        return [self.term(f"{n_others} other {what}", float(raw[rest].sum()), usual)]

    def rounding(self, whole_raw: float, parts: Sequence[Term]) -> Term:
        """What closes a sum."""
        return self.term("rounding", whole_raw - sum(part.raw for part in parts), None)


@dataclass(frozen=True)
class ScoreTree:
    """One score taken apart.

    Attributes:
        terms: ``resid_pre.0``, what steering added, the blocks that wrote most, the others, rounding: they sum to
            the score.
        heads, neurons: those of all blocks that wrote most, largest first.
    """

    terms: tuple[Term, ...]
    heads: tuple[Term, ...]
    neurons: tuple[Term, ...]


def score_tree(
    attribution: Attribution, vectors: TraitVectors, position: int, tokens: Sequence[str], *, most: int = 5
) -> ScoreTree:
    """Take one trait's score at R for the token at ``position`` apart.

    Args:
        attribution: with neutral means; it must hold the trait and the position.
        tokens: the text of every token of the generation.
        most: how many blocks are named; in each of them two fewer heads or neurons, and as many source tokens.
    """
    trait = attribution.traits.index(vectors.trait)
    calibration = vectors.calibration
    deviation = float(calibration.std["response_token"][vectors.readout])
    tree = _Tree(attribution, trait, attribution.positions.index(position), deviation, tokens, most)
    start = tree.term(
        "resid_pre.0 (the token's embedding)", attribution.start[trait, tree.at], float(calibration.write[0])
    )
    blocks = [_block(tree, block) for block in attribution.blocks_of(trait)]
    ranked = _ranked(blocks)
    named, others = ranked[:most], ranked[most:]
    steers = [
        tree.term(f"steer at layer {steer.layer}", steer.write[trait, tree.at], 0.0, detail={"layer": steer.layer})
        for steer in attribution.steers_of(trait)
    ]
    terms = [start, *steers, *named]
    if others:
        usual = sum(term.neutral or 0.0 for term in others)
        terms.append(tree.term(f"{len(others)} other blocks", sum(term.raw for term in others), usual))
    terms.append(tree.rounding(float(attribution.score[trait, tree.at]), terms))
    terms += _neutral_difference(tree, float(calibration.mean["response_token"][vectors.readout]), terms)
    heads, neurons = _ranked_parts(tree)
    return ScoreTree(tuple(terms), tuple(heads), tuple(neurons))


def _neutral_difference(tree: _Tree, mean: float, terms: Sequence[Term]) -> list[Term]:
    """The terms' neutral means sum to that of the score, unless the neutral replies are others than at the fitting."""
    difference = mean - sum(term.neutral or 0.0 for term in terms)
    if abs(difference) <= _NOTABLE_Z * tree.deviation:
        return []
    return [tree.term("neutral replies differ from those that z was calibrated on", 0.0, difference)]


def _block(tree: _Tree, block: BlockTerms) -> Term:
    raw = float(block.write[tree.trait, tree.at])
    usual = None if block.neutral_write is None else float(block.neutral_write[tree.trait])
    detail: dict[str, Any] = {"layer": block.layer, "kind": block.kind}
    if isinstance(block.parts, HeadTerms):
        parts = _heads(tree, block, block.parts)
    elif isinstance(block.parts, NeuronTerms):
        parts = _neurons(tree, block, block.parts)
        detail["largest_activations"] = _largest_activations(tree, block.parts)
    else:
        detail["problem"] = block.problem
        return tree.term(block.name, raw, usual, detail=detail)
    if np.any(block.bias[tree.trait, tree.at]):
        bias_usual = None if block.neutral_bias is None else float(block.neutral_bias[tree.trait].squeeze())
        parts.append(tree.term("bias", float(block.bias[tree.trait, tree.at]), bias_usual))
    parts.append(tree.rounding(raw, parts))
    return tree.term(block.name, raw, usual, detail=detail, parts=tuple(parts))


def _heads(tree: _Tree, block: BlockTerms, heads: HeadTerms) -> list[Term]:
    raw, usual = _of_heads(tree, heads)
    named = tree.largest(raw, usual)
    parts = [_head(tree, block, heads, head, f"head {head}") for head in named]
    return parts + tree.others("heads", raw, usual, named)


def _of_heads(tree: _Tree, heads: HeadTerms) -> tuple[np.ndarray, np.ndarray | None]:
    usual = None if heads.neutral is None else heads.neutral[tree.trait]
    return heads.terms[tree.trait, :, tree.at].sum(axis=-1), usual


def _head(tree: _Tree, block: BlockTerms, heads: HeadTerms, head: int, label: str) -> Term:
    raw, usual = _of_heads(tree, heads)
    return tree.term(
        label,
        raw[head],
        None if usual is None else usual[head],
        detail={"layer": block.layer, "head": int(head)},
        parts=tuple(_sources(tree, heads, head)),
    )


def _sources(tree: _Tree, heads: HeadTerms, head: int) -> list[Term]:
    raw, weights = heads.terms[tree.trait, head, tree.at], heads.pattern[head, tree.at]
    named = tree.largest(raw, None, _NOTABLE_SHARE)
    parts = [
        tree.term(
            f"reads {tree.tokens[source]!r} at {source}, weight {weights[source]:.2f}",
            raw[source],
            None,
            detail={"position": int(source), "token": tree.tokens[source], "weight": float(weights[source])},
        )
        for source in named
    ]
    if heads.sink is not None:
        weight = float(heads.sink[head, tree.at])
        parts.append(tree.term(f"attention sink, weight {weight:.2f}", 0.0, None, detail={"weight": weight}))
    seen = raw[: tree.attribution.positions[tree.at] + 1]
    return parts + tree.others("tokens", seen, None, named)


def _neurons(tree: _Tree, block: BlockTerms, neurons: NeuronTerms) -> list[Term]:
    raw, usual = _of_neurons(tree, neurons)
    named = tree.largest(raw, usual)
    parts = [_neuron(tree, block, neurons, number, "") for number in named]
    return parts + tree.others("neurons", raw, usual, named)


def _of_neurons(tree: _Tree, neurons: NeuronTerms) -> tuple[np.ndarray, np.ndarray | None]:
    usual = None if neurons.neutral is None else neurons.neutral[tree.trait]
    return neurons.terms[tree.trait, tree.at], usual


def _neuron(tree: _Tree, block: BlockTerms, neurons: NeuronTerms, number: int, lead: str) -> Term:
    raw, usual = _of_neurons(tree, neurons)
    activation = float(neurons.activations[tree.at, number])
    return tree.term(
        f"{lead}{_neuron_name(neurons, number)}, activation {activation:+.2f}",
        raw[number],
        None if usual is None else usual[number],
        detail={"layer": block.layer, **_neuron_detail(neurons, number), "activation": activation},
    )


def _ranked_parts(tree: _Tree) -> tuple[list[Term], list[Term]]:
    """The heads and the neurons of all blocks that wrote most."""
    heads: list[Term] = []
    neurons: list[Term] = []
    for block in tree.attribution.blocks_of(tree.trait):
        lead = f"layer {block.layer} "
        if isinstance(block.parts, HeadTerms):
            largest = tree.largest(*_of_heads(tree, block.parts), n=tree.most)
            heads += [_head(tree, block, block.parts, head, f"{lead}head {head}") for head in largest]
        elif isinstance(block.parts, NeuronTerms):
            largest = tree.largest(*_of_neurons(tree, block.parts), n=tree.most)
            neurons += [_neuron(tree, block, block.parts, number, lead) for number in largest]
    return _ranked(heads)[: tree.most], _ranked(neurons)[: tree.most]


def _ranked(terms: Sequence[Term]) -> list[Term]:
    return sorted(terms, key=lambda term: -abs(term.z))


def _largest_activations(tree: _Tree, neurons: NeuronTerms) -> list[dict[str, Any]]:
    """The neurons that say most, whatever they say of the trait."""
    activations = neurons.activations[tree.at]
    found = []
    for number in np.argsort(-np.abs(activations), kind="stable")[: tree.most]:
        raw = float(neurons.terms[tree.trait, tree.at, number])
        usual = None if neurons.neutral is None else float(neurons.neutral[tree.trait, number])
        term = tree.term(_neuron_name(neurons, number), raw, usual)
        found.append(
            {
                "label": term.label,
                **_neuron_detail(neurons, number),
                "activation": float(activations[number]),
                "raw": term.raw,
                "z": term.z,
            }
        )
    return found


def _neuron_name(neurons: NeuronTerms, number: int) -> str:
    if neurons.per_expert is None:
        return f"neuron {number}"
    expert, inner = divmod(int(number), neurons.per_expert)
    return f"expert {expert} neuron {inner}"


def _neuron_detail(neurons: NeuronTerms, number: int) -> dict[str, int]:
    if neurons.per_expert is None:
        return {"neuron": int(number)}
    expert, inner = divmod(int(number), neurons.per_expert)
    return {"expert": expert, "neuron": inner}
