"""Whether a contender did the same work: its tokens and scores beside traitscope's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

LARGEST_DIFFERENCE = 1e-3
LEAST_EQUAL_SHARE = 0.9
_RESPONSE = "response_ids."


@dataclass(frozen=True)
class Agreement:
    """Attributes:
    n_equal: rows whose tokens are all equal.
    n_checkpoints: checkpoints whose scores were compared; 0 for a contender without a capture.
    largest_difference: of a score, as a share of the state's norm, over the positions that read equal tokens.
    """

    n_equal: int
    n_rows: int
    n_checkpoints: int
    largest_difference: float

    @property
    def is_same_work(self) -> bool:
        """A near tie may turn a row in float32; more than a few turned rows are another computation."""
        return self.n_equal >= LEAST_EQUAL_SHARE * self.n_rows and self.largest_difference <= LARGEST_DIFFERENCE

    def __str__(self) -> str:
        tokens = f"tokens of {self.n_equal} of {self.n_rows} rows equal"
        if not self.n_checkpoints:
            return tokens
        return f"{tokens}, scores of {self.n_checkpoints} checkpoints within {self.largest_difference:.1e} of the norm"


def agreement(kept: Path, reference: Path) -> Agreement:
    """Compare the rows that two workers kept; ``reference`` has the norms."""
    with np.load(kept) as found, np.load(reference) as expected:
        n_rows = sum(name.startswith(_RESPONSE) for name in expected)
        n_turned = [_n_turned(found[f"{_RESPONSE}{row}"], expected[f"{_RESPONSE}{row}"]) for row in range(n_rows)]
        differences = [
            _largest_difference(found, expected, row, turned)
            for row, turned in enumerate(n_turned)
            if f"scores.{row}" in found
        ]
        return Agreement(
            n_equal=n_turned.count(0),
            n_rows=n_rows,
            n_checkpoints=len(found["checkpoints"]),
            largest_difference=float(np.max(differences, initial=0.0)),
        )


def _n_turned(found: np.ndarray, expected: np.ndarray) -> int:
    """How many tokens there are from the first on that differs."""
    return len(expected) - int(np.cumprod(found == expected).sum())


def _largest_difference(found: NpzFile, expected: NpzFile, row: int, n_turned: int) -> float:
    checkpoints = found["checkpoints"]
    scores, norms = expected[f"scores.{row}"][checkpoints], expected[f"norms.{row}"][checkpoints]
    differences = np.abs(found[f"scores.{row}"] - scores).max(axis=-1) / norms
    return float(differences[:, : differences.shape[1] - n_turned].max())
