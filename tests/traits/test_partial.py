"""Bugs caught here: a checkpoint without a direction scored as 0, or taking its neighbours' scores or writes along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from independent import independent_states
from nights import run_suite, write_suite
from random_traits import random_vectors
from traitscope.attribution.explanation import explain
from traitscope.captures.files import shard_file
from traitscope.captures.reading import Run, open_run
from traitscope.captures.summaries import mean_z
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel, load_model
from traitscope.traits.direction_files import read_directions
from traitscope.traits.importing import TraitLabels, import_vectors
from traitscope.traits.vectors import load_vectors, save_vectors
from traitscope.verify.stored import check_stored
from traitscope.verify.verdict import verify_run

COVERED = ["resid_post.0", "resid_post.1"]


@pytest.fixture(scope="module")
def model(tiny_directory: Path) -> LanguageModel:
    return load_model(str(tiny_directory), device="cpu")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel, tiny_directory: Path) -> Path:
    """A run of a trait that covers two of the seven checkpoints beside one that covers all."""
    folder = tmp_path_factory.mktemp("partial")
    save_vectors(random_vectors(model, 1), folder / "whole.safetensors")
    torch.save({layer: torch.randn(32, generator=torch.manual_seed(layer)) for layer in (0, 1)}, folder / "part.pt")
    labels = TraitLabels.of("part", None, None, None)
    part = import_vectors(model, read_directions(folder / "part.pt"), "resid_post", labels, readout="1")
    save_vectors(part, folder / "part.safetensors")
    suite = write_suite(
        folder,
        tiny_directory,
        traits=["whole.safetensors", "part.safetensors"],
        experiments=[
            {"name": "all", "prompts": ["sun", "rain"]},
            {"name": "given", "prompts": [{"id": "1", "prompt": "moss", "response": "grows"}]},
        ],
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRAITSCOPE_CACHE", str(folder / "cache"))
        return run_suite(suite, folder / "runs")


@pytest.fixture(scope="module")
def run(run_dir: Path) -> Run:
    return open_run(run_dir)


def test_scores_are_null_outside_and_the_product_inside(run: Run, run_dir: Path, model: LanguageModel) -> None:
    vectors = load_vectors(run_dir / "vectors" / "part.safetensors")
    assert list(vectors.covered_names) == COVERED
    for generation in run.generations.collect()["generation"]:
        dataset = run.to_xarray(generation)
        states = independent_states(model.module, "llama", dataset.token_id.values.tolist())
        rows = run.scores.filter(pl.col("generation") == generation).collect().to_dicts()
        assert [row["checkpoint"] for row in rows if row["score.part"] is not None] == COVERED
        assert all(row["score.random1"] is not None and row["norm"] is not None for row in rows)
        for name in run.checkpoints:
            expected = (states[name] @ vectors.reader[vectors.checkpoints.index(name)]).numpy()
            found = dataset.sel(trait="part", checkpoint=name)
            assert np.isnan(expected).all() == (name not in COVERED)
            np.testing.assert_allclose(found.score, expected, rtol=1e-3, atol=1e-4)
            assert np.isnan(found.z).all() == (name not in COVERED)
        assert np.isfinite(dataset.score.sel(trait="random1")).all()


def test_writes_are_whole_up_to_the_readout(run: Run) -> None:
    for generation in run.generations.collect()["generation"]:
        of_part = run.to_xarray(generation).sel(trait="part")
        upto = of_part.write.sel(
            checkpoint=["resid_pre.0", "resid_mid.0", "resid_post.0", "resid_mid.1", "resid_post.1"]
        )
        assert np.isfinite(upto).all()
        np.testing.assert_allclose(
            upto.sum("checkpoint"), of_part.score.sel(checkpoint="resid_post.1"), rtol=1e-3, atol=1e-3
        )


def test_what_reads_a_run_copes(run: Run, run_dir: Path, model: LanguageModel, tiny_cache: Path) -> None:
    assert verify_run(run_dir, model).problems == ()
    assert mean_z(run)["part"].is_finite().all()
    with pytest.raises(InputError, match=r"resid_mid\.1 was not captured for part .*captured: resid_post\.0, resid_p"):
        run.score("part", 1, "resid_mid")
    explained = explain(run_dir, "all/1", "part", model=model)
    assert explained.z == pytest.approx(explained.stored_z, rel=1e-2)


def test_verify_finds_a_number_where_there_is_no_direction(run_dir: Path) -> None:
    path = shard_file(run_dir, 0, "scores")
    table, whole = pq.read_table(path), path.read_bytes()
    rows = table.to_pylist()
    rows[0]["score.part"] = [0.0] * len(rows[0]["norm"])
    try:
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
        assert any(
            "score.part stands at resid_pre.0, where it was not asked" in line
            for line in check_stored(run_dir).problems
        )
    finally:
        path.write_bytes(whole)


def test_a_readout_without_a_direction_is_refused(run_dir: Path, tmp_path: Path) -> None:
    part = load_vectors(run_dir / "vectors" / "part.safetensors")
    save_vectors(replace(part, readout=0), tmp_path / "v.safetensors")
    with pytest.raises(InputError, match="not finite"):
        load_vectors(tmp_path / "v.safetensors")
    half = part.steerer.clone()
    half[0] = 0
    save_vectors(replace(part, steerer=half), tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="reader holds values that are not finite"):
        load_vectors(tmp_path / "half.safetensors")
