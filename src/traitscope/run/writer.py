"""Shards are written by a thread of its own while the next one is generated."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class ShardWriter:
    """One thread that writes one shard at a time; at most one shard waits in memory.

    What goes wrong there is raised by the next call of ``write`` or ``finish``.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._writing: Future[None] | None = None

    def write(self, commit: Callable[[], None], on_committed: Callable[[], None]) -> None:
        """Wait for the shard before, then let the thread ``commit`` this one."""
        self.finish()
        self._on_committed = on_committed
        self._writing = self._threads.submit(commit)

    def finish(self) -> None:
        """Wait until everything is written; ``on_committed`` is called here, in the caller's thread."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            self._on_committed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let a shard that is being written be committed, whatever ended the work."""
        self._threads.shutdown(wait=True)
