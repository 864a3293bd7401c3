"""Where a run stands, from its directory alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from traitscope.captures.files import (
    committed_shards,
    read_frozen_plan,
    read_retries,
    read_sessions,
    shard_file,
)
from traitscope.errors import InputError, RunError, one_line_of
from traitscope.run.events import events_of_last_session
from traitscope.run.lock import is_locked

_LAST_RESPONSES = 3
_STAGES = {"resume": "loading", "verifying": "verifying", "splitting": "splitting open layers"}


def run_status(run_dir: Path) -> dict[str, Any]:
    """Counts, pace, failures and whether a process is at work; nothing of the model is loaded.

    Raises:
        InputError: not a run directory.
        RunError: a committed shard cannot be read.
    """
    return StatusReader(run_dir).read()


@dataclass(frozen=True)
class _Asked:
    """A generation's place in the suite, and the most tokens of its response: the unit of work left."""

    at: str
    work: int


@dataclass(frozen=True)
class _Progress:
    """What a session that is at work wrote last: work in tokens of longest responses, its own seconds and memory."""

    done: int
    session_done: int
    seconds: float
    tokens_per_second: float
    resident_bytes: int | None
    device_bytes: int | None

    @classmethod
    def among(cls, events: Iterable[Mapping[str, Any]]) -> _Progress | None:
        """The last ``progress`` among events; None if there is none that makes sense."""
        last = next((event for event in reversed([*events]) if event["event"] == "progress"), None)
        if last is None:
            return None
        try:
            return cls(
                int(last["done"]),
                int(last["session_done"]),
                float(last["seconds"]),
                float(last["tokens_per_second"]),
                last.get("resident_bytes"),
                last.get("device_bytes"),
            )
        except (KeyError, TypeError, ValueError):
            return None


class StatusReader:
    """Reads where a run stands, again and again: what cannot change is read once."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._plan = read_frozen_plan(run_dir)
        self._asked = _read_asked(run_dir)
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def read(self) -> dict[str, Any]:
        """As ``run_status``.

        Raises:
            InputError: the directory is gone.
            RunError: a committed shard cannot be read.
        """
        if not self._run_dir.is_dir():
            raise InputError(f"run {self._run_dir}: no such directory")
        at_work = is_locked(self._run_dir)  # first: what a process did before it ended is then all read
        sessions = read_sessions(self._run_dir)
        events = events_of_last_session(self._run_dir) if at_work else []
        shards = [*self._plan["shards"], *read_retries(self._run_dir)]
        committed = committed_shards(self._run_dir)
        rows = self._last_rows(committed)
        counts = Counter(row["status"] for row in rows)
        counts["missing"] = len(self._plan["generations"]) - len(rows)
        state = _state(at_work, len(committed) >= len(shards), sessions)
        verdict = next((s["verify"] for s in reversed(sessions) if s.get("verify")), None)
        return {
            "run": str(self._run_dir),
            "state": state,
            "shards": len(shards),
            "committed_shards": len(committed),
            "counts": dict(counts),
            "problems": [
                {"at": self._asked[row["generation"]].at, "status": row["status"], "error": row["error"]}
                for row in rows
                if row["status"] != "ok"
            ],
            "sessions": sessions,
            "estimated_seconds": self._plan["estimate"]["seconds"],
            "stage": _stage(events) if state == "running" else None,
            "ended_by": None if at_work or not sessions else sessions[-1]["ended_by"],
            **self._pace(shards, committed, rows, sessions, _Progress.among(events)),
            "last_responses": self._last_responses(rows),
            "verify": verdict,
            "went_well": counts["ok"] == len(self._plan["generations"]) and (verdict is None or verdict["passed"]),
        }

    def _last_rows(self, committed: Sequence[int]) -> list[dict[str, Any]]:
        """The record of each generation that has one; of one that was tried again, the later."""
        for shard in committed:
            if shard not in self._rows:
                self._rows[shard] = _read_rows(self._run_dir, shard)
        latest: dict[str, dict[str, Any]] = {}
        for row in (row for shard in committed for row in self._rows[shard]):
            latest.pop(row["generation"], None)  # what was tried again is as new as its last try
            latest[row["generation"]] = row
        return list(latest.values())

    def _pace(
        self,
        shards: Sequence[Mapping[str, Any]],
        committed: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
        sessions: Sequence[Mapping[str, Any]],
        progress: _Progress | None,
    ) -> dict[str, Any]:
        works = [self._work(generation for batch in shard["batches"] for generation in batch) for shard in shards]
        total, done = sum(works), sum(works[shard] for shard in committed if shard < len(works))
        if progress is not None:
            done = min(max(done, progress.done), total)
        seconds, source = self._seconds_left(total - done, total, rows, progress)
        return {
            "work": {"done": done, "total": total},
            "eta_seconds": seconds,
            "eta_from": source,
            "tokens_per_second": _rate(sessions) if progress is None else progress.tokens_per_second,
            "memory_bytes": None if progress is None else progress.resident_bytes,
            "device_memory_bytes": None if progress is None else progress.device_bytes,
            "peak_memory_bytes": max((session["peak_memory_bytes"] for session in sessions), default=None),
        }

    def _seconds_left(
        self, left: int, total: int, rows: Sequence[Mapping[str, Any]], progress: _Progress | None
    ) -> tuple[float | None, str | None]:
        """Seconds of generation that are left, and what they were reckoned from."""
        if not left:
            return None, None
        if progress is not None and progress.session_done > 0:
            return left * progress.seconds / progress.session_done, "this session so far"
        timed = [row for row in rows if row["seconds"] is not None]
        if work := self._work(row["generation"] for row in timed):
            by_one_worker = left * sum(row["seconds"] for row in timed) / work
            return by_one_worker / len(self._plan["devices"]), "the shards committed"
        planned = self._plan["estimate"]["seconds"]
        if planned is None:
            return None, None
        return left * planned / total / len(set(self._plan["devices"])), "the plan"

    def _work(self, generations: Iterable[str]) -> int:
        return sum(self._asked[generation].work for generation in generations)

    def _last_responses(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The newest ones, oldest first."""
        captured = [row for row in rows if row["response"] is not None]
        return [
            {"at": self._asked[row["generation"]].at, "response": row["response"]}
            for row in captured[-_LAST_RESPONSES:]
        ]


