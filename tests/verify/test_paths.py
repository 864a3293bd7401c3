"""Bugs caught here: a way of computing (slots given to waiting rows, a prefix read once, compiled steps) whose numbers
verify refuses, or whose faults it lets pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from test_verdict import RunTiny, a_layer_off_by_one, one_score_changed, plant
from traitscope.model import decode as decode_module
from traitscope.model.decode import Decoded
from traitscope.model.loading import LanguageModel
from traitscope.verify.verdict import verify_run

DTYPES = ("float32", "bfloat16")
RAGGED = [
    {"name": f"ragged{n}", "prompts": [f"{'moss ' * n}and {n}"], "generation": {"max_new_tokens": 3 + 2 * n}}
    for n in range(6)
]
PREFIX = "the river and the cloud and the moss and the stone and the sun say: "
PATHS: dict[str, dict[str, Any]] = {
    "refill": {"experiments": RAGGED, "width": 2},
    "prefix": {"prompts": [PREFIX + str(n) for n in range(6)], "width": 2},
    "compiled": {"experiments": RAGGED, "width": 2, "compiled": True},
}
Fault = Callable[..., list[Decoded]]


def rows_mixed_up_at_refill(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    """The joining rows' keys and values in each other's slot, or in a neighbour's."""
    real = decode_module.put_rows

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_module, "put_rows", lambda cache, rows, *rest: real(cache, (rows + 1) % 2, *rest))
        return decode(model, prompts, **options)


def a_slot_too_many_dropped(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    real = decode_module.drop_front
    shifted: list[int] = []

    def wrong(cache: Any, n_slots: int, length: int) -> None:
        shifted.append(n_slots)
        real(cache, n_slots, length)
        for layer in cache.layers:
            layer.keys[:, :, 0] = layer.keys[:, :, 1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_module, "drop_front", wrong)
        patched.setattr(decode_module, "_SPARE_SLOTS", 0)
        rows = decode(model, prompts, **options)
    assert shifted
    return rows


FAULTS: list[tuple[str, Fault]] = [
    *((path, fault) for path in PATHS for fault in (one_score_changed, a_layer_off_by_one)),
    ("refill", rows_mixed_up_at_refill),
    ("refill", a_slot_too_many_dropped),
]


@pytest.fixture
def run_path(run_tiny: RunTiny) -> Iterator[Callable[[str, str], tuple[Path, LanguageModel]]]:
    used: list[LanguageModel] = []

    def run(path: str, dtype: str) -> tuple[Path, LanguageModel]:
        asked = dict(PATHS[path])
        compiled = asked.pop("compiled", False)
        run_dir, model = run_tiny("llama", dtype, compiled=compiled, **asked)
        used.append(model)
        assert bool(model.static_steps.kept) == compiled
        return run_dir, model

    yield run
    for model in used:
        model.static_steps.give_up("the test is over")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_passes(run_path: Callable[..., Any], path: str, dtype: str) -> None:
    verdict = verify_run(*run_path(path, dtype))
    assert verdict.passed, verdict.problems
    assert verdict.verified == verdict.captured == 6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("path", "fault"), FAULTS, ids=[f"{path}-{fault.__name__}" for path, fault in FAULTS])
def test_a_fault_on_every_path_is_named(
    run_path: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, path: str, fault: Fault, dtype: str
) -> None:
    plant(monkeypatch, fault)
    verdict = verify_run(*run_path(path, dtype))
    assert not verdict.passed
    assert any("score at resid_" in line for line in verdict.problems), verdict.problems
