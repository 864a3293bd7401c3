"""A session at work on a run: which shards are missing, what their executor reports, what it cost."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from traitscope.attribution.opened import open_layers_to_split
from traitscope.captures.files import committed_shards, read_sessions
from traitscope.captures.reading import open_run
from traitscope.checkpoints import Checkpoint
from traitscope.errors import RunError
from traitscope.model.source import context_length, load_config
from traitscope.run.commit import commit_shard, write_json
from traitscope.run.cost import SessionCost
from traitscope.run.engine import GenerationTask
from traitscope.run.events import EventLog
from traitscope.run.executor import Executor
from traitscope.run.frozen import FrozenRun, too_long_outcome
from traitscope.run.heartbeat import Heartbeat
from traitscope.run.interruption import Interrupted, Interruption, listening
from traitscope.run.messages import (
    BatchDone,
    Committed,
    DeviceGivenUp,
    Job,
    JobGivenUp,
    LayersSplit,
    ModelLoaded,
    Progressed,
    Report,
    ShardCost,
    ShardJob,
    SplitJob,
    Tokens,
    UtilisationJob,
    Utilised,
    Verified,
    VerifyJob,
    WorkerLost,
    WorkerStarted,
)
from traitscope.run.progress import Reporter
from traitscope.run.shard_metrics import shard_metrics, tracked_config
from traitscope.run.tables import Outcome, shard_tables
from traitscope.run.tracking import Tracking
from traitscope.run.workbench import committed

_VERIFIED_GENERATIONS = 2


def missing_shards(frozen: FrozenRun) -> list[int]:
    """The shards of a run that are not committed."""
    done = set(committed_shards(frozen.run_dir))
    return [number for number in range(len(frozen.shards)) if number not in done]


class Session:
    """The coordinator of a run that this process holds the lock of; an executor does the work."""

    def __init__(
        self,
        frozen: FrozenRun,
        executor: Executor,
        cost: SessionCost,
        reporter: Reporter,
        tracking: Tracking | None = None,
    ) -> None:
        self._frozen = frozen
        self._executor = executor
        self._cost = cost
        self._reporter = reporter
        self._tracking = tracking or Tracking()
        self._statuses: dict[str, str] = {}
        self._shown = 0
        self._problem: str | None = None
        self._events = EventLog(frozen.run_dir)
        self._earlier = _earlier_sessions(frozen.run_dir)
        self._resume_hint = f"Go on with: traitscope run --resume {frozen.run_dir}"

    def run_missing_shards(self) -> None:
        """Have generated and committed what is missing.

        Raises:
            RunError, Interrupted: each message says what is safe and how to go on.
        """
        missing = missing_shards(self._frozen)
        self._events.add("session", shards=len(missing), pid=os.getpid(), host=socket.gethostname())
        self._note("running")
        self._begin_tracking()
        ended_by = "error"
        try:
            with listening(self._reporter.say, self._resume_hint) as interruption, self._reporter:
                self._begin_progress()
                self._run_shards(missing, interruption)
                self._heartbeat.beat()
                self._verify_and_split(interruption)
            ended_by = "finished"
        except Interrupted:
            ended_by = "interrupted"
            raise
        except RunError as error:
            raise RunError(f"{error}; committed shards are safe. {self._resume_hint}") from error
        finally:
            self._note(ended_by)
            self._events.add("session_end", ended_by=ended_by)

    def _begin_progress(self) -> None:
        """Before anything is done: when the work begins, and again when the first worker has its model."""
        self._began = time.perf_counter()
        total = self._work(range(len(self._frozen.shards)))
        done = total - self._work(missing_shards(self._frozen))
        self._reporter.begin("generating", total, "tokens", done=done)
        self._heartbeat = Heartbeat(self._events, total=total, done=done, memory=self._executor.held)

    def _work(self, shards: Iterable[int]) -> int:
        """Tokens of the longest responses that shards ask for."""
        return sum(
            self._frozen.tasks[generation].most_response_tokens
            for number in shards
            for batch in self._frozen.shards[number].batches
            for generation in batch
        )

    def _begin_tracking(self) -> None:
        if self._tracking.wanted:
            run_dir = self._frozen.run_dir
            generations = open_run(run_dir).generations.select("generation", "status").collect()
            self._statuses = dict(generations.iter_rows())
            self._tracking.begin(run_dir.name, tracked_config(self._frozen), step=len(committed_shards(run_dir)))

    def _run_shards(self, missing: Sequence[int], interruption: Interruption) -> None:
        jobs = [ShardJob(number, self._tracking.wanted) for number in missing]
        self._executor.run(jobs, self._on_report, lambda: interruption.asked)
        self._ask_utilisation()
        if interruption.asked:
            self._stop_if_any_is_left()

    def _on_report(self, report: Report) -> None:
        match report:
            case Tokens():
                self._heartbeat.tokens(report.shard, report.count)
                self._show_progress()
            case BatchDone():
                self._heartbeat.batch(report.shard, report.work)
                self._show_progress()
            case Committed():
                self._committed(report)
            case JobGivenUp(job=ShardJob(shard=shard)):
                self._record_as_failed(shard, report.why)
            case JobGivenUp():
                self._problem = report.why
            case Progressed():
                self._show_stage(report)
            case Verified():
                self._cost.verdict = None if report.verdict is None else dict(report.verdict)
                self._problem = report.problem
            case LayersSplit():
                self._problem = report.problem
            case Utilised():
                self._cost.utilisation = None if report.used is None else dict(report.used)
            case _:
                self._on_worker(report)

    def _on_worker(self, report: Report) -> None:
        """What becomes of processes, which the user and the run's events are told."""
        match report:
            case WorkerStarted():
                self._reporter.say(f"worker on {report.device}: process {report.pid}")
                self._events.add("worker", **asdict(report))
            case ModelLoaded():
                self._cost.loaded(report.seconds)
                if not self._heartbeat.done:
                    self._begin_progress()
            case WorkerLost():
                again = ", ".join(f"{shard:04d}" for shard in report.shards)
                what = f"; run again: shard {again}" if again else ""
                self._reporter.say(f"worker on {report.device} (process {report.pid}) is gone: {report.why}{what}")
                self._events.add("worker_lost", **asdict(report))
                self._cost.lost_workers += 1
                for shard in report.shards:
                    self._heartbeat.lost(shard)
                self._show_progress()
            case DeviceGivenUp():
                self._reporter.say(f"no more workers on {report.device}: {report.why}")
                self._events.add("device_given_up", **asdict(report))

    def _show_progress(self) -> None:
        done = self._heartbeat.done
        self._reporter.advance(done - self._shown)
        self._shown = done

    def _committed(self, report: Committed) -> None:
        self._heartbeat.committed(report.shard, self._work([report.shard]))
        self._show_progress()
        self._cost.shard(ShardCost(**report.cost))
        self._cost.generating_wall_seconds = time.perf_counter() - self._began
        for generation, error in report.errors.items():
            self._reporter.say(f"failed: {generation}: {error}")
        self._events.add("shard", shard=report.shard, statuses=dict(Counter(report.statuses.values())))
        n_committed = len(committed_shards(self._frozen.run_dir))
        self._reporter.note(f"{n_committed} of {len(self._frozen.shards)} shards committed")
        self._note("running")
        self._statuses |= report.statuses
        self._tracking.shard(lambda: shard_metrics(self._statuses, report.figures, self._executor.held()))

    def _record_as_failed(self, number: int, why: str) -> None:
        """Commit a shard that no worker survives, without its captures."""
        frozen, shard = self._frozen, self._frozen.shards[number]
        outcomes: list[Outcome] = []
        if shard.too_long:
            limit = context_length(load_config(frozen.source))
            outcomes += [too_long_outcome(frozen.tasks[generation], limit) for generation in shard.too_long]
        ids = [generation for batch in shard.batches for generation in batch]
        outcomes += [_failed(frozen.tasks[generation], f"its shard ended two workers: {why}") for generation in ids]
        checkpoints = [Checkpoint.from_name(name) for name in frozen.checkpoints]
        traits = [vector.trait for vector in frozen.vectors]
        tables = shard_tables(outcomes, traits, [vector.readout for vector in frozen.vectors], checkpoints)
        commit_shard(frozen.run_dir, number, tables, {})
        self._committed(committed(number, outcomes, ShardCost()))

    def _ask_utilisation(self) -> None:
        seconds = self._cost.seconds.get("generating", 0.0)
        if self._cost.work.seconds:
            job = UtilisationJob(
                work=asdict(self._cost.work),
                generated_tokens=self._cost.generated_tokens,
                generating_seconds=seconds,
                wall_seconds=self._cost.generating_wall_seconds if len(self._cost.devices) > 1 else seconds,
            )
            self._executor.run([job], self._on_report, lambda: False)

    def _verify_and_split(self, interruption: Interruption) -> None:
        """What uses the model once all is captured; its user may stop it, and the run is finished all the same."""
        try:
            with interruption.stopping_at_once():
                self._verify()
                self._split_open_layers()
        except Interrupted:
            self._reporter.say("; ".join(["stopped: everything is captured", *self._left_out()]))

    def _left_out(self) -> Iterator[str]:
        run_dir = self._frozen.run_dir
        if self._cost.verdict is None:
            yield f"not verified (traitscope verify {run_dir} does it)"
        if open_layers_to_split(self._frozen):
            yield f"open layers not split up for the report (traitscope run --resume {run_dir} does it)"

    def _verify(self) -> None:
        """Prove some generations while a model is there."""
        self._events.add("verifying")
        self._reporter.begin("verifying", _VERIFIED_GENERATIONS, "generations")
        self._do_one("verifying", VerifyJob(_VERIFIED_GENERATIONS))
        if self._problem is not None:
            self._reporter.say(f"not verified: {self._problem}")

    def _split_open_layers(self) -> None:
        """Keep who wrote the traits in the open layers, while a model is there."""
        self._events.add("splitting")
        self._do_one("splitting", SplitJob())
        if self._problem is not None:
            self._reporter.say(f"open layers not split up for the report: {self._problem}")

    def _do_one(self, kind: str, job: Job) -> None:
        self._problem = None
        with self._cost.timed(kind):
            self._executor.run([job], self._on_report, lambda: False)

    def _show_stage(self, report: Progressed) -> None:
        """Verifying tells its total beforehand, splitting with its first report."""
        if report.done == 0:
            self._reporter.begin("splitting open layers", report.total, "generations")
            return
        self._reporter.note(f"{report.done} of {report.total}")
        self._reporter.advance(1)

    def _stop_if_any_is_left(self) -> None:
        if left := len(missing_shards(self._frozen)):
            raise Interrupted(f"stopped with {left} of {len(self._frozen.shards)} shards to go. {self._resume_hint}")

    def _note(self, ended_by: str) -> None:
        """Put the session into ``run.json``; a full disk must not hide why the run ended."""
        with suppress(RunError):
            sessions = [*self._earlier, self._cost.described(ended_by)]
            write_json(self._frozen.run_dir / "run.json", {"sessions": sessions})


def _failed(task: GenerationTask, error: str) -> Outcome:
    return Outcome(task.id, "failed", task.n_prompt, task.seed, error=error)


def _earlier_sessions(run_dir: Path) -> list[dict[str, Any]]:
    """The sessions before this one; under the run's lock, one that says it is running was killed."""
    sessions = read_sessions(run_dir)
    return [{**s, "ended_by": "killed"} if s["ended_by"] == "running" else s for s in sessions]
