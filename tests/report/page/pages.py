"""Opening a report in a real browser and listening to what it does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium; CI must have one."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine; .ci/run installs one")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page, what it wrote to the console and what it asked for."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        self.page: Page = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context}).new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def show(self, section: str) -> None:
        """Scroll to a section and wait until it is drawn."""
        self.page.locator(f"#{section}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#{section}[data-drawn]")

    def fetched(self) -> list[str]:
        """What it asked for beside itself and what it holds."""
        return [url for url in self.asked[1:] if not url.startswith(("data:", "blob:"))]

    def chart(self, name: str) -> Any:
        """The data of a chart's first trace."""
        return self.page.evaluate("name => JSON.parse(JSON.stringify(document.getElementById(name).data[0]))", name)
