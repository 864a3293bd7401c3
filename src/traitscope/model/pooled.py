"""Mean states of many texts, replayed in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from traitscope.model.kv_cache import KeysAndValues, begin_rows, can_share, keys_and_values, new_cache
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_pooled
from traitscope.model.sharing import common_prefix
from traitscope.model.watch import watch

_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class PooledText:
    """A text and where it is pooled.

    Attributes:
        token_ids: prompt and response.
        positions: ``[n_kept]``, ascending, at least one; what stands behind the last is not read.
    """

    token_ids: tuple[int, ...]
    positions: np.ndarray

    @property
    def read(self) -> tuple[int, ...]:
        return self.token_ids[: int(self.positions[-1]) + 1]


def pooled_states(
    model: LanguageModel,
    texts: Sequence[PooledText],
    on_text: Callable[[], None] = lambda: None,
    *,
    checkpoints: Sequence[int] | None = None,
) -> np.ndarray:
    """The mean state of each text over its positions: ``[n_texts, n_checkpoints, d_model]`` float32.

    ``checkpoints`` are indices in ascending order (None for all); passes end behind the last of them.
    What all texts begin with is read once. The rest is read in batches of similar length, padded on the right,
    which no row of a causal model ever looks at; batches depend on ``texts`` alone. A model whose cache is more than
    keys and values reads one text at a time.
    """
    chosen = list(range(len(model.anatomy.checkpoints)) if checkpoints is None else checkpoints)
    states = np.empty((len(texts), len(chosen), model.anatomy.d_model), dtype=np.float32)
    if not can_share(model):
        for row, text in enumerate(texts):
            states[row] = replay_pooled(model, text.read, _mask(text)).numpy()[chosen]
            on_text()
        return states
    first_kept = min(int(text.positions[0]) for text in texts)
    prefix = common_prefix([text.read for text in texts])[:first_kept]
    with torch.inference_mode():
        read = _read_prefix(model, prefix) if prefix else None
        for rows in _batches([len(text.read) - len(prefix) for text in texts]):
            states[rows] = _batch_means(model, [texts[row] for row in rows], read, len(prefix), chosen)
            for _ in rows:
                on_text()
    return states


def _mask(text: PooledText) -> np.ndarray:
    keep = np.zeros(len(text.read), dtype=bool)
    keep[text.positions] = True
    return keep


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in order of their length, as many at a time as have ``_BATCH_TOKENS`` tokens with their padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _read_prefix(model: LanguageModel, prefix: Sequence[int]) -> KeysAndValues:
    cache = new_cache(model, len(prefix))
    input_ids = torch.tensor([list(prefix)], dtype=torch.long, device=model.device)
    mask = torch.ones_like(input_ids)
    model.forward(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return keys_and_values(cache)


class _EnoughError(Exception):
    """Ends a forward pass behind the last checkpoint that is wanted."""


def _batch_means(
    model: LanguageModel,
    texts: Sequence[PooledText],
    prefix: KeysAndValues | None,
    n_prefix: int,
    checkpoints: Sequence[int],
) -> np.ndarray:
    """``[batch, n_checkpoints, d_model]`` float32."""
    rests = [text.read[n_prefix:] for text in texts]
    longest = max(map(len, rests))
    input_ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros(len(texts), n_prefix + longest, dtype=torch.long)
    for row, rest in enumerate(rests):
        input_ids[row, : len(rest)] = torch.tensor(rest)
        mask[row, : n_prefix + len(rest)] = 1
    kept = [torch.from_numpy(row * longest + text.positions - n_prefix) for row, text in enumerate(texts)]
    kept = [positions.to(model.device) for positions in kept]
    cache = new_cache(model, n_prefix + longest)
    if prefix is not None:
        begin_rows(cache, prefix, [0] * len(texts))
    means: list[torch.Tensor] = []

    wanted, last = set(checkpoints), checkpoints[-1]

    def observe(checkpoint: int, state: torch.Tensor) -> None:
        if checkpoint in wanted:
            means.append(torch.stack([state[positions].float().mean(dim=0) for positions in kept]).cpu())
        if checkpoint == last:
            raise _EnoughError

    with suppress(_EnoughError), watch(model.module, model.anatomy, observe):
        model.forward(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=torch.arange(n_prefix, n_prefix + longest, device=model.device).repeat(len(texts), 1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return torch.stack(means, dim=1).numpy()
