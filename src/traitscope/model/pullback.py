"""How much each dimension of a head and each neuron counts towards directions of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from traitscope.model.blocks import Block, norm_gain, weight_and_bias
from traitscope.model.experts import down_projections
from traitscope.model.loading import LanguageModel


@dataclass(frozen=True)
class PulledBack:
    """Directions of the stream pulled back through a block's last linear map, float32.

    Attributes:
        weights: ``[n_directions, n_inputs]``, what one unit of each input adds to ``stream · direction``, before the
            block's scale. Inputs are the concatenated heads, the neurons, or the neurons of one expert after another.
        bias: ``[n_directions]``, what the bias adds; ``[n_directions, n_experts]`` for experts.
        n_experts: of a mixture of experts, else None.
    """

    weights: np.ndarray
    bias: np.ndarray
    n_experts: int | None


def pull_back(model: LanguageModel, block: Block, directions: torch.Tensor) -> PulledBack:
    """Pull ``directions`` ``[n_directions, d_model]`` float32 back through a block that has a projection.

    A norm behind the projection multiplies each channel with its gain; its scale is left to the caller, who has
    measured it (``LayerInternals.attn_scale``, ``mlp_scale``).
    """
    assert block.projection is not None
    projection: Any = model.module.get_submodule(block.projection)
    with torch.inference_mode():
        weight, bias = down_projections(projection) if block.experts else weight_and_bias(projection)
        at = directions.to(weight.device, torch.float32)
        if block.norm is not None:
            norm = model.module.get_submodule(block.norm)
            at = at * norm_gain(norm, torch.empty(1, at.shape[1], dtype=weight.dtype, device=weight.device))
        pulled = torch.einsum("ko,...oi->k...i", at, weight.float()).flatten(1)
        if bias is None:
            biases = at.new_zeros(len(at), *weight.shape[:-2])
        else:
            biases = torch.einsum("ko,...o->k...", at, bias.float())
    return PulledBack(pulled.cpu().numpy(), biases.cpu().numpy(), n_experts_of(model, block))


def n_experts_of(model: LanguageModel, block: Block) -> int | None:
    """How many experts a block has; None for a plain MLP or attention."""
    if not block.experts:
        return None
    assert block.projection is not None
    return down_projections(model.module.get_submodule(block.projection))[0].shape[0]
