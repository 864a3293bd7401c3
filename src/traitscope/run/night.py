"""A night's work: load once, fit or find vectors, time, freeze, then shard after shard until all are committed."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import torch

from traitscope.captures.files import committed_shards, read_sessions
from traitscope.captures.reading import open_run
from traitscope.errors import InputError, RunError
from traitscope.model.capture import ReaderBank, captured_bytes_per_position
from traitscope.model.embedded import embedded_weights_are_cached
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel, load_source
from traitscope.run.batching import Shard, make_batches, make_shards, run_prefix, widest_batch
from traitscope.run.commit import check_shards, commit_shard, remove_leftovers, write_json
from traitscope.run.engine import Engine, GenerationTask, is_out_of_memory, one_line_of, release_memory
from traitscope.run.frozen import (
    FrozenRun,
    add_retry,
    freeze,
    new_run_directory,
    planned_tasks,
    read_frozen,
    too_long_outcome,
)
from traitscope.run.interruption import Interrupted, Interruption, listening
from traitscope.run.lock import locked
from traitscope.run.prepare import Prepared
from traitscope.run.progress import EventLog, Reporter, stage
from traitscope.run.tables import Outcome, shard_tables
from traitscope.run.timing import Pace, measured_pace
from traitscope.traits.store import bank_of, vectors_for
from traitscope.traits.vectors import TraitVectors
from traitscope.units import human_seconds

log = logging.getLogger(__name__)


@dataclass
class SessionCost:
    """What one process spent on a run. Seconds by kind of work; bytes."""

    seconds: dict[str, float] = field(default_factory=dict)
    model_loads: int = 0
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - started

    def described(self, ended_by: str) -> dict[str, Any]:
        return {
            "began": self.began,
            "ended_by": ended_by,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "model_loads": self.model_loads,
            "seconds": {kind: round(seconds, 3) for kind, seconds in self.seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_device_memory_bytes": _peak_device_memory_bytes(),
        }


def start_run(
    prepared: Prepared,
    *,
    out: Path,
    batch_size: int | None,
    shard_size: int | None,
    allow_foreign: bool,
    reporter: Reporter,
    model: LanguageModel | None = None,
) -> Path:
    """Run a prepared suite in a new run directory, which is returned.

    ``model`` is the suite's model where it is in memory already; else it is loaded.

    Raises:
        InputError, RunError, Interrupted: each message says what is safe and how to go on.
    """
    cost = SessionCost()
    model = model or _load(prepared, cost, reporter)
    with cost.timed("fitting"), reporter:
        vectors = vectors_for(
            model,
            prepared.references,
            allow_foreign=allow_foreign,
            base_template=prepared.loaded.suite.base_template,
            on_progress=stage(reporter, "texts"),
        )
    vectors = _in_plan_order(vectors, prepared.plan.traits)
    tasks = planned_tasks(prepared.plan, vectors, model.anatomy.checkpoints, model.fingerprint.short)
    too_long = {g.key.identity(model.fingerprint.short) for g in prepared.plan.too_long}
    runnable = [task for task in tasks.values() if task.id not in too_long]
    reporter.say("timing the model on the first batch")
    with cost.timed("timing"):
        width, pace = _fitting_width(model, bank_of(vectors), runnable, batch_size)
    batches = make_batches(runnable, width)
    estimate = _estimate(pace, batches)
    reporter.say(_estimate_line(estimate, len(runnable), len(batches)))
    shards = make_shards(
        batches,
        sorted(too_long),
        shard_size=shard_size,
        seconds_per_batch=None if pace is None else estimate["seconds"] / len(batches),
        bytes_per_position=captured_bytes_per_position(len(model.anatomy.checkpoints), len(vectors)),
    )
    run_dir = new_run_directory(out, prepared.loaded.suite.name)
    reporter.say(f"run directory: {run_dir}")
    with locked(run_dir):
        try:
            freeze(
                run_dir,
                plan=prepared.plan,
                suite=prepared.loaded.resolved(),
                source=prepared.source,
                model=model,
                vectors=vectors,
                tasks=tasks,
                shards=shards,
                batch_width=width,
                estimate=estimate,
            )
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)  # it holds nothing that was captured
            raise
        _run_shards(read_frozen(run_dir), model, cost, reporter)
    return run_dir


def resume_run(run_dir: Path, *, retry_failed: bool, deep: bool, reporter: Reporter) -> None:
    """Go on with a run: check what is committed, remove leftovers, run the shards that are missing.

    Raises:
        InputError: another process holds the run, its inputs changed, or the model is another one.
        RunError: a committed shard is damaged.
    """
    if not run_dir.is_dir():
        raise InputError(f"run {run_dir}: no such directory")
    with locked(run_dir):
        frozen = read_frozen(run_dir)
        check_shards(run_dir, deep=deep)
        remove_leftovers(run_dir)
        if retry_failed and (failed := failed_generations(run_dir)):
            add_retry(run_dir, [Shard(((generation,),)) for generation in failed])
            frozen = read_frozen(run_dir)
        if not _missing_shards(frozen):
            reporter.say(f"run {run_dir} is complete; nothing to do")
            return
        cost = SessionCost()
        with cost.timed("loading"):
            reporter.say(f"loading {frozen.source.name}")
            model = load_source(frozen.source, device=frozen.device, dtype=frozen.dtype)
            cost.model_loads += 1
        if model.fingerprint.short != frozen.fingerprint:
            raise InputError(
                f"run {run_dir}: began with {frozen.source.name} of fingerprint {frozen.fingerprint}, which is "
                f"now {model.fingerprint.short}; bring that model back, or start a new run"
            )
        _run_shards(frozen, model, cost, reporter)


def failed_generations(run_dir: Path) -> list[str]:
    """Generations whose last record is ``failed``."""
    generations = open_run(run_dir).generations.filter(pl.col("status") == "failed")
    return generations.select("generation").collect()["generation"].to_list()


def _load(prepared: Prepared, cost: SessionCost, reporter: Reporter) -> LanguageModel:
    converting = prepared.source.kind == "embedded" and not embedded_weights_are_cached()
    note = " (the first time its weights are de-quantised: some 20 seconds)" if converting else ""
    reporter.say(f"loading {prepared.source.name}{note}")
    dtype = "auto" if prepared.dtype is None else str(prepared.dtype).removeprefix("torch.")
    with cost.timed("loading"):
        model = load_source(prepared.source, device=str(prepared.device), dtype=dtype)
    cost.model_loads += 1
    return model


def _in_plan_order(vectors: Sequence[TraitVectors], traits: Sequence[str]) -> list[TraitVectors]:
    by_name = {vector.trait: vector for vector in vectors}
    return [by_name[trait] for trait in traits]


def _fitting_width(
    model: LanguageModel, bank: ReaderBank, tasks: Sequence[GenerationTask], batch_size: int | None
) -> tuple[int, Pace | None]:
    """The batch width, halved until the first batch fits in memory, and the pace that it was timed at.

    A first batch that fails for another reason is left to the engine, which finds the guilty row.
    """
    longest = max((task.n_prompt + task.most_response_tokens for task in tasks), default=1)
    facts = facts_of_module(model.module)
    width = batch_size or widest_batch(facts, model.device, model.dtype.itemsize, longest)
    while tasks:
        first = make_batches(tasks, width)[0]
        try:
            return width, measured_pace(model, bank, first)
        except Exception as error:
            if not is_out_of_memory(error) or width == 1:
                log.warning("the first batch could not be timed: %s", one_line_of(error))
                break
        width = (min(width, len(first)) + 1) // 2
        release_memory()
    return width, None


def _estimate(pace: Pace | None, batches: Sequence[tuple[GenerationTask, ...]]) -> dict[str, Any]:
    """Seconds if every row runs to its longest response; None if the model could not be timed."""
    if pace is None:
        return {"seconds": None, "pace": None}
    seconds = sum(pace.batch_seconds(batch) for batch in batches)
    return {"seconds": round(seconds, 3), "pace": asdict(pace)}


def _estimate_line(estimate: Mapping[str, Any], n_generations: int, n_batches: int) -> str:
    counts = f"{n_generations} generations in {n_batches} batch{'es' if n_batches != 1 else ''}"
    if estimate["seconds"] is None:
        return f"{counts}: no estimate of the time"
    return f"{counts}: about {human_seconds(estimate['seconds'])} of generation if no response ends early"


def _missing_shards(frozen: FrozenRun) -> list[int]:
    committed = set(committed_shards(frozen.run_dir))
    return [number for number in range(len(frozen.shards)) if number not in committed]


def _run_shards(frozen: FrozenRun, model: LanguageModel, cost: SessionCost, reporter: Reporter) -> None:
    resume_hint = f"Go on with: traitscope run --resume {frozen.run_dir}"
    events = EventLog(frozen.run_dir)
    missing = _missing_shards(frozen)
    events.add("session", shards=len(missing), pid=os.getpid(), host=socket.gethostname())
    earlier = _earlier_sessions(frozen.run_dir)
    _note_session(frozen.run_dir, earlier, cost, "running")
    ended_by = "error"
    try:
        with listening(reporter.say, resume_hint) as interruption, reporter:
            _begin_progress(frozen, missing, reporter)
            prefix = run_prefix(frozen.tasks.values())
            engine = Engine(model, bank_of(frozen.vectors), run_prefix=prefix, on_tokens=reporter.advance)
            for number in missing:
                _run_shard(frozen, number, model, engine, cost, reporter, events)
                _note_session(frozen.run_dir, earlier, cost, "running")
                _stop_if_asked(interruption, frozen, resume_hint)
        ended_by = "finished"
    except Interrupted:
        ended_by = "interrupted"
        raise
    except RunError as error:
        raise RunError(f"{error}; committed shards are safe. {resume_hint}") from error
    finally:
        _note_session(frozen.run_dir, earlier, cost, ended_by)
        events.add("session_end", ended_by=ended_by)


def _begin_progress(frozen: FrozenRun, missing: Sequence[int], reporter: Reporter) -> None:
    def tokens(numbers: Sequence[int]) -> int:
        return sum(
            frozen.tasks[generation].most_response_tokens
            for number in numbers
            for batch in frozen.shards[number].batches
            for generation in batch
        )

    total = tokens(range(len(frozen.shards)))
    reporter.begin("generating", total, "tokens", done=total - tokens(missing))


def _run_shard(
    frozen: FrozenRun,
    number: int,
    model: LanguageModel,
    engine: Engine,
    cost: SessionCost,
    reporter: Reporter,
    events: EventLog,
) -> None:
    shard = frozen.shards[number]
    outcomes = [too_long_outcome(frozen.tasks[g], model.context_length) for g in shard.too_long]
    with cost.timed("generating"):
        for batch in shard.batches:
            tasks = [frozen.tasks[generation] for generation in batch]
            finished = engine.run_batch(tasks)
            reporter.advance(_unused_tokens(tasks, finished))
            outcomes += finished
    with cost.timed("writing"):
        tables = shard_tables(
            outcomes,
            [vector.trait for vector in frozen.vectors],
            [vector.readout for vector in frozen.vectors],
            model.anatomy.checkpoints,
        )
        commit_shard(frozen.run_dir, number, tables)
    for outcome in outcomes:
        if outcome.status == "failed":
            reporter.say(f"failed: {outcome.generation}: {outcome.error}")
    events.add("shard", shard=number, statuses=dict(Counter(outcome.status for outcome in outcomes)))
    reporter.note(f"{number + 1} of {len(frozen.shards)} shards committed")


def _unused_tokens(tasks: Sequence[GenerationTask], outcomes: Sequence[Outcome]) -> int:
    """What responses that ended early leave of their budget."""
    generated = sum(len(outcome.captured.logprobs) for outcome in outcomes if outcome.captured)
    return max(0, sum(task.most_response_tokens for task in tasks) - generated)


def _stop_if_asked(interruption: Interruption, frozen: FrozenRun, resume_hint: str) -> None:
    left = len(_missing_shards(frozen))
    if interruption.asked and left:
        raise Interrupted(f"stopped with {left} of {len(frozen.shards)} shards to go. {resume_hint}")


def _earlier_sessions(run_dir: Path) -> list[dict[str, Any]]:
    """The sessions before this one; under the run's lock, one that says it is running was killed."""
    sessions = read_sessions(run_dir)
    return [{**s, "ended_by": "killed"} if s["ended_by"] == "running" else s for s in sessions]


def _note_session(run_dir: Path, earlier: list[dict[str, Any]], cost: SessionCost, ended_by: str) -> None:
    """Put the session into ``run.json``; a full disk must not hide why the run ended."""
    with suppress(RunError):
        write_json(run_dir / "run.json", {"sessions": [*earlier, cost.described(ended_by)]})


def peak_memory_bytes() -> int:
    """The most memory that this process had resident."""
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


def _peak_device_memory_bytes() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
