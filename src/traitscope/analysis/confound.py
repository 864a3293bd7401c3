"""Whether a reader rises with a behaviour, or as much with an instruction in front of a trivial prompt.

Three arms: *natural* prompts call for the behaviour by themselves, *instructed* ones are trivial prompts with an
instruction in front that asks for it, *plain* ones are the same trivial prompts without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from traitscope.analysis.effect_size import hedges_d
from traitscope.analysis.resampling import LEAST_PROMPTS, Estimate, estimate

MARGIN = 0.5
"""In standard deviations, set before any data were seen: Cohen's medium effect (1988)."""

Verdict = Literal["clean", "confounded", "inconclusive"]


@dataclass(frozen=True)
class Confound:
    """Effect sizes (Hedges) between the arms, a verdict and why it is that."""

    natural_over_instructed: Estimate
    natural_over_plain: Estimate
    instructed_over_plain: Estimate
    verdict: Verdict
    reason: str


def compare_arms(natural: np.ndarray, instructed: np.ndarray, plain: np.ndarray, *, seed: int = 0) -> Confound:
    """Compare three arms, each ``[n_prompts]``: one value a prompt.

    ``clean``: the whole 95 % interval of d of natural over instructed lies above ``MARGIN``. ``confounded``: the whole
    interval lies below it. ``inconclusive``: the interval spans it; or natural does not exceed plain by the margin
    (whole interval), so that the natural prompts do not raise the trait and nothing can be said; or an arm has fewer
    than ``LEAST_PROMPTS`` prompts.

    What it cannot tell: a model that obeys the instruction and really hedges scores as high as one whose reader hears
    the word. ``confounded`` says that the two cannot be told apart by these scores, not that the reader is wrong.
    Natural and trivial prompts do not differ in the behaviour alone either: their topics and words differ too.
    """
    pairs = ((natural, instructed), (natural, plain), (instructed, plain))
    over_instructed, over_plain, instruction = (estimate(pair, hedges_d, seed=seed) for pair in pairs)
    verdict, reason = _verdict(over_instructed, over_plain)
    return Confound(over_instructed, over_plain, instruction, verdict, reason)


def _verdict(over_instructed: Estimate, over_plain: Estimate) -> tuple[Verdict, str]:
    if over_instructed.low is None or over_instructed.high is None or over_plain.low is None:
        return "inconclusive", f"an arm has fewer than {LEAST_PROMPTS} prompts"
    if not over_plain.low > MARGIN:
        return "inconclusive", "that natural prompts raise the trait over plain ones by the margin is not shown"
    if over_instructed.low > MARGIN:
        return "clean", "the natural prompts raise the trait over the instructed ones by more than the margin"
    if over_instructed.high < MARGIN:
        return "confounded", "the natural prompts do not raise the trait over the instructed ones by the margin"
    return "inconclusive", "the interval spans the margin"
