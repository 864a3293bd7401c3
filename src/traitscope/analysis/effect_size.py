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
