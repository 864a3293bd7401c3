"""Which model a name means, and what can be read of it without its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from traitscope.errors import InputError
from traitscope.model.embedded import EMBEDDED_NAME, embedded_directory

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    ``location`` is a hub id or a directory; ``gguf_file`` names the file in it when it is a GGUF model.
    ``quantization`` is a kind of ``traitscope.model.quantisation``, or None: the weights as they are.
    """

    name: str
    kind: Literal["embedded", "hub", "directory", "gguf"]
    location: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None

    def pretrained_arguments(self) -> dict[str, Any]:
        """The keyword arguments that every ``from_pretrained`` of this model takes."""
        given: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.revision is not None:
            given["revision"] = self.revision
        if self.gguf_file is not None:
            given["gguf_file"] = self.gguf_file
        return given


def find_source(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, quantization: str | None = None
) -> ModelSource:
    """Tell what ``name`` means: the embedded model, a GGUF file, a directory or a hub id.

    Raises:
        InputError: a path that does not exist or holds no model, or no valid hub id.
    """
    if name == EMBEDDED_NAME:
        return ModelSource(name, "embedded", EMBEDDED_NAME, quantization=quantization)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"model {name}: a model file must end in .gguf; give a directory or a hub id")
        return ModelSource(name, "gguf", str(path.parent.resolve()), gguf_file=path.name, quantization=quantization)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model {name}: the directory has no config.json, so it holds no saved model")
        return ModelSource(
            name,
            "directory",
            str(path.resolve()),
            trust_remote_code=trust_remote_code,
            quantization=quantization,
        )
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith(".gguf"):
        raise InputError(f"model {name}: no such file or directory")
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"model {name!r}: neither {EMBEDDED_NAME}, a path that exists, nor a hub id like owner/name")
    return ModelSource(
        name, "hub", name, revision=revision, trust_remote_code=trust_remote_code, quantization=quantization
    )


def check_reachable(source: ModelSource) -> None:
    """See that a local model is still there, and ask the hub once for one that is not in the local cache yet.

    Without this, transformers asks for one file after another and waits half a minute between tries.

    Raises:
        InputError: the path has vanished; no such model or revision on the hub, no access to it, or no connection.
    """
    if source.kind in ("directory", "gguf") and not Path(source.location, source.gguf_file or "").exists():
        raise InputError(f"model {source.name}: {Path(source.location, source.gguf_file or '')} is not there any more")
    if source.kind != "hub":
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source.location, "config.json", revision=source.revision), str):
        return
    try:
        HfApi().model_info(source.location, revision=source.revision, timeout=10)
    except Exception as error:  # of the hub's client, its HTTP library, or the socket
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"model {source.name}: not in the local cache, and the Hugging Face hub gives no access to it: {reason}"
        ) from error


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        InputError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    with readable_errors(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(_location(source), **source.pretrained_arguments())


def load_config(source: ModelSource) -> Any:
    """The model's transformers configuration.

    Raises:
        InputError: it cannot be found or read.
    """
    from transformers import AutoConfig

    with readable_errors(source, "configuration"):
        return AutoConfig.from_pretrained(_location(source), **source.pretrained_arguments())


def load_config_file(path: Path) -> Any:
    """A transformers configuration from a file of its own, such as a ``config.json`` without the model.

    Raises:
        InputError: missing, no JSON, or of an unknown kind of model.
    """
    from transformers import AutoConfig

    try:
        described = json.loads(path.read_text())
        return AutoConfig.for_model(**described)
    except OSError as error:
        raise InputError(f"model {path}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model {path}: no configuration of a transformers model: {reason}") from None


def context_length(config: Any) -> int | None:
    """How many tokens the model can read, or None when its configuration sets no limit."""
    text_config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        limit = getattr(text_config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def _location(source: ModelSource) -> str:
    return str(embedded_directory()) if source.kind == "embedded" else source.location


@contextmanager
def readable_errors(source: ModelSource, part: str) -> Iterator[None]:
    """Turn what transformers and the hub raise for a model that is not there into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model {source.name}: its {part} cannot be loaded: {reason}") from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Without the bars of transformers, which say nothing that a person waits for."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
