"""Whether stored open layers are right: the algebra between them, and the stream and the cache of other passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from traitscope.captures.files import internals_file
from traitscope.model.loading import LanguageModel
from traitscope.verify.asked import Asked
from traitscope.verify.independent import IndependentPass, pushed_layers

_LAST_BITS = 64
"""How many units in the last place two ways to the same tensor may lie apart, in units of the norm of its rows."""

Tensors = Mapping[str, torch.Tensor]


def missing_tensors(run_dir: Path, shard: int, asked: Asked, n_positions: int) -> Iterator[str]:
    """What is not there of the open layers that were asked for, or does not have a row for every position."""
    if not asked.opened:
        return
    path = internals_file(run_dir, shard)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        yield f"{path.name} cannot be read: {error}"
        return
    for layer, names in asked.opened.items():
        for name in names:
            shape = shapes.get(f"{asked.id}/{layer}/{name}")
            if shape is None:
                yield f"{path.name} lacks {name} of layer {layer}"
            elif shape[_sequence_axis(name)] != n_positions or (name == "pattern" and shape[1] != n_positions):
                yield f"{path.name}: {name} of layer {layer} has shape {shape} for {n_positions} positions"


def _sequence_axis(name: str) -> int:
    return {"neurons": 0, "attn_out": 0, "mlp_out": 0, "pattern": 2}.get(name, 1)


def wrong_tensors(
    run_dir: Path, shard: int, asked: Asked, model: LanguageModel, token_ids: tuple[int, ...], true: IndependentPass
) -> Iterator[str]:
    """Where stored open layers contradict each other, the independent pass, or the cache of a third one."""
    if not asked.opened:
        return
    with pushed_layers(model, true.pushes):
        keys_and_values = _cached(model, token_ids)
    for layer in asked.opened:
        stored = _stored(run_dir, shard, asked.id, layer)
        check = _LayerCheck(model, layer, stored)
        for problem in (
            *check.pattern(),
            *check.stream(true),
            *check.projections(),
            *check.cached(keys_and_values[layer]),
        ):
            yield f"layer {layer}: {problem}"


def _stored(run_dir: Path, shard: int, generation: str, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"{generation}/{layer}/"
    with safe_open(internals_file(run_dir, shard), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _cached(model: LanguageModel, token_ids: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Keys and values ``[kv_heads, seq, d_head]`` of every layer, as a cache keeps them."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        ids = torch.tensor([list(token_ids)], device=model.device)
        model.module(input_ids=ids, past_key_values=cache, use_cache=True)
    found: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * model.n_layers
    for number, layer in enumerate(cache.layers[: model.n_layers]):
        if isinstance(getattr(layer, "keys", None), torch.Tensor):
            found[number] = (layer.keys[0].cpu(), layer.values[0].cpu())
    return found


class _LayerCheck:
    """One stored open layer against what it must be equal to."""

    def __init__(self, model: LanguageModel, layer: int, stored: Tensors) -> None:
        self._model, self._layer, self._stored = model, layer, stored
        self._anatomy = model.anatomy.layers[layer]
        self._eps = torch.finfo(model.dtype).eps

    def _apart(self, name: str, found: torch.Tensor, other: torch.Tensor, *sizes: torch.Tensor) -> list[str]:
        """A line when rows ``[..., n, d]`` lie further apart than rounding explains."""
        found, other = found.double(), other.double()
        rows = torch.stack([row.double().norm(dim=-1) for row in (found, other, *sizes)]).amax(dim=0).clamp_min(1e-30)
        apart = float(((found - other).norm(dim=-1) / rows).max())
        if apart <= _LAST_BITS * self._eps:
            return []
        return [f"{name}: {apart:.1e} apart, more than rounding ({_LAST_BITS * self._eps:.1e}) explains"]

    def pattern(self) -> Iterator[str]:
        pattern, v, head_out = (self._stored.get(name) for name in ("pattern", "v", "head_out"))
        if pattern is None:
            return
        pattern = pattern.double()
        if bool(torch.triu(pattern, diagonal=1).any()) or bool((pattern < 0).any()):
            yield "pattern: a position reads what comes behind it, or a weight is negative"
        sums = pattern.sum(dim=-1)
        if (sink := self._stored.get("sink")) is not None:
            sums = sums + sink.double()
        if float((sums - 1).abs().max()) > _LAST_BITS * self._eps:
            yield f"pattern: its rows sum to 1 only within {float((sums - 1).abs().max()):.1e}"
        if v is not None and head_out is not None:
            each = v.double().repeat_interleave(pattern.shape[0] // v.shape[0], dim=0)
            yield from self._apart("pattern times v is not head_out", pattern @ each, head_out)

    def stream(self, true: IndependentPass) -> Iterator[str]:
        """What the blocks added against the differences of the stream, without what steering added to it."""
        states = true.states
        before = "resid_pre.0" if self._layer == 0 else f"resid_post.{self._layer - 1}"
        pre = states[before].double()
        post = states[f"resid_post.{self._layer}"].double() - true.pushes.get(self._layer, 0)
        attn_out, mlp_out = self._stored.get("attn_out"), self._stored.get("mlp_out")
        if self._anatomy.kind == "sequential":
            mid = states[f"resid_mid.{self._layer}"].double()
            if attn_out is not None:
                yield from self._apart("attn_out is not resid_mid - resid_pre", attn_out, mid - pre, pre, mid)
            if mlp_out is not None:
                yield from self._apart("mlp_out is not resid_post - resid_mid", mlp_out, post - mid, mid, post)
        elif self._anatomy.kind == "parallel" and attn_out is not None and mlp_out is not None:
            both = attn_out.double() + mlp_out.double()
            yield from self._apart("attn_out + mlp_out is not resid_post - resid_pre", both, post - pre, pre, post)

    def projections(self) -> Iterator[str]:
        """Heads and neurons through the layer's own linear maps against what the blocks added."""
        head_out, neurons = self._stored.get("head_out"), self._stored.get("neurons")
        if head_out is not None and "attn_out" in self._stored:
            yield from self._projected("head_out", head_out.transpose(0, 1).flatten(1), "attn_out")
        if neurons is not None and neurons.dim() == 2 and "mlp_out" in self._stored:
            yield from self._projected("neurons", neurons, "mlp_out")

    def _projected(self, name: str, inputs: torch.Tensor, added: str) -> list[str]:
        """None of the layer's maps of that size, with any norm of a block behind it, takes ``inputs`` to ``added``."""
        problems: list[list[str]] = []
        for module in self._model.module.get_submodule(self._anatomy.path).modules():
            if not _maps(module, inputs.shape[-1], self._model.anatomy.d_model):
                continue
            with torch.inference_mode():
                projected = module(inputs.to(self._model.device, self._model.dtype)[None])[0]
                for contribution in self._anatomy.contributions:
                    site = self._model.module.get_submodule(contribution.site.module)
                    is_norm = next(site.children(), None) is None and not _maps(site)
                    for out in (projected, site(projected)) if is_norm else (projected,):
                        claim = f"{name} through the layer's projection is not {added}"
                        scaled = contribution.scale * out.cpu()
                        problems.append(self._apart(claim, scaled, self._stored[added]))
        return min(problems, key=len, default=[])

    def cached(self, keys_and_values: tuple[torch.Tensor, torch.Tensor] | None) -> Iterator[str]:
        if keys_and_values is None:
            return
        for name, cached in zip(("k", "v"), keys_and_values, strict=True):
            stored = self._stored.get(name)
            if stored is not None and stored.shape == cached.shape:
                yield from self._apart(f"{name} is not what a cache holds", stored, cached)


def _maps(module: nn.Module, n_inputs: int | None = None, n_outputs: int | None = None) -> bool:
    """Whether a module is a linear map, of those sizes if given."""
    if isinstance(module, torch.nn.Linear):  # of a quantised one the weight says nothing of its sizes
        return n_inputs is None or (module.in_features, module.out_features) == (n_inputs, n_outputs)
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return False
    shape = tuple(weight.shape) if type(module).__name__ == "Conv1D" else tuple(reversed(weight.shape))
    return n_inputs is None or shape == (n_inputs, n_outputs)
