"""A server of the page that answers as a test tells it, and what a person does with the page.

It speaks what the real server speaks (tests/test_page_serving.py holds the two together), and can besides be slow,
busy, wrong and gone.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from playwright.sync_api import Locator, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nanochat.serving.page import build_page

LONG_SECONDS = 30  # a test that would hang fails after this
PHONE, DESK = {"width": 390, "height": 780}, {"width": 1280, "height": 800}

DIE = object()  # a step of an answer: the connection breaks
WAIT = object()  # a step of an answer: until the test lets `go` on
Step = tuple[str, str] | bytes | object

ANSWERS: dict[str, list[Step]] = {
    "What is the capital of France?": [("text", word) for word in ("The ", "capital ", "of ", "France ", "is Paris.")],
    "What is 137 * 46?": [
        ("text", "Let me work that out.\n"),
        ("python", "137*"),
        ("python", "46"),
        ("python_output", "6302"),
        ("text", "\n137 times 46 is 6302."),
    ],
}


@dataclass
class Script:
    """What the server does for one test. `answer` gives the steps for a question; `refusals` come first."""

    answer: Callable[[str], list[Step]] = lambda question: ANSWERS.get(question, [("text", f"You said: {question}")])
    refusals: list[Response] = field(default_factory=list)
    finish_reason: str = "stop"
    key: str = ""
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    requests: list[dict] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    defaults: dict[str, float] = field(default_factory=dict)

    @property
    def said(self) -> list[tuple[str, object]]:
        """The messages of the last request, as (role, content)."""
        return [(message["role"], message["content"]) for message in self.requests[-1]["messages"]]


def refusal(status: int, message: str, **headers: str) -> Response:
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers={name.replace("_", "-"): v for name, v in headers.items()})


async def stream(script: Script, question: str) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""

    def event(choices: list, **more: object) -> bytes:
        return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n".encode()

    def delta(content: dict, reason: str | None = None) -> bytes:
        return event([{"index": 0, "delta": content, "finish_reason": reason}])

    pieces = 0
    try:
        yield delta({"role": "assistant", "content": ""})
        for step in script.answer(question):
            if step is WAIT:
                while not script.go.acquire(blocking=False):
                    await asyncio.sleep(0.005)
            elif step is DIE:
                raise ConnectionError("as the test wants it")
            elif isinstance(step, bytes):
                yield step
            else:
                kind, text = step
                pieces += 1
                yield delta({"content": text} if kind == "text" else {"tool": {"type": kind, "text": text}})
        yield b": still there\n\n"
        yield delta({}, script.finish_reason)
        yield event([], usage={"prompt_tokens": 9, "completion_tokens": pieces, "total_tokens": 9 + pieces})
        yield b"data: [DONE]\n\n"
    finally:
        script.closed.set()


class PageServer:
    """One server; each test gives it a script of its own."""

    def __init__(self) -> None:
        self.script = Script()
        self.url = ""

    def app(self) -> Starlette:
        """The routes that the page uses."""
        page, policy = build_page()

        def index(_: Request) -> Response:
            return HTMLResponse(page, headers={"Content-Security-Policy": policy})

        async def models(request: Request) -> Response:
            if self.script.key and request.headers.get("authorization") != f"Bearer {self.script.key}":
                return refusal(401, "this server needs a key")
            return JSONResponse({"data": [{"id": "nanochat-d4-sft", "defaults": self.script.defaults}]})

        async def chat(request: Request) -> Response:
            script = self.script
            if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
                return refusal(401, "this server needs a key")
            body = await request.json()
            script.requests.append(body)
            if script.refusals:
                return script.refusals.pop(0)
            question = body["messages"][-1]["content"]
            return StreamingResponse(stream(script, question), media_type="text/event-stream")

        routes = [Route("/", index), Route("/v1/models", models)]
        return Starlette(routes=[*routes, Route("/v1/chat/completions", chat, methods=["POST"])])


@contextmanager
def running(app: Starlette, port: int = 0) -> Iterator[str]:
    """The app behind uvicorn, on this port or on one that was free; its address."""
    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def ask(page: Page, question: str) -> None:
    """Type a question and send it."""
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def finished(page: Page) -> None:
    """Wait for the end of the answer."""
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")


def asked(page: Page, question: str) -> None:
    """Ask and wait."""
    ask(page, question)
    expect(page.locator(".user").last).to_contain_text(question)
    finished(page)


def answer(page: Page) -> Locator:
    """The last answer."""
    return page.locator(".assistant").last


def becomes(page: Page, expression: str) -> None:
    """Wait until a JavaScript expression or function is true. Playwright's own `wait_for_function` asks a second time
    by `eval` inside of the page, which the page's rules forbid."""
    deadline = time.monotonic() + LONG_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} is not true after {LONG_SECONDS} s"
        time.sleep(0.02)
