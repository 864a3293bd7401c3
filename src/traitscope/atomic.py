"""Writing a file so that a kill at any moment leaves the old one, the new one, or a temporary leftover."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.tmp")


def write_atomically(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Let ``fill`` write a temporary file beside ``path``, sync it, rename it to ``path``, sync the directory.

    The temporary name carries host and process id. On an error the temporary file is removed.

    Raises:
        OSError: as the operating system gives it.
    """
    unfinished = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def is_dead_temporary(path: Path) -> bool:
    """Whether ``path`` is a temporary file of a process of this host that lives no more."""
    matched = _TEMPORARY.fullmatch(path.name)
    return matched is not None and matched["host"] == _host() and not psutil.pid_exists(int(matched["pid"]))


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
