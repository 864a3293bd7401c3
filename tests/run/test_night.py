"""Bugs caught here: work lost or done twice after a kill, two processes on one run, a failure counted as success,
a run continued under other inputs."""

from __future__ import annotations

import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from nights import failing, quiet, run_suite, tables_digest, write_suite
from traitscope.attribution import opened as opened_module
from traitscope.captures.files import committed_shards, done_file, read_sessions, shard_file
from traitscope.captures.opened_writes import opened_writes_file
from traitscope.captures.reading import open_run
from traitscope.captures.schema import SHARD_TABLES
from traitscope.captures.summaries import mean_z, run_summary, summary_of, went_well
from traitscope.errors import InputError, RunError
from traitscope.run import commit as commit_module
from traitscope.run import engine as engine_module
from traitscope.run import night as night_module
from traitscope.run import pace as pace_module
from traitscope.run import progress as progress_module
from traitscope.run import workbench as workbench_module
from traitscope.run.interruption import Interrupted
from traitscope.run.lock import is_locked, locked
from traitscope.run.night import resume_run
from traitscope.run.progress import Reporter
from traitscope.run.same_inputs import refuse_other_inputs
from traitscope.run.status import run_status

N_GENERATIONS = 24 + 8  # greedy ones, of which three are asked for twice, and four prompts sampled twice


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        yield run_suite(write_suite(folder, tiny_directory), folder / "runs")


def _resume(run_dir: Path, **options: Any) -> None:
    resume_run(run_dir, **{"retry_failed": False, "deep": True, "reporter": quiet(), **options})


def _stopped_after(run: int, tmp_path: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted after some shards."""
    stop = failing(workbench_module.commit_shard, Interrupted("stop"), after=run)
    with monkeypatch.context() as patched:
        patched.setattr(workbench_module, "commit_shard", stop)
        with pytest.raises(Interrupted):
            run_suite(write_suite(tmp_path, tiny_directory), tmp_path / "runs")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert committed_shards(run_dir) == list(range(run))
    return run_dir


def test_every_capture_is_there_and_equal_generations_ran_once(undisturbed: Path) -> None:
    run = open_run(undisturbed)
    generations = run.generations.collect()
    assert generations["status"].to_list() == ["ok"] * N_GENERATIONS
    assert len(run.captures.collect()) == 24 + 3 + 3 + 8
    assert len(summary_of(run)) == 38
    assert all(entry["mean_z"]["loudness"] is not None for entry in summary_of(run))
    assert mean_z(run)["loudness"].null_count() == 0
    (session,) = json.loads((undisturbed / "run.json").read_text())["sessions"]
    assert (session["model_loads"], session["ended_by"]) == (1, "finished")


def test_a_run_ends_by_verifying_two_of_its_generations(undisturbed: Path) -> None:
    verdict = run_summary(undisturbed)["verify"]
    assert (verdict["passed"], verdict["verified"], verdict["captured"]) == (True, 2, N_GENERATIONS)
    (session,) = read_sessions(undisturbed)
    assert session["generated_tokens"] > 0
    assert session["forward"]["passes"] > 0
    assert 0 < session["utilisation"]["forward_share"] <= 1


def test_a_run_whose_numbers_are_wrong_says_so_and_did_not_go_well(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_module.decode

    def shifted(*args: Any, **kwargs: Any) -> Any:
        rows = real(*args, **kwargs)
        for row in rows:
            row.trace.scores[:] = np.roll(row.trace.scores, 1, axis=0)
        return rows

    monkeypatch.setattr(engine_module, "decode", shifted)
    summary = run_summary(run_suite(write_suite(tmp_path, tiny_directory, n_prompts=4), tmp_path / "runs"))
    assert summary["counts"] == {"ok": 16}
    assert not summary["verify"]["passed"]
    assert "score at resid_" in summary["verify"]["problems"][0]
    assert not went_well(summary)


def test_rows_are_prompt_and_generated_tokens(undisturbed: Path) -> None:
    run = open_run(undisturbed)
    counts = dict(run.tokens.group_by("generation").len().collect().iter_rows())
    for row in run.generations.collect().to_dicts():
        assert counts[row["generation"]] == row["prompt_tokens"] + row["response_tokens"]
    lengths = run.scores.select("generation", "norm").collect()
    assert all(len(norm) == counts[generation] for generation, norm in lengths.iter_rows())


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_and_repeats_nothing(tmp_path: Path, tiny_directory: Path, tiny_cache: Path) -> None:
    """Twenty kills at random moments; each time the run is resumed in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["traitscope.run.night", "transformers", "nights"])
    moments = random.Random(0)
    suite = write_suite(tmp_path, tiny_directory, n_prompts=80, generation={"max_new_tokens": 40})
    process = context.Process(target=_start_in_child, args=(suite, tmp_path / "killed", str(tiny_cache)))
    process.start()
    run_dir = _wait_for_plan(tmp_path / "killed")
    committed: list[dict[str, tuple[int, int]]] = []
    for _ in range(20):
        if moments.random() < 0.8:  # else it is killed while it loads
            _wait_for_commit(run_dir, process, n_before=len(committed[-1]) if committed else 0)
        time.sleep(moments.uniform(0.0, 0.15))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        committed.append({path.name: _identity(path) for path in (run_dir / "shards").glob("*.done.json")})
        process = context.Process(target=_resume_in_child, args=(run_dir, str(tiny_cache)))
        process.start()
        _wait_for_lock(run_dir, process)
    process.join()
    assert process.exitcode == 0
    for before, after in itertools.pairwise(committed):
        assert before.items() <= after.items(), "a committed shard was computed again"
    assert len({len(shards) for shards in committed}) >= 10, "the kills did not fall into the work"
    assert tables_digest(run_dir) == tables_digest(run_suite(suite, tmp_path / "undisturbed"))
    assert not [path for path in run_dir.rglob("*") if path.suffix == ".tmp"]
    ends = [session["ended_by"] for session in read_sessions(run_dir)]
    assert ends.count("killed") >= 10
    assert ends[-1] == "finished"


