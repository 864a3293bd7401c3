"""What is known of each token of a generation, and which of them are content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from traitscope.suite.rendering import Rendered

_THINKING_MARKS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))


@dataclass(frozen=True)
class TokenRows:
    """One entry per position of a generation, prompt first.

    ``segment`` is ``thinking`` or ``answer`` where the tokenizer has thinking marks, else None.
    """

    token_id: list[int]
    token: list[str]
    phase: list[str]
    role: list[str | None]
    turn: list[int | None]
    segment: list[str | None]
    special: list[bool]

    def content(self) -> np.ndarray:
        """Boolean ``[positions]``, see ``content_mask``."""
        return content_mask(range(len(self.token_id)), self.phase, self.role, self.special)


def content_mask(
    position: Sequence[int], phase: Sequence[str], role: Sequence[str | None], special: Sequence[bool]
) -> np.ndarray:
    """Boolean ``[tokens]``: the response tokens that count when something is pooled over a response.

    No special tokens, no template tokens (thinking marks), never position 0, whose norm is far larger than any
    other's.
    """
    columns = zip(position, phase, role, special, strict=True)
    return np.array([n > 0 and p == "response" and r != "template" and not s for n, p, r, s in columns], dtype=bool)


class TokenDescriber:
    """Describes the tokens of generations of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_token_ids(tokenizer)
        self._thinking = _thinking_marks(tokenizer)
        self._text = lru_cache(maxsize=65536)(self._token_text)
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._anchor: list[int] = list(anchor[-1:])

    def rows(self, prompt: Rendered, response_ids: Sequence[int]) -> TokenRows:
        """Describe every position of ``prompt`` followed by ``response_ids``."""
        ids = [*prompt.token_ids, *response_ids]
        n_prompt, n_response = len(prompt.token_ids), len(response_ids)
        turn = 1 + max((t for t in prompt.turns if t is not None), default=-1)
        segments, marks = self._segments(prompt.token_ids, response_ids)
        special = [token_id in self._special for token_id in ids]
        response_roles: list[str | None] = [
            "template" if mark or is_special else "assistant"
            for mark, is_special in zip(marks, special[n_prompt:], strict=True)
        ]
        return TokenRows(
            token_id=ids,
            token=[self._text(token_id) for token_id in ids],
            phase=["prompt"] * n_prompt + ["response"] * n_response,
            role=[*prompt.roles, *response_roles],
            turn=[*prompt.turns, *([turn] * n_response)],
            segment=[*([None] * n_prompt), *segments],
            special=special,
        )

    def response_text(self, response_ids: Sequence[int]) -> str:
        """The response as people read it."""
        return self._tokenizer.decode(list(response_ids), skip_special_tokens=True)

    def _token_text(self, token_id: int) -> str:
        """The token's own text: decoded behind an anchor, as many tokenizers drop a leading space."""
        head = self._tokenizer.decode(self._anchor)
        both = self._tokenizer.decode([*self._anchor, token_id])
        return both[len(head) :] if both.startswith(head) else self._tokenizer.decode([token_id])

    def _segments(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> tuple[list[str | None], list[bool]]:
        if self._thinking is None:
            return [None] * len(response_ids), [False] * len(response_ids)
        begin, end = self._thinking
        last_mark = next((i for i in reversed(prompt_ids) if i in (begin, end)), None)
        thinking = last_mark == begin
        segments: list[str | None] = []
        for token_id in response_ids:
            if token_id == begin:
                thinking = True
            segments.append("thinking" if thinking else "answer")
            if token_id == end:
                thinking = False
        return segments, [token_id in (begin, end) for token_id in response_ids]


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """All ids that the tokenizer marks as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def _thinking_marks(tokenizer: Any) -> tuple[int, int] | None:
    vocabulary = tokenizer.get_vocab()
    for begin, end in _THINKING_MARKS:
        if begin in vocabulary and end in vocabulary:
            return vocabulary[begin], vocabulary[end]
    return None
