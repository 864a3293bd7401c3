"""Bugs caught here: traits cropped off a narrow console, the first sixty of many responses shown as if they were all, a
mean that counts what failed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from traitscope.report.results import expectations_table, results_tables
from traitscope.traits.scenarios import library_names

TRAITS = library_names()


def _capture(experiment: str, n: int, z: float | None, alpha: float | None = None) -> dict[str, Any]:
    return {
        "kind": "scores",
        "experiment": experiment,
        "prompt_id": str(n),
        "sample": 0,
        "alpha": alpha,
        "prompt": f"prompt {n}",
        "status": "failed" if z is None else "ok",
        "response": f"response {n}",
        "mean_z": dict.fromkeys(TRAITS, z),
    }


def _printed(tables: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _summary(captures: list[dict[str, Any]]) -> dict[str, Any]:
    traits = {trait: {"poles": ["up", "down"], "readout": "resid_post.1", "verdict": "validated"} for trait in TRAITS}
    return {"traits": traits, "captures": captures}


@pytest.mark.parametrize("width", [60, 80, 140, 400])
@pytest.mark.parametrize("n_prompts", [3, 100])
def test_every_trait_is_shown_whole_whatever_the_width(width: int, n_prompts: int) -> None:
    captures = [_capture(f"experiment-{n % 3}-high", n, 1.25) for n in range(n_prompts)]
    printed = _printed(results_tables(_summary(captures), width), width)
    for trait in TRAITS:
        for word in trait.split("_"):
            assert f"{word} ┃" in printed, word
    assert printed.count("+1.25") == 3 * len(TRAITS)
    assert "…" not in printed or n_prompts == 3


def test_many_responses_become_a_mean_for_each_experiment_and_dose() -> None:
    captures = [_capture("steered", n, float(n % 2), alpha) for n in range(40) for alpha in (0.0, 0.3)]
    captures += [_capture("part", 0, 3.0), _capture("part", 1, None)]
    printed = _printed(results_tables(_summary(captures), 300), 300)
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in printed.splitlines() if "│" in line}
    assert list(rows) == ["α +0: steered", "α +0.3: steered", "part"]
    assert [[cell.strip() for cell in row] for row in rows.values()] == [
        ["40", "+0.50"],
        ["40", "+0.50"],
        ["1", "+3.00"],
    ]
    assert "82 in all" in printed


def test_expectations_say_what_they_rest_on() -> None:
    met = {
        "experiment": "one",
        "trait": "refusal",
        "expected": "high",
        "alpha": None,
        "n_prompts": 5,
        "n_asked": 6,
        "mean_z": 1.5,
        "interval": (0.25, 2.75),
        "verdict": "met",
    }
    none = {**met, "alpha": 0.3, "n_prompts": 0, "mean_z": None, "interval": None, "verdict": "too few prompts"}
    printed = _printed([expectations_table([met, none])], 120)
    assert "1 met, 1 too few prompts" in printed
    assert "│ one         │ refusal high │  5 of 6 │ +1.50 │ +0.25 to +2.75 │ met" in printed
    assert "│ α +0.3: one │ refusal high │  0 of 6 │     – │              – │ too few prompts" in printed
