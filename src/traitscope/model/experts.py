"""Mixtures of experts: which experts read a token, with what weight, and what their neurons said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the stacked weights of experts, as transformers' experts do."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.dim() == 3


@dataclass(frozen=True)
class ExpertsCall:
    """What the chosen experts did with each token.

    Attributes:
        chosen: ``[seq, top_k]`` int64, numbers of experts.
        weights: ``[seq, top_k]``, by which their outputs are added up.
        neurons: ``[seq, top_k, d_expert]``, the inputs of their down projections.
    """

    chosen: torch.Tensor
    weights: torch.Tensor
    neurons: torch.Tensor


def neurons_of(experts: Any, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> ExpertsCall:
    """Compute the neurons of the chosen experts from what the module received: states ``[seq, d_model]``.

    Raises:
        RuntimeError: the experts are built in a way that is not known here.
    """
    if getattr(experts, "has_post_expert_norm", False) or not hasattr(experts, "gate_up_proj"):
        raise RuntimeError(f"{type(experts).__name__}: its experts' neurons cannot be read; leave out neurons")
    n_inner = expert_width(experts)
    neurons = states.new_zeros(*chosen.shape, n_inner)
    for expert in chosen.unique().tolist():
        if expert < experts.down_proj.shape[0]:
            token, slot = torch.where(chosen == expert)
            neurons[token, slot] = _inner(experts, states[token], expert)
    return ExpertsCall(chosen, weights, neurons)


def _inner(experts: Any, states: torch.Tensor, expert: int) -> torch.Tensor:
    weight = experts.gate_up_proj[expert]
    both = states @ weight if _is_transposed(experts) else states @ weight.T
    if (bias := getattr(experts, "gate_up_proj_bias", None)) is not None:
        both = both + bias[expert]
    return experts._apply_gate(both)


def _is_transposed(experts: Any) -> bool:
    return bool(getattr(experts, "is_transposed", False))


def expert_width(experts: Any) -> int:
    """Neurons of one expert."""
    return experts.down_proj.shape[1 if _is_transposed(experts) else 2]


def down_projections(experts: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output weights ``[n_experts, d_model, d_expert]`` and biases ``[n_experts, d_model]``."""
    weights = experts.down_proj.transpose(1, 2) if _is_transposed(experts) else experts.down_proj
    return weights, getattr(experts, "down_proj_bias", None)
