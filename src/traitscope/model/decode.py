"""Batched generation with a KV cache, projecting the residual stream during the same forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from traitscope.model.capture import ReaderBank, ScoreCapture, Trace, capturing
from traitscope.model.kv_cache import KeysAndValues, begin_rows, can_share, keys_and_values, new_cache
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling, TokenChooser
from traitscope.model.sharing import Sharing, shared_by
from traitscope.model.steering import Pushes, Steering, pushing, steers_prompt

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


@dataclass(frozen=True)
class ReadPrefix:
    """What reading a prefix left behind.

    ``columns`` is ``[n_checkpoints, prefix, 2 * n_traits + 1]`` float32, None without a capture.
    """

    states: KeysAndValues
    columns: np.ndarray | None


class RunPrefix:
    """The tokens that all prompts of a run begin with; read in its first batch, kept for the others.

    A run has one, so that what a batch computes does not depend on the batches before it.
    """

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self.token_ids = tuple(token_ids)
        self.read: ReadPrefix | None = None


def decode(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    bank: ReaderBank | None = None,
    on_step: Callable[[int], None] | None = None,
    run_prefix: RunPrefix | None = None,
    steering: Sequence[Steering | None] | None = None,
) -> list[Decoded]:
    """Generate from ``prompts`` in one batch.

    What prompts begin with together is read once, and so is a prompt that several rows continue. Every
    generated token, the last one included, is fed back once, so that the trace has a row for the state that
    has read it: rows = prompt + response tokens.

    Args:
        prompts: token ids of each row, not padded.
        max_new_tokens: where a row stops that meets no end-of-sequence token.
        seeds: one 64-bit seed a row (``row_seed``); not read when sampling is greedy.
        bank: the traits to project on; None generates without hooks.
        on_step: told after each step how many rows moved on by a token.
        run_prefix: kept by the caller from batch to batch of one run.
        steering: what each row is pushed by; where prompts are pushed, nothing is shared between rows.
    """
    watching = capturing(model.module, model.anatomy, bank, model.device) if bank is not None else nullcontext(None)
    steering = steering or [None] * len(prompts)
    with (
        pushing(model.module, model.anatomy, steering, model.device) as pushes,
        watching as capture,
        model.linears.in_use(),
    ):
        loop = DecodeLoop(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=seeds,
            capture=capture,
            on_step=on_step,
            run_prefix=run_prefix,
            pushes=pushes,
            shares=not steers_prompt(steering),
        )
        loop.prefill()
        while loop.step():
            pass
        return loop.results()


class DecodeLoop:
    """One batch on its way through the model, a step at a time; ``decode`` runs it to its end.

    The hooks of ``capture`` (``capturing``) and the packed layers (``model.linears.in_use``) are the caller's to put
    in place around ``prefill`` and ``step``.
    ``_rows[i]`` is the row that slot i of the batch works on.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        capture: ScoreCapture | None = None,
        on_step: Callable[[int], None] | None = None,
        run_prefix: RunPrefix | None = None,
        pushes: Pushes | None = None,
        shares: bool = True,
    ) -> None:
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._chooser = TokenChooser(sampling, seeds, max_new_tokens)
        self._on_step = on_step
        self._run_prefix = run_prefix or RunPrefix()
        self._pushes, self._shares = pushes, shares
        self._sharing = _sharing(model, prompts, self._run_prefix) if shares else _nothing_shared(prompts)
        self._columns = _ColumnStore(prompts, capture) if capture is not None else None
        self._rows = list(range(len(prompts)))
        self._responses: list[list[int]] = [[] for _ in prompts]
        self._logprobs: list[list[float]] = [[] for _ in prompts]

    @torch.inference_mode()
    def prefill(self) -> None:
        """Read the prompts: (1) what they begin with, once; (2) the rest of each; (3) a cache row a generation."""
        sharing = self._sharing
        prefix = self._read_prefix() if sharing.n_prefix else None
        input_ids, self._mask = _left_padded(sharing.distinct, self._model.device)
        self._cache = new_cache(self._model, input_ids.shape[1] + self._max_new_tokens)
        if prefix is not None:
            begin_rows(self._cache, prefix.states, sharing.shifts)
        if self._pushes is not None and not self._shares:
            self._pushes.prompts(self._rows, self._position_ids(), self._mask)
        self._logits = self._forward(input_ids[:, sharing.n_prefix :])
        if self._columns is not None:
            self._columns.keep_prefill(sharing, None if prefix is None else prefix.columns)
        if len(sharing.distinct) < len(sharing.source):
            self._select(list(sharing.source))

    @torch.inference_mode()
    def step(self) -> bool:
        """Choose a token for every row and feed it; False when no row has a token left to generate."""
        tokens, logprobs = self._chooser.choose(self._logits, self._rows, self._n_steps)
        running = self._record(tokens.tolist(), logprobs.tolist())
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        if self._pushes is not None:
            self._pushes.responses(self._rows)
        self._logits = self._forward(tokens[:, None])
        if self._columns is not None:
            self._columns.keep_step(self._rows, self._responses)
        if self._on_step is not None:
            self._on_step(len(running))
        running = [slot for slot in running if not self._done(self._rows[slot])]
        if running and len(self._rows) - len(running) >= _COMPACT_SHARE * len(self._rows):
            self._select(running)
            self._rows = [self._rows[slot] for slot in running]
        return bool(running)

    def results(self) -> list[Decoded]:
        """What was generated, in the order of the prompts."""
        traces = self._columns.traces() if self._columns is not None else [None] * len(self._responses)
        return [
            Decoded(response, np.array(logprobs, dtype=np.float32), trace)
            for response, logprobs, trace in zip(self._responses, self._logprobs, traces, strict=True)
        ]

    @property
    def _n_steps(self) -> int:
        return max(map(len, self._responses))

    def _read_prefix(self) -> ReadPrefix:
        token_ids = self._sharing.distinct[0][: self._sharing.n_prefix]
        if token_ids != self._run_prefix.token_ids:
            return self._forward_prefix(token_ids)
        if self._run_prefix.read is None:
            self._run_prefix.read = self._forward_prefix(token_ids)
        return self._run_prefix.read

    def _forward_prefix(self, token_ids: Sequence[int]) -> ReadPrefix:
        input_ids, self._mask = _left_padded([token_ids], self._model.device)
        self._cache = new_cache(self._model, len(token_ids))
        self._forward(input_ids)
        columns = None if self._columns is None else self._columns.taken(1)[:, 0]
        return ReadPrefix(keys_and_values(self._cache), columns)

    def _position_ids(self) -> torch.Tensor:
        return (self._mask.cumsum(dim=1) - 1).clamp_min(0)

    def _forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        position_ids = self._position_ids()[:, -input_ids.shape[1] :]
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

    def _select(self, slots: list[int]) -> None:
        """Keep these slots of the batch, any of them more than once."""
        kept = torch.tensor(slots, device=self._model.device)
        self._cache.batch_select_indices(kept)
        self._mask = self._mask[kept]
        self._logits = self._logits[kept]


