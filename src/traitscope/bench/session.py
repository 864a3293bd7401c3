"""One run of the bench: everything interleaved in rounds, on one machine, in one go."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from traitscope.bench.agenda import Agenda
from traitscope.bench.children import run_child
from traitscope.bench.contenders import (
    Grouping,
    Piece,
    batched_generate,
    cached,
    first_run,
    old_way,
    ours,
    program_job,
    side_by_side,
    threads_each,
    uncached,
    whole_program,
)
from traitscope.bench.machine import describe_machine
from traitscope.bench.paired import paired_steps
from traitscope.bench.results import CONTENDERS, capture_cost, comparisons, contender_result, joined
from traitscope.bench.statistics import spread_sample
from traitscope.bench.workload import (
    Workload,
    load_workload,
    refuse_too_many_instances,
    refuse_unequal_work,
    with_random_vectors,
    workload_of,
)
from traitscope.model.loading import LanguageModel, load_source
from traitscope.run.batching import make_batches, turns
from traitscope.run.engine import GenerationTask
from traitscope.run.pace import remembered_pace
from traitscope.run.prepare import Prepared, prepare
from traitscope.run.progress import Reporter
from traitscope.suite.file import LoadedSuite

FORMAT_VERSION = "1"
_PAIRED_WIDTH = 24
_WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Effort:
    """How much is measured. What is counted ``per_round`` is a sample of a workload that would take too long.

    The whole program and (b), which take longest, are part of the first ``long_rounds`` of the rounds.
    """

    rounds: int
    long_rounds: int
    old_processes_per_round: int
    uncached_prompts_per_round: int
    cached_prompts_per_round: int
    paired_repeats: int
    paired_steps: int
    generate_widths: bool
    memory: bool


FULL = Effort(
    rounds=3,
    long_rounds=3,
    old_processes_per_round=2,
    uncached_prompts_per_round=3,
    cached_prompts_per_round=6,
    paired_repeats=4,
    paired_steps=50,
    generate_widths=True,
    memory=True,
)
QUICK = Effort(
    rounds=2,
    long_rounds=1,
    old_processes_per_round=1,
    uncached_prompts_per_round=1,
    cached_prompts_per_round=2,
    paired_repeats=1,
    paired_steps=24,
    generate_widths=False,
    memory=False,
)


@dataclass(frozen=True)
class BenchOptions:
    """What a user asks of the bench; ``n_traits`` None keeps the number of the suite's traits."""

    workload: str = "reference"
    model: str | None = None
    n_traits: int | None = None
    n_instances: int = 1
    quick: bool = False
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


def run_bench(options: BenchOptions, reporter: Reporter) -> dict[str, Any]:
    """Measure every contender on one workload; returns figures and raw times as plain values.

    Raises:
        InputError: the suite, the model or the device is wrong; found before a model is loaded.
        RunError: a contender failed or generated another number of tokens than it should.
    """
    loaded = load_workload(options.workload).with_overrides(model=options.model)

    def prepared_with(suite: LoadedSuite) -> Prepared:
        return prepare(suite, device=options.device, dtype=options.dtype, trust_remote_code=options.trust_remote_code)

    prepared = prepared_with(loaded)
    refuse_unequal_work(loaded, prepared.plan)
    refuse_too_many_instances(loaded, options.n_instances)
    reporter.say(f"loading {prepared.source.name}")
    dtype = "auto" if prepared.dtype is None else str(prepared.dtype).removeprefix("torch.")
    model = load_source(prepared.source, device=str(prepared.device), dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="traitscope-bench-") as name:
        folder = Path(name)
        random = with_random_vectors(loaded, model, folder, options.n_traits)
        workload = workload_of(prepared_with(random), model)
        session = _Session(model, workload, folder, QUICK if options.quick else FULL, options.n_instances, reporter)
        measured = session.measure()
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(model),
        "model": model.name,
        "quick": options.quick,
        "effort": asdict(session.effort),
        "workload": _described(workload),
        **measured,
    }


