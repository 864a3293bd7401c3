"""The evidence of one trait, gate by gate, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from traitscope.analysis.effect_size import auroc, cohens_d
from traitscope.traits.methods import METHODS, Method
from traitscope.traits.pooling import PooledPairs
from traitscope.traits.scenarios import ScenarioSet
from traitscope.traits.validation import baselines, gates
from traitscope.traits.validation.causal import steering_shifts
from traitscope.traits.validation.gates import Gate
from traitscope.traits.validation.laboratory import Candidate, Laboratory
from traitscope.traits.validation.own_text import (
    OWN_TEXT_TOKENS,
    POLES,
    OwnText,
    after_prefills,
    under_instructions,
    write_on,
)
from traitscope.traits.validation.separation import half_flipped, norm_ratio, separation, split_half_cosine
from traitscope.traits.vectors import TraitVectors

LEAST_TEXTS = 8
CAUSAL_STRIDE = 2
"""Gate F reads every second test pair: each costs two passes for every dose and random direction."""
_LEAST_CROSSED = 4
_NULL_DRAWS = 200
_HALF_DRAWS = 50
_DEVIATIONS = 2.5


@dataclass(frozen=True)
class PairScores:
    """Scores of the test pairs at R."""

    positive: np.ndarray
    negative: np.ndarray
    topics: tuple[str, ...]
    crossed: np.ndarray


def scored(pairs: PooledPairs, row: int, reader: np.ndarray) -> PairScores:
    """What a reader makes of pairs, at one row of their states."""
    return PairScores(pairs.positive[:, row] @ reader, pairs.negative[:, row] @ reader, pairs.topics, pairs.crossed)


def _reader_method(vectors: TraitVectors) -> Method:
    """How the reader was fitted; readers of unknown origin are held against the default method's null."""
    return METHODS.get(vectors.origin.method.get("reader", ""), METHODS["lda"])


def responses(scenarios: ScenarioSet, split: str) -> tuple[list[str], list[str]]:
    """The positive and the negative texts of a split."""
    pairs = getattr(scenarios.splits, split)
    return [pair.positive for pair in pairs], [pair.negative for pair in pairs]


def crossed_gate(tests: PairScores) -> Gate:
    """Gate B."""
    if tests.crossed.sum() < _LEAST_CROSSED:
        return gates.not_measured(gates.NEEDS["B"], f"fewer than {_LEAST_CROSSED} style-crossed test pairs")
    topics = [topic for topic, crossed in zip(tests.topics, tests.crossed, strict=True) if crossed]
    return gates.gate_b(separation(tests.positive[tests.crossed], tests.negative[tests.crossed], topics))


def own_text_gate(
    laboratory: Laboratory,
    candidate: Candidate,
    train: PooledPairs,
    row: int,
    reader: np.ndarray,
    bag: baselines.BagOfWords,
) -> tuple[dict[str, Any] | None, Gate]:
    """Gate C, and examples of the text that it was measured on."""
    scenarios = candidate.scenarios
    if scenarios.prefills is None:
        return None, gates.not_measured(gates.NEEDS["C"], "the scenario set has no prefills")
    beginnings = after_prefills(laboratory.model, scenarios.splits.test, scenarios.prefills, laboratory.style)
    own = write_on(laboratory.model, beginnings, laboratory.rows, laboratory.count)
    if min(len(own.texts[pole]) for pole in POLES) < LEAST_TEXTS:
        return None, gates.not_measured(gates.NEEDS["C"], "the model wrote hardly anything after the prefills")
    fit = _reader_method(candidate.vectors)
    nulls = [
        fit(ups, downs) for ups, downs in half_flipped(train.positive[:, row], train.negative[:, row], _NULL_DRAWS)
    ]
    scores = {pole: own.states[pole][:, row] @ np.stack([reader, *nulls]).T for pole in POLES}
    null_aurocs = [auroc(scores["positive"][:, n], scores["negative"][:, n]) for n in range(1, 1 + len(nulls))]
    gate = gates.gate_c(
        separation(scores["positive"][:, 0], scores["negative"][:, 0], own.topics["positive"], own.topics["negative"]),
        null_aurocs,
        bag_of_words=auroc(*(bag.scores(own.texts[pole]) for pole in POLES)),
        pronoun_rate=baselines.either_way(*(baselines.pronoun_rates(own.texts[pole]) for pole in POLES)),
    )
    return _described_texts(own, scenarios, continues=True), gate


def _described_texts(own: OwnText, scenarios: ScenarioSet, *, continues: bool) -> dict[str, Any]:
    """An example a pole, and the yardstick; text that continues a prefill has no opening of its own."""
    described: dict[str, Any] = {
        "tokens": OWN_TEXT_TOKENS,
        "example": {pole: own.texts[pole][0] for pole in POLES},
    }
    yardstick = scenarios.yardstick
    if yardstick is not None and not (continues and yardstick.openers):
        means = {pole: _mean_measure(yardstick, own.texts[pole]) for pole in POLES}
        described["yardstick"] = {"name": yardstick.name, "rises": yardstick.rises, **means}
    return described


def _mean_measure(yardstick: Any, texts: Sequence[str]) -> float:
    return round(float(np.nanmean([baselines.measured(yardstick, text) for text in texts])), 3)


