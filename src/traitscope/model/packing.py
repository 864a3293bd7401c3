"""Linear layers packed for batches of few rows, where a CPU spends most of a decode step.

oneDNN multiplies few rows with weights that it has laid out beforehand up to twice as fast as with PyTorch's own
layout, on some processors: in float32, and in bfloat16 where the processor multiplies that itself. Whether it does here
is timed on one layer. They are kept in both layouts: the parameters stay what they are, and whatever runs outside of
``in_use``, such as ``verify``, computes with them.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from traitscope.model.quantisation import is_quantised

_ROWS = 32  # what the layout is made for
_LEAST_WEIGHTS = 100_000
_MOST_OF_FREE_MEMORY = 0.25
_X86 = ("x86_64", "AMD64")
_TIMED_ROWS = 24
_TIMED_LAYERS = 12  # of a shape, so that weights come from memory as in a model, not from a cache
_TIMED_SECONDS = 0.2
_LEAST_ROUNDS = 5
_WORTH_IT = 0.95

Shape = tuple[int, int]


class PackedLinears:
    """The packed layers of one model: those of the shapes for which it pays on this machine, packed when first used.

    Attributes:
        shapes: ``(out, in)`` of what is packed. It may be set; what is computed differs in the last bits, so a run
            keeps to what it began with.
    """

    def __init__(self, module: nn.Module) -> None:
        self._linears: dict[Shape, list[nn.Linear]] = {}
        for linear in module.modules():
            if type(linear) is nn.Linear and _can_be_packed(linear):
                self._linears.setdefault(_shape(linear), []).append(linear)
        self._packed: dict[nn.Linear, Callable[[torch.Tensor], torch.Tensor]] = {}
        self.shapes: frozenset[Shape] = frozenset()
        if 0 < self._n_bytes() <= _MOST_OF_FREE_MEMORY * psutil.virtual_memory().available:
            self.shapes = frozenset(shape for shape, linears in self._linears.items() if _pays(linears))

    @property
    def possible(self) -> frozenset[Shape]:
        """All shapes that can be packed here."""
        return frozenset(self._linears)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the block layers of these shapes compute with packed weights."""
        chosen = [linear for shape in self.shapes & self.possible for linear in self._linears[shape]]
        for linear in chosen:
            if linear not in self._packed:
                self._packed[linear] = _packed_forward(linear)
            linear.forward = self._packed[linear]  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for linear in chosen:
                del linear.forward

    def _n_bytes(self) -> int:
        weights = (linear.weight for linears in self._linears.values() for linear in linears)
        return sum(weight.numel() * weight.itemsize for weight in weights)


def _shape(linear: nn.Linear) -> Shape:
    return linear.out_features, linear.in_features


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


def _pays(linears: Sequence[nn.Linear]) -> bool:
    """Whether layers of one shape take clearly less time packed: the median of rounds of both, one after the other."""
    timed = linears[:_TIMED_LAYERS]
    states = timed[0].weight.new_ones(_TIMED_ROWS, timed[0].in_features)
    packed = [_packed_forward(linear) for linear in timed]
    ratios: list[float] = []
    began = time.perf_counter()
    with torch.inference_mode():
        _seconds(packed, states), _seconds(timed, states)
        while len(ratios) < _LEAST_ROUNDS or time.perf_counter() - began < _TIMED_SECONDS:
            ratios.append(_seconds(packed, states) / _seconds(timed, states))
    return statistics.median(ratios) <= _WORTH_IT


def _seconds(forwards: Sequence[Callable[[torch.Tensor], torch.Tensor]], states: torch.Tensor) -> float:
    started = time.perf_counter()
    for forward in forwards:
        forward(states)
    return time.perf_counter() - started


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
