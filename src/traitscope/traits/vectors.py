"""Trait vectors and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from traitscope.atomic import write_atomically
from traitscope.checkpoints import Checkpoint
from traitscope.errors import InputError

REGIONS = ("prompt_last", "response_token", "response_mean")
Region = Literal["prompt_last", "response_token", "response_mean"]
FORMAT_VERSION = "2"


@dataclass(frozen=True)
class Calibration:
    """What is ordinary for a trait: statistics of the model's own greedy replies to neutral prompts.

    Attributes:
        mean, std: per region, ``[n_checkpoints]`` float32 of the scores. ``prompt_last`` is the last prompt
            token, ``response_token`` each content token, ``response_mean`` the mean over a response. The
            deviation is NaN where neutral replies do not vary; both are where the vectors have no direction.
        norm: ``[n_checkpoints]`` float32, median Euclidean norm of the state over content tokens.
        write: ``[n_checkpoints]`` float32, mean write over content tokens; zero after the readout.
        trajectory: ``[n_replies, most_tokens]`` float32, raw scores at R of the content tokens of each reply in
            order, NaN after its last one: how the score moves along an ordinary text.
    """

    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]
    norm: torch.Tensor
    write: torch.Tensor
    trajectory: torch.Tensor


@dataclass(frozen=True)
class VectorOrigin:
    """Where vectors come from and what is known of their worth.

    ``verdict`` is ``unvalidated`` until a validation was made, ``transferred`` for another model's vectors.
    """

    model: str
    fingerprint: str
    scenarios: str
    neutral: str
    method: dict[str, Any]
    versions: dict[str, str]
    dtype: str
    base_template: str | None
    verdict: str = "unvalidated"
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TraitVectors:
    """The directions of one trait in one model.

    Attributes:
        checkpoints: names such as ``resid_mid.12``, one a row of the tensors: all that the model has.
        readout: index of the readout checkpoint R, which is always covered.
        reader, steerer: ``[n_checkpoints, d_model]`` float32, unit rows: to score and to push. Imported vectors may
            cover some checkpoints only; the other rows are NaN, so that nothing computed with them can pass for a
            number.
    """

    trait: str
    description: str
    poles: tuple[str, str]
    checkpoints: tuple[str, ...]
    readout: int
    reader: torch.Tensor
    steerer: torch.Tensor
    calibration: Calibration
    origin: VectorOrigin

    @property
    def covered(self) -> torch.Tensor:
        """``[n_checkpoints]`` bool: where there is a direction."""
        return ~self.reader.isnan().any(dim=-1)

    @property
    def covered_names(self) -> tuple[str, ...]:
        return tuple(name for name, there in zip(self.checkpoints, self.covered.tolist(), strict=True) if there)

    @property
    def readout_name(self) -> str:
        return self.checkpoints[self.readout]

    @property
    def readout_layer(self) -> int:
        return Checkpoint.from_name(self.readout_name).layer

    def transferred(self, calibration: Calibration) -> TraitVectors:
        """The same directions recalibrated on, and marked as carried over to, another model."""
        return replace(self, calibration=calibration, origin=replace(self.origin, verdict="transferred"))


def save_vectors(vectors: TraitVectors, path: Path) -> None:
    """Write a vector file (safetensors) under a temporary name, then rename it."""
    from safetensors.torch import save

    calibration = vectors.calibration
    tensors = {"reader": vectors.reader, "steerer": vectors.steerer}
    for region in REGIONS:
        tensors[f"neutral_mean.{region}"] = calibration.mean[region]
        tensors[f"neutral_std.{region}"] = calibration.std[region]
    tensors |= {
        "neutral_norm": calibration.norm,
        "neutral_write": calibration.write,
        "neutral_trajectory": calibration.trajectory,
    }
    metadata = {
        "traitscope_vectors": FORMAT_VERSION,
        "trait": vectors.trait,
        "description": vectors.description,
        "poles": json.dumps(vectors.poles),
        "checkpoints": json.dumps(vectors.checkpoints),
        "readout": vectors.readout_name,
        "origin": json.dumps(asdict(vectors.origin), sort_keys=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(path, lambda file: file.write(content))


def load_vectors(path: Path) -> TraitVectors:
    """Read a vector file.

    Raises:
        InputError: missing, not a vector file, not finite, or of inconsistent shape; names file and field.
    """
    from safetensors import safe_open

    metadata = vector_metadata(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        vectors = _assembled(tensors, metadata)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"vector file {path}: incomplete or inconsistent: {error}") from None
    _refuse_bad_tensors(vectors, path)
    return vectors


def vector_metadata(path: Path) -> dict[str, str]:
    """A vector file's metadata, read without its tensors.

    Raises:
        InputError: missing or not a vector file.
    """
    metadata = _metadata_of_any(path)
    if not _is_current(metadata):
        raise InputError(
            f"vector file {path}: not written by this version of traitscope; fit it again if it was by an older one; "
            f"directions of others come in with: traitscope traits import {path}"
        )
    return metadata


def is_current(path: Path) -> bool:
    """Whether a vector file has the format of this version.

    Raises:
        InputError: missing or no safetensors file.
    """
    return _is_current(_metadata_of_any(path))


def _is_current(metadata: dict[str, str]) -> bool:
    return metadata.get("traitscope_vectors") == FORMAT_VERSION


def _metadata_of_any(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"vector file {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"vector file {path}: no readable safetensors file: {error}") from None


def _assembled(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> TraitVectors:
    checkpoints = tuple(json.loads(metadata["checkpoints"]))
    positive, negative = json.loads(metadata["poles"])
    return TraitVectors(
        trait=metadata["trait"],
        description=metadata["description"],
        poles=(positive, negative),
        checkpoints=checkpoints,
        readout=checkpoints.index(metadata["readout"]),
        reader=tensors["reader"],
        steerer=tensors["steerer"],
        calibration=Calibration(
            mean={region: tensors[f"neutral_mean.{region}"] for region in REGIONS},
            std={region: tensors[f"neutral_std.{region}"] for region in REGIONS},
            norm=tensors["neutral_norm"],
            write=tensors["neutral_write"],
            trajectory=tensors["neutral_trajectory"],
        ),
        origin=VectorOrigin(**json.loads(metadata["origin"])),
    )


def _refuse_bad_tensors(vectors: TraitVectors, path: Path) -> None:
    tensors = {"reader": vectors.reader, "steerer": vectors.steerer}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.shape[0] != len(vectors.checkpoints):
            raise InputError(f"vector file {path}: {name} has shape {list(tensor.shape)}, not one row a checkpoint")
    none = vectors.reader.isnan().all(dim=-1) & vectors.steerer.isnan().all(dim=-1)
    for name, tensor in tensors.items():
        # A row that is NaN in both from end to end is a checkpoint that is not covered.
        if not torch.isfinite(tensor[~none]).all() or none[vectors.readout]:
            raise InputError(f"vector file {path}: {name} holds values that are not finite; fit it again")


def readers_of(vectors: Sequence[TraitVectors]) -> torch.Tensor:
    """``[n_traits, n_checkpoints, d_model]``, the readers of several traits of one model."""
    return torch.stack([vector.reader for vector in vectors])
