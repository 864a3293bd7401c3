"""The picture of a bench."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from traitscope.atomic import write_atomically
from traitscope.units import human_seconds

_OURS, _OTHERS = "#20639b", "#b0b7bf"
_PARTS = {"import": "#d9a441", "load": "#c46a3a", "compute": "#b0b7bf"}


def save_picture(result: Mapping[str, Any], path: Path) -> None:
    """Time of the whole workload for every contender, and where a process of the old way spends its own (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    times, parts = figure.subplots(2, 1, height_ratios=[len(result["contenders"]), 1.6])
    _draw_times(times, result)
    _draw_parts(parts, result)
    image = BytesIO()
    canvas.print_png(image)
    write_atomically(path, lambda file: file.write(image.getvalue()))


def _draw_times(axes: Any, result: Mapping[str, Any]) -> None:
    contenders = result["contenders"]
    seconds = [contender["workload_seconds"] for contender in contenders]
    medians = [entry["median"] for entry in seconds]
    spread = [
        [entry["median"] - entry["low"] for entry in seconds],
        [entry["high"] - entry["median"] for entry in seconds],
    ]
    colours = [_OURS if "traitscope" in contender["name"] else _OTHERS for contender in contenders]
    axes.barh(range(len(contenders)), medians, color=colours, xerr=spread, ecolor="#333333", capsize=3)
    for row, contender in enumerate(contenders):
        mark = "*" if contender["extrapolated"] else ""
        text = f"{human_seconds(medians[row])}{mark}"
        axes.annotate(text, (seconds[row]["high"], row), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(contenders)), [contender["name"] for contender in contenders])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(medians) / 3, max(medians) * 3)
    axes.set_xlabel("seconds for the whole workload, logarithmic; bars: medians, lines: fastest to slowest round")
    work, machine = result["workload"], result["machine"]
    axes.set_title(
        f"{work['name']}: {work['generations']} responses of {work['max_new_tokens']} tokens, {work['traits']} traits\n"
        f"{result['model']}, {machine['dtype']}, {machine['cpu']}, {machine['threads']} threads   "
        "(* extrapolated from a sample)",
        fontsize=10,
        loc="left",
    )
    _without_frame(axes)


def _draw_parts(axes: Any, result: Mapping[str, Any]) -> None:
    old = next(contender for contender in result["contenders"] if contender["key"] == "a")
    left = 0.0
    for part, seconds in old["parts"].items():
        label = f"{part} {human_seconds(seconds)}"
        axes.barh(0, seconds, left=left, color=_PARTS[part], label=label)
        left += seconds
    axes.set_yticks([0], ["one process of the old way"])
    axes.set_xlabel("seconds")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    _without_frame(axes)


def _without_frame(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
