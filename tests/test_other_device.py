"""Bugs caught here: a tensor left on the CPU, or handed to NumPy from another device, when the model is elsewhere.

Of every room that touches the model: loading, fitting, decoding, steering, open layers, verify, explain, validation.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nights import quiet, write_suite
from pretended_device import pretended_device
from tiny_models import SCENARIOS, tiny_model, tiny_tokenizer
from traitscope.attribution import neutral
from traitscope.attribution.closure import check_closure
from traitscope.attribution.explanation import explain
from traitscope.captures.reading import open_run
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run import night
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite
from traitscope.traits.scenarios import NeutralPrompts, load_scenarios
from traitscope.traits.store import find_trait
from traitscope.traits.validation.candidates import validate_references
from traitscope.verify.verdict import verify_run

FEW = NeutralPrompts(name="few", prompts=[f"tell me of number {number}" for number in range(8)])
SUITE: dict[str, Any] = {
    "generation": {"max_new_tokens": 6},
    "experiments": [
        {"name": "greedy", "prompts": ["sun and moss", "a river of stone and sand", "why?"]},
        {"name": "sampled", "prompts": ["sun and moss"], "generation": {"temperature": 1.0, "top_p": 0.9, "top_k": 50}},
        {"name": "opened", "prompts": ["sun and moss"], "capture": {"internals": {"layers": "all"}}},
        {"name": "given", "prompts": [{"prompt": "sun?", "response": "it shines"}]},
        {
            "name": "pushed",
            "prompts": ["rain"],
            "steer": {"trait": str(SCENARIOS), "alpha": [-0.4, 0.4], "layers": [0]},
        },
        {
            "name": "prompted",
            "prompts": ["a cloud"],
            "steer": {"trait": str(SCENARIOS), "alpha": 0.4, "layers": [0, 2], "positions": "all"},
            "capture": {"scores": {}, "internals": {"layers": [2]}},
        },
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma3", "olmoe"])
def test_a_night_on_another_device_is_the_night_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    suite = write_suite(tmp_path / "suite", tmp_path / "model", **SUITE)
    monkeypatch.setattr(neutral, "load_neutral", lambda: FEW)
    monkeypatch.setattr(night, "_timed", lambda *_: None)
    here = load_model(str(tmp_path / "model"), device="cpu")
    monkeypatch.setenv("TRAITSCOPE_CACHE", str(tmp_path / "cache-here"))
    expected = _responses(_run(suite, tmp_path / "here", here))
    monkeypatch.setenv("TRAITSCOPE_CACHE", str(tmp_path / "cache-there"))
    with pretended_device() as device:
        there = _moved(here, device)
        run_dir = _run(suite, tmp_path / "there", there)
        verdict = verify_run(run_dir, there)
        assert check_closure(run_dir, model=there).closed
        explain(run_dir, "prompted/1@+0.4", "loudness", -1, model=there)
    assert _responses(run_dir) == expected
    assert verdict.problems == ()
    assert verdict.verified == len(expected) == 8


@pytest.mark.slow
def test_validation_runs_on_another_device(own_cache: Path) -> None:
    with pretended_device() as device:
        model = load_model(tiny_model("llama").to(device), tiny_tokenizer())
        validated = validate_references(model, [find_trait(str(SCENARIOS), Path())], [load_scenarios(SCENARIOS)])
    assert set(validated[0].origin.card["validation"]["gates"]) == set("ABCDEFH")


def _responses(run_dir: Path) -> dict[str, tuple[str | None, str | None]]:
    generations = open_run(run_dir).generations.collect()
    return {row["generation"]: (row["error"], row["response"]) for row in generations.to_dicts()}


def _moved(model: LanguageModel, device: torch.device) -> LanguageModel:
    """The model on another device, its residual stream found again there."""
    moved = load_model(copy.deepcopy(model.module).to(device), model.tokenizer)
    assert moved.device == device
    return replace(moved, fingerprint=model.fingerprint)


def _run(suite: Path, out: Path, model: LanguageModel) -> Path:
    prepared = prepare(load_suite(str(suite)), device="cpu")
    return night.start_run(
        prepared, out=out, batch_size=4, shard_size=4, allow_foreign=False, reporter=quiet(), model=model
    )
