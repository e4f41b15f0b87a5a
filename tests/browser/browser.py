"""A real browser: Debian's chromium, driven by Playwright. Tests skip, with the reason, where it is not installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    executable = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int = 1440, scheme: str = "light") -> Iterator[Any]:
    """A page, which must neither say anything on its console nor ask for anything but itself."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: request.url.startswith("file://") or said.append(f"request: {request.url}"))
    page.goto(path.resolve().as_uri())
    yield page
    context.close()
    assert said == []


def see_all(page: Any) -> None:
    """Scroll to every chart, so that all are drawn."""
    for number in range(page.locator(".chart").count()):
        page.locator(".chart").nth(number).scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.chart')].every(each => each.querySelector('canvas'))")
