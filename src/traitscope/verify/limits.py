"""How far clean captures lie from an independent pass, measured beforehand; docs/verify.md says how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from traitscope.checkpoints import Checkpoint

N_BANDS = 4
_STANDS_FOR = {"float16": "bfloat16"}
_ROUND_INPUTS = ("bnb-8bit",)
"""Quantisers whose layers round what they read: differences in the last bits grow, whatever the dtype. The others round
weights alone and are held to the limits of their dtype."""


@dataclass(frozen=True)
class Limit:
    """The limit of one cell, in the units of ``Difference``.

    Attributes:
        usual: twice the 99.9th percentile of clean runs; a small share of the values may lie beyond it.
        ceiling: twice ``usual`` or twice the largest value of clean runs, whichever is more; nothing may lie beyond.
    """

    usual: float
    ceiling: float


@dataclass(frozen=True)
class Limits:
    """The limits of one dtype.

    Attributes:
        cells: by cell name (``cell_of``).
        share: of a cell's values that may lie beyond its usual limit.
    """

    cells: Mapping[str, Limit]
    share: float

    def of(self, quantity: str, checkpoint: str | None, n_layers: int) -> Limit:
        return self.cells[cell_of(quantity, checkpoint, n_layers)]

    def certainly_seen(self, checkpoint: str, n_layers: int) -> float:
        """The change of one stored score that cannot pass, in units of the state's norm.

        It takes for granted that the score was within its usual limit before. Twice the rounding on disk, 2⁻¹¹ of
        the score itself, comes on top: once for what was stored, once for what verify allows.
        """
        limit = self.of("score", checkpoint, n_layers)
        return limit.ceiling + limit.usual


def cell_of(quantity: str, checkpoint: str | None, n_layers: int) -> str:
    """The cell that a value belongs to: quantity, site and quarter of the depth, e.g. ``score resid_mid 2``."""
    if checkpoint is None:
        return quantity
    state = Checkpoint.from_name(checkpoint)
    if state.site == "resid_pre":
        return f"{quantity} {state.site}"
    return f"{quantity} {state.site} {1 + N_BANDS * state.layer // n_layers}"


def read_limits(dtype: str, quantization: str | None = None) -> Limits:
    """The limits for a model of ``dtype``; those of bfloat16 stand for float16, which rounds less.

    Raises:
        KeyError: there are none for this dtype.
    """
    name = quantization if quantization in _ROUND_INPUTS else _STANDS_FOR.get(dtype, dtype)
    described = json.loads((resources.files("traitscope.verify") / "limits.json").read_text())
    cells = described["limits"][name]
    return Limits({name: Limit(cell["usual"], cell["ceiling"]) for name, cell in cells.items()}, described["share"])
