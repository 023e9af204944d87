"""Lesson 24: a server that speaks OpenAI's chat completions, with server-sent events by hand."""

import codecs
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Messages = list[dict[str, str]]


def whole_characters(pieces: Iterable[bytes]) -> Iterator[str]:
    """Texts of whole characters from bytes as they come: half a character waits for the rest."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


def event(body: dict) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def read_events(lines: Iterable[str]) -> Iterator[dict]:
    """What a stream of lines holds, up to [DONE]."""
    for line in lines:
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield json.loads(data)


def chunks(texts: Iterable[str], model: str) -> Iterator[str]:
    """The events of one answer: who speaks, each text, why it ends, [DONE]."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def chunk(delta: dict, reason: str | None) -> str:
        return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    yield chunk({"role": "assistant", "content": ""}, None)
    for text in texts:
        yield chunk({"content": text}, None)
    yield chunk({}, "stop")
    yield "data: [DONE]\n\n"


def mistake(body: object) -> str | None:
    """What is wrong with a request, in one sentence; None where nothing is."""
    if not isinstance(body, dict):
        return "the body must be a JSON object"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return "messages must be a list with at least one message"
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"message {place + 1} needs a role and a content that is a text"
        if message.get("role") not in ("system", "user", "assistant"):
            return f"message {place + 1} has the role {message.get('role')!r}; allowed are system, user, assistant"
    return None


def serve(answer: Callable[[Messages], Iterable[str]], model: str = "mine", port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, at work in a thread; port 0 takes a free one (`server.server_port`)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self.refuse(404, f"no such path: {self.path}")
                return
            self.reply(200, {"object": "list", "data": [{"id": model, "object": "model", "created": 0}]})

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/v1/chat/completions":
                self.refuse(404, f"no such path: {self.path}")
                return
            try:
                body = json.loads(data)
            except ValueError:
                self.refuse(400, "the body is not valid JSON")
                return
            if wrong := mistake(body):
                self.refuse(400, wrong)
            elif body.get("stream"):
                self.stream(chunks(answer(body["messages"]), model))
            else:
                said = {"role": "assistant", "content": "".join(answer(body["messages"]))}
                choice = {"index": 0, "message": said, "finish_reason": "stop"}
                head = {"id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()), "model": model}
                self.reply(200, {**head, "choices": [choice]})

        def stream(self, events: Iterator[str]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with suppress(OSError):  # the client has gone, and with it the reason to go on
                for one in events:
                    self.wfile.write(one.encode())

        def reply(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status: int, message: str) -> None:
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            self.reply(status, {"error": error})

        def log_message(self, format: str, *args: object) -> None:
            pass  # quiet

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
