"""One process works on a run directory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from traitscope.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PATIENCE_SECONDS = 0.5  # one that only looks whether the lock is held has it for much less


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's operating-system lock; a killed process loses it by itself.

    Raises:
        InputError: another process holds it.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE_SECONDS)
    except Timeout:
        raise InputError(
            f"run {run_dir}: another process is working on it; wait for it, or watch it with: "
            f"traitscope status {run_dir} --watch"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(run_dir: Path) -> bool:
    """Whether a living process is working on the run. Nothing is written, and the lock is not kept."""
    path = run_dir / ".lock"
    if not path.exists():
        return False
    return _is_locked_elsewhere(path) if fcntl is None else not _can_be_shared(path)


def _can_be_shared(path: Path) -> bool:
    """A shared lock, so that two who look do not take each other for a run."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_locked_elsewhere(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False
