"""A night's work: load once, fit or find vectors, time, freeze, then shard after shard until all are committed."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import polars as pl
import torch

from traitscope.attribution.opened import open_layers_to_split
from traitscope.captures.integrity import check_shards
from traitscope.captures.reading import open_run
from traitscope.errors import InputError, one_line_of
from traitscope.model.capture import ReaderBank, captured_bytes_per_position
from traitscope.model.embedded import embedded_weights_are_cached
from traitscope.model.facts import facts_of_module
from traitscope.model.internals import refuse_unreadable
from traitscope.model.loading import LanguageModel, load_source
from traitscope.run.batching import (
    Batch,
    Shard,
    batch_width,
    make_batches,
    make_shards,
    most_per_shard,
    rows_that_fit,
    turns,
)
from traitscope.run.ceilings import measured_ceilings
from traitscope.run.commit import remove_leftovers
from traitscope.run.cost import SessionCost
from traitscope.run.devices import at_once, most_on_one, still_there
from traitscope.run.engine import GenerationTask
from traitscope.run.estimate import Estimate, Setting, estimate
from traitscope.run.events import EventLog
from traitscope.run.executor import Executor, InProcess
from traitscope.run.frozen import (
    FrozenRun,
    add_retry,
    freeze,
    new_run_directory,
    planned_tasks,
    provisional_tasks,
    read_frozen,
)
from traitscope.run.lock import locked
from traitscope.run.memory import free_memory, release_memory
from traitscope.run.opening import opened_bytes, refuse_full_disk, refuse_too_large
from traitscope.run.pace import Pace, measured_pace, remember_pace, remembered_pace
from traitscope.run.prepare import Prepared
from traitscope.run.progress import Reporter, stage
from traitscope.run.reload import model_of_run
from traitscope.run.session import Session, missing_shards
from traitscope.run.tracking import Tracking
from traitscope.run.workbench import Workbench
from traitscope.run.workers import WorkerPool
from traitscope.traits.store import bank_of, vectors_for
from traitscope.traits.vectors import TraitVectors
from traitscope.units import human_seconds

log = logging.getLogger(__name__)

_TIMED_TOKENS = 64
_MOST_TIMED_ROWS = 128


def start_run(
    prepared: Prepared,
    *,
    out: Path,
    batch_size: int | None,
    shard_size: int | None,
    allow_foreign: bool,
    reporter: Reporter,
    model: LanguageModel | None = None,
    retime: bool = False,
    compiled: bool | None = None,
    tracking: Tracking | None = None,
    on_end: Callable[[Path], None] = lambda _run_dir: None,
) -> Path:
    """Run a prepared suite in a new run directory, which is returned.

    ``model`` is the suite's model where it is in memory already; else it is loaded. ``retime`` times it anew
    instead of trusting a pace that was measured, say, while the machine was busy. ``compiled`` says whether decode
    steps are compiled; None leaves it as the model has it, which is on a CUDA device. ``tracking`` is told of every
    shard; ``on_end`` is called with the run directory when the work ends, however it ends.

    Raises:
        InputError, RunError, Interrupted: each message says what is safe and how to go on.
    """
    _refuse_what_cannot_fit(prepared, out)
    cost = SessionCost()
    model = model or _load(prepared, cost, reporter)
    if compiled is not None:
        model.static_steps.wanted = compiled
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
    _refuse_unreadable(model, runnable)
    with cost.timed("timing"):
        pace = None if retime else remembered_pace(model.fingerprint.short, model.device, model.dtype)
        if pace is None and runnable:
            pace = _timed(model, bank_of(vectors), runnable, cost, reporter)
    setting = Setting(facts_of_module(model.module), model.dtype, len(vectors), len(model.anatomy.checkpoints), pace)
    devices = prepared.devices if len(prepared.devices) > 1 else (model.device,)
    n_sharing = most_on_one(devices)
    width = batch_size or batch_width(setting.facts, model.device, model.dtype.itemsize, runnable, pace, n_sharing)
    batches = make_batches(runnable, partial(opened_bytes, setting.facts, model.dtype.itemsize))
    estimated = estimate(setting, runnable, batches, width)
    reporter.say(_estimate_line(estimated, len(runnable), width, at_once(devices)))
    most = None if shard_size else most_per_shard(len(runnable), width, len(devices))
    shards = _shards(setting, batches, sorted(too_long), width, shard_size, estimated, most)
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
                devices=devices,
                vectors=vectors,
                tasks=tasks,
                shards=shards,
                batch_width=width,
                estimate={**asdict(estimated), "pace": None if pace is None else asdict(pace)},
            )
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)  # it holds nothing that was captured
            raise
        frozen = read_frozen(run_dir)
        if len(devices) == 1:
            executor: Executor = InProcess(Workbench(frozen, model))
        else:
            del model  # the workers have their own, one of them on the same device
            release_memory()
            executor = WorkerPool(run_dir, devices)
        _run_session(frozen, executor, devices, cost, reporter, tracking, on_end)
    return run_dir


def resume_run(
    run_dir: Path,
    *,
    retry_failed: bool,
    deep: bool,
    reporter: Reporter,
    devices: Sequence[torch.device] = (),
    tracking: Tracking | None = None,
    on_end: Callable[[Path], None] = lambda _run_dir: None,
) -> None:
    """Go on with a run: check what is committed, remove leftovers, run the shards that are missing.

    Of a complete run, open layers that were not split up for its report are.

    ``devices`` are other ones than the run had, one for each worker; no number depends on how many there are.
    ``on_end`` is called with the run directory when that work ends, however it ends.

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
        if not missing_shards(frozen):
            if not open_layers_to_split(frozen):
                reporter.say(f"run {run_dir} is complete; nothing to do")
                return
            reporter.say(f"run {run_dir} is complete; its open layers are still to be split up for the report")
        EventLog(run_dir).add("resume", pid=os.getpid(), host=socket.gethostname())
        cost = SessionCost()
        chosen = devices or still_there(frozen.devices)
        if len(chosen) == 1:
            reporter.say(f"loading {frozen.source.name}")
            model = _loaded(lambda: model_of_run(run_dir, chosen[0]), cost)
            executor: Executor = InProcess(Workbench(frozen, model))
        else:
            executor = WorkerPool(run_dir, chosen)
        _run_session(frozen, executor, chosen, cost, reporter, tracking, on_end)


