"""Comparing traits on one model: their vectors, their pairs, and the result as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from traitscope.analysis.superposition import (
    RandomCosine,
    at_readouts,
    cosines,
    cross_auroc,
    random_auroc_deviation,
)
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.counting import OnProgress, no_progress
from traitscope.traits.pooling import PooledPairs, pool_pairs
from traitscope.traits.scenarios import Pair, ScenarioSet, library_names, load_scenarios
from traitscope.traits.store import TraitReference, find_trait
from traitscope.traits.vectors import TraitVectors


def compare_traits(
    model: LanguageModel,
    references: Sequence[TraitReference],
    vectors: Sequence[TraitVectors],
    *,
    split: Literal["dev", "test"] = "dev",
    base_template: str = BASE_TEMPLATE,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Cosines between the traits' directions and the AUROC of each reader on each trait's pairs, for JSON and people.

    ``vectors`` are those of ``references``. Matrices have one row a trait; row a is taken at the readout of trait a.
    The test split is sealed: it is read only when asked for. States are pooled over the response.
    """
    sets = [_scenarios_of(reference, own) for reference, own in zip(references, vectors, strict=True)]
    pairs: list[list[Pair]] = [[] if found is None else getattr(found.splits, split) for found in sets]
    states = _pooled(model, pairs, PromptStyle(None, {}, base_template), on_progress)
    readouts = [own.readout for own in vectors]
    readers, steerers = (np.stack([getattr(own, kind).numpy() for own in vectors]) for kind in ("reader", "steerer"))
    between = {"reader": cosines(readers), "steerer": cosines(steerers)}
    random = RandomCosine(readers.shape[-1])
    return {
        "model": model.name,
        "fingerprint": model.fingerprint.short,
        "split": split,
        "checkpoints": list(vectors[0].checkpoints),
        "random_cosine": {
            "d_model": random.d_model,
            "mean_absolute": round(random.mean_absolute, 5),
            "deviation": round(random.deviation, 5),
            "marked_beyond": round(random.marked_beyond, 5),
        },
        "traits": [_described(own, len(found)) for own, found in zip(vectors, pairs, strict=True)],
        "cosine_at_readout": {kind: _rounded(at_readouts(values, readouts)) for kind, values in between.items()},
        "cross_auroc": _rounded(cross_auroc(readers, readouts, states)),
        "pairs": _pairs_of_traits(vectors, sets, between, random),
    }


def _scenarios_of(reference: TraitReference, vectors: TraitVectors) -> ScenarioSet | None:
    """The set that vectors were fitted on, where it is at hand."""
    if reference.kind == "vectors":
        if reference.name not in library_names():
            return None
        reference = find_trait(reference.name, Path())
    scenarios = load_scenarios(reference.path)
    return scenarios if scenarios.digest() == vectors.origin.scenarios else None


def _pooled(
    model: LanguageModel, pairs: Sequence[Sequence[Pair]], style: PromptStyle, on_progress: OnProgress
) -> list[PooledPairs | None]:
    total, done = 2 * sum(map(len, pairs)), 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress("comparing traits", done, total)

    return [pool_pairs(model, own, style, count) if own else None for own in pairs]


def _described(vectors: TraitVectors, n_pairs: int) -> dict[str, Any]:
    return {
        "trait": vectors.trait,
        "readout": vectors.readout_name,
        "verdict": vectors.origin.verdict,
        "method": vectors.origin.method,
        "pairs": n_pairs,
        "random_auroc_deviation": round(random_auroc_deviation(n_pairs), 4) if n_pairs else None,
    }


def _pairs_of_traits(
    vectors: Sequence[TraitVectors],
    sets: Sequence[ScenarioSet | None],
    between: dict[str, np.ndarray],
    random: RandomCosine,
) -> list[dict[str, Any]]:
    """Every two traits, those first whose readers are nearest to parallel at either readout."""
    found = []
    for a, b in combinations(range(len(vectors)), 2):
        at = [vectors[a].readout, vectors[b].readout]
        # fmax: imported vectors may have no direction at the other trait's readout
        strength = {kind: float(np.fmax.reduce(np.abs(values[a, b, at]))) for kind, values in between.items()}
        found.append(
            {
                "traits": [vectors[a].trait, vectors[b].trait],
                "verdicts": [vectors[a].origin.verdict, vectors[b].origin.verdict],
                "declared_related": _declares(sets[a], vectors[b].trait) or _declares(sets[b], vectors[a].trait),
                "marked": {kind: value > random.marked_beyond for kind, value in strength.items()},
                "strength": {kind: None if np.isnan(value) else round(value, 4) for kind, value in strength.items()},
                "cosines": {kind: _rounded(values[a, b]) for kind, values in between.items()},
            }
        )
    return sorted(found, key=lambda pair: -(pair["strength"]["reader"] or 0.0))


def _declares(scenarios: ScenarioSet | None, other: str) -> bool:
    return scenarios is not None and other in scenarios.related


def _rounded(values: np.ndarray) -> list[Any]:
    """Nested lists with four decimals; None for NaN, which JSON does not know."""
    rounded = np.round(values, 4).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()
