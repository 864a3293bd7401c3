"""The command ``traitscope analyse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from traitscope.cli_options import AsJson, print_json, stdout
from traitscope.questions.kinds import KINDS

_HELP = "What is asked: " + "; ".join(f"{name}: {kind.asks}" for name, kind in KINDS.items())


def analyse(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    kind: Annotated[str, typer.Option(help=_HELP)],
    trait: Annotated[list[str] | None, typer.Option(help="Only this trait; may be given again.")] = None,
    experiment: Annotated[list[str] | None, typer.Option(help="Only this experiment; may be given again.")] = None,
    layer: Annotated[int | None, typer.Option(help="A layer, from 0; negative: from the end.")] = None,
    head: Annotated[int | None, typer.Option(help="An attention head, from 0.")] = None,
    position: Annotated[int | None, typer.Option(help="A token's position; negative: from the end.")] = None,
    token: Annotated[str | None, typer.Option(help="The text of a token.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of bootstraps and permutations.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Picture, .png or .svg; the JSON goes beside it. Default: in the run directory.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run a question: what was found, with intervals, against what chance would show."""
    from traitscope.questions.keeping import captured_generations, keep_answer, picture_path
    from traitscope.questions.kinds import answer_question, find_kind
    from traitscope.questions.options import QuestionOptions
    from traitscope.report.answer import print_answer
    from traitscope.report.answer_picture import save_answer_picture

    find_kind(kind)
    options = QuestionOptions(
        traits=tuple(dict.fromkeys(trait or ())),
        experiments=tuple(dict.fromkeys(experiment or ())),
        layer=layer,
        head=head,
        position=position,
        token=token,
        seed=seed,
    )
    picture = picture_path(run_dir, kind, out)
    captured = captured_generations(run_dir)  # counted first: a run that goes on may have more by the end
    answer = answer_question(kind, run_dir, options)
    kept = keep_answer(answer, run_dir, picture, captured=captured)
    save_answer_picture(answer, picture)
    if as_json:
        print_json(answer.described())
    else:
        print_answer(stdout(), answer)
    typer.echo(f"wrote {picture} and {kept}; into the report with: traitscope report {run_dir}", err=True)
