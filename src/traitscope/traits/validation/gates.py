"""Gates and verdicts: what a trait's evidence has to reach, fixed before anything was measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from traitscope.traits.validation.separation import Separation

GateName = Literal["A", "B", "C", "D", "E", "F", "H"]
GATES: tuple[GateName, ...] = ("A", "B", "C", "D", "E", "F", "H")

_VERDICTS: tuple[tuple[str, str], ...] = (
    ("validated", "ABCDEFH"),
    ("reader only", "ABCDH"),
    ("steerer only", "EF"),
    ("experimental", "AB"),
)


@dataclass(frozen=True)
class Gate:
    """One gate and what was found.

    Attributes:
        passed: whether every condition holds; a gate that could not be measured is not passed.
        needs: the conditions, for people.
        found: the figures, as plain values.
        reason: why it was not passed, one line.
    """

    passed: bool
    needs: str
    found: dict[str, Any]
    reason: str | None = None

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {"passed": self.passed, "needs": self.needs, **self.found, "reason": self.reason}


def not_measured(needs: str, reason: str) -> Gate:
    """A gate for which there was nothing to measure."""
    return Gate(False, needs, {}, reason)


def verdict_of(gates: Mapping[GateName, Gate]) -> str:
    """The first verdict all of whose gates are passed, else ``failed``."""
    for verdict, needed in _VERDICTS:
        if all(gates[name].passed for name in needed):  # type: ignore[index]
            return verdict
    return "failed"


def _judged(needs: str, found: dict[str, Any], conditions: Mapping[str, bool]) -> Gate:
    """Passed if every condition holds; the reason names those that do not."""
    missed = [name for name, holds in conditions.items() if not holds]
    return Gate(not missed, needs, found, f"missed: {', '.join(missed)}" if missed else None)


NEEDS: dict[GateName, str] = {
    "A": "test pairs: AUROC ≥ .95, d ≥ 2.5, paired accuracy ≥ .9",
    "B": "style-crossed test pairs: AUROC ≥ .85, d ≥ 1.5",
    "C": "own text after prefills: AUROC ≥ .75, above 97.5 % of half-flipped readers, pronoun rate and bag of words",
    "D": "own d at least twice the largest |d| on the pairs of unrelated traits",
    "E": "split-half cosine of the steerer ≥ .75, its length ≥ 2.5 times the half-flip null's",
    "F": "shift of log p(+) − log p(−) monotone over α = −.30, −.15, .15, .30, above 95 % of random directions at .15",
    "H": "threshold from one half of the neutral replies flags at most 5 % of the other half",
}


def gate_a(pairs: Separation) -> Gate:
    """Held-out pairs are told apart."""
    assert pairs.paired_accuracy is not None
    conditions = {
        "AUROC": pairs.auroc >= 0.95,
        "d": pairs.d >= 2.5,
        "paired accuracy": pairs.paired_accuracy >= 0.9,
    }
    return _judged(NEEDS["A"], pairs.described(), conditions)


def gate_b(crossed: Separation) -> Gate:
    """Pairs in which style runs across the trait are told apart, too."""
    return _judged(NEEDS["B"], crossed.described(), {"AUROC": crossed.auroc >= 0.85, "d": crossed.d >= 1.5})


def gate_c(own_text: Separation, null_aurocs: Sequence[float], bag_of_words: float, pronoun_rate: float) -> Gate:
    """The model's own text is told apart, better than by chance directions and by its words."""
    null = float(np.percentile(null_aurocs, 97.5))
    found = own_text.described() | {
        "null": round(null, 4),
        "bag_of_words": round(bag_of_words, 4),
        "pronoun_rate": round(pronoun_rate, 4),
    }
    conditions = {
        "AUROC": own_text.auroc >= 0.75,
        "half-flip null": own_text.auroc > null,
        "bag of words": own_text.auroc > bag_of_words,
        "pronoun rate": own_text.auroc > pronoun_rate,
    }
    return _judged(NEEDS["C"], found, conditions)


def gate_d(own: float, unrelated: Mapping[str, float], related: Mapping[str, float]) -> Gate:
    """Pairs of other traits are not told apart; those of declared relatives are reported only."""
    rounded = [{name: round(d, 3) for name, d in found.items()} for found in (unrelated, related)]
    found: dict[str, Any] = {"d": round(own, 4), "unrelated": rounded[0], "related": rounded[1]}
    if not unrelated:
        return Gate(False, NEEDS["D"], found, "there is no unrelated trait to compare with")
    strongest = max(unrelated, key=lambda name: abs(unrelated[name]))
    found |= {"strongest": strongest, "ratio": round(own / abs(unrelated[strongest]), 4)}
    return _judged(NEEDS["D"], found, {f"d on {strongest}": own >= 2 * abs(unrelated[strongest])})


def gate_e(cosine: float, ratio: float) -> Gate:
    """The steerer does not depend on which half of the topics it was fitted on, nor on chance."""
    found = {"split_half_cosine": round(cosine, 4), "norm_over_null": round(ratio, 4)}
    return _judged(NEEDS["E"], found, {"split-half cosine": cosine >= 0.75, "length": ratio >= 2.5})


def gate_f(shifts: Mapping[float, float], random_shifts: Sequence[float]) -> Gate:
    """Pushing along the steerer makes the positive responses likelier, more so than pushing anywhere else.

    ``shifts`` is by α, in nats a pair; ``random_shifts`` those of random directions at α = .15.
    """
    doses = sorted(shifts)
    beaten = float(np.mean(np.array(random_shifts) < shifts[0.15]))
    found = {
        "shift": {f"{alpha:+.2f}": round(shifts[alpha], 4) for alpha in doses},
        "random_directions": len(random_shifts),
        "random_beaten": round(beaten, 4),
        "random_largest": round(max(random_shifts), 4),
        "random_median": round(float(np.median(random_shifts)), 4),
    }
    values = [shifts[alpha] for alpha in doses]
    conditions = {"monotone": all(low < high for low, high in itertools.pairwise(values))}
    conditions["random directions"] = beaten >= 0.95
    return _judged(NEEDS["F"], found, conditions)


def gate_h(threshold: float, flagged: float, recall: float, n_replies: int) -> Gate:
    """A threshold from ordinary replies leaves other ordinary replies alone; recall is for the record."""
    found = {
        "threshold": round(threshold, 4),
        "flagged": round(flagged, 4),
        "replies": n_replies,
        "recall": round(recall, 4),
    }
    return _judged(NEEDS["H"], found, {"flagged": flagged <= 0.05})
