"""Several processes of this machine do the jobs of a run, one for each device; one that dies costs nothing but time."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pyarrow.parquet as pq
import torch

from traitscope.captures.files import committed_shards, shard_file
from traitscope.errors import InputError, RunError
from traitscope.run.commit import remove_leftovers
from traitscope.run.memory import held_bytes
from traitscope.run.messages import (
    CommitJob,
    Committed,
    DeviceGivenUp,
    Ending,
    Held,
    Job,
    JobGivenUp,
    Ready,
    Refused,
    Report,
    ShardJob,
    Tell,
    WorkerLost,
    WorkerStarted,
    from_line,
    to_line,
)

_COMMAND = (sys.executable, "-m", "traitscope.run.worker")
_LOOK_EVERY_SECONDS = 0.25
_MOST_TRIES = 2
_MOST_FRUITLESS_WORKERS = 2
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Task:
    """A job and how many workers it has lost."""

    job: Job
    lost: int = 0

    @property
    def is_suspect(self) -> bool:
        """Its worker died, perhaps of it: it is done alone, so that another death is certainly its own."""
        return self.lost > 0


@dataclass
class _Slot:
    """A device's place for one worker; ``fruitless`` workers ended in a row without finishing anything."""

    device: torch.device
    worker: _Worker | None = None
    fruitless: int = 0
    given_up: bool = False


@dataclass(eq=False)
class _Worker:
    """A process, what it has in hand (at most one shard that is written and one that is generated), what it said."""

    process: subprocess.Popen[str]
    in_hand: list[_Task] = field(default_factory=list)
    is_idle: bool = False
    was_fruitful: bool = False
    last_words: str | None = None
    held: dict[str, int] = field(default_factory=dict)

    def send(self, job: Job) -> None:
        """A worker that is gone reads nothing; that it is gone is told by the end of what it says."""
        assert self.process.stdin is not None
        self.is_idle = False
        with suppress(OSError):
            self.process.stdin.write(to_line(job))
            self.process.stdin.flush()

    def finish(self, shard: int) -> None:
        """A shard is committed."""
        self.was_fruitful = True
        self.in_hand = [task for task in self.in_hand if _shards_of([task]) != (shard,)]

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.end()

    def end(self) -> str:
        """Wait for the process, which speaks no more; says why it ended."""
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        if self.last_words is not None:
            return self.last_words
        if code >= 0:
            return f"exit code {code}"
        return f"killed by {next((name.name for name in signal.Signals if name == -code), f'signal {-code}')}"


