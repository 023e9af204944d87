"""The page in a real browser: Chromium, driven by Playwright, on a live server with an engine that recites."""

import shutil
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from fake_chat import FakeEngine, FakeTokenizer, live_server
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect, sync_playwright

from nanochat.conversation import Part
from nanochat.serving.app import create_app
from nanochat.serving.pool import Pool

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
LONG_SECONDS = 30
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>[x](javascript:alert(1)) &lt;b&gt;'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def go() -> Iterator[threading.Semaphore]:
    """Releases an engine that waits before each piece, and frees it for good at the end."""
    semaphore = threading.Semaphore(0)
    yield semaphore
    semaphore.release(10_000)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page on an engine; closes everything at the end, and fails on any error in the page's console."""
    closing: list[Callable[[], object]] = []
    complaints: list[str] = []

    def opened(engine: FakeEngine, max_waiting: int = 32, **context: object) -> Page:
        server = live_server(create_app(Pool([engine], max_waiting=max_waiting), FakeTokenizer()))
        url = server.__enter__()
        made: BrowserContext = browser.new_context(**context)
        made.set_default_timeout(LONG_SECONDS * 1000)
        closing.append(lambda: (made.close(), server.__exit__(None, None, None)))
        page = made.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Security" in message.text else None)
        page.goto(url)
        return page

    yield opened
    for close in closing:
        close()
    assert complaints == []


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def finished(page: Page) -> None:
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")


def last_answer(page: Page):
    return page.locator(".assistant").last


def test_a_question_is_typed_and_the_answer_streams(open_page: Callable[..., Page], go: threading.Semaphore):
    page = open_page(FakeEngine(before_piece=go.acquire))
    ask(page, "What is the capital of France?")
    expect(page.locator(".user")).to_contain_text("What is the capital of France?")
    go.release(2)
    expect(last_answer(page)).to_contain_text("The capital")
    expect(last_answer(page)).not_to_contain_text("Paris")
    expect(page.get_by_label("Stop the answer")).to_be_visible()
    go.release(100)
    expect(last_answer(page)).to_contain_text("The capital of France is Paris.")
    finished(page)
    expect(page.get_by_label("Stop the answer")).to_be_hidden()
    expect(page.get_by_label("Your message")).to_be_focused()


def test_a_tool_call_is_a_card_and_the_next_question_carries_it(open_page: Callable[..., Page]):
    engine = FakeEngine()
    page = open_page(engine)
    ask(page, "What is 137 * 46?")
    finished(page)
    card = page.locator(".tool")
    expect(card).to_have_count(1)
    expect(card.locator("code")).to_have_text("137*46")
    expect(card.locator("output")).to_have_text("6302")
    ask(page, "Sure?")
    finished(page)
    sent = FakeTokenizer().decode(engine.prompts[1])
    assert sent == "What is 137 * 46?Let me work that out.\n137*466302137 times 46 is 6302.Sure?"


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stop_ends_the_answer_and_the_generation(open_page: Callable[..., Page], by: str):
    def endless(_: str) -> Iterator[Part]:
        while True:
            threading.Event().wait(0.005)
            yield Part("text", "word ")

    engine = FakeEngine(answer=endless, context_len=10**6)
    page = open_page(engine)
    ask(page, "talk")
    expect(last_answer(page)).to_contain_text("word word")
    if by == "button":
        page.get_by_label("Stop the answer").click()
    else:
        page.keyboard.press("Escape")
    expect(last_answer(page)).to_contain_text("Stopped.")
    assert engine.closed.wait(LONG_SECONDS)
    engine.answer = None
    ask(page, "hello")
    expect(last_answer(page)).to_contain_text("You said: hello")
    assert "talk" in FakeTokenizer().decode(engine.prompts[1]), "what was said before the stop is remembered"


def test_nothing_leaves_the_pages_own_origin(open_page: Callable[..., Page]):
    page = open_page(FakeEngine())
    origin = page.url
    seen: list[str] = []

    def note(route: Route, request: Request) -> None:
        seen.append(request.url)
        route.continue_()

    page.context.route("**/*", note)
    page.reload()
    ask(page, "Who are you?")
    finished(page)
    assert seen == [origin, f"{origin}chat/completions"]


