"""Whether z rises or falls along a text."""

from __future__ import annotations

import numpy as np

LEAST_TOKENS = 16
PER_TOKENS = 10
_MOST_PAIRS = 1_000_000


def theil_sen_slope(values: np.ndarray) -> np.ndarray:
    """Slope ``[...]`` per step of ``values`` ``[..., n]``: the median slope between any two of them; NaN for one value.

    Source: Theil (1950), Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau" (1968). A few tokens
    with huge scores do not move it. Of more than a million pairs (1,414 values) only those at evenly spaced distances
    are read, every value among them, so that memory stays bounded.
    """
    first, second = _pairs(values.shape[-1])
    if not len(first):
        return np.full(values.shape[:-1], np.nan)
    return np.median((values[..., second] - values[..., first]) / (second - first), axis=-1)


def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``[n_pairs]`` of the earlier and the later value of each pair."""
    if n * (n - 1) // 2 <= _MOST_PAIRS:
        return np.triu_indices(n, k=1)
    distances = np.unique(np.linspace(1, n - 1, 2 * _MOST_PAIRS // n).round().astype(int))
    first = np.concatenate([np.arange(n - distance) for distance in distances])
    return first, first + np.repeat(distances, n - distances)


def token_slope(z: np.ndarray) -> np.ndarray:
    """Change of z ``[...]`` per ``PER_TOKENS`` tokens of ``z`` ``[..., n_tokens]``.

    NaN for fewer than ``LEAST_TOKENS``, whose slope is little but noise.
    """
    if z.shape[-1] < LEAST_TOKENS:
        return np.full(z.shape[:-1], np.nan)
    return PER_TOKENS * theil_sen_slope(z)
