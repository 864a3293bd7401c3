"""What identifies a model: its weights, its tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from traitscope.cache import read_cached_json, write_cached_json
from traitscope.model.embedded import embedded_gguf
from traitscope.model.quantisation import QUANTISERS, plain_tensor
from traitscope.model.source import ModelSource

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_HASHES = ("files", "hashes")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 digests of a model's weights, tokenizer and chat template."""

    weights: str
    tokenizer: str
    template: str

    @property
    def short(self) -> str:
        """Sixteen hexadecimal digits that stand for all three."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def fingerprint_of_source(source: ModelSource, tokenizer: Any) -> Fingerprint | None:
    """The fingerprint from the files of ``source``; None for a hub model that is not downloaded yet.

    Hashes are cached by path, size and modification time; for hub models the hub's own digest is used.
    """
    weights = _weights_digest_of_source(source)
    if weights is None:
        return None
    if source.quantization is not None:
        weights = _sha256(f"{weights} {source.quantization}: {QUANTISERS[source.quantization].settings}")
    return Fingerprint(weights, *_text_digests(tokenizer))


def fingerprint_of_module(module: nn.Module, tokenizer: Any) -> Fingerprint:
    """The fingerprint of a model in memory, from the bytes of its parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = plain_tensor(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return Fingerprint(digest.hexdigest(), *_text_digests(tokenizer))


def sha256_of_file(path: Path) -> str:
    """The file's SHA-256, remembered by path, size and modification time."""
    status = path.stat()
    key, state = str(path.resolve()), [status.st_size, status.st_mtime_ns]
    remembered = read_cached_json(*_HASHES) or {}
    if remembered.get(key, [None])[:-1] == state:
        return remembered[key][-1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_cached_json(*_HASHES, {**(read_cached_json(*_HASHES) or {}), key: [*state, digest]})
    return digest


def _weights_digest_of_source(source: ModelSource) -> str | None:
    if source.kind == "embedded":
        return sha256_of_file(embedded_gguf())
    if source.kind == "gguf":
        return sha256_of_file(Path(source.location) / str(source.gguf_file))
    if source.kind == "directory":
        return _digest_of_files(Path(source.location).iterdir())
    return _digest_of_files(_downloaded_files(source))


def _digest_of_files(files: Iterable[Path]) -> str | None:
    weights = sorted(file for file in files if file.suffix in _WEIGHT_SUFFIXES)
    if not weights:
        return None
    lines = [f"{file.name} {_digest_from_hub_cache(file) or sha256_of_file(file)}" for file in weights]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest_from_hub_cache(file: Path) -> str | None:
    """The hub's cache links each large file to a blob that is named by its SHA-256."""
    blob = file.resolve().name
    return blob if file.is_symlink() and _SHA256.fullmatch(blob) else None


def _downloaded_files(source: ModelSource) -> Iterable[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(source.location, revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return []
    return Path(folder).iterdir()


def _text_digests(tokenizer: Any) -> tuple[str, str]:
    template = getattr(tokenizer, "chat_template", None) or ""
    return _sha256(_tokenizer_text(tokenizer)), _sha256(json.dumps(template))


def _tokenizer_text(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map], default=str)
    described = json.loads(backend.to_str())
    # Calls that pad or truncate leave their settings behind; they do not change what the tokenizer is.
    described.pop("padding", None)
    described.pop("truncation", None)
    return json.dumps(described, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
