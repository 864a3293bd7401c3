"""Bugs caught here: a run that was not pushed as its plan says and passes all the same; one that was and is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from traitscope.model.loading import LanguageModel
from traitscope.model.steering import Steering
from traitscope.run import engine
from traitscope.verify.verdict import verify_run

RunTiny = Callable[..., tuple[Path, LanguageModel]]
STEER = {"trait": "random0", "alpha": [-1.5, 0, 1.5], "layers": [0, 2, -1]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "olmo2", "granite", "bloom", "opt"])
def test_a_steered_run_passes(run_tiny: RunTiny, architecture: str, dtype: str) -> None:
    verdict = verify_run(*run_tiny(architecture, dtype, steer={**STEER, "positions": "all"}), deep=True)
    assert verdict.passed, verdict.problems
    assert verdict.verified == verdict.captured == 18


@pytest.mark.parametrize("positions", ["prompt", "response"])
def test_open_layers_and_given_responses_of_a_steered_run_pass(
    run_tiny: RunTiny, tmp_path: Path, positions: str
) -> None:
    (tmp_path / "mixed.jsonl").write_text('{"prompt": "sun?", "response": "it shines"}\n{"prompt": "rain?"}\n')
    run_dir, model = run_tiny(
        "qwen3",
        prompts="mixed.jsonl",
        steer={**STEER, "positions": positions},
        capture={"scores": {}, "internals": {"layers": "all"}},
    )
    verdict = verify_run(run_dir, model)
    assert verdict.passed, verdict.problems
    assert verdict.verified == 6


def dropped(_steering: Steering) -> None:
    return None


def wrong_sign(steering: Steering) -> Steering:
    return Steering({layer: -addition for layer, addition in steering.additions.items()}, steering.positions)


def wrong_layer(steering: Steering) -> Steering:
    return Steering({layer + 1: addition for layer, addition in steering.additions.items()}, steering.positions)


def wrong_positions(steering: Steering) -> Steering:
    return Steering(steering.additions, "all")


@pytest.mark.parametrize("fault", [dropped, wrong_sign, wrong_layer, wrong_positions])
def test_a_run_that_was_pushed_otherwise_than_its_plan_says_fails(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Steering], Steering | None]
) -> None:
    real = engine.decode

    def faulty(model: LanguageModel, prompts: Any, **options: Any) -> Any:
        pushes = [None if one is None else fault(one) for one in options.pop("steering")]
        return real(model, prompts, steering=pushes, **options)

    monkeypatch.setattr(engine, "decode", faulty)
    run_dir, model = run_tiny(steer={**STEER, "layers": [0, 1]})
    verdict = verify_run(run_dir, model)
    assert not verdict.passed
    assert any("score at" in problem and "α = +1.5" in problem for problem in verdict.problems)
    assert not any("α" not in problem for problem in verdict.problems), "the unsteered rows are right"


def test_open_layers_that_were_not_pushed_fail(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.steered
    monkeypatch.setattr(engine, "steered", lambda model, _steering, *counts: real(model, None, *counts))
    run_dir, model = run_tiny(steer=STEER, capture={"scores": {}, "internals": {"layers": [1]}})
    verdict = verify_run(run_dir, model)
    assert not verdict.passed
    assert any("layer 1:" in problem and "α = +1.5" in problem for problem in verdict.problems)
