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
from traitscope.model.capture import ReaderBank
from traitscope.model.decode import Decoded, decode
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.model.static_step import StaticStep

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
        model.static_steps.wanted, model.static_steps.kept = False, None


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
        assert model.static_steps.kept is not None, "the step was not compiled"
        model.static_steps.wanted = False
        for row, expected in zip(found, _decoded(model, bank, sampling, **_ragged(seed, 8)), strict=True):
            assert_same_row(row, expected)


def test_a_step_is_compiled_once_for_all_that_fits_it(
    compiling: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiling("llama", eos=())
    bank = random_bank(model)
    built: list[int] = []
    real = StaticStep.build
    monkeypatch.setattr(StaticStep, "build", lambda self, *args: built.append(self.width) or real(self, *args))
    for n_rows in (8, 2, 5):
        _decoded(model, bank, Sampling(), **_ragged(n_rows, n_rows))
    assert built == [3]
    _decoded(model, random_bank(model), Sampling(), **_ragged(3, 3))
    assert built == [3, 3], "another bank is another capture"


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
