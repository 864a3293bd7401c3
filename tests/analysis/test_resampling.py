"""Bugs caught here: an interval that covers less than it says, a test that finds too much in noise or nothing at all,
an answer that changes from call to call."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.resampling import (
    LEAST_PROMPTS,
    Estimate,
    bootstrap_interval,
    estimate,
    holm,
    permutation_p,
    sign_flip_p,
)

REPETITIONS = 1000


@pytest.mark.parametrize("n", [6, 10, 20])
def test_95_percent_intervals_of_a_mean_cover_it_that_often(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(REPETITIONS, n))
    low, high = bootstrap_interval([values], np.mean, draws=1000)
    assert 0.925 <= ((low <= 0) & (high >= 0)).mean() <= 0.98


def test_a_plain_mean_of_skewed_values_is_covered_too() -> None:
    values = np.random.default_rng(5).exponential(size=(REPETITIONS, 20))
    low, high = bootstrap_interval([values], np.mean, draws=1000)
    assert ((low <= 1) & (high >= 1)).mean() >= 0.91


def test_both_tests_find_5_percent_in_noise_and_an_effect_that_is_there() -> None:
    generator = np.random.default_rng(1)
    noise, other = generator.normal(size=(2, REPETITIONS, 8))
    for p in (sign_flip_p(noise, permutations=300), permutation_p(noise, other, permutations=300)):
        assert (p <= 0.05).mean() <= 0.07
    assert (sign_flip_p(noise + 2, permutations=300) <= 0.05).mean() > 0.95
    assert (permutation_p(noise + 3, other, permutations=300) <= 0.05).mean() > 0.95


def test_all_sign_flips_of_few_values_are_counted_exactly() -> None:
    assert sign_flip_p(np.arange(1.0, 7.0)) == pytest.approx(2 / 2**6)


def test_too_few_prompts_have_a_value_and_no_interval() -> None:
    few = estimate([np.arange(LEAST_PROMPTS - 1.0)])
    assert (few.value, few.low, few.high, few.n) == (2.0, None, None, 5)
    assert not few.excludes_zero
    assert estimate([np.ones(LEAST_PROMPTS)]).low == 1


@pytest.mark.parametrize(
    ("low", "high", "excluded"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (float("nan"), float("nan"), False)],
)
def test_only_an_interval_that_is_there_can_exclude_zero(low: float, high: float, excluded: bool) -> None:
    assert Estimate(0.1, low, high, 9).excludes_zero is excluded


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=12)
    assert estimate([values], seed=4) == estimate([values], seed=4)
    assert estimate([values], seed=4) != estimate([values], seed=5)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    adjusted = holm([0.5, float("nan"), 0.6])
    assert adjusted[0] == adjusted[2] == 1.0
    assert np.isnan(adjusted[1])
    assert holm([]) == []
