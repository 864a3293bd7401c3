"""Bugs caught here: a shortcut by which verify would repeat the fault that it is to find."""

from __future__ import annotations

import ast
from pathlib import Path

import traitscope.verify

FORBIDDEN = {f"traitscope.model.{name}" for name in ("decode", "capture", "replay", "watch", "tensors", "steering")}


def test_verify_imports_nothing_of_what_captures_and_nothing_of_the_run_room() -> None:
    modules = list(Path(traitscope.verify.__file__).parent.glob("*.py"))
    assert len(modules) >= 8
    for path in modules:
        imported = {
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        assert not imported & FORBIDDEN, path.name
        assert not any(name.startswith("traitscope.run") for name in imported), path.name
