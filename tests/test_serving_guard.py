"""The gate: key, sizes, rates, headers, and connections that are no requests."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from fake_chat import FakeEngine, FakeTokenizer, pool_of
from fastapi.testclient import TestClient

from nanochat.serving.app import create_app
from nanochat.serving.errors import ApiError
from nanochat.serving.guard import MOST_CLIENTS, Clients, name_of_client
from nanochat.serving.pool import Pool
from nanochat.serving.protocol import Limits
from nanochat.serving.server import Server

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
LONG_SECONDS = 120  # a test that would hang fails after this


@contextmanager
def client(pool: Pool | None = None, **settings: object) -> Iterator[TestClient]:
    with TestClient(create_app(pool or pool_of(), FakeTokenizer(), **settings), raise_server_exceptions=False) as web:
        yield web


def test_with_a_key_only_the_page_and_health_are_open():
    with client(api_key="söcret") as web:
        assert [web.get(path).status_code for path in ("/", "/health", "/ready")] == [200, 200, 200]
        for path in ("/v1/models", "/stats", "/metrics", "/openapi.json", "/nowhere"):
            assert web.get(path).status_code == 401
        for header in ({}, {"Authorization": "söcret".encode()}, {"Authorization": b"Bearer secret"}):
            refused = web.post("/v1/chat/completions", json=HELLO, headers=header)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert "söcret" not in refused.text
        given = {"Authorization": "Bearer söcret".encode()}
        assert web.post("/v1/chat/completions", json=HELLO, headers=given).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    import hmac

    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(given: bytes, wanted: bytes) -> bool:
        seen.append((len(given), len(wanted)))
        return compare(given, wanted)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    with client(api_key="secret") as web:
        for key in ("s", "secret", "x" * 1000):
            web.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert seen == [(32, 32)] * 3, "neither length nor beginning of the key shows"


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_above_the_limit_is_refused_before_it_is_parsed(in_pieces: bool):
    body = b"{" * 3000
    with client(limits=Limits(max_body_bytes=2000)) as web:
        content = (body[i : i + 500] for i in range(0, len(body), 500)) if in_pieces else body
        response = web.post("/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert web.post("/chat/completions", json=HELLO).status_code == 200
    assert response.status_code == 413
    assert response.json()["error"]["message"] == "the request is larger than 2000 bytes"


def test_one_client_may_not_ask_for_too_much_at_once():
    go = threading.Event()
    pool = pool_of(FakeEngine(before_step=lambda: go.wait(LONG_SECONDS)))
    with client(pool, limits=Limits(requests_at_once=1)) as web:
        first = threading.Thread(target=web.post, args=("/v1/chat/completions",), kwargs={"json": HELLO})
        first.start()
        while web.get("/health").json()["running"] == 0:
            threading.Event().wait(0.01)
        refused = web.post("/v1/chat/completions", json=HELLO)
        go.set()
        first.join(LONG_SECONDS)
        assert web.post("/v1/chat/completions", json=HELLO).status_code == 200
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "1 of your requests are under way" in refused.json()["error"]["message"]


def test_the_server_as_a_whole_takes_only_so_many_requests():
    go = threading.Event()
    pool = pool_of(FakeEngine(before_step=lambda: go.wait(LONG_SECONDS)))
    with client(pool, limits=Limits(max_requests=1)) as web:
        first = threading.Thread(target=web.post, args=("/v1/chat/completions",), kwargs={"json": HELLO})
        first.start()
        while web.get("/health").json()["running"] == 0:
            threading.Event().wait(0.01)
        refused = web.post("/tokenize", json={"prompt": "a"})
        go.set()
        first.join(LONG_SECONDS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_busy")


def test_a_bucket_of_requests_fills_with_time_and_says_how_long_to_wait():
    now = 0.0
    clients = Clients(per_minute=12, at_once=0, now=lambda: now)
    for _ in range(2):
        clients.enter("a")
    with pytest.raises(ApiError) as caught:
        clients.enter("a")
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "5")
    clients.enter("b")
    now = 4.9
    with pytest.raises(ApiError):
        clients.enter("a")
    now = 5.1
    clients.enter("a")


def test_clients_are_forgotten_but_not_those_that_ask():
    clients = Clients(per_minute=60, at_once=1)
    clients.enter("busy")
    for number in range(MOST_CLIENTS + 50):
        clients.enter(str(number))
        clients.leave(str(number))
    assert len(clients._known) == MOST_CLIENTS
    with pytest.raises(ApiError):
        clients.enter("busy")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_an_address_or_a_network(host: str, name: str):
    assert name_of_client({"client": (host, 1)}) == name


def test_every_response_has_safe_headers_and_none_allows_another_site():
    with client() as web:
        for response in (web.get("/"), web.get("/health"), web.get("/no"), web.post("/chat/completions", json=HELLO)):
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["cache-control"] in ("no-store", "no-cache")
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for response in (web.options("/v1/chat/completions", headers=asked), web.get("/health", headers=asked)):
            assert "access-control-allow-origin" not in response.headers


def test_another_site_is_allowed_when_asked_for_also_to_read_refusals():
    with client(allow_origins=["https://good.example"], api_key="k") as web:
        asked = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type"
        allowed = web.options("/v1/chat/completions", headers=asked)
        refused = web.post("/v1/chat/completions", json=HELLO, headers={"Origin": "https://good.example"})
        evil = web.options("/v1/chat/completions", headers={**asked, "Origin": "https://evil.example"})
    assert (allowed.status_code, refused.status_code, evil.status_code) == (200, 401, 400)
    for response in (allowed, refused):
        assert response.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in evil.headers


def test_a_failure_of_ours_shows_no_traceback(monkeypatch: pytest.MonkeyPatch):
    with client() as web:
        monkeypatch.setattr(FakeTokenizer, "encode", lambda self, text: 1 / 0)
        response = web.post("/tokenize", json={"prompt": "a"})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the server failed; its log says why"


# --- a real server ----------------------------------------------------------------------------------------------------


@contextmanager
def served(pool: Pool, limits: Limits, drain_seconds: float = 5.0) -> Iterator[tuple[int, Server]]:
    """The server that the script runs, in a thread; its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(pool, FakeTokenizer(), limits=limits)
    server = Server(app, pool, limits.body_seconds, drain_seconds, proxies=[])
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(LONG_SECONDS)
        assert not thread.is_alive()


