"""The names and order of the states of the residual stream that are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from traitscope.errors import InputError

ResidualSite = Literal["resid_pre", "resid_mid", "resid_post"]


@dataclass(frozen=True)
class Checkpoint:
    """One state of the residual stream, e.g. ``resid_mid.12``."""

    layer: int
    site: ResidualSite

    @property
    def name(self) -> str:
        return f"{self.site}.{self.layer}"

    @classmethod
    def from_name(cls, name: str) -> Checkpoint:
        """The checkpoint that is called ``name``."""
        site, layer = name.rsplit(".", 1)
        return cls(int(layer), cast(ResidualSite, site))


def checkpoints_of(layers_with_mid: Sequence[bool]) -> tuple[Checkpoint, ...]:
    """Every checkpoint of a model, in the order in which the forward pass reaches them.

    ``layers_with_mid[l]`` says whether layer l has a ``resid_mid`` (a parallel block has none).
    """
    found = [Checkpoint(0, "resid_pre")]
    for layer, has_mid in enumerate(layers_with_mid):
        if has_mid:
            found.append(Checkpoint(layer, "resid_mid"))
        found.append(Checkpoint(layer, "resid_post"))
    return tuple(found)


def checkpoint_index(checkpoints: Sequence[Checkpoint], layer: int, site: str) -> int:
    """Where ``site`` of ``layer`` stands among ``checkpoints``.

    ``resid_pre.l`` is ``resid_post.(l-1)`` by another name; negative layers count from the end.

    Raises:
        InputError: the model has no such layer, or the layer has no such site.
    """
    n_layers = 1 + max(checkpoint.layer for checkpoint in checkpoints)
    absolute = layer + n_layers if layer < 0 else layer
    if not 0 <= absolute < n_layers:
        raise InputError(f"layer {layer} is out of range: the model has layers 0 to {n_layers - 1}")
    if site == "resid_pre" and absolute > 0:
        absolute, site = absolute - 1, "resid_post"
    for index, checkpoint in enumerate(checkpoints):
        if (checkpoint.layer, checkpoint.site) == (absolute, site):
            return index
    if site == "resid_mid":
        raise InputError(
            f"layer {absolute} has no resid_mid: its attention and MLP read the same state in parallel; use resid_post"
        )
    raise InputError(f"unknown site {site!r}: use resid_pre, resid_mid or resid_post")
