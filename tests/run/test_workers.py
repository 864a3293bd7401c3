"""Bugs caught here: work lost, done twice or changed by a worker that dies; a bad shard or a bad device that ends the
night; a worker that outlives its run; a fault that verify sees in one process only."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from nights import quiet, run_suite, tables_digest, write_suite
from traitscope.captures.files import committed_shards, done_file, read_sessions
from traitscope.captures.opened_writes import opened_writes_file
from traitscope.captures.reading import open_run
from traitscope.captures.summaries import run_summary, went_well
from traitscope.errors import RunError
from traitscope.run import workers as workers_module
from traitscope.run.devices import choose_devices
from traitscope.run.interruption import Interrupted
from traitscope.run.lock import is_locked
from traitscope.run.messages import (
    Committed,
    DeviceGivenUp,
    JobGivenUp,
    ModelLoaded,
    ShardJob,
    UtilisationJob,
    WorkerLost,
    from_line,
    to_line,
)
from traitscope.run.night import resume_run
from traitscope.run.progress import Reporter
from traitscope.run.status import run_status
from traitscope.run.workers import WorkerPool
from traitscope.verify.stored import check_stored
from traitscope.verify.verdict import chosen_generations

TWO = choose_devices("cpu,cpu")
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Iterator[Path]:
    """A night of one process: 32 generations in 16 shards."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        yield run_suite(write_suite(folder, tiny_directory), folder / "runs")


@pytest.fixture
def not_begun(alone: Path, tmp_path: Path) -> Path:
    """The same night with everything still to do."""
    return _not_begun(alone, tmp_path / "run")


