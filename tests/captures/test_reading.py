"""Bugs caught here: a name that reaches another state, z on the wrong statistics, a notebook unlike a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nights import run_suite, write_suite
from tiny_models import SCENARIOS
from traitscope.captures.files import done_file
from traitscope.captures.reading import Run, open_run
from traitscope.captures.responses import mean_z
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run.notebook import capture
from traitscope.suite.tokens import content_mask
from traitscope.traits.vectors import load_vectors


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        return run_suite(write_suite(folder, tiny_directory, n_prompts=4), folder / "runs", shard_size=4)


@pytest.fixture(scope="module")
def run(run_dir: Path) -> Run:
    return open_run(run_dir)


def _first(run: Run) -> str:
    return run.captures.collect()["generation"][0]


def test_every_site_is_reached_by_its_names(run: Run) -> None:
    dataset = run.to_xarray(_first(run))
    assert dict(dataset.sizes) == {"position": len(dataset.token), "trait": 1, "checkpoint": 7}
    for layer in range(1, 3):
        by_input = dataset.score.sel(resid_pre=f"resid_pre.{layer}")
        by_output = dataset.score.sel(checkpoint=f"resid_post.{layer - 1}")
        np.testing.assert_array_equal(by_input, by_output)
    assert run.checkpoint(2, "resid_pre") == "resid_post.1"
    assert run.checkpoint(-1) == "resid_post.2"
    assert run.checkpoint(0, "resid_pre") == "resid_pre.0"


def test_z_is_centred_and_scaled_by_the_neutral_tokens(run: Run, run_dir: Path) -> None:
    vectors = load_vectors(run_dir / "vectors" / "loudness.safetensors")
    readout, calibration = vectors.readout, vectors.calibration
    mean, std = calibration.mean["response_token"][readout], calibration.std["response_token"][readout]
    raw, z = run.score("loudness", z=False), run.score("loudness")
    np.testing.assert_allclose(z["z"], (raw["score"] - float(mean)) / float(std), rtol=1e-5)
    dataset = run.to_xarray(_first(run))
    of_first = z.filter(pl.col("generation") == _first(run))
    np.testing.assert_allclose(dataset.z.sel(checkpoint=vectors.readout_name)[:, 0], of_first["z"], rtol=1e-5)
    np.testing.assert_array_equal(of_first["position"], np.arange(len(of_first)))


def test_writes_on_disk_sum_to_the_score_at_the_readout(run: Run) -> None:
    readout = run.traits["loudness"].readout
    for generation in run.captures.collect()["generation"].unique():
        dataset = run.to_xarray(generation)
        if dataset.sizes["checkpoint"] < 7:
            continue
        upto = dataset.write.isel(checkpoint=slice(0, list(dataset.checkpoint.values).index(readout) + 1))
        gap = np.abs(upto.sum("checkpoint") - dataset.score.sel(checkpoint=readout))
        # Scores are stored with 11 bits of mantissa.
        assert (gap <= 2.0**-11 * np.abs(dataset.score.sel(checkpoint=readout)) + 1e-5).all()


def test_mean_z_is_over_content_tokens(run: Run) -> None:
    scored = run.score("loudness").filter(pl.col("generation") == _first(run))
    content = content_mask(*(scored[name].to_list() for name in ("position", "phase", "role", "special")))
    expected = scored.filter(pl.Series(content))["z"].mean()
    found = mean_z(run).filter(pl.col("generation") == _first(run))["loudness"][0]
    assert found == pytest.approx(expected)


def test_what_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    for action, message in [
        (lambda: run.score("loud"), "trait 'loud' is not in this run; did you mean loudness"),
        (lambda: run.score("loudness", 7), "layer 7 is out of range: the model has layers 0 to 2"),
        (lambda: run.score("loudness", 1, "mlp"), "unknown site 'mlp': use resid_pre, resid_mid or resid_post"),
        (lambda: run.to_xarray("nobody"), "'nobody' has no scores"),
        (lambda: open_run(tmp_path), "has no plan.json"),
        (lambda: open_run(tmp_path / "none"), "no such directory"),
    ]:
        with pytest.raises(InputError, match=message):
            action()


def test_a_half_finished_run_is_readable(run_dir: Path, tmp_path: Path) -> None:
    for path in run_dir.rglob("*"):
        target = tmp_path / "half" / path.relative_to(run_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    whole = len(open_run(run_dir).generations.collect())
    done_file(tmp_path / "half", 1).unlink()
    half = open_run(tmp_path / "half")
    assert 0 < len(half.generations.collect()) < whole
    assert half.tokens.collect()["generation"].n_unique() == len(half.generations.collect())
    for shard in (0, 2):
        done_file(tmp_path / "half", shard).unlink(missing_ok=True)
    assert "nothing yet" in repr(open_run(tmp_path / "half"))


def test_a_state_that_was_not_captured_is_refused_instead_of_empty(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    experiment = {"name": "few", "prompts": ["Hi"], "capture": {"scores": {"layers": 0}}}
    few = open_run(run_suite(write_suite(tmp_path, tiny_directory, experiments=[experiment]), tmp_path / "runs"))
    assert len(few.score("loudness", 0)) > 0
    with pytest.raises(InputError, match=r"resid_mid\.2 was not captured .*captured: resid_pre\.0, resid_mid\.0"):
        few.score("loudness", 2, "resid_mid")


def test_capture_in_memory_gives_what_a_run_gives(
    run: Run, tiny_directory: Path, shared_cache: Path, tiny_cache: Path
) -> None:
    model = load_model(str(tiny_directory), device="cpu")
    asked = run.prompts.filter(pl.col("experiment") == "greedy").collect()
    prompts = [messages[-1]["content"] for messages in asked["messages"].to_list()]
    in_memory = capture(model, prompts, [str(SCENARIOS)], max_new_tokens=12, batch_size=2)
    assert in_memory.captures.collect()["generation"].to_list() == asked["generation"].to_list()
    for generation in asked["generation"]:
        found, expected = in_memory.to_xarray(generation), run.to_xarray(generation)
        np.testing.assert_array_equal(found.token_id, expected.token_id)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-3, atol=1e-4)
    assert "4 ok" in repr(in_memory)


def test_capture_takes_messages_responses_and_fitted_vectors(
    tiny: Callable[..., LanguageModel], run_dir: Path, tiny_cache: Path
) -> None:
    model = tiny("llama")
    vectors = load_vectors(run_dir / "vectors" / "loudness.safetensors")
    prompts = [[{"role": "user", "content": "Hi"}], {"id": "given", "prompt": "Hi", "response": "OK!"}]
    found = capture(model, prompts, [vectors], max_new_tokens=3)
    rows = found.captures.collect().to_dicts()
    assert [row["prompt_id"] for row in rows] == ["1", "given"]
    given = found.to_xarray(rows[1]["generation"])
    assert "".join(given.token.values[given.phase.values == "response"]) == "OK!"
    assert np.isfinite(given.logprob[given.phase == "response"]).all()
    with pytest.raises(InputError, match="prompts is empty"):
        capture(model, [], [vectors])
    with pytest.raises(InputError, match="prompts must be a list"):
        capture(model, "Hi", [vectors])
