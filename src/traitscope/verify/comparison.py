"""Stored values of one generation beside those of an independent pass over its token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from traitscope.traits.vectors import TraitVectors
from traitscope.verify.choices import argmax_gaps, draw_distances, row_uniforms_again
from traitscope.verify.independent import IndependentPass
from traitscope.verify.stored import StoredGeneration

Quantity = Literal["score", "norm", "write", "logprob", "argmax", "draw"]
QUANTITIES: tuple[Quantity, ...] = ("score", "norm", "write", "logprob", "argmax", "draw")
STORED_ROUNDING = 2.0**-12
"""Largest relative error of stored scores and norms, which keep 11 bits of mantissa."""

_LEAST_NORM = 1e-30
_CHUNK = 64


@dataclass(frozen=True)
class Difference:
    """Differences of one quantity at one checkpoint of a generation.

    Attributes:
        checkpoint: its name; None for what belongs to the choice of a token.
        trait: None for norms and tokens.
        first_position: the position of ``values[0]``.
        values: ``[positions]`` float64, never negative. Scores: in units of the state's norm, beyond what rounding
            on disk explains. Norms: relative, likewise. Writes: in units of the larger norm of the states before and
            after the block. logprob: natural logarithms. argmax: standard deviations of the position's logits. draw:
            probability.
    """

    quantity: Quantity
    checkpoint: str | None
    trait: str | None
    first_position: int
    values: np.ndarray


def differences(
    stored: StoredGeneration,
    true: IndependentPass,
    vectors: Mapping[str, TraitVectors],
    *,
    rounding: float = STORED_ROUNDING,
) -> list[Difference]:
    """Every difference between what is stored and what the independent pass says.

    ``vectors`` are the run's, by trait. What is not finite counts as infinitely far.
    """
    found = [*_state_differences(stored, true, vectors, rounding), *_token_differences(stored, true)]
    for difference in found:
        np.nan_to_num(difference.values, copy=False, nan=np.inf, posinf=np.inf)
    return found


def _state_differences(
    stored: StoredGeneration, true: IndependentPass, vectors: Mapping[str, TraitVectors], rounding: float
) -> Iterator[Difference]:
    traits = stored.asked.traits
    own = torch.stack([vectors[trait].reader for trait in traits]).double()
    at_readout = torch.stack([vectors[trait].reader[vectors[trait].readout] for trait in traits]).double()
    before_norm: np.ndarray | None = None
    before_readout = np.zeros(())
    for index, (checkpoint, state) in enumerate(true.states.items()):
        exact = state.double()
        true_norm = exact.norm(dim=-1).numpy()
        norm = np.fmax(true_norm, _LEAST_NORM)  # the embedding of a padding token can be zero
        if checkpoint in stored.norms:
            error = np.abs(stored.norms[checkpoint] - true_norm) / norm
            yield Difference("norm", checkpoint, None, 0, np.fmax(error - rounding, 0.0))
        scores = (exact @ own[:, index].T).numpy()
        readout = (exact @ at_readout.T).numpy()
        larger = norm if before_norm is None else np.fmax(norm, before_norm)
        for number, trait in enumerate(traits):
            if (checkpoint, trait) in stored.scores:
                expected = scores[:, number]
                error = np.abs(stored.scores[checkpoint, trait] - expected) - rounding * np.abs(expected)
                yield Difference("score", checkpoint, trait, 0, np.fmax(error, 0.0) / norm)
            if (checkpoint, trait) in stored.writes:
                expected = (readout - before_readout)[:, number]
                yield Difference(
                    "write", checkpoint, trait, 0, np.abs(stored.writes[checkpoint, trait] - expected) / larger
                )
        before_norm, before_readout = norm, readout


def _token_differences(stored: StoredGeneration, true: IndependentPass) -> Iterator[Difference]:
    tokens = np.array(stored.response_ids, dtype=np.int64)
    if len(tokens) == 0:
        return
    asked = stored.asked
    uniforms = row_uniforms_again(asked.seed, len(tokens)) if asked.seed is not None else None
    eps = torch.finfo(true.logits.dtype).eps
    by_quantity: dict[Quantity, list[np.ndarray]] = {}
    for start in range(0, len(tokens), _CHUNK):
        part = slice(start, start + _CHUNK)
        logits = true.logits[part].double().numpy()
        expected = _log_softmax_at(logits, tokens[part])
        by_quantity.setdefault("logprob", []).append(np.abs(stored.logprobs[part] - expected))
        if asked.greedy:
            by_quantity.setdefault("argmax", []).append(argmax_gaps(logits, tokens[part]))
        if asked.sampled and uniforms is not None:
            distances = draw_distances(logits, tokens[part], uniforms[part], asked, eps)
            by_quantity.setdefault("draw", []).append(distances)
    for quantity, parts in by_quantity.items():
        yield Difference(quantity, None, None, stored.n_prompt, np.concatenate(parts))


def _log_softmax_at(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=1)
    chosen = np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return chosen - largest - np.log(np.exp(logits - largest[:, None]).sum(axis=1))
