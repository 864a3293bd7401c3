"""Choosing the readout checkpoint R of a trait, on training pairs only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from traitscope.analysis.effect_size import cohens_d
from traitscope.checkpoints import Checkpoint
from traitscope.traits.methods import linear_discriminant
from traitscope.traits.pooling import PooledPairs

_DEPTH = (0.40, 0.65)
_NEAR_BEST = 0.05
_N_FOLDS = 5


def choose_readout(checkpoints: Sequence[Checkpoint], pairs: PooledPairs) -> tuple[int, dict[str, float]]:
    """The index of R, and the cross-validated Cohen's d of every candidate by name.

    Candidates are the ``resid_post`` at 40 to 65 % of the depth. The one with the largest d wins; among those
    within 5 % of it, the one nearest to half depth.
    """
    n_layers = 1 + max(checkpoint.layer for checkpoint in checkpoints)
    depths = {
        index: (checkpoint.layer + 1) / n_layers
        for index, checkpoint in enumerate(checkpoints)
        if checkpoint.site == "resid_post"
    }
    candidates = [index for index, depth in depths.items() if _DEPTH[0] <= depth <= _DEPTH[1]]
    if not candidates:
        candidates = [min(depths, key=lambda index: abs(depths[index] - 0.5))]
    found = {index: cross_validated_d(pairs, index) for index in candidates}
    best = max((d for d in found.values() if np.isfinite(d)), default=float("nan"))
    near = [index for index in candidates if not np.isfinite(best) or found[index] >= best - _NEAR_BEST * abs(best)]
    readout = min(near, key=lambda index: abs(depths[index] - 0.5))
    return readout, {checkpoints[index].name: round(d, 4) for index, d in found.items()}


def cross_validated_d(pairs: PooledPairs, checkpoint: int) -> float:
    """Cohen's d of held-out topics, averaged over ordinary and style-crossed pairs.

    Folds are groups of topics. Ordinary pairs of a fold are scored by a reader fitted on all pairs of the other
    topics; style-crossed pairs by one fitted on the ordinary pairs of the other topics, so that a reader of
    style gains nothing.
    """
    positive, negative = pairs.positive[:, checkpoint], pairs.negative[:, checkpoint]
    folds = _topic_folds(pairs.topics)
    by_style = []
    for crossed in (False, True):
        scores: list[tuple[np.ndarray, np.ndarray]] = []
        for fold in np.unique(folds):
            held_out = (folds == fold) & (pairs.crossed == crossed)
            fitted_on = (folds != fold) & (~pairs.crossed if crossed else True)
            if held_out.any() and fitted_on.sum() >= 2:
                scores.append(_held_out_scores(positive, negative, fitted_on, held_out))
        if scores and sum(len(ups) for ups, _ in scores) >= 2:
            by_style.append(cohens_d(*(np.concatenate(side) for side in zip(*scores, strict=True))))
    return float(np.mean(by_style)) if by_style else float("nan")


def _held_out_scores(
    positive: np.ndarray, negative: np.ndarray, fitted_on: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the held-out pairs in units of the training scores, so that folds can be put together."""
    reader = linear_discriminant(positive[fitted_on], negative[fitted_on])
    ups, downs = positive[fitted_on] @ reader, negative[fitted_on] @ reader
    centre = (ups.mean() + downs.mean()) / 2
    spread = np.sqrt((ups.var() + downs.var()) / 2) or 1.0
    return (positive[held_out] @ reader - centre) / spread, (negative[held_out] @ reader - centre) / spread


def _topic_folds(topics: Sequence[str]) -> np.ndarray:
    """The fold of each pair; pairs of one topic share a fold, topics are dealt out in order."""
    order = {topic: number for number, topic in enumerate(dict.fromkeys(topics))}
    n_folds = min(_N_FOLDS, len(order))
    return np.array([order[topic] % n_folds for topic in topics])
