"""What capture costs, step by step: the same batch with and without it, advanced in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from traitscope.bench.contenders import synchronise
from traitscope.errors import RunError
from traitscope.model.capture import ReaderBank, ScoreCapture
from traitscope.model.decode import DecodeLoop
from traitscope.model.loading import LanguageModel
from traitscope.model.watch import watch
from traitscope.run.engine import GenerationTask


@dataclass(frozen=True)
class PairedSteps:
    """Seconds of each step of a batch with and without capture, pair by pair; prefills apart."""

    batch: int
    with_capture: list[float]
    without: list[float]
    prefill_with_capture: list[float]
    prefill_without: list[float]


def paired_steps(
    model: LanguageModel, tasks: Sequence[GenerationTask], bank: ReaderBank, *, repeats: int
) -> PairedSteps:
    """Take two loops through the same batch ``repeats`` times, step by step, which goes first alternating.

    Hooks are put in place and removed outside of what is timed.
    """
    endless = replace(model, eos_token_ids=frozenset())
    times = PairedSteps(len(tasks), [], [], [], [])
    with torch.inference_mode():
        for repeat in range(repeats):
            capturing = _TimedLoop(endless, tasks, ScoreCapture(bank, model.device))
            bare = _TimedLoop(endless, tasks, None)
            order = (capturing, bare) if repeat % 2 == 0 else (bare, capturing)
            seconds = {loop: loop.timed(loop.prefill) for loop in order}
            times.prefill_with_capture.append(seconds[capturing])
            times.prefill_without.append(seconds[bare])
            for _ in range(tasks[0].max_new_tokens):
                order = (order[1], order[0])
                seconds = {loop: loop.timed(loop.step) for loop in order}
                times.with_capture.append(seconds[capturing])
                times.without.append(seconds[bare])
            capturing.check_finished()
            bare.check_finished()
    return times


class _TimedLoop:
    """One batch on its way, whose hooks are there only while it moves."""

    def __init__(self, model: LanguageModel, tasks: Sequence[GenerationTask], capture: ScoreCapture | None) -> None:
        self._model = model
        self._capture = capture
        self._loop = DecodeLoop(
            model,
            [task.prompt.token_ids for task in tasks],
            max_new_tokens=tasks[0].max_new_tokens,
            sampling=tasks[0].sampling,
            seeds=[task.seed or 0 for task in tasks],
            capture=capture,
        )
        self._n_tokens = len(tasks) * tasks[0].max_new_tokens

    def prefill(self) -> None:
        self._loop.prefill()

    def step(self) -> None:
        self._loop.step()

    def check_finished(self) -> None:
        """Every step that was timed moved every row on by a token."""
        if (moved := sum(len(row.response_ids) for row in self._loop.results())) != self._n_tokens:
            raise RunError(f"bench: {moved} tokens were generated in the timed steps instead of {self._n_tokens}")

    def timed(self, move: Callable[[], None]) -> float:
        model, capture = self._model, self._capture
        watching = nullcontext() if capture is None else watch(model.module, model.anatomy, capture.observe)
        with watching, model.linears.in_use():
            synchronise(model.device)
            started = time.perf_counter()
            move()
            synchronise(model.device)
            return time.perf_counter() - started
