"""Finding the way in which a contender is fastest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from contenders import Worker
from ways import Order, Way


class Tries:
    """Runs of a worker in several ways, each at least ``n_runs`` times."""

    def __init__(self, worker: Worker, n_runs: int) -> None:
        self._worker = worker
        self._n_runs = n_runs
        self._seconds: dict[Way, list[float]] = defaultdict(list)

    def run(self, way: Way, keep: Path | None = None) -> None:
        """One run, whose rows go to ``keep``."""
        self._seconds[way].append(self._worker.run(way, keep))

    def try_all(self, orders: Sequence[Order], widths: Sequence[int], n_prompts: int) -> None:
        """All widths in the first order, then the other orders at the fastest width; one batch of all has no order."""
        for width in widths:
            self._complete(Way(width, orders[0]))
        width = self.best.width
        for order in orders[1:] if width < n_prompts else ():
            self._complete(Way(width, order))

    def _complete(self, way: Way) -> None:
        while len(self._seconds[way]) < self._n_runs:
            self.run(way)

    @property
    def fastest(self) -> dict[Way, float]:
        """Seconds of the fastest run of each way."""
        return {way: min(seconds) for way, seconds in self._seconds.items()}

    @property
    def best(self) -> Way:
        return min(self._seconds, key=lambda way: min(self._seconds[way]))
