"""Where along the model a trait can be read that the words alone do not give away.

Held-out pairs are told apart nearly perfectly by the embeddings already, so the first layer above chance says nothing.
What is asked instead is the *gain*: by how much the scores of a checkpoint tell the poles apart better than those of
checkpoint 0 and than a reader of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from traitscope.analysis.maximum import LEVEL, corrected_p, sign_flips, threshold
from traitscope.analysis.resampling import expanded

LEAST_TOPICS = 10
"""With fewer topics nothing is said: a gain from an AUROC of 0.64 to 0.99 at 12 of 20 checkpoints is found in 15 % of
cases with 8 topics, 34 % with 10, 55 % with 12, 74 % with 14 and 98 % with 24."""
LEAST_ROOM = 0.05
_COVERAGE = 0.95

Outcome = Literal["emerges", "no gain shown", "no room", "inconclusive"]


@dataclass(frozen=True)
class Curve:
    """Values along the checkpoints with 95 % intervals, all ``[n_checkpoints]``; NaN ends where topics are too few."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Gain:
    """How much better the checkpoints tell the poles apart than one other reader.

    Attributes:
        curve: differences of AUROC with bootstrap intervals.
        p: ``[n_checkpoints]``, corrected for looking at all checkpoints; 1 at checkpoint 0, which is never tested.
        threshold: the gain that readers without one would reach at any checkpoint in 5 % of cases.
    """

    curve: Curve
    p: np.ndarray
    threshold: float

    @property
    def first(self) -> int | None:
        """Index of the first checkpoint with this gain that the next one has too."""
        return _first_lasting(self.p <= LEVEL)


@dataclass(frozen=True)
class Emergence:
    """What a set of texts says of one trait.

    Attributes:
        auroc: of each checkpoint's scores.
        words: AUROC of the reader of words, with its 95 % interval.
        over_first, over_words: the gains over checkpoint 0 and over the reader of words.
        checkpoint: index of the emergence, None unless the outcome is ``emerges``.
    """

    n_topics: int
    auroc: Curve
    words: tuple[float, float, float]
    over_first: Gain
    over_words: Gain
    outcome: Outcome
    checkpoint: int | None


def emergence(
    positive: np.ndarray,
    negative: np.ndarray,
    positive_topics: Sequence[str],
    negative_topics: Sequence[str],
    words: tuple[np.ndarray, np.ndarray],
    *,
    seed: int = 0,
    bootstraps: int = 1000,
) -> Emergence:
    """Find the first checkpoint that tells the poles apart better than checkpoint 0 *and* than the words.

    The rule: both gains have ``p <= 0.05`` there and at the next checkpoint. Each gain is tested with topics as units:
    an AUROC is a mean of one part a topic (see ``topic_parts``), and where there is no gain, the parts at a checkpoint
    and of the other reader are exchangeable, so that the sign of a topic's difference is as good as a coin's. The
    signs of all topics are drawn anew, the same at all checkpoints; p is the share of draws whose largest gain at any
    checkpoint is no smaller than the one found (see ``maximum``). So no more than 5 % of traits without a gain have an
    emergence anywhere. Intervals are expanded percentiles (see ``resampling``) of a bootstrap that draws whole topics.

    Args:
        positive, negative: scores ``[n_checkpoints, n_texts]``, each checkpoint's by a reader of its own.
        positive_topics, negative_topics: of each text.
        words: scores of the reader of words for the same texts, ``[n_positive]`` and ``[n_negative]``.

    Returns:
        ``inconclusive`` with fewer than 10 topics; ``no room`` where checkpoint 0 or the words have an AUROC above
        0.95, so that there is next to nothing to gain.
    """
    ups, downs = (np.vstack([side, said]) for side, said in zip((positive, negative), words, strict=True))
    wins = comparisons(ups, downs)
    places = Places(positive_topics, negative_topics)
    parts = topic_parts(wins, places)
    drawn = _bootstrapped(wins, places, seed, bootstraps)
    flips = sign_flips(places.n_topics, seed=seed)
    first, said, last = 0, len(parts) - 1, len(parts) - 1
    gains = {
        other: _gain(parts[:last], parts[other], drawn[:, :last] - drawn[:, [other]], flips) for other in (first, said)
    }
    auroc = parts.mean(axis=1)
    found = _first_lasting((gains[first].p <= LEVEL) & (gains[said].p <= LEVEL))
    outcome = _outcome(places.n_topics, found, room=1 - float(max(auroc[first], auroc[said])))
    of_words = _curve(auroc[said:], drawn[:, said:], places.n_topics)
    return Emergence(
        n_topics=places.n_topics,
        auroc=_curve(auroc[:last], drawn[:, :last], places.n_topics),
        words=(float(auroc[said]), float(of_words.low[0]), float(of_words.high[0])),
        over_first=gains[first],
        over_words=gains[said],
        outcome=outcome,
        checkpoint=found if outcome == "emerges" else None,
    )


