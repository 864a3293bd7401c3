"""From captured rows to the tables of a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from traitscope.captures.schema import GENERATIONS, TOKENS, scores_schema, writes_schema
from traitscope.checkpoints import Checkpoint
from traitscope.model.capture import Trace
from traitscope.suite.tokens import TokenRows

_KEPT_MANTISSA_BITS = 11


@dataclass(frozen=True)
class Captured:
    """What was captured of a generation whose status is ``ok``; ``internals`` by ``<layer>/<tensor>``."""

    tokens: TokenRows
    logprobs: np.ndarray
    trace: Trace
    response: str
    internals: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How one generation ended.

    ``checkpoints`` are the indices that its captures ask for, ``traits`` the columns.
    """

    generation: str
    status: Literal["ok", "too_long", "failed"]
    prompt_tokens: int
    seed: int | None
    seconds: float | None = None
    error: str | None = None
    captured: Captured | None = None
    traits: frozenset[str] = frozenset()
    checkpoints: tuple[int, ...] = ()


def shard_tables(
    outcomes: Sequence[Outcome],
    traits: Sequence[str],
    readouts: Sequence[int],
    checkpoints: Sequence[Checkpoint],
) -> dict[str, pa.Table]:
    """The four tables of a shard, generations in the order given."""
    kept = [outcome for outcome in outcomes if outcome.captured is not None]
    return {
        "generations": _generations(outcomes),
        "tokens": _tokens(kept),
        "scores": _scores(kept, traits, checkpoints),
        "writes": _writes(kept, traits, readouts, checkpoints),
    }


def with_verdicts(tables: Mapping[str, pa.Table], verdicts: Mapping[str, str]) -> dict[str, pa.Table]:
    """The tables of a shard; those with columns of traits say in their metadata what each trait's vectors are worth."""
    said = {"traitscope.verdicts": json.dumps(dict(verdicts))}
    return {
        name: table.replace_schema_metadata(said) if name in ("scores", "writes") else table
        for name, table in tables.items()
    }


def shard_internals(outcomes: Sequence[Outcome]) -> dict[str, torch.Tensor]:
    """Every kept tensor of open layers of a shard, by ``<generation>/<layer>/<tensor>``."""
    return {
        f"{outcome.generation}/{name}": tensor
        for outcome in outcomes
        if outcome.captured is not None
        for name, tensor in outcome.captured.internals.items()
    }


def round_mantissa(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to 11 stored bits of mantissa (ties to even): relative error at most 2⁻¹²."""
    dropped = 23 - _KEPT_MANTISSA_BITS
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half_less_one = np.uint32((1 << (dropped - 1)) - 1)
    is_odd = (bits >> np.uint32(dropped)) & np.uint32(1)
    rounded = (bits + half_less_one + is_odd) & ~np.uint32((1 << dropped) - 1)
    return rounded.view(np.float32)


def _generations(outcomes: Sequence[Outcome]) -> pa.Table:
    rows = [
        {
            "generation": o.generation,
            "status": o.status,
            "error": o.error,
            "prompt_tokens": o.prompt_tokens,
            "response_tokens": len(o.captured.logprobs) if o.captured else None,
            "response": o.captured.response if o.captured else None,
            "seed": o.seed,
            "seconds": o.seconds,
        }
        for o in outcomes
    ]
    return pa.Table.from_pylist(rows, GENERATIONS)


def _tokens(outcomes: Sequence[Outcome]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in TOKENS.names}
    for outcome in outcomes:
        assert outcome.captured is not None
        rows = outcome.captured.tokens
        n_positions = len(rows.token_id)
        columns["generation"] += [outcome.generation] * n_positions
        columns["position"] += range(n_positions)
        columns["logprob"] += [None] * outcome.prompt_tokens + outcome.captured.logprobs.tolist()
        for name in ("token_id", "token", "phase", "role", "turn", "segment", "special"):
            columns[name] += getattr(rows, name)
    return pa.Table.from_pydict(columns, TOKENS)


def _scores(outcomes: Sequence[Outcome], traits: Sequence[str], checkpoints: Sequence[Checkpoint]) -> pa.Table:
    rows = [(outcome, c) for outcome in outcomes for c in outcome.checkpoints]
    columns = _state_columns(rows, checkpoints)
    columns["norm"] = _lists([round_mantissa(_trace(outcome).norms[c]) for outcome, c in rows])
    for i, trait in enumerate(traits):
        columns[f"score.{trait}"] = _lists(
            [_kept_scores(_trace(outcome).scores[c, :, i]) if trait in outcome.traits else None for outcome, c in rows]
        )
    return pa.Table.from_pydict(columns, scores_schema(traits))


def _kept_scores(scores: np.ndarray) -> np.ndarray | None:
    """``[positions]`` as they are stored; None where the trait's vectors have no direction, which leaves only NaN."""
    return None if np.isnan(scores).all() else round_mantissa(scores)


def _writes(
    outcomes: Sequence[Outcome],
    traits: Sequence[str],
    readouts: Sequence[int],
    checkpoints: Sequence[Checkpoint],
) -> pa.Table:
    last = {
        outcome.generation: max(r for t, r in zip(traits, readouts, strict=True) if t in outcome.traits)
        for outcome in outcomes
    }
    rows = [(outcome, c) for outcome in outcomes for c in range(last[outcome.generation] + 1)]
    writes = {outcome.generation: _trace(outcome).writes() for outcome in outcomes}
    columns = _state_columns(rows, checkpoints)
    for i, (trait, readout) in enumerate(zip(traits, readouts, strict=True)):
        columns[f"write.{trait}"] = _lists(
            [
                writes[outcome.generation][c, :, i] if trait in outcome.traits and c <= readout else None
                for outcome, c in rows
            ]
        )
    return pa.Table.from_pydict(columns, writes_schema(traits))


def _trace(outcome: Outcome) -> Trace:
    assert outcome.captured is not None
    return outcome.captured.trace


def _state_columns(rows: Sequence[tuple[Outcome, int]], checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    return {
        "generation": [outcome.generation for outcome, _ in rows],
        "checkpoint": [checkpoints[c].name for _, c in rows],
        "layer": pa.array([checkpoints[c].layer for _, c in rows], pa.int32()),
        "site": [checkpoints[c].site for _, c in rows],
    }


def _lists(rows: Sequence[np.ndarray | None]) -> pa.ListArray:
    lengths = [0 if row is None else len(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = [row for row in rows if row is not None]
    values = np.concatenate(present) if present else np.zeros(0, dtype=np.float32)
    missing = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()), mask=missing)
