"""``events.jsonl``: what happens to a run, for people and for ``status``."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_TAIL_BYTES = 64 * 1024
_FIRST_OF_A_SESSION = ("resume", "session")


class EventLog:
    """Appends events; one that cannot be written is no reason to stop."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "events.jsonl"
        self._begin_line = "\n" if _ends_in_torn_line(self._path) else ""

    def add(self, event: str, **values: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self._begin_line}{json.dumps(line, ensure_ascii=False)}\n")
            self._begin_line = ""


def events_of_last_session(run_dir: Path) -> list[dict[str, Any]]:
    """Events since the last process took up the run, oldest first, as far as the end of the file holds them.

    Torn lines and lines that are no events are left out; a file that is not there has none.
    """
    events = [event for line in _last_lines(run_dir / "events.jsonl") if (event := _parsed(line)) is not None]
    begins = [index for index, event in enumerate(events) if event["event"] in _FIRST_OF_A_SESSION]
    return events[begins[-1] :] if begins else events


def _last_lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().split(b"\n")
    except OSError:
        return []


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _ends_in_torn_line(path: Path) -> bool:
    lines = _last_lines(path)
    return bool(lines) and lines[-1] != b""
