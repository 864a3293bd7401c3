"""The residual stream by another way: the model's own ``hidden_states`` and what each block was measured to add.

Nothing here is shared with decode, capture or replay: one generation at a time, from its token ids, unpadded and
without a cache, with hooks of its own on the outputs of modules only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from traitscope.model.anatomy import Contribution
from traitscope.model.loading import LanguageModel
from traitscope.traits.vectors import TraitVectors

_LAST_BITS = 8
"""How many units in the last place two ways to the same state may lie apart, in units of its norm."""


@dataclass(frozen=True)
class IndependentPass:
    """What one forward pass over a generation gave.

    Attributes:
        states: by checkpoint name, ``[positions, d_model]`` in the stream's dtype, on the CPU.
        logits: ``[response, vocab]``: row i is what response token i was chosen from.
        problems: where two ways to the same state disagree.
        pushes: ``[positions, d_model]`` float64 by layer, what was added to its ``resid_post``.
    """

    states: dict[str, torch.Tensor]
    logits: torch.Tensor
    problems: tuple[str, ...]
    pushes: dict[int, torch.Tensor]


def pushes_of(
    steering: Mapping[str, Any] | None, vectors: Mapping[str, TraitVectors], n_prompt: int, n_positions: int
) -> dict[int, torch.Tensor]:
    """What a dose adds at every position ``[positions, d_model]`` float64, by layer, from the stored vectors.

    α times the median neutral norm of ``resid_post`` times the steerer there; nothing at position 0.
    """
    if steering is None:
        return {}
    trait = vectors[steering["trait"]]
    first, last = {"prompt": (1, n_prompt), "response": (max(n_prompt, 1), n_positions), "all": (1, n_positions)}[
        steering["positions"]
    ]
    pushes = {}
    for layer in steering["layers"]:
        row = trait.checkpoints.index(f"resid_post.{layer}")
        push = torch.zeros(n_positions, trait.steerer.shape[1], dtype=torch.float64)
        push[first:last] = steering["alpha"] * trait.calibration.norm[row].double() * trait.steerer[row].double()
        pushes[layer] = push
    return pushes


def independent_pass(
    model: LanguageModel,
    token_ids: Sequence[int],
    n_prompt: int,
    pushes: Mapping[int, torch.Tensor] | None = None,
) -> IndependentPass:
    """Run ``model`` once over ``token_ids`` and derive the state of every checkpoint.

    ``resid_pre.0`` and every ``resid_post`` are the model's ``hidden_states``; the last ``resid_post`` is the last
    layer's output, whose norm must be the last of the ``hidden_states``. ``resid_mid.l`` is what enters layer l
    plus what its first block adds; what leaves it minus what its second block adds must be the same. ``pushes``
    (of ``pushes_of``) are added to what the layers return.
    """
    pushes = dict(pushes or {})
    layers = model.anatomy.layers
    first = {number: layer.contributions[0] for number, layer in enumerate(layers) if layer.kind == "sequential"}
    second = {number: layer.contributions[1] for number, layer in enumerate(layers) if layer.kind == "sequential"}
    modules = {layers[-1].path} | {c.site.module for c in (*first.values(), *second.values())}
    with torch.inference_mode(), pushed_layers(model, pushes), _outputs_of(model.module, modules) as outputs:
        found = model.module(**_inputs(model, token_ids, n_prompt))
        hidden = [state[0] for state in found.hidden_states]
        last_post = _state_in(outputs[layers[-1].path], 0, model.anatomy.d_model)
        problems = list(_final_norm_problems(model, last_post, hidden[-1]))
        entering, leaving = hidden[: len(layers)], [*hidden[1 : len(layers)], last_post]
        states = {"resid_pre.0": entering[0].cpu()}
        for number in range(len(layers)):
            pre, post = entering[number], leaving[number]
            if number in first:
                mid = pre.cpu().double() + _added(first[number], outputs, model.anatomy.d_model)
                other = post.cpu().double() - _added(second[number], outputs, model.anatomy.d_model)
                other = other - pushes.get(number, 0)
                problems += _disagreement(f"resid_mid.{number}", mid, other, pre, post)
                states[f"resid_mid.{number}"] = mid.to(pre.dtype)
            states[f"resid_post.{number}"] = post.cpu()
        logits = found.logits[0, -(len(token_ids) - n_prompt) - 1 : -1].cpu()
    return IndependentPass(states, logits, tuple(problems), pushes)


@contextmanager
def pushed_layers(model: LanguageModel, pushes: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Inside the block these layers return what they compute plus their push; by their ``forward``, not by a hook."""
    layers = [(model.module.get_submodule(model.anatomy.layers[number].path), push) for number, push in pushes.items()]
    for layer, push in layers:
        layer.forward = _pushed_forward(layer.forward, push.to(model.device))
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


