"""Bugs caught here: a slope that is not within prompts, ties that break the rank correlation, effects in noise."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.dose_response import dose_response, rank_correlations, slopes_of
from traitscope.analysis.resampling import sign_flip_p

DOSES = np.array([-0.3, -0.1, 0.0, 0.3])


def test_a_planted_slope_is_found_within_prompts() -> None:
    generator = np.random.default_rng(0)
    own_levels = 100 * generator.normal(size=(8, 1))
    found = dose_response(own_levels + 4 * DOSES + 0.01 * generator.normal(size=(8, 4)), DOSES)
    assert found.slope.value == pytest.approx(4, abs=0.1)
    assert found.slope.low is not None
    assert found.slope.low > 3.9
    assert found.monotonicity.value == 1
    assert found.p == pytest.approx(2 / 2**8)
    assert [mean.n for mean in found.means] == [8] * 4


def test_rank_correlations_are_spearmans() -> None:
    from scipy.stats import spearmanr

    z = np.random.default_rng(1).integers(3, size=(5, 4)).astype(float)
    z[0] = 2.0
    expected = [0.0, *(spearmanr(row, DOSES).statistic for row in z[1:])]
    np.testing.assert_allclose(rank_correlations(z, DOSES), expected)


def test_effects_are_found_in_5_percent_of_noise() -> None:
    slopes = slopes_of(np.random.default_rng(2).normal(size=(400, 8, 4)), DOSES)
    assert (sign_flip_p(slopes, permutations=300) <= 0.05).mean() <= 0.08


def test_too_few_prompts_and_doses() -> None:
    few = dose_response(np.ones((3, 4)), DOSES)
    assert np.isnan(few.p)
    assert few.slope.low is None
    with pytest.raises(ValueError, match="two doses"):
        dose_response(np.ones((8, 1)), DOSES[:1])
