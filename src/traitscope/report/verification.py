"""What ``traitscope verify`` shows a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from traitscope.report.text import precision_of

_UNITS = {
    "score": "of the state's norm",
    "norm": "of the state's norm",
    "write": "of the state's norm",
    "logprob": "nats",
    "argmax": "std of the logits",
    "draw": "probability",
}
_MOST_PROBLEMS = 20


def print_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    """The largest difference per quantity and site beside its limit, then the verdict or the problems."""
    if verdict["worst"]:
        console.print(_table(verdict))
    print_conclusion(console, verdict)


def print_conclusion(console: Console, verdict: Mapping[str, Any]) -> None:
    """The problems, if any, and one line that says what the verification came to."""
    for problem in verdict["problems"][:_MOST_PROBLEMS]:
        console.print(Text(problem, style="red"), soft_wrap=True)
    if (n_more := len(verdict["problems"]) - _MOST_PROBLEMS) > 0:
        console.print(Text(f"and {n_more} more problems (--json shows them all)", style="red"), soft_wrap=True)
    console.print(Text(conclusion(verdict)), soft_wrap=True)


def _table(verdict: Mapping[str, Any]) -> Table:
    precision = precision_of(verdict["dtype"], verdict["quantization"])
    table = Table(
        title=f"Largest differences from an independent replay ({precision})",
        caption="Few values may lie beyond the limit, none beyond the ceiling.",
        caption_justify="left",
    )
    for column in ("quantity", "site"):
        table.add_column(column)
    for column in ("largest difference", "limit", "ceiling"):
        table.add_column(column, justify="right")
    for column in ("unit", "where"):
        table.add_column(column)
    for worst in verdict["worst"]:
        difference = worst["difference"]
        table.add_row(
            worst["quantity"],
            worst["site"],
            "not finite" if difference is None else f"{difference:.1e}",
            f"{worst['limit']:.1e}",
            f"{worst['ceiling']:.1e}",
            _UNITS[worst["quantity"]],
            Text(_where(worst)),
        )
    return table


def _where(worst: Mapping[str, Any]) -> str:
    parts = [worst["label"], worst["checkpoint"], f"position {worst['position']}", worst["trait"]]
    return ", ".join(part for part in parts if part is not None)


def conclusion(verdict: Mapping[str, Any]) -> str:
    counted = f"{verdict['verified']} of {verdict['captured']} generations"
    if verdict["passed"] and verdict["verified"]:
        return (
            f"verified {counted}: all within limits (a single score changed by {verdict['certainly_seen']:.1e} of its "
            "state's norm plus 0.05 % of itself would have been seen)"
        )
    if verdict["passed"]:
        return "the stored tables are sound; no generation was captured, so none was replayed"
    n_problems = len(verdict["problems"])
    return f"NOT verified: {n_problems} problem{'s' if n_problems != 1 else ''}; {counted} were replayed"
