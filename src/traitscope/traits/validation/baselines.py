"""What a reader of states must beat: measures of the words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from traitscope.analysis.effect_size import auroc
from traitscope.traits.scenarios import Yardstick

_FIRST_PERSON = {
    *("i", "i'm", "i've", "i'd", "i'll", "me", "my", "mine", "myself"),
    *("we", "we're", "we've", "we'd", "we'll", "us", "our", "ours", "ourselves"),
}
_WORD = r"[a-z0-9]+(?:['’][a-z]+)?"


def words_of(text: str) -> list[str]:
    """Lower-case words, contractions whole."""
    return [word.replace("’", "'") for word in re.findall(_WORD, text.lower())]


def pronoun_rates(texts: Sequence[str]) -> np.ndarray:
    """First-person pronouns per word ``[n_texts]``."""
    counted = [(sum(word in _FIRST_PERSON for word in words), len(words)) for words in map(words_of, texts)]
    return np.array([count / max(total, 1) for count, total in counted])


def lengths(texts: Sequence[str]) -> np.ndarray:
    """Words per text ``[n_texts]``."""
    return np.array([float(len(words_of(text))) for text in texts])


def either_way(positive: np.ndarray, negative: np.ndarray) -> float:
    """AUROC of a measure that nobody said rises or falls with the trait: the better of both."""
    value = auroc(positive, negative)
    return max(value, 1 - value)


class BagOfWords:
    """A logistic regression on TF-IDF weights of single words, fitted on the training responses alone."""

    def __init__(self, positive: Sequence[str], negative: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._classifier = make_pipeline(
            TfidfVectorizer(tokenizer=words_of, token_pattern=None, lowercase=False, sublinear_tf=True),
            LogisticRegression(C=10.0, max_iter=1000),
        )
        self._classifier.fit([*positive, *negative], [1] * len(positive) + [0] * len(negative))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Larger for texts that look positive ``[n_texts]``."""
        return self._classifier.decision_function(list(texts))


def measured(yardstick: Yardstick, text: str) -> float:
    """A yardstick's measure of one text: occurrences per 100 words, 1 or 0 for an opener, or letters per word."""
    words = words_of(text)
    if yardstick.openers:
        return float(any(words[: len(words_of(opener))] == words_of(opener) for opener in yardstick.openers))
    if not words:
        return float("nan")
    if yardstick.letters_per_word:
        return sum(map(len, words)) / len(words)
    return 100 * sum(_occurrences(words, words_of(entry)) for entry in yardstick.words) / len(words)


def _occurrences(words: Sequence[str], phrase: Sequence[str]) -> int:
    n = len(phrase)
    return sum(list(words[i : i + n]) == list(phrase) for i in range(len(words) - n + 1))