def _pushed_forward(forward: Callable[..., Any], push: torch.Tensor) -> Callable[..., Any]:
    def pushed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return output + push.to(output.dtype)
        return (output[0] + push.to(output[0].dtype), *output[1:])

    return pushed


def _inputs(model: LanguageModel, token_ids: Sequence[int], n_prompt: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([list(token_ids)], device=model.device),
        "use_cache": False,
        "output_hidden_states": True,
    }
    if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        inputs["logits_to_keep"] = len(token_ids) - n_prompt + 1
    return inputs


@contextmanager
def _outputs_of(module: Any, paths: set[str]) -> Iterator[dict[str, Any]]:
    """What the modules at ``paths`` return during the block, by path."""
    outputs: dict[str, Any] = {}

    def keep(path: str, output: Any) -> None:
        outputs[path] = output

    handles = [
        module.get_submodule(path).register_forward_hook(lambda _m, _args, output, path=path: keep(path, output))
        for path in paths
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _state_in(output: Any, index: int, d_model: int) -> torch.Tensor:
    """The ``index``-th floating-point tensor of width ``d_model`` in a module's output, as ``[tokens, d_model]``."""
    flat = [output] if isinstance(output, torch.Tensor) else list(_leaves(output))
    wide = [leaf for leaf in flat if leaf.is_floating_point() and leaf.dim() >= 2 and leaf.shape[-1] == d_model]
    return wide[index].reshape(-1, d_model)


def _leaves(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
        return
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, (tuple, list)) else ()
    for part in parts:
        yield from _leaves(part)


def _added(contribution: Contribution, outputs: Mapping[str, Any], d_model: int) -> torch.Tensor:
    """What a block added to the stream: ``[positions, d_model]`` float64 on the CPU."""
    site = contribution.site
    return contribution.scale * _state_in(outputs[site.module], site.index, d_model).cpu().double()


def _final_norm_problems(model: LanguageModel, last_post: torch.Tensor, last_hidden: torch.Tensor) -> Iterator[str]:
    path = model.anatomy.final_norm
    normed = last_post if path is None else model.module.get_submodule(path)(last_post[None])[0]
    name = f"resid_post.{model.n_layers - 1}"
    expected = last_hidden.cpu().double()
    yield from _disagreement(f"the final norm of {name}", normed.cpu().double(), expected, last_hidden)


def _disagreement(name: str, found: torch.Tensor, other: torch.Tensor, *states: torch.Tensor) -> list[str]:
    """A line when two ways to a state ``[positions, d_model]`` lie apart by more than rounding."""
    sizes = torch.stack([state.cpu().double().norm(dim=-1) for state in (found, other, *states)]).amax(dim=0)
    apart = (found - other).norm(dim=-1) / sizes.clamp_min(1e-30)
    most = _LAST_BITS * torch.finfo(states[0].dtype).eps
    position = int(apart.argmax())
    if bool(apart[position] <= most):
        return []
    return [
        f"{name}, position {position}: two independent ways to it lie {float(apart[position]):.1e} of the state's norm "
        f"apart, more than rounding ({most:.1e}) explains"
    ]
