"""Bugs caught here: a width that leaves a small last batch, an estimate that forgets shared tokens or context, a pace
that is measured again at every run, a prediction that the run itself contradicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_bank
from random_traits import random_vectors
from tiny_models import VOCAB
from traitscope.captures.opened_writes import MOST_GENERATIONS
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.run import pace as pace_module
from traitscope.run.batching import make_batches, run_prefix, turns
from traitscope.run.engine import Engine, GenerationTask
from traitscope.run.estimate import Setting, estimate, generation_seconds
from traitscope.run.pace import Pace, measured_pace, remember_pace, remembered_pace
from traitscope.suite.plan import OpenLayers
from traitscope.suite.rendering import Rendered

CPU = torch.device("cpu")


def _pace(**changes: Any) -> Pace:
    given: dict[str, Any] = {
        "widths": (1, 2, 4, 8, 16),
        "step_seconds": (1.0, 1.1, 1.2, 1.4, 2.8),
        "context_seconds": 0.0,
        "prefill_seconds": 0.1,
        "prefill_context_seconds": 0.0,
        "loading_seconds": 5.0,
        "resident_bytes": 1000,
    }
    return Pace(**{**given, **changes})


def _task(number: int, prompt: Sequence[int], new_tokens: int = 10) -> GenerationTask:
    ids = tuple(prompt)
    rendered = Rendered(ids, (None,) * len(ids), (None,) * len(ids))
    return GenerationTask(str(number), rendered, None, new_tokens, Sampling(), None, frozenset({"trait0"}), (0, 1, 2))


@given(n_rows=st.integers(1, 100), most=st.integers(1, 40))
def test_the_width_is_the_smallest_that_gets_the_rows_done_about_as_soon_as_any(n_rows: int, most: int) -> None:
    pace = _pace()

    def seconds(width: int) -> float:
        (batch,) = make_batches([_task(n, [1]) for n in range(n_rows)])
        return sum(pace.step(len(turn), 0) for turn in turns(batch, width))

    width = pace.best_width(n_rows, most)
    assert 1 <= width <= most
    assert seconds(width) <= 1.02 * min(seconds(w) for w in (1, 2, 4, 8, 16, most) if w <= most) + 1e-9


def test_eight_rows_are_the_knee_where_sixteen_take_twice_as_long() -> None:
    assert _pace().best_width(64, 16) == 8


@pytest.mark.parametrize(
    ("steps", "plausible"),
    [
        ((0.043, 0.045, 0.049), True),
        ((0.22, 0.063, 2.34), False),  # as a busy machine gave it
        ((0.2, 0.04, 0.04), False),
        ((0.1, 0.19, 0.37), True),
        ((0.001, 0.004, 0.001), True),  # noise of a tiny model
    ],
)
def test_a_pace_that_a_busy_machine_gave_is_known(steps: tuple[float, ...], plausible: bool) -> None:
    assert _pace(widths=(1, 2, 4), step_seconds=steps).is_plausible is plausible


def test_context_makes_steps_and_prefill_longer() -> None:
    pace = _pace(context_seconds=0.001, prefill_context_seconds=0.0001)
    assert pace.step(4, 132) == pytest.approx(1.2 + 4 * 100 * 0.001)
    assert pace.step(3, 0) == pytest.approx(1.15)
    assert pace.prefill(2, 100, 50) == pytest.approx(200 * (0.1 + 100 * 0.0001))


def test_shared_tokens_are_paid_once_in_the_estimate() -> None:
    prefix = list(range(40))
    tasks = [_task(n, [*prefix, 100 + n, 7]) for n in range(4)]
    seconds = generation_seconds(_pace(), tasks, make_batches(tasks), 3)
    prefix_once, rests, steps = 40 * 0.1, 1.2, 10 * 1.2  # the rests are so short that they cost a step
    assert seconds == pytest.approx(prefix_once + rests + steps)


def test_the_estimate_counts_the_tokens_that_the_forward_passes_then_read(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama", eos=())
    prefix = list(range(60, 100))
    tasks = [_task(n, [*prefix, *range(110, 112 + 2 * n)], 6) for n in range(4)]
    tasks.append(tasks[0])
    per_token = _pace(widths=(1, 5), step_seconds=(1.0, 5.0), prefill_seconds=1.0)
    predicted = generation_seconds(per_token, tasks, [tuple(tasks)], 3)
    before = model.meter.work()
    vectors = [random_vectors(model, number) for number in range(3)]
    Engine(model, vectors, width=5, run_prefix=run_prefix(tasks)).run_batch(tasks)
    work = model.meter.work() - before
    assert work.tokens == predicted
    assert work.passes == 1 + 1 + 6


def test_a_pace_is_measured_remembered_and_used(
    tiny: Callable[..., LanguageModel], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("gemma3")
    monkeypatch.setattr(pace_module, "_LEAST_GAIN", 0.0)
    pace = measured_pace(model, random_bank(model), [60, 61, 62], most_rows=8, loading_seconds=3.0)
    assert pace.widths == (1, 2, 4, 8)
    assert min(pace.step_seconds) > 0
    assert pace.prefill_seconds > 0
    assert remembered_pace("f", CPU, torch.float32) is None
    remember_pace(pace, "f", CPU, torch.float32)
    assert remembered_pace("f", CPU, torch.float32) == pace
    assert remembered_pace("f", CPU, torch.bfloat16) is None
    assert Pace.from_described(asdict(pace)) == pace


def test_shared_tokens_are_kept_once_on_disk(tiny: Callable[..., LanguageModel]) -> None:
    facts = facts_of_module(tiny("llama").module)
    shared = [_task(n, [*range(200), 300 + n]) for n in range(4)]
    apart = [_task(n, [900 + n, *range(1, 200), 300 + n]) for n in range(4)]
    setting = Setting(facts, torch.float32, 1, 7, _pace())
    sizes = [estimate(setting, tasks, make_batches(tasks), 4).disk_bytes for tasks in (shared, apart)]
    assert sizes[1] - sizes[0] == pytest.approx(3 * 200 * (3 * 2 * 1.75 + 7 / 2 * 3.3), abs=1)


def test_memory_is_what_the_process_holds_and_the_larger_of_a_batch_and_its_proof(
    tiny: Callable[..., LanguageModel],
) -> None:
    facts = facts_of_module(tiny("llama").module)
    setting = Setting(facts, torch.float32, 3, 7, _pace())
    captured = 21 * 7 * (2 * 3 + 1) * 4
    verifying = (2 * 4 + 8) * (21 * 32 * 7 + 1 * VOCAB)
    for n_rows in (1, 60):
        tasks = [_task(n, [*range(19), 100 + n], 1) for n in range(n_rows)]
        n_read = 20 if n_rows == 1 else 1
        batch = n_rows * (facts.bytes_per_row(21, 4, n_read) + captured)
        found = estimate(setting, tasks, make_batches(tasks), n_rows)
        assert found.memory_bytes == 1000 + max(batch, verifying)
        assert found.total_seconds == pytest.approx((found.seconds or 0) + 5.0)


def test_splitting_open_layers_costs_replays_up_to_the_last_of_them(tiny: Callable[..., LanguageModel]) -> None:
    facts = facts_of_module(tiny("llama").module)
    opened = OpenLayers({0: ("neurons",)})
    tasks = [replace(_task(n, [*range(90), 100 + n], 9), opened=opened) for n in range(MOST_GENERATIONS + 5)]
    tasks.append(_task(1000, [*range(91)], 9))
    found = estimate(Setting(facts, torch.float32, 1, 7, _pace()), tasks, make_batches(tasks), 4)
    assert found.total_seconds is not None
    assert found.seconds is not None
    splitting = MOST_GENERATIONS * 100 * 0.1 / facts.n_layers
    assert found.total_seconds - found.seconds - 5.0 == pytest.approx(splitting, abs=0.01)
