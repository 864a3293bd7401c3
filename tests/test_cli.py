"""Bugs caught here: a traceback instead of a line, a model loaded before bad input is found, a wrong exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import traitscope
from nights import write_suite
from tiny_models import SCENARIOS
from traitscope import cli
from traitscope.run import night
from traitscope.run.interruption import Interrupted
from traitscope.traits.store import find_trait, vectors_for
from traitscope.traits.vectors import save_vectors


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model's weights is an error of the test."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(night, "load_source", refuse)


def _changed(path: Path, **changes: Any) -> Path:
    suite = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**suite, **changes}))
    return path


BAD_SUITES: list[tuple[dict[str, Any], str]] = [
    ({"experiments": [{"name": "a", "prompts": "none.txt"}]}, "none.txt: no such file"),
    ({"experiments": [{"name": "a", "prompts": "empty.txt"}]}, "empty.txt: holds no prompt"),
    ({"experiments": [{"name": "a", "prompts": "latin.txt"}]}, "line 1: not UTF-8"),
    ({"experiments": [{"name": "a", "prompts": [{"id": "x", "prompt": "p"}, {"id": "x", "prompt": "q"}]}]}, "twice"),
    ({"traits": ["sycophanty"]}, "did you mean sycophancy"),
    ({"sytem": "x"}, "sytem: unknown key"),
    ({"generation": {"max_new_tokens": 0}}, "generation.max_new_tokens"),
    ({"experiments": [{"name": "a", "prompts": ["p"], "capture": {"scores": {"layers": 3}}}]}, "layers 0 to 2"),
    ({"model": "./nowhere"}, "model ./nowhere: no such file or directory"),
    ({"traits": ["foreign.safetensors"]}, "--allow-foreign"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SUITES, ids=[message for _, message in BAD_SUITES])
def test_bad_suites_are_one_line_before_any_model_is_loaded(
    command: Any,
    no_model: None,
    tmp_path: Path,
    tiny_directory: Path,
    tiny_cache: Path,
    tiny: Any,
    changes: dict[str, Any],
    message: str,
) -> None:
    suite = _changed(write_suite(tmp_path, tiny_directory), **changes)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    if "foreign.safetensors" in changes.get("traits", []):
        save_vectors(
            vectors_for(tiny("qwen3"), [find_trait(str(SCENARIOS), Path())])[0], tmp_path / "foreign.safetensors"
        )
    code, out, err = command("run", suite, "--out", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:7"], "device 'cuda:7' is not available"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--dtype", "int4"], "dtype 'int4' is unknown"),
        (["--batch-size", "0"], "--batch-size '0': use auto or a whole number above 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--retry-failed"], "need --resume"),
        (["--resume", "nowhere"], "no such directory"),
    ],
)
def test_bad_flags(
    command: Any,
    no_model: None,
    tmp_path: Path,
    tiny_directory: Path,
    tiny_cache: Path,
    arguments: list[str],
    message: str,
) -> None:
    code, out, err = command("run", write_suite(tmp_path, tiny_directory), *arguments, "--out", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_an_output_that_cannot_be_written(
    command: Any, no_model: None, tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = command("run", write_suite(tmp_path, tiny_directory), "--out", tmp_path / "file" / "runs")
    assert code == 2
    assert "cannot be written" in err


def test_a_night_from_plan_to_resume(command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path) -> None:
    suite = write_suite(tmp_path, tiny_directory, n_prompts=4)
    code, out, _ = command("plan", suite, "--json")
    described = json.loads(out)
    assert code == 0
    assert (described["captures"], described["generations"], described["checkpoints"]) == (4 + 3 + 1 + 8, 12, 7)
    assert described["old_procedure"]["model_loads"] == 16
    assert command("run", suite, "--dry-run")[0] == 0
    code, out, err = command("run", suite, "--out", tmp_path / "runs", "--json")
    summary = json.loads(out)
    assert (code, summary["counts"], summary["cost"]["model_loads"]) == (0, {"ok": 16}, 1)
    assert "run directory:" in err
    run_dir = Path(summary["run"])
    code, out, _ = command("run", "--resume", run_dir)
    assert (code, "captured 16 of 16" in out) == (0, True)
    code, out, _ = command("status", run_dir)
    assert (code, "complete, 1 of 1 shards committed" in out) == (0, True)


def test_a_capture_of_one_file_says_what_failed(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    (tmp_path / "my.txt").write_text("One prompt\n" + "far too long " * 30 + "\n")
    arguments = ["--prompts-file", tmp_path / "my.txt", "--traits", SCENARIOS, "--model", tiny_directory]
    code, out, _ = command("capture", *arguments, "--out", tmp_path / "runs", "--max-new-tokens", "5")
    assert code == 1
    assert "captured 1 of 2 (0 failed, 1 too long)" in out
    assert re.search(r"too_long: my/2: 4\d\d prompt tokens and 5 of response exceed the model's context of 256\n", out)
    (run_dir,) = (tmp_path / "runs").iterdir()
    code, out, _ = command("status", run_dir)
    assert code == 1
    assert "too_long: my/2" in out


def test_a_stopped_run_says_how_to_go_on(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_args: Any, **_kwargs: Any) -> None:
        raise Interrupted("stopped with 3 of 5 shards to go. Go on with: traitscope run --resume runs/x")

    monkeypatch.setattr(cli, "_prepared", stopped)
    code, out, err = command("run", "overnight")
    assert (code, out) == (130, "")
    assert err == "stopped with 3 of 5 shards to go. Go on with: traitscope run --resume runs/x\n"


def test_init_writes_a_suite_that_loads_and_overwrites_nothing(command: Any, tmp_path: Path) -> None:
    assert command("init", tmp_path / "mine")[0] == 0
    assert traitscope.load_suite(str(tmp_path / "mine")).suite.name == "overnight"
    code, _, err = command("init", tmp_path / "mine")
    assert code == 2
    assert "exists already" in err


def test_traits_are_listed_shown_and_fitted(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    assert "uncertainty_calibration" in command("traits", "list")[1]
    shown = json.loads(command("traits", "show", "sycophancy", "--json")[1])
    assert shown["pairs"]["train"] >= 24
    fit = ["traits", "fit", SCENARIOS, "--model", tiny_directory, "--out", tmp_path / "vectors"]
    assert "loudness" in command(*fit)[1]
    code, out, _ = command("traits", "show", tmp_path / "vectors" / "loudness.safetensors")
    assert (code, "verdict: unvalidated" in out) == (0, True)
    assert command(*fit)[0] == 2


def test_help_needs_none_of_the_heavy_libraries() -> None:
    heavy = ("torch", "transformers", "polars", "pyarrow", "pydantic", "numpy", "sklearn", "xarray", "rich.table")
    script = f"import sys, traitscope.cli; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_public_names_are_all_there() -> None:
    for name in traitscope.__all__:
        assert getattr(traitscope, name) is not None
