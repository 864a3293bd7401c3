"""Whether experiments did what their suite expects: which side of neutral a trait's mean lies on, over prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from traitscope.analysis.resampling import estimate
from traitscope.captures.prompts import prompt_numbers
from traitscope.captures.reading import Run
from traitscope.captures.responses import mean_z

Side = Literal["high", "low"]
Verdict = Literal["met", "not met", "undecided", "too few prompts"]


@dataclass(frozen=True)
class Expectation:
    """One trait that an experiment expects to be high or low, at one dose if the experiment steers.

    Attributes:
        n_prompts: prompts with a captured response that has content.
        n_asked: prompts of the experiment.
        mean_z: mean over prompts of a response's mean score at R, centred and scaled by the model's responses to
            neutral prompts (their means, ``response_mean``); None without any prompt, or where neutral responses do
            not vary.
        interval: its 95 % interval; None for fewer than ``resampling.LEAST_PROMPTS`` prompts.
    """

    experiment: str
    trait: str
    expected: Side
    alpha: float | None
    n_prompts: int
    n_asked: int
    mean_z: float | None
    interval: tuple[float, float] | None
    verdict: Verdict

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def scored_expectations(run: Run, suite: Mapping[str, Any]) -> list[Expectation]:
    """Every ``expect:`` of a frozen suite, scored on what its run has captured, in the suite's order.

    The prompt is the unit: samples of a prompt are averaged first. ``met`` when the whole interval lies on the
    expected side of 0, ``not met`` when it lies wholly on the other, else ``undecided``.
    """
    expecting = [experiment for experiment in suite["experiments"] if experiment["expect"]]
    if not expecting:
        return []
    z, numbers = mean_z(run, "response_mean"), prompt_numbers(run)
    captures = run.captures.collect()
    captures = captures.with_columns(
        pl.col("generation").replace_strict(numbers, return_dtype=pl.Int64).alias("prompt")
    )
    return [
        _scored(experiment["name"], trait, side, of_dose)
        for experiment in expecting
        for trait, side in experiment["expect"].items()
        for of_dose in _by_prompt(captures, z, experiment["name"], trait).partition_by("alpha", maintain_order=True)
    ]


def _by_prompt(captures: pl.DataFrame, z: pl.DataFrame, experiment: str, trait: str) -> pl.DataFrame:
    """``alpha``, ``prompt`` and ``z`` (null or NaN where there is none), one row per prompt and dose."""
    asked = captures.filter(pl.col("experiment") == experiment).unique(["generation", "alpha"], maintain_order=True)
    return (
        asked.join(z.select("generation", pl.col(trait).alias("z")), on="generation", how="left", maintain_order="left")
        .group_by("alpha", "prompt", maintain_order=True)
        .agg(pl.col("z").mean())
    )


def _scored(experiment: str, trait: str, expected: Side, by_prompt: pl.DataFrame) -> Expectation:
    """``by_prompt``: ``alpha`` (one value) and ``z`` of each prompt that was asked."""
    z = by_prompt["z"].drop_nulls().drop_nans().to_numpy()
    found = estimate([z])
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    return Expectation(
        experiment=experiment,
        trait=trait,
        expected=expected,
        alpha=by_prompt["alpha"][0],
        n_prompts=len(z),
        n_asked=len(by_prompt),
        mean_z=float(z.mean()) if len(z) else None,
        interval=interval,
        verdict="too few prompts" if interval is None else _verdict(expected, interval),
    )


def _verdict(expected: Side, interval: tuple[float, float]) -> Verdict:
    low, high = interval if expected == "high" else (-interval[1], -interval[0])
    if low > 0:
        return "met"
    return "not met" if high < 0 else "undecided"
