"""How much the directions of several traits have in common: cosines, and what one trait's reader says of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traitscope.analysis.effect_size import auroc
from traitscope.traits.pooling import PooledPairs

_MARKED_DEVIATIONS = 3


@dataclass(frozen=True)
class RandomCosine:
    """The cosine of two independent random unit vectors in ``d_model`` dimensions."""

    d_model: int

    @property
    def mean_absolute(self) -> float:
        """Expected absolute value, ``√(2/(π·d_model))`` for large ``d_model``."""
        return float(np.sqrt(2 / (np.pi * self.d_model)))

    @property
    def deviation(self) -> float:
        """Standard deviation, ``1/√d_model``."""
        return float(1 / np.sqrt(self.d_model))

    @property
    def marked_beyond(self) -> float:
        """Absolute values above this are marked: three standard deviations."""
        return _MARKED_DEVIATIONS * self.deviation


def cosines(directions: np.ndarray) -> np.ndarray:
    """``[n_traits, n_traits, n_checkpoints]`` of unit ``directions`` ``[n_traits, n_checkpoints, d_model]``."""
    return np.einsum("acd,bcd->abc", directions.astype(np.float64), directions.astype(np.float64))


def at_readouts(values: np.ndarray, readouts: Sequence[int]) -> np.ndarray:
    """``[n_traits, n_traits]``: row a of ``[n_traits, n_traits, n_checkpoints]`` at the readout of trait a."""
    rows = np.arange(len(readouts))
    return values[rows, :, list(readouts)]


def cross_auroc(readers: np.ndarray, readouts: Sequence[int], states: Sequence[PooledPairs | None]) -> np.ndarray:
    """``[n_traits, n_traits]``: how well the reader of trait a, at its readout, tells the poles of trait b apart.

    ``readers`` is ``[n_traits, n_checkpoints, d_model]``; ``states`` are the pairs of each trait, NaN where there are
    none. Below 0.5 the reader rises towards the other trait's negative pole.
    """
    found = np.full((len(readouts), len(states)), np.nan)
    for a, readout in enumerate(readouts):
        for b, pairs in enumerate(states):
            if pairs is not None:
                ups, downs = (side[:, readout] @ readers[a, readout] for side in (pairs.positive, pairs.negative))
                found[a, b] = auroc(ups, downs)
    return found


def random_auroc_deviation(n_pairs: int) -> float:
    """Standard deviation of the AUROC of ``n_pairs`` positive and as many negative scores that do not differ.

    Source: the variance of Mann and Whitney's U (1947), ``(2n+1)/(12n²)`` of U/n².
    """
    return float(np.sqrt((2 * n_pairs + 1) / (12 * n_pairs**2)))
