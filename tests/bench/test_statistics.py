"""Bugs caught here: a speed in the wrong words, an interval that misses the truth, a sample of one length only."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.bench.statistics import paired_ratio, ratios_by_round, spread_of, spread_sample, times_as_fast


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (2.3, "2.3 times as fast (130 % more per hour)"),
        (2.25, "2.2 times as fast (120 % more per hour)"),
        (1.0, "1.00 times as fast (0 % more per hour)"),
        (0.8, "0.80 times as fast (20 % less per hour)"),
        (1.17, "1.17 times as fast (17 % more per hour)"),
        (1234.4, "1,234 times as fast (123,300 % more per hour)"),
    ],
)
def test_a_ratio_is_times_as_fast_and_its_percentage_is_of_what_is_more(ratio: float, words: str) -> None:
    assert times_as_fast(ratio) == words


def test_ratios_are_taken_within_rounds_that_both_sides_have() -> None:
    ratio = ratios_by_round([2.0, 30.0], [1.0, 10.0, 7.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (2.5, 2.0, 3.0, 2)
    assert spread_of([5.0]).n == 1


def test_paired_ratio_sees_through_drift_that_both_sides_share() -> None:
    random = np.random.default_rng(3)
    drift = np.exp(random.normal(0, 0.5, 400))
    without = drift * np.exp(random.normal(0, 0.01, 400))
    found = paired_ratio(1.03 * drift, without)
    assert found.low < 1.03 < found.high
    assert found.high - found.low < 0.005
    assert paired_ratio(1.03 * drift, without) == found


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = paired_ratio(np.exp(random.normal(np.log(1.05), 0.1, 50)), np.ones(50))
        covered += found.low <= 1.05 <= found.high
    assert covered >= 88


def test_a_sample_is_spread_over_sizes() -> None:
    sizes = [50, 10, 40, 20, 30, 60]
    assert [sizes[index] for index in spread_sample(sizes, 3)] == [20, 40, 60]
    assert sorted(spread_sample(sizes, 10)) == list(range(6))
