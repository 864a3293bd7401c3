"""What can be checked of a run without its model: files, schemas, coverage, lengths, token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars import selectors

from traitscope.captures.files import committed_shards, read_done, read_frozen_plan, shard_file
from traitscope.captures.integrity import damaged_files
from traitscope.captures.schema import SHARD_TABLES, shard_schema
from traitscope.checkpoints import Checkpoint
from traitscope.verify.asked import Asked, read_asked
from traitscope.verify.internals import missing_tensors

Row = Mapping[str, Any]


@dataclass(frozen=True)
class StoredGeneration:
    """What a run holds of one generation whose status is ``ok``.

    Attributes:
        token_ids: of every position, the prompt's first.
        logprobs: ``[response]`` float32.
        norms: by checkpoint, ``[positions]`` float32.
        scores, writes: by checkpoint and trait, ``[positions]`` float32.
    """

    asked: Asked
    shard: int
    token_ids: tuple[int, ...]
    logprobs: np.ndarray
    norms: dict[str, np.ndarray]
    scores: dict[tuple[str, str], np.ndarray]
    writes: dict[tuple[str, str], np.ndarray]

    @property
    def n_prompt(self) -> int:
        return len(self.asked.prompt_ids)

    @property
    def response_ids(self) -> tuple[int, ...]:
        return self.token_ids[self.n_prompt :]


@dataclass(frozen=True)
class StoredRun:
    """A run directory whose tables were read once from end to end.

    Attributes:
        counts: generations by status; ``missing`` are those without a row.
        sound: ids of the ``ok`` generations without a problem of their own, by the shard that holds them.
        problems: what is wrong, one line each.
    """

    run_dir: Path
    plan: dict[str, Any]
    asked: dict[str, Asked]
    counts: dict[str, int]
    sound: dict[int, list[str]]
    problems: tuple[str, ...]

    def generations(self, wanted: Sequence[str]) -> Iterator[StoredGeneration]:
        """The stored values of some of the sound generations, shard by shard."""
        readouts, among = readouts_of(self.plan), set(wanted)
        for shard, here in self.sound.items():
            chosen = [identity for identity in here if identity in among]
            if chosen:
                rows = ShardRows(_read_tables(self.run_dir, shard, chosen))
                for identity in chosen:
                    yield rows.generation(self.asked[identity], shard, self.plan["checkpoints"], readouts)


def readouts_of(plan: Mapping[str, Any]) -> dict[str, int]:
    """The index of each trait's readout checkpoint, by trait."""
    return {trait["name"]: plan["checkpoints"].index(trait["readout"]) for trait in plan["traits"]}


