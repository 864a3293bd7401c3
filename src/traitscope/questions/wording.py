"""How questions word figures in their tables and findings."""

from __future__ import annotations

import math

from traitscope.analysis.resampling import Estimate


def shown_p(p: float) -> str | None:
    """A p value, None where there is none."""
    if math.isnan(p):
        return None
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def shown_share(share: float) -> str | None:
    """A share as per cent, None where there is none."""
    return None if math.isnan(share) else f"{share:.0%}"


def shown_interval(estimate: Estimate) -> str | None:
    """The interval of an estimate, None where there is none."""
    if estimate.low is None or estimate.high is None:
        return None
    return f"{estimate.low:+.2f} to {estimate.high:+.2f}"
