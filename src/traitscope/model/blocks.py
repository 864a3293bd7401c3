"""How the attention and MLP block of each layer write to the residual stream, found by running the model.

What a block adds is its last linear map, of what its heads read or its neurons say, with at most one norm or
multiplier behind it: ``contribution = scale · gain ⊙ (W · input + bias)``. The scale of a norm is measured on every
token, which makes the block's write linear in its heads and neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from traitscope.model.anatomy import Anatomy, Contribution, LayerAnatomy
from traitscope.model.attention import AttentionCall, attention_calls
from traitscope.model.experts import is_experts
from traitscope.model.quantisation import is_linear, plain_weight, rounds_inputs
from traitscope.model.tensors import SAME_WITHIN, nth_wide_tensor

_PROBE_LENGTH = 8


@dataclass(frozen=True)
class Block:
    """What one block adds and the map that it comes from.

    Attributes:
        contribution: what is added to the stream.
        projection: path of its last linear map (or of the module that holds its experts), where it was found.
        norm: path of a norm between the two.
        multiplier: of the projection's output, in what is added; the scale of a norm comes on top.
        experts: whether the projection is a mixture of experts.
        problem: why the write cannot be split into heads or neurons, or None.
    """

    contribution: Contribution
    projection: str | None = None
    norm: str | None = None
    multiplier: float = 1.0
    experts: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class LayerBlocks:
    """The blocks of one layer. ``attention_module`` is the path of what computes attention, where that was seen."""

    attention: Block | None
    mlp: Block | None
    attention_module: str | None
    attention_problem: str | None


def find_blocks(module: Any, anatomy: Anatomy) -> tuple[LayerBlocks, ...]:
    """Run ``module`` on a few random tokens and explain how each layer's blocks write."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    owners = [module.get_submodule(layer.path) for layer in anatomy.layers]
    calls: dict[str, AttentionCall] = {}
    records = [_Record() for _ in anatomy.layers]
    generator = torch.Generator().manual_seed(0)
    vocab_size = int(module.config.get_text_config().vocab_size)
    ids = torch.randint(min(3, vocab_size - 1), vocab_size, (1, _PROBE_LENGTH), generator=generator)
    with ExitStack() as stack:
        stack.enter_context(
            attention_calls(module, owners, lambda call: calls.__setitem__(paths[id(call.module)], call))
        )
        for layer, record in zip(anatomy.layers, records, strict=True):
            stack.enter_context(_recorded(module, layer, anatomy.d_model, record))
        with torch.inference_mode():
            module(input_ids=ids.to(next(module.parameters()).device), use_cache=False)
    return tuple(
        _explain(module, layer, record, {p: c for p, c in calls.items() if p.startswith(f"{layer.path}.")})
        for layer, record in zip(anatomy.layers, records, strict=True)
    )


class _Record:
    """Linear maps and experts of one layer in order of execution, and what its blocks added."""

    def __init__(self) -> None:
        self.maps: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self.added: dict[str, torch.Tensor] = {}


