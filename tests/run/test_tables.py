"""Bugs caught here: scores that lose precision, columns of another trait, a schema that drifts."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from traitscope.captures import schema
from traitscope.checkpoints import checkpoints_of
from traitscope.model.capture import Trace
from traitscope.run.tables import Captured, Outcome, round_mantissa, shard_tables, with_verdicts
from traitscope.suite.tokens import TokenRows

CHECKPOINTS = checkpoints_of([True, True])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**99), max_value=2.0**99)))
def test_rounding_keeps_eleven_bits(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float32)
    rounded = round_mantissa(given_values)
    normal = np.abs(given_values) >= np.finfo(np.float32).tiny
    error = np.abs(rounded.astype(np.float64) - given_values)[normal]
    assert (error <= 2.0**-12 * np.abs(given_values.astype(np.float64))[normal]).all()
    assert (rounded.view(np.uint32) & 0xFFF == 0).all()
    np.testing.assert_array_equal(round_mantissa(rounded), rounded)


def _outcome(identity: str, traits: frozenset[str], checkpoints: tuple[int, ...]) -> Outcome:
    random = np.random.default_rng(0)
    tokens = TokenRows(
        [1, 2, 3], list("abc"), ["prompt", "prompt", "response"], [None] * 3, [None] * 3, [None] * 3, [False] * 3
    )
    trace = Trace(*(random.normal(size=(5, 3, 2)).astype(np.float32) for _ in range(2)), np.ones((5, 3), np.float32))
    captured = Captured(tokens, np.array([-1.0], np.float32), trace, "c")
    return Outcome(identity, "ok", 2, None, 0.1, captured=captured, traits=traits, checkpoints=checkpoints)


def test_only_what_was_asked_is_stored() -> None:
    outcomes = [
        _outcome("one", frozenset({"x", "y"}), (0, 1, 2, 3, 4)),
        _outcome("two", frozenset({"y"}), (0, 4)),
        Outcome("bad", "failed", 2, None, 0.1, error="boom"),
    ]
    tables = shard_tables(outcomes, ["x", "y"], [4, 2], CHECKPOINTS)
    scores, writes = tables["scores"].to_pylist(), tables["writes"].to_pylist()
    assert [row["checkpoint"] for row in scores if row["generation"] == "two"] == ["resid_pre.0", "resid_post.1"]
    assert all((row["score.x"] is None) == (row["generation"] == "two") for row in scores)
    assert [row["write.y"] is None for row in writes if row["generation"] == "one"] == [False] * 3 + [True] * 2
    assert len([row for row in writes if row["generation"] == "two"]) == 3
    assert [row["status"] for row in tables["generations"].to_pylist()] == ["ok", "ok", "failed"]
    assert tables["tokens"]["logprob"].to_pylist() == [None, None, -1.0] * 2


def test_verdicts_stand_beside_the_columns_of_traits_and_change_no_value() -> None:
    tables = shard_tables([_outcome("one", frozenset({"x", "y"}), (0, 4))], ["x", "y"], [4, 2], CHECKPOINTS)
    said = with_verdicts(tables, {"x": "validated", "y": "failed"})
    for name in ("scores", "writes"):
        assert json.loads(said[name].schema.metadata[b"traitscope.verdicts"]) == {"x": "validated", "y": "failed"}
    assert all(said[name].equals(table) for name, table in tables.items())


def test_the_schema_is_the_documented_one_and_changes_only_with_its_version() -> None:
    described = {
        "prompts": schema.PROMPTS,
        "captures": schema.CAPTURES,
        **{name: schema.shard_schema(name, ["t"]) for name in schema.SHARD_TABLES},
    }
    columns = {name: [f"{field.name}: {field.type}" for field in table] for name, table in described.items()}
    state = ["generation: string", "checkpoint: string", "layer: int32", "site: string"]
    floats = str(pa.list_(pa.float32()))
    assert schema.FORMAT_VERSION == 6
    assert columns["generations"] == [
        "generation: string",
        "status: string",
        "error: string",
        "prompt_tokens: int32",
        "response_tokens: int32",
        "response: string",
        "seed: uint64",
        "seconds: double",
    ]
    assert columns["tokens"] == [
        "generation: string",
        "position: int32",
        "token_id: int32",
        "token: string",
        "phase: string",
        "role: string",
        "turn: int32",
        "segment: string",
        "special: bool",
        "logprob: float",
    ]
    assert columns["scores"] == [*state, f"norm: {floats}", f"score.t: {floats}"]
    assert columns["writes"] == [*state, f"write.t: {floats}"]
    assert columns["captures"] == [
        "generation: string",
        "experiment: string",
        "prompt_id: string",
        "sample: int32",
        "steer_trait: string",
        "alpha: double",
        "kind: string",
        "layers: list<item: int32>",
        "traits: list<item: string>",
        "keep: list<item: string>",
    ]
    assert [column.split(":")[0] for column in columns["prompts"]] == [
        "generation",
        "experiment",
        "prompt_id",
        "sample",
        "messages",
        "token_ids",
        "roles",
        "turns",
        "response_ids",
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "rendered_on",
    ]
