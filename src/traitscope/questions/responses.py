"""The responses of a run as questions read them: z of each content token at R, one entry a prompt and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl

from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.prompts import prompt_numbers
from traitscope.captures.reading import Run, capture_label
from traitscope.errors import InputError, near_names
from traitscope.questions.options import QuestionOptions
from traitscope.suite.tokens import content_mask

Item = TypeVar("Item")

ALL = "all together"


@dataclass(frozen=True)
class Asked:
    """One generation of an experiment; a generation that several experiments share is there once for each.

    ``prompt`` is the unit of statistics, see ``prompt_numbers``.
    """

    generation: str
    prompt: int
    experiment: str
    prompt_id: str
    sample: int
    steer_trait: str | None
    alpha: float | None
    traits: tuple[str, ...]

    @property
    def label(self) -> str:
        return capture_label({"experiment": self.experiment, "prompt_id": self.prompt_id, "alpha": self.alpha})


@dataclass(frozen=True)
class Response:
    """One response as a trait's reader at R scores it.

    Attributes:
        z: ``[n_content]`` float64, of the content tokens in order, by the neutral replies' tokens.
        positions: ``[n_content]``, their positions in the generation.
        tokens: their texts.
        z_prompt_last: z of the prompt's last token, by the neutral replies' prompt ends; NaN where those do not vary.
    """

    asked: Asked
    z: np.ndarray
    positions: np.ndarray
    tokens: tuple[str, ...]
    z_prompt_last: float


def chosen_traits(run: Run, options: QuestionOptions) -> tuple[str, ...]:
    """The traits asked for, all of the run if none is named.

    Raises:
        InputError: one is not in the run.
    """
    for trait in options.traits:
        if trait not in run.traits:
            raise InputError(f"--trait {trait!r} is not in this run; {near_names(trait, run.traits)}")
    return options.traits or tuple(run.traits)


def asked_of(run: Run, options: QuestionOptions, *, steered: bool = False) -> list[Asked]:
    """The generations of the experiments asked for, without those that were steered unless ``steered``.

    Raises:
        InputError: the run has no such experiment.
    """
    captures = run.captures.collect().to_dicts()
    prompts = prompt_numbers(run)
    known = list(dict.fromkeys(row["experiment"] for row in captures))
    for experiment in options.experiments:
        if experiment not in known:
            raise InputError(f"--experiment {experiment!r} is not in this run; {near_names(experiment, known)}")
    found: dict[tuple, Asked] = {}
    for row in captures:
        if options.experiments and row["experiment"] not in options.experiments:
            continue
        if (row["alpha"] or 0) != 0 and not steered:
            continue
        named = (row["experiment"], row["prompt_id"], row["sample"], row["steer_trait"], row["alpha"])
        traits = tuple(row["traits"])
        earlier = found.get(named)
        # An experiment captures a generation twice where it asks for scores and for open layers.
        traits = tuple(dict.fromkeys((*earlier.traits, *traits))) if earlier else traits
        found[named] = Asked(row["generation"], prompts[row["generation"]], *named, traits)
    return list(found.values())


def responses_of(run: Run, trait: str, asked: Sequence[Asked]) -> list[Response]:
    """What ``trait`` scored at its R in each of ``asked`` that was captured for it and has content."""
    wanted = [entry for entry in asked if trait in entry.traits]
    ids = list(dict.fromkeys(entry.generation for entry in wanted))
    calibration = run.traits[trait]
    scores = run.score(trait, z=False).filter(pl.col("generation").is_in(ids))
    by_generation = {frame["generation"][0]: frame for frame in scores.partition_by("generation")}
    return [
        response
        for entry in wanted
        if entry.generation in by_generation
        and len((response := _response(entry, by_generation[entry.generation], calibration)).z)
    ]


def _response(asked: Asked, scores: pl.DataFrame, calibration: TraitCalibration) -> Response:
    content = content_mask(*(scores[name].to_list() for name in ("position", "phase", "role", "special")))
    raw = scores["score"].to_numpy().astype(np.float64)
    in_prompt = np.flatnonzero((scores["phase"] == "prompt").to_numpy())
    return Response(
        asked=asked,
        z=calibration.z(raw[content], calibration.readout),
        positions=scores["position"].to_numpy()[content],
        tokens=tuple(scores.filter(pl.Series(content))["token"].to_list()),
        z_prompt_last=float(calibration.z(raw[in_prompt[-1]], calibration.readout, "prompt_last")),
    )


def turns_of(run: Run, trait: str, asked: Sequence[Asked]) -> list[tuple[Asked, np.ndarray]]:
    """Mean z at R of each turn of the assistant, in order, the response last: ``[n_turns]`` for each of ``asked``.

    Special and template tokens and position 0 do not count.
    """
    wanted = [entry for entry in asked if trait in entry.traits]
    turns = run.tokens.select("generation", "position", "turn").collect()
    scored = run.score(trait).join(turns, on=["generation", "position"], how="left")
    spoken = scored.filter((pl.col("role") == "assistant") & ~pl.col("special") & (pl.col("position") > 0))
    means = spoken.group_by("generation", "turn").agg(pl.col("z").mean()).sort("generation", "turn")
    by_generation = {frame["generation"][0]: frame["z"].to_numpy() for frame in means.partition_by("generation")}
    return [(entry, by_generation[entry.generation]) for entry in wanted if entry.generation in by_generation]


def in_experiments(items: Sequence[Item], response: Callable[[Item], Response]) -> dict[str, list[Item]]:
    """Items by the experiment of their response, in order; of several also all together, each generation once."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(response(item).asked.experiment, []).append(item)
    if len(groups) > 1:
        groups[ALL] = list({response(item).asked.generation: item for item in items}.values())
    return groups


def by_prompt(responses: Sequence[Response], values: Sequence[float]) -> np.ndarray:
    """Means of ``values`` ``[n_prompts]``: samples of one prompt are no further prompts."""
    return means_of_prompts([response.asked.prompt for response in responses], values)


def means_of_prompts(prompts: Sequence[int], values: Sequence[float]) -> np.ndarray:
    """Means ``[n_prompts]`` of the ``values`` of each of ``prompts``, which name one prompt a value."""
    gathered: dict[int, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        gathered.setdefault(prompt, []).append(value)
    return np.array([np.mean(found) for found in gathered.values()], dtype=np.float64)
