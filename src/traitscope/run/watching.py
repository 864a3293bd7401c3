"""Looking at a run again and again, from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from traitscope.errors import InputError, RunError, TraitscopeError, one_line_of
from traitscope.run.lock import is_locked
from traitscope.run.status import StatusReader

_BEGINNING_SECONDS = 5.0
_MOST_FAILED_LOOKS = 5
_READING_ERRORS = (OSError, ValueError, KeyError, TraitscopeError, pa.ArrowException, pl.exceptions.PolarsError)


def watch_run(run_dir: Path, every: float) -> Iterator[dict[str, Any]]:
    """What ``run_status`` says, every ``every`` seconds until the run is complete.

    A run that was stopped or killed is waited for: another process may take it up. Each status also has
    ``silent_seconds``: for how long nothing changed, by the watcher's own clock, as the clock of the run's host may
    be another.

    Raises:
        InputError: not a run directory, or one in which no run begins.
        RunError: the directory is gone, or cannot be read again and again.
    """
    reader = _reader_of_a_run_that_begins(run_dir, every)
    changed, previous, n_failed = time.monotonic(), None, 0
    while True:
        try:
            status = reader.read()
        except _READING_ERRORS as error:
            n_failed += 1
            _refuse_hopeless(run_dir, error, n_failed)
            time.sleep(every)
            continue
        n_failed = 0
        if status != previous:
            changed, previous = time.monotonic(), status
        yield {**status, "silent_seconds": time.monotonic() - changed}
        if status["state"] == "complete":
            return
        time.sleep(every)


def _reader_of_a_run_that_begins(run_dir: Path, every: float) -> StatusReader:
    """Wait while a process writes the plan into a new run directory."""
    give_up = time.monotonic() + _BEGINNING_SECONDS
    while True:
        try:
            return StatusReader(run_dir)
        except InputError:
            is_new = run_dir.is_dir() and not (run_dir / "plan.json").exists()
            if not is_new or (time.monotonic() > give_up and not is_locked(run_dir)):
                raise
        time.sleep(min(every, 1.0))


def _refuse_hopeless(run_dir: Path, error: Exception, n_failed: int) -> None:
    if not (run_dir / "plan.json").exists():
        raise RunError(f"run {run_dir}: it was deleted or moved while it was watched") from error
    if n_failed >= _MOST_FAILED_LOOKS:
        raise RunError(f"run {run_dir}: cannot be read: {one_line_of(error)}") from error
