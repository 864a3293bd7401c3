"""How far a session is, written every few seconds, so that ``status`` sees more than committed shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from traitscope.run.events import EventLog

_EVERY_SECONDS = 5.0


@dataclass
class _InHand:
    """Work done of a shard that is not committed: in batches that are finished, and in the one that is not."""

    settled: int = 0
    in_batch: int = 0


class Heartbeat:
    """Counts work and writes a ``progress`` event now and then; between two of them it only looks at the clock.

    The unit of work is the token of the longest response that was asked for, so that a response that ends early
    does not count as work left. Nothing here touches the device.

    Args:
        total, done: work of the whole run, and what of it was committed before this session.
        memory: what the processes hold now, in bytes by name; it must not wait for the device.
    """

    def __init__(self, events: EventLog, *, total: int, done: int, memory: Callable[[], Mapping[str, int]]) -> None:
        self._events = events
        self._total, self._done_before = total, done
        self._memory = memory
        self._settled = self._tokens = 0
        self._in_hand: dict[int, _InHand] = {}
        self._started = self._last_time = time.monotonic()
        self._last_tokens = 0

    def tokens(self, shard: int, count: int) -> None:
        """``count`` tokens were generated in the batch in hand of a shard."""
        self._shard(shard).in_batch += count
        self._tokens += count
        if time.monotonic() - self._last_time >= _EVERY_SECONDS:
            self.beat()

    def batch(self, shard: int, work: int) -> None:
        """A batch is finished, and with it all of its ``work``, however it was split and wherever it ended early."""
        in_hand = self._shard(shard)
        in_hand.settled += work
        in_hand.in_batch = 0

    def committed(self, shard: int, work: int) -> None:
        """A shard is on disk, and with it all of its ``work``."""
        self._in_hand.pop(shard, None)
        self._settled += work

    def lost(self, shard: int) -> None:
        """A shard's worker is gone, and with it what was done of the shard."""
        self._in_hand.pop(shard, None)

    @property
    def done(self) -> int:
        """Work done by this session."""
        in_hand = sum(shard.settled + shard.in_batch for shard in self._in_hand.values())
        return min(self._settled + in_hand, self._total - self._done_before)

    def _shard(self, shard: int) -> _InHand:
        return self._in_hand.setdefault(shard, _InHand())

    def beat(self) -> None:
        """Write how far the session is."""
        now = time.monotonic()
        session_done = self.done
        rate = (self._tokens - self._last_tokens) / max(now - self._last_time, 1e-6)
        values: dict[str, Any] = {
            "done": self._done_before + session_done,
            "total": self._total,
            "session_done": session_done,
            "seconds": round(now - self._started, 3),
            "tokens": self._tokens,
            "tokens_per_second": round(rate, 1),
            **self._memory(),
        }
        self._events.add("progress", **values)
        self._last_time, self._last_tokens = now, self._tokens
