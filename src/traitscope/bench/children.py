"""Processes that the bench starts: a job in a file, a report in a file, the wall time of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitscope.errors import RunError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Child:
    """One process that runs a module of this room on a job. ``seconds`` is known once it has finished."""

    def __init__(self, module: str, job: Mapping[str, Any], folder: Path, *, threads: int | None = None) -> None:
        self._module = module
        self._folder = Path(tempfile.mkdtemp(prefix=f"{module}-", dir=folder))
        self._report = self._folder / "report.json"
        self._log = self._folder / "output.txt"
        environment = dict(os.environ)
        if threads is not None:
            environment |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
        job_file = self._folder / "job.json"
        paths = {"report": str(self._report), "result": str(self._folder / "result.json"), "out": str(self._folder)}
        command = [sys.executable, "-m", f"traitscope.bench.{module}", str(job_file)]
        self.seconds = 0.0
        self._started = time.perf_counter()
        job_file.write_text(json.dumps({**job, **paths, "started": time.time()}))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def finish(self) -> dict[str, Any]:
        """Wait for the process; returns its report.

        Raises:
            RunError: it failed; gives the last line that it printed.
        """
        code = self._process.wait()
        self.seconds = time.perf_counter() - self._started
        if code != 0 or not self._report.is_file():
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise RunError(f"bench: the process {self._module} ended with code {code}: {lines[-1] if lines else ''}")
        return json.loads(self._report.read_text())

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def run_child(
    module: str, job: Mapping[str, Any], folder: Path, *, threads: int | None = None
) -> tuple[dict[str, Any], float]:
    """Report and wall seconds of one process, which is ended when this one is interrupted.

    Raises:
        RunError: the process failed.
    """
    child = Child(module, job, folder, threads=threads)
    try:
        return child.finish(), child.seconds
    finally:
        child.stop()
