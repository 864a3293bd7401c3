"""Lint of the scenario sets: what makes a vector read topic, length, person or a stock phrase instead of the trait."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter

import pytest

from traitscope.traits.scenarios import Pair, ScenarioSet, library_folder, library_names, load_neutral, load_scenarios

FIRST_PERSON = re.compile(r"\b(I|I'm|I've|I'd|I'll|me|my|mine|myself|we|our|us)\b")
# A prefill often begins with My or We, which the pairs' rule does not see.
FIRST_PERSON_ANYWHERE = re.compile(FIRST_PERSON.pattern, re.IGNORECASE)
LEAST_PAIRS = {"train": 32, "dev": 12, "test": 20}
LEAST_PREFILLS = 8
LEAST_INSTRUCTIONS = 3
LEAST_NEUTRAL = 80
YARDSTICKS = {
    "uncertainty_calibration": ("words", 40, "positive"),
    "commitment_strength": ("words", 40, "negative"),
    "sycophancy": ("words", 25, "positive"),
    "refusal": ("openers", 25, "positive"),
    "cognitive_load": ("letters_per_word", 0, "positive"),
}
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
    return _library(request.param)


@functools.cache
def _library(name: str) -> ScenarioSet:
    return load_scenarios(library_folder() / f"{name}.yaml")


def _many_and_distinct(*poles: list[str], least: int) -> bool:
    texts = list(itertools.chain(*poles))
    return min(map(len, poles)) >= least and len(set(texts)) == len(texts)


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


def test_relations_are_mutual_and_point_the_same_way() -> None:
    relations = {(name, other): why for name in SIXTEEN for other, why in _library(name).related.items()}
    for (name, other), why in relations.items():
        assert name != other
        ways = [set(re.findall(r"\b(along|against)\b", text.lower())) for text in (why, relations[other, name])]
        assert len(ways[0]) == 1, (name, other)
        assert ways[0] == ways[1], (name, other)


def test_prefills_are_many_and_differ_and_both_poles_mix_the_persons(scenarios: ScenarioSet) -> None:
    assert scenarios.prefills is not None
    poles = (scenarios.prefills.positive, scenarios.prefills.negative)
    assert _many_and_distinct(*poles, least=LEAST_PREFILLS)
    first_person = [sum(bool(FIRST_PERSON_ANYWHERE.search(text)) for text in pole) for pole in poles]
    assert all(0 < count < len(pole) for count, pole in zip(first_person, poles, strict=True))
    assert abs(first_person[0] - first_person[1]) <= len(poles[0]) / 3


def test_instructions_are_many_and_differ(scenarios: ScenarioSet) -> None:
    assert scenarios.instructions is not None
    assert _many_and_distinct(
        scenarios.instructions.positive, scenarios.instructions.negative, least=LEAST_INSTRUCTIONS
    )


def test_these_traits_have_a_yardstick_of_this_size_and_direction() -> None:
    yardsticks = {name: _library(name).yardstick for name in SIXTEEN}
    for name, (form, least, rises) in YARDSTICKS.items():
        yardstick = yardsticks[name]
        assert yardstick is not None
        assert yardstick.rises == rises
        if form == "letters_per_word":
            assert yardstick.letters_per_word
        else:
            assert len(getattr(yardstick, form)) >= least


def test_no_occurrence_counts_twice_on_a_yardstick(scenarios: ScenarioSet) -> None:
    """An entry inside another counts one phrase twice; an opener that begins with another can never matter."""
    if scenarios.yardstick is None:
        return
    words, openers = scenarios.yardstick.words, scenarios.yardstick.openers
    assert all(entry == entry.lower().strip() for entry in words + openers)
    for one, other in itertools.permutations(words, 2):
        assert f" {one} " not in f" {other} "
    for one, other in itertools.permutations(openers, 2):
        assert not other.startswith(one)


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
        pairs = itertools.chain(*_splits(_library(name)).values())
        assert {pair.prompt for pair in pairs}.isdisjoint(prompts)
