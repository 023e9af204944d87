"""The page's conversations: several, kept in the browser, whatever becomes of its storage."""

import json
from collections.abc import Callable

import pytest
from page_server import DESK, LONG_SECONDS, PHONE, WAIT, Script, answer, ask, asked
from playwright.sync_api import Locator, Page, expect

pytest_plugins = ["page_fixtures"]
Open = Callable[..., Page]
both_sizes = pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1280"])
KEPT = "Object.keys(localStorage).filter((key) => key.startsWith('nanochat:chat:')).length"


def chats(page: Page) -> Locator:
    return page.locator("#chats button")


def open_list(page: Page) -> None:
    """On a phone the list is a sheet."""
    if page.viewport_size == PHONE:
        page.get_by_role("button", name="Conversations").click()


def saved(number: int = 1, **other: object) -> dict:
    """A conversation as the page keeps it."""
    messages = [
        {"role": "user", "text": f"question {number}"},
        {"role": "assistant", "parts": [{"type": "text", "text": f"answer {number}"}], "end": "stop"},
    ]
    record = {"version": 1, "id": f"id{number}", "title": f"chat {number}", "created": number, "updated": number}
    return {**record, "system": "", "sampling": {}, "messages": messages, **other}


def keep(page: Page, *records: object) -> None:
    """Put these into the storage, under their ids, and open the page anew."""
    entries = [
        (
            record["id"] if isinstance(record, dict) else number,
            record if isinstance(record, str) else json.dumps(record),
        )
        for number, record in enumerate(records)
    ]
    page.evaluate(
        "entries => entries.forEach(([id, text]) => localStorage.setItem(`nanochat:chat:${id}`, text))", entries
    )
    page.reload()


@both_sizes
def test_several_conversations_are_kept_and_switched(open_page: Open, script: Script, size: dict):
    page = open_page(viewport=size)
    asked(page, "first")
    open_list(page)
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_text("Ask your model something.")).to_be_visible()
    asked(page, "second")
    assert script.said == [("user", "second")]
    page.reload()
    expect(page.locator(".bubble")).to_have_text("second")
    open_list(page)
    expect(chats(page)).to_have_text(["second", "first"])
    expect(chats(page).first).to_have_attribute("aria-current", "page")
    chats(page).nth(1).click()
    expect(page.locator(".bubble")).to_have_text("first")
    expect(answer(page)).to_contain_text("You said: first")
    asked(page, "more")
    assert [content for _, content in script.said] == ["first", "You said: first", "more"]
    open_list(page)
    expect(chats(page)).to_have_text(["first", "second"])


@both_sizes
def test_an_answer_goes_on_while_one_reads_elsewhere(open_page: Open, script: Script, size: dict):
    script.answer = lambda question: (
        [("text", "slow "), WAIT, ("text", "answer")] if question == "slow" else [("text", "quick")]
    )
    page = open_page(viewport=size)
    ask(page, "slow")
    expect(answer(page)).to_contain_text("slow")
    open_list(page)
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.get_by_label("Stop the answer")).to_be_hidden()
    asked(page, "other")
    expect(answer(page)).to_contain_text("quick")
    open_list(page)
    expect(chats(page).nth(1)).to_have_class("running")
    script.go.release()
    expect(page.locator(".running")).to_have_count(0)
    expect(page.locator(".bubble")).to_have_text("other")
    chats(page).get_by_text("slow").click()
    expect(answer(page)).to_contain_text("slow answer")


@both_sizes
def test_a_conversation_is_renamed_deleted_and_brought_back(open_page: Open, size: dict):
    page = open_page(viewport=size)
    asked(page, "hello")

    def choose(item: str) -> None:
        page.get_by_role("button", name="This chat").click()
        page.get_by_role("button", name=item).click()

    choose("Rename")
    expect(page.get_by_label("Name of this chat")).to_be_focused()
    page.keyboard.type("A better name")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("A better name")
    choose("Rename")
    page.keyboard.type("no")
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_text("A better name")
    choose("Delete")
    expect(page.locator(".turn")).to_have_count(0)
    assert page.evaluate(KEPT) == 0
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("h1")).to_have_text("A better name")
    expect(page.locator(".turn")).to_have_count(2)
    assert page.evaluate(KEPT) == 1


def test_deleting_a_conversation_ends_its_answer(open_page: Open, script: Script):
    script.answer = lambda _: [("text", "a"), WAIT, ("text", "b")]
    page = open_page()
    ask(page, "hello")
    expect(answer(page)).to_contain_text("a")
    page.get_by_role("button", name="This chat").click()
    page.get_by_role("button", name="Delete").click()
    assert script.closed.wait(LONG_SECONDS)
    assert page.evaluate(KEPT) == 0


def test_all_are_deleted_after_a_second_question(open_page: Open):
    page = open_page()
    keep(page, saved(1), saved(2))
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Delete all").click()
    assert page.evaluate(KEPT) == 2
    page.get_by_role("button", name="Really delete all?").click()
    expect(chats(page)).to_have_count(0)
    assert page.evaluate(KEPT) == 0


def test_a_page_that_is_closed_in_the_middle_keeps_what_was_said(open_page: Open, script: Script):
    script.answer = lambda _: [("text", "as far as "), WAIT, ("text", "this")]
    page = open_page()
    ask(page, "hello")
    expect(answer(page)).to_contain_text("as far as")
    page.reload()
    expect(answer(page)).to_contain_text("as far as")
    expect(answer(page)).to_contain_text("Stopped.")


