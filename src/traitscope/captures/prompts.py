"""Which generations are of one prompt: the unit of statistics."""

from __future__ import annotations

from traitscope.captures.reading import Run


def prompt_numbers(run: Run) -> dict[str, int]:
    """A number for each generation's prompt, by generation.

    Generations are of one prompt where the token ids of their prompts are the same (and of given responses, too),
    whatever they are called: samples, doses, and a line that a file of prompts repeats.
    """
    rows = run.prompts.select("generation", "token_ids", "response_ids").collect().to_dicts()
    numbers: dict[tuple, int] = {}
    texts = {row["generation"]: (tuple(row["token_ids"]), tuple(row["response_ids"] or ())) for row in rows}
    return {generation: numbers.setdefault(text, len(numbers)) for generation, text in texts.items()}
