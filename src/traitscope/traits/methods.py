"""From pooled states of contrastive texts to unit directions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from traitscope.errors import InputError, near_names

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From the positive and the negative states of pairs, both ``[n, d_model]``, to a unit direction ``[d_model]`` that
rises towards the positive pole. Raises ValueError where the states show no direction."""

_DEVIATION_FLOOR = 0.01
_MOST_ITERATIONS = 1000
_TOLERANCE = 1e-6
_LEAST_LEFT = 1e-4
_NO_DIRECTION = "the two poles have the same mean state: there is no direction between them"


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
    deviation = _floored_deviation(centred)
    scaled = centred / deviation
    shrinkage = float(ledoit_wolf_shrinkage(scaled, assume_centered=True))
    solution = _solve_shrunk(scaled, shrinkage, difference / deviation)
    return _unit(solution / deviation)


def logistic(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Unit direction ``[d_model]`` of a logistic regression (L2, C = 1) on ``[n, d_model]`` states.

    It is fitted on states centred and divided by their deviation, floored as for ``linear_discriminant``, and mapped
    back. Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016).
    """
    from sklearn.linear_model import LogisticRegression

    states = np.concatenate([positive, negative]).astype(np.float64)
    centred = states - states.mean(axis=0)
    deviation = _floored_deviation(centred)
    is_positive = np.arange(len(states)) < len(positive)
    probe = LogisticRegression(tol=_TOLERANCE, max_iter=_MOST_ITERATIONS).fit(centred / deviation, is_positive)
    return _unit(probe.coef_[0] / deviation)


def pca(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Unit direction ``[d_model]``: the first principal component of the pairs' differences, uncentred.

    Row i of both ``[n, d_model]`` arrays is one pair. The sign is that of the mean difference. Source: Zou et al.,
    "Representation Engineering" (2023).
    """
    differences = positive.astype(np.float64) - negative.astype(np.float64)
    if not differences.any():
        raise ValueError(_NO_DIRECTION)
    components = np.linalg.svd(differences, full_matrices=False).Vh
    rises = components[0] @ differences.mean(axis=0) >= 0
    return _unit(components[0] if rises else -components[0])


def random_direction(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """A unit direction ``[d_model]`` that knows nothing of the trait: a control.

    The seed is a hash of the states, so that a fit can be repeated but no two traits or checkpoints share a direction.
    """
    seed = hashlib.sha256(np.concatenate([positive, negative]).astype(np.float32).tobytes()).digest()[:8]
    direction = np.random.default_rng(int.from_bytes(seed, "big")).normal(size=positive.shape[1:])
    return _unit(direction)


METHODS: dict[str, Method] = {
    "lda": linear_discriminant,
    "mean_diff": mean_difference,
    "logistic": logistic,
    "pca": pca,
    "random": random_direction,
}


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        InputError: there is none; near names are offered.
    """
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown; {near_names(name, METHODS)}")
    return METHODS[name]


def without(directions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``directions`` ``[n_checkpoints, d_model]`` orthogonal to all ``others`` ``[n_others, n_checkpoints, d_model]``.

    Raises:
        ValueError: nothing is left of a direction, or one of the others has none at some checkpoint.
    """
    if not np.isfinite(others).all():
        raise ValueError("a trait that it is to avoid has no direction at some checkpoints")
    left = np.empty(directions.shape, dtype=np.float64)
    for checkpoint, direction in enumerate(directions.astype(np.float64)):
        basis = _orthonormal_basis(others[:, checkpoint].astype(np.float64))
        left[checkpoint] = direction - basis.T @ (basis @ direction)
        if np.linalg.norm(left[checkpoint]) < _LEAST_LEFT * np.linalg.norm(direction):
            raise ValueError(f"at checkpoint {checkpoint} nothing of it is left beside the traits that it avoids")
        left[checkpoint] = _unit(left[checkpoint])
    return left


def _orthonormal_basis(vectors: np.ndarray) -> np.ndarray:
    """``[rank, d_model]`` of the span of ``[n, d_model]``."""
    _, strengths, rows = np.linalg.svd(vectors, full_matrices=False)
    return rows[strengths > _LEAST_LEFT * strengths[0]]


def energy_of_two(directions: np.ndarray) -> np.ndarray:
    """Share ``[n]`` of each direction's squared entries that its two largest dimensions hold, for ``[n, d_model]``.

    Massive activations (Sun et al., 2024) sit in very few dimensions; a direction that lies there reads or pushes those
    instead of the trait.
    """
    energy = np.sort(directions.astype(np.float64) ** 2, axis=1)
    return energy[:, -2:].sum(axis=1) / energy.sum(axis=1)


def _floored_deviation(centred: np.ndarray) -> np.ndarray:
    """Standard deviation ``[d_model]`` of ``[n, d_model]``, at least 1 % of the median one."""
    deviation = centred.std(axis=0)
    return np.maximum(deviation, max(_DEVIATION_FLOOR * np.median(deviation), np.finfo(np.float64).tiny))


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


def _unit(direction: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(direction)
    if not np.isfinite(length) or length == 0:
        raise ValueError(_NO_DIRECTION)
    return direction / length