def _state(at_work: bool, is_complete: bool, sessions: Sequence[Mapping[str, Any]]) -> str:
    if at_work:
        return "running"
    if is_complete:
        return "complete"
    return "killed" if sessions and sessions[-1]["ended_by"] == "running" else "stopped"


def _stage(events: Sequence[Mapping[str, Any]]) -> str:
    return _STAGES.get(events[-1]["event"], "generating") if events else "generating"


def _rate(sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """Generated tokens per second of the clock while generating, over all sessions."""
    seconds = sum(session["generating_wall_seconds"] for session in sessions)
    return sum(session.get("generated_tokens", 0) for session in sessions) / seconds if seconds else None


def _read_asked(run_dir: Path) -> dict[str, _Asked]:
    work = pl.coalesce(pl.col("response_ids").list.len().cast(pl.Int64), pl.col("max_new_tokens").cast(pl.Int64))
    prompts = pl.scan_parquet(run_dir / "prompts.parquet").select("generation", "experiment", "prompt_id", work=work)
    try:
        rows = prompts.collect().to_dicts()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"run {run_dir}: prompts.parquet is missing or damaged: {one_line_of(error)}") from None
    return {row["generation"]: _Asked(f"{row['experiment']}/{row['prompt_id']}", row["work"]) for row in rows}


def _read_rows(run_dir: Path, shard: int) -> list[dict[str, Any]]:
    """A shard's records; only the last responses are kept, as a night has many and only the newest are shown."""
    path = shard_file(run_dir, shard, "generations")
    try:
        rows = pq.read_table(path, columns=["generation", "status", "error", "response", "seconds"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read ({one_line_of(error)}); try: traitscope verify {run_dir}") from error
    for row in rows[:-_LAST_RESPONSES]:
        row["response"] = None
    return rows
