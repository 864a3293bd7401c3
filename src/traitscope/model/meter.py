"""How much the model's forward passes did and how long they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ForwardWork:
    """Forward passes, the tokens that they read (padding included), the rows of logits, and seconds."""

    passes: int = 0
    tokens: int = 0
    logit_rows: int = 0
    seconds: float = 0.0

    def __sub__(self, earlier: ForwardWork) -> ForwardWork:
        return ForwardWork(
            self.passes - earlier.passes,
            self.tokens - earlier.tokens,
            self.logit_rows - earlier.logit_rows,
            self.seconds - earlier.seconds,
        )

    def __add__(self, other: ForwardWork) -> ForwardWork:
        return ForwardWork(
            self.passes + other.passes,
            self.tokens + other.tokens,
            self.logit_rows + other.logit_rows,
            self.seconds + other.seconds,
        )


class ForwardMeter:
    """Counts forward passes; on a CUDA device they are timed there, as the host does not wait for them."""

    def __init__(self) -> None:
        self._passes = self._tokens = self._logit_rows = 0
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measuring(self, input_ids: torch.Tensor, logits_to_keep: int) -> Iterator[None]:
        """Count one pass over ``input_ids`` ``[batch, seq]``, also one that ends early; ``logits_to_keep`` 0 stands
        for all."""
        batch, length = input_ids.shape
        self._passes += 1
        self._tokens += batch * length
        self._logit_rows += batch * (min(logits_to_keep, length) or length)
        if input_ids.device.type != "cuda":
            started = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - started
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(input_ids.device)
        begin.record(stream)
        try:
            yield
        finally:
            end.record(stream)
            self._pending.append((begin, end))

    def work(self) -> ForwardWork:
        """All passes so far; waits for a CUDA device."""
        if self._pending:
            self._pending[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._pending) / 1000
            self._pending.clear()
        return ForwardWork(self._passes, self._tokens, self._logit_rows, self._seconds)
