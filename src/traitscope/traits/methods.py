"""From pooled states of contrastive texts to unit directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_DEVIATION_FLOOR = 0.01


def mean_difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Unit direction ``[d_model]`` from the negative to the positive class mean of ``[n, d_model]`` states.

    Source: Marks and Tegmark, "The Geometry of Truth" (2023), mass-mean probing; Rimsky et al., "Steering
    Llama 2 via Contrastive Activation Addition" (2023).
    """
    return _unit(positive.mean(axis=0) - negative.mean(axis=0))


def linear_discriminant(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Unit direction ``[d_model]`` of Fisher's discriminant, ``Σ⁻¹(μ₊ − μ₋)``, for ``[n, d_model]`` states.

    Each dimension is scaled by its within-class deviation, floored at 1 % of the median deviation. The
    within-class covariance is shrunk towards a multiple of the identity with the intensity of Ledoit and Wolf,
    "A well-conditioned estimator for large-dimensional covariance matrices" (2004). As the shrunk matrix is low
    rank plus a multiple of the identity, the system is solved in the number of samples (Woodbury).
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    difference = positive.mean(axis=0) - negative.mean(axis=0)
    centred = np.concatenate([positive - positive.mean(axis=0), negative - negative.mean(axis=0)])
    deviation = centred.std(axis=0)
    deviation = np.maximum(deviation, max(_DEVIATION_FLOOR * np.median(deviation), np.finfo(np.float64).tiny))
    scaled = centred / deviation
    shrinkage = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
    solution = _solve_shrunk(scaled, shrinkage, difference / deviation)
    return _unit(solution / deviation)


def _solve_shrunk(samples: np.ndarray, shrinkage: float, target: np.ndarray) -> np.ndarray:
    """Solve ``((1−s)·XᵀX/n + s·m·I) w = t`` with ``m = tr(XᵀX/n)/d``, without forming a d × d matrix."""
    n_samples, d_model = samples.shape
    ridge = shrinkage * (samples**2).sum() / (n_samples * d_model)
    if ridge <= 0:
        return np.linalg.lstsq(samples.T @ samples / n_samples, target, rcond=None)[0]
    if shrinkage >= 1:
        return target / ridge
    gram = samples @ samples.T
    inner = gram + np.eye(n_samples) * (ridge * n_samples / (1 - shrinkage))
    return (target - samples.T @ np.linalg.solve(inner, samples @ target)) / ridge


Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From positive and negative states, both ``[n, d_model]``, to a unit direction ``[d_model]``."""

METHODS: dict[str, Method] = {"lda": linear_discriminant, "mean_diff": mean_difference}


def cohens_d(positive: np.ndarray, negative: np.ndarray) -> float:
    """Difference of the means of two sets of scores in units of their pooled standard deviation."""
    spread = np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    return float((positive.mean() - negative.mean()) / spread) if spread > 0 else float("nan")


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score exceeds a negative one; ties count half."""
    differences = positive[:, None] - negative[None, :]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def _unit(direction: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(direction)
    if not np.isfinite(length) or length == 0:
        raise ValueError("the two poles have the same mean state: there is no direction between them")
    return direction / length