def _start_in_child(suite: Path, out: Path, cache: str) -> None:
    os.environ["TRAITSCOPE_CACHE"] = cache
    run_suite(suite, out)


def _resume_in_child(run_dir: Path, cache: str) -> None:
    os.environ["TRAITSCOPE_CACHE"] = cache
    _resume(run_dir)


def _wait_for_plan(out: Path) -> Path:
    for _ in range(600):
        if found := list(out.glob("*/plan.json")):
            return found[0].parent
        time.sleep(0.1)
    raise AssertionError("the run did not begin")


def _wait_for_lock(run_dir: Path, process: Any) -> None:
    for _ in range(600):
        if is_locked(run_dir) or not process.is_alive():
            return
        time.sleep(0.02)


def _wait_for_commit(run_dir: Path, process: Any, n_before: int) -> None:
    while process.is_alive() and len(committed_shards(run_dir)) <= n_before:
        time.sleep(0.002)


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_leftovers_of_a_dead_process_go_and_those_of_others_stay(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = _stopped_after(2, tmp_path, tiny_directory, monkeypatch)
    host = commit_module.is_dead_temporary.__globals__["_host"]()
    dead = run_dir / "shards" / f".0002.tokens.parquet.{host}.999999999.tmp"
    foreign = run_dir / "shards" / ".0002.tokens.parquet.elsewhere.999999999.tmp"
    uncommitted = run_dir / "shards" / "0002.tokens.parquet"
    for path in (dead, foreign, uncommitted):
        path.write_bytes(b"torn")
    _resume(run_dir)
    assert (dead.exists(), foreign.exists()) == (False, True)
    assert pq.read_table(uncommitted).num_rows > 0


def test_a_second_process_is_refused_while_the_first_lives(undisturbed: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from traitscope.run.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(undisturbed)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is working on it"):
            _resume(undisturbed)
    finally:
        holder.kill()
        holder.wait()
    _resume(undisturbed)


def test_the_first_ctrl_c_finishes_the_shard_the_second_stops_at_once(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    real = engine_module.decode
    calls: list[int] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        """Ctrl-C inside the first batch, and twice inside the second one, where an exception means a bad row."""
        calls.append(1)
        for _ in range(len(calls)):
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(engine_module, "decode", interrupted)
    with pytest.raises(Interrupted, match=r"stopped with 15 of 16 shards to go\. Go on with: traitscope run --resume"):
        run_suite(write_suite(tmp_path, tiny_directory), tmp_path / "runs")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert committed_shards(run_dir) == [0]
    with pytest.raises(Interrupted, match="stopped at once"):
        _resume(run_dir)
    assert (len(calls), committed_shards(run_dir)) == (2, [0])
    assert run_status(run_dir)["counts"] == {"ok": 2, "missing": N_GENERATIONS - 2}
    assert [session["ended_by"] for session in read_sessions(run_dir)] == ["interrupted", "interrupted"]
    assert signal.getsignal(signal.SIGINT) is before


def _interrupting(real: Any, after: int) -> Any:
    """``real``, with a Ctrl-C in call number ``after + 1``."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == after + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("where", "name", "after", "verified"),
    [
        (opened_module, "open_layers", 1, True),
        (workbench_module, "verify_run", 0, False),
        (engine_module, "decode", 6, False),  # in the last shard, which is finished
    ],
)
def test_ctrl_c_when_all_is_captured_leaves_a_finished_run_and_a_resume_splits_it(
    tmp_path: Path,
    tiny_directory: Path,
    tiny_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    after: int,
    verified: bool,
) -> None:
    said = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(where, name, _interrupting(getattr(where, name), after))
        suite = write_suite(tmp_path, tiny_directory, n_prompts=6)
        run_dir = run_suite(suite, tmp_path / "runs", reporter=Reporter(Console(file=said)))
    assert run_status(run_dir)["counts"] == {"ok": 14, "missing": 0}
    assert [session["ended_by"] for session in read_sessions(run_dir)] == ["finished"]
    assert "stopped: everything is captured; " in said.getvalue()
    assert ("not verified (traitscope verify" in said.getvalue()) is not verified
    assert f"open layers not split up for the report (traitscope run --resume {run_dir} does it)" in said.getvalue()
    assert not opened_writes_file(run_dir).exists()
    ended: list[Path] = []
    _resume(run_dir, on_end=ended.append)
    assert opened_writes_file(run_dir).is_file()
    assert ended == [run_dir]
    _resume(run_dir, on_end=ended.append)
    assert len(ended) == 1, "a run with nothing to do loaded its model again"


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room"), ValueError("odd")])
def test_open_layers_that_cannot_be_split_do_not_make_a_run_fail(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(opened_module, "open_layers", failing(opened_module.open_layers, error, after=1))
    suite = write_suite(tmp_path, tiny_directory, n_prompts=6)
    run_dir = run_suite(suite, tmp_path / "runs", reporter=Reporter(Console(file=said)))
    assert read_sessions(run_dir)[-1]["ended_by"] == "finished"
    assert f"open layers not split up for the report: {type(error).__name__}: {error}" in said.getvalue()


def test_verifying_and_splitting_show_how_far_they_are(
    undisturbed: Path, tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, said = tmp_path / "run", io.StringIO()
    shutil.copytree(undisturbed, run_dir)
    opened_writes_file(run_dir).unlink()
    monkeypatch.setattr(progress_module, "_LINE_EVERY_SECONDS", 0.0)
    _resume(run_dir, reporter=Reporter(Console(file=said)))
    lines = said.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("verifying")] == [
        "verifying: 50%",
        "verifying: 100%",
    ]
    splitting = [line for line in lines if line.startswith("splitting open layers: ")]
    assert [line[-6:] for line in splitting] == ["1 of 3", "2 of 3", "3 of 3"]
    assert opened_writes_file(run_dir).read_bytes() == opened_writes_file(undisturbed).read_bytes()


def test_a_full_disk_stops_in_one_line_and_resumes_when_there_is_room(
    undisturbed: Path, tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    run_dir = _stopped_after(3, tmp_path, tiny_directory, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(commit_module.pq, "write_table", failing(pq.write_table, full, after=6))
        with pytest.raises(RunError, match=r"the disk is full: .* committed shards are safe\. Go on with:") as error:
            _resume(run_dir)
    assert "\n" not in str(error.value)
    assert committed_shards(run_dir) == [0, 1, 2, 3]
    assert not list(run_dir.rglob("*.tmp"))
    _resume(run_dir)
    assert tables_digest(run_dir) == tables_digest(undisturbed)


def test_a_prompt_longer_than_the_context_leaves_the_others(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    suite = write_suite(tmp_path, tiny_directory, n_prompts=6)
    with (tmp_path / "prompts.txt").open("a") as file:
        file.write("long " * 60 + "\n")
    run_dir = run_suite(suite, tmp_path / "runs")
    status = run_status(run_dir)
    assert status["counts"] == {"ok": 14, "too_long": 1, "missing": 0}
    (problem,) = status["problems"]
    assert (problem["at"], problem["status"]) == ("greedy/7", "too_long")
    assert "exceed the model's context of 256" in problem["error"]


def test_failures_are_kept_and_retried_only_on_request(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_module.decode

    def decode(model: Any, prompts: Any, **kwargs: Any) -> Any:
        texts = [model.tokenizer.decode(prompt) for prompt in prompts]
        if any("number 5 " in text for text in texts):
            raise ValueError("a bad row")
        return real(model, prompts, **kwargs)

    suite = write_suite(tmp_path, tiny_directory)
    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "decode", decode)
        run_dir = run_suite(suite, tmp_path / "runs", batch_size=32, shard_size=8)
    assert run_status(run_dir)["counts"] == {"ok": N_GENERATIONS - 1, "failed": 1, "missing": 0}
    plan = (run_dir / "plan.json").read_bytes()
    _resume(run_dir)
    assert run_status(run_dir)["counts"]["failed"] == 1
    _resume(run_dir, retry_failed=True)
    assert run_status(run_dir)["counts"] == {"ok": N_GENERATIONS, "missing": 0}
    assert (run_dir / "plan.json").read_bytes() == plan
    assert open_run(run_dir).generations.collect()["generation"].n_unique() == N_GENERATIONS


def test_widths_that_do_not_fit_in_memory_are_not_chosen(
    tmp_path: Path, tiny_directory: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(pace_module.DecodeLoop):
        def __init__(self, model: Any, prompts: Any, **more: Any) -> None:
            if len(prompts) > 5:
                raise torch.OutOfMemoryError("no room")
            super().__init__(model, prompts, **more)

    monkeypatch.setattr(pace_module, "DecodeLoop", Narrow)
    run_dir = run_suite(write_suite(tmp_path, tiny_directory), tmp_path / "runs", batch_size=None, shard_size=16)
    plan = json.loads((run_dir / "plan.json").read_text())
    assert set(plan["estimate"]["pace"]["widths"]) <= {1, 2, 4}
    assert plan["batch_width"] <= 4
    assert run_status(run_dir)["counts"] == {"ok": N_GENERATIONS, "missing": 0}


def test_damaged_shards_are_found_by_size_and_by_checksum(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(undisturbed, run_dir)
    path = run_dir / "shards" / "0001.scores.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    _resume(run_dir, deep=False)
    with pytest.raises(RunError, match=r"shard 0001: .* checksum"):
        _resume(run_dir, deep=True)
    path.write_bytes(content[:-1])
    with pytest.raises(RunError, match=r"shard 0001: .* bytes instead of"):
        _resume(run_dir, deep=False)
    done_file(run_dir, 1).unlink()
    _resume(run_dir)
    assert tables_digest(run_dir) == tables_digest(undisturbed)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lost=st.sets(st.integers(0, 15)), leftovers=st.sets(st.sampled_from(SHARD_TABLES)))
def test_whatever_shards_are_missing_a_resume_completes_the_same_run(
    undisturbed: Path, tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path, lost: set[int], leftovers: set[str]
) -> None:
    run_dir = tmp_path_factory.mktemp("partial") / "run"
    shutil.copytree(undisturbed, run_dir)
    for shard in lost:
        done_file(run_dir, shard).unlink()
        for table in set(SHARD_TABLES) - leftovers:
            shard_file(run_dir, shard, table).unlink()
    _resume(run_dir)
    assert tables_digest(run_dir) == tables_digest(undisturbed)


def test_a_run_continues_only_under_its_own_inputs(undisturbed: Path, tmp_path: Path, tiny_directory: Path) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(undisturbed, run_dir)
    text = (run_dir / "suite.yaml").read_text()
    (run_dir / "suite.yaml").write_text(text.replace("max_new_tokens: 12", "max_new_tokens: 13", 1))
    with pytest.raises(InputError, match=r"suite\.yaml was changed .*max_new_tokens: 12 → 13"):
        _resume(run_dir)
    (run_dir / "suite.yaml").write_text(text)
    given: dict[str, Any] = {"suite": None, "model": None, "max_new_tokens": None, "device": "auto", "dtype": "auto"}
    suite = write_suite(tmp_path, tiny_directory)
    refuse_other_inputs(run_dir, **{**given, "suite": str(suite)})
    with pytest.raises(InputError, match=r"generation\.max_new_tokens: 12 → 9"):
        refuse_other_inputs(run_dir, **{**given, "suite": str(suite), "max_new_tokens": 9})
    with pytest.raises(InputError, match="dtype: float32 → bfloat16"):
        refuse_other_inputs(run_dir, **{**given, "dtype": "bfloat16"})
    (tmp_path / "prompts.txt").write_text((tmp_path / "prompts.txt").read_text().replace("number 9 ", "number X "))
    with pytest.raises(InputError, match=r"prompt greedy/10: 'river number 9 xxx' → 'river number X xxx'"):
        refuse_other_inputs(run_dir, **{**given, "suite": str(suite)})


def test_two_runs_of_one_second_get_two_directories(tmp_path: Path) -> None:
    directories = [night_module.new_run_directory(tmp_path, "night") for _ in range(3)]
    assert len(set(directories)) == 3


def test_a_lock_is_held_and_released(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError), locked(tmp_path):
        pass
    assert not is_locked(tmp_path)
