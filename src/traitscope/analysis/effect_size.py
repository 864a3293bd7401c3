"""How far two sets of scores lie apart."""

from __future__ import annotations

import numpy as np


def cohens_d(positive: np.ndarray, negative: np.ndarray) -> float:
    """Difference of the means of two sets of scores in units of their pooled standard deviation."""
    spread = np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    return float((positive.mean() - negative.mean()) / spread) if spread > 0 else float("nan")


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score exceeds a negative one; ties count half."""
    differences = positive[:, None] - negative[None, :]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def hedges_d(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    """Difference of the means of ``one`` ``[..., n]`` and ``other`` ``[..., m]`` in pooled standard deviations,
    corrected for small samples; NaN where neither varies.

    Source: Hedges, "Distribution Theory for Glass's Estimator of Effect Size and Related Estimators" (1981).
    """
    n, m = one.shape[axis], other.shape[axis]
    squares = (n - 1) * one.var(axis=axis, ddof=1) + (m - 1) * other.var(axis=axis, ddof=1)
    pooled = np.sqrt(squares / (n + m - 2))
    difference = one.mean(axis=axis) - other.mean(axis=axis)
    found = np.divide(difference, pooled, out=np.full_like(pooled, np.nan), where=pooled > 0)
    return (1 - 3 / (4 * (n + m) - 9)) * found
