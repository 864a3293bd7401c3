"""Bugs caught here: tokens or samples counted as prompts, z of the wrong region, a verdict from the mean alone, an
interval that a rerun moves, doses thrown together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nights import run_suite, write_suite
from traitscope.analysis.resampling import LEAST_PROMPTS
from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.expectations import Expectation, scored_expectations
from traitscope.captures.reading import Run, frame_of
from traitscope.captures.schema import CAPTURES, GENERATIONS, PROMPTS, shard_schema
from traitscope.captures.summaries import run_summary
from traitscope.report.page.experiments import described_experiments

R = "resid_post.0"
# Neutral responses: tokens are 100 wide, means of responses 2, around 10.
CALIBRATION = TraitCalibration(
    trait="calm",
    poles=("calm", "loud"),
    verdict="unvalidated",
    checkpoints=("resid_pre.0", R),
    readout=R,
    mean={"response_token": np.float32([0, -50]), "response_mean": np.float32([0, 10])},
    std={"response_token": np.float32([1, 100]), "response_mean": np.float32([1, 2])},
    neutral_trajectory=np.zeros((0, 0), np.float32),
)
Planted = Mapping[tuple[str, int, float | None], Sequence[float]]


def _run(planted: Planted, texts: Mapping[str, int]) -> Run:
    """A run with these content scores at R by (prompt id, sample, dose); no scores is a failed generation. Prompts with
    the same of ``texts`` (one of its own if none is given) are copies.

    A special token with a score of 1e6 ends every response: it counts nowhere.
    """
    rows: dict[str, list[dict[str, Any]]] = {
        table: [] for table in ("generations", "captures", "tokens", "scores", "prompts")
    }
    numbers: dict[str | int, int] = {}
    for number, ((prompt, sample, alpha), scores) in enumerate(planted.items()):
        generation = f"g{number}"
        asked = {"generation": generation, "experiment": "one", "prompt_id": prompt, "sample": sample, "alpha": alpha}
        rows["captures"] += [{**asked, "kind": kind, "traits": ["calm"]} for kind in ("scores", "internals")]
        text = numbers.setdefault(texts.get(prompt, prompt), len(numbers))
        rows["prompts"].append({"generation": generation, "token_ids": [text]})
        rows["generations"].append({"generation": generation, "status": "ok" if scores else "failed"})
        for position in range(len(scores) + 2 if scores else 0):
            phase, special = ("response", position > len(scores)) if position else ("prompt", False)
            rows["tokens"].append(
                {"generation": generation, "position": position, "phase": phase, "special": special, "token": "x"}
            )
        if scores:
            rows["scores"].append({"generation": generation, "checkpoint": R, "score.calm": [-1e6, *scores, 1e6]})
    schemas = {"generations": GENERATIONS, "captures": CAPTURES, "prompts": PROMPTS}
    frames = {
        table: frame_of(pa.Table.from_pylist(rows.get(table, []), schemas.get(table) or shard_schema(table, ["calm"])))
        for table in ("generations", "captures", "tokens", "scores", "writes", "prompts")
    }
    return Run(frames, {"calm": CALIBRATION}, CALIBRATION.checkpoints, title="planted")


def _scored(planted: Planted, expected: str, texts: Mapping[str, int] | None = None) -> list[Expectation]:
    suite = {"experiments": [{"name": "other", "expect": {}}, {"name": "one", "expect": {"calm": expected}}]}
    return scored_expectations(_run(planted, texts or {}), suite)


def _of_prompts(z: Sequence[float]) -> Planted:
    return {(f"p{n}", 0, None): [10 + 2 * value] * (n + 1) for n, value in enumerate(z)}


@pytest.mark.parametrize(
    ("z", "high", "low"),
    [
        ([1.0, 1.5, 2.0, 0.5, 1.0, 1.2], "met", "not met"),
        ([-1.0, -1.5, -2.0, -0.5, -1.0, -1.2], "not met", "met"),
        ([2.0, -1.0, 1.5, -0.5, 1.0, -0.8], "undecided", "undecided"),
        ([3.0, 3.0, 3.0, 3.0, 3.0], "too few prompts", "too few prompts"),
    ],
)
def test_the_verdict_is_of_the_whole_interval(z: list[float], high: str, low: str) -> None:
    (found,) = _scored(_of_prompts(z), "high")
    assert found.verdict == high
    assert _scored(_of_prompts(z), "low")[0].verdict == low
    assert found.mean_z == pytest.approx(np.mean(z))
    assert (found.interval is None) == (len(z) < LEAST_PROMPTS)
    assert (found.n_prompts, found.n_asked, found.expected, found.alpha) == (len(z), len(z), "high", None)


def test_the_prompt_is_the_unit_not_the_token_or_the_sample() -> None:
    planted: dict[tuple[str, int, float | None], Sequence[float]] = {("long", 0, None): [20.0] * 50}
    planted |= {("sampled", sample, None): [10.0 + 2 * sample] for sample in range(3)}  # z of 0, 1 and 2
    planted |= {(f"p{n}", 0, None): [10.0] for n in range(3)} | {("failed", 0, None): []}
    (found,) = _scored(planted, "high")
    assert (found.n_prompts, found.n_asked) == (5, 6)
    assert found.mean_z == pytest.approx((5 + 1 + 0 + 0 + 0) / 5)


def test_a_line_that_is_there_twice_is_one_prompt() -> None:
    planted: Planted = {(f"p{n}", 0, None): [12.0] for n in range(7)}
    (found,) = _scored(planted, "high", {"p5": 0, "p6": 0})
    assert (found.n_prompts, found.n_asked) == (6, 6)
    (found,) = _scored(planted, "high", dict.fromkeys(("p4", "p5", "p6"), 0))
    assert (found.n_prompts, found.verdict) == (5, "too few prompts")


def test_every_dose_is_scored_alone() -> None:
    planted: Planted = {(f"p{n}", 0, alpha): [10 + 40 * alpha + 0.1 * n] for n in range(6) for alpha in (-0.5, 0.5)}
    assert [(found.alpha, found.verdict) for found in _scored(planted, "high")] == [(-0.5, "not met"), (0.5, "met")]


def test_nothing_captured_is_no_crash() -> None:
    (found,) = _scored({("a", 0, None): []}, "high")
    assert (found.verdict, found.mean_z, found.n_asked) == ("too few prompts", None, 1)


def test_a_run_scores_what_its_suite_expects(tmp_path: Path, tiny_directory: Path, tiny_cache: Path) -> None:
    experiments = [
        {"name": "few", "prompts": ["sun", "rain", "sun"], "expect": {"loudness": "low"}},
        {"name": "silent", "prompts": ["moss"]},
    ]
    run_dir = run_suite(write_suite(tmp_path, tiny_directory, experiments=experiments), tmp_path / "runs")
    summary = run_summary(run_dir)
    (found,) = summary["expectations"]
    assert (found["experiment"], found["trait"], found["verdict"]) == ("few", "loudness", "too few prompts")
    assert np.isfinite(found["mean_z"])
    assert found["n_prompts"] == 2
    few, _ = described_experiments(summary["captures"], ["loudness"])
    assert few["mean"]["loudness"]["n"] == 2, "the page counts prompts as the expectations do"
