"""A real browser for tests of pages: Debian's Chromium, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def opened(page: Path) -> Iterator[tuple[Any, list[str]]]:
    """The page (of playwright) that shows this file, without network, and the list of the errors that it has met."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("there is no Chromium here: apt-get install chromium")
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        shown = context.new_page()
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on(
            "console",
            lambda message: message.type == "error" and errors.append(f"{message.text} {message.location}"),
        )
        shown.on("requestfailed", lambda request: errors.append(f"not loaded: {request.url[:200]}"))
        shown.goto(page.absolute().as_uri())
        yield shown, errors
        browser.close()


def column(page: Any, number: int) -> list[str]:
    """The texts of a column of the first table of a page or frame."""
    return page.locator(f"table >> nth=0 >> tbody tr td:nth-child({number})").all_inner_texts()
