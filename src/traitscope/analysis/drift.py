"""Whether z rises or falls along a text."""

from __future__ import annotations

import numpy as np

LEAST_TOKENS = 16
PER_TOKENS = 10


def theil_sen_slope(values: np.ndarray) -> np.ndarray:
    """Slope ``[...]`` per step of ``values`` ``[..., n]``: the median slope between any two of them; NaN for one value.

    Source: Theil (1950), Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau" (1968). A few tokens
    with huge scores do not move it.
    """
    first, second = np.triu_indices(values.shape[-1], k=1)
    if not len(first):
        return np.full(values.shape[:-1], np.nan)
    return np.median((values[..., second] - values[..., first]) / (second - first), axis=-1)


def token_slope(z: np.ndarray) -> np.ndarray:
    """Change of z ``[...]`` per ``PER_TOKENS`` tokens of ``z`` ``[..., n_tokens]``.

    NaN for fewer than ``LEAST_TOKENS``, whose slope is little but noise.
    """
    if z.shape[-1] < LEAST_TOKENS:
        return np.full(z.shape[:-1], np.nan)
    return PER_TOKENS * theil_sen_slope(z)
