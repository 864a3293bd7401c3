"""Where the jobs of a run are done: in this process, by several processes of this machine, or by what you put here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from traitscope.run.memory import held_bytes
from traitscope.run.messages import Job, Tell
from traitscope.run.workbench import Workbench


class Executor(Protocol):
    """Does the jobs of one frozen run.

    Its user, the coordinator, holds the run's lock, knows what is missing and writes ``run.json`` and events. What
    crosses this interface are the plain values of ``run.messages``; what is captured goes from the worker into the
    run directory.

    To let a cluster engine take its place, run ``Workbench(read_frozen(run_dir), model_of_run(run_dir), tell).do(job)``
    in its workers (an actor of Ray, a task of SLURM), on a disk that all of them see, bring their reports back to
    ``tell``, and answer for lost workers as ``workers.WorkerPool`` does: a job has a second try, then ``JobGivenUp``.
    """

    def run(self, jobs: Sequence[Job], tell: Tell, stopping: Callable[[], bool]) -> None:
        """Do all jobs and ``tell`` of each step, in this thread. Once ``stopping``, only finish those that are begun.

        Raises:
            RunError, InputError: no job can be done any more.
        """

    def held(self) -> dict[str, int]:
        """Memory that all its processes hold now, in bytes by name; does not wait for any device."""

    def close(self) -> None:
        """End its processes, at once."""


class InProcess:
    """This process does one job after another; a shard is written while the next one is generated."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    def run(self, jobs: Sequence[Job], tell: Tell, stopping: Callable[[], bool]) -> None:
        with self._workbench.telling(tell):
            for job in jobs:
                self._workbench.do(job)
                if stopping():
                    break

    def held(self) -> dict[str, int]:
        return held_bytes()

    def close(self) -> None:
        """There is no process but this one."""
