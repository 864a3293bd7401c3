"""Whether a run's traits share directions: cosines of their vectors, and what each reader tells of others' pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traitscope.analysis.maximum import LEVEL
from traitscope.analysis.superposition import (
    CrossReading,
    RandomCosine,
    at_readouts,
    cosines,
    cross_reading,
    random_cosine_p,
    random_cosine_threshold,
)
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Matrix, Plain
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import chosen_traits
from traitscope.questions.scenario_sets import Sourced, counted, run_model, those_with_sets

if TYPE_CHECKING:
    from traitscope.traits.vectors import TraitVectors

_MOST_NAMED = 4
_MOST_ROWS = 40


@dataclass(frozen=True)
class _Overlap:
    """The cosine of two traits' directions at the readout of one of them."""

    traits: tuple[str, str]
    at: str
    cosine: float
    p: float


@dataclass(frozen=True)
class _Kind:
    """All overlaps of one kind of direction, those furthest from orthogonal first; ``matrix`` ``[n, n]`` has row a at
    the readout of trait a."""

    name: str
    overlaps: tuple[_Overlap, ...]
    matrix: np.ndarray
    threshold: float


def ask_superposition(run_dir: Path, options: QuestionOptions) -> Answer:
    """Hold the cosines between a run's readers, and between its steerers, against random directions; and each reader's
    separation of the other traits' dev pairs against relabelled pairs and random readers.

    The model is loaded for the latter only, and not where no trait's scenario set is at hand.

    Raises:
        InputError: unknown trait, or fewer than two; not the run's model.
    """
    from traitscope.attribution.explanation import sound_run

    run, frozen = sound_run(run_dir)
    names = chosen_traits(run, options)
    chosen = [vectors for vectors in frozen.vectors if vectors.trait in names]
    if len(chosen) < 2:
        raise InputError(f"run {run_dir}: superposition compares traits; choose at least two")
    kinds = [_kind(chosen, kind) for kind in ("reader", "steerer")]
    reading, notes = _cross_reading(run_dir, chosen, options.seed)
    d_model = chosen[0].reader.shape[-1]
    return Answer(
        kind="superposition",
        title=f"What {len(chosen)} traits share at their readouts",
        findings=(*_cosine_findings(kinds, d_model), *_cross_findings(chosen, reading), *notes),
        tables=(_cosine_table(kinds, d_model), *_cross_tables(chosen, reading)),
        panels=_panels(chosen, kinds, reading),
        values=_values(chosen, kinds, reading),
    )


def _kind(chosen: Sequence[TraitVectors], kind: str) -> _Kind:
    values = cosines(np.stack([getattr(vectors, kind).numpy() for vectors in chosen]))
    overlaps: list[tuple[tuple[str, str], str, float]] = []
    for a, b in combinations(range(len(chosen)), 2):
        for at in dict.fromkeys((chosen[a].readout, chosen[b].readout)):
            traits = (chosen[a].trait, chosen[b].trait)
            overlaps.append((traits, chosen[a].checkpoints[at], float(values[a, b, at])))
    d_model = chosen[0].reader.shape[-1]
    found = np.array([cosine for *_, cosine in overlaps])
    tested = [_Overlap(*one, float(p)) for one, p in zip(overlaps, random_cosine_p(found, d_model), strict=True)]
    there = [overlap for overlap in tested if np.isfinite(overlap.cosine)]
    return _Kind(
        kind,
        tuple(sorted(there, key=lambda overlap: -abs(overlap.cosine))),
        at_readouts(values, [vectors.readout for vectors in chosen]),
        random_cosine_threshold(max(len(there), 1), d_model),
    )


def _cross_reading(
    run_dir: Path, chosen: Sequence[TraitVectors], seed: int
) -> tuple[CrossReading | None, tuple[str, ...]]:
    """The readings, and sentences on traits whose pairs are not at hand."""
    from traitscope.traits.pooling import PooledPairs, pool_pairs

    try:
        traits, left_out = those_with_sets(chosen, named=False, check=_refuse_without_pairs)
    except InputError as error:
        return None, (f"No trait's pairs were read: {error}.",)
    rows = sorted({vectors.readout for vectors in chosen})
    model = run_model(run_dir)
    with counted("reading pairs", sum(2 * len(trait.scenarios.splits.dev) for trait in traits)) as count:
        states: dict[str, PooledPairs] = {
            trait.vectors.trait: pool_pairs(model, trait.scenarios.splits.dev, trait.style, count, checkpoints=rows)
            for trait in traits
        }
    reading = cross_reading(
        np.stack([vectors.reader.numpy()[rows] for vectors in chosen]),
        [rows.index(vectors.readout) for vectors in chosen],
        [states.get(vectors.trait) for vectors in chosen],
        seed=seed,
    )
    return reading, tuple(left_out)


def _refuse_without_pairs(trait: Sourced) -> None:
    if not trait.scenarios.splits.dev:
        raise InputError(f"trait {trait.vectors.trait}: its scenario set has no dev pairs")


def _cosine_findings(kinds: Sequence[_Kind], d_model: int) -> list[str]:
    random = RandomCosine(d_model)
    sentences = []
    for kind in kinds:
        beyond = [overlap for overlap in kind.overlaps if overlap.p <= LEVEL]
        pairs = {overlap.traits for overlap in beyond}
        all_pairs = {overlap.traits for overlap in kind.overlaps}
        strongest = "; ".join(
            f"{' and '.join(one.traits)} {one.cosine:+.2f} at {one.at}" for one in beyond[:_MOST_NAMED]
        )
        sentences.append(
            f"{kind.name.capitalize()}s: {len(pairs)} of {len(all_pairs)} pairs of traits are further from orthogonal "
            f"than random directions in {d_model} dimensions (0 ± {random.deviation:.3f}; beyond {kind.threshold:.3f} "
            f"in 5 % of models){': ' + strongest if strongest else ''}."
        )
    return sentences


