"""Bugs caught here: a watcher that ends too early, hangs on a run that is gone, or takes a run that begins for none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from traitscope.captures.files import committed_shards, done_file, read_sessions, shard_file
from traitscope.errors import InputError, RunError
from traitscope.run import watching
from traitscope.run.commit import write_json
from traitscope.run.lock import locked
from traitscope.run.watching import watch_run


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``between_looks(first, second, …)``: what happens while the watcher sleeps, one thing each time."""

    def plan(*happenings: Callable[[], Any]) -> None:
        left = iter(happenings)

        def sleep(_seconds: float) -> None:
            happening = next(left, None)
            assert happening is not None, "the watcher looks once more than it should"
            happening()

        monkeypatch.setattr(watching.time, "sleep", sleep)

    return plan


def _restored(finished: Path, run_dir: Path, shard: int) -> Callable[[], Any]:
    return lambda: shutil.copy(done_file(finished, shard), done_file(run_dir, shard))


def _partial(finished: Path, run_dir: Path, *, keep: int) -> None:
    shutil.copytree(finished, run_dir)
    for shard in committed_shards(run_dir)[keep:]:
        done_file(run_dir, shard).unlink()


def test_shards_appear_until_another_process_completes_what_one_left(
    finished: Path, tmp_path: Path, between_looks: Callable[..., None]
) -> None:
    run_dir = tmp_path / "run"
    n_shards = len(committed_shards(finished))
    _partial(finished, run_dir, keep=1)
    sessions = read_sessions(run_dir)
    write_json(run_dir / "run.json", {"sessions": [{**sessions[0], "ended_by": "running"}]})
    process = ExitStack()

    def end() -> None:
        for shard in range(2, n_shards):
            _restored(finished, run_dir, shard)()
        process.close()

    between_looks(
        lambda: process.enter_context(locked(run_dir)),  # the first one was killed; another takes the run up
        _restored(finished, run_dir, 1),
        end,
    )
    seen = [(status["state"], status["committed_shards"]) for status in watch_run(run_dir, 0.1)]
    assert seen == [("killed", 1), ("running", 1), ("running", 2), ("complete", n_shards)]


@pytest.mark.parametrize(("n_last", "stage"), [(1, "splitting open layers"), (2, "verifying")])
def test_a_run_that_still_works_on_its_last_shards_is_not_complete_yet(
    finished: Path, tmp_path: Path, between_looks: Callable[..., None], n_last: int, stage: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    (run_dir / "events.jsonl").write_text("\n".join(lines[:-n_last]) + "\n")
    process = ExitStack()
    process.enter_context(locked(run_dir))
    between_looks(process.close)
    assert [(s["state"], s["stage"]) for s in watch_run(run_dir, 0.1)] == [("running", stage), ("complete", None)]


def test_a_directory_in_which_a_run_begins_is_waited_for_and_another_is_refused(
    finished: Path, tmp_path: Path, between_looks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_BEGINNING_SECONDS", -1.0)
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "plan.json").unlink()
    with pytest.raises(InputError, match=r"no plan\.json"):
        next(watch_run(run_dir, 0.1))
    between_looks(lambda: shutil.copy(finished / "plan.json", run_dir))
    with locked(run_dir):
        assert next(watch_run(run_dir, 0.1))["state"] == "running"
    with pytest.raises(InputError, match="no such directory"):
        next(watch_run(tmp_path / "nowhere", 0.1))


def test_a_run_that_is_deleted_while_it_is_watched_is_one_line(
    finished: Path, tmp_path: Path, between_looks: Callable[..., None]
) -> None:
    run_dir = tmp_path / "run"
    _partial(finished, run_dir, keep=1)
    between_looks(lambda: shutil.rmtree(run_dir))
    looks = watch_run(run_dir, 0.1)
    assert next(looks)["state"] == "stopped"
    with pytest.raises(RunError, match=r"deleted or moved while it was watched"):
        next(looks)


def test_a_file_that_cannot_be_read_for_a_moment_is_read_at_the_next_look(
    finished: Path, tmp_path: Path, between_looks: Callable[..., None]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    table = shard_file(run_dir, 0, "generations")
    content = table.read_bytes()
    table.write_bytes(content[:50])
    between_looks(lambda: table.write_bytes(content))
    assert [status["state"] for status in watch_run(run_dir, 0.1)] == ["complete"]
    table.write_bytes(content[:50])
    between_looks(*[lambda: None] * 4)
    with pytest.raises(RunError, match=r"0000\.generations\.parquet cannot be read"):
        next(watch_run(run_dir, 0.1))


def test_silence_is_measured_by_the_watchers_own_clock(
    finished: Path, tmp_path: Path, between_looks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    _partial(finished, run_dir, keep=1)
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    between_looks(lambda: now.__setitem__(0, 90.0), _restored(finished, run_dir, 1))
    looks = watch_run(run_dir, 0.1)
    assert [next(looks)["silent_seconds"] for _ in range(3)] == [0.0, 90.0, 0.0]
