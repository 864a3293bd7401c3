"""Bugs caught here: a stale or torn event taken for progress, two lookers that take each other for a run, a status that
writes or locks, an estimate reckoned from the wrong figures, a killed run called stopped."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from traitscope.captures.files import committed_shards, done_file, read_sessions, shard_file
from traitscope.errors import InputError
from traitscope.run import heartbeat as heartbeat_module
from traitscope.run.commit import write_json
from traitscope.run.events import EventLog, events_of_last_session
from traitscope.run.heartbeat import Heartbeat
from traitscope.run.lock import fcntl, is_locked, locked
from traitscope.run.status import run_status


def _uncommit(run_dir: Path, *, keep: int) -> None:
    for shard in committed_shards(run_dir)[keep:]:
        done_file(run_dir, shard).unlink()


def _set_last_end(run_dir: Path, ended_by: str) -> None:
    sessions = read_sessions(run_dir)
    sessions[-1]["ended_by"] = ended_by
    write_json(run_dir / "run.json", {"sessions": sessions})


def _progress(**values: Any) -> dict[str, Any]:
    given = {"done": 24, "session_done": 24, "seconds": 2.0, "tokens_per_second": 11.0, "resident_bytes": 5_000_000}
    return {"total": 144, "tokens": 20, **given, **values}


def test_a_complete_run_tells_its_last_responses_and_has_no_time_left(finished: Path) -> None:
    status = run_status(finished)
    assert (status["state"], status["went_well"], status["eta_seconds"]) == ("complete", True, None)
    assert status["work"]["done"] == status["work"]["total"] == 12 * sum(status["counts"].values())
    last = pq.read_table(shard_file(finished, committed_shards(finished)[-1], "generations"))["response"].to_pylist()
    assert [shown["response"] for shown in status["last_responses"]][-len(last) :] == last[-3:]
    assert len(status["last_responses"]) == 3
    assert status["tokens_per_second"] > 0


def test_time_left_comes_from_the_plan_then_from_the_shards(run_dir: Path) -> None:
    plan = json.loads((run_dir / "plan.json").read_text())
    _uncommit(run_dir, keep=2)
    status = run_status(run_dir)
    rows = [row for s in (0, 1) for row in pq.read_table(shard_file(run_dir, s, "generations")).to_pylist()]
    seconds_each = sum(row["seconds"] for row in rows) / len(rows)
    left = len(plan["generations"]) - len(rows)
    assert (status["state"], status["eta_from"]) == ("stopped", "the shards committed")
    assert status["eta_seconds"] == pytest.approx(left * seconds_each)
    _uncommit(run_dir, keep=0)
    status = run_status(run_dir)
    assert status["eta_from"] == "the plan"
    assert status["eta_seconds"] == pytest.approx(plan["estimate"]["seconds"])
    assert status["last_responses"] == []


def test_a_session_whose_process_is_gone_was_killed(run_dir: Path) -> None:
    _uncommit(run_dir, keep=2)
    _set_last_end(run_dir, "running")
    assert run_status(run_dir)["state"] == "killed"
    with locked(run_dir):
        assert run_status(run_dir)["state"] == "running"
    _set_last_end(run_dir, "interrupted")
    assert (run_status(run_dir)["state"], run_status(run_dir)["ended_by"]) == ("stopped", "interrupted")


def test_a_run_at_work_tells_its_own_pace_in_spite_of_a_torn_line(run_dir: Path) -> None:
    _uncommit(run_dir, keep=1)
    events = EventLog(run_dir)
    events.add("session")
    events.add("progress", **_progress(done=48, session_done=24))
    with (run_dir / "events.jsonl").open("a") as file:
        file.write('{"time": "2031-01-01T00:00:00.000+00:00", "event": "progress", "done": 999')
    with locked(run_dir):
        status = run_status(run_dir)
    left = status["work"]["total"] - 48
    assert (status["stage"], status["work"]["done"], status["eta_from"]) == ("generating", 48, "this session so far")
    assert status["eta_seconds"] == pytest.approx(left * 2.0 / 24)
    assert (status["tokens_per_second"], status["memory_bytes"]) == (11.0, 5_000_000)


def test_what_a_killed_process_wrote_last_is_not_the_pace_of_the_one_that_resumes(run_dir: Path) -> None:
    _uncommit(run_dir, keep=1)
    events = EventLog(run_dir)
    events.add("session")
    events.add("progress", **_progress(done=130, session_done=130))
    with (run_dir / "events.jsonl").open("a") as file:
        file.write('{"torn')
    EventLog(run_dir).add("resume", pid=1)
    with locked(run_dir):
        status = run_status(run_dir)
    assert (status["stage"], status["eta_from"]) == ("loading", "the shards committed")
    assert status["work"]["done"] < 130


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\n", b"[]\n1\n", b'{"event": 3}\n', b'{"event": "progress", "done": null}\n', b"\n\n{"],
)
def test_events_that_make_no_sense_are_left_out(run_dir: Path, content: bytes) -> None:
    (run_dir / "events.jsonl").write_bytes(content)
    _uncommit(run_dir, keep=1)
    with locked(run_dir):
        assert run_status(run_dir)["eta_from"] == "the shards committed"


def test_only_the_end_of_a_long_file_of_events_is_read(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    for n in range(3000):
        events.add("progress", **_progress(done=n))
    assert events_of_last_session(tmp_path)[-1]["done"] == 2999
    assert len(events_of_last_session(tmp_path)) < 1000


def test_looking_writes_nothing(run_dir: Path) -> None:
    (run_dir / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    run_status(run_dir)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


@pytest.mark.skipif(fcntl is None, reason="shared locks are POSIX")
def test_one_who_looks_is_no_run_and_keeps_no_run_from_beginning(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        assert not is_locked(tmp_path)
        threading.Timer(0.1, lambda: fcntl.flock(looker, fcntl.LOCK_UN)).start()
        with locked(tmp_path):
            assert is_locked(tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match=r"status .* --watch"), locked(tmp_path):
        pass


def test_a_heartbeat_counts_work_once_and_writes_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(heartbeat_module.time, "monotonic", lambda: now)
    heartbeat = Heartbeat(EventLog(tmp_path), total=100, done=20, memory=lambda: {"resident_bytes": 7})
    for _ in range(30):
        heartbeat.tokens(0, 1)
    assert events_of_last_session(tmp_path) == []
    now = 106.0
    heartbeat.tokens(0, 0)
    heartbeat.batch(0, 40)  # 10 tokens were not generated, as responses ended early
    for _ in range(60):  # a batch that was split and tried again generates more than its work
        heartbeat.tokens(0, 1)
    heartbeat.batch(0, 40)
    now = 108.0
    heartbeat.beat()
    first, last = events_of_last_session(tmp_path)
    assert (first["done"], first["session_done"], first["tokens_per_second"]) == (50, 30, 5.0)
    assert (last["done"], last["tokens"], last["tokens_per_second"], last["seconds"]) == (100, 90, 30.0, 8.0)
    assert last["resident_bytes"] == 7


def test_what_a_lost_worker_did_is_not_done(tmp_path: Path) -> None:
    heartbeat = Heartbeat(EventLog(tmp_path), total=100, done=20, memory=dict)
    for shard in (0, 1):
        heartbeat.batch(shard, 10)
        heartbeat.tokens(shard, 5)
    assert heartbeat.done == 30
    heartbeat.lost(1)
    assert heartbeat.done == 15
    heartbeat.committed(0, 40)
    assert heartbeat.done == 40


def test_a_run_leaves_a_heartbeat_that_ends_at_all_of_its_work(finished: Path) -> None:
    lines = (finished / "events.jsonl").read_text().splitlines()
    names = [json.loads(line)["event"] for line in lines]
    assert names[0] == "session"
    assert names[-4:] == ["progress", "verifying", "splitting", "session_end"]
    last = json.loads(lines[names.index("progress", -4)])
    assert last["done"] == last["total"] == last["session_done"]
    assert 0 < last["tokens"] <= last["total"]
    assert last["resident_bytes"] > 0
