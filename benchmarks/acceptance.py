"""Prints the figures that speed is accepted by, each measured in this run on this machine.

``acceptance.py`` prints all four, ``acceptance.py 2 3`` some of them; ``--model`` and ``--rounds`` change what on.

1. the whole program against the old way, with four and with sixteen traits
2. decoding with capture against batched ``generate``: the reference night, and ten samples of each of 24 prompts
3. what capture costs a step at batch 24 and 1, and what it costs in peak memory
4. cost per prompt and peak memory of 24 and of 2,400 short prompts
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from traitscope.bench.children import run_child
from traitscope.bench.contenders import (
    Piece,
    batched_generate,
    old_way,
    ours,
    program_job,
    whole_program,
)
from traitscope.bench.machine import describe_machine
from traitscope.bench.paired import paired_steps
from traitscope.bench.results import capture_cost, joined
from traitscope.bench.session import candidate_groupings
from traitscope.bench.statistics import ratios_by_round, spread_of, spread_sample, times_as_fast
from traitscope.bench.workload import Workload, load_workload, short_workload, with_random_vectors, workload_of
from traitscope.model.loading import LanguageModel, load_source
from traitscope.model.sampling import Sampling
from traitscope.run.prepare import prepare
from traitscope.suite.file import LoadedSuite

WIDTH = 24
OLD_PROCESSES = 3


class Bench(NamedTuple):
    """What every figure is measured with."""

    model: LanguageModel
    folder: Path
    rounds: int
    workloads: list[str]

    def workload(self, loaded: LoadedSuite, n_traits: int) -> Workload:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        named = loaded.with_overrides(model=self.model.name)
        return workload_of(prepare(with_random_vectors(named, self.model, folder, n_traits)), self.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="*", help="of 1 to 4; all if none is given")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", default=["reference", "samples"], help="of figure 2")
    given = parser.parse_args()
    if unknown := set(given.numbers) - set(FIGURES):
        parser.error(f"there is no figure {min(unknown)}; known: {', '.join(map(str, FIGURES))}")
    prepared = prepare(load_workload("reference").with_overrides(model=given.model))
    model = load_source(prepared.source, device=str(prepared.device))
    print(describe_machine(model), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in given.numbers or FIGURES:
            print(f"\n{number}. {FIGURES[number].__doc__}", flush=True)
            FIGURES[number](Bench(model, Path(folder), given.rounds, given.workloads))


def against_the_old_way(bench: Bench) -> None:
    """the whole program against the old way, everything counted (the old way from a sample of processes)"""
    for n_traits in (4, 16):
        workload = bench.workload(load_workload("reference"), n_traits)
        spread = spread_sample([task.n_prompt for task in workload.tasks], OLD_PROCESSES * bench.rounds)
        program, old = [], []
        for number in range(bench.rounds):
            program.append(whole_program(workload, bench.folder, batch_size=None))
            tasks = [workload.tasks[index] for index in spread[number % len(spread) :: bench.rounds]]
            old.append(joined([old_way(bench.model, workload, task, bench.folder) for task in tasks]))
        speed = ratios_by_round(_seconds(old), _seconds(program))
        parts = ", ".join(
            f"{part} {spread_of([p.parts[part] for p in old]).median:.2f} s" for part in ("import", "load", "compute")
        )
        print(
            f"{n_traits} traits: {times_as_fast(speed.median)}, {speed.low:.1f} to {speed.high:.1f} in {speed.n} "
            "rounds; "
            f"program {spread_of(_seconds(program)).median:.1f} s, old way {spread_of(_seconds(old)).median:.0f} s "
            f"extrapolated from {sum(p.units for p in old)} of {workload.n_captures} processes ({parts})",
            flush=True,
        )


def against_batched_generate(bench: Bench) -> None:
    """decoding with capture of four traits against the best of several groupings of batched generate"""
    for name in bench.workloads:
        workload = bench.workload(load_workload(name), 4)
        tasks = workload.tasks
        first = whole_program(workload, bench.folder, batch_size=None)
        width = first.details["batch_width"]
        tried = {
            grouping: batched_generate(bench.model, tasks, grouping, n_whole=len(tasks)).seconds
            for grouping in candidate_groupings(tasks, width, other_widths=True)
        }
        grouping = min(tried, key=lambda candidate: tried[candidate])
        captured, bare, generated = [], [], []
        for _ in range(bench.rounds):
            captured.append(ours(bench.model, tasks, width, bank=workload.bank, n_whole=len(tasks)))
            generated.append(batched_generate(bench.model, tasks, grouping, n_whole=len(tasks)))
            bare.append(ours(bench.model, tasks, width, bank=None, n_whole=len(tasks)))
        for label, pieces in (("with capture", captured), ("without", bare)):
            ratio = ratios_by_round(_seconds(pieces), _seconds(generated))
            print(
                f"{name}, {label}: time ratio {ratio.median:.3f}, {ratio.low:.3f} to {ratio.high:.3f} in {ratio.n} "
                f"rounds ({spread_of(_seconds(pieces)).median:.2f} s at width {width} against "
                f"{spread_of(_seconds(generated)).median:.2f} s at {grouping}, best of {len(tried)})",
                flush=True,
            )


def cost_of_capture(bench: Bench) -> None:
    """what capture of four traits adds to a step, and to peak memory, on 24 prompts and on one"""
    workload = bench.workload(load_workload("samples"), 4)
    greedy = {t.prompt.token_ids: replace(t, sampling=Sampling(), seed=None) for t in workload.tasks}
    prompts = sorted(greedy.values(), key=lambda task: -task.n_prompt)[:WIDTH]
    for batch in (prompts, prompts[WIDTH // 2 :][:1]):
        paired_steps(bench.model, [replace(task, max_new_tokens=2) for task in batch], workload.bank, repeats=1)
        steps = capture_cost(paired_steps(bench.model, batch, workload.bank, repeats=bench.rounds))["steps"]
        print(
            f"batch {len(batch)}: ratio {steps['ratio']:.4f}, 95 % interval {steps['low']:.4f} to {steps['high']:.4f}, "
            f"{steps['n']} pairs of steps",
            flush=True,
        )
    reference = bench.workload(load_workload("reference"), 4)
    peaks: dict[str, list[int]] = {"d": [], "e": []}
    for _ in range(bench.rounds):
        for contender, found in peaks.items():
            job = {**program_job(reference.prepared.loaded, reference, WIDTH), "contender": contender}
            found.append(run_child("peak", job, bench.folder)[0]["peak_bytes"])
    ratio = ratios_by_round(peaks["d"], peaks["e"])
    print(
        f"peak memory of the reference night: {spread_of(peaks['d']).median / 1e6:.0f} MB against "
        f"{spread_of(peaks['e']).median / 1e6:.0f} MB, ratio {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
        flush=True,
    )


def few_and_many_prompts(bench: Bench) -> None:
    """cost per prompt and peak memory of the whole program on 24 and on 2,400 short prompts, eight tokens each"""
    found = {}
    for n_prompts in (24, 2400):
        workload = bench.workload(short_workload(n_prompts), 4)
        pieces = [whole_program(workload, bench.folder, batch_size=WIDTH) for _ in range(3 if n_prompts == 24 else 1)]
        work = spread_of([_seconds_after_the_start(piece) / n_prompts for piece in pieces])
        generating = spread_of([piece.parts["generating"] / n_prompts for piece in pieces])
        peak = spread_of([piece.peak_bytes or 0 for piece in pieces])
        found[n_prompts] = (generating.median, work.median, peak.median)
        print(
            f"{n_prompts} prompts: {generating.median * 1e3:.1f} ms a prompt to generate "
            f"({generating.low * 1e3:.1f} to {generating.high * 1e3:.1f} in {work.n} runs), {work.median * 1e3:.1f} ms "
            f"with all that follows the start, peak {peak.median / 1e6:.0f} MB, whole program "
            f"{spread_of(_seconds(pieces)).median:.1f} s",
            flush=True,
        )
    generating_ratio, work_ratio, peak_ratio = (many / few for few, many in zip(found[24], found[2400], strict=True))
    print(
        f"2,400 against 24: generating a prompt {generating_ratio:.3f}, with all that follows the start "
        f"{work_ratio:.3f}, peak memory {peak_ratio:.3f}"
    )


def _seconds_after_the_start(piece: Piece) -> float:
    """Without import, plan, load and timing, which do not depend on the number of prompts."""
    return piece.seconds - sum(piece.parts[part] for part in ("import", "plan", "load", "timing"))


def _seconds(pieces: list[Piece]) -> list[float]:
    """Of the whole workload."""
    return [piece.seconds / piece.share for piece in pieces]


FIGURES: dict[int, Callable[[Bench], None]] = {
    1: against_the_old_way,
    2: against_batched_generate,
    3: cost_of_capture,
    4: few_and_many_prompts,
}

if __name__ == "__main__":
    main()
