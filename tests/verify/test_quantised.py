"""Bugs caught here: a quantised run that verify refuses or whose faults it lets pass; one that is reloaded, resumed or
given vectors as if its weights were whole; open layers of packed weights that nothing checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from test_verdict import a_position_dropped, mlp_input_for_resid_mid, one_score_changed, plant
from traitscope.attribution.closure import check_closure
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.model.quantisation import QUANTISERS
from traitscope.run.prepare import prepare
from traitscope.run.reload import model_of_run
from traitscope.suite.file import load_suite
from traitscope.verify.verdict import verify_run

RunTiny = Callable[..., tuple[Path, LanguageModel]]
OPENED = {"capture": {"internals": {"layers": "all"}}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_clean_run_passes_with_the_model_that_its_plan_names(run_tiny: RunTiny, kind: str, dtype: str) -> None:
    run_dir, _ = run_tiny("gemma3", dtype, quantize=kind)
    verdict = verify_run(run_dir, model_of_run(run_dir))
    assert verdict.passed, verdict.problems
    assert (verdict.verified, verdict.quantization) == (6, kind)


@pytest.mark.parametrize("fault", [one_score_changed, a_position_dropped, mlp_input_for_resid_mid])
@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_fault_is_caught(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, kind: str, fault: Any) -> None:
    plant(monkeypatch, partial(fault, quantization=kind) if fault is one_score_changed else fault)
    verdict = verify_run(*run_tiny("llama", quantize=kind))
    assert any(": score at " in line for line in verdict.problems), verdict.problems


@pytest.mark.parametrize("kind", ["bnb-4bit", "torchao-int8"])
def test_open_layers_close_and_are_checked_against_the_dequantised_maps(run_tiny: RunTiny, kind: str) -> None:
    run_dir, model = run_tiny("llama", quantize=kind, **OPENED)
    assert verify_run(run_dir, model).passed
    assert check_closure(run_dir, model=model).closed
    (file, *_) = sorted((run_dir / "shards").glob("*.internals.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("/neurons"))
    tensors[name] = torch.roll(tensors[name], 1, dims=-1)
    save_file(tensors, file)
    assert any("neurons through the layer's projection" in line for line in verify_run(run_dir, model).problems)


def test_open_layers_that_round_what_they_read_are_kept_but_not_split(run_tiny: RunTiny) -> None:
    run_dir, model = run_tiny("llama", quantize="bnb-8bit", **OPENED)
    assert verify_run(run_dir, model).passed
    assert all("rounds what it reads" in why for why in check_closure(run_dir, model=model).unsplit.values())


def test_what_was_not_quantised_is_another_model(run_tiny: RunTiny, saved_tiny: Any) -> None:
    run_dir, _ = run_tiny("llama", quantize="torchao-int8")
    for other in (None, "bnb-4bit"):
        (problem, *_) = verify_run(run_dir, saved_tiny("llama", "float32", other)[1]).problems
        assert "another one than the run's: fingerprint" in problem
    suite = load_suite(str(run_dir.parent.parent / "suite.yaml"))
    with pytest.raises(InputError, match=r"random0\.safetensors: fitted on .* but this model's is"):
        prepare(suite, device="cpu", quantize="bnb-4bit")
    assert prepare(suite, device="cpu", quantize="torchao-int8").source.quantization == "torchao-int8"


def test_a_run_goes_on_only_as_it_was_quantised(run_tiny: RunTiny, command: Any) -> None:
    run_dir, _ = run_tiny("llama", quantize="torchao-int8")
    code, _, error = command("run", "--resume", run_dir, "--quantize", "bnb-4bit")
    assert code == 2
    assert "quantize: torchao-int8 → bnb-4bit" in error
    code, out, _ = command("plan", run_dir.parent.parent / "suite.yaml", "--quantize", "torchao-int8", "--json")
    assert (code, json.loads(out)["quantization"]) == (0, "torchao-int8")
