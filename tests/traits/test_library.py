"""Lint of the scenario sets: what makes a vector read topic, length, person or a stock phrase instead of the trait."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from traitscope.traits.scenarios import Pair, ScenarioSet, library_folder, library_names, load_neutral, load_scenarios

FIRST_PERSON = re.compile(r"\b(I|I'm|I've|I'd|I'll|me|my|mine|myself|we|our|us)\b")
LEAST_PAIRS = {"train": 32, "dev": 12, "test": 20}
LEAST_PREFILLS = 8
LEAST_NEUTRAL = 80
SIXTEEN = [
    "abstract_concrete",
    "cognitive_load",
    "commitment_strength",
    "context_adherence",
    "convergent_divergent",
    "emotional_valence",
    "instruction_boundary",
    "local_global",
    "paranoia_trust",
    "power_dynamics",
    "refusal",
    "retrieval_construction",
    "serial_parallel",
    "sycophancy",
    "temporal_focus",
    "uncertainty_calibration",
]


@pytest.fixture(params=library_names())
def scenarios(request: pytest.FixtureRequest) -> ScenarioSet:
    return load_scenarios(library_folder() / f"{request.param}.yaml")


def _splits(scenarios: ScenarioSet) -> dict[str, list[Pair]]:
    return {split: getattr(scenarios.splits, split) for split in LEAST_PAIRS}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _responses(pairs: list[Pair]) -> list[str]:
    return [response for pair in pairs for response in (pair.positive, pair.negative)]


def _phrases(texts: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for words in map(_words, texts) for i in range(len(words) - length + 1)}


def test_the_sixteen_traits_are_there() -> None:
    assert library_names() == SIXTEEN


def test_there_are_enough_pairs_and_the_name_is_the_file(scenarios: ScenarioSet) -> None:
    assert scenarios.name in library_names()
    for split, pairs in _splits(scenarios).items():
        assert len(pairs) >= LEAST_PAIRS[split]


def test_related_traits_exist_and_prefills_are_many_and_differ(scenarios: ScenarioSet) -> None:
    assert set(scenarios.related) <= set(SIXTEEN) - {scenarios.name}
    if scenarios.prefills is not None:
        poles = (scenarios.prefills.positive, scenarios.prefills.negative)
        assert all(len(set(pole)) == len(pole) >= LEAST_PREFILLS for pole in poles)
        assert set(poles[0]).isdisjoint(poles[1])


def test_nothing_stands_twice(scenarios: ScenarioSet) -> None:
    pairs = [pair for pairs in _splits(scenarios).values() for pair in pairs]
    for texts in ([pair.prompt for pair in pairs], _responses(pairs)):
        assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_topics_openings_and_phrases_of_one_split_appear_in_no_other(scenarios: ScenarioSet) -> None:
    for one, other in itertools.combinations(_splits(scenarios).values(), 2):
        assert {pair.topic for pair in one}.isdisjoint(pair.topic for pair in other)
        assert _phrases(_responses(one), 4).isdisjoint(_phrases(_responses(other), 4))
        openings = [{tuple(_words(text)[:3]) for text in _responses(pairs)} for pairs in (one, other)]
        assert openings[0].isdisjoint(openings[1])


def test_stock_phrases_stay_in_their_split(scenarios: ScenarioSet) -> None:
    texts = {split: [" ".join(_words(t)) for t in _responses(pairs)] for split, pairs in _splits(scenarios).items()}
    assert set(scenarios.stock_phrases) == set(texts)
    for split, phrases in scenarios.stock_phrases.items():
        for phrase in phrases:
            pattern = re.compile(rf"\b{re.escape(' '.join(_words(phrase)))}\b")
            found_in = {name for name, responses in texts.items() if any(map(pattern.search, responses))}
            assert found_in == {split}, phrase


def test_a_third_is_crossed_in_style_in_both_directions(scenarios: ScenarioSet) -> None:
    for split, pairs in _splits(scenarios).items():
        directions = Counter()
        for pair in pairs:
            persons = [bool(FIRST_PERSON.search(text)) for text in (pair.positive, pair.negative)]
            assert (persons[0] != persons[1]) == (pair.crossed == "person"), pair.prompt
            directions[tuple(persons)] += 1
        crossed = [directions[True, False], directions[False, True]]
        assert sum(crossed) >= len(pairs) / 3, split
        assert min(crossed) >= len(pairs) / 8, split


def test_poles_are_matched_in_length(scenarios: ScenarioSet) -> None:
    for split, pairs in _splits(scenarios).items():
        lengths = [(len(_words(pair.positive)), len(_words(pair.negative))) for pair in pairs]
        assert all(2 / 3 <= positive / negative <= 3 / 2 for positive, negative in lengths)
        totals = [sum(column) for column in zip(*lengths, strict=True)]
        assert abs(totals[0] - totals[1]) <= 0.05 * totals[1], split


def test_neutral_prompts_are_many_and_none_is_a_prompt_of_a_trait() -> None:
    prompts = load_neutral().prompts
    assert len(set(prompts)) == len(prompts) >= LEAST_NEUTRAL
    for name in library_names():
        pairs = itertools.chain(*_splits(load_scenarios(library_folder() / f"{name}.yaml")).values())
        assert {pair.prompt for pair in pairs}.isdisjoint(prompts)
