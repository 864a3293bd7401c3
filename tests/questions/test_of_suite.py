from __future__ import annotations

from typing import Any

from traitscope.questions.of_suite import kinds_of_suite


def _suite(*names: str, **more: Any) -> dict[str, Any]:
    return {"experiments": [{"name": name, "steer": None, **more} for name in names]}


def test_a_suite_with_all_three_arms_asks_for_the_confound() -> None:
    arms = ["refusal-natural", "refusal-instructed", "refusal-plain"]
    assert kinds_of_suite(_suite("other", *arms)) == ["instruction-confound"]
    assert kinds_of_suite(_suite(*arms[:2], "other-plain")) == []


def test_three_doses_ask_for_the_dose_response_and_two_do_not() -> None:
    assert kinds_of_suite(_suite("pushed", steer={"alpha": [-0.1, 0, 0.1]})) == ["dose-response"]
    assert kinds_of_suite(_suite("pushed", steer={"alpha": [0, 0.1]})) == []
