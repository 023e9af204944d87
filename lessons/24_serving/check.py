"""Checks of lesson 24, against httpx as a plain client and OpenAI's own client."""

import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from lessons.learner import load

mine = load(24)
PIECES = ["Grüße", ", 🙂", " \n", 'she said "no"']
ASK = [{"role": "user", "content": "Hello"}]


def answer(messages: list[dict[str, str]]) -> Iterator[str]:
    yield from PIECES
    yield f" You said {messages[-1]['content']}."


SAID = "".join(PIECES) + " You said Hello."


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = mine.serve(answer, "mine")
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_half_a_character_waits() -> None:
    data = "é🙂x".encode()
    found = list(mine.whole_characters(data[i : i + 1] for i in range(len(data))))
    assert found == ["é", "🙂", "x"], f"byte by byte it gave {found}"
    found = list(mine.whole_characters([b"a", b"", "🙂".encode()[:2]]))
    assert "".join(found) == "a\ufffd", f"a stream that ends in half a character gave {found}"
    assert "" not in found, "an empty text says nothing: leave it out"
    found = "".join(mine.whole_characters([b"a\xff", b"b"]))
    assert found == "a\ufffdb", f"a byte that is no character's gave {found!r}, expected a\ufffdb"


def test_an_event_is_one_line_and_an_empty_one() -> None:
    found = mine.event({"text": "two\nlines, 🙂"})
    assert found.startswith("data: "), f"an event begins with 'data: ', yours is {found!r}"
    assert found.endswith("\n\n"), f"an event ends with an empty line, yours is {found!r}"
    assert found.count("\n") == 2, "a line break inside the data would end the event: JSON spells it \\n"
    assert json.loads(found[6:]) == {"text": "two\nlines, 🙂"}, f"what comes back is {found!r}"


def test_events_are_read_up_to_the_end() -> None:
    lines = [": a comment", "", 'data: {"a": 1}', "", 'data:{"a": 2}', "", "data: [DONE]", "", 'data: {"a": 3}']
    found = list(mine.read_events(lines))
    assert found == [{"a": 1}, {"a": 2}], f"read_events gave {found}"


def test_chunks_come_one_by_one() -> None:
    asked: list[int] = []

    def slowly() -> Iterator[str]:
        for number in range(3):
            asked.append(number)
            yield str(number)

    events = mine.chunks(slowly(), "mine")
    next(events)
    next(events)
    assert asked == [0], f"two events were read, and the model was asked for texts {asked}: do not collect them first"


def test_chunks_have_openais_shape() -> None:
    events = list(mine.chunks(PIECES, "mine"))
    assert events[-1] == "data: [DONE]\n\n", f"the last event is {events[-1]!r}"
    bodies = [json.loads(one[6:]) for one in events[:-1]]
    for body in bodies:
        assert body["object"] == "chat.completion.chunk", f"object is {body['object']!r}"
        assert body["model"] == "mine", f"model is {body['model']!r}"
    deltas = [body["choices"][0]["delta"] for body in bodies]
    assert deltas[0].get("role") == "assistant", f"the first delta is {deltas[0]}"
    assert [delta.get("content") for delta in deltas[1:-1]] == PIECES, f"the deltas are {deltas}"
    reasons = [body["choices"][0]["finish_reason"] for body in bodies]
    assert reasons == [None] * (len(PIECES) + 1) + ["stop"], f"finish reasons are {reasons}"


def test_mistakes_are_told() -> None:
    assert mine.mistake({"messages": ASK}) is None, f"this is right: {mine.mistake({'messages': ASK})!r}"
    for body in ([], {}, {"messages": []}, {"messages": "Hello"}, {"messages": [{"role": "user"}]},
                 {"messages": [{"role": "robot", "content": "x"}]}, {"messages": [7]},
                 {"messages": [{"role": "user", "content": 7}]}):  # fmt: skip
        assert isinstance(mine.mistake(body), str), f"{body} was not refused"


