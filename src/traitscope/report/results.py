"""What prompts did: mean z by response or by experiment, and what the suite expected of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from traitscope.report.text import one_line

_MOST_ROWS = 60
_LEAST_TEXT_WIDTH, _MOST_TEXT_WIDTH = 10, 44
_FRAME = 3  # what a table draws around a column
_COUNT = "responses"
_NOTABLE_Z = 2.0


def results_tables(summary: Mapping[str, Any], console_width: int) -> list[Table]:
    """A row for each response, or for each experiment where those are many; traits that are too many for the console
    are put into several tables."""
    traits, captures = summary["traits"], _one_row_each(summary["captures"])
    if len(captures) <= _MOST_ROWS:
        groups = _groups_that_fit(list(traits), console_width - _text_room([_LEAST_TEXT_WIDTH] * 2))
        tables = [_responses_table(captures, group, console_width) for group in groups]
    else:
        experiments = _by_experiment(captures)
        text_widths = [max(map(len, experiments)), len(_COUNT)]
        groups = _groups_that_fit(list(traits), console_width - _text_room(text_widths))
        tables = [_experiments_table(experiments, group) for group in groups]
    tables[-1].caption = _caption(traits, len(captures))
    return tables


def _groups_that_fit(traits: Sequence[str], room: int) -> list[Sequence[str]]:
    """The traits in equal parts, as few as there is room for side by side."""
    for n_groups in range(1, len(traits)):
        size = -(-len(traits) // n_groups)
        groups = [traits[start : start + size] for start in range(0, len(traits), size)]
        if all(_traits_room(group) <= room for group in groups):
            return groups
    return [[trait] for trait in traits]


def _responses_table(captures: Sequence[Mapping[str, Any]], traits: Sequence[str], console_width: int) -> Table:
    table = Table(title="Mean z over the response at each trait's readout layer", caption_justify="left")
    text_width = _text_width(console_width - _traits_room(traits))
    for name in ("prompt", "response"):
        table.add_column(name, max_width=text_width, no_wrap=True, overflow="ellipsis")
    _add_trait_columns(table, traits)
    previous = None
    for capture in captures:
        if capture["experiment"] != previous:
            previous = capture["experiment"]
            table.add_section()
            table.add_row(Text(previous, style="bold"))
        table.add_row(
            Text(f"  {_dose_cell(capture)}{one_line(capture['prompt'])}"),
            Text(_response_cell(capture)),
            *(_z_cell(capture["mean_z"].get(trait)) for trait in traits),
        )
    return table


def _experiments_table(experiments: Mapping[str, Sequence[Mapping[str, Any]]], traits: Sequence[str]) -> Table:
    table = Table(title="Mean z over an experiment's responses at each trait's readout layer", caption_justify="left")
    table.add_column("experiment", no_wrap=True)
    table.add_column(_COUNT, justify="right", no_wrap=True)
    _add_trait_columns(table, traits)
    for experiment, captures in experiments.items():
        n_captured = sum(capture["status"] == "ok" for capture in captures)
        means = (_mean([capture["mean_z"].get(trait) for capture in captures]) for trait in traits)
        table.add_row(Text(experiment), str(n_captured), *map(_z_cell, means))
    return table


def _by_experiment(captures: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The captures of each experiment and dose, by what people call it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for capture in captures:
        found.setdefault(_dose_cell(capture) + capture["experiment"], []).append(capture)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _add_trait_columns(table: Table, traits: Sequence[str]) -> None:
    for trait in traits:
        table.add_column(trait.replace("_", "\n"), justify="right", no_wrap=True, min_width=_trait_width(trait))


def _trait_width(trait: str) -> int:
    return max(map(len, trait.split("_")))


def _traits_room(traits: Sequence[str]) -> int:
    return sum(_trait_width(trait) + _FRAME for trait in traits)


def _text_room(widths: Sequence[int]) -> int:
    return 1 + sum(width + _FRAME for width in widths)


def _text_width(room: int) -> int:
    """What ``room`` leaves for each of two columns of text."""
    return max(_LEAST_TEXT_WIDTH, min(_MOST_TEXT_WIDTH, (room - 1) // 2 - _FRAME))


def expectations_table(expectations: Sequence[Mapping[str, Any]]) -> Table:
    """What the suite expects of its experiments, and what was found."""
    counts = Counter(expected["verdict"] for expected in expectations)
    table = Table(
        title="What the suite expects: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()),
        caption="z: mean over prompts of a response's mean score at R; 0 is the model's usual reply, 1 the standard "
        "deviation of such replies' means. The verdict needs the whole 95 % interval on one side of 0.",
        caption_justify="left",
    )
    for column in ("experiment", "expected"):
        table.add_column(column, overflow="fold")
    for column in ("prompts", "z", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("verdict", no_wrap=True)
    for expected in expectations:
        n_prompts, n_asked = expected["n_prompts"], expected["n_asked"]
        table.add_row(
            Text(_dose_cell(expected) + expected["experiment"]),
            Text(f"{expected['trait']} {expected['expected']}"),
            str(n_asked) if n_prompts == n_asked else f"{n_prompts} of {n_asked}",
            "–" if expected["mean_z"] is None else f"{expected['mean_z']:+.2f}",
            "–" if expected["interval"] is None else "{:+.2f} to {:+.2f}".format(*expected["interval"]),
            Text(expected["verdict"], style="bold" if expected["verdict"] == "not met" else ""),
        )
    return table


def _dose_cell(capture: Mapping[str, Any]) -> str:
    return "" if capture["alpha"] is None else f"α {capture['alpha']:+g}: "


def _one_row_each(captures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the open layers of what has a row of its own for its scores."""

    def place(capture: Mapping[str, Any]) -> tuple[Any, ...]:
        return capture["experiment"], capture["prompt_id"], capture["sample"], capture["alpha"]

    scored = {place(capture) for capture in captures if capture["kind"] == "scores"}
    return [capture for capture in captures if capture["kind"] == "scores" or place(capture) not in scored]


def _response_cell(capture: Mapping[str, Any]) -> str:
    if capture["status"] != "ok":
        return f"({capture['status']})"
    return one_line(capture["response"]) or "(empty)"


def _caption(traits: Mapping[str, Mapping[str, Any]], n_responses: int) -> str:
    lines = []
    if n_responses > _MOST_ROWS:
        lines.append(f"One row per experiment; its responses, {n_responses} in all, are in the run directory.")
    for name, trait in traits.items():
        positive, negative = trait["poles"]
        lines.append(f"{name}: + {positive} / − {negative}; R = {trait['readout']}; {trait['verdict']}")
    lines.append("z: 0 is the model's usual reply to everyday prompts, 1 its tokens' standard deviation.")
    return "\n".join(lines)


def _z_cell(z: float | None) -> Text:
    if z is None:
        return Text("–", style="dim")
    return Text(f"{z:+.2f}", style="bold" if abs(z) >= _NOTABLE_Z else "")
