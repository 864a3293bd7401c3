"""An answer on a terminal: findings, then tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from traitscope.questions.answer import Answer, AnswerTable, Plain


def print_answer(console: Console, answer: Answer) -> None:
    """Print what was found, and the tables behind it."""
    console.print(answer.title, style="bold", markup=False)
    for finding in answer.findings:
        console.print(f"- {finding}", markup=False)
    for table in answer.tables:
        console.print(_drawn(table))


def _drawn(table: AnswerTable) -> Table:
    drawn = Table(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for number, name in enumerate(table.columns):
        numeric = any(isinstance(row[number], int | float) for row in table.rows)
        drawn.add_column(name, justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*(cell(value).replace("[", r"\[") for value in row))
    return drawn


def cell(value: Plain) -> str:
    """A value for people: None and numbers that are not finite as a dash."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:+.2f}" if abs(value) >= 0.995 else f"{value:+.3f}"
    return str(value)
