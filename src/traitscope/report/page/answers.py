"""Answers on the page: those that the run directory keeps, with their pictures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from traitscope.report.answer import cell
from traitscope.report.page.prompts import visible

_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def kept_answers(run_dir: Path) -> list[dict[str, Any]]:
    """What ``traitscope analyse`` found in this run, by kind; a file that is no answer is passed over."""
    found = []
    for path in sorted((run_dir / "analyses").glob("*.json")):
        try:
            answer = json.loads(path.read_text())
            found.append(_described(answer, path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _described(answer: dict[str, Any], path: Path) -> dict[str, Any]:
    return {
        "kind": answer["kind"],
        "title": visible(answer["title"]),
        "findings": [visible(finding) for finding in answer["findings"]],
        "tables": [
            {
                "title": visible(table["title"]),
                "note": visible(table["note"]),
                "columns": [visible(column) for column in table["columns"]],
                "rows": [[visible(cell(value)) for value in row] for row in table["rows"]],
            }
            for table in answer["tables"]
        ],
        "captured": answer.get("captured"),
        "picture": _picture(path),
    }


def _picture(path: Path) -> str | None:
    """The picture beside an answer, as an address that holds it."""
    for suffix, kind in _TYPES.items():
        picture = path.with_suffix(suffix)
        if picture.is_file():
            return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
    return None
