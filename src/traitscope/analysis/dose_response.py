"""Whether a score follows the dose of steering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traitscope.analysis.resampling import LEAST_PROMPTS, Estimate, estimate, sign_flip_p


@dataclass(frozen=True)
class DoseResponse:
    """How z follows the dose over prompts.

    Attributes:
        means: of z at each dose, ascending.
        slope: mean over prompts of the least-squares slope of z, per unit of dose.
        monotonicity: mean over prompts of Spearman's correlation of z with the dose: 1 where z rises at every step.
        p: two-sided, that the prompts' slopes are symmetric about zero (sign flips); NaN for too few prompts.
    """

    doses: tuple[float, ...]
    means: tuple[Estimate, ...]
    slope: Estimate
    monotonicity: Estimate
    p: float


def dose_response(z: np.ndarray, doses: np.ndarray, *, seed: int = 0) -> DoseResponse:
    """How ``z`` ``[n_prompts, n_doses]`` follows ``doses`` ``[n_doses]``, ascending: each prompt has all of them,
    so that it is compared with itself.

    Source of the correlation: Spearman (1904); of the sign flips: Fisher (1935).

    Raises:
        ValueError: fewer than two doses.
    """
    if len(doses) < 2:
        raise ValueError("a dose-response needs two doses or more")
    slopes = slopes_of(z, doses)
    return DoseResponse(
        doses=tuple(float(dose) for dose in doses),
        means=tuple(estimate([at_dose], seed=seed) for at_dose in z.T),
        slope=estimate([slopes], seed=seed),
        monotonicity=estimate([rank_correlations(z, doses)], seed=seed),
        p=float(sign_flip_p(slopes, seed=seed)) if len(slopes) >= LEAST_PROMPTS else float("nan"),
    )


def slopes_of(z: np.ndarray, doses: np.ndarray) -> np.ndarray:
    """Least-squares slopes ``[...]`` of ``z`` ``[..., n_doses]`` over ``doses`` ``[n_doses]``."""
    centred = doses - doses.mean()
    return z @ centred / (centred @ centred)


def rank_correlations(z: np.ndarray, doses: np.ndarray) -> np.ndarray:
    """Spearman's correlations ``[...]`` of ``z`` ``[..., n_doses]`` with ``doses``; 0 where z does not vary."""
    from scipy.stats import rankdata

    ranks = rankdata(z, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    of_doses = rankdata(doses) - (len(doses) + 1) / 2
    lengths = np.sqrt((ranks**2).sum(axis=-1) * (of_doses**2).sum())
    return np.divide(ranks @ of_doses, lengths, out=np.zeros(z.shape[:-1]), where=lengths > 0)
