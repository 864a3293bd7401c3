"""Experiments as distributions over their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traitscope.analysis.resampling import estimate
from traitscope.captures.reading import capture_label, dose_label


def described_experiments(captures: Sequence[Mapping[str, Any]], traits: Sequence[str]) -> list[dict[str, Any]]:
    """Per experiment (and dose) the mean z of its prompts for every trait, with an interval over prompts.

    The prompt is the unit: samples of one prompt are averaged first.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for capture in captures:
        if capture["status"] == "ok":
            groups.setdefault(f"{capture['experiment']}{dose_label(capture)}", []).append(capture)
    return [
        {
            "name": name,
            "points": {trait: _points(group, trait) for trait in traits},
            "mean": {trait: mean_with_interval(_per_prompt(group, trait)) for trait in traits},
        }
        for name, group in groups.items()
    ]


def _points(group: Sequence[Mapping[str, Any]], trait: str) -> list[dict[str, Any]]:
    return [
        {"label": capture_label(capture), "generation": capture["generation"], "z": round(z, 4)}
        for capture in group
        if (z := capture["mean_z"].get(trait)) is not None
    ]


def _per_prompt(group: Sequence[Mapping[str, Any]], trait: str) -> np.ndarray:
    prompts: dict[int, list[float]] = {}
    for capture in group:
        if (z := capture["mean_z"].get(trait)) is not None:
            prompts.setdefault(capture["prompt_number"], []).append(z)
    return np.array([np.mean(values) for values in prompts.values()])


def mean_with_interval(values: np.ndarray) -> dict[str, Any] | None:
    """Mean and 95 % bootstrap interval over ``values`` ``[n_prompts]``; no interval where they are too few."""
    if not len(values):
        return None
    found = estimate([values])
    ends = (None if end is None else round(end, 4) for end in (found.low, found.high))
    return {"mean": round(found.value, 4), **dict(zip(("low", "high"), ends, strict=True)), "n": found.n}
