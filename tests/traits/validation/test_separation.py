"""Bugs caught here: a null that keeps part of the trait, a bootstrap over texts instead of topics, a cosine of a
direction with itself."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from traitscope.traits.methods import mean_difference
from traitscope.traits.validation.separation import half_flipped, norm_ratio, separation, split_half_cosine

N_PAIRS, D_MODEL = 40, 24


def planted(strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose poles differ by ``strength`` along the first dimension, in noise of deviation 1."""
    generator = np.random.default_rng(seed)
    positive, negative = generator.normal(size=(2, N_PAIRS, D_MODEL))
    positive[:, 0] += strength
    return positive, negative


def test_separation_agrees_with_another_library_and_holds_its_own_value() -> None:
    positive, negative = (scores[:, 0] for scores in planted(1.5))
    found = separation(positive, negative, [str(n // 2) for n in range(N_PAIRS)])
    labels = [1] * N_PAIRS + [0] * N_PAIRS
    assert found.auroc == pytest.approx(roc_auc_score(labels, np.concatenate([positive, negative])))
    assert found.paired_accuracy == (positive > negative).mean()
    for name, value in (("auroc", found.auroc), ("d", found.d), ("paired_accuracy", found.paired_accuracy)):
        low, high = found.intervals[name]
        assert low <= value <= high
        assert high > low


def test_the_bootstrap_draws_topics_not_texts() -> None:
    # Twenty copies of each of four topics: as topics there are four observations, as texts eighty.
    generator = np.random.default_rng(1)
    positive, negative = generator.normal(0.5, 1, 4), generator.normal(0, 1, 4)
    copied = [np.repeat(scores, 20) + generator.normal(0, 1e-3, 80) for scores in (positive, negative)]
    by_topic = separation(*copied, [str(n // 20) for n in range(80)]).intervals["auroc"]
    by_text = separation(*copied, [str(n) for n in range(80)]).intervals["auroc"]
    assert by_topic[1] - by_topic[0] > 2 * (by_text[1] - by_text[0])


def test_the_null_flips_exactly_half_of_the_pairs_and_holds_nothing_of_the_trait() -> None:
    positive, negative = planted(50.0)
    for ups, downs in half_flipped(positive, negative, 50):
        assert (ups[:, 0] < downs[:, 0]).sum() == N_PAIRS // 2
        assert abs((ups - downs)[:, 0].mean()) < 1, "free sign flips would leave some 8 of the trait's 50"
        np.testing.assert_allclose(ups + downs, positive + negative)


def test_a_planted_direction_is_stable_and_long_and_noise_is_neither() -> None:
    topics = [str(n) for n in range(N_PAIRS)]
    for strength, is_trait in ((6.0, True), (0.0, False)):
        positive, negative = planted(strength)
        cosine = split_half_cosine(positive, negative, topics, mean_difference, 20)
        ratio = norm_ratio(positive, negative, half_flipped(positive, negative, 100))
        assert (cosine > 0.9, ratio > 4) == (is_trait, is_trait)
        if not is_trait:
            assert cosine < 0.2
            assert ratio < 1.5


def test_halves_share_no_topic() -> None:
    # Two topics that point in opposite directions: any half with both would have cosine near 0, not −1.
    positive = np.zeros((10, 2))
    positive[:, 0] = [1.0] * 5 + [-1.0] * 5
    positive[:, 1] = 1e-3
    assert split_half_cosine(positive, np.zeros((10, 2)), ["a"] * 5 + ["b"] * 5, mean_difference, 5) < -0.99