def _not_begun(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    for path in [*(copy / "shards").iterdir(), copy / "run.json", copy / "events.jsonl"]:
        path.unlink()
    return copy


def _replaced(patched: pytest.MonkeyPatch, module: str, **environment: str) -> None:
    """Workers are processes of one of the tests' own files."""
    patched.setattr(workers_module, "_COMMAND", (sys.executable, str(FOLDER / module)))
    for name, value in environment.items():
        patched.setenv(name, value)


@pytest.fixture
def fakes(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``fakes(dies_on=[3])``: workers are fakes that behave so."""

    def be(**asked: Any) -> None:
        _replaced(monkeypatch, "fake_worker.py", FAKE_WORKER=json.dumps({"source": str(alone), **asked}))

    return be


def _pool_run(
    run_dir: Path, n_shards: int = 16, devices: str = "cpu,cpu", stopping: Callable[[], bool] = lambda: False
) -> list[Any]:
    """What a pool tells while it runs the first shards."""
    told: list[Any] = []
    pool = WorkerPool(run_dir, [torch.device(name) for name in devices.split(",")])
    try:
        pool.run([ShardJob(shard) for shard in range(n_shards)], told.append, stopping)
    finally:
        pool.close()
    return told


def _of(kind: type, told: list[Any]) -> list[Any]:
    return [report for report in told if isinstance(report, kind)]


def _runs(run_dir: Path) -> list[int]:
    """Shards in the order in which workers computed them."""
    return [int(line) for line in (run_dir / "log.txt").read_text().split()]


def _events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


def _resume(run_dir: Path, **options: Any) -> None:
    resume_run(run_dir, **{"retry_failed": False, "deep": True, "reporter": quiet(), "devices": TWO, **options})


def test_a_shard_that_kills_its_workers_is_given_up_and_its_neighbours_are_not(
    not_begun: Path, fakes: Callable[..., None]
) -> None:
    fakes(dies_on=[4], dies_once_on=[9])
    told = _pool_run(not_begun)
    assert [given_up.job for given_up in _of(JobGivenUp, told)] == [ShardJob(4)]
    assert "SIGKILL" in _of(JobGivenUp, told)[0].why
    assert len(_of(WorkerLost, told)) == 3
    assert sorted(_runs(not_begun)) == [shard for shard in range(16) if shard != 4]
    assert committed_shards(not_begun) == sorted(report.shard for report in _of(Committed, told))
    assert not _of(DeviceGivenUp, told)


def test_a_shard_that_was_committed_but_not_told_is_not_run_again(not_begun: Path, fakes: Callable[..., None]) -> None:
    fakes(dies_untold=[2])
    told = _pool_run(not_begun, 6)
    assert sorted(_runs(not_begun)) == sorted(report.shard for report in _of(Committed, told)) == list(range(6))
    (untold,) = [report for report in _of(Committed, told) if report.shard == 2]
    assert list(untold.statuses.values()) == ["ok", "ok"]


def test_a_device_on_which_no_worker_lives_is_given_up_and_the_last_one_ends_the_run(
    not_begun: Path, fakes: Callable[..., None]
) -> None:
    fakes(dies_loading="meta", seconds=0.1)
    told = _pool_run(not_begun, devices="meta,cpu")
    assert [report.device for report in _of(DeviceGivenUp, told)] == ["meta"]
    assert committed_shards(not_begun) == list(range(16))
    with pytest.raises(RunError, match=r"no worker can be kept alive: killed by SIGKILL"):
        _pool_run(not_begun, devices="meta,meta")


def test_a_night_whose_shards_all_kill_is_not_recorded_as_failed_to_its_end(
    not_begun: Path, fakes: Callable[..., None]
) -> None:
    fakes(dies_on=list(range(16)))
    with pytest.raises(RunError, match="no worker can be kept alive"):
        _resume(not_begun)
    assert len(committed_shards(not_begun)) <= 3
    assert read_sessions(not_begun)[-1]["ended_by"] == "error"


def test_what_no_worker_can_help_ends_the_run_and_its_workers(not_begun: Path, fakes: Callable[..., None]) -> None:
    fakes(refuses="the disk is full")
    with pytest.raises(RunError, match=r"the disk is full; committed shards are safe\. Go on with:"):
        _resume(not_begun)
    assert not any(psutil.pid_exists(event["pid"]) for event in _events(not_begun, "worker"))


def test_ctrl_c_lets_every_worker_finish_its_shard_and_a_second_one_ends_them(
    not_begun: Path, fakes: Callable[..., None]
) -> None:
    fakes(seconds=0.2)
    _interrupt_when(lambda: len(committed_shards(not_begun)) >= 2)
    with pytest.raises(Interrupted, match=r"stopped with \d+ of 16 shards to go\. Go on with:"):
        _resume(not_begun)
    assert sorted(_runs(not_begun)) == committed_shards(not_begun)
    assert 3 <= len(committed_shards(not_begun)) < 16
    assert not is_locked(not_begun)
    before = committed_shards(not_begun)
    (not_begun / "begun.txt").unlink()
    fakes(seconds=60)
    _interrupt_when(lambda: (not_begun / "begun.txt").exists(), times=2)
    with pytest.raises(Interrupted, match="stopped at once"):
        _resume(not_begun)
    assert committed_shards(not_begun) == before
    assert not any(psutil.pid_exists(event["pid"]) for event in _events(not_begun, "worker"))
    assert [session["ended_by"] for session in read_sessions(not_begun)] == ["interrupted", "interrupted"]


def _interrupt_when(is_time: Callable[[], bool], times: int = 1) -> None:
    def wait() -> None:
        while not is_time():
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    threading.Thread(target=wait, daemon=True).start()


def test_the_command_starts_workers_and_one_that_is_killed_changes_nothing(
    alone: Path, fakes: Callable[..., None], tmp_path: Path, tiny_directory: Path, tiny_cache: Path, command: Any
) -> None:
    fakes(dies_once_on=[3])
    suite = write_suite(tmp_path, tiny_directory)
    sizes = ["--batch-size", "2", "--shard-size", "2"]
    code, out, err = command("run", suite, "--devices", "cpu,cpu", *sizes, "--out", tmp_path / "runs", "--json")
    run_dir = Path(json.loads(out)["run"])
    assert code == 0
    assert tables_digest(run_dir) == tables_digest(alone)
    assert sorted(_runs(run_dir)) == list(range(16))
    assert json.loads((run_dir / "plan.json").read_text())["devices"] == ["cpu", "cpu"]
    assert "is gone: killed by SIGKILL; run again: shard " in err
    code, out, _ = command("plan", suite, "--devices", "cpu,cpu")
    assert "on cpu, cpu (2 workers)" in out


@pytest.fixture(scope="module")
def survived(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A night of two real workers in which one prompt kills them each time and another one once; and what was said."""
    run_dir, said = _not_begun(alone, tmp_path_factory.mktemp("survived") / "run"), io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        _replaced(patched, "faulty_worker.py", FAULT="dies")
        _resume(run_dir, reporter=Reporter(Console(file=said)))
    return run_dir, said.getvalue()


def test_two_workers_of_which_some_are_killed_leave_the_same_night_as_one_process(
    alone: Path, survived: tuple[Path, str]
) -> None:
    run_dir, said = survived
    ours, theirs = tables_digest(run_dir), tables_digest(alone)
    differing = {name.split(".")[0] for name in theirs if ours.get(name) != theirs[name]}
    (failed,) = [event for event in _events(run_dir, "shard") if "failed" in event["statuses"]]
    assert differing == {f"{failed['shard']:04d}"}
    assert run_status(run_dir)["counts"] == {"ok": 30, "failed": 2, "missing": 0}
    assert open_run(run_dir).generations.collect()["generation"].is_unique().all()
    assert [event["why"] for event in _events(run_dir, "worker_lost")] == ["killed by SIGKILL"] * 3
    assert said.count("is gone: killed by SIGKILL") == 3
    assert "its shard ended two workers: killed by SIGKILL" in said


def test_a_night_of_several_workers_is_verified_split_and_accounted_for(survived: tuple[Path, str]) -> None:
    run_dir, _ = survived
    summary = run_summary(run_dir)
    assert (summary["verify"]["passed"], summary["verify"]["verified"]) == (True, 2)
    assert not went_well(summary), "a generation failed, and the run's exit code says so"
    (session,) = read_sessions(run_dir)
    assert (session["ended_by"], session["devices"], session["lost_workers"]) == ("finished", ["cpu", "cpu"], 3)
    # A lost worker is replaced while there is more to do than others are free for; the last may load in vain.
    assert 4 <= len(_events(run_dir, "worker")) <= 5
    assert 3 <= session["model_loads"] <= len(_events(run_dir, "worker"))
    rows = open_run(run_dir).generations.collect()
    assert session["generated_tokens"] == rows["response_tokens"].sum()
    assert session["generating_wall_seconds"] > 0
    assert session["utilisation"]["tokens_per_second"] == pytest.approx(
        session["generated_tokens"] / session["generating_wall_seconds"], rel=0.01
    )
    assert opened_writes_file(run_dir).is_file()
    last = _events(run_dir, "progress")[-1]
    assert last["done"] == last["total"]
    retried = run_dir.with_name("retried")
    shutil.copytree(run_dir, retried)
    _resume(retried, retry_failed=True, devices=choose_devices("cpu"))
    assert run_status(retried)["counts"] == {"ok": 32, "missing": 0}


def test_a_fault_in_a_workers_numbers_is_found(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(alone, run_dir)
    stored = check_stored(run_dir)
    (proved, *_) = chosen_generations(stored, 2)
    done_file(run_dir, next(shard for shard, ids in stored.sound.items() if proved in ids)).unlink()
    _replaced(monkeypatch, "faulty_worker.py", FAULT="wrong")
    _resume(run_dir)
    verdict = run_summary(run_dir)["verify"]
    assert not verdict["passed"]
    assert "score at resid_" in verdict["problems"][0]


def test_workers_end_with_their_coordinator_and_a_resume_completes_the_run(
    alone: Path, not_begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:4]\n"
        "import test_workers, pathlib; from traitscope.run import workers\n"
        "workers._COMMAND = (sys.executable, sys.argv[4])\n"
        "test_workers._resume(pathlib.Path(sys.argv[1]))"
    )
    paths = [str(FOLDER), str(FOLDER.parent), str(FOLDER / "faulty_worker.py")]
    environment = {**os.environ, "FAULT": "slow"}
    coordinator = subprocess.Popen([sys.executable, "-c", script, str(not_begun), *paths], env=environment)
    while coordinator.poll() is None and not committed_shards(not_begun):
        time.sleep(0.05)
    coordinator.kill()
    coordinator.wait()
    pids = [event["pid"] for event in _events(not_begun, "worker")]
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert (len(pids), alive) == (2, [])
    assert 0 < len(committed_shards(not_begun)) < 16
    _resume(not_begun, devices=choose_devices("cpu"))
    assert tables_digest(not_begun) == tables_digest(alone)
    assert [session["ended_by"] for session in read_sessions(not_begun)] == ["killed", "finished"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cpu,", "name one device for each worker"),
        ("auto,cpu", "name one device for each worker"),
        ("cpu,gpu", "device 'gpu' is unknown"),
        ("cuda:98,cuda:99", "not available"),
    ],
)
def test_devices_that_cannot_be_are_refused_by_name(given: str, message: str, command: Any) -> None:
    code, _, err = command("plan", "overnight", "--devices", given)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    code, _, err = command("run", "overnight", "--device", "cpu", "--devices", "cpu,cpu")
    assert (code, err) == (2, "error: --device and --devices: give one of them\n")


def test_messages_survive_their_line() -> None:
    for message in (
        ShardJob(3, True),
        UtilisationJob({"passes": 1, "seconds": 0.5}, 7, 1.5, 1.0),
        Committed(1, {"a": "failed"}, {"a": "näh\n"}, {"generated_tokens": 3}, {}),
        ModelLoaded(0.1),
    ):
        line = to_line(message)
        assert line.count("\n") == 1
        assert from_line(line) == message
    for line in ("Loading weights: 100 %", '{"shard": 3}', "[]", '{"kind": "ShardJob", "sh'):
        with pytest.raises(ValueError, match="no message"):
            from_line(line)