def _cosine_table(kinds: Sequence[_Kind], d_model: int) -> AnswerTable:
    of_steerers = {(one.traits, one.at): one for one in kinds[1].overlaps}
    rows: list[tuple[Plain, ...]] = []
    for one in kinds[0].overlaps:
        other = of_steerers.get((one.traits, one.at))
        rows.append((" and ".join(one.traits), one.at, *_cosine_cells(one), *_cosine_cells(other)))
    return AnswerTable(
        title="Cosines between traits' directions at the readout of either",
        columns=("traits", "at", "readers", "p", "steerers", "p"),
        rows=tuple(rows[:_MOST_ROWS]),
        note=(
            f"p: random directions in {d_model} dimensions, corrected for all rows. Steerers are mean differences, "
            "which lie in the few dimensions that move most whatever differs, so that a random direction is an easy "
            "rival for them." + (f" {len(rows) - _MOST_ROWS} more are in the JSON." if len(rows) > _MOST_ROWS else "")
        ),
    )


def _cosine_cells(overlap: _Overlap | None) -> tuple[str | None, str | None]:
    return (None, None) if overlap is None else (f"{overlap.cosine:+.2f}", _p(overlap.p))


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _cells(chosen: Sequence[TraitVectors], reading: CrossReading) -> list[tuple[int, int]]:
    """Rows and columns off the diagonal that were read, the smallest p first and of equal ones the largest effect."""
    there = [(int(a), int(b)) for a, b in np.argwhere(np.isfinite(reading.random_spread)) if a != b]
    effect = np.abs(reading.d) / reading.random_spread
    return sorted(there, key=lambda cell: (reading.p[cell], -effect[cell]))


def _cross_findings(chosen: Sequence[TraitVectors], reading: CrossReading | None) -> list[str]:
    if reading is None:
        return []
    cells = _cells(chosen, reading)
    if not cells:
        return ["Inconclusive: no trait's dev pairs are on enough topics to hold a reader against them."]
    told = [cell for cell in cells if reading.p_labels[cell] <= LEVEL]
    beyond = [cell for cell in cells if reading.p[cell] <= LEVEL]
    named = "; ".join(
        f"{chosen[a].trait} on {chosen[b].trait} {reading.auroc[a, b]:.2f}" for a, b in beyond[:_MOST_NAMED]
    )
    return [
        f"Cross-reading: in {len(told)} of {len(cells)} cells a reader tells another trait's dev pairs apart, in "
        f"{len(beyond)} also further than a random direction would{' (AUROC): ' + named if named else ''}."
    ]


def _cross_tables(chosen: Sequence[TraitVectors], reading: CrossReading | None) -> list[AnswerTable]:
    if reading is None or not (cells := _cells(chosen, reading)):
        return []
    return [
        AnswerTable(
            title="What readers tell of other traits' dev pairs",
            columns=("reader", "on the pairs of", "AUROC", "d", "random d", "p labels", "p random"),
            rows=tuple(
                (
                    chosen[a].trait,
                    chosen[b].trait,
                    f"{reading.auroc[a, b]:.2f}",
                    f"{reading.d[a, b]:+.2f}",
                    f"±{reading.random_spread[a, b]:.2f}",
                    _p(reading.p_labels[a, b]),
                    _p(reading.p_random[a, b]),
                )
                for a, b in cells[:_MOST_ROWS]
            ),
            note=(
                "At the reader's R. AUROC below 0.5: the reader runs the other way. Random d: root mean square of "
                "random directions. p labels: relabelled pairs; p random: random readers; both corrected for all "
                "cells. Two traits share something where both are at most 0.05."
                + (f" {len(cells) - _MOST_ROWS} more are in the JSON." if len(cells) > _MOST_ROWS else "")
            ),
        )
    ]


def _panels(chosen: Sequence[TraitVectors], kinds: Sequence[_Kind], reading: CrossReading | None) -> tuple[Matrix, ...]:
    names = tuple(vectors.trait for vectors in chosen)
    rows = tuple(f"{vectors.trait} ({vectors.readout_name})" for vectors in chosen)
    panels = [
        Matrix(
            title=f"Cosines of {kind.name}s at the row's readout (random directions: beyond ±{kind.threshold:.2f} "
            "anywhere in 5 %)",
            rows=rows,
            columns=names,
            values=_tuples(kind.matrix),
            value_axis="cosine",
        )
        for kind in kinds
    ]
    if reading is not None:
        panels.append(
            Matrix(
                title="AUROC of the row's reader on the column's dev pairs",
                rows=rows,
                columns=names,
                values=_tuples(reading.auroc),
                row_axis="reader",
                column_axis="pairs",
                value_axis="AUROC",
                centre=0.5,
                reach=0.5,
            )
        )
    return tuple(panels)


def _tuples(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def _values(chosen: Sequence[TraitVectors], kinds: Sequence[_Kind], reading: CrossReading | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "traits": [{"trait": vectors.trait, "readout": vectors.readout_name} for vectors in chosen]
    }
    for kind in kinds:
        values[f"{kind.name}s"] = {
            "threshold": kind.threshold,
            "at_row_readout": kind.matrix,
            "overlaps": [
                {"traits": list(one.traits), "at": one.at, "cosine": one.cosine, "p": one.p} for one in kind.overlaps
            ],
        }
    if reading is not None:
        names = ("auroc", "d", "p_labels", "p_random", "random_spread")
        values["cross_reading"] = {name: getattr(reading, name) for name in names}
    return values
