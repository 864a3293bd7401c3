"""Options and output that several commands share."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 140

Model = Annotated[str | None, typer.Option(help="smollm2-135m, a hub id, a directory or a GGUF file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Devices = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Instead of --device: one worker process each, e.g. cuda:0,cuda:1."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Quantize = Annotated[
    str | None, typer.Option(metavar="KIND", help="Weights in fewer bits: bnb-8bit, bnb-4bit or torchao-int8.")
]
AutoOrNumber = Annotated[str, typer.Option(metavar="auto|N")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
AllowForeign = Annotated[bool, typer.Option(help="Accept and recalibrate vectors of another model.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run the code that comes with a hub model.")]


def stdout() -> Console:
    """Standard output, wide when it is piped."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(width=_PIPED_WIDTH if piped and "COLUMNS" not in os.environ else None, highlight=False)


def print_json(value: Any) -> None:
    """A result as indented JSON on standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
