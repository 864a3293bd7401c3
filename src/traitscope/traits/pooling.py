"""States of contrastive texts: each response replayed behind its prompt and pooled over its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from traitscope.errors import RunError
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_pooled
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.scenarios import Pair


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
    model: LanguageModel, pairs: Sequence[Pair], style: PromptStyle, on_text: Callable[[], None]
) -> PooledPairs:
    """Replay both responses of every pair and pool each over its content tokens.

    Raises:
        RunError: a state is not finite, or a response has no content.
    """
    describer = TokenDescriber(model.tokenizer)
    pooled: dict[str, list[np.ndarray]] = {"positive": [], "negative": []}
    for pair in pairs:
        prompt = render(model.tokenizer, [{"role": "user", "content": pair.prompt}], style)
        for pole, means in pooled.items():
            response = tokenise_response(model.tokenizer, getattr(pair, pole))
            rows = describer.rows(prompt, response)
            keep = rows.content()
            if not keep.any():
                raise RunError(f"the {pole} response to {pair.prompt!r} has no content tokens")
            state = replay_pooled(model, rows.token_id, keep).numpy()
            if not np.isfinite(state).all():
                raise RunError(f"the {pole} response to {pair.prompt!r} gives states that are not finite")
            means.append(state)
            on_text()
    return PooledPairs(
        np.stack(pooled["positive"]),
        np.stack(pooled["negative"]),
        tuple(pair.topic for pair in pairs),
        np.array([pair.crossed is not None for pair in pairs]),
    )


def pool_texts(
    model: LanguageModel,
    texts: Sequence[tuple[Sequence[int], np.ndarray]],
    rows: Sequence[int],
    on_text: Callable[[], None],
) -> np.ndarray:
    """Mean states ``[n_texts, n_rows, d_model]`` float32 of token ids over the positions to keep, at some checkpoints.

    Raises:
        RunError: a state is not finite.
    """
    pooled = []
    with model.linears.in_use():
        for token_ids, keep in texts:
            states = replay_pooled(model, token_ids, keep).numpy()[list(rows)]
            if not np.isfinite(states).all():
                raise RunError("the model's own text gives states that are not finite; try dtype float32 or bfloat16")
            pooled.append(states)
            on_text()
    return np.stack(pooled)
