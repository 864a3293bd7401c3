"""Bugs caught here: a verdict from noise, `clean` where the natural prompts raise nothing, the arms exchanged."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from traitscope.analysis.confound import MARGIN, Confound, compare_arms


def arms(natural: float, instructed: float, plain: float, n: int = 24, seed: int = 0) -> Confound:
    noise = np.random.default_rng(seed).normal(size=(3, n))
    return compare_arms(natural + noise[0], instructed + noise[1], plain + noise[2], seed=seed)


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((3.0, 0.0, 0.0), "clean"),
        ((3.0, 3.0, 0.0), "confounded"),
        ((3.0, 5.0, 0.0), "confounded"),
        ((0.0, 0.0, 0.0), "inconclusive"),
        ((0.0, 3.0, 0.0), "inconclusive"),
        ((0.0, -3.0, 0.0), "inconclusive"),
    ],
)
def test_planted_arms(means: tuple[float, float, float], verdict: str) -> None:
    found = arms(*means)
    assert found.verdict == verdict
    assert found.natural_over_instructed.value == pytest.approx(means[0] - means[1], abs=1.2)
    assert found.instructed_over_plain.value == pytest.approx(means[1] - means[2], abs=1.2)


def test_too_few_prompts_say_nothing() -> None:
    few = compare_arms(np.full(5, 9.0) + np.arange(5), np.arange(24.0), np.arange(24.0))
    assert few.verdict == "inconclusive"
    assert "fewer than 6" in few.reason


def test_verdicts_of_noise_and_at_the_margin_are_as_rare_as_stated() -> None:
    noise = Counter(arms(0.0, 0.0, 0.0, n=12, seed=seed).verdict for seed in range(200))
    assert noise["inconclusive"] >= 196
    at_margin = Counter(arms(3.0, 3.0 - MARGIN, 0.0, seed=seed).verdict for seed in range(200))
    assert at_margin["clean"] <= 0.06 * 200
    assert at_margin["confounded"] <= 0.06 * 200
