"""The server's mistakes and the clients': told in OpenAI's shape, with the field's name, and nothing secret."""

import json
import threading
from collections.abc import Callable, Iterator

import pytest
from fake_chat import FakeEngine, WorkerDeath
from fastapi.testclient import TestClient
from serving_client import HELLO, ask, client, refused

from nanochat.conversation import Part

LONG_SECONDS = 30  # a test that would hang fails after this


@pytest.fixture(scope="module")
def web() -> Iterator[TestClient]:
    """A server that only answers: for tests that change nothing in it."""
    with client() as test_client:
        yield test_client


def wait_until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(LONG_SECONDS * 100):
        if true():
            return
        pause.wait(0.01)
    pytest.fail("it never came true")


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "messages", "field required"),
        ({"messages": "hello"}, "messages", "valid list"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "x", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text or a list of text parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "text parts"),
        ({"messages": [{"role": "user"}]}, "messages.0", "content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "python", "text": ""}]}]},
            "messages.0",
            "parts of a tool",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0", "add a user message"),
        ({"messages": HELLO * 2}, "messages.1", "role is 'user', expected 'assistant'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0", "role is 'assistant', expected 'user'"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages.1", "role is 'tool', expected"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, "messages.1", "at the front only"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages.1", "must be the user's"),
        ({"messages": HELLO, "temperature": "1"}, "temperature", "number"),
        ({"messages": HELLO, "temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"messages": HELLO, "top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"messages": HELLO, "top_p": 0}, "top_p", "greater than 0"),
        ({"messages": HELLO, "min_p": 1.5}, "min_p", "less than or equal to 1"),
        ({"messages": HELLO, "repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"messages": HELLO, "presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens", "allowed are 1 to 4096"),
        ({"messages": HELLO, "max_tokens": 5000}, "max_tokens", "allowed are 1 to 4096"),
        ({"messages": HELLO, "max_completion_tokens": 5000}, "max_completion_tokens", "allowed are 1 to 4096"),
        ({"messages": HELLO, "stream": "yes"}, "stream", "boolean"),
        ({"messages": HELLO, "seed": 10**30}, "seed", "less than"),
        ({"messages": HELLO, "n": 0}, "n", "greater than or equal to 1"),
        ({"messages": HELLO, "n": 17}, "n", "at most 16"),
        ({"messages": HELLO, "stop": [""]}, "stop", "none empty"),
        ({"messages": HELLO, "stop": 5}, "stop", "a text or a list of texts"),
        ({"messages": HELLO, "stop": ["a"] * 17}, "stop", "at most 16 texts"),
        ({"messages": HELLO, "logit_bias": {"a": 1}}, "logit_bias.a", "match pattern"),
        ({"messages": HELLO, "logit_bias": {"9999999": 1}}, "logit_bias", "ids are below"),
        ({"messages": HELLO, "stop_token_ids": [9999999]}, "stop_token_ids", "ids are below"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"messages": HELLO * 501}, "messages", "501 messages in the request, at most 500"),
        ({"messages": [{"role": "user", "content": "x" * 64_001}]}, "messages", "64001 characters in the request"),
    ],
)
def test_a_wrong_field_of_a_chat_is_refused_with_its_name(web: TestClient, body: dict, param: str, says: str):
    error = refused(web, "/v1/chat/completions", body)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


def test_a_call_of_an_unknown_tool_or_without_an_answer_is_refused(web: TestClient):
    def calling(name: str) -> dict:
        return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": "{}"}}]}

    path = "/v1/chat/completions"
    error = refused(web, path, {"messages": [*HELLO, calling("weather"), {"role": "tool", "content": "x"}]})
    assert "the tool 'weather' is not known here" in error["message"]
    error = refused(web, path, {"messages": [*HELLO, calling("python"), *HELLO]})
    assert "role is 'user', expected 'tool'" in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "field required"),
        ({"prompt": 5}, "prompt", "a text, a list of texts, a list of token ids"),
        ({"prompt": ["a", 5]}, "prompt", "a text, a list of texts, a list of token ids"),
        ({"prompt": []}, "prompt", "it needs a text or token ids"),
        ({"prompt": [[]]}, "prompt", "none empty"),
        ({"prompt": [[-1]]}, "prompt", "a list of token ids"),
        ({"prompt": [[9999999]]}, "prompt", "ids are below"),
        ({"prompt": ["a"] * 129}, "prompt", "129 prompts in the request, at most 128"),
        ({"prompt": ["x" * 64_001]}, "prompt", "64001 characters"),
        ({"prompt": "x" * 1000}, "prompt", "1001 tokens and the model reads at most 999"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "best_of": 2}, "best_of", "not supported"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "1 to 4096 (0 with echo)"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": "a", "echo": 1}, "echo", "boolean"),
    ],
)
def test_a_wrong_field_of_a_completion_is_refused_with_its_name(web: TestClient, body: dict, param: str, says: str):
    error = refused(web, "/v1/completions", body)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\xff"', b"[" * 100_000, b"null", b"\x00", b'{"messages": NaN}'])
def test_rubbish_is_a_clients_mistake(web: TestClient, body: bytes):
    for path in ("/chat/completions", "/v1/completions", "/tokenize"):
        response = web.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["message"]


def test_half_a_surrogate_pair_is_refused_before_it_breaks_an_encoder(web: TestClient):
    bodies = {
        "/v1/chat/completions": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "messages.0.content"),
        "/v1/completions": (b'{"prompt": ["\\ud83d"]}', "prompt"),
        "/tokenize": (b'{"prompt": "\\ud83d"}', "prompt"),
    }
    for path, (body, param) in bodies.items():
        response = web.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert "half a surrogate pair at character 0" in response.json()["error"]["message"]


def test_another_site_cannot_post_a_form_to_the_model(web: TestClient):
    body = json.dumps({"messages": HELLO})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = web.post("/chat/completions", content=body, headers={"Content-Type": kind})
        assert response.status_code == 400
        assert "application/json" in response.json()["error"]["message"]


def test_unknown_paths_methods_and_models_answer_in_json(web: TestClient):
    missing, wrong = web.get("/v1/nothing"), web.get("/v1/chat/completions")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert "/v1/nothing" in missing.json()["error"]["message"]
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    for path, body in (("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "a"})):
        error = refused(web, f"/v1/{path}", {**body, "model": "gpt-4"}, status=404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert web.get("/v1/models/gpt-4").status_code == 404


def test_an_engine_that_dies_tells_the_client_nothing_secret_and_its_successor_serves_the_next():
    engine = FakeEngine(answer=lambda _: iter([Part("text", "half an "), Part("text", "answer")]))
    steps = iter(range(100))

    def die_at_the_second_step() -> None:
        if next(steps) in (1, 3):
            raise WorkerDeath("secret path /srv/x")

    engine.before_step = die_at_the_second_step
    with client(engine) as web:
        streamed = web.post("/chat/completions", json={"messages": HELLO}).text
        wait_until(lambda: web.get("/ready").status_code == 200)
        whole = web.post("/v1/chat/completions", json={"messages": HELLO})
        wait_until(lambda: web.get("/ready").status_code == 200)
        assert ask(web)["choices"][0]["message"]["content"] == "half an answer"
        assert web.get("/stats").json()["workers"][0]["restarts"] == 2
    last = json.loads(streamed.strip().split("\n\n")[-1].removeprefix("data: "))
    assert "half an " in streamed
    assert last["error"]["type"] == "server_error"
    assert "[DONE]" not in streamed
    assert whole.status_code == 500
    assert "secret" not in streamed + whole.text
