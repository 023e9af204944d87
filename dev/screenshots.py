"""The README's pictures of the page: a running server is asked three questions, on a desk and a phone, light and dark.

    python dev/screenshots.py --url http://127.0.0.1:8000/ --folder docs

`python -m scripts.chat_web` is such a server. Needs playwright and Chromium.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import command
from nanochat.command import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"page": (1280, 760, 1.5), "page-phone": (390, 760, 2)}  # name: width and height, and pixels to each of theirs
CHATS = [["Who are you?"], ["What is the capital of France?", "What is 137 * 46?"]]


@dataclass(frozen=True)
class Config:
    url: str = "http://127.0.0.1:8000/"
    """The address that the server printed."""
    folder: Path = Path("docs")
    """Where page.png, page-dark.png, page-phone.png and page-phone-dark.png are written."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Take the pictures."""
    if config.dry_run:
        print(f"would take {2 * len(SIZES)} pictures of {config.url} into {config.folder}")
        return
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise UserError("there is no Chromium here: install it, for example by `apt install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in take(browser, config.url, config.folder):
            print(f"{path}: {path.stat().st_size:,} bytes")


def take(browser: "Browser", url: str, folder: Path) -> list[Path]:
    """The pictures' files. Raises UserError where no server answers."""
    files = []
    for name, (width, height, scale) in SIZES.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme,
                has_touch=width < 500, is_mobile=width < 500,
            )  # fmt: skip
            page = context.new_page()
            talk(page, url)
            files.append(folder / f"{name}{'-dark' if scheme == 'dark' else ''}.png")
            page.screenshot(path=files[-1])
            context.close()
    return files


def talk(page: "Page", url: str) -> None:
    """Two conversations, the last one open."""
    from playwright.sync_api import Error

    try:
        page.goto(url)
    except Error as refusal:
        raise UserError(f"no page at {url}: start `python -m scripts.chat_web` first ({refusal.message})") from refusal
    for number, questions in enumerate(CHATS):
        if number:
            page.locator("#new, #fresh").locator("visible=true").click()
        for question in questions:
            page.get_by_label("Your message").fill(question)
            page.keyboard.press("Enter")
            page.locator("#log[aria-busy=false]").wait_for(timeout=120_000)
            if page.get_by_role("alert").count():
                raise UserError(f"the server failed: {page.get_by_role('alert').locator('p').inner_text()}")
    page.mouse.move(0, 0)


if __name__ == "__main__":
    command.run(main, Config)
