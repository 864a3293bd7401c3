"""The command ``traitscope report``, and the report that a run leaves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from traitscope.errors import InputError, one_line_of
from traitscope.units import human_bytes, human_seconds

_MOST_FINDINGS = 6


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    everything: Annotated[bool, typer.Option("--all", help="Hold every prompt with every layer.")] = False,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Hold these: experiment/prompt_id with * and ?, or an id; may be given again."
        ),
    ] = None,
) -> None:
    """Write a run's report.html anew: one file that needs no network."""
    if everything and select:
        raise InputError("report: give --all or --select, not both")
    typer.echo(_written(run_dir, everything, tuple(select or ())))


def report_at_end(run_dir: Path) -> None:
    """Write the report of a run that just ended. Whatever goes wrong with it, the run is what it was."""
    try:
        _answer_what_the_suite_asks(run_dir)
        typer.echo(_written(run_dir, False, ()), err=True)
    except Exception as error:
        hint = f"try it again with: traitscope report {run_dir}"
        typer.echo(f"the report could not be written: {one_line_of(error)}; {hint}", err=True)


def _answer_what_the_suite_asks(run_dir: Path) -> None:
    from traitscope.captures.files import read_frozen_plan
    from traitscope.questions.of_suite import kinds_of_suite

    for kind in kinds_of_suite(read_frozen_plan(run_dir)["suite"]):
        _answer(kind, run_dir)


def _answer(kind: str, run_dir: Path) -> None:
    from traitscope.questions.keeping import captured_generations, keep_answer, picture_path
    from traitscope.questions.kinds import answer_question
    from traitscope.questions.options import QuestionOptions
    from traitscope.report.answer_picture import save_answer_picture

    try:
        captured = captured_generations(run_dir)
        answer = answer_question(kind, run_dir, QuestionOptions())
        picture = picture_path(run_dir, kind, None)
        keep_answer(answer, run_dir, picture, captured=captured)
        save_answer_picture(answer, picture)
        for finding in answer.findings[:_MOST_FINDINGS]:
            typer.echo(f"{kind}: {finding}", err=True)
    except Exception as error:  # a run that was cut short may lack what the question needs; the report does without
        typer.echo(f"{kind} was not answered: {one_line_of(error)}", err=True)


def _written(run_dir: Path, everything: bool, patterns: tuple[str, ...]) -> str:
    started = time.perf_counter()
    from traitscope.report.page.build import write_report
    from traitscope.report.page.selection import Selection

    path = write_report(run_dir, Selection(everything, patterns))
    size, spent = human_bytes(path.stat().st_size), human_seconds(time.perf_counter() - started)
    return f"report: {path} ({size}, written in {spent})"
