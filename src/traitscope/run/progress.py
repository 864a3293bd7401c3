"""Telling a person what is going on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from traitscope.units import human_seconds

_LINE_EVERY_SECONDS = 10.0


class Reporter:
    """Progress of one session, on stderr. Use it as a context manager; outside of it, it says lines only."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = self.console.is_terminal
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._what, self._unit = "", ""
        self._done, self._total, self._offset = 0, 0, 0
        self._started = self._last_line = 0.0
        self._note = ""

    def say(self, line: str) -> None:
        """One plain line."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """A stage with ``total`` units of work, ``done`` of them before this session."""
        self.end()
        self._what, self._unit = what, unit
        self._done, self._total, self._offset = 0, total, done
        self._started = self._last_line = time.monotonic()
        self._note = ""
        if self._live:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._bar = self._progress.add_task(what, total=total, completed=done, note="")
            self._progress.start()

    def advance(self, count: int) -> None:
        """``count`` units of the stage are done."""
        self._done += count
        now = time.monotonic()
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, advance=count, note=f"{self._rate(now)} {self._note}")
        elif now - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = now
            self.say(self._line(now))

    def note(self, note: str) -> None:
        """What stands beside the progress, e.g. how many generations are done."""
        self._note = note

    def end(self) -> None:
        """The stage is over."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._bar = None

    def _rate(self, now: float) -> str:
        per_second = self._done / max(now - self._started, 1e-9)
        return f"{per_second:.0f} {self._unit}/s"

    def _line(self, now: float) -> str:
        elapsed = now - self._started
        left = (self._total - self._offset - self._done) * elapsed / max(self._done, 1)
        share = (self._offset + self._done) / max(self._total, 1)
        return f"{self._what}: {share:.0%}, {self._rate(now)}, about {human_seconds(left)} left {self._note}".rstrip()


def default_reporter() -> Reporter:
    """A reporter on stderr."""
    return Reporter(Console(file=sys.stderr))


def stage(reporter: Reporter, unit: str) -> Callable[[str, int, int], None]:
    """A callback ``(what, done, total)`` that shows one stage of work on ``reporter``."""

    def on_progress(what: str, done: int, total: int) -> None:
        if done == 1:
            reporter.begin(what, total, unit)
        reporter.advance(1)

    return on_progress