def post(body: bytes, length: int | None = None) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_connections_that_never_become_requests_are_closed_and_slow_bodies_refused():
    whole = json.dumps(HELLO).encode()
    with served(pool_of(), Limits(body_seconds=0.3)) as (port, server):
        connections = [socket.create_connection(("127.0.0.1", port), timeout=LONG_SECONDS) for _ in range(4)]
        silent, half_head, half_body, good = connections
        half_head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
        half_body.sendall(post(whole[:5], len(whole)))
        good.sendall(post(whole))
        assert b"200 OK" in good.recv(4096)
        assert b"408" in half_body.recv(4096)
        for connection in (silent, half_head):
            with suppress(ConnectionResetError):
                assert connection.recv(10) == b"", "closed without a word"
        while server.server_state.connections:
            threading.Event().wait(0.01)
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    "rubbish", [b"\x00" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"POST / HTTP/9\r\n\r\n", b"A" * 200_000]
)
def test_what_is_no_http_is_refused_and_the_next_one_served(rubbish: bytes):
    with served(pool_of(), Limits()) as (port, _):
        connection = socket.create_connection(("127.0.0.1", port), timeout=LONG_SECONDS)
        with connection, suppress(ConnectionResetError, BrokenPipeError):  # it would not even hear the end
            connection.sendall(rubbish)
            assert b" 400 " in connection.recv(4096)
        response = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=HELLO, timeout=LONG_SECONDS)
        assert response.status_code == 200
