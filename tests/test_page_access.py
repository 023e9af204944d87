"""The page for everybody: axe finds nothing, all is reached by the keyboard, nothing hostile gets in."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_server import DESK, PHONE, WAIT, Script, answer, ask, asked, becomes, finished, refusal
from playwright.sync_api import Page, expect

pytest_plugins = ["page_fixtures"]
Open = Callable[..., Page]
RICH = (
    "# Title\n\ntext with `code`, [link](https://a.b)\n\n- a\n\n> q\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\n"
    + "x" * 300
)
EVIL = (
    '<img src=x onerror="window.evil=1"><script>window.evil=2</script><svg onload="window.evil=3">'
    '[a](javascript:window.evil=4) ![b](x" onerror="window.evil=5) <https://a.b/"onmouseover=window.evil=6> '
    "[c](data:text/html,<script>evil=7</script>) `<b>` </style></script><iframe srcdoc=x> &lt;b&gt; {{evil}} ${evil}"
)


def violations(page: Page) -> list[str]:
    """What axe complains about now, with the elements."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{one['impact']} {one['id']}: {node['html'][:150]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1280"])
def test_axe_finds_nothing(open_page: Open, script: Script, size: dict, scheme: str):
    page = open_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    found = {"empty": violations(page)}
    script.answer = lambda question: [
        ("python", "1+1"),
        ("python_output", "2"),
        ("text", RICH),
        *[WAIT] * (question == "held"),
    ]
    asked(page, "hello")
    page.locator(".turn").first.hover()
    found["answered"] = violations(page)
    ask(page, "held")
    expect(answer(page)).to_contain_text("Title")
    found["writing"] = violations(page)
    page.get_by_label("Stop the answer").click()
    finished(page)
    script.refusals = [refusal(500, "the model failed")]
    asked(page, "fails")
    page.locator(".user").first.hover()
    page.get_by_label("Edit and send again").first.click()
    found["failed, and an editor"] = violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="This chat").click()
    found["menu"] = violations(page)
    page.keyboard.press("Escape")
    if size == PHONE:
        page.get_by_role("button", name="Conversations").click()
        found["list"] = violations(page)
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("7")
    page.evaluate("tell('A note.', 'Undo')")
    found["drawer and note"] = violations(page)
    assert {moment: list_ for moment, list_ in found.items() if list_} == {}


def test_all_is_reached_by_the_keyboard_alone(open_page: Open, script: Script):
    page = open_page()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    finished(page)
    reached = []
    page.locator("#fold").focus()
    page.keyboard.press("Shift+Tab")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break  # past the end
        name = page.evaluate(
            "document.activeElement.ariaLabel || document.activeElement.innerText || document.activeElement.id"
        )
        reached.append(name)
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", (
            f"{name} shows no focus"
        )
        becomes(page, "() => document.activeElement.checkVisibility({ opacityProperty: true })")
    assert reached[:3] == ["Hide the list", "New chat", "hello"]
    assert {
        "Settings",
        "This chat",
        "Edit and send again",
        "Copy the answer",
        "Answer again",
    } < set(reached)
    assert "question" in reached
    page.get_by_role("button", name="Settings").focus()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#drawer')")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()


def test_escape_closes_the_drawer_before_it_stops_an_answer(open_page: Open, script: Script):
    script.answer = lambda _: [("text", "a"), WAIT, ("text", "b")]
    page = open_page()
    ask(page, "hello")
    expect(answer(page)).to_contain_text("a")
    page.get_by_role("button", name="Settings").click()
    page.keyboard.press("Escape")
    expect(page.locator("#drawer")).to_be_hidden()
    expect(page.get_by_label("Stop the answer")).to_be_visible()
    script.go.release()
    finished(page)
    expect(answer(page)).to_contain_text("ab")


def test_a_screen_reader_hears_what_happens(open_page: Open, script: Script):
    script.answer = lambda _: [WAIT, ("text", "yes")]
    page = open_page()
    status = page.locator("#status")
    expect(page.get_by_role("log", name="Conversation")).to_have_attribute("aria-live", "polite")
    ask(page, "hello")
    expect(status).to_have_text("The answer is being written.")
    script.go.release()
    expect(status).to_have_text("The answer is complete.")
    expect(page.get_by_role("article").last).to_contain_text("nanochat said:")
    expect(page.get_by_role("navigation", name="Conversations")).to_be_visible()
    expect(page.get_by_role("main")).to_be_visible()


