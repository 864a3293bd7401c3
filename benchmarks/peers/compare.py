"""traitscope beside nnsight, TransformerLens and transformers, on the same work in one interleaved run.

Each contender is a process of its own, in an environment of its own, and only one of them works at a time. The
tokens and scores of each are compared with traitscope's before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from agreement import Agreement, agreement
from contenders import CONTENDERS, Contender, Worker, python_of, working
from workload import reference_night, write_workload

from report import Measured, Setting, section, write_section
from traitscope.cache import cache_directory
from traitscope.errors import RunError, TraitscopeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
REFERENCE, UNIT = "traitscope", "generate"
TRIES_PER_WIDTH = 2


def main() -> None:
    arguments = _parser().parse_args()
    try:
        _compare(arguments)
    except TraitscopeError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    peers = [contender.name for contender in CONTENDERS if contender.name not in (REFERENCE, UNIT)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers, help="which to compare with")
    parser.add_argument("--rounds", type=_positive, default=7, help="timed runs of each contender")
    parser.add_argument(
        "--widths", type=_positive, nargs="+", default=[20, 10], help="batch widths; each contender gets its best"
    )
    parser.add_argument("--threads", type=_positive, help="threads of each contender; torch's own choice by default")
    parser.add_argument(
        "--environments",
        type=Path,
        default=cache_directory() / "peers",
        help="where the virtual environments are kept (default: in the cache of traitscope)",
    )
    parser.add_argument("--write", action="store_true", help="write the result into docs/performance.md")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _compare(arguments: argparse.Namespace) -> None:
    contenders = [c for c in CONTENDERS if c.name in (REFERENCE, UNIT, *arguments.peers)]
    environments = arguments.environments.expanduser().resolve()
    pythons = [python_of(contender, environments) for contender in contenders]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workload = reference_night()
        write_workload(workload, Path(folder))
        workers = []
        for contender, python in zip(contenders, pythons, strict=True):
            _say(f"loading {contender.name}")
            workers.append(stack.enter_context(working(contender, python, Path(folder), arguments.threads)))
        measured = _measure(contenders, workers, arguments, Path(folder))
        setting = Setting.here(workload, workers[0].threads, _command(arguments))
    text = section(measured, setting, reference=REFERENCE, unit=UNIT)
    print(text)
    if arguments.write:
        write_section(PAGE, text)


def _measure(
    contenders: Sequence[Contender], workers: Sequence[Worker], arguments: argparse.Namespace, folder: Path
) -> list[Measured]:
    agreements = _checked(workers, max(arguments.widths), folder)
    measured = [
        Measured(contender, worker.versions, agreed, _best_width(worker, arguments.widths))
        for contender, worker, agreed in zip(contenders, workers, agreements, strict=True)
    ]
    for number in range(arguments.rounds):
        _say(f"round {number + 1} of {arguments.rounds}")
        first = number % len(workers)
        for index in [*range(first, len(workers)), *range(first)]:
            measured[index].seconds.append(workers[index].run(measured[index].width))
    for entry, worker in zip(measured, workers, strict=True):
        entry.peak_bytes = worker.peak_bytes
    return measured


def _checked(workers: Sequence[Worker], width: int, folder: Path) -> list[Agreement]:
    """The first run of each, which also warms it up.

    Raises:
        RunError: a contender computes something else.
    """
    kept = {worker.name: folder / f"{worker.name}.npz" for worker in workers}
    found = []
    for worker in workers:
        worker.run(width, keep=kept[worker.name])
        found.append(agreement(kept[worker.name], kept[REFERENCE]))
        if worker.name != REFERENCE:
            _say(f"{worker.name}: {found[-1]}")
        if not found[-1].is_same_work:
            raise RunError(f"{worker.name}: {found[-1]}; it does other work than {REFERENCE}, so no time is compared")
    return found


def _best_width(worker: Worker, widths: Sequence[int]) -> int:
    if len(widths) == 1:
        return widths[0]
    fastest = {width: min(worker.run(width) for _ in range(TRIES_PER_WIDTH)) for width in widths}
    _say(f"{worker.name}: " + ", ".join(f"{seconds:.2f} s at width {width}" for width, seconds in fastest.items()))
    return min(fastest, key=fastest.__getitem__)


def _command(arguments: argparse.Namespace) -> str:
    """The command without the folder of the environments, which is this machine's affair."""
    widths = " ".join(map(str, arguments.widths))
    threads = f" --threads {arguments.threads}" if arguments.threads else ""
    peers = "" if len(arguments.peers) == len(CONTENDERS) - 2 else " --peers " + " ".join(arguments.peers)
    return f"python benchmarks/peers/compare.py --rounds {arguments.rounds} --widths {widths}{threads}{peers} --write"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
