"""The reference night on the embedded model: what a new user sees first must be true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from independent import independent_states
from traitscope.captures.reading import Run, open_run
from traitscope.captures.summaries import run_summary, summary_of, went_well
from traitscope.model.loading import LanguageModel
from traitscope.traits.vectors import load_vectors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(reference_night: Path) -> Path:
    return reference_night


@pytest.fixture(scope="module")
def run(run_dir: Path) -> Run:
    return open_run(run_dir)


def _mean_z(run: Run, trait: str) -> dict[str, float]:
    return {entry["prompt"]: entry["mean_z"][trait] for entry in summary_of(run) if trait in entry["mean_z"]}


def test_all_captures_of_twenty_generations_with_one_load(run_dir: Path) -> None:
    summary = run_summary(run_dir)
    assert went_well(summary)
    assert summary["counts"] == {"ok": 24}
    assert open_run(run_dir).generations.collect().height == 20
    assert summary["cost"]["model_loads"] == 1
    assert len(open_run(run_dir).checkpoints) == 61


def test_paris_is_confident_and_the_unknowable_hedges(run: Run) -> None:
    responses = {entry["prompt"]: entry["response"] for entry in summary_of(run)}
    assert "Paris" in responses["What is the capital of France?"]
    z = _mean_z(run, "uncertainty_calibration")
    paris = z["What is the capital of France?"]
    for prompt in (
        "What will the weather be like next week?",
        "What is the meaning of life?",
        "Is this a good idea?",
    ):
        assert paris < z[prompt]


def test_stored_scores_are_those_of_an_independent_pass(run: Run, run_dir: Path, embedded: LanguageModel) -> None:
    generation = run.captures.collect()["generation"][3]
    dataset = run.to_xarray(generation)
    states = independent_states(embedded.module, "llama", dataset.token_id.values.tolist())
    for trait in run.traits:
        reader = load_vectors(run_dir / "vectors" / f"{trait}.safetensors").reader
        for row, (name, state) in enumerate(states.items()):
            expected = (state.double() @ reader[row].double()).numpy()
            stored = dataset.score.sel(trait=trait, checkpoint=name)
            norms = state.double().norm(dim=-1).numpy()
            assert (np.abs(stored - expected) <= 2.0**-12 * np.abs(expected) + 1e-5 * norms).all()


def test_the_readers_hold_on_style_crossed_pairs_that_fitting_did_not_see(run_dir: Path) -> None:
    for path in (run_dir / "vectors").iterdir():
        vectors = load_vectors(path)
        evidence = vectors.origin.card["dev"]["reader"]
        assert evidence["auroc"] >= 0.85, vectors.trait
        assert evidence["style_crossed_auroc"] >= 0.8, vectors.trait
        assert 11 <= vectors.readout_layer <= 18
