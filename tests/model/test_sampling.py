"""Bugs caught here: a biased sampler, a filtered token sampled, randomness that depends on the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling, TokenChooser, inverse_cdf, row_seed, row_uniforms

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0])


def _expected(sampling: Sampling) -> np.ndarray:
    """Probabilities of the settings, written out again: temperature, then top-k, then top-p."""
    logits = LOGITS.double().numpy() / sampling.temperature
    if sampling.top_k:
        logits[np.argsort(-logits)[sampling.top_k :]] = -np.inf
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= sampling.top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.7, top_k=4), Sampling(1.3, top_p=0.8)],
    ids=["temperature 1", "top-k 4", "top-p 0.8"],
)
def test_frequencies_pass_a_chi_square_test(sampling: Sampling) -> None:
    n_rows = 20_000
    seeds = [row_seed(0, (1, 2, 3), sample) for sample in range(n_rows)]
    chooser = TokenChooser(sampling, seeds, 1, torch.device("cpu"))
    tokens, logprobs = chooser.choose(
        LOGITS.expand(n_rows, -1), torch.arange(n_rows), torch.zeros(n_rows, dtype=torch.long)
    )
    counts = np.bincount(tokens.numpy(), minlength=len(LOGITS))
    expected = _expected(sampling)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert chisquare(counts[kept], expected[kept] * n_rows).pvalue > 0.001
    np.testing.assert_allclose(logprobs, LOGITS.log_softmax(-1)[tokens], atol=1e-6)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 6))
def test_a_token_of_probability_zero_is_never_chosen(uniform: float, survivor: int) -> None:
    logits = torch.full((1, 7), -torch.inf)
    logits[0, survivor] = 0.0
    assert inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64)).item() == survivor


def test_the_largest_uniform_stays_within_the_vocabulary() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert inverse_cdf(logits, torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)).item() == 1


def test_a_row_draws_its_own_numbers_whatever_the_length() -> None:
    seed = row_seed(0, (5, 6), 0)
    assert (row_uniforms(seed, 50)[:10] == row_uniforms(seed, 10)).all()
    others = {row_seed(1, (5, 6), 0), row_seed(0, (5, 6), 1), row_seed(0, (56,), 0), row_seed(0, (5, 7), 0)}
    assert len({seed, *others}) == 5


def test_the_same_prompt_samples_the_same_alone_and_in_a_batch_of_eight(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama")
    prompts = [[50 + n] * (3 + n) for n in range(8)]
    seeds = [row_seed(7, prompt, 0) for prompt in prompts]
    sampling = Sampling(1.2, top_p=0.9)
    together = decode(model, prompts, max_new_tokens=20, sampling=sampling, seeds=seeds)
    for prompt, seed, row in zip(prompts, seeds, together, strict=True):
        alone = decode(model, [prompt], max_new_tokens=20, sampling=sampling, seeds=[seed])
        assert alone[0].response_ids == row.response_ids
    assert len({tuple(row.response_ids) for row in together}) == 8
