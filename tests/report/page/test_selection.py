from __future__ import annotations

from typing import Any

import pytest

from traitscope.errors import InputError
from traitscope.report.page.selection import Selection, chosen


def _capture(experiment: str, number: int, z: float | None, kind: str = "scores", status: str = "ok") -> dict[str, Any]:
    return {
        "experiment": experiment,
        "prompt_id": str(number),
        "alpha": None,
        "kind": kind,
        "status": status,
        "generation": f"{experiment}-{number}",
        "mean_z": {"calm": z},
    }


CAPTURES = [
    *[_capture("many", number, 0.01 * number) for number in range(200)],
    _capture("many", 200, 9.0),
    _capture("many", 201, -9.0),
    _capture("few", 0, 0.5),
    _capture("few", 1, 0.4, kind="internals"),
    _capture("few", 2, None, status="failed"),
]


def test_what_matters_most_comes_before_the_rest_is_cut() -> None:
    held = chosen(CAPTURES, Selection(), most=10)
    assert len(held.generations) == 10
    assert {"many-0", "few-0", "many-200", "many-201", "few-1"} <= set(held.generations)
    assert held.left_out == 204 - 10


def test_everything_leaves_nothing_out_and_a_failure_has_nothing_to_show() -> None:
    held = chosen(CAPTURES, Selection(everything=True), most=10)
    assert (len(held.generations), held.left_out) == (204, 0)
    assert "few-2" not in held.generations


def test_patterns_take_labels_and_the_beginning_of_ids() -> None:
    held = chosen(CAPTURES, Selection(patterns=("few/*", "many-201")))
    assert held.generations == ("few-0", "few-1", "many-201")


def test_a_pattern_that_fits_nothing_is_named() -> None:
    with pytest.raises(InputError, match=r"--select nope/\*: fits no captured prompt; there are, say: many/0"):
        chosen(CAPTURES, Selection(patterns=("nope/*",)))
