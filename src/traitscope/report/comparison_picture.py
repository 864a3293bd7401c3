"""The comparison of several traits, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.atomic import write_atomically

_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
_DIVERGING = "PuOr_r"  # its two ends differ for every kind of colour vision
_BAND = "#d9dde0"
_MOST_TRAITS_WITH_NUMBERS = 20


def save_picture(result: Mapping[str, Any], path: Path) -> None:
    """Cosines at R and AUROC of every two traits, and the nearest pairs' cosines along the model (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 3.0 + 0.42 * len(result["traits"])
    figure = Figure(figsize=(2 * side + 1.5, side + 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(f"{result['model']}: {len(result['traits'])} traits", fontsize=10)
    upper, lower = figure.subfigures(2, 1, height_ratios=[side, 4.2], squeeze=False)[:, 0]
    cosines, auroc = upper.subplots(1, 2)
    title = f"reader cosines, row's R (random: 0 ± {result['random_cosine']['deviation']:.3f})"
    _draw_matrix(cosines, result, result["cosine_at_readout"]["reader"], title, centre=0.0, reach=1.0)
    title = f"AUROC: row's reader at its R, column's {result['split']} pairs"
    _draw_matrix(auroc, result, result["cross_auroc"], title, centre=0.5, reach=0.5)
    for axes, kind in zip(lower.subplots(1, 2, sharey=True), ("reader", "steerer"), strict=True):
        _draw_lines(axes, result, kind)
    handles, labels = lower.axes[0].get_legend_handles_labels()
    lower.legend(handles, labels, ncols=2, loc="outside lower center", frameon=False, fontsize=8)
    image = BytesIO()
    canvas.print_png(image)
    write_atomically(path, lambda file: file.write(image.getvalue()))


def _draw_matrix(
    axes: Any, result: Mapping[str, Any], values: list[list[float | None]], title: str, *, centre: float, reach: float
) -> None:
    matrix = np.array(values, dtype=float)
    names = [trait["trait"] for trait in result["traits"]]
    image = axes.imshow(matrix, cmap=_DIVERGING, vmin=centre - reach, vmax=centre + reach)
    rows = [f"{t['trait']}\n{t['readout']}, {t['verdict']}" for t in result["traits"]]
    axes.set_yticks(range(len(names)), rows, fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_title(title, fontsize=9, loc="left")
    axes.figure.colorbar(image, ax=axes, shrink=0.7)
    if len(names) <= _MOST_TRAITS_WITH_NUMBERS:
        _write_numbers(axes, matrix, centre, reach)


def _write_numbers(axes: Any, matrix: np.ndarray, centre: float, reach: float) -> None:
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1)
        dark = abs(value - centre) > 0.65 * reach
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")


def _draw_lines(axes: Any, result: Mapping[str, Any], kind: str) -> None:
    random, checkpoints = result["random_cosine"], result["checkpoints"]
    limit = random["marked_beyond"]
    axes.axhspan(-limit, limit, color=_BAND, label="three deviations of random directions")
    for colour, pair in zip(_LINES, result["pairs"], strict=False):
        axes.plot(
            np.array(pair["cosines"][kind], dtype=float),
            color=colour,
            linewidth=1.6,
            label=" and ".join(pair["traits"]),
        )
    axes.set_title(f"cosine between {kind}s at each checkpoint", fontsize=9, loc="left")
    ticks = np.linspace(0, len(checkpoints) - 1, min(8, len(checkpoints))).round().astype(int)
    axes.set_xticks(ticks, [checkpoints[tick] for tick in ticks], rotation=30, ha="right", fontsize=7)
    axes.set_ylim(-1, 1)
    axes.grid(axis="y", color="#e3e6e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
