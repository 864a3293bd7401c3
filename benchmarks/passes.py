"""What forward passes read, written down while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pass:
    """Attributes:
    rows: of the batch.
    tokens: read of each row, padding included.
    cached: slots of each row that the KV cache holds before, padding included.
    """

    rows: int
    tokens: int
    cached: int


@contextmanager
def recorded_passes(first_layer: Any) -> Iterator[list[Pass]]:
    """The passes inside the block, in a list that grows; ``first_layer`` is a decoder layer of transformers."""
    passes: list[Pass] = []

    def note(_module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        states = inputs[0] if inputs else keywords["hidden_states"]
        cache = keywords.get("past_key_values")
        cached = 0 if cache is None else int(cache.get_seq_length())
        passes.append(Pass(states.shape[0], states.shape[1], cached))

    handle = first_layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
