"""Speaks as ``traitscope.run.worker`` does, without torch: copies shards of a finished run and dies where it is told.

Environment: ``FAKE_WORKER``, JSON with ``source`` (the finished run) and, as wanted: ``dies_on`` (shards that end it
each time), ``dies_once_on`` (the first time), ``dies_untold`` (behind the commit, before the report), ``dies_loading``
(a device), ``refuses`` (a message), ``seconds`` (a shard).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from traitscope.run.messages import (
    CommitJob,
    Committed,
    LayersSplit,
    ModelLoaded,
    Ready,
    Refused,
    Report,
    ShardJob,
    SplitJob,
    Tokens,
    Verified,
    VerifyJob,
    from_line,
    to_line,
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _tell(report: Report) -> None:
    sys.stdout.write(to_line(report))
    sys.stdout.flush()


class _Worker:
    def __init__(self, run_dir: Path, device: str, asked: dict[str, Any]) -> None:
        self._run_dir, self._asked = run_dir, asked
        self._written: int | None = None
        if device == asked.get("dies_loading"):
            _die()
        _tell(ModelLoaded(0.0))

    def do(self, job: Any) -> None:
        self._commit()  # the one that is written beside this one
        match job:
            case ShardJob():
                self._generate(job.shard)
            case CommitJob():
                pass
            case VerifyJob():
                _tell(Verified(None, "by a fake"))
            case SplitJob():
                _tell(LayersSplit("by a fake"))

    def _generate(self, shard: int) -> None:
        (self._run_dir / "begun.txt").touch()
        _tell(Tokens(shard, 1))
        time.sleep(self._asked.get("seconds", 0.0))
        if self._asked.get("refuses"):
            _tell(Refused(self._asked["refuses"], is_input=False))
        if shard in self._asked.get("dies_on", []) or self._is_first(shard, "dies_once_on"):
            _die()
        self._written = shard

    def _commit(self) -> None:
        shard, self._written = self._written, None
        if shard is None:
            return
        with (self._run_dir / "log.txt").open("a") as log:
            log.write(f"{shard}\n")
        for path in sorted((Path(self._asked["source"]) / "shards").glob(f"{shard:04d}.*"), key=_done_last):
            shutil.copy(path, self._run_dir / "shards")
        if self._is_first(shard, "dies_untold"):
            _die()
        _tell(Committed(shard, {}, {}, {}, {}))

    def _is_first(self, shard: int, when: str) -> bool:
        """Whether ``when`` names the shard and no worker came here with it before."""
        if shard not in self._asked.get(when, []):
            return False
        mark = self._run_dir / f"{when}-{shard}"
        is_first = not mark.exists()
        mark.touch()
        return is_first


def _done_last(path: Path) -> bool:
    return path.name.endswith(".done.json")


def main() -> None:
    worker = _Worker(Path(sys.argv[1]), sys.argv[2], json.loads(os.environ["FAKE_WORKER"]))
    _tell(Ready())
    for line in sys.stdin:
        worker.do(from_line(line))
        _tell(Ready())


main()
