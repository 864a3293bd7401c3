"""The page of the command line, made from the commands when the site is built, so that it is never stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from traitscope.cli import app

_HEAD = """# The command line

Made from the commands when this site was built. Results go to stdout, the rest to stderr. Exit code 0: all is well; 1:
something failed, was too long for the model, or did not verify; 2: the input was wrong, in one line.
"""


def write_cli_page(docs: Path) -> Path:
    """Write ``docs/cli-reference.md``."""
    page = docs / "cli-reference.md"
    page.write_text("\n".join([_HEAD, *_sections(get_command(app), ())]), encoding="utf-8")
    return page


def _sections(group: Any, words: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        path = (*words, name)
        yield f"## `traitscope {' '.join(path)}`\n\n{_sentences(command.help)}\n"
        if hasattr(command, "commands"):
            yield from _sections(command, path)
        else:
            yield "\n".join(_table(command.params)) + "\n"


def _table(params: list[Any]) -> Iterator[str]:
    yield "| | | default |"
    yield "|---|---|---|"
    for param in params:
        yield f"| {_spelling(param)} | {_sentences(getattr(param, 'help', ''))} | {_default(param)} |"


def _spelling(param: Any) -> str:
    if param.param_type_name == "argument":
        more = "…" if param.nargs == -1 else ""
        return f"`{(param.metavar or param.name).strip('[]').upper()}{more}`"
    value = "" if param.is_flag else f" {param.metavar or param.name.upper()}"
    return f"`{param.opts[0]}{value}`"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if param.default in (None, False, [], ()) or callable(param.default):
        return ""
    return f"`{param.default}`"


def _sentences(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("*", "\\*")