@contextmanager
def _recorded(module: Any, layer: LayerAnatomy, d_model: int, record: _Record) -> Iterator[None]:
    handles = []

    def keep_map(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, output: Any) -> None:
            if output.shape[-1] == d_model:
                record.maps.append((path, args[0].flatten(0, -2), output.flatten(0, -2).clone()))

        return hook

    def keep_added(contribution: Contribution) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            added = nth_wide_tensor(output, d_model, contribution.site.index)
            assert added is not None
            record.added[contribution.site.module] = added.flatten(0, -2).clone()  # it may be added to in place

        return hook

    try:
        for name, inner in module.get_submodule(layer.path).named_modules():
            if is_linear(inner) or is_experts(inner):
                handles.append(inner.register_forward_hook(keep_map(f"{layer.path}.{name}")))
        for contribution in layer.contributions:
            site = module.get_submodule(contribution.site.module)
            handles.append(site.register_forward_hook(keep_added(contribution)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def weight_and_bias(linear: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A linear map's weight as ``[out, in]``, with quantised ones multiplied out, and its bias ``[out]``."""
    weight = plain_weight(linear)
    bias: Any = linear.bias
    return (weight.T if type(linear).__name__ == "Conv1D" else weight), bias


def _explain(module: Any, layer: LayerAnatomy, record: _Record, calls: dict[str, AttentionCall]) -> LayerBlocks:
    blocks = [_found_projection(module, contribution, record) for contribution in layer.contributions]
    attention_path, call = next(iter(calls.items()), (None, None))
    attention, mlp = _told_apart(blocks, layer, attention_path)
    problem = None
    if call is None:
        problem = f"{layer.path} has no attention that goes through transformers' AttentionInterface"
    elif attention is not None:
        attention = _checked_heads(attention, call, record)
    if attention is not None and problem and not attention.problem:
        attention = replace(attention, problem=problem)
    return LayerBlocks(attention, mlp, attention_path, problem)


def _found_projection(module: Any, contribution: Contribution, record: _Record) -> Block:
    """The last map whose output, scaled or normed, is what the block added."""
    added = record.added[contribution.site.module].float()
    for path, _, output in reversed(record.maps):
        experts = is_experts(module.get_submodule(path))
        if (multiplier := _multiplier(output.float(), added)) is not None:
            return _unless_rounded(module, Block(contribution, path, None, contribution.scale * multiplier, experts))
        site = module.get_submodule(contribution.site.module)
        if _is_leaf(site) and not is_linear(site):
            scales = norm_scales(output, norm_gain(site, output), added)
            if _close(scales[:, None] * norm_gain(site, output) * output.float(), added, output.dtype):
                norm = contribution.site.module
                return _unless_rounded(module, Block(contribution, path, norm, contribution.scale, experts))
    name = type(module.get_submodule(contribution.site.module)).__name__
    return Block(contribution, problem=f"what {name} adds is not one linear map of heads or neurons")


def _unless_rounded(module: Any, block: Block) -> Block:
    """The block, which cannot be split where its projection rounds what it reads."""
    projection = module.get_submodule(block.projection)
    if not rounds_inputs(projection):
        return block
    problem = f"{type(projection).__name__} rounds what it reads to 8 bits: what it adds is no sum of heads or neurons"
    return replace(block, problem=problem)


def _multiplier(output: torch.Tensor, added: torch.Tensor) -> float | None:
    if torch.equal(output, added):
        return 1.0
    square = float((output * output).sum())
    if square == 0:
        return None
    factor = float((output * added).sum()) / square
    return factor if factor and _close(factor * output, added, torch.float32) else None


def norm_gain(norm: nn.Module, like: torch.Tensor) -> torch.Tensor:
    """What a norm multiplies every channel with, up to one factor: ``[d_model]`` float32."""
    with torch.inference_mode():
        return norm(torch.ones_like(like[:1])).float().flatten()


def norm_scales(output: torch.Tensor, gain: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Of each token: the factor that takes ``gain ⊙ output`` to what was added, by least squares.

    ``output`` and ``added`` are ``[seq, d_model]``; returns ``[seq]`` float32.
    """
    gained = gain * output.float()
    return (gained * added.float()).sum(-1) / (gained * gained).sum(-1).clamp_min(1e-30)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((found - expected).norm() <= SAME_WITHIN[dtype] * expected.norm())


def _told_apart(
    blocks: Sequence[Block], layer: LayerAnatomy, attention_path: str | None
) -> tuple[Block | None, Block | None]:
    """Which block is attention and which the MLP: by where the projection lies, else by their order."""

    def is_attention(block: Block) -> bool:
        where = block.projection or block.contribution.site.module
        return attention_path is not None and where.startswith(f"{attention_path}.")

    if layer.kind == "single":
        return (blocks[0], None) if is_attention(blocks[0]) else (None, blocks[0])
    first, second = blocks
    return (second, first) if is_attention(second) else (first, second)


def _checked_heads(attention: Block, call: AttentionCall, record: _Record) -> Block:
    """Refuse what stands between the heads and their projection, such as a gate."""
    if attention.problem:
        return attention
    given = next(given for path, given, _ in record.maps if path == attention.projection)
    heads_read = call.output.transpose(0, 1).flatten(1)
    if given.shape != heads_read.shape or not _close(heads_read.float(), given.float(), given.dtype):
        name = type(call.module).__name__
        problem = f"{name} changes what its heads read (a gate or a norm) before the output projection"
        return replace(attention, problem=problem)
    return attention
