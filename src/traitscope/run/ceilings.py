"""What this machine can do at most, measured: the bandwidth of a large copy, the rate of a large matrix product."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from traitscope.cache import read_cached_json, write_cached_json

_COPY_BYTES = 128_000_000
_SMALLEST_MATRIX, _LARGEST_MATRIX = 256, 8192
_LONG_ENOUGH_SECONDS = 0.02
_MEASURE_SECONDS = 0.3


@dataclass(frozen=True)
class Ceilings:
    """Bytes read per second by a large copy (as many are written), FLOP/s of a large matrix product."""

    copy_bytes_per_second: float
    flops_per_second: float


def measured_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The ceilings of ``device`` in ``dtype``; measured once, then remembered."""
    name = f"ceilings-{device_name(device)}-{str(dtype).removeprefix('torch.')}"
    remembered = read_cached_json("machine", name)
    if remembered is not None:
        return Ceilings(**remembered)
    found = fresh_ceilings(device, dtype)
    write_cached_json("machine", name, asdict(found))
    return found


def fresh_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The ceilings of now, in about a second.

    The best of several tries counts: a ceiling is what the machine can do when nothing else runs.
    """
    return Ceilings(_copy_rate(device), _matrix_rate(device, dtype))


def device_name(device: torch.device) -> str:
    """What this device and its share of the machine are called in file names."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).replace(" ", "-")
    return f"{platform.node()}-{device.type}-{torch.get_num_threads()}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _copy_rate(device: torch.device) -> float:
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return _COPY_BYTES / _fastest(device, lambda: target.copy_(source))


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Of square matrices as large as it takes to keep the device busy for a moment."""
    size = _SMALLEST_MATRIX
    while True:
        left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = _fastest(device, lambda left=left, right=right: left @ right)  # type: ignore[misc]
        if seconds >= _LONG_ENOUGH_SECONDS or size >= _LARGEST_MATRIX:
            return 2 * size**3 / seconds
        size *= 2


def _fastest(device: torch.device, work: Callable[[], object]) -> float:
    work()
    synchronise(device)
    fastest, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _MEASURE_SECONDS:
        started = time.perf_counter()
        work()
        synchronise(device)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
