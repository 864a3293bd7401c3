"""Bugs caught here: a prefix of another prompt, a prefix token recorded twice or not at all, padding between prefix
and rest under a sliding window, samples of one prompt that differ from runs of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import random_bank
from test_decode import MANY_EOS, assert_same_as_generate, assert_same_row, assert_true_scores
from tiny_models import CONFIGS, VOCAB
from traitscope.model import decode as decode_module
from traitscope.model.decode import RunPrefix, decode
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.model.sharing import common_prefix, shared_by

TOKENS = st.lists(st.integers(45, VOCAB - 1), min_size=1, max_size=14)


def _prompts_of_one_beginning() -> list[list[int]]:
    """Rests longer and shorter than the prefix of 13 tokens and the sliding window of 8, one prompt twice."""
    random = np.random.default_rng(1)
    prefix, *rests = (random.integers(45, VOCAB, size=n).tolist() for n in (13, 1, 17, 4, 9, 2, 13))
    prompts = [[*prefix, *rest] for rest in rests]
    return [*prompts, prompts[1], prompts[3]]


def _plain(model: LanguageModel, prompts: Sequence[Sequence[int]], **more: object):
    arguments = {"max_new_tokens": 12, "sampling": Sampling(), "seeds": [0] * len(prompts), **more}
    return decode(model, prompts, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_rows_behind_a_shared_prefix_equal_independent_passes(
    tiny: Callable[..., LanguageModel], architecture: str
) -> None:
    model = tiny(architecture)
    bank = random_bank(model)
    prompts = _prompts_of_one_beginning()
    assert shared_by(prompts).n_prefix >= 13
    for prompt, row in zip(prompts, _plain(model, prompts, bank=bank), strict=True):
        assert_same_as_generate(model, prompt, row, 12)
        assert_true_scores(model, architecture, prompt, row, bank)


def test_a_shared_prefix_and_a_repeated_prompt_are_read_once(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    prompts = _prompts_of_one_beginning()
    shapes: list[tuple[int, ...]] = []
    real = LanguageModel.forward
    monkeypatch.setattr(
        LanguageModel,
        "forward",
        lambda self, **inputs: shapes.append(tuple(inputs["input_ids"].shape)) or real(self, **inputs),
    )
    run_prefix = RunPrefix(common_prefix(prompts))
    first = _plain(model, prompts, max_new_tokens=1, run_prefix=run_prefix)
    assert shapes == [(1, 13), (6, 17), (8, 1)]
    shapes.clear()
    again = _plain(model, prompts, max_new_tokens=1, run_prefix=run_prefix)
    assert shapes == [(6, 17), (8, 1)]
    assert [row.response_ids for row in first] == [row.response_ids for row in again]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_alone_and_with_whatever_it_shares(
    tiny: Callable[..., LanguageModel], data: st.DataObject
) -> None:
    model = tiny(data.draw(st.sampled_from(["llama", "gemma3", "gpt2"])), eos=MANY_EOS)
    bank = random_bank(model)
    prefix = data.draw(st.lists(st.integers(45, VOCAB - 1), min_size=3, max_size=14))
    prompts = data.draw(st.lists(TOKENS.map(lambda rest: [*prefix, *rest]), min_size=2, max_size=5))
    prompts += data.draw(st.lists(st.sampled_from(prompts), max_size=3))
    run_prefix = RunPrefix(common_prefix(prompts)[: data.draw(st.integers(0, 12))])
    given = {"bank": bank, "max_new_tokens": 6}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("traitscope.model.sharing._LEAST_SAVED_TOKENS", 1)
        together = [_plain(model, prompts, run_prefix=run_prefix, **given) for _ in range(2)][1]
    for prompt, row in zip(prompts, together, strict=True):
        assert_same_row(row, _plain(model, [prompt], **given)[0])


def test_samples_of_one_prompt_equal_runs_of_their_own(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("gemma3", eos=MANY_EOS)
    prompt, seeds = list(range(60, 80)), [11, 12, 13, 14]
    given = {"bank": random_bank(model), "sampling": Sampling(1.0)}
    rows = _plain(model, [prompt] * 4, seeds=seeds, **given)
    assert len({tuple(row.response_ids) for row in rows}) > 1
    for seed, row in zip(seeds, rows, strict=True):
        assert_same_row(row, _plain(model, [prompt], seeds=[seed], **given)[0])


def test_a_cache_that_cannot_be_shifted_shares_nothing(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    prompts = _prompts_of_one_beginning()
    shared = _plain(model, prompts, bank=random_bank(model))
    monkeypatch.setattr(decode_module, "can_share", lambda _model: False)
    for row, expected in zip(_plain(model, prompts, bank=random_bank(model)), shared, strict=True):
        assert_same_row(row, expected)


@given(st.lists(TOKENS, min_size=1, max_size=6))
def test_a_common_prefix_leaves_every_prompt_a_token(prompts: list[list[int]]) -> None:
    prefix = list(common_prefix(prompts))
    assert all(prompt[: len(prefix)] == prefix and len(prompt) > len(prefix) for prompt in prompts)
    longer = len(prefix) + 1
    assert min(map(len, prompts)) == longer or len({tuple(prompt[:longer]) for prompt in prompts}) > 1
