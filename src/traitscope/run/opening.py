"""What open layers take: bytes on disk, bytes while they are computed, and whether that fits."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from traitscope.errors import InputError
from traitscope.model.facts import ModelFacts
from traitscope.run.engine import GenerationTask
from traitscope.run.memory import total_memory
from traitscope.units import human_bytes

_FLOAT32 = 4
_PATTERNS_AT_ONCE = 3
"""Logits, their masked copy and the weights of one layer, all float32, while a pattern is computed."""


def opened_bytes(facts: ModelFacts, itemsize: int, task: GenerationTask) -> int:
    """What is kept of a task's open layers if its response does not end early; the model's dtype has ``itemsize``."""
    if task.opened is None:
        return 0
    size = _FLOAT32 if task.opened.float32 else itemsize
    n_tokens = task.n_prompt + task.most_response_tokens
    return sum(facts.open_layer_values(names, n_tokens) for names in task.opened.tensors.values()) * size


def opening_bytes(facts: ModelFacts, task: GenerationTask) -> int:
    """The most that computing one open layer's pattern holds at a time."""
    if task.opened is None or not any("pattern" in names for names in task.opened.tensors.values()):
        return 0
    n_tokens = task.n_prompt + task.most_response_tokens
    return _PATTERNS_AT_ONCE * _FLOAT32 * facts.n_heads * n_tokens**2


def refuse_too_large(facts: ModelFacts, itemsize: int, device: torch.device, tasks: Sequence[GenerationTask]) -> None:
    """Refuse open layers that the memory cannot hold.

    Raises:
        InputError: says how much the largest generation takes, how much there is, and what to change.
    """
    host = total_memory(torch.device("cpu"))
    for task in tasks:
        kept, computing = 2 * opened_bytes(facts, itemsize, task), opening_bytes(facts, task)
        n_tokens = task.n_prompt + task.most_response_tokens
        advice = "open fewer layers, leave pattern out of keep, or shorten the generation"
        if device.type == "cpu" and kept + computing > host:
            raise InputError(
                f"internals: a generation of {n_tokens} tokens takes {human_bytes(kept + computing)} of memory, this "
                f"machine has {human_bytes(host)}; {advice}"
            )
        if device.type != "cpu" and (kept > host or computing > total_memory(device)):
            raise InputError(
                f"internals: a generation of {n_tokens} tokens takes {human_bytes(kept)} of memory and "
                f"{human_bytes(computing)} on the device, which have {human_bytes(host)} and "
                f"{human_bytes(total_memory(device))}; {advice}"
            )


def refuse_full_disk(out: Path, n_bytes: int) -> None:
    """Refuse open layers of ``n_bytes`` in all that the disk of ``out``, or of its nearest parent, has no room for.

    Raises:
        InputError: says how much they take and how much there is.
    """
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise InputError(
            f"internals: the open layers take {human_bytes(n_bytes)}, {there} has {human_bytes(free)} free; open fewer "
            "layers, keep fewer tensors, or choose another --out"
        )
