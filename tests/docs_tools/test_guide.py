"""The code of the Python guide runs from top to bottom, on the embedded model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from suite_reference import DOCS

pytestmark = pytest.mark.slow


def _blocks(page: Path) -> list[tuple[str, str, int]]:
    """Language, content and line of each code block of a page."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [(t.info, t.content, t.map[0] + 1) for t in tokens if t.type == "fence" and t.map]


def test_every_block_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "python-guide.md"
    names: dict[str, Any] = {}
    for language, content, line in _blocks(page):
        if language == "python":
            source = "\n" * line + content  # so that a traceback names the page's own line
            exec(compile(source, str(page), "exec"), names)
        else:
            program, *arguments = shlex.split(content)
            assert program == "traitscope"
            code, _, err = command(*arguments)
            assert code == 0, err
