"""Bugs caught here: a card of other vectors than the run uses, a test split that is read by fitting, a look that is not
counted, a set without held-out evidence that gets a verdict, negative controls that pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import SCENARIOS
from traitscope.analysis.effect_size import auroc, cohens_d
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.report.traits_page import traits_page
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.describe import describe_vectors
from traitscope.traits.fitting import fit_traits
from traitscope.traits.methods import METHODS
from traitscope.traits.pooling import PooledPairs, pool_pairs
from traitscope.traits.scenarios import Pair, ScenarioSet, library_scenarios, load_scenarios
from traitscope.traits.store import find_trait, vectors_for
from traitscope.traits.validation.candidates import validate_references
from traitscope.traits.validation.gates import Gate, gate_a, gate_b, gate_e
from traitscope.traits.validation.separation import half_flipped, norm_ratio, separation, split_half_cosine
from traitscope.traits.validation.validate import check_scenarios
from traitscope.traits.vectors import TraitVectors, load_vectors

STYLE = PromptStyle(None, {}, BASE_TEMPLATE)


@pytest.fixture(scope="module")
def loudness() -> ScenarioSet:
    return load_scenarios(SCENARIOS)


@pytest.fixture(scope="module")
def validated(
    tiny: Callable[..., LanguageModel], loudness: ScenarioSet, tmp_path_factory: pytest.TempPathFactory
) -> TraitVectors:
    """The tiny trait validated once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAITSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        reference = find_trait(str(SCENARIOS), Path())
        first = validate_references(tiny("llama"), [reference], [loudness])[0]
        again = validate_references(tiny("llama"), [reference], [loudness])[0]
        stored = vectors_for(tiny("llama"), [reference])[0]
    assert first.origin.card["validation"]["looks_at_test_split"] == 1
    assert again.origin.card["validation"]["looks_at_test_split"] == 2
    assert stored.origin == again.origin, "later runs find the card with the vectors"
    return again


def test_gates_are_those_of_the_vectors_themselves(
    tiny: Callable[..., LanguageModel], loudness: ScenarioSet, validated: TraitVectors
) -> None:
    pooled = pool_pairs(tiny("llama"), loudness.splits.test, STYLE, lambda: None)
    reader = validated.reader[validated.readout].numpy()
    ups, downs = pooled.positive[:, validated.readout] @ reader, pooled.negative[:, validated.readout] @ reader
    gates = validated.origin.card["validation"]["gates"]
    assert gates["A"]["auroc"] == pytest.approx(auroc(ups, downs), abs=1e-4)
    assert gates["A"]["d"] == pytest.approx(cohens_d(ups, downs), rel=1e-3)
    assert gates["B"]["n_positive"] == 4
    assert set(gates) == set("ABCDEFH")
    assert len(gates["D"]["unrelated"]) == 16
    assert json.loads(json.dumps(validated.origin.card)) == validated.origin.card


def test_the_test_split_changes_no_vector(
    tiny: Callable[..., LanguageModel], loudness: ScenarioSet, own_cache: Path
) -> None:
    swapped = [
        pair.model_copy(update={"positive": pair.negative, "negative": pair.positive}) for pair in loudness.splits.test
    ]
    other = loudness.model_copy(update={"splits": loudness.splits.model_copy(update={"test": swapped})})
    one, two = (fit_traits(tiny("llama"), [scenarios])[0] for scenarios in (loudness, other))
    assert torch.equal(one.reader, two.reader)
    assert one.readout == two.readout


def test_a_set_without_a_test_split_is_refused_before_anything_is_computed(loudness: ScenarioSet) -> None:
    bare = loudness.model_copy(update={"splits": loudness.splits.model_copy(update={"test": []})})
    with pytest.raises(InputError, match=r"loudness: 0 test pairs are too few"):
        check_scenarios(bare)


def test_the_command_prints_verdicts_and_show_the_card(command: Any, tiny_directory: Path, own_cache: Path) -> None:
    code, out, _ = command("traits", "validate", SCENARIOS, "--model", tiny_directory)
    assert code == 0
    assert "loudness" in out
    card = json.loads(command("traits", "show", SCENARIOS, "--json")[1])["cards"][0]
    assert card["verdict"] in out
    shown = command("traits", "show", SCENARIOS)[1]
    assert "split-half cosine" in shown
    assert "looked at 1 times" in shown
    assert command("traits", "validate")[0] == 2


def test_the_page_holds_every_figure_and_model_text_cannot_break_its_tables(validated: TraitVectors) -> None:
    described = describe_vectors(validated)
    validation = described["card"]["validation"]
    validation["own_text"] = {"example": {"positive": "a|b\n`c` <script>", "negative": ""}}
    page = traits_page([described])
    assert f"**{validated.origin.verdict}**" in page
    assert "`a¦b 'c' <script>`" in page
    for table in (block.splitlines() for block in page.split("\n\n") if block.startswith("| ")):
        assert len({line.count("|") for line in table}) == 1
    missed = [name for name, gate in validation["gates"].items() if not gate["passed"]]
    assert all(f"- loudness, {name}: " in page for name in missed)


