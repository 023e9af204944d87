"""The page from the server's side: where it may reach, the path it stands under, and the real server behind it."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_chat import FakeEngine, FakeTokenizer, live_server, pool_of, talker
from page_server import DESK, PHONE, Script, answer, asked, becomes, finished, refusal, running
from playwright.sync_api import Browser, Page, Route, expect

from nanochat.command import UserError
from nanochat.serving.app import create_app
from nanochat.serving.page import build_page

pytest_plugins = ["page_fixtures"]
ROOT = Path(__file__).parent.parent
Open = Callable[..., Page]
both_sizes = pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1280"])


def test_nothing_leaves_the_pages_own_origin(open_page: Open, page_server):
    page = open_page()
    seen: list[str] = []

    def note(route: Route) -> None:
        seen.append(route.request.url)
        route.continue_()

    page.context.route("**/*", note)
    page.reload()
    asked(page, "Who are you?")
    origin = page_server.url
    assert sorted(seen) == [origin, f"{origin}v1/chat/completions", f"{origin}v1/models"]


def test_the_page_is_one_response_that_may_fetch_and_make_nothing_else():
    page, policy = build_page()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == page.count("<script>") + page.count("<style>") > 5
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|url\(|@import""", page)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser", page)
    assert len(page) < 100_000, "a page that is read in a blink"


def test_the_page_works_below_a_path(open_page: Open, page_server):
    """Behind another server, under /chat/: every address of the page is relative."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with running(Starlette(routes=[Mount("/chat", page_server.app())])) as url:
        page = open_page(f"{url}chat/")
        asked(page, "hello")
        expect(answer(page)).to_contain_text("You said: hello")


def test_the_readmes_pictures_are_taken_by_a_script(browser: Browser, page_server, script: Script, tmp_path: Path):
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "dev" / "screenshots.py")
    assert spec is not None
    screenshots = importlib.util.module_from_spec(spec)
    sys.modules["screenshots"] = screenshots
    spec.loader.exec_module(screenshots)
    taken = screenshots.take(browser, page_server.url, tmp_path)
    assert sorted(path.name for path in taken) == sorted(path.name for path in (ROOT / "docs").glob("page*.png"))
    assert max(path.stat().st_size for path in [*taken, *(ROOT / "docs").glob("*.png")]) < 200_000
    script.refusals = [refusal(500, "the model failed")]
    with pytest.raises(UserError, match=r"the server failed: The model failed\."):
        screenshots.take(browser, page_server.url, tmp_path)
    with pytest.raises(UserError, match=re.escape("start `python -m scripts.chat_web` first")):
        screenshots.take(browser, "http://127.0.0.1:9/", tmp_path)


@both_sizes
def test_the_page_and_the_real_server_understand_one_another(open_page: Open, size: dict):
    engine = FakeEngine()
    with live_server(create_app(pool_of(engine), FakeTokenizer(), name="nanochat-d4")) as url:
        page = open_page(f"{url}/", viewport=size)
        expect(page.locator("#model")).to_have_text("nanochat-d4")
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.6")
        page.get_by_label("System text").fill("Be brief.")
        page.get_by_label("Top p").fill("0.5")
        page.get_by_label("Min p").fill("0.125")
        page.get_by_label("Repetition penalty").fill("1.5")
        page.keyboard.press("Escape")
        asked(page, "What is 137 * 46?")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System text").fill("")
        page.keyboard.press("Escape")
        page.get_by_label("Answer again").click()
        expect(page.locator(".tool .input")).to_have_text("137*46")
        expect(page.locator(".tool .result")).to_have_text("6302")
        expect(answer(page)).to_contain_text("137 times 46 is 6302.")
        finished(page)
        expect(answer(page).locator(".speed")).to_contain_text("tokens")
        asked(page, "Sure?")
        expect(answer(page)).to_contain_text("You said: Sure?")
        said = FakeTokenizer().decode(engine.prompts[-1])
        assert "<|python_start|>137*46<|python_end|><|output_start|>6302<|output_end|>137 times 46 is 6302." in said
        assert FakeTokenizer().decode(engine.prompts[0]).startswith("<|bos|><|user_start|>Be brief.")
        assert (engine.params[0].top_p, engine.params[0].min_p, engine.params[0].repetition_penalty) == (
            0.5,
            0.125,
            1.5,
        )
        engine.context_len = 30
        asked(page, "x" * 2000)
        expect(page.get_by_role("alert")).to_contain_text("shorten it")


def test_the_real_server_asks_for_its_key_and_ends_what_nobody_reads(open_page: Open):
    with live_server(create_app(pool_of(talker()), FakeTokenizer(), api_key="sesame")) as url:
        page = open_page(f"{url}/")
        asked(page, "hello")
        page.get_by_label("Key", exact=True).fill("sesame")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Try again").click()
        expect(answer(page)).to_contain_text("xxx")
        page.get_by_label("Stop the answer").click()
        becomes(page, "async () => (await (await fetch('health')).json()).running === 0")