def _outcome(n_topics: int, found: int | None, room: float) -> Outcome:
    if n_topics < LEAST_TOPICS:
        return "inconclusive"
    if found is not None:
        return "emerges"
    return "no room" if room < LEAST_ROOM else "no gain shown"


class Places:
    """Which texts belong to which topic; topics without a text at either pole do not occur."""

    def __init__(self, positive_topics: Sequence[str], negative_topics: Sequence[str]) -> None:
        number = {name: n for n, name in enumerate(dict.fromkeys([*positive_topics, *negative_topics]))}
        self.n_topics = len(number)
        self.positive = np.array([number[name] for name in positive_topics])
        self.negative = np.array([number[name] for name in negative_topics])


def comparisons(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """``[n_readers, n_positive, n_negative]``: 1 where the positive score is larger, 0.5 for ties, else 0.

    Args:
        positive, negative: scores ``[n_readers, n_texts]``.
    """
    differences = positive[:, :, None] - negative[:, None, :]
    return (differences > 0) + (differences == 0) / 2


def topic_parts(wins: np.ndarray, places: Places) -> np.ndarray:
    """``[n_readers, n_topics]`` whose mean over topics is the AUROC, and whose spread is that of the AUROC.

    The part of a topic is how often its positive texts win against all negative ones, plus how often its negative
    texts lose, less the AUROC: the structural components of DeLong et al. (1988), "Comparing the areas under two or
    more correlated receiver operating characteristic curves". (Half the sum would have the same mean, but half the
    spread: an AUROC moves with the draw of its positive and with that of its negative texts.)
    """
    _, n_positive, n_negative = wins.shape
    of_topic = np.eye(places.n_topics)
    won = wins.mean(axis=2) @ of_topic[places.positive] / n_positive
    lost = wins.mean(axis=1) @ of_topic[places.negative] / n_negative
    return (won + lost) * places.n_topics - wins.mean(axis=(1, 2))[:, None]


def _gain(parts: np.ndarray, other: np.ndarray, drawn: np.ndarray, flips: np.ndarray) -> Gain:
    gains = parts - other
    found = gains.mean(axis=1)
    largest = (gains[1:] @ flips.T).max(axis=0) / flips.shape[1]
    p = corrected_p(found, largest)
    p[0] = 1.0
    return Gain(_curve(found, drawn, flips.shape[1]), p, threshold(largest))


def _first_lasting(above: np.ndarray) -> int | None:
    """The first index that is followed by another one that is above; the last has no follower."""
    lasting = np.flatnonzero(above[:-1] & above[1:])
    return int(lasting[0]) if len(lasting) else None


def _bootstrapped(wins: np.ndarray, places: Places, seed: int, bootstraps: int) -> np.ndarray:
    """AUROC ``[n_draws, n_readers]`` of topics drawn with replacement; draws that lack a pole are left out."""
    generator = np.random.default_rng(seed)
    times = generator.multinomial(places.n_topics, np.full(places.n_topics, 1 / places.n_topics), size=bootstraps)
    ups, downs = times[:, places.positive].astype(float), times[:, places.negative].astype(float)
    there = (ups.sum(axis=1) > 0) & (downs.sum(axis=1) > 0)
    ups, downs = ups[there], downs[there]
    won = np.stack([((ups @ of_reader) * downs).sum(axis=1) for of_reader in wins], axis=1)
    return won / (ups.sum(axis=1) * downs.sum(axis=1))[:, None]


def _curve(value: np.ndarray, drawn: np.ndarray, n_topics: int) -> Curve:
    if n_topics < LEAST_TOPICS:
        nothing = np.full(len(value), np.nan)
        return Curve(value, nothing, nothing)
    tail = (1 - expanded(_COVERAGE, n_topics)) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail), axis=0)
    return Curve(value, low, high)
