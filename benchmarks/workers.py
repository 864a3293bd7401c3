"""Workers of one thread each against one process of as many threads, on the same shards, in turn.

    python benchmarks/workers.py [--workers 2] [--rounds 5]

Seconds are of generating and committing all shards once the models are loaded; prints the ratio of each round, their
median and spread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from traitscope.captures.files import committed_shards
from traitscope.run import night
from traitscope.run.commit import remove_leftovers
from traitscope.run.executor import Executor, InProcess
from traitscope.run.frozen import FrozenRun
from traitscope.run.messages import ShardJob
from traitscope.run.prepare import prepare
from traitscope.run.progress import default_reporter
from traitscope.run.reload import model_of_run
from traitscope.run.workbench import Workbench
from traitscope.run.workers import WorkerPool
from traitscope.suite.file import load_suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="overnight")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.workers)
    with tempfile.TemporaryDirectory() as folder:
        frozen = _frozen(given, Path(folder))
        alone = InProcess(Workbench(frozen, model_of_run(frozen.run_dir)))
        pool = WorkerPool(frozen.run_dir, [torch.device("cpu")] * given.workers)
        try:
            _measure(frozen, alone, pool, given.rounds)
        finally:
            pool.close()


def _frozen(given: argparse.Namespace, out: Path) -> FrozenRun:
    """A run of which nothing is done: its session is left out."""
    kept: list[FrozenRun] = []
    night._run_session = lambda frozen, *_: kept.append(frozen)  # type: ignore[assignment]
    suite = load_suite(given.suite).with_overrides(model=None, max_new_tokens=given.new_tokens)
    night.start_run(
        prepare(suite, device="cpu"),
        out=out,
        batch_size=given.batch_size,
        shard_size=given.batch_size,
        allow_foreign=False,
        reporter=default_reporter(),
    )
    return kept[0]


def _measure(frozen: FrozenRun, alone: Executor, pool: Executor, rounds: int) -> None:
    for executor in (alone, pool):
        _seconds(frozen, executor)  # workers load, layers are packed
    ratios = []
    for number in range(rounds):
        order: Sequence[Executor] = (alone, pool) if number % 2 == 0 else (pool, alone)
        seconds = {id(executor): _seconds(frozen, executor) for executor in order}
        ratios.append(seconds[id(pool)] / seconds[id(alone)])
        print(f"one process {seconds[id(alone)]:.2f} s, workers {seconds[id(pool)]:.2f} s, ratio {ratios[-1]:.3f}")
    low, high = min(ratios), max(ratios)
    print(f"workers take {statistics.median(ratios):.3f} of one process ({low:.3f} to {high:.3f}, {rounds} rounds)")


def _seconds(frozen: FrozenRun, executor: Executor) -> float:
    """Of all shards, which are forgotten afterwards."""
    jobs = [ShardJob(number) for number in range(len(frozen.shards))]
    started = time.perf_counter()
    executor.run(jobs, lambda _report: None, lambda: False)
    seconds = time.perf_counter() - started
    assert committed_shards(frozen.run_dir) == list(range(len(frozen.shards)))
    for path in (frozen.run_dir / "shards").glob("*.done.json"):
        path.unlink()
    remove_leftovers(frozen.run_dir)
    return seconds


if __name__ == "__main__":
    main()
