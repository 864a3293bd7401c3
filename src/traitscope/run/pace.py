"""How fast a model is on this machine: measured in seconds at several batch widths, then remembered."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from traitscope.cache import read_cached_json, write_cached_json
from traitscope.errors import one_line_of
from traitscope.model.capture import ReaderBank, capturing
from traitscope.model.decode import DecodeLoop
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.model.static_step import StaticSteps
from traitscope.run.ceilings import device_name, synchronise
from traitscope.run.memory import held_where_computed, is_out_of_memory

log = logging.getLogger(__name__)

_REVISION = 4
_SHORT, _LONG = 32, 512
_LONG_ROWS = 8  # few enough for a long context to fit in memory
_TIMED_STEPS = 3
_LEAST_GAIN = 1.05
_AS_GOOD = 1.02
_MEASURE_SECONDS = 20.0
_MOST_GROWTH = 2.0
_NOISE_SECONDS = 0.02


@dataclass(frozen=True)
class Pace:
    """Seconds of a model's forward passes with capture, and the memory that is held before any.

    Attributes:
        widths, step_seconds: a decode step of that many rows behind a short context.
        context_seconds: what each token of context adds to each row of a step.
        prefill_seconds: per prompt token of a prefill.
        prefill_context_seconds: what each token of context adds to each prompt token.
        loading_seconds: of the session in which it was measured.
        resident_bytes: of the process with the model loaded and packed, or of the tensors on a CUDA device.
    """

    widths: tuple[int, ...]
    step_seconds: tuple[float, ...]
    context_seconds: float
    prefill_seconds: float
    prefill_context_seconds: float
    loading_seconds: float
    resident_bytes: int

    def step(self, width: int, context: float) -> float:
        """Seconds of one decode step of ``width`` rows with ``context`` tokens each."""
        return self._short_step(width) + width * max(0.0, context - _SHORT) * self.context_seconds

    def prefill(self, n_rows: int, length: int, context: int = 0) -> float:
        """Seconds to read ``length`` tokens in each of ``n_rows`` rows behind ``context`` tokens."""
        per_token = self.prefill_seconds + (context + length / 2) * self.prefill_context_seconds
        return max(n_rows * length * per_token, self._short_step(n_rows))

    def best_width(self, n_rows: int, most: int) -> int:
        """The width of at most ``most`` that gets ``n_rows`` done soonest.

        Among widths that differ by less than two per cent the smallest one, which needs the least memory.
        """
        widths = sorted({*(width for width in self.widths if width < most), most})

        def seconds(width: int) -> float:
            even = math.ceil(n_rows / math.ceil(n_rows / width))
            n_whole, rest = divmod(n_rows, even)
            return n_whole * self._short_step(even) + (self._short_step(rest) if rest else 0.0)

        soonest = min(map(seconds, widths))
        return next(width for width in widths if seconds(width) <= soonest * _AS_GOOD)

    @property
    def is_plausible(self) -> bool:
        """Whether a step never grew twice as much as its width did and never halved: else the machine was busy."""
        steps = zip(self.widths, self.step_seconds, strict=True)
        return all(
            narrower <= _MOST_GROWTH * wider + _NOISE_SECONDS
            and wider <= _MOST_GROWTH * narrower * wide / narrow + _NOISE_SECONDS
            for (narrow, narrower), (wide, wider) in itertools.pairwise(steps)
        )

    @classmethod
    def from_described(cls, described: Mapping[str, Any]) -> Pace:
        """The pace that ``dataclasses.asdict`` described."""
        lists = {name: tuple(described[name]) for name in ("widths", "step_seconds")}
        return cls(**{**described, **lists})

    def _short_step(self, width: int) -> float:
        """Between measured widths on a straight line; beyond the widest in proportion."""
        if width >= self.widths[-1]:
            return self.step_seconds[-1] * width / self.widths[-1]
        place = max(1, bisect_left(self.widths, width))
        narrow, wide = self.widths[place - 1], self.widths[place]
        share = (width - narrow) / (wide - narrow)
        return self.step_seconds[place - 1] * (1 - share) + self.step_seconds[place] * share


def pace_name(fingerprint: str, device: torch.device, dtype: torch.dtype) -> str:
    """What a model's pace on a device is remembered under."""
    described = json.dumps([_REVISION, fingerprint, device_name(device), str(dtype)])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def remembered_pace(fingerprint: str, device: torch.device, dtype: torch.dtype) -> Pace | None:
    """The pace that was measured before, or None."""
    found = read_cached_json("paces", pace_name(fingerprint, device, dtype))
    return None if found is None else Pace.from_described(found)


