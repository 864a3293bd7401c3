"""How much of the machine a session used: against what the machine was measured to do at most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from traitscope.model.facts import ModelFacts
from traitscope.model.meter import ForwardWork
from traitscope.run.ceilings import Ceilings
from traitscope.run.pace import Pace

_FORWARD_SHARE_TO_MENTION = 0.75
_GAIN_TO_MENTION = 1.1


@dataclass(frozen=True)
class Utilisation:
    """What a session's generation came to.

    Attributes:
        forward_share: of the generating time that was spent in forward passes.
        weight_bytes_per_second: weights read by all passes, each pass once, over the time in them.
        flops_per_second: two per weight and token read, padding included, over the time in them.
        of_copy, of_matrix: these two as shares of the ceilings.
        memory_bytes, memory_there_bytes: the most that was held, and what the device has.
    """

    tokens_per_second: float
    forward_share: float
    weight_bytes_per_second: float
    flops_per_second: float
    of_copy: float
    of_matrix: float
    memory_bytes: int
    memory_there_bytes: int
    advice: str


@dataclass(frozen=True)
class CeilingShares:
    """How much of the machine's own measured rates forward passes reached: of a large copy (their weights, once each)
    and of a large matrix product."""

    of_copy: float
    of_matrix: float

    @classmethod
    def of(cls, work: ForwardWork, facts: ModelFacts, dtype: torch.dtype, ceilings: Ceilings) -> CeilingShares:
        """The shares of passes that took some time."""
        weight_rate = work.passes * facts.weight_bytes(dtype.itemsize) / work.seconds
        flops_rate = facts.forward_flops(work.tokens, work.logit_rows) / work.seconds
        return cls(weight_rate / ceilings.copy_bytes_per_second, flops_rate / ceilings.flops_per_second)


def gain_of_narrow(shares: CeilingShares, times_as_fast: float) -> float:
    """How many times as much a dtype of half the bytes generates, if matrix products are ``times_as_fast``.

    Of the time, the share that matrix products would take at their ceiling shrinks by that factor, the share that
    reading the weights would take by half, and the rest stays (Amdahl 1967).
    """
    at_ceilings = shares.of_matrix + shares.of_copy
    scale = min(1.0, 1.0 / at_ceilings) if at_ceilings else 0.0
    matrix, copy = shares.of_matrix * scale, shares.of_copy * scale
    return 1.0 / (1.0 - matrix - copy + matrix / times_as_fast + copy / 2)


def utilisation(
    work: ForwardWork,
    *,
    generated_tokens: int,
    generating_seconds: float,
    wall_seconds: float,
    facts: ModelFacts,
    dtype: torch.dtype,
    ceilings: Ceilings,
    memory_bytes: int,
    memory_there_bytes: int,
    advice: str,
) -> Utilisation | None:
    """What ``work`` used of the machine; None if nothing was generated.

    Of several workers, ``generating_seconds`` are the sum and ``wall_seconds`` the clock's: rates in forward passes
    and memory are those of one worker, against what its device (and threads) can do.
    """
    if not generated_tokens or not work.seconds:
        return None
    shares = CeilingShares.of(work, facts, dtype, ceilings)
    return Utilisation(
        tokens_per_second=generated_tokens / wall_seconds,
        forward_share=work.seconds / generating_seconds,
        weight_bytes_per_second=shares.of_copy * ceilings.copy_bytes_per_second,
        flops_per_second=shares.of_matrix * ceilings.flops_per_second,
        of_copy=shares.of_copy,
        of_matrix=shares.of_matrix,
        memory_bytes=memory_bytes,
        memory_there_bytes=memory_there_bytes,
        advice=advice,
    )


def advice(
    *,
    forward_share: float,
    width: int,
    most_rows: int,
    n_generations: int,
    pace: Pace | None,
    dtype: torch.dtype,
    narrow: tuple[torch.dtype, float] | None,
    shares: CeilingShares,
) -> str:
    """The one change that promises most, with its predicted gain in tokens per second.

    Args:
        width: rows that were generated together; ``most_rows`` is what fits in memory.
        narrow: a narrower dtype and how many times as fast its large matrix products are here.
        shares: of the ceilings that the passes reached.
    """
    offers: list[tuple[float, str]] = []
    if forward_share < _FORWARD_SHARE_TO_MENTION:
        offers.append(
            (
                1 / forward_share,
                f"{1 - forward_share:.0%} of the time passed outside of forward passes; without it",
            )
        )
    if pace is not None and pace.widths[-1] > width and most_rows > width:
        wider = pace.best_width(most_rows, min(most_rows, pace.widths[-1]))
        gain = (wider / pace.step(wider, 0)) / (width / pace.step(width, 0))
        reason = "the suite has no more prompts than that" if n_generations <= width else "--batch-size was given"
        offers.append((gain, f"a batch of {wider} instead of {width} ({reason}) generates"))
    if narrow is not None:
        name = str(narrow[0]).removeprefix("torch.")
        offers.append(
            (gain_of_narrow(shares, narrow[1]), f"--dtype {name} (its vectors are fitted anew) generates about")
        )
    gain, line = max(offers, default=(1.0, ""))
    if gain < _GAIN_TO_MENTION:
        return "no setting promises more than a tenth"
    return f"{line} {gain:.1f} times as much per second"
