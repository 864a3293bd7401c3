"""Pushing the residual stream: adding a vector to ``resid_post`` of chosen layers while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from traitscope.checkpoints import Checkpoint
from traitscope.model.anatomy import Anatomy, Site
from traitscope.model.tensors import nth_wide_tensor, with_nth_wide_tensor

Positions = Literal["prompt", "response", "all"]


@dataclass(frozen=True)
class Steering:
    """What is added to one row.

    Attributes:
        additions: ``[d_model]`` float32 by layer, added to that layer's ``resid_post``.
        positions: whose states are pushed. Position 0 never is: its state is massive, and everything attends to it.
    """

    additions: Mapping[int, torch.Tensor]
    positions: Positions = "response"

    @property
    def of_prompt(self) -> bool:
        return self.positions != "response"

    @property
    def of_response(self) -> bool:
        return self.positions != "prompt"

    def reaches(self, position: int, n_prompt: int) -> bool:
        """Whether the state at ``position`` is pushed in a text whose first ``n_prompt`` tokens are the prompt."""
        return position > 0 and (self.of_prompt if position < n_prompt else self.of_response)


class Pushes:
    """The additions of every row of a batch; tells the hooks what to add in the next forward pass."""

    def __init__(self, steerings: Sequence[Steering | None], d_model: int, device: torch.device) -> None:
        self._steerings = tuple(steerings)
        self._device = device
        self._additions = {
            layer: torch.stack([_addition(steering, layer, d_model) for steering in steerings]).to(device)
            for layer in layers_of(steerings)
        }
        self._of_rows: dict[int, torch.Tensor] = {}  # what is added where, to the rows of the next passes
        self._where: torch.Tensor | None = None

    @property
    def layers(self) -> list[int]:
        return sorted(self._additions)

    def prompts(self, rows: Sequence[int], position_ids: torch.Tensor, mask: torch.Tensor) -> None:
        """The next passes read the prompts of ``rows``: ``position_ids`` and ``mask`` are ``[batch, seq]``."""
        self._next(rows, [self._of(row, "of_prompt") for row in rows], (position_ids > 0) & mask.bool())

    def responses(self, rows: Sequence[int], n_tokens: int = 1) -> None:
        """The next passes read ``n_tokens`` response tokens of each of ``rows``."""
        chosen = [self._of(row, "of_response") for row in rows]
        self._next(rows, chosen, torch.ones(len(rows), n_tokens, dtype=torch.bool))

    def nothing(self) -> None:
        """The next passes are not pushed."""
        self._where = None

    def whole(self, n_prompt: int, n_tokens: int) -> None:
        """The next passes read every token of every row: ``n_prompt`` prompt tokens of ``n_tokens``."""
        where = [
            [steering is not None and steering.reaches(position, n_prompt) for position in range(n_tokens)]
            for steering in self._steerings
        ]
        self._next(range(len(where)), [True] * len(where), torch.tensor(where))

    def added_to(self, layer: int, state: torch.Tensor) -> torch.Tensor:
        """A layer's ``[..., d_model]`` states, pushed; a new tensor, as others may still read the old one."""
        if self._where is None:
            return state
        pushed = self._of_rows[layer].to(state.device)[:, None] * self._where.to(state.device)[..., None]
        if state.dim() == pushed.dim():
            return state + pushed.to(state.dtype)  # one row that all steerings begin with becomes one row for each
        return state + pushed.reshape(state.shape).to(state.dtype)

    def _next(self, rows: Sequence[int], chosen: Sequence[bool], where: torch.Tensor) -> None:
        if not any(chosen):
            return self.nothing()
        self._where = (where & torch.tensor(list(chosen), device=where.device)[:, None]).to(self._device)
        numbers = torch.tensor(list(rows), device=self._device)
        self._of_rows = {layer: additions[numbers] for layer, additions in self._additions.items()}
        return None

    def _of(self, row: int, which: Literal["of_prompt", "of_response"]) -> bool:
        steering = self._steerings[row]
        return steering is not None and getattr(steering, which)


def layers_of(steerings: Sequence[Steering | None]) -> list[int]:
    """The layers that any row is pushed at, in order."""
    return sorted({layer for steering in steerings if steering is not None for layer in steering.additions})


def steers_prompt(steerings: Sequence[Steering | None]) -> bool:
    """Whether the prompt of any row is pushed, so that equal tokens no longer mean equal states."""
    return any(steering is not None and steering.of_prompt for steering in steerings)


@contextmanager
def pushing(
    module: nn.Module, anatomy: Anatomy, steerings: Sequence[Steering | None], device: torch.device
) -> Iterator[Pushes | None]:
    """Push every forward pass inside the block as the yielded ``Pushes`` are told; None, and no hook, without steering.

    Enter it before anything that reads the stream: hooks run in the order in which they were put in place, and what
    is read is to hold the push.
    """
    layers = layers_of(steerings)
    if not layers:
        yield None
        return
    pushes = Pushes(steerings, anatomy.d_model, device)
    handles = []
    try:
        for layer in layers:
            site = anatomy.site(Checkpoint(layer, "resid_post"))
            handles.append(_hook(module.get_submodule(site.module), site, layer, anatomy.d_model, pushes))
        yield pushes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def steered_pass(
    module: nn.Module,
    anatomy: Anatomy,
    steering: Steering | None,
    device: torch.device,
    *,
    n_prompt: int,
    n_tokens: int,
) -> Iterator[None]:
    """Push the forward passes over one whole text inside the block."""
    with pushing(module, anatomy, [steering], device) as pushes:
        if pushes is not None:
            pushes.whole(n_prompt, n_tokens)
        yield


def _addition(steering: Steering | None, layer: int, d_model: int) -> torch.Tensor:
    found = None if steering is None else steering.additions.get(layer)
    return torch.zeros(d_model) if found is None else found.float()


def _hook(module: nn.Module, site: Site, layer: int, d_model: int, pushes: Pushes) -> Any:
    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        state = nth_wide_tensor(output, d_model, site.index)
        if state is None:
            raise RuntimeError(f"{site.module} no longer passes the residual stream at its {site.end}")
        return with_nth_wide_tensor(output, d_model, site.index, pushes.added_to(layer, state))

    assert site.end == "output", "a decoder layer's resid_post is what it returns"
    return module.register_forward_hook(after)
