"""Every picture of the concepts page can be drawn again, and the page shows each of them."""

from __future__ import annotations

from pathlib import Path

from pictures import IMAGES, PICTURES


def test_pictures_are_drawn_and_shown(tmp_path: Path) -> None:
    page = (IMAGES.parent / "concepts.md").read_text(encoding="utf-8")
    for name, draw in PICTURES.items():
        draw(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").stat().st_size > 10_000
        assert (IMAGES / f"{name}.svg").is_file()
        assert f"images/{name}.svg" in page
