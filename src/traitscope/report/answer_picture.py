"""An answer as a picture: its panels, one below the other."""

from __future__ import annotations

import textwrap
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.atomic import write_atomically
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, Curves, Intervals, Matrix, Panel, Reference

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
_DASHES = ("-", "--", ":")  # with the colours: 21 lines that can be told apart
_DIVERGING = "PuOr_r"  # its two ends differ for every kind of colour vision
_EMPTY = "#eceff1"
_GREY = "#6b7378"
_WIDTH = 9.0
_MOST_CELLS_WITH_NUMBERS = 400
_MOST_NAMES = 16
_CHARACTERS = 100
_PANEL_CHARACTERS = 70


def save_answer_picture(answer: Answer, path: Path) -> None:
    """Draw the panels of ``answer`` to ``path``, a PNG or SVG file by its suffix.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    heights = [_height(panel) for panel in answer.panels] or [1.0]
    title = "\n".join(textwrap.wrap(answer.title, _CHARACTERS))
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
    all_axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, answer.panels, strict=False):
        _draw(axes, panel)
    if not answer.panels:
        all_axes[0].axis("off")
        all_axes[0].text(0, 0.5, "\n".join(answer.findings), fontsize=9, wrap=True)
    image = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "traitscope"}):
        figure.savefig(image, format=path.suffix.removeprefix("."), dpi=150)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(image.getvalue()))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _height(panel: Panel) -> float:
    """Inches."""
    if isinstance(panel, Intervals):
        return 1.3 + 0.22 * len(panel.dots)
    if isinstance(panel, Matrix):
        return 1.6 + 0.24 * len(panel.rows)
    return 3.2


def _draw(axes: Any, panel: Panel) -> None:
    axes.set_title("\n".join(textwrap.wrap(panel.title, _PANEL_CHARACTERS)), fontsize=9.5, loc="left")
    if isinstance(panel, Intervals):
        _draw_intervals(axes, panel)
    elif isinstance(panel, Curves):
        _draw_curves(axes, panel)
    else:
        _draw_matrix(axes, panel)
    axes.tick_params(labelsize=8)


def _draw_intervals(axes: Any, panel: Intervals) -> None:
    groups = list(dict.fromkeys(dot.group for dot in panel.dots))
    for group, (colour, dash) in zip(groups, _styles(len(groups)), strict=True):
        rows = [(row, dot) for row, dot in enumerate(panel.dots) if dot.group == group]
        for row, dot in rows:
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [row, row], color=colour, linewidth=1.8, linestyle=dash)
        axes.plot([dot.value for _, dot in rows], [row for row, _ in rows], "o", color=colour, label=group or None)
        bare = [(dot.value, row) for row, dot in rows if dot.low is None]
        if bare:  # an open dot: no interval is known
            axes.plot(*zip(*bare, strict=True), "o", color=colour, markerfacecolor="white")
    _draw_references(axes, panel.references, vertical=True)
    axes.set_yticks(range(len(panel.dots)), [dot.label for dot in panel.dots])
    axes.set_ylim(len(panel.dots) - 0.4, -0.6)
    axes.set_xlabel(panel.axis, fontsize=8.5)
    _tidy(axes, grid="x")
    _legend(axes)


def _draw_curves(axes: Any, panel: Curves) -> None:
    coloured = [curve for curve in panel.curves if not curve.null]
    styles = dict(zip(map(id, coloured), _styles(len(coloured)), strict=True))
    for curve in panel.curves:
        colour, dash = styles.get(id(curve), (_GREY, "--"))
        axes.plot(curve.x, curve.y, color=colour, linestyle=dash, linewidth=1.7, label=curve.label)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    _draw_references(axes, panel.references, vertical=False)
    _draw_references(axes, panel.marks, vertical=True)
    if panel.x_names is not None:
        shown = np.linspace(0, len(panel.x_names) - 1, min(_MOST_NAMES, len(panel.x_names))).round().astype(int)
        axes.set_xticks(shown, [panel.x_names[tick] for tick in shown], rotation=30, ha="right")
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    axes.set_xlabel(panel.x_label, fontsize=8.5)
    axes.set_ylabel(panel.y_label, fontsize=8.5)
    _tidy(axes, grid="y")
    _legend(axes)


def _draw_matrix(axes: Any, panel: Matrix) -> None:
    values = np.array(panel.values, dtype=float).reshape(len(panel.rows), len(panel.columns))
    low, high = panel.centre - panel.reach, panel.centre + panel.reach
    axes.set_facecolor(_EMPTY)
    image = axes.imshow(values, cmap=_DIVERGING, vmin=low, vmax=high, aspect="auto")
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=45, ha="right")
    axes.set_ylabel(panel.row_axis, fontsize=8.5)
    axes.set_xlabel(panel.column_axis, fontsize=8.5)
    axes.figure.colorbar(image, ax=axes, label=panel.value_axis)
    if values.size <= _MOST_CELLS_WITH_NUMBERS and len(panel.columns) <= 20:
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            dark = abs(value - panel.centre) > 0.65 * panel.reach
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )


def _draw_references(axes: Any, references: tuple[Reference, ...], *, vertical: bool) -> None:
    for number, reference in enumerate(references):
        draw = axes.axvline if vertical else axes.axhline
        draw(reference.value, color=_GREY, linewidth=1.1, linestyle=("-", "--", ":")[number % 3], label=reference.label)


def _styles(count: int) -> list[tuple[str, str]]:
    """Colour and dash of each of ``count`` groups or curves."""
    return [(_COLOURS[n % len(_COLOURS)], _DASHES[n // len(_COLOURS) % len(_DASHES)]) for n in range(count)]


def _tidy(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color="#e3e6e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Any) -> None:
    """Beside the axes, so that it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
