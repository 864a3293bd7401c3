"""One direction a layer in a file that others read: a GGUF control vector or safetensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from traitscope.atomic import write_atomically
from traitscope.checkpoints import Checkpoint
from traitscope.errors import InputError
from traitscope.model.source import check_reachable, find_source, load_config
from traitscope.traits.control_vectors import FIRST_LAYER, control_vector_bytes
from traitscope.traits.vectors import TraitVectors

Direction = Literal["steerer", "reader"]
Scale = Literal["unit", "norm"]
_SCALES = {
    "unit": "unit length",
    "norm": "the median norm of the state at that layer in neutral replies: times alpha it is a push of that share",
}


def refuse_unwritable(to: Path, direction: str, scale: str | None) -> None:
    """Refuse what cannot be exported, before anything is read or fitted.

    Raises:
        InputError: the file exists already, or is of an unknown kind; unknown direction or scale.
    """
    if to.suffix not in _CONTENTS:
        raise InputError(f"--to {to}: unknown kind of file; use {' or '.join(_CONTENTS)}")
    if direction not in get_args(Direction):
        raise InputError(f"--direction {direction}: use {' or '.join(get_args(Direction))}")
    if scale is not None and scale not in _SCALES:
        raise InputError(f"--scale {scale}: use {' or '.join(_SCALES)}")
    if to.exists():
        raise InputError(f"--to {to}: exists already; choose another name")


def model_hint(model: str) -> str | None:
    """What llama.cpp calls the architecture of a model; None if that cannot be told from its configuration."""
    from gguf import MODEL_ARCH_NAMES

    try:
        source = find_source(model)
        check_reachable(source)
        model_type = load_config(source).model_type
    except InputError:
        return None
    known = {re.sub("[-_]", "", name): name for name in MODEL_ARCH_NAMES.values()}
    return known.get(model_type.removesuffix("_text").replace("_", ""))


def export_vectors(
    vectors: TraitVectors,
    to: Path,
    *,
    direction: str = "steerer",
    scale: str | None = None,
    architecture: str | None = None,
) -> list[int]:
    """Write the directions at every covered ``resid_post``; returns their layers.

    Args:
        to: a ``.gguf`` or ``.safetensors`` file that does not exist yet.
        scale: ``unit`` or ``norm``; None is ``norm`` for GGUF and ``unit`` for safetensors.
        architecture: of the model, which a GGUF file can name (``model_hint``).

    Raises:
        InputError: as ``refuse_unwritable``, or there is nothing that the format can hold.
    """
    refuse_unwritable(to, direction, scale)
    scale = scale or ("norm" if to.suffix == ".gguf" else "unit")
    directions = _directions(vectors, direction, scale)
    if to.suffix == ".gguf":
        directions = {layer: row for layer, row in directions.items() if layer >= FIRST_LAYER}
    if not directions:
        raise InputError(f"--to {to}: {vectors.trait} has no direction that such a file can hold")
    content = _CONTENTS[to.suffix](vectors, directions, _described(vectors, direction, scale), architecture)
    try:
        write_atomically(to, lambda file: file.write(content))
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written: {error.strerror}") from None
    return sorted(directions)


def _directions(vectors: TraitVectors, direction: str, scale: str) -> dict[int, torch.Tensor]:
    rows = vectors.steerer if direction == "steerer" else vectors.reader
    if scale == "norm":
        rows = rows * vectors.calibration.norm[:, None]
    sites = [Checkpoint.from_name(name) for name in vectors.checkpoints]
    covered = vectors.covered.tolist()
    return {
        site.layer: row
        for site, row, there in zip(sites, rows, covered, strict=True)
        if there and site.site == "resid_post"
    }


def _described(vectors: TraitVectors, direction: str, scale: str) -> dict[str, str]:
    positive, negative = vectors.poles
    return {
        "trait": vectors.trait,
        "positive": positive,
        "negative": negative,
        "direction": direction,
        "scale": scale,
        "scale_is": _SCALES[scale],
        "readout": vectors.readout_name,
        "verdict": vectors.origin.verdict,
        "model": vectors.origin.model,
        "fingerprint": vectors.origin.fingerprint,
    }


def _gguf(
    _vectors: TraitVectors, directions: dict[int, torch.Tensor], described: dict[str, str], architecture: str | None
) -> bytes:
    metadata = {f"traitscope.{key}": value for key, value in described.items()}
    return control_vector_bytes(directions, architecture, metadata)


def _safetensors(
    vectors: TraitVectors, directions: dict[int, torch.Tensor], described: dict[str, str], _architecture: str | None
) -> bytes:
    """``direction`` ``[n_layers, d_model]``, row l of ``resid_post.l``; zeros where there is none."""
    from safetensors.torch import save

    n_layers = 1 + max(Checkpoint.from_name(name).layer for name in vectors.checkpoints)
    stacked = torch.zeros(n_layers, vectors.steerer.shape[1])
    for layer, row in directions.items():
        stacked[layer] = row
    return save({"direction": stacked}, {**described, "convention": "resid_post"})


_CONTENTS: dict[str, Callable[..., bytes]] = {".gguf": _gguf, ".safetensors": _safetensors}
