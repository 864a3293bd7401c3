"""Where evidence is gathered: one model, and the checkpoints at which anything is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from traitscope.model.loading import LanguageModel
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.calibration import neutral_replies
from traitscope.traits.counting import Counter
from traitscope.traits.pooling import PooledPairs, pool_pairs, pool_texts
from traitscope.traits.scenarios import (
    NeutralPrompts,
    Pair,
    ScenarioSet,
)
from traitscope.traits.store import bank_of
from traitscope.traits.validation.own_text import Pole
from traitscope.traits.vectors import TraitVectors


@dataclass(frozen=True)
class Candidate:
    """A trait's vectors and the scenario set that says what they should do."""

    vectors: TraitVectors
    scenarios: ScenarioSet


class Laboratory:
    """One model and the checkpoints at which anything is asked of it: ``resid_pre.0`` and the readouts."""

    def __init__(
        self, model: LanguageModel, style: PromptStyle, candidates: Sequence[Candidate], count: Counter
    ) -> None:
        self.model, self.style, self.count = model, style, count
        names = [checkpoint.name for checkpoint in model.anatomy.checkpoints]
        self._candidates = candidates
        readouts = {names.index(candidate.vectors.readout_name) for candidate in candidates}
        self.rows = sorted({0} | readouts)
        self._row_of = {names[index]: row for row, index in enumerate(self.rows)}

    def row(self, vectors: TraitVectors) -> int:
        """Where the states at a trait's R stand in pooled states."""
        return self._row_of[vectors.readout_name]

    def pooled(self, pairs: Sequence[Pair]) -> PooledPairs:
        """States at ``rows`` of the responses of ``pairs``."""
        return pool_pairs(self.model, pairs, self.style, self.count, checkpoints=self.rows)

    def pooled_under(self, pairs: Sequence[Pair], pole: Pole, system_prompts: Sequence[str]) -> np.ndarray:
        """States ``[n_pairs, n_rows, d_model]`` of one pole's responses, each under a system prompt in turn."""
        texts = []
        for number, pair in enumerate(pairs):
            style = replace(self.style, system=system_prompts[number % len(system_prompts)])
            prompt = render(self.model.tokenizer, [{"role": "user", "content": pair.prompt}], style)
            response = tokenise_response(self.model.tokenizer, getattr(pair, pole))
            tokens = TokenDescriber(self.model.tokenizer).rows(prompt, response)
            texts.append((tokens.token_id, tokens.content()))
        return pool_texts(self.model, texts, self.rows, self.count)

    def neutral_scores(self, neutral: NeutralPrompts) -> np.ndarray:
        """Mean score at R of every neutral reply ``[n_candidates, n_replies]``."""
        bank = bank_of([candidate.vectors for candidate in self._candidates])
        replies = neutral_replies(self.model, neutral, self.style, bank, self.count)
        columns = []
        for reply in replies:
            assert reply.trace is not None
            columns.append([reply.trace.scores[r, reply.content, k].mean() for k, r in enumerate(bank.readouts)])
        return np.array(columns).T
