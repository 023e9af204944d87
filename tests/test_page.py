"""The page in a real browser: asking, answers, their tools, and all that a person may do with them."""

import json
import re
from collections.abc import Callable

import pytest
from page_server import DESK, LONG_SECONDS, PHONE, WAIT, Script, answer, ask, asked, becomes, finished, refusal
from playwright.sync_api import Page, expect

from nanochat.conversation import Conversation

pytest_plugins = ["page_fixtures"]
Open = Callable[..., Page]
both_sizes = pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1280"])


def words(*texts: str) -> Callable[[str], list]:
    """Every question gets these words."""
    return lambda _: [("text", text) for text in texts]


@both_sizes
def test_a_question_is_typed_and_the_answer_streams(open_page: Open, script: Script, size: dict):
    script.answer = lambda _: [("text", "The capital "), WAIT, ("text", "of France "), WAIT, ("text", "is Paris.")]
    page = open_page(viewport=size)
    page.wait_for_load_state("networkidle")  # it knows the model's name
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    ask(page, "What is the capital of France?")
    expect(page.locator(".user")).to_contain_text("What is the capital of France?")
    expect(answer(page)).to_contain_text("The capital")
    script.go.release()
    expect(answer(page)).to_contain_text("The capital of France")
    expect(answer(page)).not_to_contain_text("Paris")
    expect(page.get_by_label("Stop the answer")).to_be_visible()
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "true")
    script.go.release()
    expect(answer(page)).to_contain_text("The capital of France is Paris.")
    finished(page)
    expect(page.get_by_label("Stop the answer")).to_be_hidden()
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page).to_have_title("What is the capital of France? · nanochat")
    sent = script.requests[0]
    assert script.said == [("user", "What is the capital of France?")]
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["model"] == "nanochat-d4-sft"
    assert not sent.keys() - {"model", "messages", "stream", "stream_options"}, "the server's own choices stay its own"


@both_sizes
def test_a_tool_call_is_a_card_and_the_next_question_carries_it(open_page: Open, script: Script, size: dict):
    page = open_page(viewport=size)
    asked(page, "What is 137 * 46?")
    card = page.locator(".tool")
    expect(card).to_have_count(1)
    expect(card.locator(".input")).to_have_text("137*46")
    expect(card.locator(".result")).to_have_text("6302")
    expect(answer(page).locator("p").last).to_have_text("137 times 46 is 6302.")
    asked(page, "Sure?")
    parts = [("text", "Let me work that out.\n"), ("python", "137*46"), ("python_output", "6302")]
    parts.append(("text", "\n137 times 46 is 6302."))
    said = [{"type": kind, "text": text} for kind, text in parts]
    assert script.said == [("user", "What is 137 * 46?"), ("assistant", said), ("user", "Sure?")]


def test_a_call_that_was_stopped_is_shown_and_not_said_again(open_page: Open, script: Script):
    """The server would refuse a call that has no result."""
    script.answer = lambda _: [("text", "Well: "), ("python", "1+"), WAIT]
    page = open_page()
    ask(page, "add")
    expect(page.locator(".tool .input")).to_have_text("1+")
    page.get_by_label("Stop the answer").click()
    expect(page.locator(".tool")).to_have_count(1)
    script.answer = words("yes")
    asked(page, "go on")
    assert script.said == [("user", "add"), ("assistant", "Well: "), ("user", "go on")]


def test_calls_without_a_result_and_results_without_a_call_are_shown(open_page: Open, script: Script):
    script.answer = lambda _: [("python", "1/0"), ("text", "Hm."), ("python_output", "4"), ("python", "2+2")]
    page = open_page()
    asked(page, "count")
    shown = [card.locator(".input, .result").all_text_contents() for card in page.locator(".tool").all()]
    assert shown == [["1/0"], ["", "4"], ["2+2"]]


