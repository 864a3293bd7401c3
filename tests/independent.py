"""The residual stream by another way: ``hidden_states``, and what each attention block is known to add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# What attention adds to the stream, as read in the source of each architecture.
ATTENTION_ADDS: dict[str, tuple[str, float]] = {
    "llama": ("self_attn", 1.0),
    "qwen2": ("self_attn", 1.0),
    "qwen3": ("self_attn", 1.0),
    "gemma2": ("post_attention_layernorm", 1.0),
    "gemma3": ("post_attention_layernorm", 1.0),
    "mistral": ("self_attn", 1.0),
    "phi3": ("self_attn", 1.0),
    "gpt2": ("attn", 1.0),
    "olmo2": ("post_attention_layernorm", 1.0),
    "olmoe": ("self_attn", 1.0),
    "granite": ("self_attn", 0.22),
    "bloom": ("self_attention.dense", 1.0),
    "opt": ("self_attn", 1.0),
    "gpt_oss": ("self_attn", 1.0),
}
LAYERS = {
    "gpt2": "transformer.h",
    "bloom": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}


def independent_states(model: Any, architecture: str, token_ids: Sequence[int]) -> dict[str, torch.Tensor]:
    """State ``[seq, d_model]`` of every checkpoint, by name, from one uncached pass over unpadded ids."""
    layers = model.get_submodule(LAYERS.get(architecture, "model.layers"))
    added: dict[int, torch.Tensor] = {}
    last_post: list[torch.Tensor] = []
    handles = [layers[-1].register_forward_hook(_keep(lambda t: last_post.append(t)))]
    if architecture in ATTENTION_ADDS:
        path, scale = ATTENTION_ADDS[architecture]
        for number, layer in enumerate(layers):
            keep = _keep(lambda t, number=number: added.__setitem__(number, scale * t))
            handles.append(layer.get_submodule(path).register_forward_hook(keep))
    try:
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([list(token_ids)], device=model.device),
                use_cache=False,
                output_hidden_states=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    d_model = output.hidden_states[0].shape[-1]
    entering = [state[0] for state in output.hidden_states[: len(layers)]]
    states = {"resid_pre.0": entering[0]}
    for number in range(len(layers)):
        if number in added:
            states[f"resid_mid.{number}"] = entering[number] + added[number].reshape(-1, d_model)
        is_last = number == len(layers) - 1
        states[f"resid_post.{number}"] = last_post[0].reshape(-1, d_model) if is_last else entering[number + 1]
    return {name: state.cpu() for name, state in states.items()}


def independent_logprobs(model: Any, token_ids: Sequence[int], n_prompt: int) -> torch.Tensor:
    """Log-probabilities of the response tokens from one uncached pass."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False).logits[0].cpu()
    logprobs = logits[n_prompt - 1 : -1].double().log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(token_ids[n_prompt:])[:, None])[:, 0].float()


def _keep(put: Callable[[torch.Tensor], Any]) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        put((output[0] if isinstance(output, tuple) else output).detach().clone())

    return hook
