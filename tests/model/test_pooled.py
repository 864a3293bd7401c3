"""Bugs caught here: a row that reads padding or its neighbour, a prefix at the wrong positions, rows mixed up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tiny_models import CONFIGS
from traitscope.model import pooled
from traitscope.model.loading import LanguageModel
from traitscope.model.pooled import PooledText, pooled_states
from traitscope.model.replay import replay_pooled


def _texts(n_prefix: int) -> list[PooledText]:
    """Texts of 14 to 40 tokens, longest first, with ``n_prefix`` in common, pooled over scattered positions."""
    random = np.random.default_rng(0)
    prefix = random.integers(4, 260, size=n_prefix)
    texts = []
    for length in (40, 33, 33, 21, 14):
        ids = np.concatenate([prefix, random.integers(4, 260, size=length - n_prefix)])
        positions = np.sort(random.choice(np.arange(10, length), size=3, replace=False))
        texts.append(PooledText(tuple(map(int, ids)), positions))
    return texts


def _one_by_one(model: LanguageModel, texts: list[PooledText]) -> np.ndarray:
    keeps = [np.isin(np.arange(len(text.token_ids)), text.positions) for text in texts]
    return np.stack([replay_pooled(model, t.token_ids, k).numpy() for t, k in zip(texts, keeps, strict=True)])


def _assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("n_prefix", [0, 9])
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_batches_agree_with_replaying_each_text(
    architecture: str, n_prefix: int, tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "_BATCH_TOKENS", 70)  # several batches, some of them with padding
    model, texts = tiny(architecture), _texts(n_prefix)
    heard: list[None] = []
    _assert_same(pooled_states(model, texts, lambda: heard.append(None)), _one_by_one(model, texts))
    assert len(heard) == len(texts)


def test_positions_that_every_text_begins_with_are_pooled_too(tiny: Callable[..., LanguageModel]) -> None:
    texts = [PooledText(text.token_ids, np.array([4, 6])) for text in _texts(9)]
    _assert_same(pooled_states(tiny("llama"), texts), _one_by_one(tiny("llama"), texts))


def test_a_model_without_a_plain_cache_reads_one_text_at_a_time(
    tiny: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "can_share", lambda _model: False)
    texts, passes = _texts(9), tiny("llama").meter.work().passes
    _assert_same(pooled_states(tiny("llama"), texts), _one_by_one(tiny("llama"), texts))
    assert tiny("llama").meter.work().passes - passes == 2 * len(texts)
