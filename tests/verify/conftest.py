from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from device import DEVICE
from nights import quiet
from random_traits import random_vectors
from tiny_models import tiny_model, tiny_tokenizer
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run import night
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite
from traitscope.traits.vectors import save_vectors

SavedTiny = Callable[..., tuple[Path, LanguageModel]]
PROMPTS = ("sun number 1", "rain count 2", "what of moss", "a stone, two", "why?", "river and cloud and moss, three")
"""Four of them have equally many characters, and so tokens."""


@pytest.fixture(scope="session")
def saved_tiny(tmp_path_factory: pytest.TempPathFactory) -> SavedTiny:
    """``saved_tiny(architecture, dtype, quantize)``: the folder of a tiny model and the model, loaded once."""
    folder = tmp_path_factory.mktemp("saved")
    kept: dict[tuple[str, str, str | None], LanguageModel] = {}

    def find(architecture: str, dtype: str, quantize: str | None = None) -> tuple[Path, LanguageModel]:
        directory = folder / architecture
        if not directory.exists():
            tiny_model(architecture).save_pretrained(directory)
            tiny_tokenizer().save_pretrained(directory)
        which = architecture, dtype, quantize
        if which not in kept:
            kept[which] = load_model(str(directory), device=DEVICE, dtype=dtype, quantize=quantize)
        return directory, kept[which]

    return find


@pytest.fixture
def run_tiny(saved_tiny: SavedTiny, tmp_path: Path) -> Callable[..., tuple[Path, LanguageModel]]:
    """``run_tiny(architecture, dtype)``: a finished run on a tiny model, and the model.

    ``prompts`` are texts, or a file's name in the test's folder. ``experiments`` take the place of the one that
    ``prompts`` and ``experiment`` describe.
    """

    def run(
        architecture: str = "llama",
        dtype: str = "float32",
        *,
        model: LanguageModel | None = None,
        quantize: str | None = None,
        prompts: str | Sequence[str] = PROMPTS,
        experiments: Sequence[dict[str, Any]] = (),
        width: int = 6,
        compiled: bool = False,
        **experiment: Any,
    ) -> tuple[Path, LanguageModel]:
        directory, loaded = saved_tiny(architecture, dtype, quantize)
        used = model or loaded
        used.static_steps.wanted, used.static_steps.backend = compiled, "aot_eager"
        one = {"name": "all", "prompts": prompts if isinstance(prompts, str) else list(prompts), **experiment}
        return finished_run(tmp_path, directory, used, *(experiments or [one]), width=width, quantize=quantize), used

    return run


@pytest.fixture(scope="session")
def clean_run(saved_tiny: SavedTiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    """A run on a tiny Llama that tests may copy, and the model."""
    directory, loaded = saved_tiny("llama", "float32")
    asked = {"name": "all", "prompts": list(PROMPTS)}
    return finished_run(tmp_path_factory.mktemp("clean"), directory, loaded, asked), loaded


@pytest.fixture(scope="session")
def opened_run(saved_tiny: SavedTiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    """A run on a tiny Qwen 3 with all layers open that tests may copy, and the model."""
    directory, loaded = saved_tiny("qwen3", "float32")
    asked = {"name": "all", "prompts": list(PROMPTS[:2]), "capture": {"internals": {"layers": "all"}}}
    return finished_run(tmp_path_factory.mktemp("opened"), directory, loaded, asked), loaded


def finished_run(
    folder: Path,
    directory: Path,
    model: LanguageModel,
    *experiments: dict[str, Any],
    width: int = 6,
    quantize: str | None = None,
) -> Path:
    """A run on two random traits, on a model that is loaded already."""
    for number in range(2):
        save_vectors(random_vectors(model, number), folder / f"random{number}.safetensors")
    suite = {
        "name": "small",
        "model": str(directory),
        "traits": ["random0.safetensors", "random1.safetensors"],
        "generation": {"max_new_tokens": 10},
        "experiments": list(experiments),
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    dtype = str(model.dtype).removeprefix("torch.")
    prepared = prepare(load_suite(str(folder / "suite.yaml")), device=DEVICE, dtype=dtype, quantize=quantize)
    return night.start_run(
        prepared,
        out=folder / "runs",
        batch_size=width,
        shard_size=6,
        allow_foreign=False,
        reporter=quiet(),
        model=model,
    )
