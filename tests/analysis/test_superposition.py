"""Bugs caught here: a matrix read along the wrong side or at the wrong readout, chance stated wrongly, traits that
share something in noise, poles that any direction tells apart taken for something that two traits share, random
readers of all traits held at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from traitscope.analysis.effect_size import auroc
from traitscope.analysis.superposition import (
    RandomCosine,
    at_readouts,
    cosines,
    cross_auroc,
    cross_reading,
    random_auroc_deviation,
    random_cosine_p,
    random_cosine_threshold,
)
from traitscope.traits.pooling import PooledPairs


def _axes(*which: tuple[int, int]) -> np.ndarray:
    """One trait: at each checkpoint a unit vector ``sign`` along ``axis``."""
    directions = np.zeros((len(which), 6))
    for checkpoint, (axis, sign) in enumerate(which):
        directions[checkpoint, axis] = sign
    return directions


THREE = np.stack([_axes((0, 1), (1, 1)), _axes((0, 1), (2, 1)), _axes((3, 1), (1, -1))])


def test_equal_directions_have_cosine_one_orthogonal_ones_none() -> None:
    found = cosines(THREE)
    assert found[0, 1].tolist() == [1, 0]
    assert found[0, 2].tolist() == [0, -1]
    assert found[2, 1].tolist() == [0, 0]
    assert at_readouts(found, [0, 1, 1]).tolist() == [[1, 1, 0], [0, 1, 0], [-1, 0, 1]]


def _planted(direction: np.ndarray, checkpoint: int) -> PooledPairs:
    """The poles differ along ``direction`` at ``checkpoint``; all else is noise."""
    positive, negative = np.random.default_rng(0).normal(size=(2, 200, 2, 6))
    positive[:, checkpoint] += 8 * direction
    return PooledPairs(positive, negative, tuple("t" * 200), np.zeros(200, dtype=bool))


def test_a_reader_tells_the_pairs_apart_that_differ_along_it_at_its_own_readout() -> None:
    states = [_planted(THREE[0, 1], 1), None, _planted(THREE[0, 0], 0)]
    found = cross_auroc(THREE, [1, 0, 1], states)
    assert found[0, 0] > 0.99
    assert found[2, 0] < 0.01, "the reader of trait 2 runs the other way"
    assert found[1, 2] > 0.99, "trait 1 has the direction of trait 0 at checkpoint 0, where it is read"
    assert np.isnan(found[:, 1]).all()
    for a, b in ((0, 2), (1, 0), (2, 2)):
        assert found[a, b] == pytest.approx(0.5, abs=0.15)


def test_chance_is_what_random_draws_give() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(size=(20_000, 64))
    found = draws[:, 0] / np.linalg.norm(draws, axis=1)
    assert found.std() == pytest.approx(RandomCosine(64).deviation, rel=0.02)
    assert np.abs(found).mean() == pytest.approx(RandomCosine(64).mean_absolute, rel=0.02)
    scores = [auroc(*random.normal(size=(2, 12))) for _ in range(4000)]
    assert np.std(scores) == pytest.approx(random_auroc_deviation(12), rel=0.04)


def _random_units(generator: np.random.Generator, *shape: int) -> np.ndarray:
    drawn = generator.normal(size=shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def test_random_directions_overlap_anywhere_in_five_percent_of_models() -> None:
    generator = np.random.default_rng(0)
    upper = np.triu_indices(8, 1)
    found = []
    for _ in range(1000):
        directions = _random_units(generator, 8, 1, 48)
        found.append((random_cosine_p(cosines(directions)[..., 0][upper], 48) <= 0.05).any())
    assert np.mean(found) == pytest.approx(0.05, abs=0.02)


def test_a_planted_overlap_is_found_and_a_missing_direction_is_none() -> None:
    p = random_cosine_p(np.array([0.3, 0.01, np.nan, -0.3, 1.0]), 576)
    assert (p[[0, 3, 4]] < 0.001).all()
    assert p[2] == 1
    assert p[1] > 0.9
    assert random_cosine_p(np.full(6, random_cosine_threshold(6, 576)), 576) == pytest.approx(0.05)


def _states(generator: np.random.Generator, apart: np.ndarray, n_pairs: int = 10) -> PooledPairs:
    """Pairs at one checkpoint whose poles differ by ``apart`` ``[d]``, with a few dimensions that move most."""
    scale = np.ones(len(apart))
    scale[:2] = 6
    positive, negative = generator.normal(size=(2, n_pairs, 1, len(apart))) * scale
    topics = tuple(f"topic {n}" for n in range(n_pairs))
    return PooledPairs(positive + apart, negative, topics, np.zeros(n_pairs, dtype=bool))


def _any(p: np.ndarray) -> bool:
    return bool((p <= 0.05).any())


def test_neither_null_finds_anything_in_noise() -> None:
    """Labels that mean nothing; and random readers on poles that the widest dimensions tell apart."""
    generator = np.random.default_rng(1)
    nothing, wide = np.zeros(12), np.array([9.0, 9.0] + [0.0] * 10)
    labels, random, told = [], [], []
    for _ in range(200):
        readers = _random_units(generator, 3, 1, 12)
        noise = [_states(generator, nothing) for _ in range(3)]
        labels.append(_any(cross_reading(readers, [0] * 3, noise, draws=400).p_labels))
        apart = [_states(generator, wide) for _ in range(3)]
        reading = cross_reading(readers, [0] * 3, apart, draws=400)
        random.append(_any(reading.p_random))
        told.append(_any(reading.p_labels))
    assert np.mean(labels) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(random) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(told) > 0.3, "random readers do tell such poles apart, so labels alone would mislead"


def test_a_planted_overlap_is_found_in_its_cell_with_its_direction() -> None:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(200):
        readers = _random_units(generator, 3, 1, 60)
        apart = [14 * readers[0, 0], 14 * readers[1, 0] - 14 * readers[0, 0], np.zeros(60)]
        reading = cross_reading(readers, [0] * 3, [_states(generator, a, 14) for a in apart], draws=400)
        assert (np.diag(reading.p) == 1).all()
        found.append(reading.p <= 0.05)
        assert reading.auroc[0, 1] < 0.5
    shares = np.mean(found, axis=0)
    assert shares[0, 1] > 0.9
    assert shares[2, 0] <= 0.1
    assert shares[:, 2].max() <= 0.1


def test_traits_without_enough_topics_are_left_out() -> None:
    generator = np.random.default_rng(3)
    readers = _random_units(generator, 2, 1, 12)
    reading = cross_reading(readers, [0, 0], [_states(generator, 99 * readers[0, 0], 4), None])
    assert reading.auroc[0, 0] == 1
    assert (reading.p == 1).all()


def test_random_readers_of_many_traits_are_not_held_at_once() -> None:
    generator = np.random.default_rng(4)
    readers = _random_units(generator, 12, 1, 600)
    states = [_states(generator, np.zeros(600)) for _ in range(12)]
    tracemalloc.start()
    cross_reading(readers, [0] * 12, states)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6, "the draws of twelve traits alone are 115 MB as float64"
