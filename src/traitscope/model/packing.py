"""Linear layers packed for batches of few rows, where a CPU spends most of a decode step.

oneDNN multiplies few rows with weights that it has laid out beforehand up to twice as fast as with PyTorch's own
layout: in float32, and in bfloat16 where the processor multiplies that itself. They are kept in both layouts: the
parameters stay what they are, and whatever runs outside of ``in_use``, such as ``verify``, computes with them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from traitscope.model.quantisation import is_quantised

_ROWS = 32  # what the layout is made for; more rows are no slower than without
_LEAST_WEIGHTS = 100_000
_MOST_OF_FREE_MEMORY = 0.25
_X86 = ("x86_64", "AMD64")


class PackedLinears:
    """The packed layers of one model. They are packed when first used.

    ``wanted`` may be set; what is computed differs in the last bits, so a run keeps to what it began with.
    """

    def __init__(self, module: nn.Module) -> None:
        self._linears = [m for m in module.modules() if type(m) is nn.Linear and _can_be_packed(m)]
        self._forwards: list[Callable[[torch.Tensor], torch.Tensor]] | None = None
        n_bytes = sum(linear.weight.numel() * linear.weight.itemsize for linear in self._linears)
        self.wanted = 0 < n_bytes <= _MOST_OF_FREE_MEMORY * psutil.virtual_memory().available

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the block, where they are ``wanted``, the layers compute with packed weights."""
        if not self.wanted:
            yield
            return
        if self._forwards is None:
            self._forwards = [_packed_forward(linear) for linear in self._linears]
        for linear, forward in zip(self._linears, self._forwards, strict=True):
            linear.forward = forward  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for linear in self._linears:
                del linear.forward


def _can_be_packed(linear: nn.Linear) -> bool:
    weight = linear.weight
    return (
        not is_quantised(linear)
        and platform.machine() in _X86
        and torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype in _fast_dtypes()
        and weight.numel() >= _LEAST_WEIGHTS
    )


def _fast_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes whose products this processor makes by itself."""
    narrow = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return (torch.float32, torch.bfloat16) if narrow else (torch.float32,)


def _packed_forward(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    # What torch.compile's freezing calls for a linear layer on a CPU; torch has no public name for it.
    with torch.inference_mode():
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
    bias = linear.bias

    def forward(states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")

    return forward
