"""The two ways in which traitscope stops: the input was wrong, or the run failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TraitscopeError(Exception):
    """Base of every error that is shown as one line instead of a traceback."""

    exit_code = 1


class InputError(TraitscopeError):
    """Something that the user gave is wrong; the message names it and the fix. Exit code 2."""

    exit_code = 2


class RunError(TraitscopeError):
    """A run that started could not go on; the message says what is safe. Exit code 1."""


class DeviceFailedError(RunError):
    """The device computes nothing any more in this process; another one may find it in order."""


def near_names(name: str, known: Iterable[str]) -> str:
    """A half sentence that offers the known names nearest to ``name``."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}" if known else "none are known"


def one_line_of(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
