"""How much the directions of several traits have in common: cosines, and what one trait's reader says of another.

A model that keeps more features than it has dimensions lays them at angles that are small but not zero (Elhage et al.,
"Toy Models of Superposition", 2022). So what two traits share is held against what random directions share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from traitscope.analysis.effect_size import auroc
from traitscope.analysis.maximum import LEVEL, corrected_p

_MARKED_DEVIATIONS = 3
LEAST_TOPICS = 5
"""With fewer topics no relabelling of the pairs can reach the level."""


class PoleStates(Protocol):
    """States of pairs: ``positive`` and ``negative`` are ``[n_pairs, n_checkpoints, d_model]``; topics one a pair."""

    @property
    def positive(self) -> np.ndarray: ...
    @property
    def negative(self) -> np.ndarray: ...
    @property
    def topics(self) -> Sequence[str]: ...


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


def cross_auroc(readers: np.ndarray, readouts: Sequence[int], states: Sequence[PoleStates | None]) -> np.ndarray:
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


def random_cosine_p(cosine: np.ndarray, d_model: int) -> np.ndarray:
    """p ``[...]`` that random unit vectors in ``d_model`` dimensions are as far from orthogonal as ``cosine``
    ``[...]``, corrected for all of them (Šidák 1967); NaN, where there is no direction, is left out and gives 1.

    The square of such a cosine has the distribution Beta(1/2, (d_model − 1)/2).
    """
    from scipy.stats import beta

    alone = beta.sf(np.square(cosine), 0.5, (d_model - 1) / 2)
    n_tests = np.isfinite(cosine).sum()
    return np.nan_to_num(-np.expm1(n_tests * np.log1p(-np.minimum(alone, 1 - 1e-15))), nan=1.0)


def random_cosine_threshold(n_tests: int, d_model: int) -> float:
    """The absolute cosine that has ``random_cosine_p`` 0.05 among ``n_tests``."""
    from scipy.stats import beta

    return float(np.sqrt(beta.isf(-np.expm1(np.log1p(-LEVEL) / n_tests), 0.5, (d_model - 1) / 2)))


@dataclass(frozen=True)
class CrossReading:
    """What each trait's reader, at its readout, says of each trait's pairs; all ``[n_traits, n_traits]``.

    Attributes:
        auroc: as ``cross_auroc``.
        d: the same as Cohen's d.
        p_labels: that the reader tells nothing of the pairs, from relabelling them.
        p_random: that a random direction tells as much, from random readers.
        random_spread: root mean square of the d of random readers.

    Both p are corrected for all cells off the diagonal; the diagonal, where a reader reads its own trait, is 1, and so
    are traits with fewer than 5 topics.
    """

    auroc: np.ndarray
    d: np.ndarray
    p_labels: np.ndarray
    p_random: np.ndarray
    random_spread: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """That the reader tells nothing *or* no more than a random direction."""
        return np.maximum(self.p_labels, self.p_random)


def cross_reading(
    readers: np.ndarray,
    readouts: Sequence[int],
    states: Sequence[PoleStates | None],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> CrossReading:
    """Hold what each reader tells of the other traits' pairs against two nulls, over all cells off the diagonal.

    *Labels*: the poles of all pairs of one topic are exchanged or not, by coins. At most 5 % of models in which no
    reader tells anything of other traits' poles have a cell with ``p_labels <= 0.05``.

    *Random readers*: a random direction often tells poles apart too, as these differ in the few dimensions that move
    most. So every trait's reader is replaced by a random direction at its readout; at most 5 % of sets of random
    readers have a cell with ``p_random <= 0.05``.

    Both compare Cohen's d: an AUROC ends at 1, which random directions reach as well where poles are far apart. A cell
    counts in units of its own spread under the null, and the largest cell of each draw is the null.

    Args:
        readers: ``[n_traits, n_checkpoints, d_model]``.
        readouts: index of each trait's checkpoint.
        states: the pairs of each trait, None where there are none.
    """
    generator = np.random.default_rng(seed)
    n_traits = len(readouts)
    d = np.full((n_traits, n_traits), np.nan)
    relabelled, randomly = (np.full((draws, n_traits, n_traits), np.nan) for _ in range(2))
    enough = [pairs if pairs is not None and len(set(pairs.topics)) >= LEAST_TOPICS else None for pairs in states]
    for a, readout in enumerate(readouts):
        # Drawn for one trait at a time: those of all traits of a large model would take gigabytes.
        directions = generator.normal(size=(readers.shape[-1], draws)).astype(np.float32)
        for b, pairs in enumerate(enough):
            if pairs is not None and a != b:
                randomly[:, a, b] = _effects(*((side @ directions).T for side in _sides(pairs, readout)))
    for b, pairs in enumerate(enough):
        if pairs is None:
            continue
        kept = _kept_labels(pairs.topics, generator, draws)
        for a, readout in enumerate(readouts):
            ups, downs = (side @ readers[a, readout] for side in _sides(pairs, readout))
            d[a, b] = _effects(ups, downs)
            if a != b:
                relabelled[:, a, b] = _effects(np.where(kept, ups, downs), np.where(kept, downs, ups))
    return CrossReading(
        auroc=cross_auroc(readers, readouts, states),
        d=d,
        p_labels=_largest_cell_p(d, relabelled),
        p_random=_largest_cell_p(d, randomly),
        random_spread=_spread(randomly),
    )


def _sides(pairs: PoleStates, checkpoint: int) -> tuple[np.ndarray, np.ndarray]:
    """Both poles' states ``[n_pairs, d_model]`` at one checkpoint."""
    return pairs.positive[:, checkpoint], pairs.negative[:, checkpoint]


def _kept_labels(topics: Sequence[str], generator: np.random.Generator, draws: int) -> np.ndarray:
    """``[n_draws, n_pairs]`` bool, whether a pair keeps its labels; all do in the first draw."""
    names = {name: n for n, name in enumerate(dict.fromkeys(topics))}
    kept = generator.random((draws, len(names))) < 0.5
    kept[0] = True
    return kept[:, [names[topic] for topic in topics]]


def _effects(ups: np.ndarray, downs: np.ndarray) -> np.ndarray:
    """Cohen's d ``[...]`` of scores ``[..., n]``."""
    spread = np.sqrt((ups.var(axis=-1, ddof=1) + downs.var(axis=-1, ddof=1)) / 2)
    return (ups.mean(axis=-1) - downs.mean(axis=-1)) / np.where(spread > 0, spread, np.nan)


def _spread(null: np.ndarray) -> np.ndarray:
    """Root mean square ``[...]`` of ``[n_draws, ...]``."""
    return np.sqrt(np.square(null).mean(axis=0))


def _largest_cell_p(found: np.ndarray, null: np.ndarray) -> np.ndarray:
    spread = np.maximum(_spread(null), 1e-9)
    if np.isnan(spread).all():
        return np.ones_like(found)
    own = np.abs(found) / spread
    largest = np.nanmax(np.abs(null) / spread, axis=(1, 2))
    among = np.append(largest, np.nanmax(np.where(np.isnan(null[0]), np.nan, own)))  # so that no p is zero
    return corrected_p(own, among)
