"""Whether stored tokens are what the settings choose from the model's logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from traitscope.verify.asked import Asked

_MARGIN = 8
_MOST_CUTS = 16
_LEAST_SPREAD = 1e-30


def argmax_gaps(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """``[n]``: how far each token's logit lies below the largest, in standard deviations of its position's logits.

    ``logits`` is ``[n, vocab]`` float64.
    """
    chosen = np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return (logits.max(axis=1) - chosen) / np.fmax(logits.std(axis=1), _LEAST_SPREAD)


def draw_distances(
    logits: np.ndarray, tokens: np.ndarray, uniforms: np.ndarray, asked: Asked, eps: float
) -> np.ndarray:
    """``[n]``: how far each random number lies outside its token's interval of the CDF; 0 when inside.

    Temperature, then top-k, then top-p, then the CDF over token ids, in float64. Which tokens top-k and top-p keep
    depends on a threshold among the logits; tokens within 8 units in the last place (``eps`` of the largest logit)
    of it may fall to either side, and the nearest of the possible CDFs counts. A token outside all of them has
    distance 1.
    """
    scaled = logits / asked.temperature
    return np.array(
        [
            min(_distance(row, keep, token, uniform) for keep in _kept(row, asked, eps))
            for row, token, uniform in zip(scaled, tokens, uniforms, strict=True)
        ]
    )


def row_uniforms_again(seed: int, n: int) -> np.ndarray:
    """The first ``n`` random numbers of a row, float64 in [0, 1)."""
    return np.random.Generator(np.random.Philox(seed)).random(n)


def _distance(row: np.ndarray, keep: np.ndarray, token: int, uniform: float) -> float:
    if not keep[token]:
        return 1.0
    weights = np.where(keep, np.exp(row - row.max()), 0.0)
    cdf = np.cumsum(weights)
    upper = cdf[token] / cdf[-1]
    lower = upper - weights[token] / cdf[-1]
    return float(max(0.0, lower - uniform, uniform - upper))


def _kept(row: np.ndarray, asked: Asked, eps: float) -> Iterator[np.ndarray]:
    """Masks over the vocabulary: what the settings keep, and what they might keep after rounding."""
    keep = np.ones(len(row), dtype=bool)
    if asked.top_k > 0:
        keep &= row >= np.sort(row)[-min(asked.top_k, len(row))]
    if asked.top_p < 1:
        keep &= _top_p(np.where(keep, row, -np.inf), asked.top_p)
    yield keep
    if keep.all():
        return
    threshold, margin = row[keep].min(), _MARGIN * eps * np.abs(row).max()
    near = np.unique(row[np.abs(row - threshold) <= margin])
    for cut in near[:: max(1, len(near) // _MOST_CUTS)]:
        yield row >= cut


def _top_p(row: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest of the likeliest tokens whose probabilities reach ``top_p``."""
    weights = np.exp(row - row.max())
    ascending = np.argsort(row, kind="stable")
    cumulative = np.cumsum(weights[ascending]) / weights.sum()
    keep = np.zeros(len(row), dtype=bool)
    keep[ascending[cumulative > 1 - top_p]] = True
    keep[ascending[-1]] = True
    return keep
