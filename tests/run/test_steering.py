"""Bugs caught here: doses that are merged or lost, a dose that a resume forgets, a push that verify cannot see missing,
sums that leave the push out, a dose 0 that is generated twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from device import DEVICE
from nights import quiet, run_suite, tables_digest, write_suite
from tiny_models import SCENARIOS
from traitscope.attribution.closure import check_closure
from traitscope.attribution.explanation import explain
from traitscope.captures.reading import open_run
from traitscope.captures.summaries import run_summary
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.replay import replay_scores
from traitscope.model.steering import Steering
from traitscope.run import engine, night
from traitscope.run.frozen import read_frozen
from traitscope.traits.store import bank_of
from traitscope.verify.verdict import verify_run

ALPHAS = [-0.4, 0, 0.4]
STEERED: list[dict[str, Any]] = [
    {
        "name": "pushed",
        "prompts": ["sun and moss", "a river of stone"],
        "steer": {"trait": str(SCENARIOS), "alpha": ALPHAS},
        "capture": {"scores": {}, "internals": {"layers": [0, 2]}},
    },
    {
        "name": "prompted",
        "prompts": ["sun and moss"],
        "steer": {"trait": str(SCENARIOS), "alpha": 0.4, "layers": [0, 2], "positions": "all"},
    },
    {
        "name": "given",
        "prompts": [{"prompt": "sun and moss", "response": "rain and cloud"}],
        "steer": {"trait": str(SCENARIOS), "alpha": ALPHAS},
    },
    {"name": "plain", "prompts": ["sun and moss"]},
]


@pytest.fixture
def steered_run(tmp_path: Path, tiny_directory: Path, tiny_cache: Path) -> Path:
    suite = write_suite(tmp_path / "suite", tiny_directory, experiments=STEERED)
    return run_suite(suite, tmp_path / "runs", batch_size=4, shard_size=4)


@pytest.fixture
def saved_model(tiny_directory: Path) -> LanguageModel:
    return load_model(str(tiny_directory), device=DEVICE)


def test_every_dose_is_a_generation_and_none_is_shared_with_plain(steered_run: Path) -> None:
    run = open_run(steered_run)
    captures = run.captures.collect()
    scores = captures.filter(pl.col("kind") == "scores")
    pushed = scores.filter((pl.col("experiment") == "pushed") & (pl.col("prompt_id") == scores["prompt_id"][0]))
    assert pushed["alpha"].to_list() == ALPHAS
    assert pushed["generation"].n_unique() == 3
    plain = scores.filter(pl.col("experiment") == "plain")
    assert plain["generation"][0] == pushed.filter(pl.col("alpha") == 0)["generation"][0]
    assert plain["alpha"][0] is None
    assert set(scores["steer_trait"].drop_nulls()) == {"loudness"}
    assert run.generations.collect()["status"].to_list() == ["ok"] * run.generations.collect().height
    summary = run_summary(steered_run)
    assert {capture["alpha"] for capture in summary["captures"]} == {*ALPHAS, None}


def test_stored_scores_are_those_of_the_formula(steered_run: Path, saved_model: LanguageModel) -> None:
    frozen, run = read_frozen(steered_run), open_run(steered_run)
    vectors = frozen.vectors[0]
    for task in frozen.tasks.values():
        plan = json.loads((steered_run / "plan.json").read_text())["generations"][task.id]["steering"]
        push = None
        if plan is not None:
            rows = {layer: vectors.checkpoints.index(f"resid_post.{layer}") for layer in plan["layers"]}
            additions = {
                layer: plan["alpha"] * vectors.calibration.norm[row] * vectors.steerer[row]
                for layer, row in rows.items()
            }
            push = Steering(additions, plan["positions"])
        tokens = run.tokens.filter(pl.col("generation") == task.id).sort("position").collect()
        response = tokens.filter(pl.col("phase") == "response")["token_id"].to_list()
        again = replay_scores(saved_model, task.prompt.token_ids, response, bank_of(frozen.vectors), push)
        stored = run.scores.filter(
            (pl.col("generation") == task.id) & (pl.col("checkpoint") == vectors.readout_name)
        ).collect()["score.loudness"][0]
        assert again.trace is not None
        np.testing.assert_allclose(stored, again.trace.scores[vectors.readout, :, 0], rtol=2e-3, atol=1e-3)


def test_verify_passes_and_sees_what_is_wrong_with_a_push(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, saved_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(tmp_path / "suite", tiny_directory, experiments=STEERED)
    real = engine.steering_of

    def verdict() -> Any:
        return verify_run(run_suite(suite, tmp_path / "runs", batch_size=4, shard_size=4), saved_model)

    def wrong(change: Callable[[Steering], Steering | None]) -> Callable[..., Steering | None]:
        return lambda dose, vectors: None if dose is None else change(real(dose, vectors))  # type: ignore[arg-type]

    clean = verdict()
    assert clean.passed, clean.problems
    faults: list[Callable[[Steering], Steering | None]] = [
        lambda _push: None,
        lambda push: Steering({layer: -addition for layer, addition in push.additions.items()}, push.positions),
        lambda push: Steering({(layer + 1) % 3: a for layer, a in push.additions.items()}, push.positions),
        lambda push: Steering(push.additions, "prompt"),
        lambda push: Steering({layer: 1.01 * a for layer, a in push.additions.items()}, push.positions),
    ]
    for fault in faults:
        monkeypatch.setattr(engine, "steering_of", wrong(fault))
        found = verdict()
        assert not found.passed
        assert any("α = " in problem for problem in found.problems)


def test_sums_close_with_the_push_and_explain_shows_it(steered_run: Path, saved_model: LanguageModel) -> None:
    closure = check_closure(steered_run, model=saved_model)
    assert closure.closed, closure.gaps
    prompt = open_run(steered_run).captures.collect()["prompt_id"][0]
    found = explain(steered_run, f"pushed/{prompt}@+0.4", "loudness", -1, model=saved_model)
    steers = [term for term in found.tree.terms if term.label.startswith("steer at layer")]
    assert len(steers) == 1
    vectors = read_frozen(steered_run).vectors[0]
    expected = (
        0.4
        * vectors.calibration.norm[vectors.readout]
        * torch.dot(vectors.steerer[vectors.readout], vectors.reader[vectors.readout])
    )
    assert steers[0].raw == pytest.approx(float(expected), rel=1e-5)
    assert sum(term.raw for term in found.tree.terms) == pytest.approx(found.score, rel=1e-6)


def test_a_resumed_night_keeps_its_doses(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(tmp_path / "suite", tiny_directory, experiments=STEERED)
    whole = run_suite(suite, tmp_path / "whole", batch_size=4, shard_size=4)
    real, calls = engine.Engine.run_batch, [0]

    def stops(self: Any, tasks: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(self, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "run_batch", stops)
        with pytest.raises(KeyboardInterrupt):
            run_suite(suite, tmp_path / "cut", batch_size=4, shard_size=4)
    cut = next((tmp_path / "cut").iterdir())
    night.resume_run(cut, retry_failed=False, deep=False, reporter=quiet())
    assert tables_digest(cut) == tables_digest(whole)


@pytest.mark.parametrize(
    ("steer", "message"),
    [
        ({"trait": "sycophancy", "alpha": 0.1}, "add it to them"),
        ({"trait": str(SCENARIOS), "alpha": []}, "alpha"),
        ({"trait": str(SCENARIOS), "alpha": [0.1, 0.1]}, "listed twice"),
        ({"trait": str(SCENARIOS), "alpha": float("inf")}, "finite"),
        ({"trait": str(SCENARIOS), "alpha": True}, "finite"),
        ({"trait": str(SCENARIOS), "alpha": 0.1, "layers": 9}, "out of range"),
        ({"trait": str(SCENARIOS), "alpha": 0.1, "positions": "everywhere"}, "positions"),
        ({"trait": str(SCENARIOS)}, "alpha"),
    ],
)
def test_steering_that_makes_no_sense_is_one_line(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path, steer: dict[str, Any], message: str
) -> None:
    experiments = [{"name": "pushed", "prompts": ["sun"], "steer": steer}]
    code, _, err = command("run", write_suite(tmp_path, tiny_directory, experiments=experiments))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