def test_a_whole_answer(address: str) -> None:
    found = httpx.post(f"{address}/chat/completions", json={"messages": ASK})
    assert found.status_code == 200, f"status {found.status_code}: {found.text}"
    assert found.json()["choices"][0]["message"] == {"role": "assistant", "content": SAID}, found.text


def test_a_streamed_answer(address: str) -> None:
    with httpx.stream("POST", f"{address}/chat/completions", json={"messages": ASK, "stream": True}) as found:
        kind = found.headers.get("content-type", "")
        assert kind.startswith("text/event-stream"), f"the content type is {kind!r}"
        bodies = list(mine.read_events(found.iter_lines()))
    said = "".join(body["choices"][0]["delta"].get("content", "") for body in bodies)
    assert said == SAID, f"streamed was {said!r}"


def test_the_model_is_listed(address: str) -> None:
    found = httpx.get(f"{address}/models")
    assert found.status_code == 200, f"GET /v1/models: status {found.status_code}, expected 200"
    body = found.json()
    assert body.get("object") == "list", f"GET /v1/models gave {body}"
    assert [(one["id"], one["object"]) for one in body["data"]] == [("mine", "model")], f"GET /v1/models gave {body}"


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "chat/completions", "{", 400),
        ("POST", "chat/completions", "{}", 400),
        ("POST", "nothing", "{}", 404),
        ("GET", "nothing", None, 404),
    ],
)
def test_refusals_have_openais_shape(address: str, method: str, path: str, content: str | None, status: int) -> None:
    found = httpx.request(method, f"{address}/{path}", content=content)
    sent = f"{method} /v1/{path}" + (f" with the body {content}" if content else "")
    assert found.status_code == status, f"{sent}: status {found.status_code}, expected {status}"
    error = found.json()["error"]
    assert isinstance(error["message"], str), f"the error is {error}"
    assert error["message"], "the error's message is empty"


def test_a_client_that_goes_away_stops_the_model() -> None:
    most, made, gone, ended = 20_000, [], threading.Event(), threading.Event()

    def talking(messages: list[dict[str, str]]) -> Iterator[str]:
        try:
            yield "first"
            gone.wait(2)
            for number in range(most):
                made.append(number)
                yield "and more, " * 20
        finally:
            ended.set()

    server = mine.serve(talking, "mine")
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    with httpx.stream("POST", url, json={"messages": ASK, "stream": True}, timeout=30) as found:
        said = (body["choices"][0]["delta"].get("content") for body in mine.read_events(found.iter_lines()))
        assert next(text for text in said if text) == "first"
        early = not made
    gone.set()
    assert ended.wait(15), "the client has gone, and after 15 s the model is still asked for texts"
    server.shutdown()
    server.server_close()
    assert early, "the first text came when the model had made more: write each event as it comes"
    assert len(made) < most, "the client has gone, and the model was asked for all texts: let a failing write end it"


def test_two_clients_are_answered_at_once() -> None:
    both = threading.Barrier(2, timeout=15)

    def waiting(messages: list[dict[str, str]]) -> Iterator[str]:
        both.wait()  # goes on when the other request is here too
        yield "both"

    server = mine.serve(waiting, "mine")
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    found: list[str] = []
    clients = [threading.Thread(target=lambda: found.append(httpx.post(url, json={"messages": ASK}, timeout=30).text))
               for _ in range(2)]  # fmt: skip
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    server.shutdown()
    server.server_close()
    assert sum("both" in text for text in found) == 2, "the second client waited for the first: one thread a request"


def test_openais_client_is_served(address: str) -> None:
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: uv pip install openai")
    client = openai.OpenAI(base_url=address, api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mine"]
    whole = client.chat.completions.create(model="mine", messages=ASK)
    assert whole.choices[0].message.content == SAID
    stream = client.chat.completions.create(model="mine", messages=ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == SAID
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="mine", messages=[])
