"""Fixing beforehand which generations share a batch and which batches share a shard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from traitscope.model.facts import ModelFacts
from traitscope.model.sharing import common_prefix
from traitscope.run.engine import GenerationTask, even_width
from traitscope.run.memory import free_memory
from traitscope.run.pace import Pace

_WIDEST = {"cuda": 128, "mps": 32, "cpu": 32}
_USABLE_MEMORY = 0.5
_SHARD_SECONDS = 90.0
SHARD_BYTES = 96_000_000
"""Captures of one shard, about; twice that is held, as one shard is written beside the next."""

_OPENED_BYTES = 256_000_000

Batch = tuple[GenerationTask, ...]
"""Generations of one sampling that are computed as one queue: some are in flight, the others wait for their slots."""


@dataclass(frozen=True)
class Shard:
    """The unit of work and of commit: batches of generation ids, and ids that are only recorded."""

    batches: tuple[tuple[str, ...], ...]
    too_long: tuple[str, ...] = ()

    @property
    def n_generations(self) -> int:
        return sum(map(len, self.batches)) + len(self.too_long)

    def described(self) -> dict[str, Any]:
        return {"batches": [list(batch) for batch in self.batches], "too_long": list(self.too_long)}

    @classmethod
    def from_described(cls, described: dict[str, Any]) -> Shard:
        return cls(tuple(tuple(batch) for batch in described["batches"]), tuple(described["too_long"]))


def batch_width(
    facts: ModelFacts,
    device: torch.device,
    itemsize: int,
    tasks: Sequence[GenerationTask],
    pace: Pace | None,
    n_sharing: int = 1,
) -> int:
    """How many rows are generated together: as many as fit in half of the free memory and are still worth it.

    ``n_sharing`` processes on the device share its memory. Worth it is what ``pace`` measured; without it at most 32
    rows (128 on a CUDA device).
    """
    longest = max((task.n_prompt + task.most_response_tokens for task in tasks), default=1)
    most = max(1, min(rows_that_fit(facts, longest, itemsize, free_memory(device) // n_sharing), len(tasks)))
    return min(most, _WIDEST.get(device.type, 32)) if pace is None else pace.best_width(len(tasks), most)


def rows_that_fit(facts: ModelFacts, n_tokens: int, itemsize: int, free_bytes: int) -> int:
    """How many rows of ``n_tokens`` fit in half of ``free_bytes``."""
    return int(free_bytes * _USABLE_MEMORY // facts.bytes_per_row(n_tokens, itemsize))


def most_per_shard(n_generations: int, width: int, n_workers: int) -> int | None:
    """How large shards may be so that ``n_workers`` have about four each; None for one worker, which has no need.

    Not smaller than ``width``, as rows that are generated together share the cost of a step, unless a worker would
    be left without any.
    """
    if n_workers == 1:
        return None
    a_fourth, whole = (max(1, math.ceil(n_generations / n)) for n in (4 * n_workers, n_workers))
    return max(a_fourth, min(width, whole))


def run_prefix(tasks: Iterable[GenerationTask]) -> tuple[int, ...]:
    """The token ids that the prompts of all generated (not given) responses of a run begin with."""
    return common_prefix([task.prompt.token_ids for task in tasks if task.response_ids is None])


def make_batches(
    tasks: Sequence[GenerationTask],
    opened_bytes: Callable[[GenerationTask], int] = lambda _task: 0,
) -> list[Batch]:
    """A batch for each way of choosing tokens, longest prompts first.

    A batch whose open layers take too much (``opened_bytes`` of each task) is cut, as they are held until it is
    committed.
    """

    def settings(task: GenerationTask) -> tuple[Any, ...]:
        sampling = task.sampling
        given = task.response_ids is not None
        # Compiled steps do not push rows, and one that is pushed would keep all others from them.
        return (task.dose is None, task.shares_prompt, given, sampling.temperature, sampling.top_p, sampling.top_k)

    ordered = sorted(tasks, key=lambda task: (settings(task), -task.n_prompt))
    groups = [tuple(group) for _, group in groupby(ordered, key=settings)]
    return [part for group in groups for part in _cut(group, opened_bytes)]


def _cut(batch: Batch, opened_bytes: Callable[[GenerationTask], int]) -> list[Batch]:
    if len(batch) == 1 or sum(map(opened_bytes, batch)) <= _OPENED_BYTES:
        return [batch]
    half = (len(batch) + 1) // 2
    return _cut(batch[:half], opened_bytes) + _cut(batch[half:], opened_bytes)


def turns(batch: Batch, width: int) -> list[Batch]:
    """A batch in parts of at most ``width`` rows, about equally many: what is in flight if all are equally long."""
    even = even_width(len(batch), width)
    return [batch[start : start + even] for start in range(0, len(batch), even)]


def make_shards(
    batches: Sequence[Batch],
    too_long: Sequence[str],
    *,
    width: int,
    shard_size: int | None,
    seconds_per_turn: float | None,
    bytes_of: Callable[[GenerationTask], int],
    most: int | None = None,
) -> list[Shard]:
    """Whole turns until a shard holds ``shard_size`` generations; never more than ``most``.

    Without a size, until it is about a minute and a half of work or its captures (``bytes_of`` each task), which
    stay in memory until the commit, reach ``SHARD_BYTES``; one turn a shard where the time is not known.
    """
    shards: list[Shard] = []
    waiting: list[list[Batch]] = []  # turns, those of a batch together

    def is_full() -> bool:
        inside = [turn for batch in waiting for turn in batch]
        tasks = [task for turn in inside for task in turn]
        if shard_size is not None:
            return len(tasks) >= shard_size
        if seconds_per_turn is None or sum(map(bytes_of, tasks)) >= SHARD_BYTES:
            return True
        return len(inside) * seconds_per_turn >= _SHARD_SECONDS

    def would_overflow(turn: Batch) -> bool:
        n_waiting = sum(len(turn) for batch in waiting for turn in batch)
        return most is not None and n_waiting > 0 and n_waiting + len(turn) > most

    at_a_time = min(size for size in (width, shard_size, most) if size is not None)
    for batch in batches:
        waiting.append([])
        for turn in turns(batch, at_a_time):
            if would_overflow(turn):
                shards.append(_shard(waiting))
                waiting = [[]]
            waiting[-1].append(turn)
            if is_full():
                shards.append(_shard(waiting))
                waiting = [[]]
    if any(waiting) or not shards:
        shards.append(_shard(waiting))
    shards[0] = Shard(shards[0].batches, tuple(too_long))
    return shards


def _shard(batches: Sequence[Sequence[Batch]]) -> Shard:
    joined = (tuple(task.id for turn in batch for task in turn) for batch in batches)
    return Shard(tuple(batch for batch in joined if batch))
