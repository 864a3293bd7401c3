"""What can be chosen about a question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuestionOptions:
    """Choices of a question; a kind reads those that it knows and leaves the rest.

    Attributes:
        traits: only these; all of the run if empty.
        experiments: only these; all of the run if empty.
        generation: one generation, by id, the beginning of it, or experiment/prompt_id.
        layer, head: numbers from 0, negative from the end.
        position: a token's position in its generation; negative from the end.
        token: text of tokens to look at.
        seed: of every bootstrap and permutation.
    """

    traits: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    generation: str | None = None
    layer: int | None = None
    head: int | None = None
    position: int | None = None
    token: str | None = None
    seed: int = 0
