"""Validation: every gate of every trait measured on held-out evidence, and the card that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.calibration import neutral_replies
from traitscope.traits.counting import Counter, OnProgress, no_progress
from traitscope.traits.methods import METHODS, Method, auroc, cohens_d
from traitscope.traits.pooling import PooledPairs, pool_pairs, pool_texts
from traitscope.traits.scenarios import (
    NeutralPrompts,
    Pair,
    ScenarioSet,
    library_names,
    library_scenarios,
    load_neutral,
)
from traitscope.traits.store import bank_of
from traitscope.traits.validation import baselines, gates
from traitscope.traits.validation.causal import steering_shifts
from traitscope.traits.validation.gates import Gate, GateName
from traitscope.traits.validation.ledger import count_look
from traitscope.traits.validation.own_text import (
    OWN_TEXT_TOKENS,
    POLES,
    PREFILLS_PER_PROMPT,
    OwnText,
    Pole,
    after_prefills,
    under_instructions,
    write_on,
)
from traitscope.traits.validation.separation import half_flipped, norm_ratio, separation, split_half_cosine
from traitscope.traits.vectors import TraitVectors

LEAST_TEST_PAIRS = 8
CAUSAL_STRIDE = 2
"""Gate F reads every second test pair: each costs two passes for every dose and random direction."""
_LEAST_CROSSED = 4
_NULL_DRAWS = 200
_HALF_DRAWS = 50
_DEVIATIONS = 2.5


@dataclass(frozen=True)
class Candidate:
    """A trait's vectors and the scenario set that says what they should do."""

    vectors: TraitVectors
    scenarios: ScenarioSet


def check_scenarios(scenarios: ScenarioSet) -> None:
    """Refuse a set that nothing can be validated on, before anything is computed.

    Raises:
        InputError: there is no test split worth the name.
    """
    n_test = len(scenarios.splits.test)
    if n_test < LEAST_TEST_PAIRS:
        raise InputError(
            f"trait {scenarios.name}: {n_test} test pairs are too few to validate on; "
            f"give splits.test at least {LEAST_TEST_PAIRS} pairs on topics of their own"
        )


def validate_traits(
    model: LanguageModel,
    candidates: Sequence[Candidate],
    *,
    neutral: NeutralPrompts | None = None,
    base_template: str = BASE_TEMPLATE,
    on_progress: OnProgress = no_progress,
) -> list[TraitVectors]:
    """Measure every gate of every candidate on ``model``; returns the vectors with verdict and card.

    Nothing is chosen here: directions, readout and calibration are what the train and dev splits gave.

    Raises:
        InputError: a scenario set has too few test pairs.
        RunError: states are not finite.
    """
    for candidate in candidates:
        check_scenarios(candidate.scenarios)
    neutral = neutral or load_neutral()
    rivals = {name: library_scenarios(name) for name in library_names()}
    rivals |= {candidate.scenarios.name: candidate.scenarios for candidate in candidates}
    count = Counter(on_progress, "validating", _n_units(candidates, rivals, neutral))
    laboratory = _Laboratory(model, PromptStyle(None, {}, base_template), candidates, count)
    replies = laboratory.neutral_scores(neutral)
    held_out = {name: laboratory.pooled(scenarios.splits.test) for name, scenarios in rivals.items()}
    return [
        _with_card(candidate, _card(laboratory, candidate, held_out, rivals, replies[number]))
        for number, candidate in enumerate(candidates)
    ]


def _n_units(candidates: Sequence[Candidate], rivals: Mapping[str, ScenarioSet], neutral: NeutralPrompts) -> int:
    units = len(neutral.prompts) + sum(2 * len(scenarios.splits.test) for scenarios in rivals.values())
    for scenarios in (candidate.scenarios for candidate in candidates):
        n_test = len(scenarios.splits.test)
        units += 2 * len(scenarios.splits.train) + 2 * len(scenarios.splits.test[::CAUSAL_STRIDE])
        if scenarios.prefills is not None:
            units += 4 * PREFILLS_PER_PROMPT * n_test
        if scenarios.instructions is not None:
            units += 4 * n_test + 4 * n_test
    return units


class _Laboratory:
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


@dataclass(frozen=True)
class _TestScores:
    """Scores of the test pairs at R."""

    positive: np.ndarray
    negative: np.ndarray
    topics: tuple[str, ...]
    crossed: np.ndarray


def _card(
    laboratory: _Laboratory,
    candidate: Candidate,
    held_out: Mapping[str, PooledPairs],
    rivals: Mapping[str, ScenarioSet],
    neutral_scores: np.ndarray,
) -> dict[str, Any]:
    vectors, scenarios = candidate.vectors, candidate.scenarios
    looks = count_look(scenarios, laboratory.model.fingerprint.short)
    row = laboratory.row(vectors)
    reader = vectors.reader[vectors.readout].numpy()
    tests = _scored(held_out[scenarios.name], row, reader)
    train = laboratory.pooled(scenarios.splits.train)
    bag = baselines.BagOfWords(*_responses(scenarios, "train"))
    own_text, gate_c = _own_text_gate(laboratory, candidate, train, row, reader, bag)
    found: dict[GateName, Gate] = {
        "A": gates.gate_a(separation(tests.positive, tests.negative, tests.topics)),
        "B": _crossed_gate(tests),
        "C": gate_c,
        "D": _specific_gate(candidate, tests, held_out, rivals, row, reader),
        "E": _stable_gate(candidate, train, row),
        "F": _causal_gate(laboratory, candidate),
        "H": _quiet_gate(neutral_scores, tests),
    }
    return {
        "verdict": gates.verdict_of(found),
        "gates": {name: gate.described() for name, gate in found.items()},
        "beside": _beside(scenarios, held_out[scenarios.name], train, bag),
        "own_text": own_text,
        "system_prompts": _system_prompts(laboratory, candidate, tests, row, reader),
        "looks_at_test_split": looks,
        "measured": datetime.now(UTC).date().isoformat(),
    }


