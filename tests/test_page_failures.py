"""The page on a server that is busy, slow, wrong, dying or gone: a clear sentence, and a way on."""

from collections.abc import Callable

import pytest
from page_server import (
    DESK,
    DIE,
    LONG_SECONDS,
    PHONE,
    WAIT,
    PageServer,
    Script,
    answer,
    ask,
    asked,
    becomes,
    finished,
    refusal,
)
from page_server import running as running_server
from playwright.sync_api import Page, expect
from starlette.responses import PlainTextResponse, Response

pytest_plugins = ["page_fixtures"]
Open = Callable[..., Page]
both_sizes = pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1280"])


@pytest.mark.parametrize(("status", "size"), [(429, PHONE), (503, DESK)], ids=["429-390", "503-1280"])
def test_a_busy_server_is_asked_again_when_it_said(open_page: Open, script: Script, size: dict, status: int):
    script.refusals = [refusal(status, "the server is busy", Retry_After="0"), refusal(status, "busy", Retry_After="1")]
    page = open_page(viewport=size)
    asked(page, "hello")
    expect(answer(page)).to_contain_text("You said: hello")
    assert len(script.requests) == 3
    assert script.requests[0] == script.requests[2]


@both_sizes
def test_while_it_waits_one_may_try_now_or_stop(open_page: Open, script: Script, size: dict):
    page = open_page(viewport=size)
    for _ in range(2):
        script.refusals.append(refusal(503, "the server is busy (waiting: 32)", Retry_After="50"))
    ask(page, "hello")
    waiting = page.locator(".pending")
    expect(waiting).to_contain_text("The server is busy (waiting: 32). Trying again in 50 s.")
    page.get_by_role("button", name="Try now").focus()
    expect(waiting).to_contain_text("Trying again in 49 s.")
    expect(page.get_by_role("button", name="Try now")).to_be_focused()
    page.keyboard.press("Enter")
    becomes(page, "Boolean(runs.get(chat.id)?.retryNow)")
    expect(waiting).to_contain_text("Trying again")
    page.get_by_label("Stop the answer").click()
    expect(answer(page)).to_contain_text("Stopped.")
    assert len(script.requests) == 2
    asked(page, "are you there?")
    assert script.said == [("user", "are you there?")], "a question without an answer is no part of the conversation"


def test_it_tries_three_times_more_and_not_for_ever(open_page: Open, script: Script):
    script.refusals = [refusal(503, "the server is busy", Retry_After="0") for _ in range(4)]
    page = open_page()
    asked(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("The server is busy.")
    assert len(script.requests) == 4


REFUSALS: list[tuple[Response, str]] = [
    (refusal(429, "too many at once", Retry_After="600"), "Too many at once. It asks for 10 minutes."),
    (refusal(503, "the server is stopping"), "The server is stopping."),
    (refusal(400, "the conversation has 9000 tokens"), "The conversation has 9000 tokens."),
    (refusal(413, "<b>too large</b>"), "<b>too large</b>."),
    (PlainTextResponse("<html>Bad gateway</html>", 502), "The server answered with status 502."),
    (PlainTextResponse("hello", 200), "The connection ended in the middle of the answer."),
    (PlainTextResponse("data: {nonsense\n\n", 200), "The server sent something that is no answer."),
    (PlainTextResponse("data: 5\n\n", 200), "The server sent something that is no answer."),
]


def test_a_refusal_is_told_and_the_question_can_be_sent_again(open_page: Open, script: Script):
    page = open_page()
    script.refusals = [refused for refused, _ in REFUSALS]
    ask(page, "hello")
    for number, (_, says) in enumerate(REFUSALS):
        expect(page.get_by_role("alert").locator("p")).to_have_text(says)
        assert len(script.requests) == number + 1
        page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("You said: hello")
    finished(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".turn")).to_have_count(2)
    assert all(request == script.requests[0] for request in script.requests)


