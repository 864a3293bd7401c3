"""What attention does in chosen layers, read where queries, keys, values and masks meet.

transformers' ``AttentionInterface`` is that place. The model's own attention function goes on doing the work, so
its output does not change by a bit; weights are computed beside it from what it was given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from traitscope.model.tensors import SAME_WITHIN

_NAME = "traitscope"


@dataclass(frozen=True)
class AttentionCall:
    """One attention function's inputs and output, for one unpadded text.

    Attributes:
        module: the attention module that called it.
        query: ``[heads, seq, d_head]``, after the rotary embedding.
        key, value: ``[kv_heads, seq, d_head]``, not repeated for grouped queries.
        output: ``[heads, seq, d_value]``, what the heads read before anything is projected.
        mask: as the function received it, bool (true is seen) or additive, or None for a causal one.
        sinks: ``[heads]`` logits that share in the softmax without a value, or None.
        weights: ``[heads, seq, seq]`` where the module hands them out itself.
    """

    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    mask: torch.Tensor | None = None
    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def pattern(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention weights ``[heads, n_queries, seq]`` and weights of the sinks ``[heads, n_queries]``, float32.

        Raises:
            RuntimeError: weights times values are not what attention returned, so that it does something else.
        """
        if self.weights is not None:
            pattern, sink = self.weights[:, queries].float(), None
        else:
            pattern, sink = self._softmax(self._logits(queries))
        self._check(pattern, queries)
        return pattern, sink

    def _logits(self, queries: torch.Tensor) -> torch.Tensor:
        query, key = self.query[:, queries].float(), _for_each_head(self.key.float(), self.query.shape[0])
        scaling = self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        logits = query @ key.transpose(1, 2) * scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return self._masked(logits, queries)

    def _masked(self, logits: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        n_keys = logits.shape[-1]
        if self.mask is None:
            seen = torch.arange(n_keys, device=logits.device) <= queries[:, None]
            return logits.masked_fill(~seen, float("-inf"))
        mask = self.mask[0][:, queries, :n_keys]
        return logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask.float()

    def _softmax(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.sinks is None:
            return logits.softmax(dim=-1), None
        sinks = self.sinks.float().reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)
        weights = torch.cat([logits, sinks], dim=-1).softmax(dim=-1)
        return weights[..., :-1], weights[..., -1]

    def _check(self, pattern: torch.Tensor, queries: torch.Tensor) -> None:
        read = pattern @ _for_each_head(self.value.float(), pattern.shape[0])
        returned = self.output[:, queries].float()
        apart = float((read - returned).norm() / returned.norm().clamp_min(1e-30))
        if apart > SAME_WITHIN[self.output.dtype]:
            raise RuntimeError(
                f"{type(self.module).__name__} is not softmax attention as it is known here: weights times values lie "
                f"{apart:.1e} of what it returned apart; leave out q, k, v and pattern"
            )


def _for_each_head(per_kv_head: torch.Tensor, n_heads: int) -> torch.Tensor:
    return per_kv_head.repeat_interleave(n_heads // per_kv_head.shape[0], dim=0)


@contextmanager
def attention_calls(
    module: Any, owners: Collection[nn.Module], observe: Callable[[AttentionCall], None]
) -> Iterator[None]:
    """Call ``observe`` for each attention call by a module inside one of ``owners``, in forward passes of one text.

    Modules that reach attention neither through ``AttentionInterface`` nor in a way that is known here are not
    observed.
    """
    chosen = {id(inner) for owner in owners for inner in owner.modules()}
    if module._can_set_attn_implementation():
        with _through_interface(module, chosen, observe):
            yield
        return
    handles = [
        handle
        for inner in module.modules()
        if id(inner) in chosen and type(inner).__name__ == "BloomAttention"
        for handle in _watch_bloom(inner, observe)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unwatched(caller: nn.Module, *_: Any, **__: Any) -> Any:
    raise RuntimeError(f"{type(caller).__name__} is not watched any more")


@contextmanager
def _through_interface(module: Any, chosen: set[int], observe: Callable[[AttentionCall], None]) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    original = module.config._attn_implementation
    if original == _NAME:
        raise RuntimeError("attention is being watched already")

    def attend(caller: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        eager = getattr(sys.modules[type(caller).__module__], "eager_attention_forward", None)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
        returned = attention(caller, query, key, value, attention_mask, **kwargs)
        if id(caller) in chosen:
            observe(_call(caller, query, key, value, attention_mask, returned[0], kwargs))
        return returned

    AttentionInterface.register(_NAME, attend)
    if original in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS[original])
    module.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        module.set_attn_implementation(original)
        AttentionInterface.register(_NAME, _unwatched)  # what was registered holds the model


def _call(
    caller: nn.Module, query: Any, key: Any, value: Any, mask: Any, output: torch.Tensor, kwargs: dict[str, Any]
) -> AttentionCall:
    if query.shape[0] != 1:
        raise RuntimeError("layers are opened for one text at a time")
    return AttentionCall(
        module=caller,
        query=query[0],
        key=key[0],
        value=value[0],
        output=output[0].transpose(0, 1),
        mask=mask,
        scaling=kwargs.get("scaling"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )


def _watch_bloom(attention: Any, observe: Callable[[AttentionCall], None]) -> list[Any]:
    """BLOOM attends on its own: queries, keys and values lie side by side in one projection, weights are returned."""
    fused: list[torch.Tensor] = []
    read: list[torch.Tensor] = []

    def after(_module: Any, _args: Any, output: Any) -> None:
        query, key, value = (part[0] for part in attention._reshape(fused.pop()))
        heads_read = read.pop()[0].unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        observe(AttentionCall(attention, query, key, value, heads_read, weights=output[1][0]))

    return [
        attention.query_key_value.register_forward_hook(lambda _m, _a, output: fused.append(output)),
        attention.dense.register_forward_pre_hook(lambda _m, args: read.append(args[0])),
        attention.register_forward_hook(after),
    ]
