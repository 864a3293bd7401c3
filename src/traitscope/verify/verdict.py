"""Whether a run's stored numbers are right: every check, one verdict."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.checkpoints import Checkpoint
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.traits.vectors import TraitVectors, load_vectors
from traitscope.verify.comparison import QUANTITIES, Difference, differences
from traitscope.verify.independent import IndependentPass, independent_pass, pushes_of
from traitscope.verify.internals import wrong_tensors
from traitscope.verify.limits import Limits, cell_of, read_limits
from traitscope.verify.stored import StoredGeneration, StoredRun, check_stored

_CROWD = 1000
"""Fewer values of a cell than this say nothing about shares."""
_SITES = ("resid_pre", "resid_mid", "resid_post", "token")


@dataclass(frozen=True)
class Worst:
    """The difference of one quantity and site that came nearest to its limit, or furthest beyond it.

    ``site`` is ``token`` for what belongs to the choice of a token; ``difference``, ``limit`` (which few values may
    exceed) and ``ceiling`` (which none may) are in the units of ``comparison.Difference``.
    """

    quantity: str
    site: str
    difference: float
    limit: float
    ceiling: float
    generation: str
    label: str
    checkpoint: str | None
    position: int
    trait: str | None

    @property
    def ratio(self) -> float:
        return self.difference / self.ceiling

    @property
    def where(self) -> str:
        parts = [self.generation, f"({self.label})", self.checkpoint, f"position {self.position}", self.trait]
        return " ".join(part for part in parts if part is not None)

    def described(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference if math.isfinite(self.difference) else None}


@dataclass(frozen=True)
class Verdict:
    """What verifying a run came to.

    Attributes:
        dtype: that the run was captured in.
        quantization: how the model's weights were kept, or None.
        verified, captured: generations that were replayed, and those whose status is ``ok``.
        worst: one row per quantity and site.
        certainly_seen: a change of one stored score by more than this many state norms, plus 2⁻¹¹ of the score
            itself, cannot have passed at any checkpoint that was replayed; None when nothing was.
        problems: one line each; none means that everything is within its limits.
    """

    run: str
    dtype: str
    quantization: str | None
    deep: bool
    verified: int
    captured: int
    worst: tuple[Worst, ...]
    certainly_seen: float | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems

    def described(self) -> dict[str, Any]:
        """Plain values for JSON; a difference that is not finite is null."""
        return {
            **asdict(self),
            "worst": [worst.described() for worst in self.worst],
            "problems": list(self.problems),
            "passed": self.passed,
        }


def verify_run(
    run_dir: Path,
    model: LanguageModel,
    *,
    sample: int | None = None,
    deep: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verdict:
    """Check a run's files and tables, then replay its generations and compare every stored number.

    Args:
        model: the one that the run was made with, in the run's dtype.
        sample: how many generations are replayed, spread over the shards, always the same ones; None for all.
        deep: check checksums, not only sizes.
        on_progress: told how many generations were replayed, and of how many.

    Raises:
        InputError: not a run directory, or no limits are known for its dtype.
    """
    return verify_stored(check_stored(run_dir, deep=deep), model, sample=sample, deep=deep, on_progress=on_progress)


def verify_stored(
    stored: StoredRun,
    model: LanguageModel,
    *,
    sample: int | None = None,
    deep: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verdict:
    """``verify_run`` for a run whose tables were checked already; only its sound generations are replayed."""
    verdict = verdict_without_replay(stored, deep=deep)
    if refused := list(_other_model(stored, model)):
        return replace(verdict, problems=(*verdict.problems, *refused))
    try:
        vectors = _vectors_of(stored)
    except InputError as error:
        return replace(verdict, problems=(*verdict.problems, f"{error}; nothing was replayed"))
    limits = _limits_of(stored)
    tally = _Tally(limits, model.n_layers)
    wanted = chosen_generations(stored, sample)
    problems: list[str] = []
    for done, generation in enumerate(stored.generations(wanted), start=1):
        pushes = pushes_of(generation.asked.steering, vectors, generation.n_prompt, len(generation.token_ids))
        true = independent_pass(model, generation.token_ids, generation.n_prompt, pushes)
        problems += [f"{generation.asked.name}: {p}" for p in _response_problems(generation, model.eos_token_ids)]
        problems += [f"{generation.asked.name}: {p}" for p in true.problems]
        problems += [f"{generation.asked.name}: {p}" for p in _open_layer_problems(stored, model, generation, true)]
        problems += tally.add(generation, differences(generation, true, vectors))
        on_progress(done, len(wanted))
    problems += tally.crowded()
    return replace(
        verdict,
        verified=len(wanted),
        worst=tally.worst(),
        certainly_seen=max(limits.certainly_seen(name, model.n_layers) for name in stored.plan["checkpoints"]),
        problems=(*verdict.problems, *problems),
    )


def verdict_without_replay(stored: StoredRun, *, deep: bool) -> Verdict:
    """What the stored tables alone say."""
    return Verdict(
        run=str(stored.run_dir),
        dtype=stored.plan["dtype"],
        quantization=stored.plan["model"]["quantization"],
        deep=deep,
        verified=0,
        captured=stored.counts.get("ok", 0),
        worst=(),
        certainly_seen=None,
        problems=stored.problems,
    )


def chosen_generations(stored: StoredRun, sample: int | None) -> list[str]:
    """The ids to replay: all sound ones, or a fixed random choice that takes one of each shard in turn."""
    shards = [list(ids) for ids in stored.sound.values() if ids]
    if sample is None:
        return [identity for ids in shards for identity in ids]
    order = random.Random(0)
    order.shuffle(shards)
    for ids in shards:
        order.shuffle(ids)
    deepest = max(map(len, shards), default=0)
    in_turn = [ids[depth] for depth in range(deepest) for ids in shards if depth < len(ids)]
    return in_turn[:sample]


def _other_model(stored: StoredRun, model: LanguageModel) -> Iterator[str]:
    plan = stored.plan
    names = [checkpoint.name for checkpoint in model.anatomy.checkpoints]
    dtype = str(model.dtype).removeprefix("torch.")
    for what, ran_with, is_now in (
        ("fingerprint", plan["model"]["fingerprint"], model.fingerprint.short),
        ("checkpoints", plan["checkpoints"], names),
        ("dtype", plan["dtype"], dtype),
    ):
        if ran_with != is_now:
            yield f"the model is another one than the run's: {what} {ran_with} then, {is_now} now; nothing was replayed"


def _limits_of(stored: StoredRun) -> Limits:
    dtype, quantization = stored.plan["dtype"], stored.plan["model"]["quantization"]
    try:
        return read_limits(dtype, quantization)
    except KeyError:
        what = " ".join(filter(None, (dtype, quantization)))
        raise InputError(f"run {stored.run_dir}: no limits were measured for {what}") from None


def _vectors_of(stored: StoredRun) -> dict[str, TraitVectors]:
    names = [trait["name"] for trait in stored.plan["traits"]]
    return {name: load_vectors(stored.run_dir / "vectors" / f"{name}.safetensors") for name in names}


def _open_layer_problems(
    stored: StoredRun, model: LanguageModel, generation: StoredGeneration, true: IndependentPass
) -> Iterator[str]:
    return wrong_tensors(stored.run_dir, generation.shard, generation.asked, model, generation.token_ids, true)


def _response_problems(stored: StoredGeneration, eos_token_ids: frozenset[int]) -> Iterator[str]:
    if stored.asked.response_ids is not None:
        return
    response = stored.response_ids
    early = next((step for step, token in enumerate(response[:-1]) if token in eos_token_ids), None)
    if early is not None:
        yield (
            f"position {stored.n_prompt + early}: token {response[early]} ends a response, but "
            f"{len(response) - early - 1} more positions are stored behind it"
        )
    elif not response or (len(response) < stored.asked.max_new_tokens and response[-1] not in eos_token_ids):
        yield (
            f"the response stops after {len(response)} of {stored.asked.max_new_tokens} tokens, at none that ends one"
        )


def _ratio(worst: Worst) -> float:
    return worst.ratio


@dataclass
class _Tally:
    """Differences seen so far, against the limits. Counts are by cell."""

    limits: Limits
    n_layers: int
    _values: dict[str, int] = field(default_factory=dict)
    _beyond: dict[str, int] = field(default_factory=dict)
    _worst: dict[tuple[str, str], Worst] = field(default_factory=dict)
    _worst_of_cell: dict[str, Worst] = field(default_factory=dict)

    def add(self, generation: StoredGeneration, found: list[Difference]) -> list[str]:
        """Take a generation's differences in; returns a line for each quantity that goes beyond its ceiling."""
        lines = []
        for quantity in QUANTITIES:
            own = [d for d in found if d.quantity == quantity]
            worst = [self._take(generation, difference) for difference in own]
            too_far = [(d, w) for d, w in zip(own, worst, strict=True) if w.difference > w.ceiling]
            if too_far:
                lines.append(self._line(generation, too_far))
        return lines

    def _take(self, generation: StoredGeneration, difference: Difference) -> Worst:
        cell = cell_of(difference.quantity, difference.checkpoint, self.n_layers)
        limit = self.limits.cells[cell]
        at = int(np.argmax(difference.values))
        site = "token" if difference.checkpoint is None else Checkpoint.from_name(difference.checkpoint).site
        worst = Worst(
            difference.quantity,
            site,
            float(difference.values[at]),
            limit.usual,
            limit.ceiling,
            generation.asked.id,
            generation.asked.label,
            difference.checkpoint,
            difference.first_position + at,
            difference.trait,
        )
        self._values[cell] = self._values.get(cell, 0) + len(difference.values)
        self._beyond[cell] = self._beyond.get(cell, 0) + int((difference.values > limit.usual).sum())
        self._worst[worst.quantity, site] = max(self._worst.get((worst.quantity, site), worst), worst, key=_ratio)
        self._worst_of_cell[cell] = max(self._worst_of_cell.get(cell, worst), worst, key=_ratio)
        return worst

    def _line(self, generation: StoredGeneration, too_far: list[tuple[Difference, Worst]]) -> str:
        """Where a quantity of a generation is beyond its ceiling: the worst place, the first one, and how many."""
        worst = max((w for _, w in too_far), key=lambda w: w.ratio)
        first = min(d.first_position + int(np.argmax(d.values > w.ceiling)) for d, w in too_far)
        n_beyond = sum(int((d.values > w.ceiling).sum()) for d, w in too_far)
        checkpoint = too_far[0][0].checkpoint
        place = f"{worst.checkpoint}, position" if worst.checkpoint else "position"
        trait = f", trait {worst.trait}" if worst.trait else ""
        start = f"checkpoint {checkpoint} and position {first}" if checkpoint else f"position {first}"
        others = f"; {n_beyond} values are, from {start} on" if n_beyond > 1 else ""
        return (
            f"{generation.asked.name}: {worst.quantity} at {place} {worst.position}{trait}: off by "
            f"{worst.difference:.1e}, beyond {worst.ceiling:.1e}{others}"
        )

    def crowded(self) -> list[str]:
        """A line for each cell of which too many values lie beyond its limit, though none is beyond the ceiling."""
        lines = []
        for cell, n_values in self._values.items():
            share = self._beyond[cell] / n_values
            if n_values >= _CROWD and share > self.limits.share:
                worst = self._worst_of_cell[cell]
                lines.append(
                    f"{cell}: {share:.1%} of {n_values} values are beyond the limit {worst.limit:.1e}, at most "
                    f"{self.limits.share:.1%} may be; worst {worst.difference:.1e} at {worst.where}"
                )
        return lines

    def worst(self) -> tuple[Worst, ...]:
        order = [(quantity, site) for quantity in QUANTITIES for site in _SITES]
        return tuple(self._worst[key] for key in order if key in self._worst)