BROKEN = {
    "no JSON": "{half",
    "null": "null",
    "a number": "5",
    "no messages": saved(messages=[]),
    "messages of a kind": saved(messages=["hello"]),
    "two questions": saved(messages=[{"role": "user", "text": "a"}, {"role": "user", "text": "b"}]),
    "a text that is none": saved(messages=[{"role": "user", "text": {"toString": "x"}}]),
    "parts that are none": saved(messages=[saved()["messages"][0], {"role": "assistant", "parts": "x", "end": "stop"}]),
    "a strange part": saved(
        messages=[
            saved()["messages"][0],
            {"role": "assistant", "parts": [{"type": "html", "text": "x"}], "end": "stop"},
        ]
    ),
    "a strange end": saved(messages=[saved()["messages"][0], {"role": "assistant", "parts": [], "end": "x"}]),
    "sampling": saved(sampling={"temperature": "hot"}),
    "no title": saved(title=None),
}


def test_what_cannot_be_read_is_left_out_and_said(open_page: Open):
    page = open_page()
    keep(
        page,
        saved(50),
        *(
            {**record, "id": f"broken{i}"} if isinstance(record, dict) else record
            for i, record in enumerate(BROKEN.values())
        ),
    )
    expect(chats(page)).to_have_text(["chat 50"])
    expect(page.locator("#toast")).to_contain_text(f"{len(BROKEN)} conversations could not be read and were left out.")
    assert page.evaluate(KEPT) == 1
    asked(page, "it works")
    page.reload()
    expect(page.locator("#toast")).to_be_hidden()
    expect(chats(page)).to_have_text(["it works", "chat 50"])


def test_a_later_versions_conversations_are_left_alone(open_page: Open):
    page = open_page()
    keep(page, {"version": 2, "id": "id7", "something": "else"})
    expect(chats(page)).to_have_count(0)
    assert page.evaluate(KEPT) == 1


def test_broken_preferences_are_those_of_a_new_page(open_page: Open, script: Script):
    page = open_page()
    for kept in ('{"sampling": {"top_k": "all"}, "system": 5, "look": "<b>"}', "null", "[]", "{", '"x"'):
        page.evaluate("(kept) => localStorage.setItem('nanochat:preferences', kept)", kept)
        page.evaluate("sessionStorage.clear()")
        page.reload()
        asked(page, "hello")
        assert script.said == [("user", "hello")]
        assert "top_k" not in script.requests[-1]


# Fills what room there is, up to the last character.
FILL = """() => {
  const fits = (size) => {
    try { localStorage.setItem("other", "x".repeat(size)); return true } catch { return false }
  };
  let size = 0;
  for (let step = 4194304; step >= 1; step /= 2) if (fits(size + step)) size += step;
  fits(size);
}"""


def test_a_full_storage_lets_the_oldest_go_and_says_so(open_page: Open):
    page = open_page()
    keep(page, *(saved(number, system="s" * 5000) for number in (1, 2, 3)))
    page.evaluate(FILL)
    asked(page, "x" * 200)
    expect(page.locator("#toast")).to_contain_text("This browser has no room left: the oldest conversation had to go.")
    page.reload()
    expect(page.locator(".bubble")).to_have_text("x" * 200)
    expect(chats(page)).to_have_text(["x" * 120, "chat 3", "chat 2"])


def test_a_conversation_that_never_fits_costs_no_other(open_page: Open, script: Script):
    script.answer = lambda _: [("text", "lot " * 10_000)]
    page = open_page()
    keep(page, saved(1), saved(2))
    page.evaluate(FILL)
    page.evaluate("localStorage.setItem('other', localStorage.getItem('other').slice(2000))")  # room for the question
    asked(page, "all of it")
    expect(page.locator("#toast")).to_contain_text("no room left: what is new here is lost when the page closes")
    expect(answer(page)).to_contain_text("lot lot")
    page.reload()
    expect(chats(page)).to_have_text(["chat 2", "chat 1"])


def test_no_more_than_two_hundred_are_kept(open_page: Open):
    page = open_page()
    keep(page, *(saved(n) for n in range(200)))
    asked(page, "one more")
    expect(chats(page)).to_have_count(200)
    assert page.evaluate(KEPT) == 200
    assert page.evaluate("localStorage.getItem('nanochat:chat:id0')") is None


def test_a_browser_that_keeps_nothing_still_chats_and_says_so(open_page: Open, script: Script):
    page = open_page()
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"])
        Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError") } })"""
    )
    page.reload()
    expect(page.locator("#toast")).to_contain_text("conversations are lost when it closes")
    asked(page, "hello")
    page.get_by_role("button", name="New chat", exact=True).click()
    script.key = "sesame"
    asked(page, "again")
    page.get_by_label("Key", exact=True).fill("sesame")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("You said: again")
    expect(chats(page)).to_have_text(["again", "hello"])


def test_two_tabs_see_one_another(open_page: Open, script: Script):
    page = open_page()
    asked(page, "hello")
    other = page.context.new_page()
    other.goto(page.url)
    chats(other).click()
    asked(page, "more")
    expect(other.locator(".bubble")).to_have_text(["hello", "more"])
    page.get_by_role("button", name="This chat").click()
    page.get_by_role("button", name="Delete").click()
    expect(other.locator(".turn")).to_have_count(0)
    expect(chats(other)).to_have_count(0)


def test_what_was_typed_waits_in_its_conversation(open_page: Open):
    page = open_page()
    asked(page, "hello")
    page.get_by_label("Your message").fill("half a tho")
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.get_by_label("Your message")).to_have_value("")
    chats(page).click()
    expect(page.get_by_label("Your message")).to_have_value("half a tho")