def _with_card(candidate: Candidate, card: dict[str, Any]) -> TraitVectors:
    origin = candidate.vectors.origin
    verdict = card.pop("verdict")
    if origin.verdict == "transferred":
        verdict = "transferred"
    return replace(candidate.vectors, origin=replace(origin, verdict=verdict, card={**origin.card, "validation": card}))


def _scored(pairs: PooledPairs, row: int, reader: np.ndarray) -> _TestScores:
    return _TestScores(pairs.positive[:, row] @ reader, pairs.negative[:, row] @ reader, pairs.topics, pairs.crossed)


def _reader_method(vectors: TraitVectors) -> Method:
    """How the reader was fitted; readers of unknown origin are held against the default method's null."""
    return METHODS.get(vectors.origin.method.get("reader", ""), METHODS["lda"])


def _responses(scenarios: ScenarioSet, split: str) -> tuple[list[str], list[str]]:
    pairs = getattr(scenarios.splits, split)
    return [pair.positive for pair in pairs], [pair.negative for pair in pairs]


def _crossed_gate(tests: _TestScores) -> Gate:
    if tests.crossed.sum() < _LEAST_CROSSED:
        return gates.not_measured(gates.NEEDS["B"], f"fewer than {_LEAST_CROSSED} style-crossed test pairs")
    topics = [topic for topic, crossed in zip(tests.topics, tests.crossed, strict=True) if crossed]
    return gates.gate_b(separation(tests.positive[tests.crossed], tests.negative[tests.crossed], topics))


def _own_text_gate(
    laboratory: _Laboratory,
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
    if min(len(own.texts[pole]) for pole in POLES) < LEAST_TEST_PAIRS:
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


def _specific_gate(
    candidate: Candidate,
    tests: _TestScores,
    held_out: Mapping[str, PooledPairs],
    rivals: Mapping[str, ScenarioSet],
    row: int,
    reader: np.ndarray,
) -> Gate:
    own_name = candidate.scenarios.name
    found: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for name, scenarios in rivals.items():
        if name != own_name:
            related = name in candidate.scenarios.related or own_name in scenarios.related
            others = _scored(held_out[name], row, reader)
            found[related][name] = cohens_d(others.positive, others.negative)
    return gates.gate_d(cohens_d(tests.positive, tests.negative), unrelated=found[False], related=found[True])


def _stable_gate(candidate: Candidate, train: PooledPairs, row: int) -> Gate:
    method = candidate.vectors.origin.method.get("steerer", "")
    if method not in METHODS:
        return gates.not_measured(gates.NEEDS["E"], "the steerer was not fitted here, so it cannot be fitted on halves")
    positive, negative = train.positive[:, row], train.negative[:, row]
    cosine = split_half_cosine(positive, negative, train.topics, METHODS[method], _HALF_DRAWS)
    return gates.gate_e(cosine, norm_ratio(positive, negative, half_flipped(positive, negative, _NULL_DRAWS)))


def _causal_gate(laboratory: _Laboratory, candidate: Candidate) -> Gate:
    shifts, random_shifts = steering_shifts(
        laboratory.model,
        candidate.vectors,
        candidate.scenarios.splits.test[::CAUSAL_STRIDE],
        laboratory.style,
        laboratory.count,
    )
    return gates.gate_f(shifts, random_shifts)


def _quiet_gate(neutral_scores: np.ndarray, tests: _TestScores) -> Gate:
    """The threshold is 2.5 deviations above the mean of every other neutral reply."""
    one_half, other_half = neutral_scores[::2], neutral_scores[1::2]
    threshold = float(one_half.mean() + _DEVIATIONS * one_half.std(ddof=1))
    return gates.gate_h(
        threshold,
        flagged=float((other_half > threshold).mean()),
        recall=float((tests.positive > threshold).mean()),
        n_replies=len(other_half),
    )


def _beside(scenarios: ScenarioSet, test: PooledPairs, train: PooledPairs, bag: baselines.BagOfWords) -> dict[str, Any]:
    """AUROC on the test pairs of what needs no deep state; the writers of the built-in sets saw word statistics."""
    positive, negative = _responses(scenarios, "test")
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


def _system_prompts(
    laboratory: _Laboratory, candidate: Candidate, tests: _TestScores, row: int, reader: np.ndarray
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
    laboratory: _Laboratory, scenarios: ScenarioSet, row: int, reader: np.ndarray, *, swap: bool
) -> float:
    """AUROC of the test responses, each pole under system prompts of its own or of the other pole."""
    assert scenarios.instructions is not None
    scores = []
    for pole, asked in zip(POLES, reversed(POLES) if swap else POLES, strict=True):
        states = laboratory.pooled_under(scenarios.splits.test, pole, getattr(scenarios.instructions, asked))
        scores.append(states[:, row] @ reader)
    return auroc(*scores)
