"""How vectors are fitted: the methods, what is pooled, and which other traits are avoided."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traitscope.traits.calibration import NEUTRAL_TOKENS
from traitscope.traits.methods import find_method
from traitscope.traits.pooling import RESPONSE, Pooling
from traitscope.traits.vectors import TraitVectors

_REVISION = 3  # of how fitting computes; a change makes cached vectors stale


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        reader, steerer: names of ``METHODS``.
        avoided: vectors of other traits; from reader and steerer, theirs are projected out at each checkpoint.
    """

    reader: str = "lda"
    steerer: str = "mean_diff"
    pooling: Pooling = RESPONSE
    avoided: tuple[TraitVectors, ...] = ()

    def __post_init__(self) -> None:
        find_method(self.reader)
        find_method(self.steerer)

    def record(self) -> dict[str, Any]:
        """What vectors say of how they were fitted; part of their key in the cache."""
        method: dict[str, Any] = {
            "reader": self.reader,
            "steerer": self.steerer,
            "pooling": str(self.pooling),
            "neutral_tokens": NEUTRAL_TOKENS,
            "revision": _REVISION,
        }
        if self.avoided:
            method["orthogonal_to"] = {vectors.trait: _digest(vectors) for vectors in self.avoided}
        return method


DEFAULTS = FitOptions()


def _digest(vectors: TraitVectors) -> str:
    """Short SHA-256 of a trait's directions."""
    digest = hashlib.sha256()
    for tensor in (vectors.reader, vectors.steerer):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def names_in(listed: str | None) -> Sequence[str]:
    """The names of a list separated by commas."""
    return [name.strip() for name in (listed or "").split(",") if name.strip()]
