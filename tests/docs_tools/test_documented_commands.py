"""Commands in the documentation are commands: each name and each option is one that the program has."""

from __future__ import annotations

import re
from typing import Any

import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

from suite_reference import DOCS
from traitscope.cli import app

_COMMAND = re.compile(r"^(?:\$ )?traitscope (?P<rest>.+)$")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_REST_IS_PROSE = re.compile(r"\s+#.*|\s{3,}.*| \|.*")
PAGES = [
    page
    for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
    if page.name not in ("first-look.md", "cli-reference.md")  # made from what they show
]


def _documented() -> list[tuple[str, str]]:
    """Every line of a code block that calls the program, by page."""
    found = []
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type == "fence":
                calls = (_COMMAND.match(line) for line in token.content.splitlines())
                found += [(page.name, _REST_IS_PROSE.sub("", call["rest"])) for call in calls if call]
    return found


def _called(words: list[str]) -> Any:
    """The command that the words begin with."""
    command: Any = get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, f"no command {word!r}"
        command = command.commands[word]
    return command


@pytest.mark.parametrize(("page", "call"), _documented())
def test_command_and_options_exist(page: str, call: str) -> None:
    command = _called(call.split())
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    assert set(_OPTION.findall(call)) <= known, page
