"""One worker process: its model on its device, jobs from stdin, reports to where stdout was.

Started by ``workers.WorkerPool`` as ``python -m traitscope.run.worker RUN_DIR DEVICE THREADS``.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import torch

from traitscope.errors import DeviceFailedError, InputError, TraitscopeError, one_line_of
from traitscope.run.frozen import read_frozen
from traitscope.run.memory import held_bytes
from traitscope.run.messages import (
    Ending,
    Held,
    Job,
    ModelLoaded,
    Ready,
    Refused,
    Report,
    Tell,
    Tokens,
    from_line,
    to_line,
)
from traitscope.run.reload import model_of_run
from traitscope.run.workbench import Workbench

_EVERY_SECONDS = 0.25


class _Outbox:
    """Reports on their way to the coordinator; tokens are told a few times a second, together."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._untold: Tokens | None = None
        self._last_time = 0.0

    def tell(self, report: Report) -> None:
        if isinstance(report, Tokens):
            count = report.count + (self._untold.count if self._untold is not None else 0)
            self._untold = Tokens(report.shard, count)
            if time.monotonic() - self._last_time >= _EVERY_SECONDS:
                self._tell_tokens()
            return
        self._tell_tokens()
        self._write(report)

    def _tell_tokens(self) -> None:
        if self._untold is not None:
            untold, self._untold = self._untold, None
            self._last_time = time.monotonic()
            self._write(Held(held_bytes()))
            self._write(untold)

    def _write(self, report: Report) -> None:
        self._stream.write(to_line(report))
        self._stream.flush()


def main(arguments: list[str]) -> int:
    """Work until the coordinator ends, which also ends this process."""
    run_dir, device, threads = Path(arguments[0]), torch.device(arguments[1]), int(arguments[2])
    outbox = _Outbox(_stream_of_our_own())
    _leave_signals_to_the_coordinator()
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("traitscope").handlers = [warnings]
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    try:
        torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _work(run_dir, device, jobs, outbox.tell)
    except DeviceFailedError as error:  # another process may find the device in order
        outbox.tell(Ending(str(error)))
    except TraitscopeError as error:
        outbox.tell(Refused(str(error), isinstance(error, InputError)))
    except Exception as error:
        outbox.tell(Ending(one_line_of(error)))
    return 1


def _work(run_dir: Path, device: torch.device, jobs: queue.SimpleQueue[Job], tell: Tell) -> None:
    """Job after job, for ever."""
    began = time.perf_counter()
    model = model_of_run(run_dir, device)
    workbench = Workbench(read_frozen(run_dir), model)
    tell(ModelLoaded(time.perf_counter() - began))
    with workbench.telling(tell):
        while True:
            tell(Ready())
            workbench.do(jobs.get())


def _stream_of_our_own() -> TextIO:
    """Where stdout was; what libraries print from now on goes to stderr."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return stream


def _leave_signals_to_the_coordinator() -> None:
    """A Ctrl-C, or the end of a batch job, reaches all processes; whether work is finished first is its affair."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _read_jobs(jobs: queue.SimpleQueue[Job]) -> None:
    """When the coordinator is gone the pipe is at its end: nothing may be written into its run any more."""
    for line in sys.stdin:
        jobs.put(from_line(line))
    os._exit(0)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # not through the end of the interpreter, as a thread reads stdin
