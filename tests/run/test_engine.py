"""Bugs caught here: one bad row that takes its batch with it, memory errors that end the night, NaN stored as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from random_traits import random_vectors
from traitscope.errors import DeviceFailedError
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.run import engine as engine_module
from traitscope.run.engine import Engine, GenerationTask
from traitscope.suite.rendering import Rendered
from traitscope.traits.vectors import TraitVectors

POISON = 99


def _vectors(model: LanguageModel) -> list[TraitVectors]:
    return [random_vectors(model, number) for number in range(3)]


def _tasks(n: int, poisoned: Sequence[int] = ()) -> list[GenerationTask]:
    tasks = []
    for number in range(n):
        ids = (60, 61 + number, POISON if number in poisoned else 62)
        prompt = Rendered(ids, ("user",) * 3, (0,) * 3)
        tasks.append(GenerationTask(f"g{number}", prompt, None, 5, Sampling(), None, frozenset({"trait0"}), (0, 1, 2)))
    return tasks


def _failing_decode(error: Exception, widest: int | None = None) -> Callable[..., Any]:
    real = engine_module.decode

    def decode(model: LanguageModel, prompts: Sequence[Sequence[int]], **kwargs: Any) -> Any:
        if widest is not None and kwargs["width"] > widest:
            raise error
        if widest is None and any(POISON in prompt for prompt in prompts):
            raise error
        return real(model, prompts, **kwargs)

    return decode


def test_a_row_that_raises_fails_alone(tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    tasks = _tasks(8, poisoned=[2, 7])
    monkeypatch.setattr(engine_module, "decode", _failing_decode(ValueError("bad\nrow")))
    outcomes = Engine(model, _vectors(model), width=8).run_batch(tasks)
    assert [outcome.generation for outcome in outcomes] == [task.id for task in tasks]
    assert [outcome.status == "failed" for outcome in outcomes] == [n in (2, 7) for n in range(8)]
    assert outcomes[2].error == "ValueError: bad"


def test_memory_that_runs_out_narrows_this_and_later_batches(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    widths: list[int] = []
    failing = _failing_decode(torch.OutOfMemoryError("no room"), widest=2)

    def decode(model: LanguageModel, prompts: Sequence[Sequence[int]], **kwargs: Any) -> Any:
        widths.append(kwargs["width"])
        return failing(model, prompts, **kwargs)

    monkeypatch.setattr(engine_module, "decode", decode)
    engine = Engine(model, _vectors(model), width=8)
    assert {outcome.status for outcome in engine.run_batch(_tasks(8))} == {"ok"}
    widths.clear()
    assert {outcome.status for outcome in engine.run_batch(_tasks(6))} == {"ok"}
    assert widths == [2]


def test_rows_that_ended_before_a_failure_are_not_generated_again(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", eos=())
    tasks = [replace(task, max_new_tokens=2 + number) for number, task in enumerate(_tasks(6))]
    asked: list[int] = []
    real_decode, real_forward = engine_module.decode, LanguageModel.forward

    def decode(model: LanguageModel, prompts: Sequence[Sequence[int]], **kwargs: Any) -> Any:
        asked.append(len(prompts))
        passes = 0

        def forward(self: LanguageModel, **inputs: Any) -> Any:
            nonlocal passes
            passes += 1
            if len(asked) == 1 and passes == 7:
                raise ValueError("in the middle")
            return real_forward(self, **inputs)

        with monkeypatch.context() as patched:
            patched.setattr(LanguageModel, "forward", forward)
            return real_decode(model, prompts, **kwargs)

    monkeypatch.setattr(engine_module, "decode", decode)
    outcomes = Engine(model, _vectors(model), width=2).run_batch(tasks)
    assert [outcome.status for outcome in outcomes] == ["ok"] * 6
    assert [len(o.captured.logprobs) for o in outcomes if o.captured] == [2, 3, 4, 5, 6, 7]
    assert asked == [6, 2, 2]


def test_one_row_that_never_fits_leaves_the_width_to_the_others(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    widths: list[int] = []
    real = engine_module.decode

    def decode(model: LanguageModel, prompts: Sequence[Sequence[int]], **kwargs: Any) -> Any:
        widths.append(kwargs["width"])
        if any(POISON in prompt for prompt in prompts):
            raise torch.OutOfMemoryError("no room")
        return real(model, prompts, **kwargs)

    monkeypatch.setattr(engine_module, "decode", decode)
    engine = Engine(model, _vectors(model), width=8)
    outcomes = engine.run_batch(_tasks(8, poisoned=[3]))
    assert [outcome.status == "failed" for outcome in outcomes] == [n == 3 for n in range(8)]
    widths.clear()
    engine.run_batch(_tasks(8))
    assert widths == [8]


def test_a_device_that_failed_is_no_bad_row(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    monkeypatch.setattr(engine_module, "decode", _failing_decode(torch.AcceleratorError("illegal access"), widest=0))
    with pytest.raises(DeviceFailedError, match="illegal access"):
        Engine(model, _vectors(model), width=8).run_batch(_tasks(2))


def test_states_that_are_not_finite_fail_their_row_only(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("gpt2")
    table = model.module.transformer.wte.weight
    kept = table[POISON].clone()
    with torch.no_grad():
        table[POISON] = torch.inf
    try:
        outcomes = Engine(model, _vectors(model), width=8).run_batch(_tasks(3, poisoned=[1]))
    finally:
        with torch.no_grad():
            table[POISON] = kept
    assert outcomes[1].status == "failed"
    assert "resid_pre.0, position 2, is not finite" in str(outcomes[1].error)


def test_given_responses_are_replayed(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama")
    prompt = Rendered((60, 61), ("user",) * 2, (0,) * 2)
    task = GenerationTask("g", prompt, (70, 71, 72), 0, Sampling(), None, frozenset({"trait0"}), (0,))
    outcome = Engine(model, _vectors(model), width=8).run_batch([task])[0]
    assert outcome.captured is not None
    assert outcome.captured.tokens.token_id == [60, 61, 70, 71, 72]
    assert outcome.captured.trace.n_positions == 5
    assert len(outcome.captured.logprobs) == 3
