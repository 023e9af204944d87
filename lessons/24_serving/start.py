"""Lesson 24: a server that speaks OpenAI's chat completions, with server-sent events by hand.

The check calls these by name: whole_characters, event, read_events, chunks, mistake, serve. Python's own http.server is
enough.
"""

from collections.abc import Callable, Iterable, Iterator
from http.server import ThreadingHTTPServer

Messages = list[dict[str, str]]


def whole_characters(pieces: Iterable[bytes]) -> Iterator[str]:
    """Texts of whole characters from bytes as they come: half a character waits for the rest.

    What can never become a character is U+FFFD; no text is empty.
    """
    raise NotImplementedError("lesson 24: whole_characters is yours to write")


def event(body: dict) -> str:
    """One server-sent event: `data: `, the body as JSON on one line, and an empty line."""
    raise NotImplementedError("lesson 24: event is yours to write")


def read_events(lines: Iterable[str]) -> Iterator[dict]:
    """What a stream of lines holds, up to `data: [DONE]`; other lines (empty, comments) are passed over."""
    raise NotImplementedError("lesson 24: read_events is yours to write")


def chunks(texts: Iterable[str], model: str) -> Iterator[str]:
    """The events of one answer, each as soon as its text is there: who speaks, each text, why it ends, [DONE].

    A chunk is {"id", "object": "chat.completion.chunk", "created", "model", "choices": [{"index": 0, "delta",
    "finish_reason"}]}. The first delta has role assistant and an empty content, the last is {} with the reason "stop".
    """
    raise NotImplementedError("lesson 24: chunks is yours to write")


def mistake(body: object) -> str | None:
    """What is wrong with a request, in one sentence; None where nothing is.

    It is an object with `messages`, a list that is not empty, of objects with a role (system, user, assistant) and a
    content that is a text.
    """
    raise NotImplementedError("lesson 24: mistake is yours to write")


def serve(answer: Callable[[Messages], Iterable[str]], model: str = "mine", port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, already at work in a thread; port 0 takes a free one (`server.server_port`).

    GET /v1/models has {"object": "list", "data": [{"id": model, "object": "model", ...}]}. POST /v1/chat/completions
    streams chunks where the body says `"stream": true`, each sent at once; else it answers whole: a "chat.completion",
    like a chunk, but with a `message` (role and content) in place of the delta. When the client has gone, `answer` is
    asked for nothing more. A mistake is 400, an unknown path 404, with {"error": {"message", "type", "param", "code"}}.
    """
    raise NotImplementedError("lesson 24: serve is yours to write")