def test_the_list_folds_away_and_stays_so(open_page: Open):
    page = open_page()
    page.get_by_role("button", name="Hide the list").click()
    expect(page.locator("#side")).to_be_hidden()
    page.reload()
    expect(page.locator("#side")).to_be_hidden()
    page.get_by_role("button", name="Show the list").click()
    expect(page.locator("#side")).to_be_visible()
    expect(page.get_by_role("button", name="Hide the list")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_look_is_the_systems_or_ones_own(open_page: Open, scheme: str):
    page = open_page(color_scheme=scheme)
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(252, 251, 248)", "rgb(23, 25, 26)"
    assert page.evaluate(paper) == (light if scheme == "light" else dark)
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Light" if scheme == "dark" else "Dark", exact=True).click()
    other = dark if scheme == "light" else light
    assert page.evaluate(paper) == other
    page.reload()
    assert page.evaluate(paper) == other


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["390", "1280"])
def test_markup_from_person_model_server_and_storage_stays_text(open_page: Open, script: Script, size: dict):
    pieces = [("text", EVIL), ("python", EVIL), ("python_output", EVIL), ("text", f"\n~~~{EVIL}\n{EVIL}\n")]
    script.answer = lambda _: pieces
    page = open_page(viewport=size)
    asked(page, EVIL)
    expect(page.locator(".bubble")).to_have_text(EVIL)
    expect(page.locator(".tool .input")).to_have_text(EVIL)
    expect(page.locator(".tool .result")).to_have_text(EVIL)
    expect(page.locator("pre").last).to_contain_text(EVIL.partition("`")[0])
    expect(page.locator("h1")).to_contain_text("<img src=x")
    script.refusals = [refusal(400, EVIL)]
    asked(page, "fails")
    expect(page.get_by_role("alert")).to_contain_text(EVIL)
    page.reload()
    expect(page.locator(".bubble").first).to_have_text(EVIL)
    page.locator(".user").first.hover()
    page.get_by_label("Edit and send again").first.click()
    expect(page.get_by_label("Edit your message")).to_have_value(EVIL)
    strangers = "img, script:not(body > script), iframe, object, embed, [onerror], [onload], [onmouseover], [srcdoc]"
    assert page.locator(strangers).count() == 0
    links = [link.get_attribute("href") or "" for link in page.locator("a").all()]
    assert [link for link in links if not link.startswith("https://")] == []
    assert page.evaluate("window.evil") is None


@pytest.mark.parametrize("size", [PHONE, DESK, {"width": 320, "height": 600}], ids=["390", "1280", "320"])
def test_nothing_scrolls_sideways(open_page: Open, script: Script, size: dict):
    table = "|" + "a" * 40 + "|" * 2 + "b" * 40 + "|\n|-|-|-|\n"
    pieces = [
        ("text", "x" * 500),
        ("python", "1+" * 200),
        ("python_output", "9" * 300),
        ("text", f"{table}\n# {'h' * 99}"),
    ]
    script.answer = lambda _: [*pieces, ("text", "\n- " * 9 + "l" * 99 + "\n\n```\n" + "c" * 300)]
    page = open_page(viewport=size)
    for moment in ("empty", "full", "editor", "failed"):
        if moment == "full":
            asked(page, "y" * 300)
        if moment == "editor":
            page.locator(".user").first.hover()
            page.get_by_label("Edit and send again").first.click()
        if moment == "failed":
            page.keyboard.press("Escape")
            script.refusals = [refusal(500, "e" * 200)]
            asked(page, "again")
        for box in ("html", "#stage", "#scroll", "#side"):
            over = page.locator(box).evaluate("box => box.scrollWidth - box.clientWidth")
            assert over <= 0, f"{box} is {over} pixels too wide when {moment}"
    code = page.locator("pre").first
    assert code.evaluate("box => { box.scrollLeft = 50; return box.scrollLeft }") == 50, "long lines are reached"
    page.get_by_role("button", name="Settings").click()
    assert page.locator("#drawer").evaluate("box => box.scrollWidth - box.clientWidth") == 0


def test_what_one_touches_is_large_enough(open_page: Open):
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    asked(page, "hello")
    page.get_by_role("button", name="Settings").click()
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=radio]), textarea")].map((element) => {
          const { width, height } = element.getBoundingClientRect();
          return [element.id || element.ariaLabel || element.innerText, width, height];
        }).filter(([, width]) => width)"""
    )
    assert len(sizes) > 15
    assert [(name, width, height) for name, width, height in sizes if min(width, height) < 30] == []
