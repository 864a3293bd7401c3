"""Several devices of one machine: which ones are meant, and how their workers share what there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import torch

from traitscope.errors import InputError
from traitscope.model.loading import choose_device

_EXAMPLE = "e.g. --devices cuda:0,cuda:1"


def choose_devices(given: str) -> tuple[torch.device, ...]:
    """The devices of a list such as ``cuda:0,cuda:1``, one for each worker; one may stand there more than once.

    Raises:
        InputError: none, unknown, not available here, or of different kinds.
    """
    names = [name.strip() for name in given.split(",")]
    if not all(names) or "auto" in names:
        raise InputError(f"--devices {given!r}: name one device for each worker, {_EXAMPLE}")
    devices = tuple(map(_numbered, map(choose_device, names)))
    if len({device.type for device in devices}) > 1:
        raise InputError(
            f"--devices {given!r}: name devices of one kind, as no number may depend on which worker computed it"
        )
    return devices


def still_there(names: Sequence[str]) -> tuple[torch.device, ...]:
    """Those of a run's devices that this machine has.

    Raises:
        InputError: none.
    """
    found = []
    for name in names:
        with suppress(InputError):
            found.append(choose_device(name))
    if not found:
        raise InputError(f"device {', '.join(names)}: not available on this machine; name others with --devices")
    return tuple(found)


def _numbered(device: torch.device) -> torch.device:
    """``cuda`` and ``cuda:0`` are the same one."""
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def most_on_one(devices: Sequence[torch.device]) -> int:
    """How many workers share the device that has most of them."""
    return max(Counter(map(str, devices)).values())


def at_once(devices: Sequence[torch.device]) -> int:
    """By how much time is divided: devices work beside each other, but workers on one device share what it can do."""
    return len(set(map(str, devices)))