def _sharing(model: LanguageModel, prompts: Sequence[Sequence[int]], run_prefix: RunPrefix) -> Sharing:
    if can_share(model):
        return shared_by(prompts, run_prefix.token_ids)
    return _nothing_shared(prompts)


def _nothing_shared(prompts: Sequence[Sequence[int]]) -> Sharing:
    rows = tuple(map(tuple, prompts))
    return Sharing(rows, tuple(range(len(rows))), n_prefix=0)


class _ColumnStore:
    """Captured columns on their way from the device into one array a row."""

    def __init__(self, prompts: Sequence[Sequence[int]], capture: ScoreCapture) -> None:
        self._capture = capture
        self._parts: list[list[np.ndarray]] = [[] for _ in prompts]
        self._waiting: list[tuple[torch.Tensor, list[int], list[bool]]] = []
        self._n_steps = 0

    def taken(self, n_rows: int) -> np.ndarray:
        """``[n_checkpoints, n_rows, seq, columns]`` of the forward pass that just ran."""
        columns = self._capture.take()
        return columns.reshape(columns.shape[0], n_rows, -1, columns.shape[-1]).cpu().numpy()

    def keep_prefill(self, sharing: Sharing, of_prefix: np.ndarray | None) -> None:
        """Give every row the columns of its prompt: of the prefix, then of what came after it."""
        fed = self.taken(len(sharing.distinct))
        for row, source in enumerate(sharing.source):
            n_own = len(sharing.distinct[source]) - sharing.n_prefix
            if of_prefix is not None:
                self._parts[row].append(of_prefix)
            self._parts[row].append(fed[:, source, sharing.n_fed - n_own :])

    def keep_step(self, rows: list[int], responses: list[list[int]]) -> None:
        """Keep the state that has read the newest token, for the rows that still had one to read."""
        self._n_steps += 1
        fed = [len(responses[row]) == self._n_steps for row in rows]
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


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both ``[batch, longest]`` int64; the padding's id is never read."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
