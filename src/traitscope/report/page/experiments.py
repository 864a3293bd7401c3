"""Experiments as distributions over their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traitscope.captures.reading import capture_label

LEAST_FOR_INTERVAL = 5
_DRAWS = 2000


def described_experiments(captures: Sequence[Mapping[str, Any]], traits: Sequence[str]) -> list[dict[str, Any]]:
    """Per experiment (and dose) the mean z of its prompts for every trait, with an interval over prompts.

    The prompt is the unit: samples of one prompt are averaged first.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for capture in captures:
        if capture["status"] == "ok":
            groups.setdefault(_group_name(capture), []).append(capture)
    return [
        {
            "name": name,
            "points": {trait: _points(group, trait) for trait in traits},
            "mean": {trait: mean_with_interval(_per_prompt(group, trait)) for trait in traits},
        }
        for name, group in groups.items()
    ]


def _group_name(capture: Mapping[str, Any]) -> str:
    dose = "" if capture["alpha"] is None else f"@{capture['alpha']:+g}"
    return f"{capture['experiment']}{dose}"


def _points(group: Sequence[Mapping[str, Any]], trait: str) -> list[dict[str, Any]]:
    return [
        {"label": capture_label(capture), "generation": capture["generation"], "z": round(z, 4)}
        for capture in group
        if (z := capture["mean_z"].get(trait)) is not None
    ]


def _per_prompt(group: Sequence[Mapping[str, Any]], trait: str) -> np.ndarray:
    prompts: dict[str, list[float]] = {}
    for capture in group:
        if (z := capture["mean_z"].get(trait)) is not None:
            prompts.setdefault(capture["prompt_id"], []).append(z)
    return np.array([np.mean(values) for values in prompts.values()])


def mean_with_interval(values: np.ndarray) -> dict[str, Any] | None:
    """Mean and 95 % percentile bootstrap over ``values`` ``[n_prompts]``; no interval from fewer than five.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    if not len(values):
        return None
    mean = round(float(values.mean()), 4)
    if len(values) < LEAST_FOR_INTERVAL:
        return {"mean": mean, "low": None, "high": None, "n": len(values)}
    draws = np.random.default_rng(0).choice(values, (_DRAWS, len(values))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {"mean": mean, "low": round(float(low), 4), "high": round(float(high), 4), "n": len(values)}
