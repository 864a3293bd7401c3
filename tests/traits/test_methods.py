"""Bugs caught here: a wrong solve, a direction with the wrong sign, a readout chosen on what it was fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from traitscope.checkpoints import checkpoints_of
from traitscope.errors import InputError
from traitscope.traits import readout
from traitscope.traits.methods import (
    METHODS,
    energy_of_two,
    find_method,
    linear_discriminant,
    logistic,
    mean_difference,
    pca,
    random_direction,
    without,
)
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


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_equal_poles_are_refused(method: str) -> None:
    states = np.ones((4, 3))
    with pytest.raises(ValueError, match="no direction"):
        METHODS[method](states, states)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_each_method_finds_a_planted_direction_and_its_sign(method: str) -> None:
    random = np.random.default_rng(0)
    planted = random.normal(size=20)
    planted /= np.linalg.norm(planted)
    positive, negative = random.normal(size=(2, 400, 20)) + 30.0
    found = METHODS[method](positive + 2 * planted, negative - 2 * planted)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert found @ planted > 0.95
    assert METHODS[method](negative - 2 * planted, positive + 2 * planted) @ planted < -0.95


def test_logistic_equals_newtons_method_on_scaled_states() -> None:
    positive, negative = _classes(3, 30, 8)
    states = np.concatenate([positive, negative])
    deviation = states.std(axis=0)
    features = np.column_stack([(states - states.mean(axis=0)) / deviation, np.ones(len(states))])
    labels, penalty = np.repeat([1.0, 0.0], 30), np.diag([1.0] * 8 + [0.0])
    weights = np.zeros(9)
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ weights))
        hessian = features.T @ (features * (p * (1 - p))[:, None]) + penalty
        weights -= np.linalg.solve(hessian, features.T @ (p - labels) + penalty @ weights)
    expected = weights[:8] / deviation
    np.testing.assert_allclose(logistic(positive, negative), expected / np.linalg.norm(expected), atol=1e-5)


def test_pca_follows_the_largest_difference_of_pairs_not_of_states() -> None:
    """States vary most along 0, pairs differ most along 2 with either sign, and in the mean along 1."""
    sizes = np.array([9.0, -9.0, 9.0, -6.0])
    negative = np.zeros((4, 3))
    negative[:, 0] = [0, 100, 200, 300]
    positive = negative + np.column_stack([np.zeros(4), np.ones(4), sizes])
    found = pca(positive, negative)
    _, vectors = np.linalg.eigh((positive - negative).T @ (positive - negative))
    assert abs(found @ vectors[:, -1]) == pytest.approx(1)
    assert found[2] > 0.99, "its sign is that of the mean difference, 0.75 along 2"
    assert pca(negative, positive)[2] < -0.99


def test_the_random_control_is_repeated_but_not_shared() -> None:
    one, other = _classes(0, 10, 500), _classes(1, 10, 500)
    np.testing.assert_array_equal(random_direction(*one), random_direction(*one))
    assert abs(random_direction(*one) @ random_direction(*other)) < 0.2
    assert abs(random_direction(*one) @ mean_difference(*one)) < 0.2


def test_an_unknown_method_offers_a_near_one() -> None:
    with pytest.raises(InputError, match="did you mean logistic"):
        find_method("logistics")


def test_without_leaves_nothing_along_dependent_others() -> None:
    random = np.random.default_rng(0)
    direction, a, b = random.normal(size=(3, 2, 16))
    others = np.stack([a, b, a + b, a])
    left = without(direction, others)
    np.testing.assert_allclose(np.einsum("cd,ocd->oc", left, others), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), 1)
    assert (np.einsum("cd,cd->c", left, direction) > 0).all()
    with pytest.raises(ValueError, match="checkpoint 0 nothing of it is left"):
        without(a + b, others)
    with pytest.raises(ValueError, match="no direction at some checkpoints"):
        without(direction, np.where(np.arange(2)[:, None] == 0, np.nan, others))


def test_energy_of_two_by_hand() -> None:
    np.testing.assert_allclose(energy_of_two(np.array([[-3.0, 1, 0, 2], [1, 1, 1, 1]])), [13 / 14, 1 / 2])


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
    chosen, found = choose_readout(checkpoints, _pairs(10, strengths))
    assert names[chosen] == "resid_post.5"
    assert set(found) == {"resid_post.3", "resid_post.4", "resid_post.5"}


def test_of_equal_candidates_the_one_nearest_to_half_depth_is_taken() -> None:
    checkpoints = checkpoints_of([True] * 10)
    pairs = _pairs(10, {})
    positive = pairs.positive.copy()
    positive[:, :, 3] += 40.0
    same = PooledPairs(
        np.repeat(positive[:, :1], 21, 1), np.repeat(pairs.negative[:, :1], 21, 1), pairs.topics, pairs.crossed
    )
    chosen, _ = choose_readout(checkpoints, same)
    assert checkpoints[chosen].name == "resid_post.4"


def test_a_readout_is_found_where_every_candidate_points_the_wrong_way(monkeypatch: pytest.MonkeyPatch) -> None:
    d = {8: -2.0, 10: -1.5, 12: -1.0}
    monkeypatch.setattr(readout, "cross_validated_d", lambda _pairs, index: d[index])
    checkpoints = checkpoints_of([True] * 10)
    assert choose_readout(checkpoints, _pairs(10, {}))[0] == max(d, key=d.__getitem__)


def test_cross_validation_finds_nothing_in_noise_and_is_not_fooled_by_style() -> None:
    assert abs(cross_validated_d(_pairs(3, {}), 2)) < 1.0
    pairs = _pairs(3, {})
    positive, negative = pairs.positive.copy(), pairs.negative.copy()
    sign = np.where(pairs.crossed, -1.0, 1.0)
    positive[:, 2, 5] += 4 * sign
    negative[:, 2, 5] -= 4 * sign
    assert cross_validated_d(PooledPairs(positive, negative, pairs.topics, pairs.crossed), 2) < 1.0
