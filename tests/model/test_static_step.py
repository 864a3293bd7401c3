"""Bugs caught here: a compiled step that reads or writes other slots than the ordinary one, mixes rows up when they are
refilled, keeps something of an earlier batch, captures another checkpoint's state, or is used although it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from conftest import random_bank
from test_decode import MANY_EOS, assert_same_row
from tiny_models import VOCAB
from traitscope.model import static_step as static_step_module
from traitscope.model.capture import ReaderBank
from traitscope.model.decode import Decoded, decode
from traitscope.model.kv_cache import FixedLayer
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.model.static_step import StaticSizes, StaticStep

BACKEND = "aot_eager"  # traces and functionalises as inductor does, and needs no compiler of C++


@pytest.fixture
def compiling(tiny: Callable[..., LanguageModel]) -> Iterator[Callable[..., LanguageModel]]:
    """``tiny``, whose steps are compiled."""
    made: list[LanguageModel] = []

    def make(architecture: str, **options: Any) -> LanguageModel:
        model = tiny(architecture, **options)
        model.static_steps.wanted, model.static_steps.backend = True, BACKEND
        made.append(model)
        return model

    yield make
    for model in made:
        model.static_steps.give_up("the test is over")


def _ragged(seed: int, n_rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 18, (n_rows,), generator=generator).tolist()
    limits = torch.randint(1, 10, (n_rows,), generator=generator).tolist()
    prompts = [torch.randint(45, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return {"prompts": prompts, "max_new_tokens": limits, "seeds": list(range(n_rows)), "width": 3}


def _decoded(model: LanguageModel, bank: ReaderBank | None, sampling: Sampling, **asked: Any) -> list[Decoded]:
    return decode(model, bank=bank, sampling=sampling, **asked)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_two_queues_with_refill_equal_ordinary_steps(
    compiling: Callable[..., LanguageModel], architecture: str
) -> None:
    model = compiling(architecture, eos=MANY_EOS)
    bank = random_bank(model)
    for seed, sampling in ((0, Sampling()), (1, Sampling(1.0))):
        model.static_steps.wanted = True
        found = _decoded(model, bank, sampling, **_ragged(seed, 8))
        assert model.static_steps.kept, "the step was not compiled"
        model.static_steps.wanted = False
        for row, expected in zip(found, _decoded(model, bank, sampling, **_ragged(seed, 8)), strict=True):
            assert_same_row(row, expected)


def test_a_step_is_compiled_once_for_each_capture_and_sizes(
    compiling: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fits is not enough: numbers must not depend on the batches that a process ran before."""
    model = compiling("llama", eos=())
    bank = random_bank(model)
    built: list[int] = []
    real = StaticStep.build
    monkeypatch.setattr(StaticStep, "build", lambda self, *args: built.append(self.sizes.width) or real(self, *args))
    sizes = StaticSizes(5, 60)
    for n_rows in (8, 2, 5):
        _decoded(model, bank, Sampling(), static_sizes=sizes, **_ragged(n_rows, n_rows))
        _decoded(model, None, Sampling(), static_sizes=sizes, **_ragged(n_rows, n_rows))
    assert built == [5, 5]
    _decoded(model, bank, Sampling(), static_sizes=StaticSizes(3, 60), **_ragged(3, 3))
    assert built == [5, 5, 3]


def test_a_step_with_more_slots_than_may_be_in_flight_leaves_them_free(
    compiling: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the width that was narrowed when memory ran out grows again."""
    model = compiling("llama", eos=())
    read: list[int] = []
    real = LanguageModel.forward
    monkeypatch.setattr(
        LanguageModel,
        "forward",
        lambda self, **inputs: read.append(inputs["input_ids"].shape[0]) or real(self, **inputs),
    )
    sizes = StaticSizes(7, 60)
    _decoded(model, random_bank(model), Sampling(), static_sizes=sizes, **_ragged(0, 10))
    assert model.static_steps.kept[0].sizes == sizes
    assert max(read) == 3


def test_a_broken_row_harms_no_later_batch(compiling: Callable[..., LanguageModel]) -> None:
    """What it leaves in the cache is masked, but not a number times zero is none either."""
    model = compiling("llama", eos=())
    bank = random_bank(model)
    table = model.module.model.embed_tokens.weight
    kept = table[99].clone()
    asked = {"max_new_tokens": 9, "seeds": [0, 0], "static_sizes": StaticSizes(2, 60)}
    with torch.no_grad():
        table[99] = torch.inf
        try:
            _decoded(model, bank, Sampling(), prompts=[[60, 99, 61, 62, 63], [70, 71]], **asked)
        finally:
            table[99] = kept
    clean = [[80, 81], [90]]
    found = _decoded(model, bank, Sampling(), prompts=clean, **asked)
    model.static_steps.wanted = False
    for row, expected in zip(found, _decoded(model, bank, Sampling(), prompts=clean, **asked), strict=True):
        assert_same_row(row, expected)


def test_a_full_cache_moves_its_rows_to_the_front(
    compiling: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiling("gemma3", eos=())
    monkeypatch.setattr(static_step_module, "_CAPACITY_STEP", 1)
    moved: list[int] = []
    real = FixedLayer.drop_front
    monkeypatch.setattr(FixedLayer, "drop_front", lambda self, n, length: moved.append(n) or real(self, n, length))
    bank = random_bank(model)
    found = _decoded(model, bank, Sampling(), **_ragged(4, 12))
    assert moved
    model.static_steps.wanted = False
    for row, expected in zip(found, _decoded(model, bank, Sampling(), **_ragged(4, 12)), strict=True):
        assert_same_row(row, expected)


def test_memory_that_runs_out_while_compiling_is_not_the_compilers_fault(
    compiling: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiling("llama", eos=())

    def full(*_args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(StaticStep, "build", full)
    with pytest.raises(torch.OutOfMemoryError):
        _decoded(model, random_bank(model), Sampling(), **_ragged(0, 4))
    assert (model.static_steps.wanted, model.static_steps.kept) == (True, [])


@pytest.mark.parametrize("wrong", ["logits", "scores", "an exception"])
def test_a_compiled_step_that_is_wrong_is_not_used(
    compiling: Callable[..., LanguageModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    model = compiling("llama", eos=MANY_EOS)
    bank = random_bank(model)
    real = StaticStep._forward

    def faulty(self: StaticStep) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, columns = real(self)
        assert columns is not None
        if wrong == "an exception":
            raise ValueError("no such operation")
        if wrong == "logits":
            return 1.01 * logits, columns
        return logits, 1.01 * columns

    with monkeypatch.context() as patched:
        patched.setattr(StaticStep, "_forward", faulty)
        found = _decoded(model, bank, Sampling(), **_ragged(0, 6))
    assert not model.static_steps.wanted
    assert "decode steps are not compiled: " in caplog.text
    assert ("Observed exception" if wrong == "an exception" else f"{wrong} of the compiled step") in caplog.text
    for row, expected in zip(found, _decoded(model, bank, Sampling(), **_ragged(0, 6)), strict=True):
        assert_same_row(row, expected)
