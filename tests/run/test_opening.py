"""Bugs caught here: open layers lost, widened or narrowed on their way to disk, or begun where they cannot fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open

from nights import failing, quiet, run_suite, write_suite
from traitscope.captures.files import committed_shards, internals_file
from traitscope.captures.reading import Run, open_run
from traitscope.captures.summaries import run_summary
from traitscope.errors import InputError
from traitscope.model.internals import LayerInternals, open_layers
from traitscope.model.loading import load_model
from traitscope.run import engine as engine_module
from traitscope.run import opening
from traitscope.run.describe_plan import describe_plan
from traitscope.run.night import start_run
from traitscope.run.notebook import capture
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite
from traitscope.tensor_names import TENSORS

OPENED = [{"name": "opened", "prompts": ["moss", "a river and a stone"], "capture": {"internals": {"layers": [0, 2]}}}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Run:
    folder = tmp_path_factory.mktemp("opened")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        return open_run(run_suite(write_suite(folder, tiny_directory, experiments=OPENED), folder / "runs"))


def _ids(run: Run, generation: str) -> list[int]:
    return run.tokens.filter(pl.col("generation") == generation).sort("position").collect()["token_id"].to_list()


def _replayed(model: Any, ids: list[int], layer: int) -> LayerInternals:
    found: list[LayerInternals] = []
    open_layers(model, ids, {layer: TENSORS}, found.append)
    return found[0]


def test_stored_tensors_are_those_of_a_replay(run: Run, tiny_directory: Path) -> None:
    model = load_model(str(tiny_directory), device="cpu")
    captures = run.captures.collect()
    assert captures["kind"].to_list() == ["internals"] * 2
    assert captures["layers"].to_list() == [[0, 2]] * 2
    for generation in captures["generation"]:
        for layer in (0, 2):
            stored, replayed = run.internals(generation, layer), _replayed(model, _ids(run, generation), layer)
            assert stored.names == TENSORS
            for name in TENSORS:
                np.testing.assert_array_equal(getattr(stored, name), getattr(replayed, name).numpy())
        np.testing.assert_array_equal(run.internals(generation, -1).q, run.internals(generation, 2).q)


def test_a_tensor_that_was_not_kept_is_refused_by_name(run: Run) -> None:
    generation = run.captures.collect()["generation"][0]
    with pytest.raises(AttributeError, match="sink of layer 0 was not kept; kept: q, k, v"):
        _ = run.internals(generation, 0).sink
    with pytest.raises(InputError, match=r"layer 1 of generation \w+ was not opened; open: \[0, 2\]"):
        run.internals(generation, 1)
    with pytest.raises(InputError, match="no generation with the id 'x' has open layers"):
        run.internals("x", 0)


@pytest.mark.parametrize(("asked", "expected"), [("model", torch.bfloat16), ("float32", torch.float32)])
def test_the_models_own_dtype_is_kept_unless_float32_is_asked_for(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, asked: str, expected: torch.dtype
) -> None:
    opened = [{**OPENED[0], "capture": {"internals": {"layers": [1], "dtype": asked}}}]
    suite = write_suite(tmp_path, tiny_directory, experiments=opened)
    prepared = prepare(load_suite(str(suite)), device="cpu", dtype="bfloat16")
    out = tmp_path / "runs"
    run_dir = start_run(prepared, out=out, batch_size=2, shard_size=2, allow_foreign=False, reporter=quiet())
    with safe_open(internals_file(run_dir, 0), framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {expected}  # noqa: SIM118
    pattern = open_run(run_dir).internals(open_run(run_dir).captures.collect()["generation"][0], 1).pattern
    assert pattern.dtype == np.float32
    assert np.abs(pattern.sum(-1) - 1).max() < 2e-2


def test_only_shards_that_opened_layers_have_the_file(tmp_path: Path, tiny_directory: Path, tiny_cache: Path) -> None:
    run_dir = run_suite(write_suite(tmp_path, tiny_directory), tmp_path / "runs")
    with_file = [shard for shard in committed_shards(run_dir) if internals_file(run_dir, shard).is_file()]
    assert 1 <= len(with_file) <= 3 < len(committed_shards(run_dir))


def test_layers_that_cannot_be_opened_fail_their_generation_alone(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing(engine_module.open_layers, RuntimeError("no such luck"), after=1)
    monkeypatch.setattr(engine_module, "open_layers", broken)
    run_dir = run_suite(write_suite(tmp_path, tiny_directory, experiments=OPENED), tmp_path / "runs")
    summary = run_summary(run_dir)
    assert summary["counts"] == {"ok": 1, "failed": 1}
    error = next(entry["error"] for entry in summary["captures"] if entry["status"] == "failed")
    assert error == "its layers could not be opened: RuntimeError: no such luck"


def test_the_plan_counts_the_bytes_that_the_run_writes(run: Run, tiny_directory: Path, tmp_path: Path) -> None:
    prepared = prepare(load_suite(str(write_suite(tmp_path, tiny_directory, experiments=OPENED))), device="cpu")
    planned = describe_plan(prepared, None, tmp_path)["bytes"]["internals"]
    lengths = [
        (row["prompt_tokens"] + row["response_tokens"], row["prompt_tokens"] + 12)
        for row in run.generations.collect().to_dicts()
    ]
    written = sum(
        getattr(run.internals(generation, layer), name).nbytes
        for generation in run.captures.collect()["generation"]
        for layer in (0, 2)
        for name in TENSORS
    )
    assert planned >= written
    if all(real == most for real, most in lengths):
        assert planned == written


def test_what_memory_or_disk_cannot_hold_is_refused_before_a_model_is_loaded(
    tmp_path: Path, tiny_directory: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(tmp_path, tiny_directory, experiments=OPENED)
    with monkeypatch.context() as patched:
        patched.setattr(opening, "total_memory", lambda _device: 10_000)
        for words in (("plan", suite), ("run", suite, "--out", tmp_path / "runs")):
            code, _, err = command(*words, "--device", "cpu")
            assert code == 2
            assert "internals: a generation of" in err
            assert "leave pattern out of keep" in err
    monkeypatch.setattr(opening.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    code, _, err = command("run", suite, "--out", tmp_path / "runs", "--device", "cpu")
    assert code == 2
    assert "has 1 kB free; open fewer layers" in err
    assert not list(tmp_path.glob("runs/*"))


def test_in_memory_captures_open_layers_too(tiny: Any, tiny_cache: Path) -> None:
    from tiny_models import SCENARIOS

    run = capture(tiny(), ["moss"], [str(SCENARIOS)], max_new_tokens=4, internals={"layers": [1], "keep": ["pattern"]})
    generation = run.captures.collect()["generation"][0]
    assert run.internals(generation, 1).names == ("pattern",)
    assert set(run.captures.collect()["kind"]) == {"scores", "internals"}