@both_sizes
def test_a_server_that_dies_in_the_middle_leaves_what_it_said(open_page: Open, script: Script, size: dict):
    script.answer = lambda _: [("text", "half an "), WAIT, DIE]
    page = open_page(viewport=size)
    ask(page, "hello")
    expect(answer(page)).to_contain_text("half an")
    script.go.release()
    finished(page)
    expect(answer(page)).to_contain_text("half an")
    expect(page.get_by_role("alert")).to_contain_text("The connection broke in the middle of the answer.")
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke")
    script.answer = lambda _: [("text", "a whole one")]
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("a whole one")
    expect(page.get_by_text("half an")).to_have_count(0)


def test_an_error_in_the_middle_of_the_stream_is_told(open_page: Open, script: Script):
    script.answer = lambda _: [("text", "half"), b'data: {"error": {"message": "the model failed"}}\n\n']
    page = open_page()
    asked(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("The model failed.")
    script.answer = lambda _: [("text", "yes")]
    asked(page, "and now?")
    assert [content for _, content in script.said] == ["hello", "half", "and now?"]


def test_a_stream_is_read_however_it_is_cut(open_page: Open, script: Script):
    """Comments, Windows' line ends, data without a space, several lines, and a character cut in two."""
    chunk = 'data:{"choices": [{"delta":\r\ndata: {"content": "grün 👩‍🚀"}}]}\r\n\r\n'.encode()
    cut = chunk.index("👩".encode()) + 2
    script.answer = lambda _: [b": hello\r\n\r\nevent: x\r\n", chunk[:cut], WAIT, chunk[cut:], b"\n\n: bye\n\n"]
    page = open_page()
    ask(page, "hello")
    script.go.release()
    expect(answer(page)).to_contain_text("grün 👩‍🚀")
    finished(page)
    expect(page.get_by_role("alert")).to_have_count(0)


@both_sizes
def test_a_slow_server_is_waited_for(open_page: Open, script: Script, size: dict):
    script.answer = lambda _: [WAIT, ("text", "at last")]
    page = open_page(viewport=size)
    page.clock.install()
    ask(page, "hello")
    expect(page.locator(".pending .dot")).to_be_visible()
    expect(answer(page)).not_to_contain_text("Still waiting")
    page.clock.run_for(6000)
    expect(answer(page)).to_contain_text("Still waiting for the first word.")
    script.go.release()
    page.clock.resume()
    expect(answer(page)).to_contain_text("at last")
    expect(page.locator(".pending")).to_have_count(0)


@both_sizes
def test_a_server_that_is_gone_is_told_and_found_again(open_page: Open, size: dict):
    theirs = PageServer()
    with running_server(theirs.app()) as url:
        page = open_page(url, viewport=size)
        asked(page, "hello")
    ask(page, "still there?")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached. Is it still running?")
    expect(page.locator(".user")).to_have_count(2)
    with running_server(theirs.app(), port=int(url.rstrip("/").rpartition(":")[2])):
        page.get_by_role("button", name="Try again").click()
        expect(answer(page)).to_contain_text("You said: still there?")
        finished(page)


def test_a_page_that_found_no_server_says_so_and_meets_it_later(open_page: Open, script: Script):
    page = open_page()
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    expect(page.locator("#model")).to_have_text("The server cannot be reached. Is it still running?")
    page.unroute("**/v1/models")
    asked(page, "hello")
    expect(page.locator("#model")).to_have_text("nanochat-d4-sft")
    assert "model" not in script.requests[0]


def test_a_server_that_wants_a_key_gets_it(open_page: Open, script: Script):
    script.key = "sesame"
    page = open_page()
    expect(page.locator("#model")).to_have_text("This server asks for a key.")
    asked(page, "hello")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type("sesame")
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_have_text("nanochat-d4-sft")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("This server asks for a key")
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("You said: hello")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)"), "a key is for this tab alone"


def test_closing_the_page_ends_the_generation(open_page: Open, script: Script):
    script.answer = lambda _: [("text", "a"), WAIT, ("text", "b")]
    page = open_page()
    ask(page, "talk")
    expect(answer(page)).to_contain_text("a")
    page.close()
    assert script.closed.wait(LONG_SECONDS)