class _Session:
    """The state of one bench: what is measured on, the batch width that the program chose, the agenda."""

    def __init__(
        self,
        model: LanguageModel,
        workload: Workload,
        folder: Path,
        effort: Effort,
        n_instances: int,
        reporter: Reporter,
    ) -> None:
        self._model = model
        self._workload = workload
        self._folder = folder
        self.effort = effort
        self._n_instances = n_instances
        self._width = 0
        self._grouping = Grouping(1, by_length=True)
        self._agenda = Agenda(reporter, self._planned(), self._weights())

    def measure(self) -> dict[str, Any]:
        """Warm up, then round after round, then what capture costs in time and memory."""
        rounds: dict[str, list[Piece]] = {key: [] for key in CONTENDERS}
        searched: list[dict[str, Any]] = []
        self._warm_up()
        self._first_runs()
        for number in range(self.effort.rounds):
            long_round = number < self.effort.long_rounds
            if long_round:
                self._whole_programs(number, rounds)
            if number == 0:
                searched = self._best_grouping()
            for key, contender in self._contenders().items():
                if key == "b" and not long_round:
                    continue
                with self._agenda.doing(key, f"round {number + 1} of {self.effort.rounds}: {CONTENDERS[key].name}"):
                    rounds[key].append(contender(number))
        paired = [self._paired(batch) for batch in self._paired_batches()]
        peaks = self._peaks() if self.effort.memory else {}
        results = [contender_result(key, pieces, self._workload.n_captures) for key, pieces in rounds.items() if pieces]
        for result in results:
            result.update(peaks.get(result["key"], {}))
        return {
            "batch_width": self._width,
            "generate": {"grouping": asdict(self._grouping), "tried": searched},
            "instances": self._n_instances,
            "contenders": results,
            "comparisons": comparisons(rounds),
            "capture_cost": paired,
        }

    def _contenders(self) -> dict[str, Callable[[int], Piece]]:
        model, workload, tasks = self._model, self._workload, self._workload.tasks
        n_whole = len(tasks)
        return {
            "a": self._old_way,
            "b": self._uncached,
            "c": lambda number: cached(model, workload, self._sample(self.effort.cached_prompts_per_round, number)),
            "d": lambda _: ours(model, tasks, self._width, bank=workload.bank, n_whole=n_whole),
            "e": lambda _: ours(model, tasks, self._width, bank=None, n_whole=n_whole),
            "f": lambda _: batched_generate(model, tasks, self._grouping, n_whole=n_whole),
        }

    def _old_way(self, number: int) -> Piece:
        tasks = self._sample(self.effort.old_processes_per_round, number)
        return joined([old_way(self._model, self._workload, task, self._folder) for task in tasks])

    def _uncached(self, number: int) -> Piece:
        tasks = self._sample(self.effort.uncached_prompts_per_round, number, self.effort.long_rounds)
        return uncached(self._model, self._workload, tasks)

    def _sample(self, per_round: int, number: int, n_rounds: int | None = None) -> list[GenerationTask]:
        """This round's prompts of those that are spread over all lengths; rounds take different ones."""
        tasks = self._workload.tasks
        n_rounds = n_rounds or self.effort.rounds
        spread = spread_sample([task.n_prompt for task in tasks], per_round * n_rounds)
        return [tasks[index] for index in spread[number % len(spread) :: n_rounds]]

    def _whole_programs(self, number: int, rounds: dict[str, list[Piece]]) -> None:
        """The program as one process, which also tells the width that it chose, and side by side if asked."""
        title = f"round {number + 1} of {self.effort.rounds}: "
        with self._agenda.doing("program", title + CONTENDERS["program"].name):
            rounds["program"].append(whole_program(self._workload, self._folder, batch_size=None))
        self._width = rounds["program"][-1].details["batch_width"]
        if self._n_instances > 1:
            with self._agenda.doing("instances", title + CONTENDERS["instances"].name):
                piece = side_by_side(self._workload, self._folder, self._n_instances, batch_size=None)
            rounds["instances"].append(piece)

    def _warm_up(self) -> None:
        """A short turn of every contender inside this process. New processes find files that were just read."""
        workload = self._workload
        short = [replace(task, max_new_tokens=_WARM_UP_TOKENS) for task in workload.tasks[:2]]
        n_whole = len(workload.tasks)
        with self._agenda.doing("warm-up", "warming up"):
            uncached(self._model, workload, short)
            cached(self._model, workload, short)
            ours(self._model, short, len(short), bank=workload.bank, n_whole=n_whole)
            ours(self._model, short, len(short), bank=None, n_whole=n_whole)
            batched_generate(self._model, short, Grouping(len(short), by_length=True), n_whole=n_whole)

    def _first_runs(self) -> None:
        """What the program measures once on a machine and remembers, for each number of threads, is no round's cost."""
        what = "a first run, in which the program times this model once"
        if self._is_new_here():
            with self._agenda.doing("first run", what):
                first_run(self._workload, self._folder)
        if self._n_instances > 1:
            threads = threads_each(self._n_instances)
            with self._agenda.doing("first run", f"{what} with the threads of one instance ({threads})"):
                first_run(self._workload, self._folder, threads=threads)

    def _is_new_here(self) -> bool:
        """Whether no run remembered this model's pace on this machine yet."""
        model = self._model
        return remembered_pace(model.fingerprint.short, model.device, model.dtype) is None

    def _best_grouping(self) -> list[dict[str, Any]]:
        """Try the groupings for ``generate`` once each and keep the fastest; returns what was tried.

        Where all groupings make the same batches, there is nothing to try.
        """
        tasks = self._workload.tasks
        groupings = candidate_groupings(tasks, self._width, other_widths=self.effort.generate_widths)
        self._grouping = groupings[0]
        if len(groupings) == 1:
            self._agenda.drop("grouping")
            return []
        tried = []
        with self._agenda.doing("grouping", f"trying {len(groupings)} groupings for generate"):
            for grouping in groupings:
                piece = batched_generate(self._model, tasks, grouping, n_whole=len(tasks))
                tried.append((piece.seconds, grouping))
        self._grouping = min(tried, key=lambda entry: entry[0])[1]
        return [{**asdict(grouping), "seconds": seconds} for seconds, grouping in tried]

    def _paired_batches(self) -> list[Sequence[GenerationTask]]:
        widest = turns(make_batches(self._workload.tasks)[0], _PAIRED_WIDTH)[0]
        return [widest] if len(widest) == 1 else [widest, widest[len(widest) // 2 :][:1]]

    def _paired(self, batch: Sequence[GenerationTask]) -> dict[str, Any]:
        with self._agenda.doing("paired", f"capture against none, step by step, at batch {len(batch)}"):
            fewer = [replace(t, max_new_tokens=min(t.max_new_tokens, self.effort.paired_steps)) for t in batch]
            times = paired_steps(self._model, fewer, self._workload.bank, repeats=self.effort.paired_repeats)
        return capture_cost(times)

    def _peaks(self) -> dict[str, dict[str, Any]]:
        """Peak memory of (d), (e) and (f), each on the whole workload in a process of its own."""
        peaks = {}
        for key in ("d", "e", "f"):
            job = {
                **program_job(self._workload.prepared.loaded, self._workload, self._width),
                "contender": key,
                "grouping": asdict(self._grouping),
            }
            with self._agenda.doing("memory", f"peak memory of {CONTENDERS[key].name}"):
                peaks[key] = run_child("peak", job, self._folder)[0]
        return peaks

    def _planned(self) -> dict[str, int]:
        effort = self.effort
        return {
            "warm-up": 1,
            "first run": self._is_new_here() + (self._n_instances > 1),
            "program": effort.long_rounds,
            "instances": effort.long_rounds if self._n_instances > 1 else 0,
            "grouping": 1,
            "b": effort.long_rounds,
            **dict.fromkeys("acdef", effort.rounds),
            "paired": 2 if len(self._workload.tasks) > 1 else 1,
            "memory": 3 if effort.memory else 0,
        }

    def _weights(self) -> dict[str, float]:
        """Relative durations in units of one generation of the whole workload in batches."""
        effort = self.effort
        n_prompts = len(self._workload.tasks)
        return {
            "warm-up": 2.0,
            "first run": 8.0,
            "program": 4.0,
            "instances": 6.0,
            "grouping": 6.0 if effort.generate_widths else 1.0,
            "a": 2.5 * effort.old_processes_per_round,
            "b": 28 / n_prompts * effort.uncached_prompts_per_round,
            "c": 8 / n_prompts * effort.cached_prompts_per_round,
            **dict.fromkeys("def", 1.0),
            "paired": effort.paired_repeats * effort.paired_steps / 40,
            "memory": 3.0,
        }


def candidate_groupings(tasks: Sequence[GenerationTask], width: int, *, other_widths: bool) -> list[Grouping]:
    """Sorted and unsorted at ``width``, and at half and twice of it; those that make equal batches only once."""
    widths = [width, max(1, width // 2), 2 * width] if other_widths else [width]
    kept: dict[frozenset[frozenset[str]], Grouping] = {}
    for candidate in dict.fromkeys(min(wanted, len(tasks)) for wanted in widths):
        for by_length in (False, True):
            grouping = Grouping(candidate, by_length)
            batches = frozenset(frozenset(task.id for task in batch) for batch in grouping.batches(tasks))
            kept.setdefault(batches, grouping)
    return list(kept.values())


def _described(workload: Workload) -> dict[str, Any]:
    tasks = workload.tasks
    return {
        "name": workload.name,
        "generations": len(tasks),
        "traits": len(workload.bank.traits),
        "captures": workload.n_captures,
        "max_new_tokens": workload.max_new_tokens,
        "temperature": tasks[0].sampling.temperature,
        "prompt_tokens": sum(task.n_prompt for task in tasks),
        "response_tokens": sum(task.max_new_tokens for task in tasks),
        "trait_vectors": "random unit vectors: only time is measured",
    }
