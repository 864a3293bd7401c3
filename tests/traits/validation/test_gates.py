"""Bugs caught here: a gate that lets through what it was made to stop, a verdict that needs fewer gates than it says,
an unmeasured gate that counts as passed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from traitscope.traits.validation.gates import (
    GATES,
    Gate,
    GateName,
    gate_a,
    gate_b,
    gate_c,
    gate_d,
    gate_e,
    gate_f,
    gate_h,
    not_measured,
    verdict_of,
)
from traitscope.traits.validation.separation import Separation

GOOD = Separation(20, 20, auroc=0.99, d=3.0, paired_accuracy=0.95, intervals={})


def gates_passed(passed: str) -> dict[GateName, Gate]:
    return {name: Gate(name in passed, "", {}) for name in GATES}


@pytest.mark.parametrize(
    ("passed", "verdict"),
    [
        ("ABCDEFH", "validated"),
        ("ABCDH", "reader only"),
        ("ABCDFH", "reader only"),
        ("ABCDEF", "steerer only"),
        ("EF", "steerer only"),
        ("ABEF", "steerer only"),
        ("AB", "experimental"),
        ("ABDEH", "experimental"),
        ("ACDEH", "failed"),
        ("BCDFH", "failed"),
        ("", "failed"),
    ],
)
def test_verdicts_follow_the_gates(passed: str, verdict: str) -> None:
    assert verdict_of(gates_passed(passed)) == verdict


def test_what_was_not_measured_is_not_passed() -> None:
    gate = not_measured("x", "there are no prefills")
    assert not gate.passed
    assert gate.described()["reason"] == "there are no prefills"
    assert verdict_of(gates_passed("ABDEFH") | {"C": gate}) == "steerer only"


@pytest.mark.parametrize("change", [{"auroc": 0.94}, {"d": 2.4}, {"paired_accuracy": 0.89}, {"d": float("nan")}])
def test_gate_a_needs_all_three(change: dict[str, float]) -> None:
    assert gate_a(GOOD).passed
    gate = gate_a(replace(GOOD, **change))
    assert not gate.passed
    assert gate.reason is not None


@pytest.mark.parametrize(("auroc", "d", "passed"), [(0.85, 1.5, True), (0.84, 3.0, False), (0.99, 1.4, False)])
def test_gate_b(auroc: float, d: float, passed: bool) -> None:
    assert gate_b(replace(GOOD, auroc=auroc, d=d)).passed is passed


@pytest.mark.parametrize(
    ("auroc", "null", "words", "pronouns", "passed"),
    [
        (0.80, 0.6, 0.7, 0.6, True),
        (0.74, 0.6, 0.7, 0.6, False),
        (0.80, 0.81, 0.7, 0.6, False),
        (0.80, 0.6, 0.80, 0.6, False),
        (0.80, 0.6, 0.7, 0.85, False),
    ],
)
def test_gate_c_must_beat_chance_words_and_pronouns(
    auroc: float, null: float, words: float, pronouns: float, passed: bool
) -> None:
    gate = gate_c(replace(GOOD, auroc=auroc, paired_accuracy=None), [0.5, null, null], words, pronouns)
    assert gate.passed is passed


def test_gate_d_counts_either_sign_but_no_relative() -> None:
    assert gate_d(4.0, {"one": 1.9, "other": -1.0}, {"kin": -8.0}).passed
    gate = gate_d(4.0, {"one": 1.0, "other": -2.1}, {})
    assert not gate.passed
    assert "other" in str(gate.reason)
    assert not gate_d(4.0, {}, {"kin": 1.0}).passed


@pytest.mark.parametrize(("cosine", "ratio", "passed"), [(0.75, 2.5, True), (0.74, 9, False), (0.9, 2.4, False)])
def test_gate_e(cosine: float, ratio: float, passed: bool) -> None:
    assert gate_e(cosine, ratio).passed is passed


MONOTONE = {-0.3: -4.0, -0.15: -2.0, 0.15: 2.0, 0.3: 3.0}


@pytest.mark.parametrize(
    ("shifts", "random_shifts", "passed"),
    [
        (MONOTONE, [1.0] * 20, True),
        (MONOTONE, [1.0] * 19 + [2.5], True),
        (MONOTONE, [1.0] * 18 + [2.5] * 2, False),
        (MONOTONE | {0.3: 1.9}, [1.0] * 20, False),
        ({alpha: -shift for alpha, shift in MONOTONE.items()}, [-9.0] * 20, False),
    ],
)
def test_gate_f(shifts: dict[float, float], random_shifts: list[float], passed: bool) -> None:
    assert gate_f(shifts, random_shifts).passed is passed


@pytest.mark.parametrize(("flagged", "passed"), [(0.05, True), (0.051, False)])
def test_gate_h(flagged: float, passed: bool) -> None:
    assert gate_h(1.0, flagged, recall=0.0, n_replies=40).passed is passed
