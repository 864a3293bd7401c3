"""traitscope beside nnsight, TransformerLens and transformers, on the same work in one interleaved run.

Each contender is a process of its own, in an environment of its own, and only one of them works at a time. The
tokens and scores of each are compared with traitscope's before the timed rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agreement import Agreement, agreement
from contenders import CONTENDERS, Contender, Worker, python_of, working
from tries import Tries
from ways import Way
from workload import WORKLOADS, write_workload

from report import Measured, Setting, section, write_section
from traitscope.cache import cache_directory
from traitscope.errors import RunError, TraitscopeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
REFERENCE, UNIT = "traitscope", "generate"


@dataclass(frozen=True)
class Effort:
    """How much a comparison does of a workload unless it is told otherwise.

    Attributes:
        prompts: how many; None is all of them.
        tries: runs of each way, of which the fastest counts.
        rounds: timed runs of each contender.
    """

    prompts: int | None
    widths: Sequence[int]
    tries: int
    rounds: int


EFFORTS = {
    "reference": Effort(prompts=None, widths=(20, 10), tries=2, rounds=7),
    "ragged": Effort(prompts=48, widths=(32, 16), tries=1, rounds=3),
}


def main() -> None:
    arguments = _arguments()
    try:
        _compare(arguments)
    except TraitscopeError as error:
        sys.exit(f"error: {error}")


def _arguments() -> argparse.Namespace:
    """What was asked for, with the workload's own effort where nothing was."""
    arguments = _parser().parse_args()
    effort = EFFORTS[arguments.workload]
    for name in ("prompts", "widths", "tries", "rounds"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(effort, name))
    return arguments


def _parser() -> argparse.ArgumentParser:
    peers = [contender.name for contender in CONTENDERS if contender.name not in (REFERENCE, UNIT)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="reference", help="what work (default: reference)")
    parser.add_argument("--prompts", type=_positive, help="how many of the workload's prompts, evenly spread")
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers, help="which to compare with")
    parser.add_argument("--rounds", type=_positive, help="timed runs of each contender")
    parser.add_argument("--widths", type=_positive, nargs="+", help="batch widths; each contender gets its best")
    parser.add_argument("--tries", type=_positive, help="runs of each width and order, to find a contender's best")
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
        workload = WORKLOADS[arguments.workload]().part(arguments.prompts)
        _say(f"{workload.name}: {len(workload.prompts)} prompts, {arguments.rounds} rounds: {workload.described}")
        write_workload(workload, Path(folder))
        workers = []
        for contender, python in zip(contenders, pythons, strict=True):
            _say(f"loading {contender.name}")
            workers.append(stack.enter_context(working(contender, python, Path(folder), arguments.threads)))
        measured = _measure(contenders, workers, arguments, len(workload.prompts), Path(folder))
        setting = Setting.here(workload, workers[0].threads, _command(arguments))
    text = section(measured, setting, reference=REFERENCE, unit=UNIT)
    print(text)
    if arguments.write:
        write_section(PAGE, workload.name, text)


def _measure(
    contenders: Sequence[Contender],
    workers: Sequence[Worker],
    arguments: argparse.Namespace,
    n_prompts: int,
    folder: Path,
) -> list[Measured]:
    measured = []
    for contender, worker in zip(contenders, workers, strict=True):
        tries = Tries(worker, arguments.tries)
        tries.run(Way(arguments.widths[0], contender.orders[0]), keep=_kept(folder, worker.name))
        agreed = _agreed(folder, worker.name)
        tries.try_all(contender.orders, arguments.widths, n_prompts)
        measured.append(Measured(contender, worker.versions, agreed, tries.best, tries.fastest))
        _say(f"{worker.name}: {measured[-1].checked}")
    for number in range(arguments.rounds):
        _say(f"round {number + 1} of {arguments.rounds}")
        first = number % len(workers)
        for index in [*range(first, len(workers)), *range(first)]:
            measured[index].seconds.append(workers[index].run(measured[index].way))
    for entry, worker in zip(measured, workers, strict=True):
        entry.peak_bytes = worker.peak_bytes
    return measured


def _kept(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def _agreed(folder: Path, name: str) -> Agreement | None:
    """How a contender's kept rows agree with the reference's, which were kept before; None for the reference.

    Raises:
        RunError: the contender computes something else.
    """
    if name == REFERENCE:
        return None
    found = agreement(_kept(folder, name), _kept(folder, REFERENCE))
    if not found.is_same_work:
        raise RunError(f"{name}: {found}; it does other work than {REFERENCE}, so no time is compared")
    return found


def _command(arguments: argparse.Namespace) -> str:
    """The command without the folder of the environments, which is this machine's affair."""
    options = {
        "--workload": [arguments.workload],
        "--prompts": [arguments.prompts] if arguments.prompts else [],
        "--rounds": [arguments.rounds],
        "--widths": arguments.widths,
        "--tries": [arguments.tries],
        "--threads": [arguments.threads] if arguments.threads else [],
        "--peers": [] if len(arguments.peers) == len(CONTENDERS) - 2 else arguments.peers,
    }
    given = (f"{name} {' '.join(map(str, values))}" for name, values in options.items() if values)
    return f"python benchmarks/peers/compare.py {' '.join(given)} --write"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
