"""Where a run stands, for a person: once, live, or a line for every change."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from traitscope.report.text import one_line
from traitscope.report.verification import print_conclusion
from traitscope.units import human_bytes, human_seconds

_MOST_PROBLEMS_LIVE = 5
_SILENT_SECONDS = 60.0
_TENTHS = 10


def print_status(console: Console, status: Mapping[str, Any]) -> None:
    """A few lines."""
    lines = [
        f"{status['run']}: {_state(status)}, {status['committed_shards']} of {status['shards']} shards committed",
        _generations_line(status),
        *_pace_lines(status),
    ]
    generating = sum(session["seconds"].get("generating", 0.0) for session in status["sessions"])
    if n_sessions := len(status["sessions"]):
        lines.append(
            f"{n_sessions} session{'s' if n_sessions != 1 else ''}, {human_seconds(generating)} of generation "
            f"({_estimated(status['estimated_seconds'])} was estimated)"
        )
    lines += _problem_lines(status)
    for line in lines:
        console.print(Text(one_line(line)), soft_wrap=True)
    for response in _responses(status):
        console.print(response, no_wrap=True, overflow="ellipsis")  # joined texts lose their own
    _print_end(console, status)


def show_live(console: Console, statuses: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Bars that move in place until ``statuses`` end; returns the last one."""
    status: Mapping[str, Any] = {}
    with Live(console=console, auto_refresh=False) as live:
        for status in statuses:
            live.update(_view(status), refresh=True)
    _print_end(console, status)
    return status


def print_changes(console: Console, statuses: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A line whenever something changed: state, shards, failures, or another tenth of the work; returns the last."""
    status: Mapping[str, Any] = {}
    shown = None
    for status in statuses:
        work = status["work"]
        tenth = _TENTHS * work["done"] // work["total"] if work["total"] else _TENTHS
        told = (_state(status), status["committed_shards"], status["counts"], tenth)
        if told != shown:
            shown = told
            console.print(Text(one_line(_change_line(status))), soft_wrap=True)
    _print_end(console, status)
    return status


def _change_line(status: Mapping[str, Any]) -> str:
    work = status["work"]
    parts = [
        f"{_state(status)}, {status['committed_shards']} of {status['shards']} shards",
        _generations_line(status),
        f"{work['done'] / work['total']:.0%} of the work" if work["total"] else "",
        *_pace_lines(status),
    ]
    return f"{time.strftime('%H:%M:%S')} " + "; ".join(part for part in parts if part)


def _view(status: Mapping[str, Any]) -> RenderableType:
    counts, work = status["counts"], status["work"]
    asked = sum(counts.values())
    bars = Table.grid(padding=(0, 1))
    for name, done, total in (
        ("shards", status["committed_shards"], status["shards"]),
        ("generations", asked - counts["missing"], asked),
        ("tokens at most", work["done"], work["total"]),
    ):
        bars.add_row(name, ProgressBar(total=max(total, 1), completed=done, width=40), f"{done:,} of {total:,}")
    problems = _problem_lines(status)
    shown: list[RenderableType] = [Text(one_line(f"{status['run']}: {_state(status)}"), style="bold"), bars]
    shown += [Text(line) for line in (_generations_line(status), *_pace_lines(status))]
    shown += [Text(one_line(line), style="red") for line in problems[-_MOST_PROBLEMS_LIVE:]]
    if (n_more := len(problems) - _MOST_PROBLEMS_LIVE) > 0:
        shown.append(Text(f"and {n_more} more before them", style="red"))
    return Group(*shown, *_responses(status))


def _state(status: Mapping[str, Any]) -> str:
    """The state, and what a person needs to know to read it right."""
    said = str(status["state"])
    if said == "running" and status["stage"] != "generating":
        said += f" ({status['stage']})"
    if said == "stopped" and status["ended_by"]:
        said += f" (by {'an error' if status['ended_by'] == 'error' else 'its user'})"
    silent = status.get("silent_seconds", 0.0)
    if status["state"] == "running" and status["stage"] == "generating" and silent >= _SILENT_SECONDS:
        said += f", nothing new for over {int(silent // 60)} min"
    return said


def _generations_line(status: Mapping[str, Any]) -> str:
    counts = status["counts"]
    return (
        f"generations: {counts.get('ok', 0)} captured, {counts.get('failed', 0)} failed, "
        f"{counts.get('too_long', 0)} too long, {counts['missing']} to go"
    )


def _pace_lines(status: Mapping[str, Any]) -> list[str]:
    parts = []
    if status["tokens_per_second"] is not None:
        parts.append(f"{status['tokens_per_second']:.0f} tokens/s")
    if status["eta_seconds"] is not None:
        parts.append(
            f"about {human_seconds(status['eta_seconds'])} of generation left (reckoned from {status['eta_from']})"
        )
    if status["memory_bytes"] is not None:
        parts.append(f"{human_bytes(status['memory_bytes'])} memory")
    elif status["peak_memory_bytes"] is not None:
        parts.append(f"at most {human_bytes(status['peak_memory_bytes'])} memory")
    if status["device_memory_bytes"] is not None:
        parts.append(f"{human_bytes(status['device_memory_bytes'])} on the device")
    return [", ".join(parts)] if parts else []


def _problem_lines(status: Mapping[str, Any]) -> list[str]:
    return [f"{problem['status']}: {problem['at']}: {problem['error']}" for problem in status["problems"]]


def _responses(status: Mapping[str, Any]) -> list[Text]:
    """The newest responses, a line each; they and the ids are untrusted."""
    return [
        Text.assemble(
            (one_line(last["at"]), "dim"),
            "  ",
            one_line(last["response"]) or "(empty)",
            overflow="ellipsis",
            no_wrap=True,
        )
        for last in status["last_responses"]
    ]


def _print_end(console: Console, status: Mapping[str, Any]) -> None:
    """What was verified of a run that is complete, and how to go on."""
    if not status:
        return
    if status["state"] == "complete" and status["verify"] is not None:
        print_conclusion(console, status["verify"])
    if status["state"] in ("stopped", "killed"):
        hint = f"go on with: traitscope run --resume {status['run']}"
    elif status["state"] == "complete" and status["counts"].get("failed"):
        hint = f"try the failed ones again with: traitscope run --resume {status['run']} --retry-failed"
    else:
        return
    console.print(Text(one_line(hint)), soft_wrap=True)


def _estimated(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else human_seconds(seconds)
