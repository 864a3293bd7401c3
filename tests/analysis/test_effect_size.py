"""Bugs caught here: a sign or a pooled deviation that is wrong, an interval of d that misses more than it says."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.effect_size import auroc, cohens_d, hedges_d
from traitscope.analysis.resampling import bootstrap_interval


def test_auroc_and_d_by_hand() -> None:
    assert auroc(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 1) / 6)
    assert cohens_d(np.array([1.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx(1 / np.sqrt(2))


def test_hedges_d_by_hand() -> None:
    one, other = np.array([1.0, 3.0, 5.0]), np.array([0.0, 2.0])
    pooled = np.sqrt((2 * 4 + 1 * 2) / 3)
    assert hedges_d(one, other) == pytest.approx((1 - 3 / 11) * 2 / pooled)
    assert np.isnan(hedges_d(np.ones(3), np.zeros(3)))


@pytest.mark.parametrize("n", [8, 24])
def test_intervals_of_d_cover_it(n: int) -> None:
    one, other = np.random.default_rng(n).normal(size=(2, 600, n))
    low, high = bootstrap_interval([one + 0.5, other], hedges_d, draws=600)
    assert ((low <= 0.5) & (high >= 0.5)).mean() >= 0.93
