"""How far the reference night is from what the machine can do, with traitscope and with ``generate``.

Of each forward pass: two FLOPs per weight of a matrix product and token, over the rate of a large matrix product; bytes
of the weights, once, and of the keys and values that are read and written, over the bandwidth of a large copy, bytes
read and bytes written both counted. The larger of the two is the pass's limit. Attention's own products, activations
and logits are left out. Rates are measured anew in every round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from batch import plainly_generated, without_end
from own import bank_of, decoded, load_own
from passes import Pass, recorded_passes
from ways import Way
from workload import Workload, reference_night

from traitscope.bench.machine import describe_machine
from traitscope.bench.statistics import Spread, ratios_by_round, spread_of
from traitscope.model.facts import ModelFacts, facts_of_module
from traitscope.model.loading import LanguageModel
from traitscope.run.ceilings import Ceilings, fresh_ceilings

OURS, GENERATE = "ours, 4 traits", "generate"


@dataclass
class Side:
    """One way to do the night, and what its passes read; the lists have one entry a round."""

    name: str
    run: Callable[[], object]
    passes: list[Pass] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Contest:
    """Both sides in one dtype."""

    model: LanguageModel
    facts: ModelFacts
    sides: dict[str, Side]
    ceilings: list[Ceilings] = field(default_factory=list)

    def limits(self, name: str) -> list[float]:
        """Seconds that the passes of a side take at least, by round."""
        return [limit_seconds(self.sides[name].passes, self.facts, self.model.dtype.itemsize, c) for c in self.ceilings]


def limit_seconds(passes: Sequence[Pass], facts: ModelFacts, itemsize: int, ceilings: Ceilings) -> float:
    """The larger of computing and moving, summed over the passes."""
    return sum(max(_compute_seconds(p, facts, ceilings), _move_seconds(p, facts, itemsize, ceilings)) for p in passes)


def _compute_seconds(work: Pass, facts: ModelFacts, ceilings: Ceilings) -> float:
    return facts.forward_flops(work.rows * work.tokens, work.rows) / ceilings.flops_per_second


def _move_seconds(work: Pass, facts: ModelFacts, itemsize: int, ceilings: Ceilings) -> float:
    slots = work.rows * (work.cached + 2 * work.tokens)  # new ones are written and read
    moved = facts.weight_bytes(itemsize) + slots * facts.cache_bytes_per_token(itemsize)
    return moved / (2 * ceilings.copy_bytes_per_second)


def main() -> None:
    given = _arguments()
    workload = reference_night()
    contests = [_contest(dtype, workload, given.width) for dtype in given.dtypes]
    print(describe_machine(contests[0].model), flush=True)
    for number in range(given.rounds):
        for contest in contests:
            _round(contest, reverse=number % 2 == 1)
        print(f"round {number + 1} of {given.rounds}", flush=True)
    _show(contests)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--width", type=int, default=20, help="rows together (default: 20, the whole night)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    return parser.parse_args()


def _contest(dtype: str, workload: Workload, width: int) -> Contest:
    """Both sides, warmed up, with their passes written down."""
    model = load_own(dtype)
    module, bank = without_end(model.module), bank_of(workload)
    sides = (
        Side(OURS, lambda: decoded(model, workload, width, bank)),
        Side(GENERATE, lambda: plainly_generated(module, workload, Way(width, "longest first"))),
    )
    for side in sides:
        with recorded_passes(module.get_submodule(model.anatomy.layers[0].path)) as side.passes:
            side.run()
    return Contest(model, facts_of_module(module), {side.name: side for side in sides})


def _round(contest: Contest, *, reverse: bool) -> None:
    contest.ceilings.append(fresh_ceilings(contest.model.device, contest.model.dtype))
    for side in sorted(contest.sides.values(), key=lambda side: side.name, reverse=reverse):
        started = time.perf_counter()
        side.run()
        side.seconds.append(time.perf_counter() - started)


def _show(contests: Sequence[Contest]) -> None:
    """Both sides over the limit of the passes they make, and over that of the passes which ``generate`` makes."""
    print("\n| | | seconds | generate = 1 | own passes' limit, s | over it | over the limit of generate's passes |")
    print("|---|---|---|---|---|---|---|")
    for contest in contests:
        unit = contest.sides[GENERATE].seconds
        for side in contest.sides.values():
            own = contest.limits(side.name)
            cells = [
                _name(contest),
                side.name,
                _spread(spread_of(side.seconds)),
                _spread(ratios_by_round(side.seconds, unit)),
                _spread(spread_of(own)),
                _spread(ratios_by_round(side.seconds, own)),
                _spread(ratios_by_round(side.seconds, contest.limits(GENERATE))),
            ]
            print(f"| {' | '.join(cells)} |")
    for contest in contests:
        matrix = spread_of([c.flops_per_second / 1e9 for c in contest.ceilings])
        copy = spread_of([2 * c.copy_bytes_per_second / 1e9 for c in contest.ceilings])
        print(f"{_name(contest)}: matrix product {_spread(matrix)} GFLOP/s, copy {_spread(copy)} GB/s")


def _name(contest: Contest) -> str:
    return str(contest.model.dtype).removeprefix("torch.")


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


if __name__ == "__main__":
    main()
