"""Whether the sums close: what is left between scores, blocks, heads and neurons of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from traitscope.analysis.attribution import closing_gap
from traitscope.attribution.attribute import attribute
from traitscope.attribution.explanation import find_generation, sound_run, why_not_captured
from traitscope.attribution.terms import Attribution
from traitscope.errors import InputError
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel
from traitscope.model.steering import Steering
from traitscope.run.reload import model_of_run
from traitscope.run.steering import steering_of
from traitscope.traits.vectors import TraitVectors

SumKind = Literal["score", "attention", "mlp"]
LIMITS = {"float32": 1e-5, "bfloat16": 6e-2, "float16": 1e-2}
"""Of the summed sizes of what is added up. The one for float32 is what traitscope promises; the others allow for the
rounding of every addition to the stream in that dtype."""

_TERM_BYTES = 16_000_000
"""Of the terms of one layer in float64; all layers of a text stay until its sums are checked."""


@dataclass(frozen=True)
class Gap:
    """The sum of one kind that closes worst. ``gap`` is in shares of the summed sizes of its parts.

    ``kind`` is ``score`` (blocks add up to the score at R), ``attention`` (heads × source tokens and bias to the
    block's write) or ``mlp`` (neurons and bias likewise); ``layer`` is None for the first.
    """

    kind: SumKind
    n_sums: int
    gap: float
    generation: str
    trait: str
    position: int
    layer: int | None


@dataclass(frozen=True)
class Closure:
    """The worst gap of each kind; ``unsplit`` names the blocks that have no parts, with the reason."""

    run: str
    dtype: str
    generations: int
    limit: float
    gaps: tuple[Gap, ...]
    unsplit: dict[str, str]

    @property
    def closed(self) -> bool:
        return all(gap.gap <= self.limit for gap in self.gaps)

    def described(self) -> dict[str, Any]:
        return {**asdict(self), "closed": self.closed}


def check_closure(
    run_dir: str | Path,
    generations: Sequence[str] | None = None,
    *,
    model: LanguageModel | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Closure:
    """Split every token's score of every trait of a run, in all layers, and find the largest gaps.

    Args:
        generations: ids, beginnings of ids or ``experiment/prompt_id``; None for all that were captured.
        model: the run's model, if it is in memory already.
        on_progress: told how many generations were split, and of how many.

    Raises:
        InputError: no such run or generation; the model is not the run's.
        RunError: a file of the run is damaged.
    """
    run_dir = Path(run_dir)
    run, frozen = sound_run(run_dir)
    vectors = frozen.vectors
    captured = run.generations.filter(pl.col("status") == "ok").collect()["generation"].to_list()
    chosen = captured if generations is None else [find_generation(run, name)[0] for name in generations]
    if absent := [identity for identity in chosen if identity not in captured]:
        raise InputError(f"--generation {absent[0]}: {why_not_captured(run, absent[0])}")
    model = model or model_of_run(run_dir)
    worst: dict[SumKind, Gap] = {}
    unsplit: dict[str, str] = {}
    for done, identity in enumerate(chosen, start=1):
        tokens = run.tokens.filter(pl.col("generation") == identity).sort("position").collect()
        steering = steering_of(frozen.tasks[identity].dose, vectors)
        text = _Text(tokens["token_id"].to_list(), steering, frozen.tasks[identity].n_prompt)
        for attribution in _in_pieces(model, text, vectors):
            for gap in gaps_of(attribution, find_generation(run, identity)[1]):
                worst[gap.kind] = _worse(worst.get(gap.kind), gap)
            unsplit |= {block.name: block.problem for block in attribution.blocks if block.problem is not None}
        on_progress(done, len(chosen))
    dtype = str(model.dtype).removeprefix("torch.")
    return Closure(
        str(run_dir), dtype, len(chosen), LIMITS.get(dtype, LIMITS["float32"]), tuple(worst.values()), unsplit
    )


class _Text(NamedTuple):
    token_ids: list[int]
    steering: Steering | None
    n_prompt: int


def _in_pieces(model: LanguageModel, text: _Text, vectors: Sequence[TraitVectors]) -> Iterator[Attribution]:
    """All positions of a text, as many at a time as have their terms in a bounded piece of memory."""
    facts = facts_of_module(model.module)
    terms_per_position = len(vectors) * max(facts.n_heads * len(text.token_ids), facts.n_neurons)
    n_at_once = max(1, _TERM_BYTES // (8 * terms_per_position))
    for start in range(0, len(text.token_ids), n_at_once):
        positions = range(start, min(start + n_at_once, len(text.token_ids)))
        yield attribute(
            model,
            text.token_ids,
            vectors,
            positions,
            every_layer=True,
            steering=text.steering,
            n_prompt=text.n_prompt,
        )


def gaps_of(attribution: Attribution, generation: str) -> Iterator[Gap]:
    """The worst gap of every sum of an attribution; ``generation`` is what people call it."""
    for number, trait in enumerate(attribution.traits):
        gaps = closing_gap(attribution.block_parts(number), attribution.score[number])
        yield _gap("score", gaps, generation, trait, attribution, None)
    for block in attribution.blocks:
        parts = block.flat_parts()
        if parts is not None:
            for number, trait in enumerate(attribution.traits):
                gaps = closing_gap(parts[number], block.write[number])
                yield _gap(block.kind, gaps, generation, trait, attribution, block.layer)


def _gap(
    kind: SumKind, gaps: np.ndarray, generation: str, trait: str, attribution: Attribution, layer: int | None
) -> Gap:
    at = int(gaps.argmax())
    return Gap(kind, len(gaps), float(gaps[at]), generation, trait, attribution.positions[at], layer)


def _worse(known: Gap | None, gap: Gap) -> Gap:
    if known is None:
        return gap
    worst = max(known, gap, key=lambda one: one.gap)
    return Gap(**{**asdict(worst), "n_sums": known.n_sums + gap.n_sums})
