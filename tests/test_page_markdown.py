"""The page's Markdown, beside markdown-it's; in Chromium, away from any server."""

import random
import re
from collections.abc import Iterator
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page

pytest_plugins = ["page_fixtures"]

# What is said of a tree of elements: tags, texts, and the attributes that mean something.
SIMPLE = """
window.simple = (node) => [...node.childNodes].map((child) => {
  const inCode = child.parentNode.closest("pre");
  if (child.nodeType === Node.TEXT_NODE) return inCode ? child.data.trimEnd() : child.data.replace(/\\n/g, "");
  const tag = child.localName;
  if (tag === "button" || child.className === "code-head") return "";
  if (tag === "div") return simple(child);
  const level = tag.match(/^h([1-6])$/)?.[1];
  const shown = level ? "h" + Math.min(Number(level) + window.lower, 6) : tag;
  const kept = ["href", "start"].filter((name) => child.hasAttribute(name)).map((name) => ` ${name}=${child[name]}`);
  const side = child.classList.contains("right") || child.style.textAlign === "right" ? " right" : "";
  const middle = child.classList.contains("center") || child.style.textAlign === "center" ? " center" : "";
  return `<${shown}${kept}${side}${middle}>${simple(child)}</${shown}>`;
}).join("");
0;
"""
RENDER = """(text) => {
  const box = document.createElement("div");
  box.append(...markdownBlocks(text).map((block) => block.make()));
  return simple(box);
}"""

DOCUMENT = """# A title #

Some *emphasis*, **strong words**, ***both***, _under_, __lines__ and ~~gone~~.
A second line, with `code`, ``co`de`` and a \\*star\\*.

Second level
---

- one
- two
  with more

  and a paragraph
- three
  1. first
  2. second
     ```python
     if x < 1:
         print("**no**")
     ```
3. three
4. four

> quoted *words*
> - in a list
>
> > deeper

| left | right | middle |
|:-----|------:|:------:|
| `a`  | 1 | **x** |
| a \\| b | 2 |

~~~
plain
  ~~ code
~~~

***

[words](https://example.org/a_(b) "title") and <https://example.org/?a=1&b=2>
"""
TAGS = re.compile("h[2-6]|hr|br|p|ul|ol|li|blockquote|em|strong|s|a|code|pre|div|table|thead|tbody|tr|th|td")
CASES = [
    DOCUMENT,
    "# not#closed\n## closed ##\n####### seven\n#none",
    "a\n# heading\nb",
    "*a **b** c* **a *b* c** ***a** b* ***a* b**",
    "snake_case_name and __init__ and _a_b_ and a_",
    "*a.**.b* and **a.*.b** and ***.*.***",
    "** not strong ** and * not * and ** a**",
    "**bold _italic_** and *a **b** c* and **a***\\***b**",
    "****four**** and *****five*****",
    "*open **closed**\n*open only",
    "a ~~b~~ c ~~ d ~~ e",
    "`a` ``b`c`` ` ` `` ` `` ```x",
    "`unclosed and ``unclosed too",
    "[a](https://a.b) [b](<https://a.b/c d>) [d](https://a.b 'title')",
    "[a [b] c](https://a.b) [x](https://a.b) ![alt](https://a.b/c.png)"[:49],
    "[**bold** `code`](https://a.b)",
    "\\# no heading \\[no](link) \\\\ \\a",
    "- a\n- b\n\n\n- c\n\ntext",
    "- a\n\n  b\n- c",
    "* a\n* b\n- c\n+ d",
    "1. a\n2. b\n1) c",
    "7. seven\n8. eight",
    "text\n- list right after\n- more\ntext goes on",
    "text\n2. no list\ntext",
    "text\n1. a list\n2. more",
    "- a\n  - b\n    - c\n  - d\n- e",
    "-\n- x\n-",
    "- ```\n  code\n  ```\n- after",
    "1.  wide\n    still the item\n\n    and more",
    "```js\nlet x = `a`;\n\n  y\n```\nafter",
    "```\nnever closed\n\n# code",
    "````\n```\n````",
    "~~~ python\n```\n~~~",
    "> a\n> b\n\n> c",
    "> ```\n> x\n> ```\ny",
    "---\n***\n___\n- - -\n--",
    "title\n===\ntext",
    "| a | b |\n|---|---|\n| 1 | 2 | 3 |\n| 4 |\n\nafter",
    "a | b\n--|--\n1 | 2",
    "text\n| a |\n|---|\n| 1 |",
    "| a | b |\n|---|\nno table",
    "line one  \nline two\\\nline three",
    "<b>not bold</b> <script>alert(1)</script> <!-- no -->",
    "5 < 6 > 4 & 3",
    "a\r\nb\r\n\r\nc",
    "\ttab\n\n \n",
    "emoji 👩‍🚀 **fett** ünï*cödé* 强调**中文**。",
]  # fmt: skip


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    folder = files("nanochat.serving.page")
    page = browser.new_page()
    for name in ("dom.js", "markdown.js", "turns.js"):
        page.add_script_tag(content=(folder / name).read_text(encoding="utf-8"))
    page.evaluate(f"window.lower = 0; {SIMPLE}")
    yield page
    page.close()


