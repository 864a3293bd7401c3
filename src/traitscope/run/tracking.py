"""A sink for experiment trackers. Off by default; whatever a tracker does, the run goes on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self, cast

from traitscope.errors import InputError, one_line_of

log = logging.getLogger(__name__)

_PACKAGES = ("trackio", "wandb")
_PROJECT = "traitscope"


class Tracker(Protocol):
    """What the modules ``wandb`` and ``trackio`` have in common."""

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> Any:
        """A run begins."""

    def log(self, metrics: dict[str, Any], *, step: int) -> Any:
        """Numbers of one step; steps only grow."""

    def finish(self) -> Any:
        """The run is over; what was logged is to be kept."""


def find_tracker(reference: str) -> Tracker:
    """``trackio``, ``wandb``, or your own as ``module:object``.

    Raises:
        InputError: it is not installed, cannot be imported, or is no tracker; names the fix.
    """
    module_name, _, name = reference.partition(":")
    if not name and module_name not in _PACKAGES:
        raise InputError(f"--track {reference}: use {', '.join(_PACKAGES)} or module:object")
    found = _imported(reference, module_name)
    if name and not hasattr(found, name):
        raise InputError(f"--track {reference}: module {module_name} has no {name}")
    tracker = getattr(found, name) if name else found
    if isinstance(tracker, type):
        raise InputError(f"--track {reference}: {name} is a class; name an object of it")
    if absent := [method for method in ("init", "log", "finish") if not callable(getattr(tracker, method, None))]:
        raise InputError(f"--track {reference}: it has no function {absent[0]}; a tracker has init, log and finish")
    return cast(Tracker, tracker)


def _imported(reference: str, module_name: str) -> Any:
    try:
        with _aside():
            return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise InputError(f"--track {reference}: cannot be imported: {one_line_of(error)}") from None
        fix = (
            f"install it with: pip install {module_name}"
            if module_name in _PACKAGES
            else "is its folder on PYTHONPATH?"
        )
        raise InputError(f"--track {reference}: there is no module {error.name}; {fix}") from None
    except Exception as error:
        raise InputError(f"--track {reference}: cannot be imported: {one_line_of(error)}") from None


class Tracking:
    """What is said to a tracker during one session, or to nobody if there is none.

    The first failure of the tracker is one warning, after which it is left alone. Use it as a context manager, so that
    ``finish`` is called however the run ends.
    """

    def __init__(self, tracker: Tracker | None = None) -> None:
        self._tracker = tracker
        self._has_begun = False
        self._step = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody listens, so that figures for nobody need not be computed."""
        return self._tracker is not None

    def begin(self, name: str, config: Mapping[str, Any], *, step: int) -> None:
        """A session of the run ``name`` begins, ``step`` shards after the run did."""
        self._step = step
        self._has_begun = True
        self._tell(lambda tracker: tracker.init(project=_PROJECT, name=name, config=dict(config)))

    def shard(self, metrics: Callable[[], Mapping[str, float]]) -> None:
        """A shard was committed."""
        self._step += 1
        self._tell(lambda tracker: tracker.log(dict(metrics()), step=self._step))

    def summary(self, metrics: Callable[[], Mapping[str, float]]) -> None:
        """The run is complete. It stands at the last shard's step plus one: a step that was logged is closed."""
        if self._has_begun:
            self._tell(lambda tracker: tracker.log(dict(metrics()), step=self._step + 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_begun:
            self._tell(lambda tracker: tracker.finish())

    def _tell(self, call: Callable[[Tracker], Any]) -> None:
        if self._tracker is None:
            return
        try:
            with _aside():
                call(self._tracker)
        except (Exception, SystemExit) as error:
            self._tracker = None
            log.warning("the tracker failed (%s) and gets nothing more; the run goes on", one_line_of(error))


@contextmanager
def _aside() -> Iterator[None]:
    """What a tracker prints goes to stderr, as results go to stdout; and it finds nobody to answer a question, such as
    for a password, that would hold up a night."""
    stdin = sys.stdin
    with open(os.devnull) as nobody, redirect_stdout(sys.stderr):  # noqa: PTH123
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = stdin
