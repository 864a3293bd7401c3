"""What a session spent on a run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from traitscope.memory import peak_resident_bytes
from traitscope.model.meter import ForwardWork
from traitscope.run.memory import peak_device_memory_bytes
from traitscope.run.messages import ShardCost


@dataclass
class SessionCost:
    """The cost of all processes of a session together. Seconds by kind of work; bytes.

    ``generating_wall_seconds`` are the clock's, where ``seconds`` are summed over workers; peaks are of the process
    that held most; ``utilisation`` and ``verdict`` are those objects as mappings.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    generating_wall_seconds: float = 0.0
    devices: Sequence[str] = ()
    lost_workers: int = 0
    model_loads: int = 0
    generated_tokens: int = 0
    work: ForwardWork = field(default_factory=ForwardWork)
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int | None = None
    utilisation: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spend(kind, time.perf_counter() - started)

    def loaded(self, seconds: float) -> None:
        """A model was loaded."""
        self.model_loads += 1
        self._spend("loading", seconds)

    def shard(self, cost: ShardCost) -> None:
        """A shard was committed."""
        self._spend("generating", cost.generating_seconds)
        self._spend("writing", cost.writing_seconds)
        self.generated_tokens += cost.generated_tokens
        if cost.work is not None:
            self.work += ForwardWork(**cost.work)  # type: ignore[arg-type]
        self.peak_memory_bytes = max(self.peak_memory_bytes, cost.peak_memory_bytes)
        self._note_device_peak(cost.peak_device_memory_bytes)

    def described(self, ended_by: str) -> dict[str, Any]:
        self._note_device_peak(peak_device_memory_bytes())
        return {
            "began": self.began,
            "ended_by": ended_by,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "devices": list(self.devices),
            "lost_workers": self.lost_workers,
            "model_loads": self.model_loads,
            "seconds": {kind: round(seconds, 3) for kind, seconds in self.seconds.items()},
            "generating_wall_seconds": round(self.generating_wall_seconds, 3),
            "peak_memory_bytes": max(self.peak_memory_bytes, peak_resident_bytes()),
            "peak_device_memory_bytes": self.peak_device_memory_bytes,
            "generated_tokens": self.generated_tokens,
            "forward": asdict(self.work),
            "utilisation": self.utilisation,
            "verify": self.verdict,
        }

    def _spend(self, kind: str, seconds: float) -> None:
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def _note_device_peak(self, peak: int | None) -> None:
        if peak is not None:
            self.peak_device_memory_bytes = max(self.peak_device_memory_bytes or 0, peak)
