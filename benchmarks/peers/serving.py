"""The worker's side: answers each line on standard input with one line of JSON on standard output.

A request is ``{"width": rows in a batch, "order": of the prompts, "keep": file or null}``; the answer says how long
the whole workload took and how much memory the process has used at most since it started.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import numpy as np
from ways import Way
from workload import Workload, read_workload

_WARM_UP_ROWS = 2


@dataclass(frozen=True)
class Row:
    """One generated row.

    Attributes:
        response_ids: as many token ids as the workload asks for.
        scores: ``[checkpoints given, prompt + response, n_traits]`` float32, or None without a capture.
        norms: ``[checkpoints given, prompt + response]`` float32, or None where they are not asked for.
    """

    response_ids: list[int]
    scores: np.ndarray | None = None
    norms: np.ndarray | None = None


@dataclass(frozen=True)
class Session:
    """A loaded contender.

    Attributes:
        generate: does a workload in one way; its rows, in the workload's order.
        checkpoints: which of the workload's checkpoints its scores are of, by index.
        packages: whose versions matter.
    """

    generate: Callable[[Workload, Way], list[Row]]
    checkpoints: Sequence[int]
    packages: Sequence[str]


def serve(load: Callable[[Workload], Session]) -> None:
    """Load, warm up, say that the contender is ready, and run the workload as often as asked."""
    answers = _answers_apart_from_prints()
    workload = read_workload(Path(sys.argv[1]))
    session = load(workload)
    session.generate(workload.part(_WARM_UP_ROWS), Way(_WARM_UP_ROWS, "file order"))
    _answer(answers, {"versions": {name: version(name) for name in session.packages}, "threads": _threads()})
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        rows = session.generate(workload, Way(request["width"], request["order"]))
        seconds = time.perf_counter() - started
        _refuse_other_lengths(rows, workload)
        if request["keep"]:
            _keep(rows, session.checkpoints, Path(request["keep"]))
        _answer(answers, {"seconds": seconds, "peak_bytes": _peak_bytes()})


def _answers_apart_from_prints() -> TextIO:
    """A stream to the driver. What libraries print goes to standard error from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, values: dict) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _refuse_other_lengths(rows: Sequence[Row], workload: Workload) -> None:
    lengths = [len(row.response_ids) for row in rows]
    if lengths != workload.lengths:
        raise ValueError("responses are not as long as the workload says, so no time is compared")


def _keep(rows: list[Row], checkpoints: Sequence[int], path: Path) -> None:
    arrays = {"checkpoints": np.array(checkpoints, int)}
    for number, row in enumerate(rows):
        arrays[f"response_ids.{number}"] = np.array(row.response_ids)
        if row.scores is not None:
            arrays[f"scores.{number}"] = row.scores
        if row.norms is not None:
            arrays[f"norms.{number}"] = row.norms
    np.savez(path, **arrays)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
