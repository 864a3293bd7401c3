"""Files of others that hold one direction a layer: PyTorch, safetensors, GGUF control vectors."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from traitscope.errors import InputError, near_names, one_line_of
from traitscope.traits.control_vectors import read_control_vector

Convention = Literal["resid_post", "resid_pre", "hidden_states"]
CONVENTIONS = get_args(Convention)
DIRECTION_SUFFIXES = (".pt", ".pth", ".gguf")
"""Of files that are never vector files of ours; a ``.safetensors`` may be either."""

_NUMBERED = re.compile(rf"(?:(?P<prefix>layers?|{'|'.join(CONVENTIONS)})[._])?(?P<number>\d+)")


@dataclass(frozen=True)
class DirectionFile:
    """What a file holds, as it stands there.

    Attributes:
        rows: directions by row number; what a number stands for is the convention's affair.
        n_rows: how many rows a stacked tensor has; None where each direction came with its own number.
        convention: what the file itself says that its numbers mean, if it does.
        sha256: of the file's content.
    """

    path: Path
    rows: Mapping[int, torch.Tensor]
    n_rows: int | None
    convention: Convention | None
    sha256: str


def read_directions(path: Path, *, tensor: str | None = None, layer: int | None = None) -> DirectionFile:
    """Read ``[n_rows, d_model]``, directions by number, or one direction, by the file's suffix.

    Args:
        tensor: which of several named tensors.
        layer: the row number of a single direction ``[d_model]``.

    Raises:
        InputError: missing, of an unknown kind, damaged, or holding something else; names the file and the fix.
    """
    readers: dict[str, Callable[[Path], tuple[Any, Convention | None]]] = {
        ".pt": _read_torch,
        ".pth": _read_torch,
        ".safetensors": _read_safetensors,
        ".gguf": lambda path: (read_control_vector(path), "resid_post"),
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: unknown kind of file; traits import reads {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    content, convention = readers[path.suffix](path)
    if isinstance(content, dict):
        content, named_for = _chosen(path, content, tensor)
        convention = convention or named_for
    rows, n_rows = _rows(path, content, layer)
    for number, row in rows.items():
        _refuse_unusable(path, number, row)
    return DirectionFile(path, rows, n_rows, convention, hashlib.sha256(path.read_bytes()).hexdigest())


def _read_torch(path: Path) -> tuple[Any, None]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: holds more than tensors, and loading that could run code; save the bare tensor: "
            "torch.save(tensor, path)"
        ) from None
    except Exception as error:  # torch names no kind of error for a damaged file
        raise InputError(f"{path}: cannot be read: {one_line_of(error)}") from None
    if not isinstance(content, dict | torch.Tensor):
        raise InputError(f"{path}: holds a {type(content).__name__}; save a tensor, or a dict of layer: tensor")
    return content, None


def _read_safetensors(path: Path) -> tuple[dict[Any, torch.Tensor], Convention | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: no readable safetensors file: {error}") from None
    if "traitscope_vectors" in metadata:
        raise InputError(f"{path}: is a vector file already; name it under traits: as it is")
    return tensors, _known_convention(metadata.get("convention"))


def _chosen(path: Path, tensors: dict[Any, Any], name: str | None) -> tuple[Any, Convention | None]:
    """One tensor of several, or all of them by number, and the convention that their names tell."""
    if name is not None:
        if name not in tensors:
            raise InputError(f"{path}: --tensor {name}: no such tensor; {near_names(name, map(str, tensors))}")
        return tensors[name], None
    matches = {key: _NUMBERED.fullmatch(str(key)) for key in tensors}
    if tensors and all(matches.values()):
        numbered = {int(match["number"]): tensors[key] for key, match in matches.items() if match}
        prefixes = {match["prefix"] for match in matches.values() if match}
        if len(numbered) < len(tensors) or len(prefixes) > 1:
            raise InputError(f"{path}: several tensors claim one layer, or are named in different ways")
        return numbered, _known_convention(prefixes.pop())
    if len(tensors) == 1:
        return next(iter(tensors.values())), None
    raise InputError(f"{path}: holds {len(tensors)} tensors; choose one with --tensor: {', '.join(map(str, tensors))}")


def _known_convention(name: str | None) -> Convention | None:
    return cast(Convention, name) if name in CONVENTIONS else None


def _rows(path: Path, content: Any, layer: int | None) -> tuple[dict[int, torch.Tensor], int | None]:
    if isinstance(content, dict):
        if layer is not None:
            raise InputError(f"{path}: its directions have layers of their own; leave out --layer")
        return content, None
    if not isinstance(content, torch.Tensor):
        raise InputError(f"{path}: holds a {type(content).__name__} where a tensor was expected")
    if content.dim() == 1:
        if layer is None:
            raise InputError(f"{path}: holds one direction; say with --layer which row of the convention it is")
        return {layer: content}, None
    if content.dim() != 2:
        raise InputError(f"{path}: has shape {list(content.shape)}; expected [n_layers, d_model] or [d_model]")
    if layer is not None:
        raise InputError(f"{path}: holds {len(content)} rows, one a layer; leave out --layer")
    return dict(enumerate(content)), len(content)


def _refuse_unusable(path: Path, number: int, row: Any) -> None:
    if not isinstance(row, torch.Tensor) or not row.is_floating_point() or row.layout is not torch.strided:
        raise InputError(f"{path}: row {number} is no dense tensor of floating-point numbers")
    if row.dim() != 1:
        raise InputError(f"{path}: row {number} has shape {list(row.shape)}; expected [d_model]")
    if not torch.isfinite(row).all():
        raise InputError(f"{path}: row {number} holds values that are not finite; compute it again")
