"""Validation: every gate of every trait measured on held-out evidence, and the card that it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.counting import Counter, OnProgress, no_progress
from traitscope.traits.pooling import PooledPairs
from traitscope.traits.scenarios import (
    NeutralPrompts,
    ScenarioSet,
    library_names,
    library_scenarios,
    load_neutral,
)
from traitscope.traits.validation import baselines, gates
from traitscope.traits.validation.evidence import (
    CAUSAL_STRIDE,
    beside,
    causal_gate,
    crossed_gate,
    own_text_gate,
    quiet_gate,
    responses,
    scored,
    specific_gate,
    stable_gate,
    system_prompts,
)
from traitscope.traits.validation.gates import Gate, GateName
from traitscope.traits.validation.laboratory import Candidate, Laboratory
from traitscope.traits.validation.ledger import count_look
from traitscope.traits.validation.own_text import PREFILLS_PER_PROMPT
from traitscope.traits.validation.separation import separation
from traitscope.traits.vectors import TraitVectors

LEAST_TEST_PAIRS = 8


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
) -> Iterator[TraitVectors]:
    """Measure every gate of every candidate on ``model``; gives the vectors with verdict and card, one after the other.

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
    laboratory = Laboratory(model, PromptStyle(None, {}, base_template), candidates, count)
    replies = laboratory.neutral_scores(neutral)
    held_out = {name: laboratory.pooled(scenarios.splits.test) for name, scenarios in rivals.items()}
    for candidate, scores in zip(candidates, replies, strict=True):
        yield _with_card(candidate, _card(laboratory, candidate, held_out, rivals, scores))


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


def _card(
    laboratory: Laboratory,
    candidate: Candidate,
    held_out: Mapping[str, PooledPairs],
    rivals: Mapping[str, ScenarioSet],
    neutral_scores: np.ndarray,
) -> dict[str, Any]:
    vectors, scenarios = candidate.vectors, candidate.scenarios
    looks = count_look(scenarios, laboratory.model.fingerprint.short)
    row = laboratory.row(vectors)
    reader = vectors.reader[vectors.readout].numpy()
    tests = scored(held_out[scenarios.name], row, reader)
    train = laboratory.pooled(scenarios.splits.train)
    bag = baselines.BagOfWords(*responses(scenarios, "train"))
    own_text, gate_c = own_text_gate(laboratory, candidate, train, row, reader, bag)
    found: dict[GateName, Gate] = {
        "A": gates.gate_a(separation(tests.positive, tests.negative, tests.topics)),
        "B": crossed_gate(tests),
        "C": gate_c,
        "D": specific_gate(candidate, tests, held_out, rivals, row, reader),
        "E": stable_gate(candidate, train, row),
        "F": causal_gate(laboratory, candidate),
        "H": quiet_gate(neutral_scores, tests),
    }
    return {
        "verdict": gates.verdict_of(found),
        "gates": {name: gate.described() for name, gate in found.items()},
        "beside": beside(scenarios, held_out[scenarios.name], train, bag),
        "own_text": own_text,
        "system_prompts": system_prompts(laboratory, candidate, tests, row, reader),
        "looks_at_test_split": looks,
        "measured": datetime.now(UTC).date().isoformat(),
    }


def _with_card(candidate: Candidate, card: dict[str, Any]) -> TraitVectors:
    origin = candidate.vectors.origin
    verdict = card.pop("verdict")
    return replace(candidate.vectors, origin=replace(origin, verdict=verdict, card={**origin.card, "validation": card}))
