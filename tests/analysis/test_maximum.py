"""Bugs caught here: draws that are no draws of all combinations, ties that do not count, a threshold that is reached
too often."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.maximum import corrected_p, sign_flips, threshold


def test_few_units_flip_in_every_way_and_many_keep_what_was_found() -> None:
    assert len(np.unique(sign_flips(6), axis=0)) == 64
    assert (sign_flips(6)[0] == 1).all()
    assert (sign_flips(30)[0] == 1).all()


def test_p_counts_ties_and_nothing_is_found_in_nan() -> None:
    maxima = np.array([1.0, 2.0, 3.0, 3.0])
    assert corrected_p(np.array([3.0, 3.0 + 1e-12, 2.5, 0.0, np.nan]), maxima) == pytest.approx([0.5, 0.5, 0.5, 1, 1])


def test_any_of_ten_tests_is_positive_in_five_percent_of_noise() -> None:
    generator = np.random.default_rng(0)
    flips = sign_flips(10)
    found = []
    for _ in range(400):
        values = generator.normal(size=(10, 10)) @ np.linalg.cholesky(np.full((10, 10), 0.5) + 0.5 * np.eye(10)).T
        maxima = np.abs(flips @ values).max(axis=1)
        p = corrected_p(np.abs(values.sum(axis=0)), maxima)
        found.append(p.min() <= 0.05)
        assert (p.min() <= 0.05) == (maxima[0] > threshold(maxima) - 1e-9) or p.min() == pytest.approx(0.05, abs=0.002)
    assert np.mean(found) == pytest.approx(0.05, abs=0.025)
