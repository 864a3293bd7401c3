"""Bugs caught here: a tracker that fails, asks or prints and takes the run with it; figures that are not the run's."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nights import failing, quiet, run_suite, write_suite
from traitscope.captures.files import committed_shards, shard_file
from traitscope.captures.reading import open_run
from traitscope.captures.summaries import mean_z
from traitscope.errors import InputError
from traitscope.run import night as night_module
from traitscope.run import workbench as workbench_module
from traitscope.run.interruption import Interrupted
from traitscope.run.tracking import Tracking, find_tracker


class Recorder:
    """A tracker that keeps what it is told and prints, as trackio does."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> None:
        print("* project initialised")
        self.calls.append(("init", (project, name, config)))

    def log(self, metrics: dict[str, Any], *, step: int) -> None:
        print("* logged")
        self.calls.append(("log", (metrics, step)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


class Broken:
    """Raises whatever it is asked."""

    def __init__(self) -> None:
        self.n_calls = 0

    def _fail(self, *_args: Any, **_kwargs: Any) -> None:
        self.n_calls += 1
        raise RuntimeError("no network\nand a long story")

    init = log = finish = _fail


class Asking(Recorder):
    """Asks for a key, as wandb does of one who never logged in."""

    def init(self, **_given: Any) -> None:
        input("key? ")


def _installed(monkeypatch: pytest.MonkeyPatch, tracker: Any) -> str:
    module = ModuleType("my_trackers")
    module.sink = tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_trackers", module)
    return "my_trackers:sink"


def test_a_tracker_is_told_the_suite_every_shard_and_the_verdict(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    track = _installed(monkeypatch, recorder)
    suite = write_suite(tmp_path, tiny_directory, n_prompts=4)
    arguments = ["--batch-size", "2", "--shard-size", "2", "--track", track, "--json", "--out", tmp_path / "runs"]
    code, out, _ = command("run", suite, *arguments)
    summary = json.loads(out)  # nothing that the tracker printed is among it
    run_dir = Path(summary["run"])
    assert code == 0
    (first, (project, name, config)), *logs, (last, _) = recorder.calls
    assert (first, project, name, last) == ("init", "traitscope", run_dir.name, "finish")
    plan = json.loads((run_dir / "plan.json").read_text())
    assert (config["suite"], config["fingerprint"]) == (plan["suite"], plan["model"]["fingerprint"])
    json.dumps(config)
    metrics = [given for _, (given, _) in logs]
    steps = [step for _, (_, step) in logs]
    n_shards = len(committed_shards(run_dir))
    assert steps == list(range(1, n_shards + 2))
    assert [given["generations/ok"] for given in metrics[:-1]] == [2 * n for n in steps[:-1]]
    assert all(given["tokens_per_second"] > 0 < given["memory/resident_bytes"] for given in metrics[:-1])
    expected = dict(mean_z(open_run(run_dir)).iter_rows())
    for shard in committed_shards(run_dir):
        ids = _ids(run_dir, shard)
        found = metrics[shard]["mean_z/loudness"]
        assert found == pytest.approx(np.mean([expected[identity] for identity in ids]), abs=2e-3)
    assert metrics[-1]["summary/mean_z/loudness"] == pytest.approx(np.mean(list(expected.values())))
    assert (metrics[-1]["verify/passed"], metrics[-1]["summary/captures_ok"]) == (1, 16)


def _ids(run_dir: Path, shard: int) -> list[str]:
    return pq.read_table(shard_file(run_dir, shard, "generations"))["generation"].to_pylist()


@pytest.mark.parametrize("tracker", [Broken(), Asking()], ids=["raises", "asks"])
def test_a_tracker_that_fails_costs_one_line(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, tracker: Any
) -> None:
    track = _installed(monkeypatch, tracker)
    suite = write_suite(tmp_path, tiny_directory, n_prompts=4)
    code, out, err = command("run", suite, "--track", track, "--json", "--out", tmp_path / "runs", "--shard-size", "2")
    assert (code, json.loads(out)["counts"]) == (0, {"ok": 16})
    (line,) = [line for line in err.splitlines() if "WARNING: " in line]
    assert re.search(
        r"the tracker failed \((RuntimeError: no network|EOFError.*|OSError.*)\) and gets nothing more", line
    )
    assert getattr(tracker, "n_calls", 1) == 1


def test_a_run_that_is_interrupted_and_resumed_finishes_twice_and_goes_on_counting(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    stop = failing(workbench_module.commit_shard, Interrupted("stop"), after=3)
    suite = write_suite(tmp_path, tiny_directory, n_prompts=4)
    with monkeypatch.context() as patched:
        patched.setattr(workbench_module, "commit_shard", stop)
        with pytest.raises(Interrupted), Tracking(recorder) as tracking:
            run_suite(suite, tmp_path / "runs", tracking=tracking)
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert [kind for kind, _ in recorder.calls] == ["init", "log", "log", "log", "finish"]
    del recorder.calls[:]
    with Tracking(recorder) as tracking:
        night_module.resume_run(run_dir, retry_failed=False, deep=False, reporter=quiet(), tracking=tracking)
    steps = [given[1] for kind, given in recorder.calls if kind == "log"]
    assert steps == [4, 5, 6]
    assert recorder.calls[-2][1][0]["generations/ok"] == 12


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mlflow", "use trackio, wandb or module:object"),
        ("no_such_module_here:sink", "there is no module no_such_module_here; is its folder on PYTHONPATH"),
        ("json:sink", "module json has no sink"),
        ("json:dumps", "it has no function init"),
        ("json:JSONDecoder", "JSONDecoder is a class; name an object of it"),
        (":", "use trackio, wandb or module:object"),
    ],
)
def test_what_is_no_tracker_is_refused_by_name(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        find_tracker(reference)


def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_read(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, out, err = command("run", tmp_path / "nowhere.yaml", "--track", "wandb")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install wandb" in err