def specific_gate(
    candidate: Candidate,
    tests: PairScores,
    held_out: Mapping[str, PooledPairs],
    rivals: Mapping[str, ScenarioSet],
    row: int,
    reader: np.ndarray,
) -> Gate:
    """Gate D."""
    own_name = candidate.scenarios.name
    found: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for name, scenarios in rivals.items():
        if name != own_name:
            related = name in candidate.scenarios.related or own_name in scenarios.related
            others = scored(held_out[name], row, reader)
            found[related][name] = cohens_d(others.positive, others.negative)
    return gates.gate_d(cohens_d(tests.positive, tests.negative), unrelated=found[False], related=found[True])


def stable_gate(candidate: Candidate, train: PooledPairs, row: int) -> Gate:
    """Gate E."""
    method = candidate.vectors.origin.method.get("steerer", "")
    if method not in METHODS:
        return gates.not_measured(gates.NEEDS["E"], "the steerer was not fitted here, so it cannot be fitted on halves")
    positive, negative = train.positive[:, row], train.negative[:, row]
    cosine = split_half_cosine(positive, negative, train.topics, METHODS[method], _HALF_DRAWS)
    return gates.gate_e(cosine, norm_ratio(positive, negative, half_flipped(positive, negative, _NULL_DRAWS)))


def causal_gate(laboratory: Laboratory, candidate: Candidate) -> Gate:
    """Gate F."""
    shifts, random_shifts = steering_shifts(
        laboratory.model,
        candidate.vectors,
        candidate.scenarios.splits.test[::CAUSAL_STRIDE],
        laboratory.style,
        laboratory.count,
    )
    return gates.gate_f(shifts, random_shifts)


def quiet_gate(neutral_scores: np.ndarray, tests: PairScores) -> Gate:
    """Gate H. The threshold is 2.5 deviations above the mean of every other neutral reply."""
    one_half, other_half = neutral_scores[::2], neutral_scores[1::2]
    threshold = float(one_half.mean() + _DEVIATIONS * one_half.std(ddof=1))
    return gates.gate_h(
        threshold,
        flagged=float((other_half > threshold).mean()),
        recall=float((tests.positive > threshold).mean()),
        n_replies=len(other_half),
    )


def beside(scenarios: ScenarioSet, test: PooledPairs, train: PooledPairs, bag: baselines.BagOfWords) -> dict[str, Any]:
    """AUROC on the test pairs of what needs no deep state; the writers of the built-in sets saw word statistics."""
    positive, negative = responses(scenarios, "test")
    lda = METHODS["lda"](train.positive[:, 0], train.negative[:, 0])
    measured = {
        "bag_of_words": auroc(bag.scores(positive), bag.scores(negative)),
        "pronoun_rate": baselines.either_way(baselines.pronoun_rates(positive), baselines.pronoun_rates(negative)),
        "length": baselines.either_way(baselines.lengths(positive), baselines.lengths(negative)),
        "layer_0": auroc(test.positive[:, 0] @ lda, test.negative[:, 0] @ lda),
    }
    if (yardstick := scenarios.yardstick) is not None:
        sides = [np.array([baselines.measured(yardstick, text) for text in texts]) for texts in (positive, negative)]
        value = auroc(*sides)
        measured["yardstick"] = value if yardstick.rises == "positive" else 1 - value
    return {name: round(value, 4) for name, value in measured.items()}


def system_prompts(
    laboratory: Laboratory, candidate: Candidate, tests: PairScores, row: int, reader: np.ndarray
) -> dict[str, Any] | None:
    """Does the score read the text or the instruction? The same test responses under the system prompt of their own
    pole and of the other one; and the model's own text under system prompts."""
    scenarios = candidate.scenarios
    if scenarios.instructions is None:
        return None
    own, swapped = (_instructed_auroc(laboratory, scenarios, row, reader, swap=swap) for swap in (False, True))
    beginnings = under_instructions(laboratory.model, scenarios.splits.test, scenarios.instructions, laboratory.style)
    written = write_on(laboratory.model, beginnings, laboratory.rows, laboratory.count)
    scores = [written.states[pole][:, row] @ reader for pole in POLES]
    return {
        "same_text": {
            "none": round(auroc(tests.positive, tests.negative), 4),
            "own_pole": round(own, 4),
            "swapped": round(swapped, 4),
            "change": round(abs(own - swapped), 4),
        },
        "own_text": {
            **separation(*scores, *(written.topics[pole] for pole in POLES)).described(),
            **_described_texts(written, scenarios, continues=False),
        },
    }


def _instructed_auroc(
    laboratory: Laboratory, scenarios: ScenarioSet, row: int, reader: np.ndarray, *, swap: bool
) -> float:
    """AUROC of the test responses, each pole under system prompts of its own or of the other pole."""
    assert scenarios.instructions is not None
    scores = []
    for pole, asked in zip(POLES, reversed(POLES) if swap else POLES, strict=True):
        states = laboratory.pooled_under(scenarios.splits.test, pole, getattr(scenarios.instructions, asked))
        scores.append(states[:, row] @ reader)
    return auroc(*scores)