def test_markup_from_person_and_model_stays_text(open_page: Callable[..., Page]):
    def evil(_: str) -> Iterator[Part]:
        yield Part("text", EVIL)
        yield Part("python", EVIL)
        yield Part("python_output", EVIL)

    page = open_page(FakeEngine(answer=evil))
    ask(page, EVIL)
    finished(page)
    expect(page.locator(".user")).to_contain_text(EVIL)
    expect(last_answer(page)).to_contain_text(EVIL)
    expect(page.locator(".tool output")).to_have_text(EVIL)
    assert page.locator("#log img, #log script, #log a").count() == 0
    expect(page).to_have_title("nanochat")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways(open_page: Callable[..., Page], width: int):
    def wide(_: str) -> Iterator[Part]:
        yield Part("text", "x" * 500)
        yield Part("python", "1+" * 200)
        yield Part("python_output", "9" * 300)

    page = open_page(FakeEngine(answer=wide), viewport={"width": width, "height": 800})
    for moment in ("empty", "full"):
        if moment == "full":
            ask(page, "y" * 300)
            finished(page)
        for box in ("html", "#scroll"):
            over = page.locator(box).evaluate("box => box.scrollWidth - box.clientWidth")
            assert over == 0, f"{box} is {over} pixels too wide when {moment}"


def test_the_newest_line_stays_in_view(open_page: Callable[..., Page]):
    lines = FakeEngine(answer=lambda _: iter(Part("text", f"line {n}\n") for n in range(60)))
    page = open_page(lines, viewport={"width": 390, "height": 700})
    ask(page, "count")
    finished(page)
    below = page.locator("#scroll").evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight")
    assert below < 5


def test_a_busy_server_says_so_and_the_question_can_be_sent_again(
    open_page: Callable[..., Page], go: threading.Semaphore
):
    engine = FakeEngine(before_piece=go.acquire)
    page = open_page(engine, max_waiting=1)
    others = [page.context.new_page() for _ in range(2)]
    for other in others:
        other.goto(page.url)
        ask(other, "Who are you?")
    # One is answered (and held), one waits: the queue is full.
    wait_for(lambda: [httpx.get(f"{page.url}health").json()[key] for key in ("running", "waiting")] == [1, 1])
    ask(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("the server is busy")
    go.release(10_000)
    for other in others:
        finished(other)
    page.get_by_role("button", name="Try again").click()
    expect(last_answer(page)).to_contain_text("You said: hello")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".user")).to_have_count(1)


def wait_for(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(LONG_SECONDS * 20):
        if true():
            return
        pause.wait(0.05)
    pytest.fail("it never came true")


def test_a_server_that_is_gone_is_said(open_page: Callable[..., Page]):
    page = open_page(FakeEngine())
    page.context.route("**/chat/completions", lambda route: route.abort("connectionrefused"))
    ask(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.context.unroute("**/chat/completions")
    ask(page, "are you back?")
    expect(last_answer(page)).to_contain_text("You said: are you back?")
    expect(page.locator(".user")).to_have_count(1)


def test_a_model_that_breaks_in_the_middle_is_said(open_page: Callable[..., Page]):
    def broken(_: str) -> Iterator[Part]:
        yield Part("text", "half an ")
        raise RuntimeError("a stack that is no client's business")

    page = open_page(FakeEngine(answer=broken))
    ask(page, "hello")
    expect(last_answer(page)).to_contain_text("half an")
    expect(page.get_by_role("alert")).to_contain_text("the model failed")


def test_a_new_chat_forgets_the_old_one_even_in_the_middle_of_an_answer(
    open_page: Callable[..., Page], go: threading.Semaphore
):
    engine = FakeEngine(before_piece=go.acquire)
    page = open_page(engine)
    ask(page, "Who are you?")
    go.release(1)
    expect(last_answer(page)).to_contain_text("I am nanochat,")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_text("Ask your model something.")).to_be_visible()
    go.release(100)
    page.get_by_role("button", name="What is the capital of France?").click()
    expect(last_answer(page)).to_contain_text("Paris")
    assert FakeTokenizer().decode(engine.prompts[-1]) == "What is the capital of France?"


def test_enter_sends_and_shift_enter_breaks_the_line(open_page: Callable[..., Page]):
    page = open_page(FakeEngine())
    field = page.get_by_label("Your message")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    field.press_sequentially("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    field.press("Enter")
    expect(page.locator(".user")).to_contain_text("one\ntwo")
    expect(field).to_have_value("")


def test_everything_has_a_name_and_is_reached_by_the_keyboard(open_page: Callable[..., Page]):
    page = open_page(FakeEngine())
    ask(page, "hello")
    finished(page)
    for element in page.locator("button, textarea").all():
        named = element.evaluate("e => e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent")
        assert named, element.evaluate("e => e.outerHTML")
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    page.get_by_label("Your message").focus()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
