"""What can be kept of an open layer, by name."""

from __future__ import annotations

from typing import Literal, get_args

TensorName = Literal["q", "k", "v", "pattern", "head_out", "neurons", "attn_out", "mlp_out"]
TENSORS: tuple[TensorName, ...] = get_args(TensorName)
COMPANIONS: dict[str, tuple[str, ...]] = {"pattern": ("sink",), "neurons": ("experts", "router")}
"""What comes along with a tensor where the model has it: the weight of a sink, the chosen experts and their weights."""
EVERY_STORED = (*TENSORS, *(name for names in COMPANIONS.values() for name in names))
