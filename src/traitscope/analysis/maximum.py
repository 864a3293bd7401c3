"""Many tests at once: the maximum statistic, which keeps the chance of any false finding at the level.

Every test's statistic is held against the largest one of *all* tests in each draw of the null, so that dependence
between the tests costs nothing. Source: Westfall and Young, "Resampling-Based Multiple Testing" (1993); Nichols and
Holmes, "Nonparametric permutation tests for functional neuroimaging" (2002).
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.05
_MOST_EXACT = 12
_DRAWS = 4000
# Sums in another order differ in their last bits, and ties must count.
_TIE = 1e-9


def sign_flips(n_units: int, *, seed: int = 0) -> np.ndarray:
    """Signs ``[n_draws, n_units]``: every combination for up to 12 units, else 4,000 of them; the first is all +1."""
    if n_units <= _MOST_EXACT:
        bits = (np.arange(2**n_units)[:, None] >> np.arange(n_units)) & 1
        return 1.0 - 2.0 * bits
    drawn = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_DRAWS, n_units))
    drawn[0] = 1.0
    return drawn


def corrected_p(found: np.ndarray, null_maxima: np.ndarray) -> np.ndarray:
    """p values ``[...]`` of statistics ``[...]``, corrected for all of them.

    Args:
        found: larger means further from the null; NaN gives p = 1.
        null_maxima: ``[n_draws]``, the largest statistic of each draw, what was found among the draws.
    """
    ordered = np.sort(null_maxima)
    below = np.searchsorted(ordered, np.nan_to_num(found, nan=-np.inf) - _TIE, side="left")
    return 1 - below / len(ordered)


def threshold(null_maxima: np.ndarray) -> float:
    """What the largest statistic of ``[n_draws]`` exceeds in 5 % of draws."""
    return float(np.quantile(null_maxima, 1 - LEVEL, method="higher"))
