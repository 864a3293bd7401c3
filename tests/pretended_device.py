"""A device that is not there: its tensors say that they are on ``pretended:0`` and are computed on the CPU.

It is as strict as a GPU: an operation on tensors of both devices raises, and so does ``numpy()`` without ``cpu()``.
So a test on a CPU finds the tensor that was left on the wrong device. It says nothing about
a GPU's numbers or speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_NAME = "pretended"
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._unsafe_index.Tensor}
_MATH_ATTENTION = 0


class _Elsewhere(torch.Tensor):
    """``held`` is the tensor on the CPU that holds the numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(_NAME, 0),
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.held.tolist()

    def __getitem__(self, index: Any) -> torch.Tensor:
        """As it is, but for lists, which torch puts on the device where nothing here can see it."""
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(p) if isinstance(p, list) else p for p in parts))

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"elsewhere: {self.held!r}"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    """Sees what makes tensors out of none, and operations on tensors of the CPU alone."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is _aten._fused_sdp_choice.default:
        return _MATH_ATTENTION  # the others are operations of one kind of device
    if func is _aten.histc.default and not args[0].is_floating_point():  # of integers there is one on GPUs only
        return _computed(_aten.to.dtype, (_aten.histc(args[0].float(), *args[1:], **kwargs), args[0].dtype), {})
    leaves = tree_flatten((args, kwargs))[0]
    given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    elsewhere = [tensor for tensor in given if isinstance(tensor, _Elsewhere)]
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if func not in _COPIES and not devices:
        _refuse_both(func, args, given, elsewhere)
    goes_there = devices[0].type == _NAME if devices else bool(elsewhere)
    if func in _COPIES:
        goes_there = isinstance(args[0], _Elsewhere)
    known = {id(tensor.held): tensor for tensor in elsewhere}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def returned(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not goes_there:
            return value
        if id(value) in known:
            return known[id(value)]  # what was written in place
        with torch.inference_mode(value.is_inference()):  # a view is made as what it is a view of
            return _Elsewhere(value.clone() if any(value is tensor for tensor in given) else value)

    return tree_map(returned, found)


def _held(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, _Elsewhere) else value


def _refuse_both(func: Any, args: Any, given: list[torch.Tensor], elsewhere: list[torch.Tensor]) -> None:
    if not elsewhere:
        return
    if func in _INDEXING and isinstance(args[0], _Elsewhere):  # its indices may be on the CPU
        given = [args[0], *args[2:3]]
    others = [
        tuple(t.shape) for t in given if isinstance(t, torch.Tensor) and not isinstance(t, _Elsewhere) and t.dim()
    ]
    if others:
        raise RuntimeError(f"{func}: expected all tensors elsewhere, but tensors {others} are on the CPU")


def _tensor_of(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.tensor``, which allocates where nothing here can see it."""

    def tensor(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
        made = real(data, **more)
        return made if device is None else made.to(device)

    return tensor


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Inside the block the device that is yielded is there."""
    _register()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Pretending(), mock.patch.object(torch, "tensor", _tensor_of(torch.tensor)):
            yield torch.device(_NAME, 0)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


@cache
def _register() -> None:
    """Once for the process; torch has no way back, and a device that nobody names disturbs nobody."""
    _setup_privateuseone_for_python_backend(_NAME)
