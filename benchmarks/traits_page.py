"""Writes docs/traits.md: the cards of the sixteen traits on the embedded model, and what steering does to its text.

Run ``traitscope traits validate --all`` and ``benchmarks/steering_text.py --out FILE`` first; then
``python benchmarks/traits_page.py --steering FILE --out docs/traits.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitscope.model.embedded import EMBEDDED_NAME
from traitscope.model.loading import load_model
from traitscope.report.traits_page import quoted, traits_page
from traitscope.traits.describe import describe_vectors
from traitscope.traits.scenarios import library_names
from traitscope.traits.store import find_trait, vectors_for

INTRODUCTION = """# The sixteen traits and their evidence

This page is written by a command (`benchmarks/traits_page.py`) from the cards that
`traitscope traits fit --all` and `traitscope traits validate --all` leave in the vector files; nothing in its tables is
typed by hand, and traits that failed stay in. Model: {model}, {dtype}; texts on {device}.

A verdict holds for one model, one scenario set and one method. The same command gives yours on your model.

| gate | what it needs |
|---|---|
{needs}

Verdicts: `validated` passes A to F and H; `reader only` A to D and H; `steerer only` E and F; `experimental` A and B;
`failed` none of these. In the first table A, B and C are AUROCs, D is the trait's own d over the largest |d| on the
pairs of an unrelated trait, E the split-half cosine, F the shift at α = .15 in nats a pair, H the share of neutral
replies flagged.

**Read G with care.** The writers of the scenario sets looked at word statistics of the test split, never at hidden
states, when they balanced it: so the bag-of-words figures are not blind, and most sets can still be told apart by their
words. Gate C, on text that nobody wrote or balanced, is the harder test.
"""

STEERING = """## What steering does to text

Greedy responses of {tokens} tokens to the prompts of each trait's dev split, pushed at R at response positions by α
times the median neutral norm there: along the steerer, and along {random_directions} random directions (their mean).
{seconds:.0f} s in all. `variety` is distinct words over words: it falls when a text repeats itself.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steering", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = load_model(EMBEDDED_NAME)
    vectors = vectors_for(model, [find_trait(name, Path()) for name in library_names()])
    described = [describe_vectors(trait) for trait in vectors]
    gates = described[0]["card"]["validation"]["gates"]
    needs = "\n".join(f"| {name} | {gate['needs'].replace('|', chr(92) + '|')} |" for name, gate in gates.items())
    dtype = str(model.dtype).removeprefix("torch.")
    head = INTRODUCTION.format(model=model.name, dtype=dtype, device=model.device, needs=needs)
    study = json.loads(arguments.steering.read_text())
    arguments.out.write_text("\n\n".join([head.rstrip(), traits_page(described), steering_section(study)]) + "\n")


def steering_section(study: Mapping[str, Any]) -> str:
    """The yardsticks over α, then one text a dose."""
    parts = [STEERING.format(**study).rstrip()]
    for name, found in study["traits"].items():
        parts.append(f"### {name}: {found['yardstick']} (rises with the {found['rises']} pole)")
        parts.append(doses_table(found))
        prompt = next(iter(found["steerer"].values()))["prompt"]
        parts.append(f"To {quoted(prompt)}:")
        parts.append(examples_table(found))
    return "\n\n".join(parts)


def doses_table(found: Mapping[str, Any]) -> str:
    lines = ["| α | steerer | variety | random | variety |", "|---|---|---|---|---|"]
    for alpha, dose in found["steerer"].items():
        control = found["random"][alpha]
        cells = [
            f"{d[key]:.2f}" if d[key] is not None else "–"
            for d in (dose, control)
            for key in ("mean", "distinct_words")
        ]
        lines.append("| " + " | ".join([alpha, *cells]) + " |")
    return "\n".join(lines)


def examples_table(found: Mapping[str, Any]) -> str:
    lines = ["| α | steerer | a random direction |", "|---|---|---|"]
    for alpha, dose in found["steerer"].items():
        lines.append(f"| {alpha} | {quoted(dose['example'])} | {quoted(found['random'][alpha]['example'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
