"""Ctrl-C: once to finish the shard in hand, twice to stop at once; once where nothing can be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """The run was stopped by its user. Exit code 130, as for any program that ends on Ctrl-C.

    No ``except Exception`` may hold it: a batch that is interrupted has not failed. It is no ``KeyboardInterrupt``
    either, which the command line's library ends without a word.
    """

    exit_code = 130


class Interruption:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.stops_at_once = False

    @contextmanager
    def stopping_at_once(self) -> Iterator[None]:
        """Work that the run can do without: the first signal raises ``Interrupted``, and so does an earlier one."""
        self.stops_at_once = True
        try:
            if self.asked:
                raise Interrupted("stopped")
            yield
        finally:
            self.stops_at_once = False


@contextmanager
def listening(say: Callable[[str], None], resume_hint: str) -> Iterator[Interruption]:
    """Listen for SIGINT and SIGTERM inside the block.

    The first one sets ``asked``; the second one raises ``Interrupted`` wherever the program is. Inside
    ``stopping_at_once`` the first one does.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def on_signal(_signal: int, _frame: Any) -> None:
        if interruption.stops_at_once:
            raise Interrupted("stopped")
        if interruption.asked:
            raise Interrupted(f"stopped at once; the shard in hand is lost, all others are safe. {resume_hint}")
        interruption.asked = True
        say(f"stopping when the shard in hand is finished; again to stop at once. {resume_hint}")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