def remember_pace(pace: Pace, fingerprint: str, device: torch.device, dtype: torch.dtype) -> None:
    """Keep a pace for later runs and plans."""
    write_cached_json("paces", pace_name(fingerprint, device, dtype), asdict(pace))


def measured_pace(
    model: LanguageModel, bank: ReaderBank, token_ids: Sequence[int], *, most_rows: int, loading_seconds: float
) -> Pace:
    """Time decode steps at doubling widths until tokens per second stop rising, memory ends or seconds run out.

    ``token_ids`` are any that the model reads; they are repeated to the lengths that are timed. Widths are
    bounded by ``most_rows``.
    """
    probe = _Probe(model, bank, token_ids)
    probe.step_seconds(2, _SHORT)
    resident = held_where_computed(model.device)
    steps = dict(_doubling(probe, most_rows))
    narrow = max(width for width in steps if width <= _LONG_ROWS)
    longer = _LONG if model.context_length is None else min(_LONG, model.context_length - _TIMED_STEPS - 2)
    context_seconds = prefill_context_seconds = 0.0
    prefill_seconds = probe.prefill_seconds(narrow, _SHORT) / (narrow * _SHORT)
    if longer > 2 * _SHORT:
        slower = probe.step_seconds(narrow, longer) - steps[narrow]
        context_seconds = max(0.0, slower / (narrow * (longer - _SHORT)))
        whole = probe.prefill_seconds(1, longer) / longer
        prefill_context_seconds = max(0.0, (whole - prefill_seconds) / (longer / 2 - _SHORT / 2))
    return Pace(
        widths=tuple(steps),
        step_seconds=tuple(steps.values()),
        context_seconds=context_seconds,
        prefill_seconds=prefill_seconds,
        prefill_context_seconds=prefill_context_seconds,
        loading_seconds=loading_seconds,
        resident_bytes=resident,
    )


def _doubling(probe: _Probe, most_rows: int) -> Iterator[tuple[int, float]]:
    """Widths and their seconds, each timed only when the one before promised more."""
    began, rate, width = time.perf_counter(), 0.0, 1
    while True:
        try:
            seconds = probe.step_seconds(width, _SHORT)
        except Exception as error:
            if width == 1 or not is_out_of_memory(error):
                raise
            log.warning("a batch of %d does not fit in memory: %s", width, one_line_of(error))
            return
        yield width, seconds
        gained = width / seconds >= rate * _LEAST_GAIN
        if not gained or width >= most_rows or time.perf_counter() - began > _MEASURE_SECONDS:
            return
        rate = width / seconds
        width = min(2 * width, most_rows)


class _Probe:
    """Timed passes of one model, with the capture of the traits that are asked for."""

    def __init__(self, model: LanguageModel, bank: ReaderBank, token_ids: Sequence[int]) -> None:
        self._model, self._bank = model, bank
        self._token_ids = np.resize(np.array(token_ids), _LONG + _LONG_ROWS).tolist()

    def step_seconds(self, width: int, length: int) -> float:
        """The fastest of some steps of ``width`` rows that continue the same prompt."""
        with self._loop([self._token_ids[:length]] * width) as loop:
            loop.prefill()
            loop.step()
            return min(self._timed(loop.step) for _ in range(_TIMED_STEPS))

    def prefill_seconds(self, n_rows: int, length: int) -> float:
        """The faster of two passes over ``n_rows`` different prompts."""
        prompts = [self._token_ids[row : row + length] for row in range(n_rows)]
        passes = []
        for _ in range(2):
            with self._loop(prompts) as loop:
                passes.append(self._timed(loop.prefill))
        return min(passes)

    @contextmanager
    def _loop(self, prompts: Sequence[Sequence[int]]) -> Iterator[DecodeLoop]:
        """A loop that no end of sequence stops before its time; its steps are not compiled, for each width anew."""
        model = replace(self._model, eos_token_ids=frozenset(), static_steps=StaticSteps(wanted=False))
        capturing_scores = capturing(model.module, model.anatomy, self._bank, model.device)
        with capturing_scores as capture, model.linears.in_use():
            yield DecodeLoop(
                model,
                prompts,
                max_new_tokens=_TIMED_STEPS + 2,
                sampling=Sampling(),
                seeds=[0] * len(prompts),
                capture=capture,
            )

    def _timed(self, work: Callable[[], object]) -> float:
        synchronise(self._model.device)
        started = time.perf_counter()
        work()
        synchronise(self._model.device)
        return time.perf_counter() - started
