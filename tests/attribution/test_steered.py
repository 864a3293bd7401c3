"""Bugs caught here: a push that is booked on a block, counted twice, behind R, or at a token that was not pushed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from nights import quiet
from random_traits import random_vectors
from tiny_models import tiny_model, tiny_tokenizer
from traitscope.attribution import explanation
from traitscope.attribution.attribute import attribute
from traitscope.attribution.closure import check_closure
from traitscope.attribution.explanation import explain
from traitscope.captures.reading import open_run
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.steering import Positions, Steering
from traitscope.run.night import start_run
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite
from traitscope.traits.vectors import save_vectors

ALPHA, LAYERS = 1.5, [0, 2]


@pytest.fixture(scope="module")
def steered_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    folder = tmp_path_factory.mktemp("steered")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    model = load_model(str(folder / "model"), device="cpu", dtype="float32")
    save_vectors(random_vectors(model, 0), folder / "random0.safetensors")
    suite = {
        "name": "small",
        "model": str(folder / "model"),
        "traits": ["random0.safetensors"],
        "generation": {"max_new_tokens": 6},
        "experiments": [
            {
                "name": "all",
                "prompts": ["sun number 1", "rain"],
                "steer": {"trait": "random0", "alpha": [0, ALPHA], "layers": LAYERS},
            }
        ],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    prepared = prepare(load_suite(str(folder / "suite.yaml")), device="cpu", dtype="float32")
    run_dir = start_run(
        prepared,
        out=folder / "runs",
        batch_size=4,
        shard_size=4,
        allow_foreign=False,
        reporter=quiet(),
        model=model,
    )
    return run_dir, model


def test_sums_of_steered_generations_close(steered_run: tuple[Path, LanguageModel]) -> None:
    run_dir, model = steered_run
    closure = check_closure(run_dir, model=model)
    assert closure.generations == 4
    assert closure.closed, closure.gaps


@pytest.mark.parametrize("position", [-1, 1])
def test_explain_shows_what_was_added_where_it_was(
    steered_run: tuple[Path, LanguageModel], monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    run_dir, model = steered_run
    monkeypatch.setattr(explanation, "neutral_means", lambda *_args, **_kwargs: {})
    found = explain(run_dir, "all/1@+1.5", "random0", position, model=model)
    vectors = random_vectors(model, 0)
    reader = vectors.reader[vectors.readout]
    steers = {term.detail["layer"]: term for term in found.tree.terms if term.label.startswith("steer")}
    assert list(steers) == LAYERS
    for layer, term in steers.items():
        at = vectors.checkpoints.index(f"resid_post.{layer}")
        added = ALPHA * vectors.calibration.norm[at] * vectors.steerer[at] @ reader
        assert term.raw == pytest.approx(float(added) if position == -1 else 0.0, rel=1e-4, abs=1e-7)
    rounding = next(term for term in found.tree.terms if term.label == "rounding")
    assert abs(rounding.raw) < 1e-4 * sum(abs(term.raw) for term in found.tree.terms)
    assert found.z == pytest.approx(found.stored_z, rel=1e-2, abs=1e-2)
    assert sum(term.raw for term in found.tree.terms) == pytest.approx(found.score, rel=1e-5, abs=1e-5)


def test_the_write_at_a_pushed_checkpoint_includes_the_push(steered_run: tuple[Path, LanguageModel]) -> None:
    run_dir, model = steered_run
    run, vectors = open_run(run_dir), random_vectors(model, 0)
    asked = run.captures.filter(pl.col("alpha") == ALPHA).collect()["generation"][0]
    tokens = run.tokens.filter(pl.col("generation") == asked).sort("position").collect()
    n_prompt = int((tokens["phase"] == "prompt").sum())
    additions = {
        layer: ALPHA * vectors.calibration.norm[at] * vectors.steerer[at]
        for layer in LAYERS
        for at in [vectors.checkpoints.index(f"resid_post.{layer}")]
    }
    split = attribute(model, tokens["token_id"].to_list(), [vectors], steering=Steering(additions), n_prompt=n_prompt)
    written = run.writes.filter(pl.col("generation") == asked).collect()
    for block in split.blocks_of(0):
        stored = np.array(
            written.filter(pl.col("checkpoint") == vectors.checkpoints[block.checkpoint])["write.random0"][0]
        )
        pushed = sum(push.write[0] for push in split.steers if push.checkpoint == block.checkpoint)
        np.testing.assert_allclose(stored, block.write[0] + pushed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "olmo2", "granite", "bloom"])
@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
def test_blocks_and_pushes_sum_to_the_score(
    tiny: Callable[..., LanguageModel], architecture: str, positions: Positions
) -> None:
    model: Any = tiny(architecture)
    vectors = [random_vectors(model, number) for number in range(3)]
    generator = torch.Generator().manual_seed(0)
    last = model.n_layers - 1
    additions = {layer: torch.randn(model.anatomy.d_model, generator=generator) for layer in (0, last)}
    split = attribute(model, [1, 40, 41, 42, 50, 51], vectors, steering=Steering(additions, positions), n_prompt=4)
    for trait in range(3):
        parts = split.block_parts(trait)
        np.testing.assert_allclose(parts.sum(axis=-1), split.score[trait], atol=1e-5 * np.abs(parts).sum(axis=-1).max())
    assert [len(split.steers_of(trait)) for trait in range(3)] == [2, 1, 1]
