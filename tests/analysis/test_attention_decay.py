"""Bugs caught here: the 1/n of a softmax reported as forgetting, a growing sink reported as forgetting, a half-life
that is not the planted one, heads that decay in noise because there are many of them, a sliding window taken for
attention that grows or decays."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.attention_decay import decay_rates, heads_decay, relative_attention

TOKENS = np.arange(3, 9)
QUERIES = np.arange(20, 70)


def _uniform(n: int, sink: np.ndarray) -> np.ndarray:
    """``[n, n]``: the share ``sink`` ``[n]`` on position 0, the rest split evenly."""
    pattern = np.tril(np.ones((n, n)))
    pattern[:, 0] = 0
    pattern /= np.maximum(pattern.sum(axis=1, keepdims=True), 1)
    pattern *= (1 - sink)[:, None]
    pattern[:, 0] = 1 - pattern.sum(axis=1)
    return pattern


def test_an_even_split_does_not_decay_though_its_weights_fall_and_its_sink_grows() -> None:
    pattern = np.stack([_uniform(70, np.zeros(70)), _uniform(70, np.linspace(0.1, 0.95, 70))])
    assert (pattern[:, QUERIES[-1], 5] < pattern[:, QUERIES[0], 5] / 3).all()
    relative = relative_attention(pattern, TOKENS, QUERIES)
    assert relative == pytest.approx(1)
    assert decay_rates(relative, QUERIES) == pytest.approx(0, abs=1e-9)


def test_a_planted_half_life_is_found() -> None:
    pattern = _uniform(70, np.full(70, 0.4))[None]
    falling = 0.3 * 2.0 ** (-(QUERIES[:, None] - TOKENS) / 12)
    pattern[:, QUERIES[:, None], TOKENS] *= falling
    pattern[:, QUERIES, 15] += 0.6 - pattern[:, QUERIES, 1:].sum(axis=-1)
    assert 1 / decay_rates(relative_attention(pattern, TOKENS, QUERIES), QUERIES) == pytest.approx(12)


def _windowed(pattern: np.ndarray, window: int) -> np.ndarray:
    """``pattern`` ``[n, n]`` where each query sees only ``window`` positions, its own among them; rows sum to 1."""
    behind = np.subtract.outer(np.arange(len(pattern)), np.arange(len(pattern)))
    seen = np.where(behind < window, pattern, 0)
    return seen / seen.sum(axis=1, keepdims=True)


LATE_TOKENS = np.arange(25, 30)


@pytest.mark.parametrize("window", [10, 35, 45, 67, 200])
def test_an_even_split_in_a_window_neither_grows_nor_decays(window: int) -> None:
    queries = np.arange(30, 70)
    relative = relative_attention(_windowed(_uniform(70, np.zeros(70)), window)[None], LATE_TOKENS, queries)
    in_view = queries - window < LATE_TOKENS.min()
    assert relative[:, in_view] == pytest.approx(1)
    assert np.isnan(relative[:, ~in_view]).all(), "some of the tokens are out of sight"
    rates = decay_rates(relative, queries)
    assert np.isnan(rates).all() if in_view.sum() < 8 else rates == pytest.approx(0, abs=1e-9)


def test_a_planted_half_life_is_found_in_a_window() -> None:
    queries = np.arange(30, 70)
    pattern = _windowed(_uniform(70, np.zeros(70)), 40)[None]
    pattern[:, queries[:, None], LATE_TOKENS] *= 0.5 * 2.0 ** (-queries[:, None] / 12)
    pattern[:, queries, queries] += 1 - pattern[:, queries].sum(axis=-1)
    assert 1 / decay_rates(relative_attention(pattern, LATE_TOKENS, queries), queries) == pytest.approx(12)


def test_a_weight_that_is_stored_as_zero_is_no_window() -> None:
    pattern = np.stack([_uniform(70, np.zeros(70)), _uniform(70, np.full(70, 0.5))])
    pattern[0, 40, :20] = 0
    pattern[1, 30, :20] = 0
    assert relative_attention(pattern, np.arange(30, 36), np.arange(40, 70))[1] == pytest.approx(1)


def test_few_queries_in_a_window_of_a_long_response_are_all_read() -> None:
    relative = np.full((1, 5000), np.nan)
    relative[:, :20] = 2.0 ** (-np.arange(20) / 5)
    assert decay_rates(relative, np.arange(5000)) == pytest.approx(1 / 5)


def test_all_on_the_first_position_and_nothing_behind_a_window_are_not_read() -> None:
    parked = relative_attention(_uniform(70, np.full(70, 0.9999))[None], TOKENS, QUERIES)
    assert np.isnan(parked).all()
    windowed = np.ones((1, len(QUERIES)))
    windowed[:, 5:] = 0
    assert np.isnan(decay_rates(windowed, QUERIES)).all()
    windowed[:, 5:10] = 1
    assert decay_rates(windowed, QUERIES) == pytest.approx(0)


def test_tokens_that_some_query_has_not_read_yet_are_refused() -> None:
    pattern = _uniform(70, np.zeros(70))[None]
    for tokens in ([0, 4], [25]):
        with pytest.raises(ValueError, match="before all queries"):
            relative_attention(pattern, np.array(tokens), QUERIES)


def _rates(generator: np.random.Generator, n_prompts: int, n_heads: int) -> np.ndarray:
    """Of heads whose relative attention wanders (a random walk, as topics come and go) but has no trend."""
    walks = generator.normal(size=(n_prompts * n_heads, 30)).cumsum(axis=1) / 5
    return decay_rates(2.0**walks, np.arange(30)).reshape(n_prompts, n_heads)


@pytest.mark.parametrize("n_prompts", [6, 12])
def test_no_head_of_nine_decays_in_noise(n_prompts: int) -> None:
    generator = np.random.default_rng(1)
    any_found = []
    for _ in range(200):
        heads = heads_decay(_rates(generator, n_prompts, 9))
        any_found.append(any(head.verdict in ("decays", "grows") for head in heads))
    assert np.mean(any_found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_heads_that_decay_are_found_among_others_with_their_half_life() -> None:
    generator = np.random.default_rng(2)
    rates = _rates(generator, 10, 9) * 0.2
    rates[:, 4] += 1 / 15
    rates[:, 6] -= 1 / 15
    heads = heads_decay(rates)
    assert [head.verdict for head in heads].count("no decay") == 7
    assert heads[6].verdict == "grows"
    assert heads[6].half_life is None
    assert heads[4].verdict == "decays"
    assert heads[4].half_life == pytest.approx(15, rel=0.25)
    assert heads[4].shortest_half_life is not None
    assert heads[4].longest_half_life is not None
    assert heads[4].shortest_half_life < heads[4].half_life < heads[4].longest_half_life


def test_five_prompts_say_nothing_and_unreadable_ones_do_not_count() -> None:
    rates = np.full((7, 2), 0.1)
    rates[:2, 1] = np.nan
    first, second = heads_decay(rates)
    assert (first.verdict, first.n_prompts) == ("decays", 7)
    assert (second.verdict, second.n_prompts, second.low) == ("inconclusive", 5, None)
