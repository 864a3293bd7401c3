"""Runs in memory whose scores are planted, to ask them questions without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.reading import Run
from traitscope.captures.schema import CAPTURES, GENERATIONS, PROMPTS, TOKENS, scores_schema, writes_schema

TRAIT, R = "planted", "resid_post.0"
MEAN, STD = 5.0, 2.0
N_PROMPT = 3


@dataclass(frozen=True)
class Planted:
    """One response: z of its content tokens ``[n]``, and of the prompt's last token.

    ``earlier`` are turns of the assistant in the prompt, each ``[n]``. Responses with the same ``text`` are of one
    prompt. ``pattern`` ``[heads, seq, seq]`` opens the layer.
    """

    experiment: str
    prompt_id: str
    z: np.ndarray
    at_prompt: float = 0.0
    sample: int = 0
    alpha: float | None = None
    earlier: Sequence[np.ndarray] = field(default_factory=tuple)
    text: int | None = None
    pattern: np.ndarray | None = None


def planted_run(responses: Sequence[Planted], neutral: np.ndarray | None = None) -> Run:
    """A run of one trait at one checkpoint; ``neutral`` is z of neutral replies ``[n_replies, n_tokens]``."""
    rows = [_rows(f"g{number}", number, response) for number, response in enumerate(responses)]
    frames = {
        "generations": _frame([row["generation"] for row in rows], GENERATIONS),
        "tokens": _frame([token for row in rows for token in row["tokens"]], TOKENS),
        "scores": _frame([row["scores"] for row in rows], scores_schema([TRAIT])),
        "writes": _frame([], writes_schema([TRAIT])),
        "prompts": _frame([row["prompt"] for row in rows], PROMPTS),
        "captures": _frame([capture for row in rows for capture in row["captures"]], CAPTURES),
    }
    patterns = {
        f"g{number}/0/pattern": lambda pattern=response.pattern: pattern
        for number, response in enumerate(responses)
        if response.pattern is not None
    }
    calibrations = {TRAIT: _calibration(neutral)}
    return Run(frames, calibrations, ("resid_pre.0", R), title="planted", open_tensors=lambda: patterns)


def _calibration(neutral: np.ndarray | None) -> TraitCalibration:
    trajectory = np.zeros((0, 0)) if neutral is None else neutral * STD + MEAN
    regions = ("prompt_last", "response_token", "response_mean")
    return TraitCalibration(
        trait=TRAIT,
        poles=("up", "down"),
        verdict="validated",
        checkpoints=("resid_pre.0", R),
        readout=R,
        mean={region: np.full(2, MEAN) for region in regions},
        std={region: np.full(2, STD) for region in regions},
        neutral_trajectory=trajectory,
    )


def _rows(generation: str, number: int, response: Planted) -> dict[str, Any]:
    z = [np.zeros(N_PROMPT - 1), *response.earlier, [response.at_prompt], response.z, [99.0]]
    kinds = [("prompt", "user", 0, False)] * (N_PROMPT - 1)
    for turn, earlier in enumerate(response.earlier, start=1):
        kinds += [("prompt", "assistant", 2 * turn - 1, False)] * len(earlier)
    last = 2 * len(response.earlier)
    kinds += [("prompt", "user", last, False)]
    kinds += [("response", "assistant", last + 1, False)] * len(response.z)
    kinds += [("response", "template", last + 1, True)]  # an end of sequence, whose huge score must not count
    scores = np.concatenate([np.asarray(part, dtype=float) for part in z]) * STD + MEAN
    named = {"generation": generation, "experiment": response.experiment, "prompt_id": response.prompt_id}
    text = number if response.text is None else response.text
    steered = {"steer_trait": None if response.alpha is None else TRAIT, "alpha": response.alpha}
    capture = {**named, **steered, "sample": response.sample, "layers": [0], "traits": [TRAIT]}
    captures = [{**capture, "kind": "scores", "keep": []}]
    if response.pattern is not None:
        captures.append({**capture, "kind": "internals", "keep": ["pattern"]})
    return {
        "generation": {"generation": generation, "status": "ok"},
        "tokens": [
            {**dict(zip(("phase", "role", "turn", "special"), kind, strict=True)), "generation": generation}
            | {"position": position, "token_id": position, "token": f"t{position}"}
            for position, kind in enumerate(kinds)
        ],
        "scores": {"generation": generation, "checkpoint": R, "layer": 0, "site": "resid_post"}
        | {"norm": np.ones(len(scores)).tolist(), f"score.{TRAIT}": scores.tolist()},
        "prompt": {**named, "sample": response.sample, "token_ids": [text], "response_ids": None},
        "captures": captures,
    }


def _frame(rows: Sequence[dict[str, Any]], schema: Any) -> pl.LazyFrame:
    frame = pl.from_arrow(
        pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)
    )
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
