"""The pool as clients meet it over HTTP: a full queue, a client that goes away, answers that take long."""

import json
import socket
import threading

import httpx
import pytest
from fake_chat import FakeEngine, FakeTokenizer, live_server, pool_of, talker, wait
from fastapi.testclient import TestClient
from serving_client import HELLO

from nanochat.serving import responses
from nanochat.serving.app import create_app
from nanochat.serving.pool import Pool
from nanochat.serving.protocol import Limits

LONG_SECONDS = 120  # a test that would hang fails after this


def app_of(pool: Pool, **limits: float):
    return create_app(pool, FakeTokenizer(), limits=Limits(**{"max_tokens": 10**8, **limits}))


def test_a_full_queue_answers_503_and_says_when_to_come_again():
    body = {"messages": HELLO, "n": 4, "max_tokens": 10**8}
    with (
        live_server(app_of(pool_of(talker(), max_waiting=0))) as url,
        httpx.Client(base_url=url, timeout=LONG_SECONDS) as web,
        web.stream("POST", "/chat/completions", json=body) as running,
    ):
        answers = running.iter_bytes()  # held: a generator that is dropped closes its connection
        next(answers)
        refused = web.post("/v1/chat/completions", json={"messages": HELLO})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "server_busy"
    assert "answers under way: 4" in refused.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(stream: bool):
    engine = talker()
    body = json.dumps({"messages": HELLO, "stream": stream, "max_tokens": 10**8}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
    head += f"\r\nContent-Length: {len(body)}"
    with live_server(app_of(pool_of(engine))) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            if stream:
                assert b"200 OK" in connection.recv(4096)
            assert wait(lambda: len(engine.rows) == 1)
        assert wait(lambda: not engine.rows), "the engine went on generating for nobody"
        assert wait(lambda: httpx.get(f"{url}/health", timeout=LONG_SECONDS).json()["running"] == 0)
    assert engine.cancelled == [0]


def test_an_answer_that_takes_too_long_is_ended_with_an_error():
    with TestClient(app_of(pool_of(talker()), request_seconds=0.2)) as web:
        body = {"messages": HELLO, "max_tokens": 10**8}
        whole = web.post("/v1/chat/completions", json=body)
        streamed = web.post("/chat/completions", json=body).text
        assert web.get("/health").json()["running"] == 0
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "timeout")
    assert "longer than 0.2 seconds" in streamed
    assert "[DONE]" not in streamed


def test_a_stream_that_waits_is_kept_alive_by_comments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(responses, "KEEP_ALIVE_SECONDS", 0.05)
    go = threading.Event()
    engine = FakeEngine(before_step=lambda: go.wait(LONG_SECONDS))
    with (
        live_server(app_of(pool_of(engine))) as url,
        httpx.stream("POST", f"{url}/chat/completions", json={"messages": HELLO}) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == ": still here"
        go.set()
        assert next(line for line in lines if line.startswith("data: ")).startswith('data: {"id":"chatcmpl-')
