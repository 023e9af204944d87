"""Fixtures of the page's tests, a plugin of pytest: one browser and one server for all, a page for each."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from page_server import DESK, LONG_SECONDS, PageServer, Script, running
from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-smooth-scrolling",  # a place scrolled to is reached at once
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, one for a file of tests: while it is there, no other event loop can run in the process."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium: apt install chromium")
    expect.set_options(timeout=LONG_SECONDS * 1000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def page_server() -> Iterator[PageServer]:
    """The server, for all tests."""
    server = PageServer()
    with running(server.app()) as server.url:
        yield server


@pytest.fixture
def script(page_server: PageServer) -> Iterator[Script]:
    """What the server does in this test; change its fields."""
    page_server.script = script = Script()
    yield script
    script.go.release(100_000)


@pytest.fixture
def open_page(browser: Browser, page_server: PageServer, script: Script) -> Iterator[Callable[..., Page]]:
    """Opens the page in a browser of its own, and fails on any error in its console."""
    contexts = []
    complaints: list[str] = []

    def opened(url: str = "", **settings: object) -> Page:
        context = browser.new_context(**{"viewport": DESK, **settings})
        context.set_default_timeout(LONG_SECONDS * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if refused(message.text) else None)
        page.goto(url or page_server.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def refused(line: str) -> bool:
    """Whether a line of the console tells that the page's own rules were broken."""
    return "Security" in line or "TrustedHTML" in line or "TrustedScript" in line
