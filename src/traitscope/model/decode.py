"""Batched generation with a KV cache, projecting the residual stream during the same forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from traitscope.model.capture import ReaderBank, ScoreCapture, Trace, capturing
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling, TokenChooser

_FLUSH_STEPS = 32
_COMPACT_SHARE = 0.25


@dataclass(frozen=True)
class Decoded:
    """One generated row.

    Attributes:
        response_ids: the generated token ids, the stopping token included.
        logprobs: ``[response]`` float32, of the unprocessed logits at temperature 1.
        trace: scores of every prompt and response position, or None without a capture.
    """

    response_ids: list[int]
    logprobs: np.ndarray
    trace: Trace | None


def decode(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    bank: ReaderBank | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[Decoded]:
    """Generate from ``prompts`` in one batch.

    Every generated token, the last one included, is fed back once, so that the trace has a row for the state
    that has read it: rows = prompt + response tokens.

    Args:
        prompts: token ids of each row, not padded.
        max_new_tokens: where a row stops that meets no end-of-sequence token.
        seeds: one 64-bit seed a row (``row_seed``); not read when sampling is greedy.
        bank: the traits to project on; None generates without hooks.
        on_step: told after each step how many rows moved on by a token.
    """
    loop = _DecodeLoop(model, prompts, max_new_tokens, TokenChooser(sampling, seeds, max_new_tokens))
    watching = capturing(model.module, model.anatomy, bank, model.device) if bank is not None else nullcontext(None)
    with torch.inference_mode(), watching as capture:
        return loop.run(capture, on_step)


class _DecodeLoop:
    """One batch on its way through the model. ``_rows[i]`` is the prompt that slot i of the batch works on."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        chooser: TokenChooser,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._max_new_tokens = max_new_tokens
        self._chooser = chooser
        self._rows = list(range(len(prompts)))
        self._responses: list[list[int]] = [[] for _ in prompts]
        self._logprobs: list[list[float]] = [[] for _ in prompts]

    def run(self, capture: ScoreCapture | None, on_step: Callable[[int], None] | None) -> list[Decoded]:
        columns = _ColumnStore(self._prompts, capture) if capture is not None else None
        # (1) prefill
        input_ids, self._mask = _left_padded(self._prompts, self._model.device)
        self._cache = new_cache(self._model)
        logits = self._forward(input_ids)
        if columns is not None:
            columns.keep_prefill(input_ids.shape[1])
        # (2) one token a step for every row, each fed back at once
        for step in range(self._max_new_tokens):
            tokens, logprobs = self._chooser.choose(logits, self._rows, step)
            running = self._record(tokens.tolist(), logprobs.tolist())
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
            logits = self._forward(tokens[:, None])
            if columns is not None:
                columns.keep_step(self._rows, step, self._responses)
            if on_step is not None:
                on_step(len(running))
            # (3) rows that are done leave the batch
            running = [slot for slot in running if not self._done(self._rows[slot])]
            if not running:
                break
            if len(self._rows) - len(running) >= _COMPACT_SHARE * len(self._rows):
                logits = self._compact(running, logits)
        return self._results(columns)

    def _forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        position_ids = (self._mask.cumsum(dim=1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
        output = self._model.forward(
            input_ids=input_ids,
            attention_mask=self._mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _done(self, row: int) -> bool:
        response = self._responses[row]
        return len(response) >= self._max_new_tokens or (bool(response) and response[-1] in self._model.eos_token_ids)

    def _record(self, tokens: list[int], logprobs: list[float]) -> list[int]:
        """Append the chosen tokens to the rows that still run; returns their slots."""
        running = [slot for slot, row in enumerate(self._rows) if not self._done(row)]
        for slot in running:
            self._responses[self._rows[slot]].append(tokens[slot])
            self._logprobs[self._rows[slot]].append(logprobs[slot])
        return running

    def _compact(self, running: list[int], logits: torch.Tensor) -> torch.Tensor:
        kept = torch.tensor(running, device=self._model.device)
        self._cache.batch_select_indices(kept)
        self._mask = self._mask[kept]
        self._rows = [self._rows[slot] for slot in running]
        return logits[kept]

    def _results(self, columns: _ColumnStore | None) -> list[Decoded]:
        traces = columns.traces() if columns is not None else [None] * len(self._prompts)
        return [
            Decoded(response, np.array(logprobs, dtype=np.float32), trace)
            for response, logprobs, trace in zip(self._responses, self._logprobs, traces, strict=True)
        ]


class _ColumnStore:
    """Captured columns on their way from the device into one array a row."""

    def __init__(self, prompts: Sequence[Sequence[int]], capture: ScoreCapture) -> None:
        self._capture = capture
        self._prompt_lengths = [len(prompt) for prompt in prompts]
        self._parts: list[list[np.ndarray]] = [[] for _ in prompts]
        self._waiting: list[tuple[torch.Tensor, list[int], list[bool]]] = []

    def keep_prefill(self, padded_length: int) -> None:
        columns = self._capture.take()
        n_rows = len(self._prompt_lengths)
        host = columns.reshape(columns.shape[0], n_rows, padded_length, -1).cpu().numpy()
        for row, length in enumerate(self._prompt_lengths):
            self._parts[row].append(host[:, row, padded_length - length :])

    def keep_step(self, rows: list[int], step: int, responses: list[list[int]]) -> None:
        """Keep the state that has read the token of ``step``, for the rows that still had one to read."""
        fed = [len(responses[row]) == step + 1 for row in rows]
        self._waiting.append((self._capture.take(), list(rows), fed))
        if len(self._waiting) >= _FLUSH_STEPS:
            self._flush()

    def _flush(self) -> None:
        for columns, rows, fed in self._waiting:
            host = columns.cpu().numpy()
            for slot, row in enumerate(rows):
                if fed[slot]:
                    self._parts[row].append(host[:, slot : slot + 1])
        self._waiting.clear()

    def traces(self) -> list[Trace]:
        self._flush()
        return [Trace.from_columns(np.concatenate(parts, axis=1)) for parts in self._parts]


def new_cache(model: LanguageModel) -> Any:
    """An empty cache with the layer kinds (full, sliding window) that the model's configuration asks for."""
    from transformers import DynamicCache

    return DynamicCache(config=model.module.config.get_text_config())


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both ``[batch, longest]`` int64; the padding's id is never read."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