@pytest.fixture(scope="module")
def oracle_page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.evaluate(f"window.lower = 1; {SIMPLE}")
    yield page
    page.close()


def reference() -> MarkdownIt:
    """CommonMark as the page means it: line breaks stay; no HTML, entities, code by indentation, link definitions."""
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    return parser.enable(["table", "strikethrough"]).disable(
        ["code", "entity", "reference", "html_block", "html_inline"]
    )


@pytest.mark.parametrize("text", CASES, ids=lambda text: text[:24])
def test_markdown_is_read_as_markdown_it_reads_it(page: Page, oracle_page: Page, text: str):
    expected = oracle_page.evaluate(
        "(html) => { document.body.innerHTML = html; return simple(document.body) }", reference().render(text)
    )
    assert page.evaluate(RENDER, text) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2*3*4 = 24 and 2 ** 3 ** 2", "<p>2*3*4 = 24 and 2 ** 3 ** 2</p>"),
        ("see https://a.b/c_(d)?x=1*2.", "<p>see <a href=https://a.b/c_(d)?x=1*2>https://a.b/c_(d)?x=1*2</a>.</p>"),
        ("(https://a.b)", "<p>(<a href=https://a.b/>https://a.b</a>)</p>"),
        ("![a cat](https://a.b/c.png)", "<p><a href=https://a.b/c.png>a cat</a></p>"),
        ("[x](javascript:alert(1)) [y](data:text/html,z) [z](/here)", None),
        ("[x](JAVASCRIPT:alert(1)) <javascript:alert(1)> [y]( vbscript:z)", None),
        ("[x]() and *a*b and a**b**c", "<p>[x]() and *a*b and a**b**c</p>"),
        ("&lt;b&gt; &amp;", None),
        ("<a href='https://a.b'>x</a>"[:8], None),
        ("    four spaces", "<p>four spaces</p>"),
    ],
)
def test_where_the_page_means_it_otherwise(page: Page, text: str, shown: str | None):
    escaped = f"<p>{text}</p>"
    assert page.evaluate(RENDER, text) == (shown or escaped)


@given(st.text(alphabet=" \n\t*_~`[]()<>!|-#>+1.:\\aß。👩http/&", max_size=80))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_breaks_it_and_no_letter_is_lost(page: Page, text: str):
    shown, tags = page.evaluate(
        """(text) => { const box = document.createElement("div");
        box.append(...markdownBlocks(text).map((block) => block.make()));
        box.querySelectorAll(".code-head").forEach((head) => head.remove());
        return [box.textContent, [...box.querySelectorAll("*")].map((found) => found.localName)] }""",
        text,
    )
    assert [tag for tag in tags if not TAGS.fullmatch(tag)] == []
    # What follows ``` is the name of a language, a row has no more cells than its head, a link hides where it leads.
    if not any(mark in text for mark in ("```", "~~~", "|", "](")):
        assert [shown.count(letter) for letter in "ß👩"] == [text.count(letter) for letter in "ß👩"]


@pytest.mark.parametrize("text", [DOCUMENT, *CASES[-8:]], ids=lambda text: text[:16])
def test_a_text_that_grows_in_pieces_ends_as_the_whole_one(page: Page, text: str):
    randomness = random.Random(1)
    cuts = sorted(randomness.randrange(len(text) + 1) for _ in range(12))
    grown, whole = page.evaluate(
        """([prefixes, text]) => {
        const turn = element("article", "", element("div", "body"));
        for (const prefix of prefixes) updateAnswer(turn, { parts: [{ type: "text", text: prefix }] });
        const fresh = element("article", "", element("div", "body"));
        updateAnswer(fresh, { parts: [{ type: "text", text }] });
        return [turn.innerHTML, fresh.innerHTML] }""",
        [[text[:cut] for cut in cuts] + [text], text],
    )
    assert grown == whole


@pytest.mark.parametrize(
    "text",
    [
        *(mark * 50_000 for mark in "*[`#\\h<"),
        *(marks * 15_000 for marks in ("*a ", "**a", "[a](", "`a``b", "> ", "- ", "1. ", "![", "_a_ ", "https://")),
        *(line * 25_000 for line in ("a\n", "- a\n", "a|b\n")),
        "# " + "#" * 50_000 + "x",
        " " * 50_000 + "x",
        "```" + " " * 50_000 + "`",
        "|" * 20_000 + "\n" + "|-" * 20_000,
        "|a" * 30 + "\n" + "|-" * 30 + "\n|" * 20_000,
        "a\\|" * 15_000 + "\n-|-",
        ("> " * 9 + "- " * 9 + "x\n") * 500,
    ],
    ids=lambda text: text[:10].strip(),
)
def test_a_hostile_text_makes_no_deep_or_endless_tree(page: Page, text: str):
    """What grows with the square of such a text would hold the page for minutes, and this test with it."""
    depth, count = page.evaluate(
        """(text) => { const box = document.createElement("div");
        box.append(...markdownBlocks(text).map((block) => block.make()));
        const depth = (node) => 1 + Math.max(0, ...[...node.children].map(depth));
        return [depth(box), box.querySelectorAll("*").length] }""",
        text,
    )
    assert depth <= 110
    assert count <= 10 * len(text)
