"""How long a night will take: the machine's pace before a model is loaded, the model's own pace after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from traitscope.model.capture import ReaderBank
from traitscope.model.decode import decode
from traitscope.model.facts import ModelFacts
from traitscope.model.loading import LanguageModel
from traitscope.run.engine import GenerationTask

_TIMED_STEPS = 8
_MEASURE_SECONDS = 0.08
_UNKNOWN_PACE = (1.0, 4.0)
_PREFILL_TOKENS = 256


@dataclass(frozen=True)
class Pace:
    """Seconds per prompt token of a prefill, and per decode step of a batch ``width`` wide."""

    prefill_seconds_per_token: float
    step_seconds: float
    width: int

    def batch_seconds(self, tasks: Sequence[GenerationTask]) -> float:
        """What one batch takes if every row runs to its longest response."""
        padded = max(task.n_prompt for task in tasks) * len(tasks)
        if tasks[0].response_ids is not None:
            padded = sum(task.n_prompt + task.most_response_tokens for task in tasks)
            return padded * self.prefill_seconds_per_token
        return padded * self.prefill_seconds_per_token + tasks[0].max_new_tokens * self.step_seconds


def measured_pace(model: LanguageModel, bank: ReaderBank, tasks: Sequence[GenerationTask]) -> Pace:
    """Time the model on one batch: two rows to warm up, then the prefill alone, then with some steps."""
    prompts = [task.prompt.token_ids for task in tasks]

    def seconds(n_rows: int, n_steps: int) -> float:
        started = time.perf_counter()
        decode(
            model,
            prompts[:n_rows],
            max_new_tokens=n_steps,
            sampling=tasks[0].sampling,
            seeds=[0] * n_rows,
            bank=bank,
        )
        return time.perf_counter() - started

    seconds(2, 1)
    short, long = seconds(len(prompts), 1), seconds(len(prompts), 1 + _TIMED_STEPS)
    step = max((long - short) / _TIMED_STEPS, 1e-6)
    padded = max(map(len, prompts)) * len(prompts)
    return Pace(max(short - step, 1e-6) / padded, step, len(prompts))


def seconds_range(
    facts: ModelFacts, device: torch.device, dtype: torch.dtype, *, prompt_tokens: int, steps: int, width: int
) -> tuple[float, float]:
    """A range for the time before the model is loaded, from matrix products of its width on this machine.

    The lower end counts nothing but the model's own products at the pace of a bare product; the upper end
    leaves four times as much for attention, norms, overhead and memory traffic.
    """
    prefill = facts.n_parameters * 2 / _flops(facts, device, dtype, _PREFILL_TOKENS) * prompt_tokens
    decoding = facts.n_parameters * 2 * width / _flops(facts, device, dtype, width) * steps
    total = prefill + decoding
    return total * _UNKNOWN_PACE[0], total * _UNKNOWN_PACE[1]


def _flops(facts: ModelFacts, device: torch.device, dtype: torch.dtype, n_rows: int) -> float:
    """FLOP/s of ``[n_rows, d_model] @ [d_model, d_mlp]``, cycling through weights larger than the caches.

    The fastest product counts: what else the machine does at the moment would be multiplied into the night.
    """
    n_weights = max(2, int(64e6 // (facts.d_model * facts.d_mlp * dtype.itemsize)) + 1)
    weights = [torch.ones(facts.d_model, facts.d_mlp, device=device, dtype=dtype) for _ in range(n_weights)]
    states = torch.ones(n_rows, facts.d_model, device=device, dtype=dtype)
    synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for weight in weights:
        states @ weight
    synchronise()
    fastest, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _MEASURE_SECONDS:
        for weight in weights:
            started = time.perf_counter()
            states @ weight
            synchronise()
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * n_rows * facts.d_model * facts.d_mlp / fastest
