"""How a head's attention to tokens falls as the text grows, against a head that looks everywhere alike.

The weights of a softmax over n visible tokens fall like 1/n even where a head prefers none of them, so a weight that
shrinks is no sign of forgetting. What is followed is the *relative attention*: the weight times the number of visible
tokens, 1 for an even split at any distance. Under a sliding window that number stops growing, and with it the weights
stop falling: it is the visible tokens that count, not the earlier ones.

The first position is left out, and the rest is scaled to sum to 1. Many heads park most of their attention there when
they have nothing to do (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023), and how much
they park changes along a text: without scaling, that would look like forgetting every other token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from traitscope.analysis.maximum import LEVEL, corrected_p, sign_flips
from traitscope.analysis.resampling import LEAST_PROMPTS, estimate

LEAST_QUERIES = 8
"""A slope over fewer tokens than this is not read."""
_LEAST_REST = 1e-3
_MOST_QUERIES = 200

Verdict = Literal["decays", "grows", "no decay", "inconclusive"]


@dataclass(frozen=True)
class HeadDecay:
    """How one head's relative attention falls.

    Attributes:
        rate: halvings per token, the mean over prompts; negative where it grows. ``low`` and ``high`` are its 95 %
            interval, None for too few prompts.
        p: that the rate is zero, corrected for all heads that were looked at.
        n_prompts: how many could be read.
    """

    rate: float
    low: float | None
    high: float | None
    p: float
    n_prompts: int
    verdict: Verdict

    @property
    def half_life(self) -> float | None:
        """Tokens until the relative attention is halved, None where the head does not decay."""
        return 1 / self.rate if self.verdict == "decays" else None

    @property
    def shortest_half_life(self) -> float | None:
        """The lower end of the half-life's interval; None where the interval holds no decay at all."""
        return 1 / self.high if self.high is not None and self.high > 0 else None

    @property
    def longest_half_life(self) -> float | None:
        """The upper end, None for infinity."""
        return 1 / self.low if self.low is not None and self.low > 0 else None


def relative_attention(pattern: np.ndarray, tokens: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """``[heads, n_queries]``: attention of each query to each of ``tokens``, as a multiple of an even split, averaged
    over ``tokens``. NaN where nearly all attention (above 0.999) is on the first position or on a sink, and where a
    sliding window has left one of ``tokens`` behind.

    Args:
        pattern: ``[heads, seq, seq]``, row q over the positions 0 to q; exactly 0 where a window hides a position. The
            heads share one window.
        tokens, queries: positions; all tokens lie between position 0 and the first query.

    Raises:
        ValueError: a token is at position 0 or not before all queries.
    """
    if tokens.min() < 1 or tokens.max() >= queries.min():
        raise ValueError("tokens must lie behind position 0 and before all queries")
    rows = pattern[:, queries].astype(np.float64)
    rest = rows[:, :, 1:].sum(axis=-1)
    share = rows[:, :, tokens].mean(axis=-1) / np.where(rest > _LEAST_REST, rest, np.nan)
    start = np.maximum(_first_visible(pattern)[queries], 1)  # the first position is left out
    return np.where(start <= tokens.min(), share * (queries - start + 1), np.nan)


def _first_visible(pattern: np.ndarray) -> np.ndarray:
    """``[seq]``: the first position that each query sees, at or before the first with weight in any head.

    A weight may be stored as 0 for being tiny, so a query sees as far back as any later one does.
    """
    first = (pattern > 0).any(axis=0).argmax(axis=-1)
    return np.minimum.accumulate(first[::-1])[::-1]


def decay_rates(relative: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Halvings per token ``[heads]`` of relative attention ``[heads, n_queries]``: an exponential, fitted to its
    logarithm by the median of the slopes between every two queries, so that single peaks do not bend it.

    Queries whose relative attention is NaN or 0 are left out; NaN where fewer than 8 are left. Of those that any head
    can be read at, at most 200, evenly spaced, are read. Source: Theil (1950), Sen (1968).
    """
    known = np.flatnonzero((relative > 0).any(axis=0))
    if len(known) < LEAST_QUERIES:
        return np.full(len(relative), np.nan)
    chosen = known[np.linspace(0, len(known) - 1, min(len(known), _MOST_QUERIES)).round().astype(int)]
    with np.errstate(divide="ignore"):
        logs = np.log2(np.where(relative[:, chosen] > 0, relative[:, chosen], np.nan))
    one, other = np.triu_indices(len(chosen), 1)
    slopes = (logs[:, other] - logs[:, one]) / (queries[chosen][other] - queries[chosen][one])
    readable = np.isfinite(logs).sum(axis=1) >= LEAST_QUERIES
    rates = np.full(len(relative), np.nan)
    if readable.any():
        rates[readable] = -np.nanmedian(slopes[readable], axis=1)
    return rates


def heads_decay(rates: np.ndarray, *, seed: int = 0) -> list[HeadDecay]:
    """Whether each head decays, from its rates ``[n_prompts, n_heads]``; NaN for a prompt that could not be read.

    A head ``decays`` where its mean rate is above zero with ``p <= 0.05`` and so is the whole interval; it ``grows``
    where both lie below; else it shows ``no decay``: an infinite half-life, that of an even split, cannot be excluded.
    p comes from flipping the signs of whole prompts, the same for all heads, with the largest ``|Σx|/√Σx²`` over the
    heads: at most 5 % of models whose heads all split evenly have any head that decays or grows. Fewer than 6 prompts
    are ``inconclusive``.
    """
    known = np.nan_to_num(rates)
    lengths = np.sqrt((known**2).sum(axis=0))
    scaled = known / np.where(lengths > 0, lengths, 1.0)
    maxima = np.abs(scaled.T @ sign_flips(len(rates), seed=seed).T).max(axis=0)
    p = corrected_p(np.abs(scaled.sum(axis=0)), maxima)
    return [_head_decay(column[np.isfinite(column)], float(own), seed) for column, own in zip(rates.T, p, strict=True)]


def _head_decay(rates: np.ndarray, p: float, seed: int) -> HeadDecay:
    found = estimate([rates], seed=seed)
    verdict: Verdict = "no decay"
    if found.n < LEAST_PROMPTS:
        verdict = "inconclusive"
    elif p <= LEVEL and found.excludes_zero:
        verdict = "decays" if found.value > 0 else "grows"
    return HeadDecay(found.value, found.low, found.high, p, found.n, verdict)
