"""Intervals and p values by resampling whole prompts: the prompt is the unit, never the token.

Every function takes a seed, so that the same values give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_PROMPTS = 6
"""Below this many prompts nothing is said: with 5, all 2⁵ sign flips leave a two-sided p of at least 0.0625."""

DRAWS = 2000
_PERMUTATIONS = 9999

Statistic = Callable[..., Any]
"""From one array a sample ``[..., n]`` and ``axis`` to ``[...]``."""


@dataclass(frozen=True)
class Estimate:
    """A value over ``n`` prompts with its 95 % interval, whose ends are None where ``n`` is too few to say."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        if self.low is None or self.high is None:
            return False
        return 0 < self.low <= self.high or self.low <= self.high < 0  # neither holds for ends that are NaN


def bootstrap_interval(
    samples: Sequence[np.ndarray],
    statistic: Statistic,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    coverage: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Ends ``[...]`` of the interval of ``statistic(*samples, axis=-1)``, each sample ``[..., n]`` drawn with
    replacement.

    Percentiles at levels widened so that a mean's interval is as wide as Student's (Hesterberg, "What Teachers Should
    Know About the Bootstrap", 2015, the expanded percentile interval). Of normal values, 6,000 draws for each n, 95 %
    intervals of the mean cover it in 93.1 % (n = 6), 94.1 % (8), 94.4 % (10), 94.5 % (12) and 94.1 % (20); those of
    BCa, which corrects bias and skew (Efron 1987), in 85.5, 87.9, 90.1, 91.1 and 91.4 %.

    Raises:
        ValueError: a sample has fewer than two values.
    """
    from scipy.stats import bootstrap

    least = min(sample.shape[-1] for sample in samples)
    if least < 2:
        raise ValueError("a bootstrap needs at least two values")
    found = bootstrap(
        tuple(samples),
        statistic,
        n_resamples=draws,
        axis=-1,
        vectorized=True,
        confidence_level=expanded(coverage, least),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def expanded(coverage: float, n: int) -> float:
    """The level at which percentiles of the bootstrap of ``n`` values are as far apart as Student's interval."""
    from scipy.stats import norm, t

    quantile = t.ppf((1 - coverage) / 2, n - 1) * np.sqrt(n / (n - 1))
    return float(1 - 2 * norm.cdf(quantile))


def estimate(samples: Sequence[np.ndarray], statistic: Statistic = np.mean, *, seed: int = 0) -> Estimate:
    """``statistic`` of ``samples`` (each ``[n]``, one value a prompt) with its expanded bootstrap interval."""
    least = min(len(sample) for sample in samples)
    value = float(statistic(*samples, axis=-1)) if least else float("nan")
    if least < LEAST_PROMPTS:
        return Estimate(value, None, None, least)
    low, high = bootstrap_interval(samples, statistic, seed=seed)
    return Estimate(value, float(low), float(high), least)


def sign_flip_p(values: np.ndarray, *, seed: int = 0, permutations: int = _PERMUTATIONS) -> np.ndarray:
    """Two-sided p ``[...]`` that ``values`` ``[..., n]`` are symmetric about zero: their mean against that of values
    with signs flipped at random (all flips where there are no more than ``permutations``). Source: Fisher, "The Design
    of Experiments" (1935)."""
    from scipy.stats import permutation_test

    return permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=permutations,
        rng=np.random.default_rng(seed),
    ).pvalue


def permutation_p(
    one: np.ndarray,
    other: np.ndarray,
    statistic: Statistic | None = None,
    *,
    seed: int = 0,
    permutations: int = _PERMUTATIONS,
) -> np.ndarray:
    """Two-sided p ``[...]`` that ``one`` ``[..., n]`` and ``other`` ``[..., m]`` do not differ in ``statistic`` (the
    difference of their means if not given), against random divisions of both together. Source: Pitman, "Significance
    Tests Which May Be Applied to Samples from Any Populations" (1937)."""
    from scipy.stats import permutation_test

    return permutation_test(
        (one, other),
        statistic or _difference_of_means,
        vectorized=True,
        axis=-1,
        n_resamples=permutations,
        rng=np.random.default_rng(seed),
    ).pvalue


def _difference_of_means(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    return one.mean(axis=axis) - other.mean(axis=axis)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests, adjusted so that the chance of any false finding stays below the level. NaN is left
    out of the count. Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979)."""
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given)  # NaN last
    n_tests = int(np.isfinite(given).sum())
    adjusted = np.full(len(given), np.nan)
    steps = given[order[:n_tests]] * np.arange(n_tests, 0, -1)
    adjusted[order[:n_tests]] = np.minimum(1.0, np.maximum.accumulate(steps)) if n_tests else steps
    return adjusted.tolist()
