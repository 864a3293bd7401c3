"""How well scores tell two poles apart, with intervals by bootstrap over topics; nulls by flipping pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from traitscope.analysis.effect_size import auroc, cohens_d
from traitscope.traits.methods import Method

_DRAWS = 1000
_COVERAGE = (2.5, 97.5)


@dataclass(frozen=True)
class Separation:
    """Two sets of scores compared.

    Attributes:
        auroc: probability that a positive score exceeds a negative one.
        d: Cohen's d, in pooled standard deviations.
        paired_accuracy: share of pairs whose positive score is the larger one; None for scores without pairs.
        intervals: 95 % by name, from a bootstrap over topics.
    """

    n_positive: int
    n_negative: int
    auroc: float
    d: float
    paired_accuracy: float | None
    intervals: dict[str, tuple[float, float]]

    def described(self) -> dict[str, Any]:
        """As plain rounded values."""
        values = asdict(self)
        values["intervals"] = {name: [round(end, 4) for end in ends] for name, ends in self.intervals.items()}
        for name in ("auroc", "d", "paired_accuracy"):
            if values[name] is not None:
                values[name] = round(values[name], 4)
        return values


def separation(
    positive: np.ndarray,
    negative: np.ndarray,
    positive_topics: Sequence[str],
    negative_topics: Sequence[str] | None = None,
) -> Separation:
    """Compare scores ``[n_positive]`` with ``[n_negative]``; they are pairs where one list of topics is given.

    The bootstrap draws whole topics with replacement (percentile intervals of Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993), as texts on one topic are not independent.
    """
    paired = negative_topics is None
    drawn = _draws(positive, negative, positive_topics, negative_topics or positive_topics)
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"auroc": auroc, "d": cohens_d}
    if paired:
        measures["paired_accuracy"] = _paired_accuracy
    values = {name: measure(positive, negative) for name, measure in measures.items()}
    intervals = {name: _interval([measure(*sides) for sides in drawn]) for name, measure in measures.items()}
    return Separation(
        n_positive=len(positive),
        n_negative=len(negative),
        auroc=values["auroc"],
        d=values["d"],
        paired_accuracy=values.get("paired_accuracy"),
        intervals=intervals,
    )


def _paired_accuracy(positive: np.ndarray, negative: np.ndarray) -> float:
    return float((positive > negative).mean())


def _draws(
    positive: np.ndarray, negative: np.ndarray, positive_topics: Sequence[str], negative_topics: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both sets of scores of as many topics as there are, drawn with replacement; draws that lack a pole are left
    out."""
    names = list(dict.fromkeys([*positive_topics, *negative_topics]))
    rows = [
        (np.flatnonzero(np.array(positive_topics) == name), np.flatnonzero(np.array(negative_topics) == name))
        for name in names
    ]
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(_DRAWS):
        chosen = [rows[topic] for topic in generator.integers(len(names), size=len(names))]
        ups, downs = (np.concatenate(side) for side in zip(*chosen, strict=True))
        if len(ups) > 1 and len(downs) > 1:
            drawn.append((positive[ups], negative[downs]))
    return drawn


def _interval(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, _COVERAGE)
    return float(low), float(high)


def half_flipped(positive: np.ndarray, negative: np.ndarray, n_draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs with the poles of *exactly half* of them exchanged, ``n_draws`` times: what a set without the trait
    would give.

    Flipping each pair with a probability would leave part of the trait in the null: by chance more pairs point one
    way than the other.
    """
    generator = np.random.default_rng(0)
    n_pairs = len(positive)
    flipped = []
    for _ in range(n_draws):
        flip = np.zeros((n_pairs, 1), dtype=bool)
        flip[generator.permutation(n_pairs)[: n_pairs // 2]] = True
        flipped.append((np.where(flip, negative, positive), np.where(flip, positive, negative)))
    return flipped


def split_half_cosine(
    positive: np.ndarray, negative: np.ndarray, topics: Sequence[str], fit: Method, n_draws: int
) -> float:
    """Mean cosine between the directions of two halves of the topics, over ``n_draws`` random divisions."""
    generator = np.random.default_rng(0)
    names = np.array(list(dict.fromkeys(topics)))
    cosines = []
    for _ in range(n_draws):
        one_half = generator.permutation(names)[: len(names) // 2]
        chosen = np.isin(np.array(topics), one_half)
        cosines.append(float(fit(positive[chosen], negative[chosen]) @ fit(positive[~chosen], negative[~chosen])))
    return float(np.mean(cosines))


def norm_ratio(positive: np.ndarray, negative: np.ndarray, nulls: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Length of the difference of class means in units of its median length over ``nulls``."""
    lengths = [np.linalg.norm(ups.mean(axis=0) - downs.mean(axis=0)) for ups, downs in nulls]
    return float(np.linalg.norm(positive.mean(axis=0) - negative.mean(axis=0)) / np.median(lengths))
