"""What the prompts of a batch have in common, so that it is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

# A forward pass of one short row costs about what this many more tokens cost in a wide one.
_LEAST_SAVED_TOKENS = 32


@dataclass(frozen=True)
class Sharing:
    """How a batch's prompts are read.

    Attributes:
        distinct: the prompts without repetitions.
        source: for each row of the batch, which of ``distinct`` it continues.
        n_prefix: how many tokens all of ``distinct`` begin with and that are read once.
    """

    distinct: tuple[tuple[int, ...], ...]
    source: tuple[int, ...]
    n_prefix: int

    @property
    def n_fed(self) -> int:
        """How many tokens of each distinct prompt are read after the prefix, padding included."""
        return max(map(len, self.distinct)) - self.n_prefix

    @property
    def n_prefill_tokens(self) -> int:
        """Tokens that the forward passes over the prompts read, padding included."""
        return self.n_prefix + self.n_fed * len(self.distinct)

    @property
    def shifts(self) -> list[int]:
        """By how many slots each distinct prompt is moved right so that all end in the same slot.

        A shifted row reads its last prefix tokens again instead of padding between prefix and rest: padding
        there would use up the slots of a sliding window.
        """
        longest = max(map(len, self.distinct))
        return [min(longest - len(prompt), self.n_prefix) for prompt in self.distinct]


def shared_by(prompts: Sequence[Sequence[int]], run_prefix: Sequence[int] = ()) -> Sharing:
    """What ``prompts`` share. ``run_prefix`` is what all prompts of a run begin with, which was read before."""
    distinct = tuple(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: index for index, prompt in enumerate(distinct)}
    source = tuple(place[tuple(prompt)] for prompt in prompts)
    return Sharing(distinct, source, _prefix_length(distinct, run_prefix))


def nothing_shared(prompts: Sequence[Sequence[int]]) -> Sharing:
    """Every prompt is read whole, for itself."""
    rows = tuple(map(tuple, prompts))
    return Sharing(rows, tuple(range(len(rows))), n_prefix=0)


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all prompts begin with, short of the last token of the shortest one."""
    if not prompts:
        return ()
    shortest = min(map(len, prompts))
    columns = zip(*prompts, strict=False)
    common = takewhile(lambda column: len(set(column)) == 1, islice(columns, shortest - 1))
    return tuple(column[0] for column in common)


def _prefix_length(distinct: Sequence[tuple[int, ...]], run_prefix: Sequence[int]) -> int:
    own = len(common_prefix(distinct))
    of_run = len(run_prefix) if distinct[0][:own][: len(run_prefix)] == tuple(run_prefix) else 0
    saved_by_own = own * (len(distinct) - 1)
    saved_by_run = of_run * len(distinct)
    if max(saved_by_own, saved_by_run) < _LEAST_SAVED_TOKENS:
        return 0
    return own if saved_by_own > saved_by_run else of_run
