"""Bugs caught here: positions not from the mask, rows of padding or after EOS kept, the last token lost, rows
mixed up when the batch shrinks or when waiting rows join it, what an ended row left in the cache read by the next one,
a cache that is dropped from the wrong end, a checkpoint projected on another one's reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import random_bank
from independent import independent_logprobs, independent_states
from tiny_models import CONFIGS, VOCAB
from traitscope.model import decode as decode_module
from traitscope.model.capture import ReaderBank
from traitscope.model.decode import Decoded, decode
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_scores
from traitscope.model.sampling import Sampling

MANY_EOS = tuple(range(2, 40))
TIE = 1e-4


def _prompts(n: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 17 tokens: longer than the tiny models' sliding window of 8."""
    random = np.random.default_rng(seed)
    lengths = [1, 17, 4, 9, 2, 13, 8, 6][:n]
    return [random.integers(45, VOCAB, size=length).tolist() for length in lengths]


def _decode(
    model: LanguageModel, prompts: Sequence[Sequence[int]], bank: ReaderBank, width: int, new_tokens: int = 12
) -> list[Decoded]:
    seeds = [0] * len(prompts)
    return decode(model, prompts, max_new_tokens=new_tokens, sampling=Sampling(), seeds=seeds, bank=bank, width=width)


