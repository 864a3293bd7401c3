"""Boxes, arrows and words on a light panel: what the pictures of the documentation are drawn with. The panel keeps
them readable on pages of either colour scheme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PANEL, INK, QUIET = "#f8f8f5", "#22262b", "#6b7280"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f6fb3", "#c8641b", "#2c8560", "#7d55a8", "#9aa1ab"
Point = tuple[float, float]


class Sketch:
    """A picture in units of its own: ``width`` by ``height``, y upwards."""

    def __init__(self, width: float, height: float, *, inches: float = 8.0) -> None:
        self.figure = Figure(figsize=(inches, inches * height / width), facecolor=PANEL)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(0, height)
        self.axes.axis("off")

    def box(
        self, at: Point, size: Point, words: str, colour: str = BLUE, *, filled: bool = False, text: float = 9
    ) -> None:
        """A rounded box with its lower left corner ``at``, words in the middle."""
        (x, y), (width, height) = at, size
        rounded = "round,pad=0,rounding_size=0.12"
        inside = colour if filled else "white"
        shape = FancyBboxPatch(at, width, height, boxstyle=rounded, facecolor=inside, edgecolor=colour, linewidth=1.4)
        self.axes.add_patch(shape)
        self.words((x + width / 2, y + height / 2), words, colour="white" if filled else INK, size=text)

    def arrow(self, start: Point, end: Point, colour: str = INK, *, dashed: bool = False) -> None:
        line = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "linestyle": "--" if dashed else "-"}
        self.axes.annotate("", xy=end, xytext=start, arrowprops={**line, "shrinkA": 0, "shrinkB": 0})

    def line(self, points: Sequence[Point], colour: str = INK, *, width: float = 1.5, dashed: bool = False) -> None:
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=colour, linewidth=width, linestyle="--" if dashed else "-")

    def words(
        self, at: Point, words: str, *, colour: str = INK, size: float = 9, align: str = "center", bold: bool = False
    ) -> None:
        weight = "bold" if bold else "normal"
        self.axes.text(*at, words, color=colour, fontsize=size, ha=align, va="center", fontweight=weight)

    def heading(self, at: Point, words: str) -> None:
        self.words(at, words, align="left", bold=True, size=10.5)

    def note(self, at: Point, words: str) -> None:
        self.words(at, words, align="left", colour=QUIET, size=8.5)

    def save(self, path: Path) -> None:
        save(self.figure, path)


def save(figure: Figure, path: Path) -> None:
    """The figure as SVG; the same figure gives the same file."""
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