def covered_of(plan: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The checkpoints at which each trait's vectors have a direction, by trait."""
    return {trait["name"]: frozenset(trait.get("covered") or plan["checkpoints"]) for trait in plan["traits"]}


def check_stored(run_dir: Path, *, deep: bool = False) -> StoredRun:
    """Check everything that needs no model, in every committed shard.

    Sizes (``deep``: and checksums) of the committed files, the inputs' checksums, Parquet schemas and row counts;
    that each generation of the plan has its row, its tokens at positions 0 to n-1 behind its own prompt, and
    every score, norm and write that was asked of it, at all n positions.

    Raises:
        InputError: not a run directory.
    """
    plan = read_frozen_plan(run_dir)
    problems = [*_changed_inputs(run_dir, plan), *(str(damaged) for damaged in damaged_files(run_dir, deep=deep))]
    try:
        asked = read_asked(run_dir, plan)
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        problems.append(f"prompts.parquet does not describe the plan's generations: {_first_line(error)}")
        return StoredRun(run_dir, plan, {}, {}, {}, tuple(problems))
    traits = [trait["name"] for trait in plan["traits"]]
    readable: dict[int, list[Row]] = {}
    for shard in committed_shards(run_dir):
        found = _table_problems(run_dir, shard, traits)
        problems += found
        if not found:
            readable[shard] = pq.read_table(shard_file(run_dir, shard, "generations")).to_pylist()
    valid = {row["generation"]: (shard, row) for shard, rows in readable.items() for row in rows}
    problems += _coverage_problems(asked, readable, valid)
    counts: dict[str, int] = {"missing": len(asked.keys() - valid.keys())}
    sound: dict[int, list[str]] = {}
    for shard, rows in readable.items():
        own = [row for row in rows if row["generation"] in asked and valid[row["generation"]] == (shard, row)]
        for row in own:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        sound[shard], found = _check_shard(run_dir, shard, own, asked, plan)
        problems += found
    return StoredRun(run_dir, plan, asked, counts, sound, tuple(problems))


def _changed_inputs(run_dir: Path, plan: Mapping[str, Any]) -> Iterator[str]:
    for name, digest in plan["inputs"].items():
        path = run_dir / name
        if not path.is_file():
            yield f"{path} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{path} was changed since the run began"


def _table_problems(run_dir: Path, shard: int, traits: Sequence[str]) -> list[str]:
    problems = []
    committed = read_done(run_dir, shard)["files"]
    for table in SHARD_TABLES:
        path = shard_file(run_dir, shard, table)
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            problems.append(f"shard {shard:04d}: {path.name} cannot be read: {_first_line(error)}")
            continue
        with file:
            expected_rows = committed.get(path.name, {}).get("rows")
            if not file.schema_arrow.equals(shard_schema(table, traits)):
                problems.append(f"shard {shard:04d}: {path.name} does not have the columns of its format")
            elif file.metadata.num_rows != expected_rows:
                problems.append(
                    f"shard {shard:04d}: {path.name} has {file.metadata.num_rows} rows, {expected_rows} were committed"
                )
    return problems


def _coverage_problems(
    asked: Mapping[str, Asked], rows: Mapping[int, Sequence[Row]], valid: Mapping[str, tuple[int, Row]]
) -> Iterator[str]:
    for shard, generations in rows.items():
        seen: set[str] = set()
        for row in generations:
            identity = row["generation"]
            if identity not in asked:
                yield f"shard {shard:04d}: generation {identity} is not in the plan"
            elif identity in seen:
                yield f"{asked[identity].name}: has two rows in shard {shard:04d}"
            elif valid[identity][0] != shard and row["status"] == "ok":
                yield f"{asked[identity].name}: was captured in shard {shard:04d} and again in {valid[identity][0]:04d}"
            seen.add(identity)
    for identity in asked:
        if identity not in valid:
            yield f"{asked[identity].name}: no committed shard has a row of it; go on with the run, then verify"


def _check_shard(
    run_dir: Path, shard: int, rows: Sequence[Row], asked: Mapping[str, Asked], plan: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The ids of the shard's generations that are sound, and what is wrong with the others."""
    finished = [row for row in rows if row["status"] == "ok"]
    ids = [row["generation"] for row in finished]
    try:
        tables = ShardRows({name: _with_lengths(table) for name, table in _read_tables(run_dir, shard).items()})
    except (OSError, pa.ArrowInvalid) as error:
        return [], [f"shard {shard:04d}: its tables cannot be read: {_first_line(error)}"]
    problems = [
        f"shard {shard:04d}: {table} holds rows of generation {identity}, which it did not capture"
        for table, found in tables.ids().items()
        for identity in found - set(ids)
    ]
    sound = []
    for row in finished:
        own = asked[row["generation"]]
        n_positions = row["prompt_tokens"] + row["response_tokens"]
        found = [
            *_GenerationCheck(own, row, tables, plan).problems(),
            *missing_tensors(run_dir, shard, own, n_positions),
        ]
        problems += [f"{own.name}, shard {shard:04d}: {problem}" for problem in found]
        if not found:
            sound.append(own.id)
    return sound, problems


def _read_tables(run_dir: Path, shard: int, wanted: Sequence[str] | None = None) -> dict[str, pl.DataFrame]:
    """Tokens, scores and writes of a shard, of ``wanted`` generations only when given.

    Raises:
        OSError, pyarrow.ArrowInvalid: a file cannot be read.
    """
    filters = None if wanted is None else [("generation", "in", list(wanted))]
    tables = {}
    for name in ("tokens", "scores", "writes"):
        frame = pl.from_arrow(pq.read_table(shard_file(run_dir, shard, name), filters=filters))
        assert isinstance(frame, pl.DataFrame)
        tables[name] = frame
    return tables


def _with_lengths(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the length of each list in its place."""
    return table.with_columns(selectors.list().list.len())


class ShardRows:
    """The tables of one shard, split by generation."""

    def __init__(self, tables: Mapping[str, pl.DataFrame]) -> None:
        self._tables = {
            name: {str(key[0]): frame for key, frame in table.partition_by("generation", as_dict=True).items()}
            for name, table in tables.items()
        }

    def ids(self) -> dict[str, set[str]]:
        return {name: set(frames) for name, frames in self._tables.items()}

    def of(self, table: str, generation: str) -> pl.DataFrame | None:
        return self._tables[table].get(generation)

    def generation(
        self, asked: Asked, shard: int, checkpoints: Sequence[str], readouts: Mapping[str, int]
    ) -> StoredGeneration:
        """What is stored of a sound generation."""
        tokens, scores, writes = (self._tables[name][asked.id] for name in ("tokens", "scores", "writes"))
        n_prompt = len(asked.prompt_ids)
        return StoredGeneration(
            asked=asked,
            shard=shard,
            token_ids=tuple(tokens["token_id"].to_list()),
            logprobs=tokens["logprob"].to_numpy()[n_prompt:],
            norms=_lists(scores, "norm"),
            scores={
                (checkpoint, trait): values
                for trait in asked.traits
                for checkpoint, values in _lists(scores, f"score.{trait}").items()
            },
            writes={
                (checkpoint, trait): values
                for trait in asked.traits
                for checkpoint, values in _lists(writes, f"write.{trait}").items()
                if checkpoints.index(checkpoint) <= readouts[trait]
            },
        )


def _lists(frame: pl.DataFrame, column: str) -> dict[str, np.ndarray]:
    """The lists of a column as float32 arrays, by checkpoint; a null list is left out."""
    return {
        checkpoint: values.to_numpy()
        for checkpoint, values in zip(frame["checkpoint"], frame[column], strict=True)
        if values is not None
    }


@dataclass(frozen=True)
class _GenerationCheck:
    """The stored rows of one generation, lists as their lengths, beside what was asked."""

    asked: Asked
    row: Row
    tables: ShardRows
    plan: Mapping[str, Any]

    def problems(self) -> Iterator[str]:
        frames = {name: self.tables.of(name, self.asked.id) for name in ("tokens", "scores", "writes")}
        for name, frame in frames.items():
            if frame is None:
                yield f"{name} has no row of it"
        tokens, scores, writes = frames.values()
        if tokens is None or scores is None or writes is None:
            return
        yield from self._counts()
        yield from self._tokens(tokens)
        yield from self._states("scores", scores, self.asked.checkpoints)
        yield from self._lists(scores, "norm", self.asked.checkpoints)
        covered = covered_of(self.plan)
        for trait, readout in readouts_of(self.plan).items():
            scored = [name for name in self.asked.checkpoints if name in covered[trait]]
            yield from self._lists(scores, f"score.{trait}", self._expected(trait, scored))
            upto = self.plan["checkpoints"][: readout + 1]
            yield from self._lists(writes, f"write.{trait}", self._expected(trait, upto))
        last = max(readouts_of(self.plan)[trait] for trait in self.asked.traits)
        yield from self._states("writes", writes, self.plan["checkpoints"][: last + 1])

    @property
    def _n_positions(self) -> int:
        return self.row["prompt_tokens"] + self.row["response_tokens"]

    def _expected(self, trait: str, checkpoints: Sequence[str]) -> Sequence[str]:
        return checkpoints if trait in self.asked.traits else ()

    def _counts(self) -> Iterator[str]:
        given = self.asked.response_ids
        most = self.asked.max_new_tokens if given is None else len(given)
        if self.row["prompt_tokens"] != len(self.asked.prompt_ids):
            yield f"{self.row['prompt_tokens']} prompt tokens are counted, the prompt has {len(self.asked.prompt_ids)}"
        if self.row["response_tokens"] > most:
            yield f"the response has {self.row['response_tokens']} tokens, at most {most} were asked"
        if self.row["seed"] != self.asked.seed:
            yield f"its seed is {self.row['seed']}; that of its prompt, sample and suite is {self.asked.seed}"

    def _tokens(self, tokens: pl.DataFrame) -> Iterator[str]:
        n_prompt = len(self.asked.prompt_ids)
        positions, ids = tokens["position"].to_list(), tokens["token_id"].to_list()
        if positions != list(range(self._n_positions)):
            missing = sorted(set(range(self._n_positions)) - set(positions))
            yield (
                f"tokens has {len(positions)} positions instead of {self._n_positions}"
                if not missing
                else f"tokens lacks position {missing[0]} of {self._n_positions}"
            )
            return
        expected = [*self.asked.prompt_ids, *(self.asked.response_ids or ())]
        for position, (found, wanted) in enumerate(zip(ids, expected, strict=False)):
            if found != wanted:
                yield f"tokens, position {position}: token {found} is stored where {wanted} was given"
                return
        is_prompt = [phase == "prompt" for phase in tokens["phase"]]
        if is_prompt != [position < n_prompt for position in positions]:
            yield "tokens: its phases do not say which positions are the prompt's"
        if tokens["logprob"].is_null().to_list() != is_prompt:
            yield "tokens: a log-probability is missing in the response, or stands in the prompt"

    def _states(self, table: str, frame: pl.DataFrame, expected: Sequence[str]) -> Iterator[str]:
        names = frame["checkpoint"].to_list()
        for name in expected:
            if (count := names.count(name)) != 1:
                yield f"{table} has {count or 'no'} row{'s' if count > 1 else ''} at {name}"
        for name in set(names) - set(expected):
            yield f"{table} has a row at {name}, which was not asked"
        for name, layer, site in zip(names, frame["layer"], frame["site"], strict=True):
            if Checkpoint(layer, site).name != name:
                yield f"{table}: the row at {name} says layer {layer}, site {site}"

    def _lists(self, frame: pl.DataFrame, column: str, expected: Sequence[str]) -> Iterator[str]:
        """Whether the lists of a column stand at exactly the ``expected`` checkpoints and cover all positions."""
        lengths = dict(zip(frame["checkpoint"], frame[column], strict=True))
        for checkpoint, length in lengths.items():
            if length is None and checkpoint in expected:
                yield f"{column} is missing at {checkpoint}"
            elif length is not None and checkpoint not in expected:
                yield f"{column} stands at {checkpoint}, where it was not asked"
            elif length is not None and length != self._n_positions:
                yield f"{column} at {checkpoint} has {length} positions instead of {self._n_positions}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
