"""What the page shows of each prompt: its tokens, z of every trait at every checkpoint, writes, commitment points."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

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
        tokens = run.tokens.filter(pl.col("generation").is_in(list(group))).collect()
        of_generation = tokens.partition_by("generation", as_dict=True)
        scores, writes = (_Lists(table, group) for table in (run.scores, run.writes))
        for generation in group:
            yield _prompt_data(run, generation, of_generation[generation,].sort("position"), scores, writes)


class _Lists:
    """A table of lists over positions, opened for quick access by generation."""

    def __init__(self, frame: pl.LazyFrame, generations: Sequence[str]) -> None:
        table = frame.filter(pl.col("generation").is_in(list(generations))).collect().to_arrow().combine_chunks()
        owners, self._checkpoints = (table[name].to_numpy() for name in ("generation", "checkpoint"))
        self._rows = {generation: np.flatnonzero(owners == generation) for generation in generations}
        self._lists = {name: _one_chunk(table[name]) for name in table.column_names if "." in name}

    def fill(self, found: np.ndarray, generation: str, column: str, place: Mapping[str, int]) -> None:
        """Put a generation's lists into the rows of ``found`` that their checkpoints have."""
        lists = self._lists[column]
        offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
        for row in self._rows[generation]:
            if offsets[row + 1] > offsets[row]:
                found[place[self._checkpoints[row]]] = values[offsets[row] : offsets[row + 1]]


def _one_chunk(column: pa.ChunkedArray) -> Any:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _prompt_data(run: Run, generation: str, tokens: pl.DataFrame, scores: _Lists, writes: _Lists) -> PromptData:
    place = {name: row for row, name in enumerate(run.checkpoints)}
    calibrations = list(run.traits.values())
    shape = (len(calibrations), len(place), len(tokens))
    score, write = (np.full(shape, np.nan, np.float32) for _ in range(2))
    for number, trait in enumerate(calibrations):
        scores.fill(score[number], generation, f"score.{trait.trait}", place)
        writes.fill(write[number], generation, f"write.{trait.trait}", place)
    mean, std = _neutral(calibrations, run.checkpoints)
    at_readout = np.array([std[k, place[trait.readout]] for k, trait in enumerate(calibrations)])
    columns = ("position", "phase", "role", "special")
    return PromptData(
        generation=generation,
        tokens=tokens.select("token", "phase", "special", "role").to_dicts(),
        logprob=tokens["logprob"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
        content=content_mask(*(tokens[name].to_list() for name in columns)),
        z=((score - mean[..., None]) / std[..., None]).astype(np.float32),
        writes=(write / at_readout[:, None, None]).astype(np.float32),
    )


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
