"""The check of the built site sees what Zensical's strict mode lets through."""

from __future__ import annotations

from pathlib import Path

from check_site import navigation_problems, site_problems


def _site(folder: Path, body: str) -> Path:
    site = folder / "site"
    site.mkdir()
    (folder / "outside.py").write_text("")
    (site / "other.html").write_text("<h2 id='there'>There</h2>")
    (site / "index.html").write_text(body)
    return site


def test_a_sound_page_has_no_problems(tmp_path: Path) -> None:
    body = "<a href='other.html#there'>x</a> <a href='#here' id='here'>y</a> <a href='https://example.org'>z</a>"
    assert site_problems(_site(tmp_path, body)) == []


def test_each_fault_is_named_with_its_page(tmp_path: Path) -> None:
    body = (
        "<a href='gone.html'>x</a> <a href='other.html#nowhere'>x</a> <img src='images/gone.png'>"
        "<a href='../outside.py'>x</a> <script src='https://cdn.example.org/a.js'></script>"
    )
    assert site_problems(_site(tmp_path, body)) == [
        "index.html: gone.html does not exist",
        "index.html: other.html#nowhere: no such heading or anchor",
        "index.html: ../outside.py leaves the site",
        "index.html: images/gone.png does not exist",
        "index.html: loads https://cdn.example.org/a.js from elsewhere",
    ]


def test_a_site_without_pages_is_no_success(tmp_path: Path) -> None:
    assert site_problems(tmp_path) == [f"{tmp_path} holds no pages"]


def test_nav_and_pages_must_agree(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("index.md", "forgotten.md"):
        (tmp_path / "docs" / name).write_text("# x")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        "docs_dir: docs\nnav:\n  - Start:\n      - Home: index.md\n      - Gone: gone.md\n      - Again: index.md\n"
    )
    assert navigation_problems(config) == [
        "nav names gone.md, which is not there",
        "docs/forgotten.md is not in nav of mkdocs.yml",
        "nav names index.md twice",
    ]
