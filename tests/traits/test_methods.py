"""Bugs caught here: a wrong solve, a direction with the wrong sign, a readout chosen on what it was fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from traitscope.checkpoints import checkpoints_of
from traitscope.traits.methods import auroc, cohens_d, linear_discriminant, mean_difference
from traitscope.traits.pooling import PooledPairs
from traitscope.traits.readout import choose_readout, cross_validated_d


def _classes(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    mix = random.normal(size=(d, d)) * random.lognormal(size=d)
    centre = random.normal(size=d)
    return random.normal(size=(n, d)) @ mix + centre, random.normal(size=(n, d)) @ mix - centre


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 40), d=st.integers(2, 60))
def test_the_discriminant_equals_the_dense_solution(seed: int, n: int, d: int) -> None:
    positive, negative = _classes(seed, n, d)
    centred = np.concatenate([positive - positive.mean(0), negative - negative.mean(0)])
    deviation = np.maximum(centred.std(0), 0.01 * np.median(centred.std(0)))
    covariance = LedoitWolf(assume_centered=True).fit(centred / deviation).covariance_
    dense = np.linalg.solve(covariance, (positive.mean(0) - negative.mean(0)) / deviation) / deviation
    np.testing.assert_allclose(linear_discriminant(positive, negative), dense / np.linalg.norm(dense), atol=1e-6)


def test_no_matrix_of_the_models_width_is_formed() -> None:
    """A d × d matrix of this width would take 80 GB."""
    random = np.random.default_rng(0)
    positive, negative = random.normal(size=(2, 12, 100_000))
    positive[:, 7] += 50
    assert np.argmax(np.abs(mean_difference(positive, negative))) == 7
    assert linear_discriminant(positive, negative)[7] > 0


def test_equal_poles_are_refused() -> None:
    states = np.ones((4, 3))
    with pytest.raises(ValueError, match="no direction"):
        mean_difference(states, states)


def test_auroc_and_d_by_hand() -> None:
    assert auroc(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 1) / 6)
    assert cohens_d(np.array([1.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx(1 / np.sqrt(2))


def _pairs(n_layers: int, strength: dict[int, float], n_pairs: int = 40, d: int = 16) -> PooledPairs:
    """Noise everywhere; at the checkpoints of ``strength`` the poles differ along one dimension."""
    random = np.random.default_rng(0)
    positive, negative = random.normal(size=(2, n_pairs, 1 + 2 * n_layers, d))
    for checkpoint, shift in strength.items():
        positive[:, checkpoint, 3] += shift
    topics = tuple(f"topic {n // 2}" for n in range(n_pairs))
    return PooledPairs(positive, negative, topics, np.arange(n_pairs) % 3 == 0)


def test_the_readout_is_the_planted_layer_within_its_range() -> None:
    checkpoints = checkpoints_of([True] * 10)
    names = [checkpoint.name for checkpoint in checkpoints]
    strengths = {names.index("resid_post.5"): 4.0, names.index("resid_post.8"): 9.0, names.index("resid_mid.4"): 9.0}
    readout, found = choose_readout(checkpoints, _pairs(10, strengths))
    assert names[readout] == "resid_post.5"
    assert set(found) == {"resid_post.3", "resid_post.4", "resid_post.5"}


def test_of_equal_candidates_the_one_nearest_to_half_depth_is_taken() -> None:
    checkpoints = checkpoints_of([True] * 10)
    pairs = _pairs(10, {})
    positive = pairs.positive.copy()
    positive[:, :, 3] += 40.0
    same = PooledPairs(
        np.repeat(positive[:, :1], 21, 1), np.repeat(pairs.negative[:, :1], 21, 1), pairs.topics, pairs.crossed
    )
    readout, _ = choose_readout(checkpoints, same)
    assert checkpoints[readout].name == "resid_post.4"


def test_cross_validation_finds_nothing_in_noise_and_is_not_fooled_by_style() -> None:
    assert abs(cross_validated_d(_pairs(3, {}), 2)) < 1.0
    pairs = _pairs(3, {})
    positive, negative = pairs.positive.copy(), pairs.negative.copy()
    sign = np.where(pairs.crossed, -1.0, 1.0)
    positive[:, 2, 5] += 4 * sign
    negative[:, 2, 5] -= 4 * sign
    assert cross_validated_d(PooledPairs(positive, negative, pairs.topics, pairs.crossed), 2) < 1.0
