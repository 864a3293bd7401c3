"""Reading every checkpoint of the residual stream while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from traitscope.model.anatomy import Anatomy, Site
from traitscope.model.tensors import arguments, nth_wide_tensor

Observer = Callable[[int, torch.Tensor], None]
"""Called with a checkpoint's index and its state ``[tokens, d_model]`` in the model's dtype, tokens in
row-major order of ``[batch, seq]``. The state is the model's own memory: read it, never keep it."""


@contextmanager
def watch(module: nn.Module, anatomy: Anatomy, observe: Observer) -> Iterator[None]:
    """Call ``observe`` at each checkpoint of every forward pass inside the block.

    The hooks are gone when the block is left, also by an exception.
    """
    handles = []
    try:
        for index, checkpoint in enumerate(anatomy.checkpoints):
            site = anatomy.site(checkpoint)
            handles.append(_hook(module.get_submodule(site.module), site, index, anatomy.d_model, observe))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, site: Site, checkpoint: int, d_model: int, observe: Observer) -> Any:
    def read(values: Any) -> None:
        state = nth_wide_tensor(values, d_model, site.index)
        if state is None:
            raise RuntimeError(f"{site.module} no longer passes the residual stream at its {site.end}")
        observe(checkpoint, state.reshape(-1, d_model))

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        read(arguments(args, kwargs) if kwargs else args)

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        read(output)

    if site.end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
