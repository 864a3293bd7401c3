"""Telling a listener how far a stage of work is."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how many units of it are done, and how many there are."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """The listener of who does not listen."""


class Counter:
    """Counts the units of one stage; called once a unit, or with a number of them."""

    def __init__(self, on_progress: OnProgress, what: str, total: int) -> None:
        self._on_progress, self._what, self._done, self._total = on_progress, what, 0, total

    def __call__(self) -> None:
        self._done += 1
        self._on_progress(self._what, self._done, self._total)
