"""The tables of a run directory: names, columns, types. ``FORMAT_VERSION`` changes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

FORMAT_VERSION = 6

SHARD_TABLES = ("generations", "tokens", "scores", "writes")
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPTS = pa.schema(
    [
        ("generation", pa.string()),
        ("experiment", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("messages", _MESSAGES),
        ("token_ids", pa.list_(pa.int32())),
        ("roles", pa.list_(pa.string())),
        ("turns", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("max_new_tokens", pa.int32()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int32()),
        ("seed", pa.int64()),
        ("rendered_on", pa.timestamp("us", tz="UTC")),
    ]
)

CAPTURES = pa.schema(
    [
        ("generation", pa.string()),
        ("experiment", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("steer_trait", pa.string()),
        ("alpha", pa.float64()),
        ("kind", pa.string()),
        ("layers", pa.list_(pa.int32())),
        ("traits", pa.list_(pa.string())),
        ("keep", pa.list_(pa.string())),
    ]
)

GENERATIONS = pa.schema(
    [
        ("generation", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("response", pa.string()),
        ("seed", pa.uint64()),
        ("seconds", pa.float64()),
    ]
)

TOKENS = pa.schema(
    [
        ("generation", pa.string()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("phase", pa.string()),
        ("role", pa.string()),
        ("turn", pa.int32()),
        ("segment", pa.string()),
        ("special", pa.bool_()),
        ("logprob", pa.float32()),
    ]
)

_STATE: list[Any] = [
    ("generation", pa.string()),
    ("checkpoint", pa.string()),
    ("layer", pa.int32()),
    ("site", pa.string()),
]
_OVER_POSITIONS = pa.list_(pa.float32())


def scores_schema(traits: Sequence[str]) -> pa.Schema:
    """One row per generation and checkpoint; lists over positions."""
    return pa.schema([*_STATE, ("norm", _OVER_POSITIONS), *((f"score.{trait}", _OVER_POSITIONS) for trait in traits)])


def writes_schema(traits: Sequence[str]) -> pa.Schema:
    """One row per generation and checkpoint up to the traits' readouts; lists over positions."""
    return pa.schema([*_STATE, *((f"write.{trait}", _OVER_POSITIONS) for trait in traits)])


def shard_schema(table: str, traits: Sequence[str]) -> pa.Schema:
    """The schema of one of ``SHARD_TABLES``."""
    return {
        "generations": GENERATIONS,
        "tokens": TOKENS,
        "scores": scores_schema(traits),
        "writes": writes_schema(traits),
    }[table]
