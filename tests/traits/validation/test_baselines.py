"""Bugs caught here: a phrase counted inside other words, an opener found in the middle, a bag of words that saw what it
is tested on, a curly apostrophe that hides a pronoun."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.effect_size import auroc
from traitscope.traits.scenarios import Yardstick
from traitscope.traits.validation.baselines import BagOfWords, either_way, measured, pronoun_rates


def test_pronouns_are_counted_as_words() -> None:
    rates = pronoun_rates(["I’m sure we are", "Time is the mine of ironies", "", "Mines are deep"])
    np.testing.assert_allclose(rates, [2 / 4, 1 / 6, 0, 0])


@pytest.mark.parametrize(
    ("yardstick", "text", "value"),
    [
        (Yardstick(name="hedges", words=["may", "as far as I know"]), "It may, as far as I know, be a mayor.", 20.0),
        (Yardstick(name="openers", openers=["I'm sorry"]), "I’m sorry, but no.", 1.0),
        (Yardstick(name="openers", openers=["I'm sorry"]), "No, I'm sorry.", 0.0),
        (Yardstick(name="letters", letters_per_word=True), "an apple", 3.5),
    ],
)
def test_yardsticks(yardstick: Yardstick, text: str, value: float) -> None:
    assert measured(yardstick, text) == pytest.approx(value)


def test_a_text_without_words_has_no_rate() -> None:
    assert np.isnan(measured(Yardstick(name="hedges", words=["may"]), "…"))


def test_a_baseline_without_sign_counts_either_way() -> None:
    assert either_way(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0


def test_bag_of_words_reads_words_it_was_fitted_on_and_no_others() -> None:
    bag = BagOfWords(["perhaps it rains", "it perhaps snows"], ["surely it rains", "it surely snows"])
    ups, downs = bag.scores(["perhaps we go", "we perhaps stay"]), bag.scores(["surely we go", "we surely stay"])
    assert auroc(ups, downs) == 1.0
    assert np.ptp(bag.scores(["unseen words", "others still"])) == 0