def _run_session(
    frozen: FrozenRun,
    executor: Executor,
    devices: Sequence[torch.device],
    cost: SessionCost,
    reporter: Reporter,
    tracking: Tracking | None,
    on_end: Callable[[Path], None],
) -> None:
    cost.devices = [str(device) for device in devices]
    try:
        with closing(executor):
            Session(frozen, executor, cost, reporter, tracking).run_missing_shards()
    finally:
        on_end(frozen.run_dir)


def failed_generations(run_dir: Path) -> list[str]:
    """Generations whose last record is ``failed``."""
    generations = open_run(run_dir).generations.filter(pl.col("status") == "failed")
    return generations.select("generation").collect()["generation"].to_list()


def _refuse_what_cannot_fit(prepared: Prepared, out: Path) -> None:
    """Refuse open layers that memory or disk have no room for, before a model is loaded."""
    if any(capture.kind == "internals" for capture in prepared.plan.captures):
        facts, itemsize = prepared.facts(), prepared.known_dtype.itemsize
        tasks = provisional_tasks(prepared.plan, facts.n_layers)
        refuse_too_large(facts, itemsize, prepared.device, tasks)
        refuse_full_disk(out, sum(opened_bytes(facts, itemsize, task) for task in tasks))


def _shards(
    setting: Setting,
    batches: Sequence[Batch],
    too_long: Sequence[str],
    width: int,
    shard_size: int | None,
    estimated: Estimate,
    most: int | None,
) -> list[Shard]:
    bytes_per_position = captured_bytes_per_position(setting.n_checkpoints, setting.n_traits)

    def bytes_of(task: GenerationTask) -> int:
        scores = (task.n_prompt + task.most_response_tokens) * bytes_per_position
        return scores + opened_bytes(setting.facts, setting.dtype.itemsize, task)

    n_turns = sum(len(turns(batch, width)) for batch in batches)
    return make_shards(
        batches,
        too_long,
        width=width,
        shard_size=shard_size,
        seconds_per_turn=None if estimated.seconds is None else estimated.seconds / max(n_turns, 1),
        bytes_of=bytes_of,
        most=most,
    )


def _load(prepared: Prepared, cost: SessionCost, reporter: Reporter) -> LanguageModel:
    converting = prepared.source.kind == "embedded" and not embedded_weights_are_cached()
    note = " (the first time its weights are de-quantised: some 20 seconds)" if converting else ""
    reporter.say(f"loading {prepared.source.name}{note}")
    dtype = "auto" if prepared.dtype is None else str(prepared.dtype).removeprefix("torch.")
    return _loaded(lambda: load_source(prepared.source, device=str(prepared.device), dtype=dtype), cost)


def _loaded(load: Callable[[], LanguageModel], cost: SessionCost) -> LanguageModel:
    started = time.perf_counter()
    model = load()
    cost.loaded(time.perf_counter() - started)
    return model


def _in_plan_order(vectors: Sequence[TraitVectors], traits: Sequence[str]) -> list[TraitVectors]:
    by_name = {vector.trait: vector for vector in vectors}
    return [by_name[trait] for trait in traits]


def _refuse_unreadable(model: LanguageModel, tasks: Sequence[GenerationTask]) -> None:
    """Refuse open layers of which this model does not have what is asked, before anything is generated."""
    for tensors in {str(task.opened): task.opened.tensors for task in tasks if task.opened is not None}.values():
        refuse_unreadable(model, tensors)


def _timed(
    model: LanguageModel, bank: ReaderBank, tasks: Sequence[GenerationTask], cost: SessionCost, reporter: Reporter
) -> Pace | None:
    """The model's pace on this machine, to be remembered. A model that cannot be timed is left to the engine, which
    finds the guilty row."""
    reporter.say("timing the model, once on this machine")
    facts = facts_of_module(model.module)
    most = rows_that_fit(facts, _TIMED_TOKENS, model.dtype.itemsize, free_memory(model.device))
    try:
        pace = measured_pace(
            model,
            bank,
            tasks[0].prompt.token_ids,
            most_rows=max(1, min(most, _MOST_TIMED_ROWS)),
            loading_seconds=cost.seconds.get("loading", 0.0),
        )
    except Exception as error:
        log.warning("the model could not be timed: %s", one_line_of(error))
        return None
    if pace.is_plausible:
        remember_pace(pace, model.fingerprint.short, model.device, model.dtype)
    else:
        reporter.say("the machine was busy while the model was timed: the plan may be off; the next run times it again")
    for dtype in (model.dtype, torch.bfloat16):
        measured_ceilings(model.device, dtype)
    return pace


def _estimate_line(estimated: Estimate, n_generations: int, width: int, at_once: int) -> str:
    counts = f"{n_generations} generations, {min(width, n_generations)} at a time"
    if estimated.seconds is None:
        return f"{counts}: no estimate of the time"
    return f"{counts}: about {human_seconds(estimated.seconds / at_once)} of generation if no response ends early"
