"""States of contrastive texts: each response replayed behind its prompt and pooled."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from traitscope.errors import InputError, RunError
from traitscope.model.loading import LanguageModel
from traitscope.model.pooled import PooledText, pooled_states
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.suite.tokens import TokenDescriber, TokenRows
from traitscope.traits.scenarios import Pair

_SLICE = re.compile(r"response:(-?\d+)?:(-?\d+)?")


@dataclass(frozen=True)
class Pooling:
    """Which positions of a text are averaged.

    ``response`` stands for its content tokens, from ``start`` to ``stop`` as Python slices count; ``prompt_last`` for
    the prompt's last token.
    """

    over: Literal["response", "prompt_last"] = "response"
    start: int | None = None
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pooling:
        """What ``response``, ``prompt_last`` or a slice such as ``response:0:10`` means.

        Raises:
            InputError: none of these, or a slice that is always empty.
        """
        if text in ("response", "prompt_last"):
            return cls(text)  # type: ignore[arg-type]
        found = _SLICE.fullmatch(text)
        if found is None:
            raise InputError(f"pooling {text!r}: use response, prompt_last or a slice such as response:0:10")
        start, stop = (None if bound is None else int(bound) for bound in found.groups())
        first, end = start or 0, stop
        if end is not None and (first < 0) == (end < 0) and first >= end:
            raise InputError(f"pooling {text!r}: a slice from {first} to {end} holds no token")
        return cls("response", start, stop)

    def __str__(self) -> str:
        if (self.start, self.stop) == (None, None):
            return self.over
        return f"{self.over}:{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"

    def positions(self, rows: TokenRows) -> np.ndarray:
        """Positions ``[n_kept]`` in ascending order; none where the text has no such token."""
        if self.over == "prompt_last":
            return np.flatnonzero([phase == "prompt" for phase in rows.phase])[-1:]
        return np.flatnonzero(rows.content())[self.start : self.stop]


RESPONSE = Pooling()


@dataclass(frozen=True)
class PooledPairs:
    """Pooled states of a split.

    Attributes:
        positive, negative: ``[n_pairs, n_checkpoints, d_model]`` float32.
        topics: of each pair.
        crossed: ``[n_pairs]`` bool, whether the pair's style runs against the usual one.
    """

    positive: np.ndarray
    negative: np.ndarray
    topics: tuple[str, ...]
    crossed: np.ndarray


def pool_pairs(
    model: LanguageModel,
    pairs: Sequence[Pair],
    style: PromptStyle,
    on_text: Callable[[], None],
    pooling: Pooling = RESPONSE,
    checkpoints: Sequence[int] | None = None,
) -> PooledPairs:
    """Replay both responses of every pair and pool each, at all checkpoints or at those of these indices.

    Raises:
        RunError: a state is not finite, a text has no token to pool over, or the poles differ nowhere in what is read.
    """
    texts = _texts(model, pairs, style, pooling)
    if all(positive.read == negative.read for positive, negative in zip(texts[::2], texts[1::2], strict=True)):
        raise RunError(
            f"pooling {pooling} reads the same tokens at both poles of every pair, so there is nothing to fit; "
            "it needs a scenario set whose prompts differ between the poles"
        )
    states = pooled_states(model, texts, on_text, checkpoints=checkpoints)
    for number, state in enumerate(states):
        if not np.isfinite(state).all():
            raise RunError(f"the {_name(pairs, number)} gives states that are not finite")
    return PooledPairs(
        states[::2],
        states[1::2],
        tuple(pair.topic for pair in pairs),
        np.array([pair.crossed is not None for pair in pairs]),
    )


def pool_texts(
    model: LanguageModel,
    texts: Sequence[tuple[Sequence[int], np.ndarray]],
    checkpoints: Sequence[int],
    on_text: Callable[[], None],
) -> np.ndarray:
    """Mean states ``[n_texts, n_checkpoints, d_model]`` float32 of token ids over the positions to keep.

    Raises:
        RunError: a state is not finite.
    """
    read = [PooledText(tuple(token_ids), np.flatnonzero(keep)) for token_ids, keep in texts]
    states = pooled_states(model, read, on_text, checkpoints=checkpoints)
    if not np.isfinite(states).all():
        raise RunError("the model's own text gives states that are not finite; try dtype float32 or bfloat16")
    return states


def _texts(model: LanguageModel, pairs: Sequence[Pair], style: PromptStyle, pooling: Pooling) -> list[PooledText]:
    """The positive and the negative text of each pair in turn."""
    describer = TokenDescriber(model.tokenizer)
    texts: list[PooledText] = []
    for pair in pairs:
        prompt = render(model.tokenizer, [{"role": "user", "content": pair.prompt}], style)
        for response in (pair.positive, pair.negative):
            rows = describer.rows(prompt, tokenise_response(model.tokenizer, response))
            positions = pooling.positions(rows)
            if not len(positions):
                raise RunError(f"the {_name(pairs, len(texts))} has no content tokens to pool over ({pooling})")
            texts.append(PooledText(tuple(rows.token_id), positions))
    return texts


def _name(pairs: Sequence[Pair], number: int) -> str:
    return f"{'negative' if number % 2 else 'positive'} response to {pairs[number // 2].prompt!r}"
