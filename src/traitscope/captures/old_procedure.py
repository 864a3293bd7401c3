"""What shell scripts would have needed for the same: a process, a model load and a generation for each prompt and trait
of each experiment, with the context computed anew for every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from traitscope.captures.files import read_sessions
from traitscope.captures.reading import Run


@dataclass(frozen=True)
class AskedText:
    """One prompt of one experiment (one sample, one dose of steering) with its response; counts of traits and tokens.

    ``given``: the response was given, not generated.
    """

    n_traits: int
    n_prompt: int
    n_response: int
    given: bool = False


@dataclass(frozen=True)
class ProcedureCost:
    """Loads of the model, generations, and tokens that went through the model."""

    model_loads: int
    generations: int
    token_forwards: int


def old_procedure(asked: Iterable[AskedText]) -> ProcedureCost:
    """The cost of a process for each trait of each of ``asked``.

    Without a cache the token number n of a response (n from 0) takes a pass over the prompt and the n tokens before
    it; a given response takes one pass over all.
    """
    loads = generations = forwards = 0
    for text in asked:
        loads += text.n_traits
        if text.given:
            forwards += text.n_traits * (text.n_prompt + text.n_response)
        else:
            generations += text.n_traits
            earlier = text.n_response * (text.n_response - 1) // 2
            forwards += text.n_traits * (text.n_response * text.n_prompt + earlier)
    return ProcedureCost(loads, generations, forwards)


def procedures_of(run: Run, run_dir: Path) -> dict[str, Any]:
    """The old procedure's cost for what a run has captured, with the lengths that were generated, and ours (``here``).

    Generations that failed, were too long or are missing are left out on both sides. Ours counts every token that was
    read while the run generated and opened layers, padding included; reading pairs for vectors, timing and verifying
    are no part of either.
    """
    texts = _captured_texts(run)
    asked = [AskedText(*row) for row in texts.select("n_traits", "n_prompt", "n_response", "given").iter_rows()]
    sessions = read_sessions(run_dir)
    here = ProcedureCost(
        model_loads=sum(session["model_loads"] for session in sessions),
        generations=texts.filter(~pl.col("given"))["generation"].n_unique(),
        token_forwards=sum(session["forward"]["tokens"] for session in sessions),
    )
    return {**asdict(old_procedure(asked)), "here": asdict(here)}


def _captured_texts(run: Run) -> pl.DataFrame:
    """One row per captured prompt of each experiment; scores and open layers of the same prompt are one."""
    place = ["generation", "experiment", "prompt_id", "sample", "alpha"]
    asked = run.captures.group_by(place, maintain_order=True).agg(pl.col("traits").list.len().max().alias("n_traits"))
    given = run.prompts.select("generation", pl.col("response_ids").is_not_null().alias("given")).unique("generation")
    counts = run.generations.filter(pl.col("status") == "ok").select(
        "generation", pl.col("prompt_tokens").alias("n_prompt"), pl.col("response_tokens").alias("n_response")
    )
    return asked.join(counts, on="generation").join(given, on="generation").collect()