class WorkerPool:
    """An ``executor.Executor`` of one process a device.

    A job whose worker ends has a second try, alone; after that it is given up. A device on which two workers in a row
    end without having finished anything, on different jobs or while they load, gets no third one.

    Args:
        run_dir: of the frozen run; this process holds its lock.
        devices: one for each worker. The threads of this process are divided among them.
    """

    def __init__(self, run_dir: Path, devices: Sequence[torch.device]) -> None:
        self._run_dir = run_dir
        self._slots = [_Slot(device) for device in devices]
        self._threads = max(1, torch.get_num_threads() // len(devices))
        self._inbox: queue.Queue[tuple[_Slot, _Worker, Report | None]] = queue.Queue()
        self._tasks: deque[_Task] = deque()

    def run(self, jobs: Sequence[Job], tell: Tell, stopping: Callable[[], bool]) -> None:
        self._tell = tell
        self._tasks = deque(map(_Task, jobs))
        while self._in_hand() or (self._tasks and not stopping()):
            if not stopping():
                self._staff()
            self._hand_out(stopping())
            with suppress(queue.Empty):
                self._take(*self._inbox.get(timeout=_LOOK_EVERY_SECONDS))

    def held(self) -> dict[str, int]:
        total = held_bytes()
        for worker in self._workers():
            for name, size in worker.held.items():
                total[name] = total.get(name, 0) + size
        return total

    def close(self) -> None:
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.kill()
                slot.worker = None

    def _workers(self) -> list[_Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def _in_hand(self) -> bool:
        return any(worker.in_hand for worker in self._workers())

    def _staff(self) -> None:
        """Start workers as long as jobs wait that nobody is free for."""
        n_free = sum(not worker.in_hand for worker in self._workers())
        for slot in self._slots:
            if n_free < len(self._tasks) and slot.worker is None and not slot.given_up:
                self._start(slot)
                n_free += 1

    def _start(self, slot: _Slot) -> None:
        process = subprocess.Popen(
            [*_COMMAND, str(self._run_dir), str(slot.device), str(self._threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self._threads))},
            start_new_session=True,  # Ctrl-C on a terminal reaches this process alone
        )
        slot.worker = _Worker(process)
        assert process.stdout is not None
        threading.Thread(target=self._listen, args=(slot, slot.worker, process.stdout), daemon=True).start()
        self._tell(WorkerStarted(str(slot.device), process.pid))

    def _listen(self, slot: _Slot, worker: _Worker, stream: IO[str]) -> None:
        """Bring a worker's reports into the inbox, and None when it has ended, in a thread of its own."""
        try:
            for line in stream:
                self._inbox.put((slot, worker, from_line(line)))
        except ValueError:  # a torn line is its last one
            worker.process.kill()
        self._inbox.put((slot, worker, None))

    def _hand_out(self, stopping: bool) -> None:
        for worker in self._workers():
            if worker.is_idle:
                task = self._tasks[0] if self._tasks and not stopping else None
                if worker.in_hand and (task is None or task.is_suspect or worker.in_hand[-1].is_suspect):
                    worker.send(CommitJob())
                elif task is not None:
                    worker.in_hand.append(self._tasks.popleft())
                    worker.send(task.job)

    def _take(self, slot: _Slot, worker: _Worker, report: Report | None) -> None:
        if slot.worker is not worker:
            return  # it was ended, and its last reports were still on their way
        match report:
            case None:
                self._bury(slot, worker)
            case Ready():
                worker.is_idle = True
                worker.in_hand = [task for task in worker.in_hand if isinstance(task.job, ShardJob)]
            case Held():
                worker.held = dict(report.held)
            case Ending():
                worker.last_words = report.why
            case Refused():
                raise InputError(report.message) if report.is_input else RunError(report.message)
            case Committed():
                worker.finish(report.shard)
                self._tell(report)
            case _:
                self._tell(report)

    def _bury(self, slot: _Slot, worker: _Worker) -> None:
        """A worker has ended: its jobs are put in front, or given up."""
        why = worker.end()
        slot.worker = None
        self._report_commits_untold(worker)
        remove_leftovers(self._run_dir, _shards_of(worker.in_hand))
        for task in worker.in_hand:
            task.lost += 1
        given_up = [task for task in worker.in_hand if task.lost >= _MOST_TRIES]
        again = [task for task in worker.in_hand if task.lost < _MOST_TRIES]
        self._tasks.extendleft(reversed(again))
        self._tell(WorkerLost(str(slot.device), worker.process.pid, why, _shards_of(again)))
        for task in given_up:
            self._tell(JobGivenUp(task.job, why))
        if not given_up:  # else it was the job's fault
            slot.fruitless = 0 if worker.was_fruitful else slot.fruitless + 1
        if slot.fruitless >= _MOST_FRUITLESS_WORKERS:
            self._give_up(slot, why)

    def _report_commits_untold(self, worker: _Worker) -> None:
        """A worker may end between its commit and its report; what is committed is never run again."""
        committed = set(committed_shards(self._run_dir))
        for shard in committed.intersection(_shards_of(worker.in_hand)):
            worker.finish(shard)
            self._tell(_committed_on_disk(self._run_dir, shard))

    def _give_up(self, slot: _Slot, why: str) -> None:
        slot.given_up = True
        self._tell(DeviceGivenUp(str(slot.device), why))
        if all(other.given_up for other in self._slots):
            raise RunError(f"no worker can be kept alive: {why}")


def _shards_of(tasks: Sequence[_Task]) -> tuple[int, ...]:
    return tuple(task.job.shard for task in tasks if isinstance(task.job, ShardJob))


def _committed_on_disk(run_dir: Path, shard: int) -> Committed:
    rows = pq.read_table(
        shard_file(run_dir, shard, "generations"), columns=["generation", "status", "error"]
    ).to_pylist()
    return Committed(
        shard,
        statuses={row["generation"]: row["status"] for row in rows},
        errors={row["generation"]: row["error"] for row in rows if row["status"] == "failed"},
        cost={},
        figures={},
    )
