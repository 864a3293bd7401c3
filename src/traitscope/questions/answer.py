"""What a question answers with: sentences, tables, panels to draw, and every value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Plain = str | int | float | bool | None


@dataclass(frozen=True)
class AnswerTable:
    """A table of plain values; None is shown as a dash. ``note`` says how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Plain, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Dot:
    """One labelled value; ``low`` and ``high`` are the ends of its interval, None where nothing can be said of it.

    Dots of one ``group`` share a colour, which a legend names.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    group: str = ""


@dataclass(frozen=True)
class Reference:
    """A value to compare with, drawn as a line and named."""

    value: float
    label: str


@dataclass(frozen=True)
class Intervals:
    """Labelled dots with error bars, one below the other, along one axis."""

    title: str
    axis: str
    dots: tuple[Dot, ...]
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One line: ``x`` and ``y`` ``[n]``, with a band between ``low`` and ``high`` ``[n]`` where they are given.

    A ``y`` that is NaN leaves a gap. A ``null`` curve is drawn grey and dashed: what would be seen without the effect.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    null: bool = False


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis.

    ``x_names`` gives names to the x values 0, 1, 2, …, such as checkpoints; ``references`` are horizontal lines,
    ``marks`` vertical ones.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    references: tuple[Reference, ...] = ()
    marks: tuple[Reference, ...] = ()
    x_names: tuple[str, ...] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Matrix:
    """Values by row and column on a diverging scale, ``centre - reach`` to ``centre + reach``; NaN is left empty."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    row_axis: str = ""
    column_axis: str = ""
    value_axis: str = ""
    centre: float = 0.0
    reach: float = 1.0


Panel = Intervals | Curves | Matrix


@dataclass(frozen=True)
class Answer:
    """What a question found in a run.

    Attributes:
        kind: the question's name in ``KINDS``.
        findings: plain sentences with figures: what was found, and what could not be said.
        values: everything behind tables and panels, as plain values.
    """

    kind: str
    title: str
    findings: tuple[str, ...]
    tables: tuple[AnswerTable, ...] = ()
    panels: tuple[Panel, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """As plain values for JSON; numbers that are not finite become None."""
        return {
            "kind": self.kind,
            "title": self.title,
            "findings": list(self.findings),
            "tables": [
                {
                    "title": table.title,
                    "columns": list(table.columns),
                    "rows": plain([list(row) for row in table.rows]),
                    "note": table.note,
                }
                for table in self.tables
            ],
            "values": plain(self.values),
        }


def plain(value: Any) -> Any:
    """A value as JSON has it: lists and dicts of strings, numbers, booleans and None (also for NaN and infinities)."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
