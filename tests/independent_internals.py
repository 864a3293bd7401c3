"""What a layer computes, by other ways than traitscope's: paths and formulas as read in each architecture's source."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf

from independent import LAYERS, independent_states

HEADS_INTO = {
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "bloom": "self_attention.dense",
    "opt": "self_attn.out_proj",
    "phi": "self_attn.dense",
}
NEURONS_INTO = {
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "bloom": "mlp.dense_4h_to_h",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "olmoe": "mlp.experts",
    "gpt_oss": "mlp.experts",
}
EXPERTS = {"olmoe", "gpt_oss"}
QUERY_PROJECTION = {
    "gpt2": "attn.c_attn",
    "bloom": "self_attention.query_key_value",
    "opt": "self_attn.q_proj",
    "phi": "self_attn.q_proj",
}
N_HEADS, D_HEAD = 4, 8  # of all tiny models


def layers_of(model: Any, architecture: str) -> Any:
    return model.get_submodule(LAYERS.get(architecture, "model.layers"))


def heads_projection(layer: Any, architecture: str) -> Any:
    """The output projection of a layer's attention."""
    return layer.get_submodule(HEADS_INTO.get(architecture, "self_attn.o_proj"))


def neurons_projection(layer: Any, architecture: str) -> Any:
    """The down projection of a layer's MLP, or the module that holds its experts."""
    return layer.get_submodule(NEURONS_INTO.get(architecture, "mlp.down_proj"))


def run(model: Any, token_ids: Sequence[int], **arguments: Any) -> Any:
    """One uncached pass over unpadded ids."""
    given = {"input_ids": torch.tensor([list(token_ids)]), "use_cache": False, **arguments}
    with torch.inference_mode():
        return model(**given)


