from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from device import DEVICE
from nights import quiet, run_suite, write_suite
from tiny_models import tiny_biased_model, tiny_model, tiny_tokenizer
from traitscope import cli
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run.night import start_run
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite


@pytest.fixture(scope="session")
def embedded() -> LanguageModel:
    """The embedded model, converted once into the user's cache."""
    return load_model("smollm2-135m", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def reference_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The night as ``make demo`` runs it; vectors are fitted once into the user's cache."""
    out = tmp_path_factory.mktemp("night")
    prepared = prepare(load_suite("overnight"), device="cpu")
    return start_run(prepared, out=out, batch_size=None, shard_size=None, allow_foreign=False, reporter=quiet())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Path:
    """A small run of several shards; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        return run_suite(write_suite(folder, tiny_directory, n_prompts=4), folder / "runs")


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, which a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LanguageModel]:
    """``tiny(architecture, eos=..., biased=...)``: a wrapped tiny model; models are kept for the session."""
    kept: dict[tuple[Any, ...], LanguageModel] = {}

    def make(architecture: str = "llama", *, eos: tuple[int, ...] = (2,), biased: bool = False) -> LanguageModel:
        if (architecture, eos, biased) not in kept:
            module = tiny_biased_model(architecture) if biased else tiny_model(architecture)
            module.generation_config.eos_token_id = list(eos)
            kept[architecture, eos, biased] = load_model(module.to(DEVICE), tiny_tokenizer())
        return kept[architecture, eos, biased]

    return make


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, so that nothing is found that it did not make."""
    monkeypatch.setenv("TRAITSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with a chat template, a context of 256 and several end-of-sequence ids."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    module = tiny_model("llama")
    module.generation_config.eos_token_id = [2, 40, 41, 42, 43, 44]
    module.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that run tests share, so that the tiny vectors are fitted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAITSCOPE_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: ``command("run", ...)`` gives exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["traitscope", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def random_bank(model: LanguageModel, n_traits: int = 3, seed: int = 0) -> ReaderBank:
    """Random unit readers with different readouts."""
    generator = torch.Generator().manual_seed(seed)
    n_checkpoints = len(model.anatomy.checkpoints)
    readers = torch.randn(n_traits, n_checkpoints, model.anatomy.d_model, generator=generator)
    readouts = tuple(max(1, n_checkpoints - 1 - trait) for trait in range(n_traits))
    return ReaderBank(
        tuple(f"trait{trait}" for trait in range(n_traits)),
        torch.nn.functional.normalize(readers, dim=-1),
        readouts,
    )


os.environ.setdefault("HF_HUB_OFFLINE", "1")
