"""Bugs caught here: a CDF in another order or over other tokens than the sampler's; ties that only rounding decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from traitscope.model.sampling import Sampling, TokenChooser
from traitscope.verify.asked import Asked
from traitscope.verify.choices import argmax_gaps, draw_distances, row_uniforms_again

EPS = float(torch.finfo(torch.float32).eps)


def asked(temperature: float, top_p: float, top_k: int) -> Asked:
    return Asked("id", "label", (1,), None, 50, temperature, top_p, top_k, 7, (), (), {}, None)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("top_k", [0, 1, 20])
def test_what_the_sampler_draws_lies_in_its_interval(temperature: float, top_p: float, top_k: int) -> None:
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 3
    chooser = TokenChooser(Sampling(temperature, top_p, top_k), [7], 200, torch.device("cpu"))
    row = torch.tensor([0])
    tokens = np.array([int(chooser.choose(logits[step : step + 1], row, row + step)[0]) for step in range(200)])
    exact, settings, uniforms = logits.double().numpy(), asked(temperature, top_p, top_k), row_uniforms_again(7, 200)
    assert draw_distances(exact, tokens, uniforms, settings, EPS).max() < 1e-6
    if top_k != 1 and top_p > 0.3:  # otherwise many draws leave no choice
        others = draw_distances(exact, tokens, row_uniforms_again(8, 200), settings, EPS)
        assert (others > 0.01).mean() > 0.3


def test_a_token_that_no_cut_keeps_is_as_far_as_can_be() -> None:
    logits = np.array([[5.0, 4.0, 0.0, -3.0]])
    assert draw_distances(logits, np.array([3]), np.array([0.999]), asked(1.0, 1.0, 2), EPS) == [1.0]


def test_a_tie_at_the_cut_may_fall_to_either_side() -> None:
    """In bfloat16 many logits are equal; which of two near ones is the 20th is for rounding to decide."""
    logits = np.array([[3.0, 2.0, 2.0 - 1e-7, -5.0]])
    for token, uniform in ((1, 0.5), (1, 0.7), (2, 0.9)):
        distance = draw_distances(logits, np.array([token]), np.array([uniform]), asked(1.0, 1.0, 2), EPS)
        assert distance[0] < 0.3
    only_two = draw_distances(logits, np.array([2]), np.array([0.99]), asked(1.0, 1.0, 2), 0.0)
    assert only_two == [1.0]


def test_gaps_are_in_standard_deviations_of_the_logits() -> None:
    logits = np.array([[0.0, 2.0], [10.0, 30.0]])
    np.testing.assert_allclose(argmax_gaps(logits, np.array([0, 1])), [2.0, 0.0])
    np.testing.assert_allclose(argmax_gaps(10 * logits, np.array([0, 0])), [2.0, 2.0])