def _ending_early(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> LanguageModel:
    """The model with end-of-sequence ids that some of its responses to ``prompts`` meet, at different steps."""
    endless = replace(model, eos_token_ids=frozenset())
    rows = decode(endless, prompts, max_new_tokens=12, sampling=Sampling(), seeds=[0] * len(prompts))
    ids = {row.response_ids[step] for row, step in zip(rows[::3], (2, 5, 8), strict=True)}
    return replace(model, eos_token_ids=frozenset(ids))


def assert_same_as_generate(model: LanguageModel, prompt: Sequence[int], found: Decoded, new_tokens: int) -> None:
    ids = torch.tensor([list(prompt)], device=model.device)
    expected = model.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=sorted(model.eos_token_ids),
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    if found.response_ids == expected:
        return
    pairs = enumerate(zip(found.response_ids, expected, strict=False))
    step = next(n for n, (ours, theirs) in pairs if ours != theirs)
    context = torch.tensor([[*prompt, *expected[:step]]], device=model.device)
    with torch.inference_mode():
        logits = model.module(input_ids=context).logits[0, -1]
    gap = float((logits[expected[step]] - logits[found.response_ids[step]]).abs())
    assert gap < TIE, f"token {step} differs from generate by {gap} in logit"


def assert_true_scores(model: LanguageModel, architecture: str, prompt: Sequence[int], row: Decoded, bank: ReaderBank):
    ids = [*prompt, *row.response_ids]
    assert row.trace is not None
    assert row.trace.n_positions == len(ids)
    states = independent_states(model.module, architecture, ids)
    assert list(states) == [checkpoint.name for checkpoint in model.anatomy.checkpoints]
    for checkpoint, state in enumerate(states.values()):
        norms = state.double().norm(dim=-1).numpy()
        np.testing.assert_allclose(row.trace.norms[checkpoint], norms, rtol=1e-4)
        for trait in range(len(bank.traits)):
            expected = (state.double() @ bank.readers[trait, checkpoint].double()).numpy()
            assert (np.abs(row.trace.scores[checkpoint, :, trait] - expected) <= 1e-4 * norms).all()
    logprobs = independent_logprobs(model.module, ids, len(prompt))
    np.testing.assert_allclose(row.logprobs, logprobs.numpy(), atol=2e-4)


def _assert_writes_sum_to_the_score(row: Decoded, bank: ReaderBank) -> None:
    assert row.trace is not None
    writes = row.trace.writes().astype(np.float64)
    for trait, readout in enumerate(bank.readouts):
        upto = writes[: readout + 1, :, trait]
        gap = np.abs(upto.sum(axis=0) - row.trace.scores[readout, :, trait])
        assert (gap <= 1e-5 * np.abs(upto).sum(axis=0)).all()


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_tokens_scores_and_writes_equal_independent_passes(
    tiny: Callable[..., LanguageModel], architecture: str, width: int
) -> None:
    prompts = _prompts(8)
    model = _ending_early(tiny(architecture), prompts)
    bank = random_bank(model)
    rows = _decode(model, prompts, bank, width)
    assert len({len(row.response_ids) for row in rows}) > 1
    for prompt, row in zip(prompts, rows, strict=True):
        assert not set(row.response_ids[:-1]) & model.eos_token_ids
        assert_same_as_generate(model, prompt, row, 12)
        assert_true_scores(model, architecture, prompt, row, bank)
        _assert_writes_sum_to_the_score(row, bank)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_the_order_of_a_batch_changes_nothing(tiny: Callable[..., LanguageModel], architecture: str) -> None:
    model = tiny(architecture, eos=MANY_EOS)
    bank = random_bank(model)
    prompts = _prompts(8)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    straight = _decode(model, prompts, bank, 8)
    permuted = _decode(model, [prompts[i] for i in order], bank, 8)
    for place, i in enumerate(order):
        assert_same_row(permuted[place], straight[i])


def assert_same_row(found: Decoded, expected: Decoded) -> None:
    assert found.response_ids == expected.response_ids
    assert found.trace is not None
    assert expected.trace is not None
    np.testing.assert_allclose(found.trace.scores, expected.trace.scores, atol=1e-4 * expected.trace.norms.max())
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_alone_and_in_any_batch(tiny: Callable[..., LanguageModel], data: st.DataObject) -> None:
    model = tiny(data.draw(st.sampled_from(["llama", "gemma3"])), eos=MANY_EOS)
    bank = random_bank(model)
    tokens = st.lists(st.integers(45, VOCAB - 1), min_size=1, max_size=14)
    prompts = data.draw(st.lists(tokens, min_size=1, max_size=6))
    new_tokens = data.draw(st.integers(1, 9))
    together = _decode(model, prompts, bank, len(prompts), new_tokens)
    for prompt, row in zip(prompts, together, strict=True):
        assert_same_row(row, _decode(model, [prompt], bank, 1, new_tokens)[0])


SIZES = {
    "_JOINING_SHARE": st.sampled_from([{}, {"cpu": 0.01}, {"cpu": 0.6}]),
    "_LEAVING_SHARE": st.sampled_from([0.01, 0.3, 0.6]),
    "_SPARE_SLOTS": st.integers(0, 5),
    "_WORTH_DROPPING": st.integers(1, 5),
    "_PREFILL_TOKENS": st.integers(1, 40),
    "_LEAST_CHUNK": st.integers(1, 5),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_alone_and_in_any_queue(tiny: Callable[..., LanguageModel], data: st.DataObject) -> None:
    model = tiny(data.draw(st.sampled_from(["llama", "gemma3", "gpt2", "bloom"])), eos=MANY_EOS)
    bank = random_bank(model)
    tokens = st.lists(st.integers(45, VOCAB - 1), min_size=1, max_size=14)
    prompts = data.draw(st.lists(tokens, min_size=2, max_size=9))
    limits = [data.draw(st.integers(1, 9)) for _ in prompts]
    sampling = data.draw(st.sampled_from([Sampling(), Sampling(1.0)]))
    look = data.draw(st.integers(1, 4))

    def queue(chosen: Sequence[int], width: int) -> list[Decoded]:
        return decode(
            model,
            [prompts[row] for row in chosen],
            max_new_tokens=[limits[row] for row in chosen],
            sampling=sampling,
            seeds=list(chosen),
            bank=bank,
            width=width,
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_module, "_steps_between_looks", lambda _device: look)
        if data.draw(st.booleans(), "recurrent layers"):
            patched.setattr(decode_module, "can_share", lambda _model: False)
        for name, sizes in SIZES.items():
            patched.setattr(decode_module, name, data.draw(sizes, name))
        together = queue(range(len(prompts)), data.draw(st.integers(1, len(prompts))))
    for number, row in enumerate(together):
        assert len(row.response_ids) <= limits[number]
        assert_same_row(row, queue([number], 1)[0])


def test_slots_of_rows_that_ended_are_given_to_waiting_ones(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", eos=())
    shapes: list[tuple[int, ...]] = []
    real = LanguageModel.forward
    monkeypatch.setattr(
        LanguageModel,
        "forward",
        lambda self, **inputs: shapes.append(tuple(inputs["input_ids"].shape)) or real(self, **inputs),
    )
    prompts = [[50 + row] * (9 - row) for row in range(5)]
    told: list[int] = []
    decode(
        model,
        prompts,
        max_new_tokens=[4, 1, 2, 1, 3],
        sampling=Sampling(),
        seeds=[0] * 5,
        width=2,
        on_row=lambda row, _decoded: told.append(row),
    )
    first, joining = [(2, 9), (2, 1)], [(1, 7), (2, 1), (2, 1), (1, 6), (2, 1), (1, 5)]
    assert shapes == [*first, *joining, (1, 1), (1, 1), (1, 1)]
    assert told == [1, 2, 0, 3, 4]


def test_what_a_broken_row_left_in_its_slot_harms_no_later_one(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama", eos=())
    table = model.module.model.embed_tokens.weight
    kept = table[99].clone()
    prompts = [[60, 99, 61, 62, 63, 64, 65], [70, 71, 72, 73], [80, 81], [90]]
    given = {"sampling": Sampling(), "seeds": [0] * 4, "bank": random_bank(model)}
    with torch.no_grad():
        table[99] = torch.inf
        try:
            rows = decode(model, prompts, max_new_tokens=[1, 9, 3, 3], width=2, **given)
        finally:
            table[99] = kept
    assert rows[0].trace is not None
    assert not np.isfinite(rows[0].trace.norms).all()
    for prompt, row in zip(prompts[1:], rows[1:], strict=True):
        assert_same_row(row, _decode(model, [prompt], given["bank"], 1, len(row.response_ids))[0])


def test_replay_gives_what_decode_gave(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("qwen3", eos=MANY_EOS)
    bank = random_bank(model)
    for prompt, row in zip(_prompts(4), _decode(model, _prompts(4), bank, 4), strict=True):
        assert_same_row(replay_scores(model, prompt, row.response_ids, bank), row)


def test_capture_changes_no_token(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama")
    plain = decode(model, _prompts(4), max_new_tokens=9, sampling=Sampling(), seeds=[0] * 4)
    with_capture = _decode(model, _prompts(4), random_bank(model), 4, 9)
    assert [row.response_ids for row in plain] == [row.response_ids for row in with_capture]
    assert all(row.trace is None for row in plain)


@pytest.mark.slow
def test_embedded_model_equals_independent_passes(embedded: LanguageModel) -> None:
    bank = random_bank(embedded, 4)
    texts = ["What is the capital of France?", "Hi", "Name three rivers and say where each of them ends."]
    prompts = [
        embedded.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
            "input_ids"
        ]
        for text in texts
    ]
    for width in (1, 3):
        for prompt, row in zip(prompts, _decode(embedded, prompts, bank, width, 20), strict=True):
            assert_same_as_generate(embedded, prompt, row, 20)
            assert_true_scores(embedded, "llama", prompt, row, bank)
            _assert_writes_sum_to_the_score(row, bank)
