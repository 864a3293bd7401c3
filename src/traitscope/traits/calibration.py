"""What is an ordinary score: the model's own greedy replies to neutral prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from traitscope.model.capture import ReaderBank, Trace
from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.suite.rendering import PromptStyle, render
from traitscope.suite.tokens import TokenDescriber, TokenRows
from traitscope.traits.scenarios import NeutralPrompts
from traitscope.traits.vectors import Calibration

NEUTRAL_TOKENS = 50
_BATCH = 16
_LEAST_RELATIVE_DEVIATION = 1e-6


@dataclass(frozen=True)
class NeutralReply:
    """One greedy reply to a neutral prompt: its tokens, the prompt's first, and what was captured of them."""

    tokens: TokenRows
    n_prompt: int
    trace: Trace | None

    @property
    def content(self) -> np.ndarray:
        """Positions that count: ``[n_content]``."""
        return np.flatnonzero(self.tokens.content())


def neutral_replies(
    model: LanguageModel,
    neutral: NeutralPrompts,
    style: PromptStyle,
    bank: ReaderBank | None = None,
    on_text: Callable[[], None] = lambda: None,
) -> list[NeutralReply]:
    """The model's greedy replies to the neutral prompts that have any content, captured with ``bank`` if given."""
    prompts = [render(model.tokenizer, [{"role": "user", "content": text}], style) for text in neutral.prompts]
    prompts.sort(key=lambda prompt: len(prompt.token_ids), reverse=True)
    describer = TokenDescriber(model.tokenizer)
    replies: list[NeutralReply] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        decoded = decode(
            model,
            [prompt.token_ids for prompt in batch],
            max_new_tokens=NEUTRAL_TOKENS,
            sampling=Sampling(),
            seeds=[0] * len(batch),
            bank=bank,
        )
        for prompt, row in zip(batch, decoded, strict=True):
            tokens = describer.rows(prompt, row.response_ids)
            replies.append(NeutralReply(tokens, len(prompt.token_ids), row.trace))
            on_text()
    return [reply for reply in replies if len(reply.content)]


def calibrate(
    model: LanguageModel,
    bank: ReaderBank,
    neutral: NeutralPrompts,
    style: PromptStyle,
    on_text: Callable[[], None] = lambda: None,
) -> list[Calibration]:
    """Statistics of every trait of ``bank`` over the model's replies to the neutral prompts."""
    replies = neutral_replies(model, neutral, style, bank, on_text)
    captured = [(reply, reply.trace) for reply in replies if reply.trace is not None]
    return [_statistics(captured, trait, readout) for trait, readout in enumerate(bank.readouts)]


def _statistics(replies: Sequence[tuple[NeutralReply, Trace]], trait: int, readout: int) -> Calibration:
    at_last = np.stack([trace.scores[:, reply.n_prompt - 1, trait] for reply, trace in replies], axis=1)
    at_content = [trace.scores[:, reply.content, trait] for reply, trace in replies]
    writes = np.concatenate([trace.writes()[:, reply.content, trait] for reply, trace in replies], axis=1)
    norms = np.concatenate([trace.norms[:, reply.content] for reply, trace in replies], axis=1)
    regions = {
        "prompt_last": at_last,
        "response_token": np.concatenate(at_content, axis=1),
        "response_mean": np.stack([scores.mean(axis=1) for scores in at_content], axis=1),
    }
    mean_write = writes.mean(axis=1, dtype=np.float64)
    mean_write[readout + 1 :] = 0
    norm = np.median(norms, axis=1)
    return Calibration(
        mean={name: _tensor(values.mean(axis=1, dtype=np.float64)) for name, values in regions.items()},
        std={name: _tensor(_deviation(values, norm)) for name, values in regions.items()},
        norm=_tensor(norm),
        write=_tensor(mean_write),
        trajectory=_tensor(_padded([scores[readout] for scores in at_content])),
    )


def _deviation(values: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Standard deviation ``[n_checkpoints]``; NaN where the replies do not vary beyond rounding.

    Every prompt of a chat template may end in the same token, whose embedding is then the same everywhere.
    """
    deviation = values.std(axis=1, ddof=1, dtype=np.float64)
    return np.where(deviation > _LEAST_RELATIVE_DEVIATION * norm, deviation, np.nan)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """``[n_rows, longest]``: rows of different lengths, NaN after their ends."""
    padded = np.full((len(rows), max(len(row) for row in rows)), np.nan)
    for into, row in zip(padded, rows, strict=True):
        into[: len(row)] = row
    return padded


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
