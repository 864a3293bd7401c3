"""Bugs caught here: a slope in the wrong unit, one outlier taken for a drift, drift found in noise, memory
that grows with the square of a response."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from traitscope.analysis.drift import LEAST_TOKENS, theil_sen_slope, token_slope
from traitscope.analysis.resampling import sign_flip_p


def test_a_planted_slope_is_found_per_ten_tokens_whatever_one_token_says() -> None:
    z = 0.03 * np.arange(40.0) + 2
    assert token_slope(z) == pytest.approx(0.3)
    z[39] = 1000
    assert token_slope(z) == pytest.approx(0.3, abs=0.02)


def test_it_is_the_median_of_all_pairs() -> None:
    from scipy.stats import theilslopes

    z = np.random.default_rng(0).normal(size=(3, 21))
    expected = [theilslopes(row)[0] for row in z]
    np.testing.assert_allclose(theil_sen_slope(z), expected)
    assert np.isnan(theil_sen_slope(np.ones(1)))
    assert np.isnan(token_slope(np.arange(LEAST_TOKENS - 1.0)))


def test_a_long_response_takes_little_memory_and_hardly_another_slope() -> None:
    from scipy.stats import theilslopes

    z = np.random.default_rng(2).normal(size=8000) + 1e-3 * np.arange(8000)
    tracemalloc.start()
    slope = theil_sen_slope(z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert slope == pytest.approx(1e-3, rel=0.03)
    assert theil_sen_slope(z[:2500]) == pytest.approx(theilslopes(z[:2500])[0], abs=3e-6)


def test_drift_is_found_in_5_percent_of_noise_and_where_it_is() -> None:
    noise = np.random.default_rng(1).normal(size=(300, 8, 40))
    noise[..., 1:] += 0.5 * noise[..., :-1]
    found = sign_flip_p(token_slope(noise), permutations=300) <= 0.05
    assert found.mean() <= 0.08
    drifting = noise + 0.05 * np.arange(40)
    assert (sign_flip_p(token_slope(drifting), permutations=300) <= 0.05).mean() > 0.9
