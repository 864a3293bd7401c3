"""A KV cache that appends in place, and whose rows can begin with keys and values that were computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from traitscope.model.loading import LanguageModel


class AppendingLayer(DynamicLayer):
    """Keys and values of one layer in memory that has room for ``capacity`` tokens from the start.

    transformers' own layer copies everything that it holds at every step. A sliding window is kept whole and
    left to the attention mask, so that rows can be shifted.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, heads, new, d_head]``; returns all keys and values so far."""
        if self._room is None:
            self.lazy_initialization(key_states, value_states)
            self._room = self._allocated(key_states), self._allocated(value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:stop] = states
        self._show(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices``, any of them more than once."""
        if self._room is not None:
            length = self.get_seq_length()
            self._room = self._room[0][indices], self._room[1][indices]
            self._show(length)

    def put_rows(self, rows: torch.Tensor, other: AppendingLayer, stop: int) -> None:
        """Replace ``rows`` by those of ``other``, so that they end in front of slot ``stop``, as all rows do."""
        if self._room is None or other._room is None:
            return
        n_slots = other.get_seq_length()
        for room, given in zip(self._room, other._room, strict=True):
            room[rows] = 0  # what is masked is still multiplied: by zero, which keeps NaN
            room[rows, :, stop - n_slots : stop] = given[:, :, :n_slots]

    def drop_front(self, n_slots: int, length: int) -> None:
        """Forget the first ``n_slots`` of ``length`` slots of every row; the others move there."""
        if self._room is not None:
            for room in self._room:
                room[:, :, : length - n_slots] = room[:, :, n_slots:length].clone()
            self._show(length - n_slots)

    def grow(self, capacity: int) -> None:
        """Have room for more tokens than were expected."""
        self._capacity = capacity
        if self._room is not None:
            length = self.get_seq_length()
            old, self._room = self._room, (self._allocated(self._room[0]), self._allocated(self._room[1]))
            for room, states in zip(self._room, old, strict=True):
                room[:, :, :length] = states[:, :, :length]
            self._show(length)

    def _allocated(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, n_new, d_head = states.shape
        return states.new_empty(batch, heads, max(self._capacity, n_new), d_head)

    def _show(self, length: int) -> None:
        assert self._room is not None
        self.keys, self.values = (room[:, :, :length] for room in self._room)


class FixedLayer(AppendingLayer):
    """Keys and values of which all slots are shown, and a step is written where a tensor says.

    Nothing about it changes from step to step but the contents of tensors, as a compiled graph needs it.
    """

    def __init__(self, like: AppendingLayer, width: int, capacity: int, slot: torch.Tensor) -> None:
        super().__init__(capacity)
        self._slot = slot
        self.is_compileable = True
        if like._room is not None:
            keys, values = (room.new_zeros(width, room.shape[1], capacity, room.shape[3]) for room in like._room)
            self.lazy_initialization(keys, values)
            self._room = keys, values
            self._show(capacity)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token of each row, ``[batch, heads, 1, d_head]``; returns all slots."""
        self.keys.index_copy_(2, self._slot, key_states)
        self.values.index_copy_(2, self._slot, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Where the query stands: behind all that may be attended to."""
        return self._slot[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All slots take part; the attention mask says which hold something."""
        return self._capacity, 0

    def _show(self, length: int) -> None:
        assert self._room is not None
        self.keys, self.values = self._room


@dataclass(frozen=True)
class KeysAndValues:
    """What one row left in the cache: per layer keys and values ``[1, heads, seq, d_head]``, or None."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor] | None, ...]


def new_cache(model: LanguageModel, capacity: int) -> DynamicCache:
    """An empty cache with the layer kinds that the model's configuration asks for, attention layers appending."""
    cache = _cache_of_configuration(model)
    cache.layers = [AppendingLayer(capacity) if _is_attention(layer) else layer for layer in cache.layers]
    if model.device.type != "cpu":
        for layer in cache.layers:
            layer.is_compileable = True  # else transformers waits for the device at each step to look at the mask
    return cache


def fixed_cache(like: DynamicCache, width: int, capacity: int, slot: torch.Tensor) -> DynamicCache:
    """An empty cache of fixed sizes for the layers of another one, which has begun; ``slot`` is ``[1]`` int64."""
    cache = DynamicCache()
    cache.layers = [FixedLayer(layer, width, capacity, slot) for layer in like.layers]
    return cache


def can_share(model: LanguageModel) -> bool:
    """Whether rows can begin with another row's cache and take the place of another one: only where every layer holds
    plain keys and values.

    Recurrent and compressed states cannot be shifted.
    """
    return all(map(_is_attention, _cache_of_configuration(model).layers))


def _cache_of_configuration(model: LanguageModel) -> DynamicCache:
    return DynamicCache(config=model.module.config.get_text_config())


def _is_attention(layer: Any) -> bool:
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def keys_and_values(cache: DynamicCache) -> KeysAndValues:
    """What a cache of one row holds."""
    return KeysAndValues(tuple((layer.keys, layer.values) if layer.is_initialized else None for layer in cache.layers))


def begin_rows(cache: DynamicCache, prefix: KeysAndValues, shifts: Sequence[int]) -> None:
    """Fill an empty cache with one row for each of ``shifts``: the prefix, moved right by that many slots.

    The slots in front are not to be attended to; what the shift pushes out at the end is to be read again.
    """
    for layer, states in zip(cache.layers, prefix.layers, strict=True):
        if states is not None:
            layer.update(*(_shifted_rows(state, shifts) for state in states))


def put_rows(cache: DynamicCache, rows: torch.Tensor, other: DynamicCache, stop: int) -> None:
    """Replace ``rows`` of ``cache`` by those of ``other``, which is no longer; all end in front of slot ``stop``."""
    for layer, given in zip(cache.layers, other.layers, strict=True):
        layer.put_rows(rows, given, stop)


def grow(cache: DynamicCache, capacity: int) -> None:
    """Have room for more tokens than were expected."""
    for layer in cache.layers:
        layer.grow(capacity)


def drop_front(cache: DynamicCache, n_slots: int, length: int) -> None:
    """Forget the first ``n_slots`` of ``length`` slots of every row."""
    for layer in cache.layers:
        layer.drop_front(n_slots, length)


def begin_branches(cache: DynamicCache, prefix: KeysAndValues, n_rows: int, last_common: int) -> None:
    """Fill an empty cache with ``prefix``: one row in the layers up to ``last_common``, ``n_rows`` behind it."""
    for number, (layer, states) in enumerate(zip(cache.layers, prefix.layers, strict=True)):
        if states is not None:
            shifts = [0] * (1 if number <= last_common else n_rows)
            layer.update(*(_shifted_rows(state, shifts) for state in states))


def _shifted_rows(state: torch.Tensor, shifts: Sequence[int]) -> torch.Tensor:
    """``[1, heads, seq, d_head]`` to ``[rows, heads, seq, d_head]``."""
    slots = torch.arange(state.shape[2], device=state.device)
    sources = (slots - torch.tensor(list(shifts), device=state.device)[:, None]).clamp_min(0)
    return state[0][:, sources].transpose(0, 1)
