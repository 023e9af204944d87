"""FastAPI's test client of a server whose workers are threads over fake engines, and what nearly every test asks."""

from collections.abc import Iterator
from contextlib import contextmanager

from fake_chat import FakeEngine, FakeTokenizer, pool_of
from fastapi.testclient import TestClient

from nanochat.serving.app import create_app

HELLO = [{"role": "user", "content": "hello"}]


@contextmanager
def client(*engines: FakeEngine, **settings: object) -> Iterator[TestClient]:
    """A server over these engines, with these settings of the application."""
    pool = settings.pop("pool", None) or pool_of(*engines, max_waiting=settings.pop("max_waiting", 32))
    with TestClient(create_app(pool, FakeTokenizer(), **settings), raise_server_exceptions=False) as test_client:
        yield test_client


def ask(web: TestClient, messages: object = HELLO, **fields: object) -> dict:
    """The whole answer of a chat."""
    response = web.post("/v1/chat/completions", json={"messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(web: TestClient, path: str, body: object, status: int = 400) -> dict:
    """The error of a request that is refused with this status."""
    response = web.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