def keys_and_values(model: Any, token_ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the KV cache holds of each layer: ``[kv_heads, seq, d_head]``. It is one that forgets no token."""
    cache = run(model, token_ids, use_cache=True, past_key_values=tf.DynamicCache()).past_key_values
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def patterns(model: Any, token_ids: Sequence[int]) -> list[torch.Tensor]:
    """Eager attention's own weights ``[heads, seq, seq]``."""
    original = model.config._attn_implementation
    if original != "eager":
        model.set_attn_implementation("eager")
    try:
        return [weights[0] for weights in run(model, token_ids, output_attentions=True).attentions]
    finally:
        if original != "eager":
            model.set_attn_implementation(original)


def queries(model: Any, architecture: str, token_ids: Sequence[int]) -> list[torch.Tensor]:
    """Queries ``[heads, seq, d_head]`` as attention uses them, behind the rotary embedding if there is one."""
    if architecture not in QUERY_PROJECTION:
        return _rotated_queries(model, token_ids)
    projections = [layer.get_submodule(QUERY_PROJECTION[architecture]) for layer in layers_of(model, architecture)]
    with recorded(projections, "output") as projected:
        rotated = _rotated_queries(model, token_ids) if architecture == "phi" else run(model, token_ids)
    each = []
    for layer, output in enumerate(projected):
        if architecture == "bloom":  # query, key and value of one head, then those of the next
            heads = output.view(-1, N_HEADS, 3, D_HEAD)[:, :, 0]
        else:
            heads = output[:, : N_HEADS * D_HEAD].view(-1, N_HEADS, D_HEAD)
        heads = heads.transpose(0, 1)
        if architecture == "opt":
            heads = heads * D_HEAD**-0.5
        if architecture == "phi":  # half of each head is rotated
            n_rotated = rotated[layer].shape[-1]
            heads = torch.cat([rotated[layer], heads[..., n_rotated:]], dim=-1)
        each.append(heads)
    return each


def _rotated_queries(model: Any, token_ids: Sequence[int]) -> list[torch.Tensor]:
    source: Any = sys.modules[type(model).__module__]
    rotate, seen = source.apply_rotary_pos_emb, []

    def rotate_and_keep(*args: Any, **kwargs: Any) -> Any:
        rotated = rotate(*args, **kwargs)
        seen.append(rotated[0][0].clone())
        return rotated

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(source, "apply_rotary_pos_emb", rotate_and_keep)
        run(model, token_ids)
    return seen


def head_outputs(model: Any, architecture: str, token_ids: Sequence[int]) -> list[torch.Tensor]:
    """What each head read ``[heads, seq, d_head]``: the output projection's input, heads side by side."""
    with recorded([heads_projection(layer, architecture) for layer in layers_of(model, architecture)], "input") as seen:
        run(model, token_ids)
    return [given.unflatten(-1, (model.config.num_attention_heads, -1)).transpose(0, 1) for given in seen]


def neurons(model: Any, architecture: str, token_ids: Sequence[int]) -> list[torch.Tensor]:
    """The down projection's input ``[seq, d_mlp]``."""
    projections = [neurons_projection(layer, architecture) for layer in layers_of(model, architecture)]
    with recorded(projections, "input") as seen:
        run(model, token_ids)
    return seen


@torch.inference_mode()
def expert_neurons(
    model: Any, architecture: str, token_ids: Sequence[int]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each layer: neurons ``[seq, 2, d_expert]``, experts and router weights ``[seq, 2]``, token by token."""
    blocks = [layer.mlp for layer in layers_of(model, architecture)]
    with recorded(blocks, "input") as seen:
        run(model, token_ids)
    one = _olmoe_expert if architecture == "olmoe" else _gpt_oss_expert
    route = _olmoe_route if architecture == "olmoe" else _gpt_oss_route
    layers = []
    for block, states in zip(blocks, seen, strict=True):
        chosen, weights = zip(*(route(block, state) for state in states), strict=True)
        inner = [
            torch.stack([one(block.experts, state, int(expert)) for expert in experts])
            for state, experts in zip(states, chosen, strict=True)
        ]
        layers.append((torch.stack(inner), torch.stack(chosen), torch.stack(weights)))
    return layers


def _olmoe_route(block: Any, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights, chosen = (block.gate.weight @ state).softmax(dim=-1).topk(2)
    return chosen, weights


def _olmoe_expert(experts: Any, state: torch.Tensor, expert: int) -> torch.Tensor:
    width = experts.gate_up_proj.shape[1] // 2
    gate, up = experts.gate_up_proj[expert, :width] @ state, experts.gate_up_proj[expert, width:] @ state
    return gate * torch.sigmoid(gate) * up


def _gpt_oss_route(block: Any, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits, chosen = (block.router.weight @ state + block.router.bias).topk(2)
    return chosen, logits.softmax(dim=-1)


def _gpt_oss_expert(experts: Any, state: torch.Tensor, expert: int) -> torch.Tensor:
    both = state @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def blocks_added(model: Any, architecture: str, token_ids: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    """Of each layer: what attention and MLP added, ``[seq, d_model]``; their sum alone for parallel blocks."""
    states = independent_states(model, architecture, token_ids)
    added, before = [], states["resid_pre.0"]
    for layer in range(len(layers_of(model, architecture))):
        middle, after = states.get(f"resid_mid.{layer}"), states[f"resid_post.{layer}"]
        added.append((after - before,) if middle is None else (middle - before, after - middle))
        before = after
    return added


@contextmanager
def recorded(modules: Sequence[Any], end: str) -> Iterator[list[torch.Tensor]]:
    """The first argument or the output of each module, ``[seq, width]``, in order of execution."""
    seen: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> None:
        seen.append(tensor.detach().flatten(0, -2).clone())

    if end == "input":
        handles = [module.register_forward_pre_hook(lambda _m, args: keep(args[0])) for module in modules]
    else:
        handles = [module.register_forward_hook(lambda _m, _a, output: keep(output)) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
