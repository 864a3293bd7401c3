"""Fixing beforehand which generations share a batch and which batches share a shard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psutil
import torch

from traitscope.model.facts import ModelFacts
from traitscope.model.sharing import common_prefix
from traitscope.run.engine import GenerationTask

_WIDEST = {"cuda": 128, "mps": 32, "cpu": 32}
_USABLE_MEMORY = 0.5
_SHARD_SECONDS = 90.0
_SHARD_BYTES = 24_000_000


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


def widest_batch(
    facts: ModelFacts, device: torch.device, itemsize: int, n_tokens: int, memory: int | None = None
) -> int:
    """How many rows of ``n_tokens`` fit in half of the free memory, at most 32 (128 on a CUDA device)."""
    free = free_memory(device) if memory is None else memory
    per_row = facts.bytes_per_row(n_tokens, itemsize)
    return max(1, min(_WIDEST.get(device.type, 32), int(free * _USABLE_MEMORY // per_row)))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device that computes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def run_prefix(tasks: Iterable[GenerationTask]) -> tuple[int, ...]:
    """The token ids that the prompts of all generated (not given) responses of a run begin with."""
    return common_prefix([task.prompt.token_ids for task in tasks if task.response_ids is None])


def make_batches(tasks: Sequence[GenerationTask], width: int) -> list[tuple[GenerationTask, ...]]:
    """Batches of at most ``width`` rows with equal settings, longest prompts first, about equally wide."""

    def settings(task: GenerationTask) -> tuple[Any, ...]:
        sampling = task.sampling
        given = task.response_ids is not None
        return (given, task.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k)

    batches: list[tuple[GenerationTask, ...]] = []
    ordered = sorted(tasks, key=lambda task: (settings(task), -task.n_prompt))
    for _, group in groupby(ordered, key=settings):
        rows = list(group)
        n_batches = math.ceil(len(rows) / width)
        even = math.ceil(len(rows) / n_batches)
        batches += [tuple(rows[start : start + even]) for start in range(0, len(rows), even)]
    return batches


def make_shards(
    batches: Sequence[tuple[GenerationTask, ...]],
    too_long: Sequence[str],
    *,
    shard_size: int | None,
    seconds_per_batch: float | None,
    bytes_per_position: int,
) -> list[Shard]:
    """Whole batches until a shard holds ``shard_size`` generations.

    Without a size, until it is about a minute and a half of work or its captures, which stay in memory until
    the commit, reach some megabytes; one batch a shard where the time is not known.
    """
    shards: list[Shard] = []
    waiting: list[tuple[GenerationTask, ...]] = []

    def is_full() -> bool:
        tasks = [task for batch in waiting for task in batch]
        if shard_size is not None:
            return len(tasks) >= shard_size
        n_positions = sum(task.n_prompt + task.most_response_tokens for task in tasks)
        if seconds_per_batch is None or n_positions * bytes_per_position >= _SHARD_BYTES:
            return True
        return len(waiting) * seconds_per_batch >= _SHARD_SECONDS

    for batch in batches:
        waiting.append(batch)
        if is_full():
            shards.append(_shard(waiting))
            waiting = []
    if waiting or not shards:
        shards.append(_shard(waiting))
    shards[0] = Shard(shards[0].batches, tuple(too_long))
    return shards


def _shard(batches: Sequence[tuple[GenerationTask, ...]]) -> Shard:
    return Shard(tuple(tuple(task.id for task in batch) for batch in batches))
