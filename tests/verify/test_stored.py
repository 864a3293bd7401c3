"""Bugs caught here: a file altered after the commit, a table that lost rows, a generation that is nowhere or twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from traitscope import cli
from traitscope.captures.files import committed_shards, done_file, read_done, shard_file
from traitscope.captures.integrity import sha256_of
from traitscope.captures.schema import shard_schema
from traitscope.errors import InputError, RunError
from traitscope.model import loading
from traitscope.model.loading import LanguageModel
from traitscope.run.commit import write_json, write_table
from traitscope.verify.stored import check_stored


@pytest.fixture
def run_dir(clean_run: tuple[Path, LanguageModel], tmp_path: Path) -> Path:
    """A copy of a clean run, to be damaged."""
    return shutil.copytree(clean_run[0], tmp_path / "run")


def problems(run_dir: Path, *, deep: bool = False) -> list[str]:
    return list(check_stored(run_dir, deep=deep).problems)


def rewritten(run_dir: Path, table: str, change: Callable[[pl.DataFrame], pl.DataFrame], shard: int = 0) -> None:
    """Change a table as a faulty writer would have: sizes, checksums and row counts of the commit fit it."""
    path = shard_file(run_dir, shard, table)
    frame = pl.from_arrow(pq.read_table(path))
    assert isinstance(frame, pl.DataFrame)
    schema = shard_schema(table, ["random0", "random1"])
    changed = change(frame).to_arrow().cast(schema)
    write_table(path, changed)
    done = read_done(run_dir, shard)
    done["files"][path.name] = {
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "rows": changed.num_rows,
    }
    write_json(done_file(run_dir, shard), done)


def test_a_finished_run_has_no_problems(run_dir: Path) -> None:
    stored = check_stored(run_dir, deep=True)
    assert stored.problems == ()
    assert stored.counts == {"missing": 0, "ok": 6}
    assert {shard: len(ids) for shard, ids in stored.sound.items()} == {0: 6}


def test_a_byte_changed_after_the_commit_is_found_by_its_checksum(run_dir: Path) -> None:
    path = shard_file(run_dir, 0, "scores")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    (line,) = problems(run_dir, deep=True)[:1]
    assert "shard 0000" in line
    assert "0000.scores.parquet does not have the checksum that it was committed with" in line


@pytest.mark.parametrize("table", ["generations", "tokens", "scores", "writes"])
def test_a_file_cut_short_or_gone_is_found_by_its_size(run_dir: Path, table: str) -> None:
    path = shard_file(run_dir, 0, table)
    path.write_bytes(path.read_bytes()[:-40])
    assert any(f"{path.name} has {path.stat().st_size} bytes instead of" in line for line in problems(run_dir))
    path.unlink()
    assert any(f"{path.name} is missing" in line for line in problems(run_dir))


@pytest.mark.parametrize("name", ["prompts.parquet", "suite.yaml", "vectors/random0.safetensors"])
def test_changed_inputs_are_found(run_dir: Path, name: str) -> None:
    content = bytearray((run_dir / name).read_bytes())
    content[-1] ^= 1
    (run_dir / name).write_bytes(content)
    assert any(f"{name} was changed since the run began" in line for line in problems(run_dir))


def test_a_generation_without_a_row_is_named(run_dir: Path) -> None:
    lost = pq.read_table(shard_file(run_dir, 0, "generations")).to_pylist()[2]["generation"]
    rewritten(run_dir, "generations", lambda frame: frame.filter(pl.col("generation") != lost))
    found = problems(run_dir)
    assert any(f"generation {lost} (all/" in line and "no committed shard has a row of it" in line for line in found)
    assert any(f"holds rows of generation {lost}, which it did not capture" in line for line in found)


def test_a_damaged_commit_is_one_line(run_dir: Path) -> None:
    done_file(run_dir, 0).write_text("{")
    with pytest.raises(RunError, match=r"0000\.done\.json is damaged; restore it, or delete it"):
        check_stored(run_dir)


def test_an_unfinished_run_is_no_verified_run(run_dir: Path) -> None:
    for shard in committed_shards(run_dir):
        done_file(run_dir, shard).unlink()
    assert len(problems(run_dir)) == check_stored(run_dir).counts["missing"] == 6


def test_other_columns_are_found(run_dir: Path) -> None:
    path = shard_file(run_dir, 0, "scores")
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([name.replace("random0", "other") for name in table.column_names]), path)
    assert any("0000.scores.parquet does not have the columns of its format" in line for line in problems(run_dir))


def _cut_lists(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    return frame.with_columns(pl.col(column).list.slice(0, pl.col(column).list.len() - 1))


CHANGES: list[tuple[str, Callable[[pl.DataFrame], pl.DataFrame], str]] = [
    ("tokens", lambda t: t.filter(pl.col("position") != 5), "tokens lacks position 5"),
    (
        "tokens",
        lambda t: t.with_columns(pl.when(pl.col("position") == 5).then(77).otherwise("token_id").alias("token_id")),
        "tokens, position 5: token 77 is stored where",
    ),
    ("tokens", lambda t: t.with_columns(pl.lit("prompt").alias("phase")), "do not say which positions are the prompt"),
    (
        "tokens",
        lambda t: t.with_columns(pl.lit(None, pl.Float32).alias("logprob")),
        "a log-probability is missing in the response",
    ),
    ("scores", lambda s: s.filter(pl.col("checkpoint") != "resid_mid.1"), "scores has no row at resid_mid.1"),
    ("scores", lambda s: pl.concat([s, s[3:4]]), "scores has 2 rows at resid_mid.1"),
    ("scores", lambda s: _cut_lists(s, "norm"), "norm at resid_pre.0 has"),
    ("scores", lambda s: _cut_lists(s, "score.random1"), "score.random1 at resid_pre.0 has"),
    (
        "scores",
        lambda s: s.with_columns(pl.lit(None, pl.List(pl.Float32)).alias("score.random1")),
        "score.random1 is missing at resid_pre.0",
    ),
    ("scores", lambda s: s.with_columns((pl.col("layer") + 1).alias("layer")), "the row at resid_pre.0 says layer 1"),
    ("writes", lambda w: w.filter(pl.col("checkpoint") != "resid_post.0"), "writes has no row at resid_post.0"),
    ("generations", lambda g: g.with_columns(pl.lit(99, pl.Int32).alias("response_tokens")), "at most 10 were asked"),
    ("generations", lambda g: g.with_columns(pl.lit(1, pl.UInt64).alias("seed")), "its seed is 1"),
]


@pytest.mark.parametrize(("table", "change", "line"), CHANGES, ids=[line for _, _, line in CHANGES])
def test_what_a_faulty_writer_leaves_is_named(
    run_dir: Path, table: str, change: Callable[[pl.DataFrame], pl.DataFrame], line: str
) -> None:
    rewritten(run_dir, table, change)
    stored = check_stored(run_dir, deep=True)
    assert any(found.startswith("generation ") and "(all/" in found and line in found for found in stored.problems), (
        stored.problems
    )
    assert sum(map(len, stored.sound.values())) < 6


def test_the_command_prints_the_verdict_and_its_exit_code(
    run_dir: Path,
    clean_run: tuple[Path, LanguageModel],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loading, "load_source", lambda *_a, **_k: clean_run[1])
    assert _exit_code(monkeypatch, "verify", str(run_dir)) == 0
    shown = capsys.readouterr().out
    assert "verified 6 of 6 generations: all within limits" in shown
    assert "resid_mid" in shown
    assert _exit_code(monkeypatch, "verify", str(run_dir), "--sample", "2", "--deep", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["passed"], described["verified"], described["captured"]) == (True, 2, 6)

    monkeypatch.setattr(loading, "load_source", None)  # nothing is loaded for a damaged run
    shard_file(run_dir, 0, "writes").unlink()
    assert _exit_code(monkeypatch, "verify", str(run_dir)) == 1
    assert "0000.writes.parquet is missing" in capsys.readouterr().out
    with pytest.raises(InputError):
        cli.verify(run_dir / "nowhere")


def _exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["traitscope", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
