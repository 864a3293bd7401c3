"""A Markdown page of traits and their evidence, failures included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from traitscope.report.card import gate_cell
from traitscope.report.text import one_line

_MOST_TEXT = 160


def traits_page(described: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts and gates of several traits on one model, then what stands beside them.

    ``described`` are validated vectors (``describe_vectors``).
    """
    return "\n\n".join(
        [
            _verdict_counts(described),
            _table(("trait", "R", *_gates(described), "verdict"), map(_verdict_row, described)),
            "## Figures with their intervals\n\n95 % by bootstrap over topics.",
            _table(("trait", "A: AUROC", "A: d", "A: paired", "B: AUROC", "B: d"), map(_pairs_row, described)),
            _table(
                (
                    "trait",
                    "C: AUROC",
                    "null 97.5 %",
                    "words",
                    "pronouns",
                    "D: own d",
                    "largest other",
                    "E: cosine",
                    "E: length",
                ),
                map(_reading_row, described),
            ),
            _table(
                ("trait", "F: −.30", "−.15", "+.15", "+.30", "largest random", "H: flagged", "H: recall"),
                map(_acting_row, described),
            ),
            "## G: what needs no deep state\n\nAUROC on the same test pairs (layer 0: a reader of the embeddings).",
            _table(
                ("trait", "bag of words", "pronoun rate", "length", "yardstick", "layer 0", "R"),
                map(_beside_row, described),
            ),
            "## Under system prompts",
            _table(
                ("trait", "same text, own pole", "swapped", "change", "own text: AUROC", "yardstick", "+", "−"),
                map(_system_row, described),
            ),
            "## Why gates were missed",
            "\n".join(_reasons(described)) or "None was.",
            "## What the model wrote after prefills\n\nOne text a pole, without the prefill, which is not scored.",
            _table(("trait", "pole", "text"), _example_rows(described)),
        ]
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gates(described: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(_gates_of(described[0]))


def _gates_of(trait: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return _card(trait)["gates"]


def _card(trait: Mapping[str, Any]) -> Mapping[str, Any]:
    return trait["card"]["validation"]


def _verdict_counts(described: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [trait["verdict"] for trait in described]
    both = sum(_gates_of(trait)["A"]["passed"] and _gates_of(trait)["B"]["passed"] for trait in described)
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)))
    return f"{len(described)} traits: {counts}. {both} pass A and B."


def _verdict_row(trait: Mapping[str, Any]) -> list[str]:
    cells = [gate_cell(name, gate) for name, gate in _gates_of(trait).items()]
    return [trait["trait"], trait["readout"], *cells, f"**{trait['verdict']}**"]


def _pairs_row(trait: Mapping[str, Any]) -> list[str]:
    pairs, crossed = _gates_of(trait)["A"], _gates_of(trait)["B"]
    cells = [_with_interval(pairs, name) for name in ("auroc", "d", "paired_accuracy")]
    return [trait["trait"], *cells, *(_with_interval(crossed, name) for name in ("auroc", "d"))]


def _reading_row(trait: Mapping[str, Any]) -> list[str]:
    own, other, stable = (_gates_of(trait)[name] for name in "CDE")
    largest = f"{other['unrelated'][other['strongest']]:.2f} ({other['strongest']})" if "strongest" in other else "–"
    return [
        trait["trait"],
        _with_interval(own, "auroc"),
        *(_number(own.get(name)) for name in ("null", "bag_of_words", "pronoun_rate")),
        _number(other.get("d")),
        largest,
        *(_number(stable.get(name)) for name in ("split_half_cosine", "norm_over_null")),
    ]


def _acting_row(trait: Mapping[str, Any]) -> list[str]:
    causal, quiet = _gates_of(trait)["F"], _gates_of(trait)["H"]
    shifts = causal.get("shift", {})
    cells = [_number(shifts.get(f"{alpha:+.2f}")) for alpha in (-0.30, -0.15, 0.15, 0.30)]
    return [
        trait["trait"],
        *cells,
        _number(causal.get("random_largest")),
        f"{quiet['flagged']:.1%}",
        f"{quiet['recall']:.0%}",
    ]


def _beside_row(trait: Mapping[str, Any]) -> list[str]:
    beside = _card(trait)["beside"]
    cells = [_number(beside.get(name)) for name in ("bag_of_words", "pronoun_rate", "length", "yardstick", "layer_0")]
    return [trait["trait"], *cells, _number(_gates_of(trait)["A"]["auroc"])]


def _system_row(trait: Mapping[str, Any]) -> list[str]:
    system = _card(trait)["system_prompts"]
    if system is None:
        return [trait["trait"], *["–"] * 7]
    same, own = system["same_text"], system["own_text"]
    yardstick = own.get("yardstick", {})
    return [
        trait["trait"],
        *(f"{same[name]:.3f}" for name in ("own_pole", "swapped", "change")),
        _with_interval(own, "auroc"),
        yardstick.get("name", "–"),
        _number(yardstick.get("positive")),
        _number(yardstick.get("negative")),
    ]


def _reasons(described: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"- {trait['trait']}, {name}: {gate['reason']}"
        for trait in described
        for name, gate in _gates_of(trait).items()
        if gate["reason"]
    ]


def _example_rows(described: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for trait in described:
        if (own := _card(trait)["own_text"]) is not None:
            for sign, pole, name in zip("+−", ("positive", "negative"), trait["poles"], strict=True):
                rows.append([trait["trait"], f"{sign} {name}", quoted(own["example"][pole])])
    return rows


def quoted(text: str) -> str:
    """Untrusted text as one short cell of a Markdown table."""
    line = one_line(text)
    line = line if len(line) <= _MOST_TEXT else line[: _MOST_TEXT - 1] + "…"
    return "`" + line.replace("`", "'").replace("|", "¦") + "`" if line else "(empty)"


def _with_interval(measured: Mapping[str, Any], name: str) -> str:
    if measured.get(name) is None:
        return "–"
    low, high = measured["intervals"][name]
    return f"{measured[name]:.2f} ({low:.2f} to {high:.2f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
