"""From raw times to figures; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from traitscope.bench.contenders import Piece
from traitscope.bench.paired import PairedSteps
from traitscope.bench.statistics import paired_ratio, ratios_by_round, spread_of, times_as_fast


@dataclass(frozen=True)
class Contender:
    """How a contender is called and what it does."""

    name: str
    what: str
    captures: bool


CONTENDERS = {
    "a": Contender(
        "(a) the old way", "a process and a load per prompt and trait, no cache, attention and states copied out", True
    ),
    "b": Contender("(b) loaded once, no cache", "one prompt and one trait at a time, hidden states", True),
    "c": Contender("(c) generate, one at a time", "KV cache, hidden states, all traits projected", True),
    "f": Contender("(f) generate, batched", "nothing captured; the best grouping of those tried", False),
    "e": Contender("(e) traitscope, no capture", "batched decode without hooks", False),
    "d": Contender("(d) traitscope", "batched decode, all traits at all layers", True),
    "program": Contender("traitscope, whole program", "one process, everything counted", True),
    "instances": Contender("traitscope, side by side", "whole programs at once, prompts and threads divided", True),
}
"""In the order of the tables."""

_COMPARED = (
    ("program", "a"),
    ("d", "b"),
    ("d", "c"),
    ("d", "f"),
    ("d", "e"),
    ("e", "f"),
    ("instances", "program"),
)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one round as one: sums, the mean of each part, the largest peak."""
    peaks = [piece.peak_bytes for piece in pieces if piece.peak_bytes is not None]
    return Piece(
        seconds=sum(piece.seconds for piece in pieces),
        share=sum(piece.share for piece in pieces),
        tokens=sum(piece.tokens for piece in pieces),
        units=sum(piece.units for piece in pieces),
        parts={part: sum(piece.parts[part] for piece in pieces) / len(pieces) for part in pieces[0].parts},
        peak_bytes=max(peaks) if peaks else None,
        details=pieces[0].details,
    )


def contender_result(key: str, rounds: Sequence[Piece], n_captures: int) -> dict[str, Any]:
    """A contender's figures for the whole workload, and the raw times they come from.

    Seconds of a round are divided by the share of the workload that it did; below 1, that is an extrapolation.
    """
    contender = CONTENDERS[key]
    seconds = spread_of(_workload_seconds(rounds))
    peaks = [piece.peak_bytes for piece in rounds if piece.peak_bytes is not None]
    return {
        "key": key,
        "name": contender.name,
        "what": contender.what,
        "extrapolated": any(_is_extrapolated(piece) for piece in rounds),
        "units": sum(piece.units for piece in rounds),
        "workload_seconds": asdict(seconds),
        "captures_per_hour": n_captures / seconds.median * 3600 if contender.captures else None,
        "tokens_per_second": spread_of([piece.tokens / piece.seconds for piece in rounds]).median,
        "parts": {part: spread_of([p.parts[part] for p in rounds]).median for part in rounds[0].parts},
        "peak_bytes": max(peaks) if peaks else None,
        "rounds": [asdict(piece) for piece in rounds],
    }


def comparisons(rounds: Mapping[str, Sequence[Piece]]) -> list[dict[str, Any]]:
    """Time ratios round by round, and the median in words, of every pair that was measured."""
    found = []
    for ours, theirs in _COMPARED:
        if rounds.get(ours) and rounds.get(theirs):
            ratio = ratios_by_round(_workload_seconds(rounds[ours]), _workload_seconds(rounds[theirs]))
            extrapolated = any(_is_extrapolated(piece) for piece in (*rounds[ours], *rounds[theirs]))
            found.append(
                {
                    "of": ours,
                    "to": theirs,
                    "time_ratio": asdict(ratio),
                    "extrapolated": extrapolated,
                    "words": times_as_fast(1 / ratio.median),
                }
            )
    return found


def capture_cost(times: PairedSteps) -> dict[str, Any]:
    """What capture adds to a step: the mean paired ratio with its 95 % interval, and the times it comes from."""
    return {
        "batch": times.batch,
        "steps": asdict(paired_ratio(times.with_capture, times.without)),
        "prefill_ratio": asdict(ratios_by_round(times.prefill_with_capture, times.prefill_without)),
        "times": asdict(times),
    }


def _workload_seconds(rounds: Sequence[Piece]) -> list[float]:
    return [piece.seconds / piece.share for piece in rounds]


def _is_extrapolated(piece: Piece) -> bool:
    return piece.share < 1 - 1e-9
