"""What the page shows of each prompt: its tokens, z of every trait at every checkpoint, writes, commitment points."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.reading import Run
from traitscope.suite.tokens import content_mask

_GROUP = 50
"""Generations that are read at once: what they need of memory does not grow with the run."""


@dataclass(frozen=True)
class PromptData:
    """One captured generation.

    Attributes:
        tokens: text, phase, special and role, one dict a position.
        logprob: ``[n]``, NaN for prompt tokens.
        content: ``[n]`` bool, the response's content tokens.
        z: ``[n_traits, n_checkpoints, n]`` float32, NaN where it was not captured.
        writes: the same of the blocks' writes, in units of the neutral spread at the trait's readout.
    """

    generation: str
    tokens: list[dict[str, Any]]
    logprob: np.ndarray
    content: np.ndarray
    z: np.ndarray
    writes: np.ndarray

    @property
    def n_prompt(self) -> int:
        return sum(token["phase"] == "prompt" for token in self.tokens)


def read_prompts(run: Run, generations: Sequence[str]) -> Iterator[PromptData]:
    """The data of ``generations``, in that order."""
    for start in range(0, len(generations), _GROUP):
        group = generations[start : start + _GROUP]
        tables = [_by_generation(table, group) for table in (run.tokens, run.scores, run.writes)]
        for generation in group:
            yield _prompt_data(run, generation, *(table[generation] for table in tables))


def _by_generation(frame: pl.LazyFrame, generations: Sequence[str]) -> dict[str, pl.DataFrame]:
    found = frame.filter(pl.col("generation").is_in(list(generations))).collect()
    empty = found.clear()
    parts = found.partition_by("generation", as_dict=True, maintain_order=True)
    return {generation: parts.get((generation,), empty) for generation in generations}


def _prompt_data(
    run: Run, generation: str, tokens: pl.DataFrame, scores: pl.DataFrame, writes: pl.DataFrame
) -> PromptData:
    tokens = tokens.sort("position")
    place = {name: row for row, name in enumerate(run.checkpoints)}
    calibrations = list(run.traits.values())
    shape = (len(calibrations), len(place), len(tokens))
    score, write = (np.full(shape, np.nan, np.float32) for _ in range(2))
    for number, trait in enumerate(calibrations):
        _fill(score[number], scores, f"score.{trait.trait}", place)
        _fill(write[number], writes, f"write.{trait.trait}", place)
    mean, std = _neutral(calibrations, run.checkpoints)
    at_readout = np.array([std[k, place[trait.readout]] for k, trait in enumerate(calibrations)])
    columns = ("position", "phase", "role", "special")
    return PromptData(
        generation=generation,
        tokens=tokens.select("token", "phase", "special", "role").to_dicts(),
        logprob=tokens["logprob"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
        content=content_mask(*(tokens[name].to_list() for name in columns)),
        z=(score - mean[..., None]) / std[..., None],
        writes=write / at_readout[:, None, None],
    )


def _fill(found: np.ndarray, frame: pl.DataFrame, column: str, place: dict[str, int]) -> None:
    """Put lists over positions into the rows of ``found`` that their checkpoints have."""
    there = frame.filter(pl.col(column).is_not_null())
    if len(there):
        rows = [place[name] for name in there["checkpoint"].to_list()]
        found[rows] = there[column].explode().to_numpy().reshape(len(rows), -1)


def _neutral(calibrations: Sequence[TraitCalibration], checkpoints: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation ``[n_traits, n_checkpoints]`` of the neutral replies' tokens."""
    found = []
    for statistics in ([t.mean for t in calibrations], [t.std for t in calibrations]):
        rows = [
            [values["response_token"][trait.checkpoints.index(name)] for name in checkpoints]
            for values, trait in zip(statistics, calibrations, strict=True)
        ]
        found.append(np.array(rows, dtype=np.float64).reshape(len(calibrations), len(checkpoints)))
    return found[0], found[1]


def visible(text: str) -> str:
    """Untrusted text of a token with whatever would act instead of show made visible."""
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "⇥\t"
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") and character != "\u200d":
        return f"⟨U+{ord(character):04X}⟩"
    return character
