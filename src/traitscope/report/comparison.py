"""The comparison of several traits, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MOST_PAIRS = 20


def print_comparison(console: Console, result: Mapping[str, Any]) -> None:
    """What each reader says of each trait's pairs, and the pairs of traits whose directions are nearest."""
    console.print(_auroc_table(result))
    console.print(_cosine_table(result))


def _auroc_table(result: Mapping[str, Any]) -> Table:
    traits = result["traits"]
    caption = (
        f"Row: whose reader, at its R. Column: whose pairs of the {result['split']} split. 0.5: it tells nothing of "
        f"them; below, it runs the other way. {_spread(traits)}"
    )
    table = Table(
        title="AUROC of each reader on each trait's pairs", caption=caption, caption_justify="left", padding=0
    )
    table.add_column("", justify="right")
    for name in ("trait", "R", "verdict"):
        table.add_column(name, no_wrap=name != "verdict")
    for number in range(1, len(traits) + 1):
        table.add_column(str(number), justify="right", no_wrap=True, min_width=4)
    for row, trait in enumerate(traits):
        cells = [_auroc_cell(value, own=row == column) for column, value in enumerate(result["cross_auroc"][row])]
        table.add_row(str(row + 1), trait["trait"], trait["readout"], trait["verdict"], *cells)
    return table


def _spread(traits: Sequence[Mapping[str, Any]]) -> str:
    numbers = [trait["pairs"] for trait in traits if trait["pairs"]]
    deviations = [trait["random_auroc_deviation"] for trait in traits if trait["pairs"]]
    if not numbers:
        return "No trait has pairs."
    few, many = min(numbers), max(numbers)
    pairs = f"{few}" if few == many else f"{few} to {many}"
    spread = f"±{max(deviations):.2f} (standard deviation)"
    return f"With {pairs} pairs a trait, scores that do not differ spread it by {spread}."


def _auroc_cell(value: float | None, *, own: bool) -> Text:
    return Text("–" if value is None else f"{value:.2f}", style="bold" if own else "")


def _cosine_table(result: Mapping[str, Any]) -> Table:
    random, pairs = result["random_cosine"], result["pairs"]
    marked = sum(pair["marked"]["reader"] or pair["marked"]["steerer"] for pair in pairs)
    caption = (
        f"Two random directions in {random['d_model']} dimensions: cosine 0 ± {random['deviation']:.3f}, "
        f"{random['mean_absolute']:.3f} in absolute value. *: beyond three deviations ({random['marked_beyond']:.3f}), "
        f"{marked} of {len(pairs)}. related: the scenario sets said so beforehand."
    )
    table = Table(title="Cosines between directions, at the R of either trait", caption=caption, caption_justify="left")
    for name in ("traits", "verdicts", "readers", "steerers", ""):
        table.add_column(name)
    place = {checkpoint: index for index, checkpoint in enumerate(result["checkpoints"])}
    readouts = {trait["trait"]: place[trait["readout"]] for trait in result["traits"]}
    for pair in pairs[:_MOST_PAIRS]:
        table.add_row(
            " and ".join(pair["traits"]),
            _verdicts(pair["verdicts"]),
            *(_cosine_cell(pair, kind, readouts) for kind in ("reader", "steerer")),
            "related" if pair["declared_related"] else "",
        )
    if len(pairs) > _MOST_PAIRS:
        table.add_row(f"and {len(pairs) - _MOST_PAIRS} more, in the JSON")
    return table


def _verdicts(verdicts: Sequence[str]) -> str:
    return verdicts[0] if verdicts[0] == verdicts[1] else " / ".join(verdicts)


def _cosine_cell(pair: Mapping[str, Any], kind: str, readouts: Mapping[str, int]) -> str:
    """The cosine at the R of both traits, once where they share it."""
    places = dict.fromkeys(readouts[trait] for trait in pair["traits"])
    cosines = [pair["cosines"][kind][place] for place in places]
    return " / ".join("–" if cosine is None else f"{cosine:+.2f}" for cosine in cosines) + (
        "*" if pair["marked"][kind] else ""
    )