@pytest.mark.parametrize(("by", "size"), [("button", PHONE), ("escape", DESK)], ids=["390", "1280"])
def test_stop_ends_the_answer_and_the_generation(open_page: Open, script: Script, by: str, size: dict):
    script.answer = lambda _: [("text", "I was sa"), WAIT, ("text", "ying")]
    page = open_page(viewport=size)
    ask(page, "talk")
    expect(answer(page)).to_contain_text("I was sa")
    if by == "button":
        page.get_by_label("Stop the answer").click()
    else:
        page.keyboard.press("Escape")
    expect(answer(page)).to_contain_text("Stopped.")
    assert script.closed.wait(LONG_SECONDS), "the server goes on for nobody"
    script.answer = words("yes")
    asked(page, "go on")
    assert script.said == [("user", "talk"), ("assistant", "I was sa"), ("user", "go on")]


@both_sizes
def test_an_answer_is_given_again(open_page: Open, script: Script, size: dict):
    script.answer = words("first")
    page = open_page(viewport=size)
    asked(page, "hello")
    script.answer = words("second")
    page.get_by_label("Answer again").click()
    expect(answer(page)).to_contain_text("second")
    finished(page)
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.get_by_text("first")).to_have_count(0)
    assert script.requests[0]["messages"] == script.requests[1]["messages"]


@both_sizes
def test_a_question_is_edited_and_sent_again(open_page: Open, script: Script, size: dict):
    page = open_page(viewport=size)
    for question in ("one", "two", "three"):
        asked(page, question)
    second = page.locator(".user").nth(1)
    second.hover()
    second.get_by_label("Edit and send again").click()
    field = page.get_by_label("Edit your message")
    expect(field).to_have_value("two")
    expect(field).to_be_focused()
    expect(second).to_contain_text("What follows is replaced (3 messages).")
    field.press("Escape")
    expect(second).to_contain_text("two")
    expect(second.get_by_label("Edit and send again")).to_be_focused()
    page.keyboard.press("Enter")
    field.fill("  zwei\nlines ")
    second.get_by_role("button", name="Send").click()
    expect(answer(page)).to_contain_text("You said: zwei")
    finished(page)
    expect(page.locator(".turn")).to_have_count(4)
    assert [content for role, content in script.said if role == "user"] == ["one", "zwei\nlines"]


def test_what_is_selected_in_an_opened_editor_stays_selected(open_page: Open):
    page = open_page()
    asked(page, "hello")
    selected = page.evaluate("""async () => {
        document.querySelector("[aria-label='Edit and send again']").click();
        const area = document.querySelector("[aria-label='Edit your message']");
        const before = area.selectionStart;
        area.select();
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        return [before, area.selectionStart, area.selectionEnd];
    }""")
    assert selected == [5, 0, 5]


def test_the_arrow_up_edits_the_last_question_and_enter_sends_it(open_page: Open, script: Script):
    page = open_page()
    page.keyboard.press("ArrowUp")
    asked(page, "hello")
    page.keyboard.press("ArrowUp")
    page.get_by_label("Edit your message").press_sequentially("!")
    page.keyboard.press("Enter")
    expect(answer(page)).to_contain_text("You said: hello!")
    finished(page)
    assert script.said == [("user", "hello!")]


