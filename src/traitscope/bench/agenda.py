"""What the bench does now and how long it will still take, on stderr."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from traitscope.run.progress import Reporter
from traitscope.units import human_seconds


class Agenda:
    """Counts down the pieces of work of each kind.

    A kind that was timed before takes as long again; the others are guessed from ``weights`` (relative durations)
    at the pace of what was timed so far.
    """

    def __init__(self, reporter: Reporter, planned: Mapping[str, int], weights: Mapping[str, float]) -> None:
        self._reporter = reporter
        self._left = Counter(planned)
        self._total = self._left.total()
        self._weights = weights
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def doing(self, kind: str, what: str) -> Iterator[None]:
        """Say what begins now, and remember how long it took."""
        number = self._total - self._left.total() + 1
        left = self.seconds_left()
        until = "" if left is None else f" (about {human_seconds(left)} left)"
        self._reporter.say(f"[{number}/{self._total}] {what}{until}")
        started = time.perf_counter()
        yield
        self._seconds.setdefault(kind, []).append(time.perf_counter() - started)
        self._left[kind] -= 1

    def drop(self, kind: str) -> None:
        """One piece of ``kind`` turned out not to be needed."""
        self._left[kind] -= 1
        self._total -= 1

    def seconds_left(self) -> float | None:
        """What is left, this piece included; None before anything was timed."""
        if not self._seconds:
            return None
        spent = sum(map(sum, self._seconds.values()))
        weight = sum(self._weights[kind] * len(seconds) for kind, seconds in self._seconds.items())
        return sum(count * self._seconds_of(kind, spent / weight) for kind, count in self._left.items())

    def _seconds_of(self, kind: str, pace: float) -> float:
        timed = self._seconds.get(kind)
        return sum(timed) / len(timed) if timed else self._weights[kind] * pace
