"""From a dose of the suite to what is added to the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from traitscope.errors import InputError
from traitscope.model.steering import Positions, Steering
from traitscope.traits.vectors import TraitVectors


@dataclass(frozen=True)
class Dose:
    """What one generation is steered by: α of a trait's steerer at some layers."""

    trait: str
    alpha: float
    layers: tuple[int, ...]
    positions: Positions

    def described(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_described(cls, described: Mapping[str, Any] | None) -> Dose | None:
        return None if described is None else cls(**{**described, "layers": tuple(described["layers"])})


def steering_of(dose: Dose | None, vectors: Sequence[TraitVectors]) -> Steering | None:
    """What a dose adds to ``resid_post`` of each of its layers: α times the median neutral norm of that checkpoint
    times its steerer."""
    if dose is None:
        return None
    trait = next(trait for trait in vectors if trait.trait == dose.trait)
    return Steering({layer: _addition(trait, layer, dose.alpha) for layer in dose.layers}, dose.positions)


def refuse_uncovered(dose: Dose, vectors: TraitVectors) -> None:
    """Refuse a dose at a layer at which imported vectors have no direction.

    Raises:
        InputError: names trait and layer.
    """
    absent = [layer for layer in dose.layers if f"resid_post.{layer}" not in vectors.covered_names]
    if absent:
        raise InputError(
            f"steer.layers: the vectors of {dose.trait} have no direction at resid_post.{absent[0]}; "
            f"they cover {', '.join(vectors.covered_names)}"
        )


def _addition(trait: TraitVectors, layer: int, alpha: float) -> torch.Tensor:
    row = trait.checkpoints.index(f"resid_post.{layer}")
    return alpha * trait.calibration.norm[row] * trait.steerer[row]
