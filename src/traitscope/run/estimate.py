"""What a run will take: seconds, memory and disk, from the model's remembered pace and the run's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from traitscope.model.capture import captured_bytes_per_position
from traitscope.model.facts import ModelFacts
from traitscope.model.sharing import Sharing, shared_by
from traitscope.run.batching import Batch, run_prefix
from traitscope.run.engine import GenerationTask
from traitscope.run.pace import Pace

_PROCESS_BYTES = 700_000_000
# As measured on three suites of the embedded model, see docs/performance.md.
_DISK_BYTES_PER_SCORE = 1.6
_DISK_BYTES_PER_WRITE = 3.0
_DISK_BYTES_PER_TOKEN = 12
_DISK_BYTES_PER_GENERATION = 3_000
_READERS_AND_STEERERS = 2


@dataclass(frozen=True)
class Estimate:
    """What a run takes if no response ends early. Seconds are None where the model was never timed here.

    ``seconds`` are of generation; ``total_seconds`` also of loading.
    """

    seconds: float | None
    total_seconds: float | None
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Setting:
    """What an estimate depends on beside the generations."""

    facts: ModelFacts
    dtype: torch.dtype
    n_traits: int
    n_checkpoints: int
    pace: Pace | None


def estimate(setting: Setting, tasks: Sequence[GenerationTask], batches: Sequence[Batch]) -> Estimate:
    """What ``batches`` of ``tasks`` take."""
    seconds = total = None
    if setting.pace is not None:
        seconds = generation_seconds(setting.pace, tasks, batches)
        total = round(seconds + setting.pace.loading_seconds, 3)
        seconds = round(seconds, 3)
    return Estimate(seconds, total, _memory_bytes(setting, batches), _disk_bytes(setting, tasks))


def generation_seconds(pace: Pace, tasks: Sequence[GenerationTask], batches: Sequence[Batch]) -> float:
    """Seconds of the forward passes of all batches; what all prompts begin with is read once."""
    given = [batch for batch in batches if batch[0].response_ids is not None]
    seconds = sum(pace.prefill(1, task.n_prompt + task.most_response_tokens) for batch in given for task in batch)
    prefix = run_prefix(tasks)
    read: set[tuple[int, ...]] = set()
    for batch in (batch for batch in batches if batch[0].response_ids is None):
        sharing = shared_by([task.prompt.token_ids for task in batch], prefix)
        shared = sharing.distinct[0][: sharing.n_prefix]
        if shared and not (shared == prefix and shared in read):
            seconds += pace.prefill(1, len(shared))
        read.add(shared)
        seconds += _batch_seconds(pace, batch, sharing)
    return seconds


def _batch_seconds(pace: Pace, batch: Batch, sharing: Sharing) -> float:
    n_steps = batch[0].max_new_tokens
    context = sharing.n_prefix + sharing.n_fed + n_steps / 2
    reading = pace.prefill(len(sharing.distinct), sharing.n_fed, sharing.n_prefix)
    return reading + n_steps * pace.step(len(batch), context)


def _memory_bytes(setting: Setting, batches: Sequence[Batch]) -> int:
    itemsize = setting.dtype.itemsize
    rows_bytes = max((batch_bytes(setting.facts, batch, itemsize) for batch in batches), default=0)
    captured = max((_positions(batch) for batch in batches), default=0)
    captured *= captured_bytes_per_position(setting.n_checkpoints, setting.n_traits)
    if setting.pace is None:
        return _PROCESS_BYTES + setting.facts.weight_bytes(itemsize) + rows_bytes + captured
    return max(setting.pace.peak_loading_bytes, setting.pace.resident_bytes + rows_bytes + captured)


def batch_bytes(facts: ModelFacts, batch: Batch, itemsize: int) -> int:
    """Working memory of one batch."""
    longest = max(task.n_prompt + task.most_response_tokens for task in batch)
    if batch[0].response_ids is not None:
        return facts.bytes_per_row(longest, itemsize)
    return len(batch) * facts.bytes_per_row(longest, itemsize)


def _positions(tasks: Sequence[GenerationTask]) -> int:
    return sum(task.n_prompt + task.most_response_tokens for task in tasks)


def _disk_bytes(setting: Setting, tasks: Sequence[GenerationTask]) -> int:
    total = float(_READERS_AND_STEERERS * setting.n_traits * setting.n_checkpoints * setting.facts.d_model * 4)
    for task in tasks:
        n_positions = task.n_prompt + task.most_response_tokens
        total += n_positions * len(task.checkpoints) * (1 + len(task.traits)) * _DISK_BYTES_PER_SCORE
        written = n_positions * setting.n_checkpoints * len(task.traits) / 2  # writes end at R, about half depth
        total += written * _DISK_BYTES_PER_WRITE
        total += n_positions * _DISK_BYTES_PER_TOKEN + _DISK_BYTES_PER_GENERATION
    return int(total)
