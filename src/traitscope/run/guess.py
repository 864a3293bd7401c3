"""A guess at the time of a model that was never timed here, from this machine's matrix products."""

from __future__ import annotations

import time

import torch

from traitscope.model.facts import ModelFacts
from traitscope.run.ceilings import synchronise

_MEASURE_SECONDS = 0.08
_UNKNOWN_PACE = (1.0, 4.0)
_PREFILL_TOKENS = 256


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
    for weight in weights:
        states @ weight
    synchronise(device)
    fastest, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _MEASURE_SECONDS:
        for weight in weights:
            started = time.perf_counter()
            states @ weight
            synchronise(device)
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * n_rows * facts.d_model * facts.d_mlp / fastest
