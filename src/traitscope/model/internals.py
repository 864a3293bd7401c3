"""Layers fully open: everything that attention and MLP computed, from one replay of stored token ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from traitscope.errors import InputError
from traitscope.model.anatomy import Contribution
from traitscope.model.attention import AttentionCall, attention_calls
from traitscope.model.blocks import Block, LayerBlocks, norm_gain, norm_scales
from traitscope.model.experts import ExpertsCall, neurons_of
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay
from traitscope.model.tensors import nth_wide_tensor

TENSORS = ("q", "k", "v", "pattern", "head_out", "neurons", "attn_out", "mlp_out")
"""What can be kept of a layer, see ``LayerInternals``."""
_OF_ATTENTION = ("q", "k", "v", "pattern")


@dataclass(frozen=True)
class LayerInternals:
    """One layer of one text. What was not asked for is None; ``n`` is the number of positions that were asked for.

    Attributes:
        q: ``[heads, seq, d_head]``, after the rotary embedding, as attention used them; ``k`` and ``v`` likewise,
            ``[kv_heads, seq, d_head]``, not repeated for grouped queries.
        pattern: ``[heads, n, seq]`` float32, attention weights of each position over those before it.
        sink: ``[heads, n]`` float32, the weight of the sink where the model has one. A row of ``pattern`` and its
            sink sum to 1.
        head_out: ``[heads, seq, d_head]``, the input of the output projection.
        neurons: ``[seq, d_mlp]``, the input of the MLP's down projection; with a mixture of experts
            ``[seq, top_k, d_expert]``, those of the chosen experts.
        experts: ``[seq, top_k]`` int64, the numbers of the chosen experts.
        router: ``[seq, top_k]``, the weights by which the chosen experts' outputs are added up.
        attn_out, mlp_out: ``[seq, d_model]``, what each block added to the residual stream.
        attn_scale, mlp_scale: ``[seq]`` float32: ``scale · gain ⊙ (projection's output)`` is what was added.
    """

    layer: int
    q: torch.Tensor | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None
    pattern: torch.Tensor | None = None
    sink: torch.Tensor | None = None
    head_out: torch.Tensor | None = None
    neurons: torch.Tensor | None = None
    experts: torch.Tensor | None = None
    router: torch.Tensor | None = None
    attn_out: torch.Tensor | None = None
    mlp_out: torch.Tensor | None = None
    attn_scale: torch.Tensor | None = None
    mlp_scale: torch.Tensor | None = None

    def kept(self) -> dict[str, torch.Tensor]:
        """The tensors that a run keeps, by name, on the device where they were computed."""
        names = (*TENSORS, "sink", "experts", "router")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def refuse_unreadable(model: LanguageModel, wanted: Mapping[int, Collection[str]]) -> None:
    """Refuse tensors that a layer of this model does not have or that cannot be read.

    Raises:
        InputError: names the layer, the tensors and why.
    """
    for layer, names in sorted(wanted.items()):
        for unreadable, why in _unreadable(model.blocks[layer]):
            if found := [name for name in unreadable if name in names]:
                raise InputError(f"internals: layer {layer} of {model.name}: {', '.join(found)}: {why}")


def _unreadable(blocks: LayerBlocks) -> Iterator[tuple[tuple[str, ...], str]]:
    if blocks.attention_problem:
        yield _OF_ATTENTION, f"{blocks.attention_problem}; leave them out of keep"
    for names, block in ((("head_out", "attn_out"), blocks.attention), (("neurons", "mlp_out"), blocks.mlp)):
        if block is None:
            yield names, "the layer has no such block; leave them out of keep"
        elif block.projection is None:
            yield names[:1], f"{block.problem}; leave it out of keep"


def open_layers(
    model: LanguageModel,
    token_ids: Sequence[int],
    wanted: Mapping[int, Collection[str]],
    emit: Callable[[LayerInternals], None],
    *,
    positions: Sequence[int] | None = None,
) -> None:
    """Replay ``token_ids`` up to the last of the wanted layers and hand over each when it has run.

    Args:
        wanted: names of ``TENSORS`` by layer.
        emit: called once a layer, in order; the tensors are on the model's device and in its dtype unless
            ``LayerInternals`` says otherwise.
        positions: whose rows of ``pattern`` are computed; None for all.

    Raises:
        RuntimeError: a layer does not do what it did when the model's blocks were found.
    """
    blocks = model.blocks  # now: where they are not known yet they are found by a pass that would be observed below
    queries = torch.tensor(range(len(token_ids)) if positions is None else positions, device=model.device)
    records = {layer: _Record(model, layer, names, queries) for layer, names in wanted.items()}
    by_module = {
        id(inner): record
        for layer, record in records.items()
        for inner in model.module.get_submodule(model.anatomy.layers[layer].path).modules()
    }

    def observe(call: AttentionCall) -> None:
        by_module[id(call.module)].call = call

    calling = [
        model.module.get_submodule(model.anatomy.layers[layer].path)
        for layer, names in wanted.items()
        if set(names) & set(_OF_ATTENTION)
    ]
    with ExitStack() as stack:
        if calling:
            stack.enter_context(attention_calls(model.module, calling, observe))
        for layer, record in records.items():
            stack.enter_context(_opened(model, blocks[layer], record, emit, is_last=layer == max(wanted)))
        with suppress(_EnoughError):
            replay(model, token_ids)


class _EnoughError(Exception):
    """Ends a forward pass behind the last layer that is wanted."""


class _Record:
    """What one open layer gave so far."""

    def __init__(self, model: LanguageModel, layer: int, names: Collection[str], queries: torch.Tensor) -> None:
        self.model, self.layer, self.names, self.queries = model, layer, frozenset(names), queries
        self.call: AttentionCall | None = None
        self.head_input: torch.Tensor | None = None
        self.neurons: torch.Tensor | None = None
        self.experts: ExpertsCall | None = None
        self.projected: dict[str, torch.Tensor] = {}
        self.added: dict[str, torch.Tensor] = {}

    def assembled(self) -> LayerInternals:
        blocks = self.model.blocks[self.layer]
        found: dict[str, Any] = {
            **self._of_attention(),
            "attn_out": self.added.get("attn_out"),
            "mlp_out": self.added.get("mlp_out"),
            "attn_scale": self._scale(blocks.attention, "attn_out"),
            "mlp_scale": self._scale(blocks.mlp, "mlp_out"),
        }
        if self.head_input is not None:
            found["head_out"] = self.head_input.unflatten(-1, (self._n_heads(), -1)).transpose(0, 1)
        if self.experts is not None:
            found |= {"neurons": self.experts.neurons, "experts": self.experts.chosen, "router": self.experts.weights}
        elif self.neurons is not None:
            found["neurons"] = self.neurons
        return LayerInternals(self.layer, **found)

    def _of_attention(self) -> dict[str, torch.Tensor | None]:
        if not self.names & set(_OF_ATTENTION):
            return {}
        if self.call is None:
            raise RuntimeError(f"layer {self.layer}: its attention was not seen in this pass")
        whole = {"q": self.call.query, "k": self.call.key, "v": self.call.value}
        found: dict[str, torch.Tensor | None] = {n: t for n, t in whole.items() if n in self.names}
        if "pattern" in self.names:
            found["pattern"], found["sink"] = self.call.pattern(self.queries)
        return found

    def _n_heads(self) -> int:
        if self.call is not None:
            return self.call.query.shape[0]
        return int(self.model.module.config.get_text_config().num_attention_heads)

    def _scale(self, block: Block | None, name: str) -> torch.Tensor | None:
        added, projected = self.added.get(name), self.projected.get(name)
        if block is None or added is None:
            return None
        if block.norm is None:
            return torch.full(added.shape[:1], block.multiplier, device=added.device)
        assert projected is not None
        gain = norm_gain(self.model.module.get_submodule(block.norm), projected)
        return norm_scales(projected, gain, added)


@contextmanager
def _opened(
    model: LanguageModel,
    blocks: LayerBlocks,
    record: _Record,
    emit: Callable[[LayerInternals], None],
    *,
    is_last: bool,
) -> Iterator[None]:
    names = record.names
    handles: list[Any] = []

    def after(path: str, hook: Callable[..., None]) -> None:
        handles.append(model.module.get_submodule(path).register_forward_hook(hook))

    def before(path: str, hook: Callable[..., None]) -> None:
        handles.append(model.module.get_submodule(path).register_forward_pre_hook(hook))

    def finish(_module: Any, _args: Any, _output: Any) -> None:
        emit(record.assembled())
        if is_last:
            raise _EnoughError

    try:
        if "head_out" in names and blocks.attention is not None:
            assert blocks.attention.projection is not None
            before(blocks.attention.projection, _keep_head_input(record))
        if "neurons" in names and blocks.mlp is not None:
            assert blocks.mlp.projection is not None
            before(blocks.mlp.projection, _keep_neurons(record, experts=blocks.mlp.experts))
        for name, block in (("attn_out", blocks.attention), ("mlp_out", blocks.mlp)):
            if name in names and block is not None:
                if block.norm is not None:
                    assert block.projection is not None
                    after(block.projection, _keep_projected(record, name))
                after(block.contribution.site.module, _keep_added(record, name, block.contribution))
        after(model.anatomy.layers[record.layer].path, finish)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(0, -2)


def _keep_head_input(record: _Record) -> Callable[..., None]:
    def hook(_module: Any, args: Any) -> None:
        record.head_input = _flat(args[0])

    return hook


def _keep_neurons(record: _Record, *, experts: bool) -> Callable[..., None]:
    def hook(module: Any, args: Any) -> None:
        if experts:
            record.experts = neurons_of(module, *args[:3])
        else:
            record.neurons = _flat(args[0])

    return hook


def _keep_projected(record: _Record, name: str) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
        record.projected[name] = _flat(output).clone()

    return hook


def _keep_added(record: _Record, name: str, contribution: Contribution) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        added = nth_wide_tensor(output, record.model.anatomy.d_model, contribution.site.index)
        assert added is not None
        # A copy: some models go on by adding to this tensor in place.
        record.added[name] = contribution.scale * _flat(added)

    return hook
