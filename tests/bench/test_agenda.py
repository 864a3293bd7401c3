"""Bugs caught here: an estimate that forgets what was timed, or that counts work which is done."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from traitscope.bench import agenda
from traitscope.bench.agenda import Agenda
from traitscope.run.progress import Reporter


def test_a_kind_that_was_timed_takes_as_long_again_and_the_rest_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(agenda.time, "perf_counter", lambda: now)
    said = io.StringIO()
    plan = Agenda(Reporter(Console(file=said)), {"a": 2, "b": 1}, {"a": 1.0, "b": 3.0})
    assert plan.seconds_left() is None
    with plan.doing("a", "first"):
        now += 10.0
    assert plan.seconds_left() == pytest.approx(10 + 30)
    with plan.doing("b", "second"):
        now += 4.0
    assert plan.seconds_left() == pytest.approx(10)
    plan.drop("a")
    assert plan.seconds_left() == 0
    assert said.getvalue() == "[1/3] first\n[2/3] second (about 40 s left)\n"
