"""Traits as plain values, for tables and JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from traitscope.traits.scenarios import library_names, load_scenarios
from traitscope.traits.store import TraitReference, cached_vectors, find_trait
from traitscope.traits.vectors import TraitVectors, load_vectors


def describe_library() -> list[dict[str, Any]]:
    """Every trait that comes with traitscope."""
    return [describe_trait(find_trait(name, Path())) for name in library_names()]


def describe_vectors(vectors: TraitVectors) -> dict[str, Any]:
    """What is known of fitted vectors, their evidence included."""
    return {
        "trait": vectors.trait,
        "description": vectors.description,
        "poles": list(vectors.poles),
        "readout": vectors.readout_name,
        "checkpoints": len(vectors.checkpoints),
        "covered": len(vectors.covered_names),
        "d_model": vectors.reader.shape[1],
        **asdict(vectors.origin),
    }


def _with_card(vectors: TraitVectors) -> dict[str, Any]:
    """What validation found on one model."""
    origin = vectors.origin
    return {
        "model": origin.model,
        "fingerprint": origin.fingerprint,
        "dtype": origin.dtype,
        "readout": vectors.readout_name,
        "verdict": origin.verdict,
        "card": origin.card,
    }


def describe_trait(reference: TraitReference) -> dict[str, Any]:
    """A trait's vector file or scenario set."""
    if reference.kind == "vectors":
        vectors = load_vectors(reference.path)
        described = describe_vectors(vectors)
        return {**{name: value for name, value in described.items() if name != "card"}, "cards": [_with_card(vectors)]}
    scenarios = load_scenarios(reference.path)
    splits = {split: getattr(scenarios.splits, split) for split in ("train", "dev", "test")}
    return {
        "trait": scenarios.name,
        "description": scenarios.description,
        "positive": f"{scenarios.positive.name}: {scenarios.positive.description}",
        "negative": f"{scenarios.negative.name}: {scenarios.negative.description}",
        "pairs": {split: len(pairs) for split, pairs in splits.items()},
        "style_crossed": {split: sum(pair.crossed is not None for pair in pairs) for split, pairs in splits.items()},
        "related": dict(scenarios.related),
        "prefills": 0 if scenarios.prefills is None else len(scenarios.prefills.positive + scenarios.prefills.negative),
        "cards": [_with_card(load_vectors(path)) for path in cached_vectors(scenarios)],
        "example": scenarios.splits.train[0].model_dump(exclude_none=True),
    }
