"""Bugs caught here: a slice counted from the prompt, a fit of two equal poles, pairs whose poles are swapped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tiny_models import SCENARIOS
from traitscope.errors import InputError, RunError
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_pooled
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.traits.pooling import PooledPairs, Pooling, pool_pairs
from traitscope.traits.scenarios import load_scenarios

STYLE = PromptStyle(None, {}, BASE_TEMPLATE)
PAIRS = load_scenarios(SCENARIOS).splits.train


def _pooled(model: LanguageModel, pooling: str) -> PooledPairs:
    return pool_pairs(model, PAIRS, STYLE, lambda: None, Pooling.parse(pooling))


@pytest.mark.parametrize(
    ("pooling", "kept"),
    [
        ("response", slice(None)),
        ("response:0:3", slice(0, 3)),
        ("response:2:", slice(2, None)),
        ("response:-4:-1", slice(-4, -1)),
    ],
)
def test_pairs_are_pooled_over_these_tokens_of_their_response(
    pooling: str, kept: slice, tiny: Callable[..., LanguageModel]
) -> None:
    model = tiny("llama")
    pairs = _pooled(model, pooling)
    for number in (0, 5):
        for states, pole in ((pairs.positive, "positive"), (pairs.negative, "negative")):
            prompt = render(model.tokenizer, [{"role": "user", "content": PAIRS[number].prompt}], STYLE).token_ids
            response = tokenise_response(model.tokenizer, getattr(PAIRS[number], pole))
            positions = np.arange(len(prompt), len(prompt) + len(response))[kept]
            ids = [*prompt, *response]
            expected = replay_pooled(model, ids, np.isin(np.arange(len(ids)), positions))
            np.testing.assert_allclose(states[number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["prompt_last", "response:0:1"])
def test_poles_that_read_the_same_tokens_are_refused(pooling: str, tiny: Callable[..., LanguageModel]) -> None:
    same_first = [pair.model_copy(update={"negative": pair.positive[0] + pair.negative}) for pair in PAIRS]
    with pytest.raises(RunError, match=f"pooling {pooling} reads the same tokens at both poles"):
        pool_pairs(tiny("llama"), same_first, STYLE, lambda: None, Pooling.parse(pooling))


def test_a_slice_beyond_a_response_names_it(tiny: Callable[..., LanguageModel]) -> None:
    with pytest.raises(RunError, match=r"the positive response to 'Is the dog here\?' has no content tokens"):
        _pooled(tiny("llama"), "response:200:")


def test_prompt_last_is_the_last_token_of_the_prompt() -> None:
    from traitscope.suite.tokens import TokenRows

    rows = TokenRows([5, 6, 7], list("abc"), ["prompt", "prompt", "response"], [None] * 3, [None] * 3, [None] * 3, [])
    assert Pooling.parse("prompt_last").positions(rows).tolist() == [1]


@pytest.mark.parametrize("text", ["response", "prompt_last", "response:0:10", "response:-5:", "response::-1"])
def test_poolings_are_written_as_they_are_read(text: str) -> None:
    assert str(Pooling.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "responses", "prompt_last:0:1", "response:", "response:0:10:2", "response:3:3", "response::0"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="pooling"):
        Pooling.parse(text)
