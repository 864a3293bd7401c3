"""Finding the residual stream's tensor among what a module receives and returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

SAME_WITHIN = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Relative difference within which two ways to a tensor of a dtype count as the same computation."""


def wide_tensors(values: Any, d_model: int) -> Iterator[torch.Tensor]:
    """Floating-point tensors ``[..., d_model]`` in a module's arguments or outputs, in order."""
    if isinstance(values, torch.Tensor):
        if _is_wide(values, d_model):
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from wide_tensors(value, d_model)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from wide_tensors(value, d_model)


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Positional and keyword arguments as one tuple."""
    return (*args, *kwargs.values())


def nth_wide_tensor(values: Any, d_model: int, index: int) -> torch.Tensor | None:
    """The ``index``-th of ``wide_tensors``, or None."""
    first = values[0] if isinstance(values, tuple) and values else values
    if index == 0 and _is_wide(first, d_model):
        return first  # nearly always; hooks ask at every checkpoint of every step
    return next(islice(wide_tensors(values, d_model), index, None), None)


def with_nth_wide_tensor(values: Any, d_model: int, index: int, replacement: torch.Tensor) -> Any:
    """``values`` with the ``index``-th of its ``wide_tensors`` replaced; nothing is changed in place."""
    replaced, _ = _replaced(values, d_model, index, replacement)
    return replaced


def _replaced(values: Any, d_model: int, index: int, replacement: torch.Tensor) -> tuple[Any, int]:
    """The values, and how many wide tensors are still to be passed; below zero once it was replaced."""
    if isinstance(values, torch.Tensor):
        if not _is_wide(values, d_model):
            return values, index
        return (replacement if index == 0 else values), index - 1
    if type(values) in (tuple, list):
        items = []
        for value in values:
            item, index = _replaced(value, d_model, index, replacement)
            items.append(item)
        return type(values)(items), index
    if any(True for _ in wide_tensors(values, d_model)):
        raise RuntimeError(f"the residual stream cannot be replaced inside a {type(values).__name__}")
    return values, index


def _is_wide(value: Any, d_model: int) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() >= 2
        and value.shape[-1] == d_model
    )
