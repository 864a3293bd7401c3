"""Does pushing along the steerer make the positive responses likelier than the negative ones?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_steered_logprobs
from traitscope.model.steering import Steering
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.traits.scenarios import Pair
from traitscope.traits.vectors import TraitVectors

DOSES = (-0.30, -0.15, 0.15, 0.30)
RANDOM_DOSE = 0.15
N_RANDOM = 20


def steering_shifts(
    model: LanguageModel,
    vectors: TraitVectors,
    pairs: Sequence[Pair],
    style: PromptStyle,
    on_text: Callable[[], None],
) -> tuple[dict[float, float], list[float]]:
    """Mean shift of ``log p(positive) − log p(negative)`` in nats a pair: by dose α, and of random directions.

    Response positions are steered at R by α times the median neutral norm there. Random directions are unit Gaussian
    directions at ``RANDOM_DOSE``.
    """
    directions = [(alpha, vectors.steerer[vectors.readout]) for alpha in DOSES]
    directions += [(RANDOM_DOSE, direction) for direction in _random_directions(model.anatomy.d_model)]
    norm = float(vectors.calibration.norm[vectors.readout])
    steerings: list[Steering | None] = [None]
    steerings += [
        Steering({vectors.readout_layer: alpha * norm * direction}, "response") for alpha, direction in directions
    ]
    margins = np.mean([_margins(model, pair, style, steerings, on_text) for pair in pairs], axis=0)
    shifts = margins[1:] - margins[0]
    return dict(zip(DOSES, map(float, shifts), strict=False)), [float(shift) for shift in shifts[len(DOSES) :]]


def _random_directions(d_model: int) -> torch.Tensor:
    directions = torch.randn(N_RANDOM, d_model, generator=torch.Generator().manual_seed(0))
    return directions / directions.norm(dim=-1, keepdim=True)


def _margins(
    model: LanguageModel,
    pair: Pair,
    style: PromptStyle,
    steerings: Sequence[Steering | None],
    on_text: Callable[[], None],
) -> np.ndarray:
    """``log p(positive) − log p(negative)`` under each steering ``[n_steerings]``, in nats."""
    prompt = render(model.tokenizer, [{"role": "user", "content": pair.prompt}], style)
    sums = []
    for response in (pair.positive, pair.negative):
        response_ids = tokenise_response(model.tokenizer, response)
        logprobs = replay_steered_logprobs(model, prompt.token_ids, response_ids, steerings)
        sums.append(logprobs.sum(axis=1, dtype=np.float64))
        on_text()
    return sums[0] - sums[1]
