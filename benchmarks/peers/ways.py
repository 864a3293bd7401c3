"""In which batches a contender does the work: how wide they are, and in which order prompts enter them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Order = Literal["file order", "longest first", "refilled"]


@dataclass(frozen=True)
class Way:
    """Attributes:
    width: rows that are generated together at most.
    order: of the prompts; ``refilled`` leaves it to a contender that takes the whole queue and gives a finished
        row's place to the next prompt.
    """

    width: int
    order: Order

    def batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The numbers of the prompts in each batch."""
        numbers = list(range(len(prompts)))
        if self.order == "longest first":
            numbers.sort(key=lambda number: -len(prompts[number]))
        return [numbers[start : start + self.width] for start in range(0, len(numbers), self.width)]

    def __str__(self) -> str:
        return f"{self.width}, {self.order}"