def test_a_vector_file_keeps_its_card_itself(
    command: Any, tiny_directory: Path, own_cache: Path, tmp_path: Path
) -> None:
    assert command("traits", "fit", SCENARIOS, "--model", tiny_directory, "--out", tmp_path)[0] == 0
    file = tmp_path / "loudness.safetensors"
    before = load_vectors(file)
    code, _, err = command("traits", "validate", file, "--model", tiny_directory)
    assert code == 2
    assert "give one with --scenarios" in err
    assert command("traits", "validate", file, "--scenarios", SCENARIOS, "--model", tiny_directory)[0] == 0
    after = load_vectors(file)
    assert after.origin.verdict != "unvalidated"
    assert set(after.origin.card["validation"]["gates"]) == set("ABCDEFH")
    assert torch.equal(after.reader, before.reader)
    assert after.origin.card["dev"] == before.origin.card["dev"]


# Negative controls, on real text and the embedded model; the test split of the library stays sealed (dev is held out).


@pytest.fixture(scope="module")
def hedging(embedded: LanguageModel) -> tuple[PooledPairs, PooledPairs]:
    splits = library_scenarios("uncertainty_calibration").splits
    return tuple(pool_pairs(embedded, pairs, STYLE, lambda: None) for pairs in (splits.train, splits.dev))  # type: ignore[return-value]


def judged(train: PooledPairs, held_out: PooledPairs, checkpoint: int = 30) -> tuple[Gate, Gate, Gate]:
    """Gates A, B and E of a reader and a steerer fitted at ``resid_post.14``."""
    positive, negative = train.positive[:, checkpoint], train.negative[:, checkpoint]
    reader = METHODS["lda"](positive, negative)
    ups, downs = held_out.positive[:, checkpoint] @ reader, held_out.negative[:, checkpoint] @ reader
    crossed = held_out.crossed
    topics = [topic for topic, is_crossed in zip(held_out.topics, crossed, strict=True) if is_crossed]
    cosine = split_half_cosine(positive, negative, train.topics, METHODS["mean_diff"], 20)
    ratio = norm_ratio(positive, negative, half_flipped(positive, negative, 100))
    return (
        gate_a(separation(ups, downs, held_out.topics)),
        gate_b(separation(ups[crossed], downs[crossed], topics)),
        gate_e(cosine, ratio),
    )


def relabelled(pairs: PooledPairs, exchange: np.ndarray) -> PooledPairs:
    """Pairs with the poles of some exchanged."""
    flip = exchange[:, None, None]
    return replace(
        pairs,
        positive=np.where(flip, pairs.negative, pairs.positive),
        negative=np.where(flip, pairs.positive, pairs.negative),
    )


@pytest.mark.slow
def test_a_real_trait_passes_what_its_controls_fail(hedging: tuple[PooledPairs, PooledPairs]) -> None:
    assert [gate.passed for gate in judged(*hedging)] == [True, True, True]


@pytest.mark.slow
def test_half_flipped_labels_fail_e(hedging: tuple[PooledPairs, PooledPairs]) -> None:
    train, held_out = hedging
    for seed in range(5):
        exchange = np.random.default_rng(seed).permutation(len(train.topics)) < len(train.topics) // 2
        assert not judged(relabelled(train, exchange), held_out)[2].passed


@pytest.mark.slow
def test_pairs_without_a_common_meaning_fail_a_and_b(hedging: tuple[PooledPairs, PooledPairs]) -> None:
    """Each pair's poles are named by chance, on both splits."""
    train, held_out = hedging
    for seed in range(5):
        generator = np.random.default_rng(seed)
        sides = [relabelled(pairs, generator.random(len(pairs.topics)) < 0.5) for pairs in (train, held_out)]
        assert [gate.passed for gate in judged(*sides)[:2]] == [False, False]


@pytest.mark.slow
def test_a_style_only_set_is_caught_by_b(embedded: LanguageModel) -> None:
    """First person against impersonal, whatever is said: it passes as a trait until style is crossed."""
    splits = library_scenarios("uncertainty_calibration").splits
    train = pool_pairs(embedded, by_person(splits.train), STYLE, lambda: None)
    usual, crossed = by_person(splits.dev), [exchanged(pair) for pair in by_person(splits.dev)]
    gate_b_found = judged(train, pool_pairs(embedded, [*usual, *crossed], STYLE, lambda: None))[1]
    assert not gate_b_found.passed
    assert gate_b_found.found["auroc"] < 0.5


def by_person(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of which one response is in the first person: that one as the positive pole, style uncrossed."""
    first = {"i", "i'm", "i've", "i'd", "i'll", "me", "my", "we", "our", "us", "myself", "mine"}
    found = []
    for pair in (pair for pair in pairs if pair.crossed == "person"):
        is_first = bool(first & set(pair.positive.lower().replace(",", " ").replace(".", " ").split()))
        found.append((pair if is_first else exchanged(pair)).model_copy(update={"crossed": None}))
    return found


def exchanged(pair: Pair) -> Pair:
    return pair.model_copy(update={"positive": pair.negative, "negative": pair.positive, "crossed": "person"})


@pytest.mark.slow
def test_shuffled_text_fails(embedded: LanguageModel) -> None:
    """The words of both responses of each pair, shuffled together and dealt out to the poles."""
    splits = library_scenarios("uncertainty_calibration").splits
    generator = np.random.default_rng(0)
    train, held_out = (
        pool_pairs(embedded, [shuffled(pair, generator) for pair in pairs], STYLE, lambda: None)
        for pairs in (splits.train, splits.dev)
    )
    assert [gate.passed for gate in judged(train, held_out)] == [False, False, False]


def shuffled(pair: Pair, generator: np.random.Generator) -> Pair:
    words = generator.permutation((pair.positive + " " + pair.negative).split())
    half = len(words) // 2
    return pair.model_copy(update={"positive": " ".join(words[:half]), "negative": " ".join(words[half:])})
