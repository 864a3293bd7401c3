"""Bugs caught here: an emergence where there is none (looking at 40 checkpoints and testing one), one that is missed or
found at the wrong checkpoint, the embeddings' own separation counted as a gain."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.emergence import Emergence, Places, comparisons, emergence, topic_parts
from traitscope.analysis.maximum import LEVEL

N_CHECKPOINTS = 20


def _texts(generator: np.random.Generator, n_topics: int, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores at both poles that differ by ``apart`` ``[n_checkpoints + 1]`` deviations; the last row are the words.

    Neighbouring checkpoints are alike, and texts on one topic are, as in a model.
    """
    shape = (2, len(apart), n_topics)
    steps = generator.normal(size=shape)
    noise = np.empty(shape)
    noise[:, 0] = steps[:, 0]
    for checkpoint in range(1, len(apart)):
        noise[:, checkpoint] = 0.8 * noise[:, checkpoint - 1] + 0.6 * steps[:, checkpoint]
    noise = 0.8 * noise + 0.6 * generator.normal(size=(1, len(apart), n_topics))
    return noise[0] + apart[:, None], noise[1]


def _found(generator: np.random.Generator, n_topics: int, apart: np.ndarray) -> Emergence:
    ups, downs = _texts(generator, n_topics, apart)
    topics = [f"topic {n}" for n in range(n_topics)]
    return emergence(ups[:-1], downs[:-1], topics, topics, (ups[-1], downs[-1]), bootstraps=50)


@pytest.mark.parametrize("n_topics", [10, 24])
def test_readers_that_are_no_better_than_the_first_have_no_emergence(n_topics: int) -> None:
    """Each gain alone keeps the 5 % at all checkpoints together; both in a row are rarer."""
    generator = np.random.default_rng(1)
    found = [_found(generator, n_topics, np.full(N_CHECKPOINTS + 1, 1.0)) for _ in range(200)]
    for gains in ([e.over_first for e in found], [e.over_words for e in found]):
        assert np.mean([(gain.p <= LEVEL).any() for gain in gains]) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean([e.outcome == "emerges" for e in found]) <= 0.05


def test_a_planted_gain_is_found_where_it_begins() -> None:
    apart = np.full(N_CHECKPOINTS + 1, 0.5)
    apart[8:-1] = 3.5
    generator = np.random.default_rng(2)
    found = [_found(generator, 24, apart).checkpoint for _ in range(200)]
    assert np.mean([checkpoint is not None for checkpoint in found]) > 0.9
    assert np.mean([checkpoint == 8 for checkpoint in found]) > 0.8


def test_words_that_tell_as_much_leave_no_emergence() -> None:
    """A gain over the embeddings alone is none over the words."""
    apart = np.full(N_CHECKPOINTS + 1, 2.0)
    apart[0] = 0.0
    found = _found(np.random.default_rng(3), 24, apart)
    assert (found.over_first.p[1:] <= LEVEL).mean() > 0.5
    assert found.outcome == "no gain shown"


def test_embeddings_that_tell_everything_leave_no_room() -> None:
    found = _found(np.random.default_rng(4), 14, np.full(N_CHECKPOINTS + 1, 6.0))
    assert found.outcome == "no room"
    assert found.auroc.value[0] > 0.99


def test_eight_topics_say_nothing_however_large_the_gain() -> None:
    apart = np.full(N_CHECKPOINTS + 1, 9.0)
    apart[[0, -1]] = 0.0
    assert _found(np.random.default_rng(5), 8, apart).outcome == "inconclusive"


def test_texts_without_a_partner_count_once_and_a_topic_is_one_unit() -> None:
    """Three continuations of one prompt are no three prompts."""
    ups, downs = np.array([[3.0, 3.1, 3.2, 1.0], [0, 0, 0, 0]]), np.array([[0.0, 2.0], [0, 0]])
    wins = comparisons(ups, downs)
    parts = topic_parts(wins, Places(["a", "a", "a", "b"], ["a", "b"]))
    assert parts.shape == (2, 2)
    assert parts.mean(axis=1) == pytest.approx([7 / 8, 0.5])
