"""One process's work on a frozen run: shard after shard, each written beside the next, and what it cost."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from traitscope.attribution.opened import open_layers_to_split, write_opened_writes
from traitscope.captures.files import committed_shards, read_sessions
from traitscope.captures.reading import open_run
from traitscope.errors import InputError, RunError, one_line_of
from traitscope.memory import peak_resident_bytes
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel
from traitscope.model.meter import ForwardWork
from traitscope.run.batching import rows_that_fit, run_prefix
from traitscope.run.ceilings import measured_ceilings
from traitscope.run.commit import commit_shard, write_json
from traitscope.run.engine import Engine, GenerationTask
from traitscope.run.events import EventLog
from traitscope.run.frozen import FrozenRun, too_long_outcome
from traitscope.run.heartbeat import Heartbeat
from traitscope.run.interruption import Interrupted, Interruption, listening
from traitscope.run.memory import free_memory, held_bytes, peak_device_memory_bytes, total_memory
from traitscope.run.pace import Pace
from traitscope.run.progress import Reporter
from traitscope.run.shard_metrics import shard_metrics, tracked_config
from traitscope.run.tables import Outcome, shard_internals, shard_tables
from traitscope.run.tracking import Tracking
from traitscope.run.utilisation import CeilingShares, Utilisation, advice, utilisation
from traitscope.run.writer import ShardWriter
from traitscope.verify.verdict import Verdict, verify_run

_VERIFIED_GENERATIONS = 2


@dataclass
class SessionCost:
    """What one process spent on a run. Seconds by kind of work; bytes."""

    seconds: dict[str, float] = field(default_factory=dict)
    model_loads: int = 0
    generated_tokens: int = 0
    work: ForwardWork = field(default_factory=ForwardWork)
    utilisation: Utilisation | None = None
    verdict: Verdict | None = None
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
            "peak_memory_bytes": peak_resident_bytes(),
            "peak_device_memory_bytes": peak_device_memory_bytes(),
            "generated_tokens": self.generated_tokens,
            "forward": asdict(self.work),
            "utilisation": None if self.utilisation is None else asdict(self.utilisation),
            "verify": None if self.verdict is None else self.verdict.described(),
        }


def missing_shards(frozen: FrozenRun) -> list[int]:
    """The shards of a run that are not committed."""
    committed = set(committed_shards(frozen.run_dir))
    return [number for number in range(len(frozen.shards)) if number not in committed]


class Session:
    """One process at work on a run that it holds the lock of."""

    def __init__(
        self,
        frozen: FrozenRun,
        model: LanguageModel,
        cost: SessionCost,
        reporter: Reporter,
        tracking: Tracking | None = None,
    ) -> None:
        self._frozen = frozen
        self._model = model
        model.linears.wanted = frozen.packed_linears
        model.static_steps.wanted = frozen.compiled_steps
        self._cost = cost
        self._cost.seconds.setdefault("writing", 0.0)  # added to by the writing thread
        self._reporter = reporter
        self._tracking = tracking or Tracking()
        self._statuses: dict[str, str] = {}
        self._events = EventLog(frozen.run_dir)
        self._earlier = _earlier_sessions(frozen.run_dir)
        self._resume_hint = f"Go on with: traitscope run --resume {frozen.run_dir}"

    def run_missing_shards(self) -> None:
        """Generate and commit what is missing.

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
                heartbeat = self._begin_progress(missing)
                self._run_shards(missing, interruption, heartbeat)
                heartbeat.beat()
                self._verify_and_split(interruption)
            ended_by = "finished"
        except Interrupted:
            ended_by = "interrupted"
            raise
        except RunError as error:
            raise RunError(f"{error}; committed shards are safe. {self._resume_hint}") from error
        finally:
            self._cost.utilisation = self._utilisation()
            self._note(ended_by)
            self._events.add("session_end", ended_by=ended_by)

    def _begin_progress(self, missing: Sequence[int]) -> Heartbeat:
        def tokens(numbers: Sequence[int]) -> int:
            return sum(
                self._frozen.tasks[generation].most_response_tokens
                for number in numbers
                for batch in self._frozen.shards[number].batches
                for generation in batch
            )

        total = tokens(range(len(self._frozen.shards)))
        done = total - tokens(missing)
        self._reporter.begin("generating", total, "tokens", done=done)
        return Heartbeat(self._events, total=total, done=done, memory=held_bytes)

    def _begin_tracking(self) -> None:
        if self._tracking.wanted:
            run_dir = self._frozen.run_dir
            generations = open_run(run_dir).generations.select("generation", "status").collect()
            self._statuses = dict(generations.iter_rows())
            self._tracking.begin(run_dir.name, tracked_config(self._frozen), step=len(committed_shards(run_dir)))

    def _run_shards(self, missing: Sequence[int], interruption: Interruption, heartbeat: Heartbeat) -> None:
        def on_tokens(count: int) -> None:
            self._reporter.advance(count)
            heartbeat.tokens(count)

        engine = Engine(
            self._model,
            self._frozen.vectors,
            width=self._frozen.batch_width,
            run_prefix=run_prefix(self._frozen.tasks.values()),
            on_tokens=on_tokens,
        )
        with ShardWriter() as writer:
            for number in missing:
                outcomes = self._generate(number, engine, heartbeat)
                writer.write(
                    lambda number=number, outcomes=outcomes: self._commit(number, outcomes),  # type: ignore[misc]
                    lambda number=number, outcomes=outcomes: self._committed(number, outcomes),  # type: ignore[misc]
                )
                if interruption.asked:
                    writer.finish()
                    self._stop_if_any_is_left()
            writer.finish()

    def _generate(self, number: int, engine: Engine, heartbeat: Heartbeat) -> list[Outcome]:
        shard, tasks = self._frozen.shards[number], self._frozen.tasks
        outcomes = [too_long_outcome(tasks[g], self._model.context_length) for g in shard.too_long]
        before = self._model.meter.work()
        with self._cost.timed("generating"):
            for batch in shard.batches:
                asked = [tasks[generation] for generation in batch]
                finished = engine.run_batch(asked)
                n_generated = _n_generated(finished)
                self._cost.generated_tokens += n_generated
                work = sum(task.most_response_tokens for task in asked)
                self._reporter.advance(max(0, work - n_generated))
                heartbeat.batch(work)
                outcomes += finished
            self._cost.work += self._model.meter.work() - before
        return outcomes

    def _commit(self, number: int, outcomes: Sequence[Outcome]) -> None:
        with self._cost.timed("writing"):
            tables = shard_tables(
                outcomes,
                [vector.trait for vector in self._frozen.vectors],
                [vector.readout for vector in self._frozen.vectors],
                self._model.anatomy.checkpoints,
            )
            commit_shard(self._frozen.run_dir, number, tables, shard_internals(outcomes))

    def _committed(self, number: int, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.status == "failed":
                self._reporter.say(f"failed: {outcome.generation}: {outcome.error}")
        self._events.add("shard", shard=number, statuses=dict(Counter(outcome.status for outcome in outcomes)))
        self._reporter.note(f"{number + 1} of {len(self._frozen.shards)} shards committed")
        self._note("running")
        self._statuses |= {outcome.generation: outcome.status for outcome in outcomes}
        self._tracking.shard(lambda: shard_metrics(self._frozen, outcomes, self._statuses, held_bytes()))

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
        """Prove some generations while the model is there."""
        self._events.add("verifying")
        self._reporter.begin("verifying", _VERIFIED_GENERATIONS, "generations")
        with self._cost.timed("verifying"):
            try:
                self._cost.verdict = verify_run(
                    self._frozen.run_dir,
                    self._model,
                    sample=_VERIFIED_GENERATIONS,
                    on_progress=lambda _done, _total: self._reporter.advance(1),
                )
            except InputError as error:  # no limits are known for this dtype
                self._reporter.say(f"not verified: {error}")

    def _split_open_layers(self) -> None:
        """Keep who wrote the traits in the open layers, while the model is there."""

        def on_progress(done: int, total: int) -> None:
            if done == 0:
                self._reporter.begin("splitting open layers", total, "generations")
                return
            self._reporter.note(f"{done} of {total}")
            self._reporter.advance(1)

        self._events.add("splitting")
        with self._cost.timed("splitting"):
            try:
                write_opened_writes(self._frozen, self._model, on_progress)
            except Exception as error:  # memory, disk or whatever else: what was captured is safe without it
                self._reporter.say(f"open layers not split up for the report: {one_line_of(error)}")

    def _stop_if_any_is_left(self) -> None:
        if left := len(missing_shards(self._frozen)):
            raise Interrupted(f"stopped with {left} of {len(self._frozen.shards)} shards to go. {self._resume_hint}")

    def _note(self, ended_by: str) -> None:
        """Put the session into ``run.json``; a full disk must not hide why the run ended."""
        with suppress(RunError):
            sessions = [*self._earlier, self._cost.described(ended_by)]
            write_json(self._frozen.run_dir / "run.json", {"sessions": sessions})

    def _utilisation(self) -> Utilisation | None:
        model, work, seconds = self._model, self._cost.work, self._cost.seconds.get("generating", 0.0)
        if not work.seconds:
            return None
        facts = facts_of_module(model.module)
        described = self._frozen.estimate["pace"]
        batches = [batch for shard in self._frozen.shards for batch in shard.batches]
        longest = max(_n_tokens(self._frozen.tasks[g]) for batch in batches for g in batch)
        ceilings = measured_ceilings(model.device, model.dtype)
        said = advice(
            forward_share=work.seconds / seconds,
            width=min(self._frozen.batch_width, max(map(len, batches))),
            most_rows=rows_that_fit(facts, longest, model.dtype.itemsize, free_memory(model.device)),
            n_generations=sum(map(len, batches)),
            pace=None if described is None else Pace.from_described(described),
            dtype=model.dtype,
            narrow=_narrow(model.device, model.dtype),
            shares=CeilingShares.of(work, facts, model.dtype, ceilings),
        )
        return utilisation(
            work,
            generated_tokens=self._cost.generated_tokens,
            generating_seconds=seconds,
            facts=facts,
            dtype=model.dtype,
            ceilings=ceilings,
            memory_bytes=peak_device_memory_bytes() or peak_resident_bytes(),
            memory_there_bytes=total_memory(model.device),
            advice=said,
        )


def _narrow(device: torch.device, dtype: torch.dtype) -> tuple[torch.dtype, float] | None:
    """bfloat16 and how many times as fast its matrix products are here; None for what is narrow already."""
    if dtype != torch.float32:
        return None
    narrow, wide = (measured_ceilings(device, which).flops_per_second for which in (torch.bfloat16, dtype))
    return torch.bfloat16, narrow / wide


def _n_tokens(task: GenerationTask) -> int:
    return task.n_prompt + task.most_response_tokens


def _n_generated(outcomes: Sequence[Outcome]) -> int:
    return sum(len(outcome.captured.logprobs) for outcome in outcomes if outcome.captured)


def _earlier_sessions(run_dir: Path) -> list[dict[str, Any]]:
    """The sessions before this one; under the run's lock, one that says it is running was killed."""
    sessions = read_sessions(run_dir)
    return [{**s, "ended_by": "killed"} if s["ended_by"] == "running" else s for s in sessions]
