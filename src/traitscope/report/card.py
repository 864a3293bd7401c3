"""Trait cards for the terminal: each gate, what it needs, what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from traitscope.report.text import one_line

_PASSED, _MISSED = "✓", "✗"

GATE_NAMES = {
    "A": "test pairs, AUROC",
    "B": "style-crossed pairs, AUROC",
    "C": "own text, AUROC",
    "D": "own d over the largest other",
    "E": "split-half cosine",
    "F": "shift at α = .15 in nats",
    "H": "neutral replies flagged",
}
"""What each gate's leading figure is."""


def print_verdicts(console: Console, described: Sequence[Mapping[str, Any]]) -> None:
    """One row a trait: its gates with their leading figure, then the verdict."""
    table = Table(
        title="Validated traits",
        caption=f"{'; '.join(f'{gate}: {name}' for gate, name in GATE_NAMES.items())}. ✓ passed, ✗ missed.",
    )
    gates = list(next(iter(described))["card"]["validation"]["gates"])
    for column in ("trait", "R", *gates, "words", "looks", "verdict"):
        table.add_column(column)
    for trait in described:
        card = trait["card"]["validation"]
        table.add_row(
            trait["trait"],
            trait["readout"],
            *(gate_cell(name, card["gates"][name]) for name in gates),
            f"{card['beside']['bag_of_words']:.2f}",
            str(card["looks_at_test_split"]),
            trait["verdict"],
        )
    console.print(table)


def gate_cell(name: str, gate: Mapping[str, Any]) -> str:
    """A gate's leading figure with ✓ or ✗; a dash where nothing was measured."""
    leading = leading_figure(name, gate)
    return f"{leading} {_PASSED if gate['passed'] else _MISSED}"


def leading_figure(name: str, gate: Mapping[str, Any]) -> str:
    """The figure that says most about a gate."""
    key = {"A": "auroc", "B": "auroc", "C": "auroc", "D": "ratio", "E": "split_half_cosine", "H": "flagged"}.get(name)
    value = gate.get("shift", {}).get("+0.15") if key is None else gate.get(key)
    if value is None:
        return "–"
    return f"{value:.0%}" if key == "flagged" else f"{value:.2f}"


def print_card(console: Console, trait: str, described: Mapping[str, Any]) -> None:
    """One trait's card on one model."""
    card = described["card"].get("validation")
    title = (
        f"{trait} on {described['model']} ({described['dtype']}), R = {described['readout']}: {described['verdict']}"
    )
    if card is None:
        console.print(Text(f"{title}; validate it with: traitscope traits validate {trait}"), soft_wrap=True)
        return
    table = Table(title=title)
    for column in ("gate", "needs", "found", ""):
        table.add_column(column)
    for name, gate in card["gates"].items():
        table.add_row(name, gate["needs"], Text(_found(gate)), _PASSED if gate["passed"] else _MISSED)
    console.print(table)
    for line in _lines(card):
        console.print(Text(line), soft_wrap=True)


def _found(gate: Mapping[str, Any]) -> str:
    intervals = gate.get("intervals", {})
    parts = []
    for name, value in gate.items():
        if name in ("passed", "needs", "intervals", "reason") or value is None or value == {}:
            continue
        text = _plain(value)
        if name in intervals:
            low, high = intervals[name]
            text += f" ({low:.2f} to {high:.2f})"
        parts.append(f"{name.replace('_', ' ')} {text}")
    if gate["reason"]:
        parts.append(gate["reason"])
    return "; ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _lines(card: Mapping[str, Any]) -> list[str]:
    lines = ["G, beside it on the test pairs (AUROC): " + _plain(card["beside"]).replace("_", " ")]
    if (own := card["own_text"]) is not None:
        lines += [f"own text after a prefill, {pole}: {one_line(text)}" for pole, text in own["example"].items()]
        lines += _yardstick_lines("after prefills", own)
    if (system := card["system_prompts"]) is not None:
        same = system["same_text"]
        lines.append(
            f"same text under the other pole's system prompt: AUROC {same['swapped']:.3f} instead of "
            f"{same['own_pole']:.3f}"
        )
        lines.append(f"own text under system prompts: AUROC {system['own_text']['auroc']:.3f}")
        lines += _yardstick_lines("under system prompts", system["own_text"])
    lines.append(
        f"measured {card['measured']}; the test split was looked at {card['looks_at_test_split']} times with this model"
    )
    return lines


def _yardstick_lines(where: str, own: Mapping[str, Any]) -> list[str]:
    measured = own.get("yardstick")
    if measured is None:
        return []
    return [f"{measured['name']} {where}: + {measured['positive']:.3g}, − {measured['negative']:.3g}"]
