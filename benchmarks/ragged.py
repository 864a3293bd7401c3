"""traitscope's decode loop beside transformers' ``generate`` on ragged work, in one process, in interleaved rounds.

240 prompts of 5 to 200 tokens with responses of 5 to 100 tokens (``peers/workload.py`` says of what), every side forced
to the same lengths. ``generate`` gets batches in file order and batches by length of the prompt; each side runs at the
width that was its fastest of ``--widths``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from batch import plainly_generated, without_end
from own import bank_of, decoded, load_own
from passes import Pass, recorded_passes
from ways import Way
from workload import Workload, ragged

from traitscope.bench.machine import describe_machine
from traitscope.bench.statistics import Spread, ratios_by_round, spread_of
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel

CAPTURED, BARE, SORTED, UNSORTED = (
    "ours, 4 traits",
    "ours, no capture",
    "generate, longest first",
    "generate, file order",
)


@dataclass
class Side:
    """One way to do the work.

    Attributes:
        run: does a workload at a width; the responses.
        seconds: of each round, at ``width``.
    """

    name: str
    run: Callable[[Workload, int], list[list[int]]]
    width: int = 0
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    given = _arguments()
    workload = ragged().part(given.prompts)
    model = load_own()
    print(describe_machine(model))
    print(f"{len(workload.prompts)} prompts, {workload.n_prompt_tokens} + {workload.n_response_tokens} tokens")
    print(workload.described, flush=True)
    sides = _sides(model, bank_of(workload))
    for side in sides:
        side.width = _best_width(side, workload.part(given.try_prompts), given.widths)
    # The one run of each that is not timed: it is counted and compared instead.
    counted = [_counted(side, workload, model) for side in sides]
    for number in range(given.rounds):
        for side in [*sides[number % len(sides) :], *sides[: number % len(sides)]]:
            side.seconds.append(_timed(side, workload, side.width))
        print(f"round {number + 1}: " + ", ".join(f"{s.name} {s.seconds[-1]:.2f} s" for s in sides), flush=True)
    _show(sides, counted, workload)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, help="how many of the 240, evenly spread (default: all)")
    parser.add_argument("--try-prompts", type=int, default=80, help="how many widths are tried on (default: 80)")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 24, 32, 48], help="batch widths to try")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side (default: 3)")
    return parser.parse_args()


def _sides(model: LanguageModel, bank: ReaderBank) -> list[Side]:
    def ours(workload: Workload, width: int, bank: ReaderBank | None) -> list[list[int]]:
        return [row.response_ids for row in decoded(model, workload, width, bank)]

    def generated(workload: Workload, width: int, in_way: Callable[[int], Way]) -> list[list[int]]:
        return [row.response_ids for row in plainly_generated(module, workload, in_way(width))]

    module = without_end(model.module)
    return [
        Side(CAPTURED, partial(ours, bank=bank)),
        Side(BARE, partial(ours, bank=None)),
        Side(SORTED, partial(generated, in_way=partial(Way, order="longest first"))),
        Side(UNSORTED, partial(generated, in_way=partial(Way, order="file order"))),
    ]


def _best_width(side: Side, workload: Workload, widths: Sequence[int]) -> int:
    side.run(workload.part(2), 2)  # warms up
    seconds = {width: _timed(side, workload, width) for width in widths}
    tried = ", ".join(f"{taken:.2f} s at {width}" for width, taken in seconds.items())
    print(f"{side.name}, {len(workload.prompts)} prompts: {tried}", flush=True)
    return min(seconds, key=seconds.__getitem__)


def _timed(side: Side, workload: Workload, width: int) -> float:
    started = time.perf_counter()
    responses = side.run(workload, width)
    seconds = time.perf_counter() - started
    if [len(response) for response in responses] != workload.lengths:
        sys.exit(f"error: {side.name}: responses are not as long as the workload says; the times do not compare")
    return seconds


def _counted(side: Side, workload: Workload, model: LanguageModel) -> tuple[list[Pass], list[list[int]]]:
    """The passes and the responses of one run."""
    first_layer = model.module.get_submodule(model.anatomy.layers[0].path)
    with recorded_passes(first_layer) as passes:
        responses = side.run(workload, side.width)
    return passes, responses


def _show(sides: Sequence[Side], counted: Sequence[tuple[list[Pass], list[list[int]]]], workload: Workload) -> None:
    better = min((side for side in sides if side.name in (SORTED, UNSORTED)), key=lambda side: median(side.seconds))
    print(f"\n`generate` = 1 is the faster one: {better.name}. Medians of {len(better.seconds)} paired rounds.")
    print(
        "Used: rows of passes that gave a token asked for; prompt and response tokens over tokens that passes read.\n"
    )
    heads = (
        "",
        "width",
        "seconds",
        "generate = 1",
        "tokens/s",
        "passes",
        "rows used",
        "tokens used",
        "equal responses",
    )
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    expected = counted[0][1]
    for side, (passes, responses) in zip(sides, counted, strict=True):
        cells = [
            side.name,
            str(side.width),
            _spread(spread_of(side.seconds)),
            _spread(ratios_by_round(side.seconds, better.seconds)),
            f"{workload.n_response_tokens / median(side.seconds):.0f}",
            str(len(passes)),
            f"{workload.n_response_tokens / sum(p.rows for p in passes):.1%}",
            f"{_share_of_tokens_used(workload, passes):.1%}",
            f"{sum(map(list.__eq__, responses, expected))} of {len(expected)}",
        ]
        print(f"| {' | '.join(cells)} |")


def _share_of_tokens_used(workload: Workload, passes: Sequence[Pass]) -> float:
    return (workload.n_prompt_tokens + workload.n_response_tokens) / sum(p.rows * p.tokens for p in passes)


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


if __name__ == "__main__":
    main()
