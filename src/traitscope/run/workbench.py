"""A frozen run and its model in one process, and every job that is done with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from traitscope.attribution.opened import write_opened_writes
from traitscope.errors import InputError, one_line_of
from traitscope.memory import peak_resident_bytes
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel
from traitscope.model.meter import ForwardWork
from traitscope.run.batching import rows_that_fit, run_prefix
from traitscope.run.ceilings import measured_ceilings
from traitscope.run.commit import commit_shard
from traitscope.run.engine import Engine, GenerationTask
from traitscope.run.frozen import FrozenRun, too_long_outcome
from traitscope.run.memory import free_memory, peak_device_memory_bytes, total_memory
from traitscope.run.messages import (
    BatchDone,
    CommitJob,
    Committed,
    Job,
    LayersSplit,
    Progressed,
    ShardCost,
    ShardJob,
    SplitJob,
    Tell,
    Tokens,
    UtilisationJob,
    Utilised,
    Verified,
    VerifyJob,
)
from traitscope.run.pace import Pace
from traitscope.run.shard_metrics import shard_figures
from traitscope.run.tables import Outcome, shard_internals, shard_tables
from traitscope.run.utilisation import CeilingShares, advice, utilisation
from traitscope.run.writer import ShardWriter
from traitscope.verify.verdict import verify_run

log = logging.getLogger(__name__)


class Workbench:
    """Does jobs, one at a time, inside ``telling``."""

    def __init__(self, frozen: FrozenRun, model: LanguageModel) -> None:
        self._frozen = frozen
        self._model = model
        model.linears.shapes = frozen.packed_linears
        model.static_steps.wanted = frozen.compiled_steps
        self._shard_in_hand = 0
        self._engine = Engine(
            model,
            frozen.vectors,
            width=frozen.batch_width,
            most_tokens=_most_tokens(frozen),
            run_prefix=run_prefix(frozen.tasks.values()),
            on_tokens=self._on_tokens,
        )

    @contextmanager
    def telling(self, tell: Tell) -> Iterator[None]:
        """Jobs of this block report to ``tell``; at its end the last shard is committed."""
        self._tell = tell
        with ShardWriter() as self._writer:
            yield
            self._writer.finish()

    def do(self, job: Job) -> None:
        """Do one job. That a shard is committed is told by the next job at the earliest.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        match job:
            case ShardJob():
                self._run_shard(job)
            case CommitJob():
                self._writer.finish()
            case VerifyJob():
                self._tell(self._verified(job))
            case SplitJob():
                self._tell(self._split())
            case UtilisationJob():
                self._tell(self._utilised(job))

    def _on_tokens(self, count: int) -> None:
        self._tell(Tokens(self._shard_in_hand, count))

    def _run_shard(self, job: ShardJob) -> None:
        self._shard_in_hand = job.shard
        before, started = self._model.meter.work(), time.perf_counter()
        outcomes = self._generate(job.shard)
        work, seconds = self._model.meter.work() - before, time.perf_counter() - started
        writing: list[float] = []

        def commit() -> None:
            began = time.perf_counter()
            self._commit(job.shard, outcomes)
            writing.append(time.perf_counter() - began)

        def on_committed() -> None:
            cost = ShardCost(
                generating_seconds=seconds,
                writing_seconds=sum(writing),
                generated_tokens=sum(len(o.captured.logprobs) for o in outcomes if o.captured),
                work=asdict(work),
                peak_memory_bytes=peak_resident_bytes(),
                peak_device_memory_bytes=peak_device_memory_bytes(),
            )
            figures = self._figures(outcomes) if job.figures else {}
            self._tell(committed(job.shard, outcomes, cost, figures))

        self._writer.write(commit, on_committed)

    def _generate(self, number: int) -> list[Outcome]:
        shard, tasks = self._frozen.shards[number], self._frozen.tasks
        outcomes = [too_long_outcome(tasks[g], self._model.context_length) for g in shard.too_long]
        for batch in shard.batches:
            asked = [tasks[generation] for generation in batch]
            outcomes += self._engine.run_batch(asked)
            self._tell(BatchDone(number, sum(task.most_response_tokens for task in asked)))
        return outcomes

    def _figures(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """For a tracker; a figure that cannot be had is none, and never ends a run."""
        try:
            return shard_figures(self._frozen, outcomes)
        except Exception as error:
            log.warning("no figures for the tracker: %s", one_line_of(error))
            return {}

    def _commit(self, number: int, outcomes: Sequence[Outcome]) -> None:
        tables = shard_tables(
            outcomes,
            [vector.trait for vector in self._frozen.vectors],
            [vector.readout for vector in self._frozen.vectors],
            self._model.anatomy.checkpoints,
        )
        commit_shard(self._frozen.run_dir, number, tables, shard_internals(outcomes))

    def _verified(self, job: VerifyJob) -> Verified:
        def on_progress(done: int, total: int) -> None:
            self._tell(Progressed(done, total))

        try:
            verdict = verify_run(self._frozen.run_dir, self._model, sample=job.sample, on_progress=on_progress)
        except InputError as error:  # no limits are known for this dtype
            return Verified(None, str(error))
        return Verified(verdict.described())

    def _split(self) -> LayersSplit:
        def on_progress(done: int, total: int) -> None:
            self._tell(Progressed(done, total))

        try:
            write_opened_writes(self._frozen, self._model, on_progress)
        except Exception as error:  # memory, disk or whatever else: what was captured is safe without it
            return LayersSplit(one_line_of(error))
        return LayersSplit()

    def _utilised(self, job: UtilisationJob) -> Utilised:
        model, work = self._model, ForwardWork(**job.work)  # type: ignore[arg-type]
        facts = facts_of_module(model.module)
        described = self._frozen.estimate["pace"]
        batches = [batch for shard in self._frozen.shards for batch in shard.batches]
        longest = max(_n_tokens(self._frozen.tasks[g]) for batch in batches for g in batch)
        ceilings = measured_ceilings(model.device, model.dtype)
        said = advice(
            forward_share=work.seconds / job.generating_seconds,
            width=min(self._frozen.batch_width, max(map(len, batches))),
            most_rows=rows_that_fit(facts, longest, model.dtype.itemsize, free_memory(model.device)),
            n_generations=sum(map(len, batches)),
            pace=None if described is None else Pace.from_described(described),
            dtype=model.dtype,
            narrow=_narrow(model.device, model.dtype),
            shares=CeilingShares.of(work, facts, model.dtype, ceilings),
        )
        used = utilisation(
            work,
            generated_tokens=job.generated_tokens,
            generating_seconds=job.generating_seconds,
            wall_seconds=job.wall_seconds,
            facts=facts,
            dtype=model.dtype,
            ceilings=ceilings,
            memory_bytes=peak_device_memory_bytes() or peak_resident_bytes(),
            memory_there_bytes=total_memory(model.device),
            advice=said,
        )
        return Utilised(None if used is None else asdict(used))


def committed(
    shard: int, outcomes: Sequence[Outcome], cost: ShardCost, figures: dict[str, Any] | None = None
) -> Committed:
    """The report that a shard with these outcomes is on disk."""
    return Committed(
        shard,
        statuses={outcome.generation: outcome.status for outcome in outcomes},
        errors={outcome.generation: str(outcome.error) for outcome in outcomes if outcome.status == "failed"},
        cost=asdict(cost),
        figures=figures or {},
    )


def _narrow(device: torch.device, dtype: torch.dtype) -> tuple[torch.dtype, float] | None:
    """bfloat16 and how many times as fast its matrix products are here; None for what is narrow already."""
    if dtype != torch.float32:
        return None
    narrow, wide = (measured_ceilings(device, which).flops_per_second for which in (torch.bfloat16, dtype))
    return torch.bfloat16, narrow / wide


def _most_tokens(frozen: FrozenRun) -> int:
    """The length of the longest generation that is run, its response included."""
    ids = (identity for shard in frozen.shards for batch in shard.batches for identity in batch)
    tasks = (frozen.tasks[identity] for identity in ids)
    return max((_n_tokens(task) for task in tasks if task.response_ids is None), default=0)


def _n_tokens(task: GenerationTask) -> int:
    return task.n_prompt + task.most_response_tokens
