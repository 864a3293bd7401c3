"""Bugs caught here: a total that is not rate times count, an extrapolation that is not marked, a ratio upside down."""

from __future__ import annotations

import pytest

from traitscope.bench.contenders import Piece
from traitscope.bench.results import comparisons, contender_result, joined


def _sampled(seconds: float) -> Piece:
    return Piece(seconds, share=1 / 80, tokens=50, units=1, parts={"load": 1.0}, peak_bytes=10)


def test_a_sample_stands_for_the_whole_and_says_so() -> None:
    rounds = [joined([_sampled(9.0), _sampled(11.0)]), joined([_sampled(12.0), _sampled(12.0)])]
    result = contender_result("a", rounds, n_captures=80)
    assert result["workload_seconds"] == {"median": 880.0, "low": 800.0, "high": 960.0, "n": 2}
    assert result["captures_per_hour"] * result["workload_seconds"]["median"] / 3600 == pytest.approx(80)
    assert result["extrapolated"]
    assert result["units"] == 4
    assert result["parts"] == {"load": 1.0}
    assert [piece["seconds"] for piece in result["rounds"]] == [20.0, 24.0]


def test_the_whole_is_not_extrapolated_and_what_captures_nothing_has_no_captures_per_hour() -> None:
    result = contender_result("f", [Piece(2.0, share=1.0, tokens=1000, units=20)], n_captures=80)
    assert not result["extrapolated"]
    assert result["captures_per_hour"] is None
    assert result["tokens_per_second"] == 500.0


def test_pieces_that_sum_to_the_whole_by_thirds_are_no_extrapolation() -> None:
    thirds = [Piece(1.0, share=1 / 3, tokens=1, units=1)] * 3
    assert not contender_result("c", [joined(thirds)], n_captures=3)["extrapolated"]


def test_comparisons_are_time_ratios_and_their_words_speeds() -> None:
    half_the_time = [Piece(1.0, 1.0, 10, 1), Piece(1.0, 1.0, 10, 1)]
    rounds = {"d": half_the_time, "f": [Piece(2.0, 1.0, 10, 1), Piece(2.0, 1.0, 10, 1)], "c": [_sampled(1.0)]}
    against_f, against_c = sorted(comparisons(rounds), key=lambda found: found["to"], reverse=True)
    assert against_f["time_ratio"]["median"] == 0.5
    assert against_f["words"] == "2.0 times as fast (100 % more per hour)"
    assert not against_f["extrapolated"]
    assert (against_c["to"], against_c["extrapolated"]) == ("c", True)
