"""The contenders, and the driver's side of their worker processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import python_of_peer
from ways import Order, Way

from traitscope.errors import RunError

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Contender:
    """Attributes:
    name: of ``worker_<name>.py``.
    environment: of ``requirements/<environment>.txt``; None is the one that this script runs in.
    captured: what it captures, in words.
    refills: it takes the whole queue and orders it itself; the others get batches, in the better of two orders.
    """

    name: str
    environment: str | None
    captured: str
    refills: bool = False

    @property
    def orders(self) -> tuple[Order, ...]:
        """Those in which it can do the work."""
        return ("refilled",) if self.refills else ("longest first", "file order")


CONTENDERS = (
    Contender("traitscope", None, "all checkpoints, with norms and writes", refills=True),
    Contender("generate", "transformers", "nothing: the unit"),
    Contender("transformers", "transformers", "less: no `resid_mid`, no last `resid_post`"),
    Contender("nnsight", "nnsight", "all checkpoints"),
    Contender("transformerlens", "transformerlens", "all checkpoints"),
)


def python_of(contender: Contender, environments: Path) -> Path:
    """The interpreter to run its worker with.

    Raises:
        RunError: its environment cannot be installed.
    """
    if contender.environment is None:
        return Path(sys.executable)
    return python_of_peer(contender.environment, environments)


class Worker:
    """A contender's process, loaded and waiting.

    Attributes:
        versions: of the packages that matter, by name.
        threads: how many torch computes with.
        peak_bytes: the most memory that it has used so far.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.peak_bytes = 0
        self._process = process
        self._log = log
        ready = self._read()
        self.versions: dict[str, str] = ready["versions"]
        self.threads: int = ready["threads"]

    def run(self, way: Way, keep: Path | None = None) -> float:
        """Seconds that the whole workload took; its rows go to ``keep``, an .npz file.

        Raises:
            RunError: the worker ended instead of answering.
        """
        request = json.dumps({"width": way.width, "order": way.order, "keep": str(keep) if keep else None})
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = self._read()
        self.peak_bytes = answer["peak_bytes"]
        return answer["seconds"]

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> RunError:
        code = self._process.wait()
        said = self._log.read_text(errors="replace").strip().splitlines()
        return RunError(f"{self.name}: its worker ended with {code}: {said[-1] if said else 'it said nothing'}")


@contextmanager
def working(contender: Contender, python: Path, workload: Path, threads: int | None) -> Iterator[Worker]:
    """The contender's worker, ended with the block.

    Raises:
        RunError: it cannot load.
    """
    log = workload / f"{contender.name}.log"
    command = [str(python), str(_HERE / f"worker_{contender.name}.py"), str(workload)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(contender, threads),
        )
        try:
            yield Worker(contender.name, process, log)
        finally:
            process.kill()
            process.communicate()


def _environment(contender: Contender, threads: int | None) -> dict[str, str]:
    variables = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if contender.environment is not None:
        variables.pop("PYTHONPATH", None)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    return variables
