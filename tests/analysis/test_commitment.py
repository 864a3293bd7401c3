"""Bugs caught here: moments of commitment found in noise, a position before the change, a rule that depends on the
trait's scale, intervals that miss, a lull in the middle taken for the end."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.commitment import (
    FINAL_TOKENS,
    LEAST_TOKENS,
    WINDOW,
    commitment_point,
    old_rule_commitment,
    settling_positions,
    smoothed,
)


def noise(repetitions: int, n_tokens: int, correlation: float, seed: int = 0) -> np.ndarray:
    """``[repetitions, n_tokens]`` of a first-order autoregression of unit variance."""
    fresh = np.random.default_rng(seed).normal(size=(repetitions, n_tokens))
    values = fresh.copy()
    for token in range(1, n_tokens):
        values[:, token] = correlation * values[:, token - 1] + np.sqrt(1 - correlation**2) * fresh[:, token]
    return values


def step(n_tokens: int, at: int, size: float) -> np.ndarray:
    return np.where(np.arange(n_tokens) >= at, size, 0.0)


@pytest.mark.parametrize("n_tokens", [30, 50, 100])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5])
def test_in_noise_few_responses_seem_to_commit(n_tokens: int, correlation: float) -> None:
    positions = settling_positions(noise(1000, n_tokens, correlation))
    assert (positions > 0).mean() <= 0.065
    assert (positions == 0).mean() >= 0.9


def test_a_step_is_found_at_most_a_window_late() -> None:
    positions = settling_positions(noise(400, 50, 0.0) + step(50, 20, 3.0))
    found = positions[positions > 0]
    assert len(found) > 0.9 * 400
    assert (np.abs(found - (20 + WINDOW // 2)) <= WINDOW // 2).mean() > 0.9


def test_what_rises_to_the_end_does_not_settle() -> None:
    assert commitment_point(0.5 * np.arange(50) + noise(1, 50, 0.0)[0]).position is None
    late = noise(400, 50, 0.0) + step(50, 40, 6.0)  # a last level of ten tokens is none
    positions = settling_positions(late)
    assert (positions < 0).mean() > 0.85
    unsettled = commitment_point(late[np.argmin(positions)])
    assert (unsettled.position, unsettled.low, unsettled.high) == (None, None, None)


def test_a_lull_in_the_middle_is_no_commitment() -> None:
    z = np.concatenate([np.zeros(25), np.full(25, 5.0)]) + noise(1, 50, 0.0)[0]
    assert commitment_point(z).position in range(25, 33)
    # The old rule takes the first lull, whatever follows.
    assert old_rule_commitment(np.concatenate([np.zeros(25), np.full(25, 5.0)])) == 0


def test_the_rule_is_free_of_scale_and_origin_and_the_old_one_is_not() -> None:
    z = noise(1, 60, 0.0)[0] + step(60, 30, 4.0)
    first, second = commitment_point(z), commitment_point(20 * z - 7)
    assert (first.position, first.low, first.high) == (second.position, second.low, second.high)
    assert second.level == pytest.approx(20 * first.level - 7)
    assert old_rule_commitment(0.01 * z) == 0
    assert old_rule_commitment(z) is None


def test_intervals_hold_the_place_where_the_course_without_noise_settles() -> None:
    course = step(60, 25, 4.0)
    held = []
    for z in noise(200, 60, 0.2, seed=3) + course:
        found = commitment_point(z, draws=100)
        if found.after_start and found.low is not None and found.high is not None:
            held.append(found.low - WINDOW < 25 <= found.high)
    assert len(held) > 150
    assert np.mean(held) >= 0.9


def test_short_and_flat_responses() -> None:
    assert commitment_point(np.zeros(LEAST_TOKENS - 1)).position is None
    assert np.isnan(commitment_point(np.zeros(0)).level)
    flat = commitment_point(np.ones(LEAST_TOKENS))
    assert (flat.position, flat.low, flat.high, flat.level) == (0, 0, 0, 1.0)
    assert not flat.after_start
    assert old_rule_commitment(np.zeros(9)) is None
    with pytest.raises(ValueError, match="finite"):
        commitment_point(np.array([0.0, np.nan]))


def test_smoothing_trails() -> None:
    z = step(20, 10, 8.0)
    found = smoothed(z)
    assert len(found) == len(z)
    np.testing.assert_allclose(found[9:18], [0, 1, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_allclose(smoothed(np.array([2.0, 4.0])), [2, 3])
    assert FINAL_TOKENS == 2 * WINDOW
