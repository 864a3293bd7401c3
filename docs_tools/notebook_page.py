"""The page of the example notebook: its stored cells and outputs as Markdown, with the pictures as files."""

from __future__ import annotations

from pathlib import Path

from nbconvert import MarkdownExporter


def write_notebook_page(notebook: Path, docs: Path) -> Path:
    """Write ``docs/<name>.md`` and ``docs/images/<name>/`` from a notebook as it is stored; nothing is executed."""
    name = notebook.stem.replace("_", "-")
    pictures = Path("images") / name
    body, resources = MarkdownExporter().from_filename(
        str(notebook), resources={"output_files_dir": pictures.as_posix(), "unique_key": "output"}
    )
    for file, content in resources["outputs"].items():
        target = docs / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    page = docs / f"{name}.md"
    page.write_text(body.replace("![png]", "![What the code above draws]"), encoding="utf-8")
    return page
