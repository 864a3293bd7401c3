"""One process works on a run directory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from traitscope.errors import InputError


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's operating-system lock; a killed process loses it by itself.

    Raises:
        InputError: another process holds it.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"run {run_dir}: another process is working on it; wait for it, or watch it with: "
            f"traitscope status {run_dir}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(run_dir: Path) -> bool:
    """Whether a living process is working on the run."""
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False
