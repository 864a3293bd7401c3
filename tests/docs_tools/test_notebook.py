"""The example notebook runs, and is stored as the site shows it: with outputs, small, naming no machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebook_page import write_notebook_page
from run_notebook import NOTEBOOK, run_notebook

_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/\w[\w.-]*/\w")


def _words(output: Any) -> list[Any]:
    """What an output says, pictures left out."""
    data = output.get("data", {})
    return [output.get("text"), *(value for kind, value in data.items() if not kind.startswith("image/"))]


def test_the_notebook_is_stored_with_outputs_that_are_small_and_name_no_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not [place for place in ("site-packages", "http://") if place in text]
    shown = [cell.source for cell in notebook.cells] + [str(_words(output)) for output in outputs]
    assert not [found for said in shown for found in _ABSOLUTE_PATH.findall(said)]


def test_its_page_has_its_words_and_its_pictures(tmp_path: Path) -> None:
    page = write_notebook_page(NOTEBOOK, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page.name == "first-look.md"
    assert text.startswith("# A first look")
    pictures = sorted((tmp_path / "images" / "first-look").glob("*.png"))
    assert len(pictures) == 2
    assert all(f"images/first-look/{picture.name}" in text for picture in pictures)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    run_notebook(notebook, tmp_path)
    said = "".join(output.get("text", "") for output in notebook.cells[-2].outputs)
    assert "resid_pre.0" in said
    assert "rounding" in said
