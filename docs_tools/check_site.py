"""Check the built site: links and anchors lead somewhere, pages are in the navigation, nothing is loaded from
elsewhere. Zensical's strict mode sees broken links between pages, but neither missing pictures, nor links that leave
``docs/``, nor pages that the navigation forgot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup

_LOADING = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Elements that make a browser fetch something, and the attribute that says what."""


@dataclass(frozen=True)
class Page:
    """One built page: where links point, what it loads, and the anchors that it offers."""

    links: tuple[str, ...]
    loads: tuple[str, ...]
    anchors: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Page:
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        loads = [element[name] for tag, name in _LOADING.items() for element in soup.find_all(tag, attrs={name: True})]
        links = [element["href"] for element in soup.find_all("a", href=True)]
        anchors = [element[name] for name in ("id", "name") for element in soup.find_all(attrs={name: True})]
        return cls(tuple(map(str, links)), tuple(map(str, loads)), frozenset(map(str, anchors)))


def site_problems(site: Path) -> list[str]:
    """What is wrong with the pages in ``site``, one line each."""
    site = site.resolve()
    pages = {path: Page.read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} holds no pages"]
    return [
        f"{path.relative_to(site)}: {problem}"
        for path, page in pages.items()
        if path.name != "404.html"  # it is shown at any address, so that its relative links have no meaning
        for problem in (*_broken(path, page, pages, site), *_foreign(page))
    ]


def _broken(path: Path, page: Page, pages: Mapping[Path, Page], site: Path) -> Iterator[str]:
    for target in (*page.links, *page.loads):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not found.is_relative_to(site):
            yield f"{target} leaves the site"
        elif not found.is_file():
            yield f"{target} does not exist"
        elif parts.fragment and found in pages and unquote(parts.fragment) not in pages[found].anchors:
            yield f"{target}: no such heading or anchor"


def _foreign(page: Page) -> Iterator[str]:
    for target in page.loads:
        parts = urlsplit(target)
        if parts.netloc or parts.scheme not in ("", "data"):
            yield f"loads {target} from elsewhere"


def navigation_problems(config: Path) -> list[str]:
    """Pages that ``nav`` names and that are not there, that it does not name, and that it names twice."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    docs = config.parent / settings["docs_dir"]
    named = list(_pages_of(settings["nav"]))
    twice = sorted({page for page in named if named.count(page) > 1})
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    return [
        *(f"nav names {page}, which is not there" for page in named if page not in there),
        *(f"docs/{page} is not in nav of {config.name}" for page in sorted(there - set(named))),
        *(f"nav names {page} twice" for page in twice),
    ]


def _pages_of(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for entry in nav.values():
            yield from _pages_of(entry)
    elif isinstance(nav, list):
        for entry in nav:
            yield from _pages_of(entry)
