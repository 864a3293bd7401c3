"""How much memory there is, how much the process holds, and what to do when it runs out."""

from __future__ import annotations

import gc

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device that computes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def total_memory(device: torch.device) -> int:
    """Bytes that the device that computes has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return psutil.virtual_memory().total


def held_where_computed(device: torch.device) -> int:
    """Bytes that are held now where the model computes: by tensors on a CUDA device, else by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_device_memory_bytes() -> int | None:
    """The most memory that was allocated on CUDA devices; None where there is none."""
    if not torch.cuda.is_available():
        return None
    return sum(torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count()))


def held_bytes() -> dict[str, int]:
    """What this process holds now: ``resident_bytes``, and ``device_bytes`` of tensors on CUDA devices.

    Neither waits for the device.
    """
    held = {"resident_bytes": psutil.Process().memory_info().rss}
    if torch.cuda.is_available():
        held["device_bytes"] = sum(torch.cuda.memory_allocated(n) for n in range(torch.cuda.device_count()))
    return held


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might not raise this."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
