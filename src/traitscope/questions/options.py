"""What can be chosen about a question."""

from __future__ import annotations

from dataclasses import dataclass, fields

FLAGS = {"traits": "--trait", "experiments": "--experiment"}
"""What the command line calls choices that go by another name there."""


@dataclass(frozen=True)
class QuestionOptions:
    """Choices of a question; ``Kind.reads`` names those that a kind reads, it refuses the rest.

    Attributes:
        traits: only these; all of the run if empty.
        experiments: only these; all of the run if empty.
        layer, head: numbers from 0, negative from the end.
        position: a token's position in its generation; negative from the end.
        token: text of tokens to look at.
        seed: of every bootstrap and permutation.
    """

    traits: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    layer: int | None = None
    head: int | None = None
    position: int | None = None
    token: str | None = None
    seed: int = 0

    @property
    def given(self) -> tuple[str, ...]:
        """Names of those that are not what they are by default."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != field.default)
