"""The picture of a bench."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from traitscope.atomic import write_atomically
from traitscope.units import human_seconds

_OURS, _OTHERS = "#20639b", "#7d868e"
_PARTS = {"import": "#d9a441", "load": "#c46a3a", "compute": "#b0b7bf"}


def save_picture(result: Mapping[str, Any], path: Path) -> None:
    """Time of the whole workload for every contender, and where a process of the old way spends its own (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    times, parts = figure.subplots(2, 1, height_ratios=[len(result["contenders"]), 1.6])
    _draw_times(times, result)
    _draw_parts(parts, result)
    image = BytesIO()
    canvas.print_png(image)
    write_atomically(path, lambda file: file.write(image.getvalue()))


def _draw_times(axes: Any, result: Mapping[str, Any]) -> None:
    contenders = result["contenders"]
    for row, contender in enumerate(contenders):
        seconds = contender["workload_seconds"]
        colour = _OURS if "traitscope" in contender["name"] else _OTHERS
        filled = colour if contender["captures_per_hour"] is not None else "white"
        axes.plot([seconds["low"], seconds["high"]], [row, row], color=colour, linewidth=5, alpha=0.4)
        axes.plot(seconds["median"], row, "o", color=colour, markerfacecolor=filled, markersize=9, markeredgewidth=2)
        text = human_seconds(seconds["median"]) + ("*" if contender["extrapolated"] else "")
        axes.annotate(text, (seconds["high"], row), xytext=(9, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(contenders)), [contender["name"] for contender in contenders])
    axes.invert_yaxis()
    axes.set_xscale("log")
    medians = [contender["workload_seconds"]["median"] for contender in contenders]
    axes.set_xlim(min(medians) / 2, max(medians) * 4)
    axes.xaxis.set_major_formatter(lambda seconds, _position: f"{seconds:g}")
    axes.grid(axis="x", color="#e3e6e8")
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "seconds for the whole workload (logarithmic): medians, and the spread from fastest to slowest round\n"
        "filled: with capture, hollow: nothing captured, *: extrapolated from a sample"
    )
    axes.set_title(_title(result), fontsize=10, loc="left")
    _without_frame(axes)


def _title(result: Mapping[str, Any]) -> str:
    work, machine = result["workload"], result["machine"]
    return (
        f"{work['name']}: {work['generations']} responses of {work['max_new_tokens']} tokens, {work['traits']} traits\n"
        f"{Path(result['model']).name}, {machine['dtype']}, {machine['cpu']} ({machine['threads']} of "
        f"{machine['logical_cores']} logical cores)"
    )


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
