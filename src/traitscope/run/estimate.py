"""What a run will take: seconds, memory and disk, from the model's remembered pace and the run's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from traitscope.captures.opened_writes import MOST_GENERATIONS
from traitscope.model.capture import captured_bytes_per_position
from traitscope.model.facts import ModelFacts
from traitscope.model.sharing import Sharing, shared_by
from traitscope.run.batching import SHARD_BYTES, Batch, run_prefix, turns
from traitscope.run.engine import GenerationTask
from traitscope.run.opening import opened_bytes, opening_bytes
from traitscope.run.pace import Pace

_PROCESS_BYTES = 700_000_000
# As measured with benchmarks/estimates.py, in bytes.
_DISK_PER_SCORE = 1.75
_DISK_PER_WRITE = 3.3
_DISK_PER_TOKEN = 12
_DISK_PER_GENERATION = 3_000
_READERS_AND_STEERERS = 2
_FLOAT64 = 8


@dataclass(frozen=True)
class Estimate:
    """What a run takes if no response ends early. Seconds are None where the model was never timed here.

    ``seconds`` are of generation; ``total_seconds`` also of loading and of the replays that split open layers.
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


def estimate(setting: Setting, tasks: Sequence[GenerationTask], batches: Sequence[Batch], width: int) -> Estimate:
    """What ``batches`` of ``tasks`` take with ``width`` rows in flight."""
    batches = [turn for batch in batches for turn in turns(batch, width)]
    seconds = total = None
    if setting.pace is not None:
        seconds = generation_seconds(setting.pace, tasks, batches, setting.facts.n_layers)
        splitting = splitting_seconds(setting.pace, tasks, setting.facts.n_layers)
        total = round(seconds + setting.pace.loading_seconds + splitting, 3)
        seconds = round(seconds, 3)
    return Estimate(seconds, total, _memory_bytes(setting, tasks, batches), _disk_bytes(setting, batches))


def generation_seconds(pace: Pace, tasks: Sequence[GenerationTask], batches: Sequence[Batch], n_layers: int) -> float:
    """Seconds of the forward passes and of opening layers, if the rows of a batch are in flight together.

    What all prompts begin with is read once.
    """
    seconds = sum(_opening_seconds(pace, task, n_layers) for task in tasks)
    given = [batch for batch in batches if batch[0].response_ids is not None]
    seconds += sum(pace.prefill(1, task.n_prompt + task.most_response_tokens) for batch in given for task in batch)
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


def splitting_seconds(pace: Pace, tasks: Sequence[GenerationTask], n_layers: int) -> float:
    """Seconds of the replays that split open layers for the report; sorting out who wrote most is not in them."""
    opened = [task for task in tasks if task.opened is not None][:MOST_GENERATIONS]
    return sum(_opening_seconds(pace, task, n_layers) for task in opened)


def _batch_seconds(pace: Pace, batch: Batch, sharing: Sharing) -> float:
    n_steps = max(task.max_new_tokens for task in batch)
    context = sharing.n_prefix + sharing.n_fed + n_steps / 2
    reading = pace.prefill(len(sharing.distinct), sharing.n_fed, sharing.n_prefix)
    return reading + n_steps * pace.step(len(batch), context)


def _opening_seconds(pace: Pace, task: GenerationTask, n_layers: int) -> float:
    """A replay ends behind the last open layer."""
    if task.opened is None:
        return 0.0
    share = (1 + max(task.opened.tensors)) / n_layers
    return share * pace.prefill(1, task.n_prompt + task.most_response_tokens)


def _memory_bytes(setting: Setting, tasks: Sequence[GenerationTask], batches: Sequence[Batch]) -> int:
    """The most that is held: by a batch with its captures, or by the proof of the longest generation."""
    itemsize = setting.dtype.itemsize
    working = max((_batch_bytes(setting.facts, batch, itemsize) for batch in batches), default=0)
    working += min(sum(_captured_bytes(setting, batch) for batch in batches), 2 * SHARD_BYTES)
    working += _opened_bytes(setting, batches)
    working = max([working, *(_verifying_bytes(setting, task) for task in tasks)])
    if setting.pace is None:
        return _PROCESS_BYTES + setting.facts.weight_bytes(itemsize) + working
    return setting.pace.resident_bytes + working


def _batch_bytes(facts: ModelFacts, batch: Batch, itemsize: int) -> int:
    longest = max(task.n_prompt + task.most_response_tokens for task in batch)
    if batch[0].response_ids is not None:
        return facts.bytes_per_row(longest, itemsize)
    n_read = shared_by([task.prompt.token_ids for task in batch]).n_fed
    return len(batch) * facts.bytes_per_row(longest, itemsize, n_read)


def _captured_bytes(setting: Setting, batch: Batch) -> int:
    n_positions = sum(task.n_prompt + task.most_response_tokens for task in batch)
    return n_positions * captured_bytes_per_position(setting.n_checkpoints, setting.n_traits)


def _opened_bytes(setting: Setting, batches: Sequence[Batch]) -> int:
    """Open layers of one batch, held as tensors and as the file that they go to, and one pattern being computed."""
    facts, itemsize = setting.facts, setting.dtype.itemsize
    held = max((sum(opened_bytes(facts, itemsize, task) for task in batch) for batch in batches), default=0)
    computing = max((opening_bytes(facts, task) for batch in batches for task in batch), default=0)
    return 2 * held + computing


def _verifying_bytes(setting: Setting, task: GenerationTask) -> int:
    """States of all checkpoints, as the model gives them and in float64, and the response's logits likewise."""
    facts, widths = setting.facts, 2 * setting.dtype.itemsize + _FLOAT64
    states = (task.n_prompt + task.most_response_tokens) * facts.d_model * setting.n_checkpoints
    return widths * (states + task.most_response_tokens * facts.vocab_size)


def _disk_bytes(setting: Setting, batches: Sequence[Batch]) -> int:
    """Vectors, and what the tables come to: scores of tokens that generations share compress to nearly nothing."""
    total = float(_READERS_AND_STEERERS * setting.n_traits * setting.n_checkpoints * setting.facts.d_model * 4)
    for batch in batches:
        prompts = shared_by([task.prompt.token_ids for task in batch])
        shared = prompts.n_prefix * (1 - len(prompts.distinct))
        n_distinct = sum(map(len, prompts.distinct)) + shared + sum(task.most_response_tokens for task in batch)
        n_positions = sum(task.n_prompt + task.most_response_tokens for task in batch)
        per_position = [_disk_per_position(setting, task) for task in batch]
        total += n_distinct * sum(per_position) / len(batch)
        total += n_positions * _DISK_PER_TOKEN + len(batch) * _DISK_PER_GENERATION
        total += sum(opened_bytes(setting.facts, setting.dtype.itemsize, task) for task in batch)
    return int(total)


def _disk_per_position(setting: Setting, task: GenerationTask) -> float:
    scores = len(task.checkpoints) * (1 + len(task.traits)) * _DISK_PER_SCORE
    writes = setting.n_checkpoints * len(task.traits) / 2 * _DISK_PER_WRITE  # they end at R, about half depth
    return scores + writes