def test_enter_sends_and_shift_enter_breaks_the_line(open_page: Open):
    page = open_page()
    field = page.get_by_label("Your message")
    field.press_sequentially("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    field.evaluate(
        "f => f.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    expect(page.locator(".user")).to_have_count(0)
    field.press("Enter")
    expect(page.locator(".user .bubble")).to_have_text("one\ntwo", use_inner_text=True)
    expect(field).to_have_value("")


def test_the_open_drawer_shows_defaults_as_soon_as_the_server_tells_them(open_page: Open, script: Script):
    script.defaults, script.key = {"temperature": 0.6}, "secret"
    page = open_page()
    page.get_by_role("button", name="Settings").click()
    field = page.get_by_label("Temperature")
    expect(field).not_to_have_attribute("placeholder", "0.6")
    page.get_by_label("Key", exact=True).fill("secret")
    page.keyboard.press("Tab")
    expect(field).to_have_attribute("placeholder", "0.6")


@both_sizes
def test_system_text_and_sampling_are_set_in_the_drawer(open_page: Open, script: Script, size: dict):
    script.defaults = {"temperature": 0.6, "top_k": 50}
    page = open_page(viewport=size)
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.6")
    page.get_by_label("System text").fill("Be brief.")
    chosen = {
        "Temperature": "0.25", "Top k": "0", "Top p": "0.9", "Min p": "0.05", "Repetition penalty": "1.1",
        "Longest answer": "33", "Seed": "7",
    }  # fmt: skip
    for label, value in chosen.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Close the settings").click()
    asked(page, "hello")
    sent = script.requests[-1]
    sampling = {name: sent[name] for name in sent.keys() - {"model", "messages", "stream", "stream_options"}}
    assert sampling == {
        "temperature": 0.25, "top_k": 0, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "max_tokens": 33,
        "seed": 7,
    }  # fmt: skip
    assert script.said == [("system", "Be brief."), ("user", "hello")]
    page.reload()
    page.evaluate("startNew()")
    asked(page, "again")
    assert script.said == [("system", "Be brief."), ("user", "again")]
    assert script.requests[-1]["temperature"] == 0.25
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Empty all fields").click()
    expect(page.get_by_label("Top p")).to_have_value("")
    page.keyboard.press("Escape")
    asked(page, "once more")
    assert "temperature" not in script.requests[-1]
    assert script.said[0] == ("user", "again")


def test_a_value_that_no_answer_can_have_is_one_sentence_and_is_not_sent(open_page: Open, script: Script):
    page = open_page()
    page.get_by_role("button", name="Settings").click()
    for label, value, says in [
        ("Temperature", "2.5", "Temperature is a number from 0 to 2."),
        ("Top k", "1.5", "Top k is a whole number from 0 to 1000000."),
        ("Top p", "0", "Top p is a number from 0.01 to 1."),
        ("Min p", "-1", "Min p is a number from 0 to 1."),
        ("Longest answer", "0", "Longest answer is a whole number from 1 to 1000000."),
        ("Seed", "e", "Seed is a whole number from 0 to 9007199254740991."),
    ]:
        field = page.get_by_label(label)
        field.press_sequentially(value)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#drawer")).to_contain_text(says)
    page.keyboard.press("Escape")
    asked(page, "hello")
    assert not script.requests[0].keys() - {"model", "messages", "stream", "stream_options"}


@both_sizes
def test_markdown_is_shown_and_code_and_answers_are_copied(open_page: Open, script: Script, size: dict):
    text = "Some **bold** text:\n\n```python\nif 1 < 2:\n    print('<b>')\n```\n"
    script.answer = words(*re.split(r"(?<=\s)", text))
    page = open_page(viewport=size, permissions=["clipboard-read", "clipboard-write"])
    asked(page, "code")
    expect(answer(page).locator("strong")).to_have_text("bold")
    expect(answer(page).locator(".code-head")).to_have_text("python")
    pasted = "navigator.clipboard.readText()"
    page.get_by_label("Copy the code").click()
    expect(page.get_by_role("status").filter(has_text="Copied.")).to_have_count(1)
    assert page.evaluate(pasted) == "if 1 < 2:\n    print('<b>')"
    page.get_by_label("Copy the answer").click()
    becomes(page, f"async () => (await {pasted}).startsWith('Some')")
    assert page.evaluate(pasted) == text


def test_without_a_clipboard_copying_takes_the_older_way(open_page: Open):
    page = open_page(permissions=["clipboard-read"])
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.evaluate("document.addEventListener('copy', () => (window.copied = getSelection().toString()))")
    asked(page, "hello")
    page.get_by_label("Copy the answer").click()
    becomes(page, "window.copied === 'You said: hello'")


@both_sizes
def test_the_speed_of_an_answer_is_shown(open_page: Open, script: Script, size: dict):
    script.answer = lambda _: [("text", "a "), WAIT, ("text", "b "), ("text", "c")]
    page = open_page(viewport=size)
    ask(page, "count")
    expect(answer(page)).to_contain_text("a")
    page.evaluate("() => new Promise((done) => setTimeout(done, 30))")
    script.go.release()
    finished(page)
    expect(answer(page).locator(".speed")).to_have_text(re.compile(r"^3 tokens, [\d.,]+ tokens/s$"))
    assert page.evaluate("speed({tokens: 101, seconds: 2})") == "101 tokens, 50 tokens/s"
    assert page.evaluate("speed({tokens: 12, seconds: 4})") == "12 tokens, 2.8 tokens/s"
    assert page.evaluate("speed({tokens: 1, seconds: 0})") == "1 token"


def test_an_answer_says_when_it_was_cut_and_when_it_is_empty(open_page: Open, script: Script):
    page = open_page()
    script.finish_reason = "length"
    asked(page, "hello")
    expect(answer(page)).to_contain_text("The answer was cut at its length limit.")
    script.finish_reason, script.answer = "stop", words()
    asked(page, "nothing")
    expect(answer(page)).to_contain_text("The model said nothing.")
    script.answer = words("yes")
    asked(page, "and now?")
    assert [content for _, content in script.said] == ["hello", "You said: hello", "and now?"]


@both_sizes
def test_a_conversation_is_exported(open_page: Open, script: Script, size: dict):
    page = open_page(viewport=size)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System text").fill("Be brief.")
    page.keyboard.press("Escape")
    asked(page, "What is 137 * 46?")
    script.refusals = [refusal(500, "no")]
    asked(page, "never answered")

    def exported(item: str) -> tuple[str, str]:
        page.get_by_role("button", name="This chat").click()
        with page.expect_download() as started:
            page.get_by_role("button", name=item).click()
        return started.value.suggested_filename, started.value.path().read_text(encoding="utf-8")

    name, text = exported("Export as JSON")
    assert name == "What-is-137-46.json"
    assert text.endswith("]}\n")
    assert text.count("\n") == 1, "a line of a jsonl file"
    messages = Conversation.from_dict(json.loads(text)).messages
    assert [message.role for message in messages] == ["system", "user", "assistant"]
    assert [part.type for part in messages[2].parts] == ["text", "python", "python_output", "text"]
    name, text = exported("Export as Markdown")
    assert name == "What-is-137-46.md"
    for line in ("# What is 137 * 46?", "Be brief.", "## You", "```python\n137*46\n```", "137 times 46 is 6302."):
        assert line in text


def test_the_newest_line_stays_in_view_unless_one_reads_above(open_page: Open, script: Script):
    script.answer = lambda _: [*[("text", f"line {n}\n") for n in range(60)], WAIT, ("text", "the last")]
    page = open_page(viewport=PHONE)
    below = "document.getElementById('scroll').scrollHeight - scroll.scrollTop - scroll.clientHeight"
    ask(page, "count")
    expect(answer(page)).to_contain_text("line 59")
    becomes(page, f"{below} < 5")
    expect(page.get_by_label("To the latest line")).to_be_hidden()
    page.mouse.move(200, 300)
    page.mouse.wheel(0, -900)
    expect(page.get_by_label("To the latest line")).to_be_visible()
    above = page.evaluate("scroll.scrollTop")
    script.go.release()
    finished(page)
    assert abs(page.evaluate("scroll.scrollTop") - above) < 5
    page.get_by_label("To the latest line").click()
    becomes(page, f"{below} < 5")


def test_what_is_written_stays_while_the_rest_is_being_written(open_page: Open, script: Script):
    """Finished blocks are not drawn anew: what is marked in them stays marked."""
    script.answer = lambda _: [("text", "first\n\nsec"), WAIT, ("text", "ond\n\nthird")]
    page = open_page()
    ask(page, "hello")
    expect(answer(page).locator("p")).to_have_text(["first", "sec"])
    page.evaluate("getSelection().selectAllChildren(log.querySelector('.body p'))")
    script.go.release()
    expect(answer(page).locator("p")).to_have_text(["first", "second", "third"])
    finished(page)
    assert page.evaluate("String(getSelection())") == "first"
