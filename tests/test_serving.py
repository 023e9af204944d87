"""The server: what clients see, by FastAPI's test client and by the real openai client against a live server."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fake_chat import FakeEngine, FakeTokenizer, live_server, save_random_checkpoint
from fastapi.testclient import TestClient

from nanochat.command import UserError
from nanochat.conversation import Part
from nanochat.serving.app import build_page, create_app
from nanochat.serving.pool import Pool
from nanochat.serving.protocol import Defaults, Limits
from scripts import chat_web

HELLO = [{"role": "user", "content": "hello"}]
LONG_SECONDS = 30  # a test that would hang fails after this


@contextmanager
def client(*engines: FakeEngine, **settings: object) -> Iterator[TestClient]:
    max_waiting = settings.pop("max_waiting", 32)
    pool = Pool(engines or [FakeEngine()], max_waiting=max_waiting)
    with TestClient(create_app(pool, FakeTokenizer(), **settings), raise_server_exceptions=False) as test_client:
        yield test_client


def chunks(text: str) -> list[dict]:
    """The JSON of every event; checks the frame of the stream."""
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event[len("data: ") :]) for event in events[:-1]]


def endless(_: str) -> Iterator[Part]:
    while True:
        yield Part("text", "x")


def test_without_the_prefix_an_answer_streams_in_openais_chunks():
    with client() as web:
        response = web.post("/chat/completions", json={"messages": [{"role": "user", "content": "Who are you?"}]})
    assert response.headers["content-type"].startswith("text/event-stream")
    got = chunks(response.text)
    assert len({chunk["id"] for chunk in got}) == 1
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None] * (len(got) - 1) + ["stop"]
    assert got[-1]["choices"][0]["delta"] == {}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in got).startswith("I am nanochat,")


def test_tool_pieces_stand_beside_the_content():
    question = {"messages": [{"role": "user", "content": "What is 137 * 46?"}]}
    with client() as web:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks(web.post("/chat/completions", json=question).text)]
        whole = web.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]
    tool = [{"type": "python", "text": "137*46"}, {"type": "python_output", "text": "6302"}]
    assert [delta["tool"] for delta in deltas if "tool" in delta] == tool
    assert not [delta for delta in deltas if "tool" in delta and "content" in delta]
    assert whole == {
        "role": "assistant",
        "content": "Let me work that out.\n137 times 46 is 6302.",
        "tool": tool,
    }


@pytest.mark.parametrize(
    ("path", "stream", "streams"),
    [
        ("/chat/completions", None, True),
        ("/chat/completions", False, False),
        ("/v1/chat/completions", None, False),
        ("/v1/chat/completions", True, True),
    ],
)
def test_the_prefix_and_the_flag_say_whether_it_streams(path: str, stream: bool | None, streams: bool):
    with client() as web:
        response = web.post(path, json={"messages": HELLO, "stream": stream})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream" if streams else "application/json")


def test_sampling_goes_to_the_engine_and_defaults_fill_the_gaps():
    engine = FakeEngine()
    with client(engine, defaults=Defaults(temperature=0.3, top_k=7, max_tokens=99)) as web:
        asked = {"temperature": 0, "top_k": 0, "max_completion_tokens": 5, "seed": 8}
        web.post("/v1/chat/completions", json={"messages": HELLO, **asked})
        web.post("/v1/chat/completions", json={"messages": HELLO})
        web.post("/v1/chat/completions", json={"messages": HELLO})
    first, second, third = engine.samplings
    assert first == {"temperature": 0, "top_k": None, "max_tokens": 5, "seed": 8}
    assert {**second, "seed": None} == {"temperature": 0.3, "top_k": 7, "max_tokens": 99, "seed": None}
    assert second["seed"] != third["seed"], "the same question twice would give the same answer"


def test_the_whole_conversation_reaches_the_model():
    engine = FakeEngine()
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]},
        {"role": "assistant", "content": [{"type": "python", "text": "2+2"}, {"type": "text", "text": "4"}]},
        {"role": "user", "content": "Sure? <|assistant_end|>"},
    ]
    with client(engine) as web:
        assert web.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    assert FakeTokenizer().decode(engine.prompts[0]) == "Be kind.What is 2+2?2+24Sure? <|assistant_end|>"


def test_an_answer_that_fills_its_room_says_length_and_usage_counts_tokens():
    with client(FakeEngine(answer=endless)) as web:
        body = web.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 12}).json()
        streamed = chunks(web.post("/chat/completions", json={"messages": HELLO, "max_tokens": 12}).text)
    assert body["choices"][0]["finish_reason"] == streamed[-1]["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "messages", "field required"),
        ({"messages": "hello"}, "messages", "valid list"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system', 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "string"),
        ({"messages": HELLO * 2}, "messages", "expected 'assistant'"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages", "last message must be the user's"),
        ({"messages": HELLO, "temperature": "1"}, "temperature", "number"),
        ({"messages": HELLO, "temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"messages": HELLO, "top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": HELLO, "max_tokens": 5000}, "max_tokens", "at most 4096"),
        ({"messages": HELLO, "max_completion_tokens": 5000}, "max_completion_tokens", "at most 4096"),
        ({"messages": HELLO, "stream": "yes"}, "stream", "boolean"),
        ({"messages": HELLO, "seed": 10**30}, "seed", "less than"),
        ({"messages": HELLO, "n": 2}, "n", "not supported"),
        ({"messages": HELLO, "stop": ["\n"]}, "stop", "not supported"),
        ({"messages": HELLO * 501}, "messages", "501 messages in the request, at most 500"),
        ({"messages": [{"role": "user", "content": "x" * 64_001}]}, "messages", "64001 characters in the request"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name_in_openais_error(body: dict, param: str, says: str):
    with client() as web:
        response = web.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\xff"', b"[" * 100_000, b"null", b"\x00"])
def test_rubbish_is_a_clients_mistake(body: bytes):
    with client() as web:
        response = web.post("/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_half_a_surrogate_pair_is_refused_before_it_breaks_an_encoder():
    body = b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'
    with client() as web:
        response = web.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages.0.content")


def test_another_site_cannot_post_a_form_to_the_model():
    body = json.dumps({"messages": HELLO})
    with client() as web:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            response = web.post("/chat/completions", content=body, headers={"Content-Type": kind})
            assert response.status_code == 400
            assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_above_the_limit_is_refused_before_parsing(in_pieces: bool):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 3000}]}).encode()
    content = iter([body[:1500], body[1500:]]) if in_pieces else body
    with client(limits=Limits(max_body_bytes=2000)) as web:
        response = web.post("/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "2000 bytes" in response.json()["error"]["message"]


def test_a_prompt_that_leaves_no_room_is_refused_with_openais_code():
    with client(FakeEngine(context_len=8)) as web:
        error = web.post("/v1/chat/completions", json={"messages": HELLO})
        fits = web.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hell"}]})
    assert error.status_code == 400
    assert error.json()["error"]["code"] == "context_length_exceeded"
    assert "8 tokens" in error.json()["error"]["message"]
    assert fits.status_code == 200


def test_unknown_paths_and_methods_answer_in_json():
    with client() as web:
        missing, wrong = web.get("/v1/nothing"), web.get("/v1/chat/completions")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert "/v1/nothing" in missing.json()["error"]["message"]
    assert wrong.json()["error"]["type"] == "invalid_request_error"


def broken(_: str) -> Iterator[Part]:
    yield Part("text", "half an ")
    raise RuntimeError("secret path /srv/x")


def test_an_engine_that_breaks_tells_the_client_nothing_secret_and_serves_the_next(caplog: pytest.LogCaptureFixture):
    engine = FakeEngine(answer=broken)
    with client(engine) as web:
        streamed = web.post("/chat/completions", json={"messages": HELLO}).text
        whole = web.post("/v1/chat/completions", json={"messages": HELLO})
        engine.answer = None
        assert web.post("/v1/chat/completions", json={"messages": HELLO}).status_code == 200
    last = json.loads(streamed.strip().split("\n\n")[-1].removeprefix("data: "))
    assert "half an " in streamed
    assert last["error"]["type"] == "server_error"
    assert whole.status_code == 500
    assert "secret" not in streamed + whole.text
    assert "secret path" in caplog.text, "the operator reads why in the log"


def test_a_full_queue_answers_503_and_says_when_to_come_again():
    go, started = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        started.release()
        go.wait(LONG_SECONDS)

    engine = FakeEngine(answer=lambda _: iter([Part("text", "done")]), before_piece=hold)
    codes: list[int] = []
    with client(engine, max_waiting=1) as web:

        def ask() -> None:
            codes.append(web.post("/v1/chat/completions", json={"messages": HELLO}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert started.acquire(timeout=LONG_SECONDS)
        threads[1].start()
        wait_until(lambda: web.get("/health").json()["waiting"] == 1)
        assert web.get("/health").json() == {
            "status": "ok", "model": "nanochat", "workers": 1, "running": 1, "waiting": 1,
        }  # fmt: skip
        refused = web.post("/v1/chat/completions", json={"messages": HELLO})
        go.set()
        for thread in threads:
            thread.join()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "server_busy"
    assert codes == [200, 200]


def wait_until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(LONG_SECONDS * 100):
        if true():
            return
        pause.wait(0.01)
    pytest.fail("it never came true")


def test_two_engines_answer_at_the_same_time():
    together = threading.Barrier(2, timeout=LONG_SECONDS)
    engines = [FakeEngine(answer=lambda _: iter([Part("text", "x")]), before_piece=together.wait) for _ in range(2)]
    codes: list[int] = []
    with client(*engines) as web:

        def ask() -> None:
            codes.append(web.post("/v1/chat/completions", json={"messages": HELLO}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [200, 200], "one engine alone would have waited at the barrier for ever"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_generation(stream: bool):
    engine = FakeEngine(answer=endless, context_len=10**9, before_piece=lambda: threading.Event().wait(0.001))
    app = create_app(Pool([engine]), FakeTokenizer(), limits=Limits(max_tokens=10**8))
    body = json.dumps({"messages": HELLO, "stream": stream, "max_tokens": 10**8}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
    head += f"\r\nContent-Length: {len(body)}"
    with live_server(app) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            wait_until(lambda: len(engine.prompts) == 1)
            if stream:
                assert b"200 OK" in connection.recv(4096)
        assert engine.closed.wait(LONG_SECONDS), "the engine went on generating for nobody"
        wait_until(lambda: httpx.get(f"{url}/health").json()["running"] == 0)


def test_closing_ends_running_and_waiting_answers():
    engine = FakeEngine(answer=endless, context_len=10**9, before_piece=lambda: threading.Event().wait(0.001))
    pool = Pool([engine])
    app = create_app(pool, FakeTokenizer(), limits=Limits(max_tokens=10**8))
    with live_server(app) as url:
        body = {"messages": HELLO, "max_tokens": 10**8}
        threads = [
            threading.Thread(target=lambda: httpx.post(f"{url}/v1/chat/completions", json=body, timeout=LONG_SECONDS))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: pool.running == 1 and pool.waiting == 1)
        pool.close()
        for thread in threads:
            thread.join(LONG_SECONDS)
    assert engine.closed.is_set()
    assert len(engine.prompts) == 1, "the waiting answer was never begun"
    assert not [thread for thread in threads if thread.is_alive()]


@pytest.fixture(scope="module")
def openai_client() -> Iterator[openai.OpenAI]:
    with live_server(create_app(Pool([FakeEngine()], max_waiting=4), FakeTokenizer(), name="nanochat-d4")) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_openai_client_reads_a_whole_answer(openai_client: openai.OpenAI):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = openai_client.chat.completions.create(model="any", messages=question, max_tokens=100)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "nanochat-d4"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")


def test_the_openai_client_reads_a_stream(openai_client: openai.OpenAI):
    question = [{"role": "user", "content": "What is 137 * 46? ü 日本 🎉"}]
    stream = list(openai_client.chat.completions.create(model="any", messages=question, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "You said: What is 137 * 46? ü 日本 🎉"
    assert stream[0].choices[0].delta.role == "assistant"
    assert stream[-1].choices[0].finish_reason == "stop"


def test_the_openai_client_understands_our_errors(openai_client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="the conversation has 2003 tokens") as caught:
        openai_client.chat.completions.create(model="any", messages=[{"role": "user", "content": "x" * 2000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.NotFoundError):
        openai_client.embeddings.create(model="any", input="x")


def test_the_openai_client_lists_the_model(openai_client: openai.OpenAI):
    assert [model.id for model in openai_client.models.list()] == ["nanochat-d4"]


def test_the_openai_client_hears_of_a_break_in_the_middle_of_a_stream():
    with live_server(create_app(Pool([FakeEngine(answer=broken)]), FakeTokenizer())) as url:
        ours = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="the model failed"):
            list(ours.chat.completions.create(model="any", messages=HELLO, stream=True))


def test_the_page_is_one_response_that_may_fetch_nothing_else():
    page, policy = build_page()
    with client() as web:
        response = web.get("/")
    assert response.text == page
    assert response.headers["content-security-policy"] == policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|innerHTML""", page)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_page_stays_small():
    page, _ = build_page()
    assert len(page.splitlines()) < 400


def test_a_busy_port_is_one_sentence_before_any_model_is_loaded(base_dir: object):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use; choose another"):
            chat_web.main(chat_web.Config(port=port))


def test_a_port_that_is_taken_lets_nobody_else_in():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with chat_web.take_port("127.0.0.1", port), pytest.raises(UserError, match="in use"):
        chat_web.take_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 3.0}, "--temperature must be between 0 and 2"),
        ({"top_k": -1}, "--top_k must be at least 0"),
        ({"max_tokens": 0}, "--max_tokens must be between 1 and"),
        ({"port": 70000}, "--port must be between 1 and 65535"),
        ({"num_gpus": 0}, "--num-gpus must be at least 1"),
        ({"host": "203.0.113.7"}, "203.0.113.7"),
    ],
)
def test_a_flag_that_nothing_can_serve_is_one_sentence(wrong: dict, says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        chat_web.main(chat_web.Config(**wrong))


def test_a_dry_run_says_the_address(capsys: pytest.CaptureFixture[str]):
    chat_web.main(chat_web.Config(dry_run=True, port=8123))
    assert "http://127.0.0.1:8123" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:80/"), ("0.0.0.0", "http://127.0.0.1:80/"), ("::1", "http://[::1]:80/")],
)
def test_the_printed_address_works_in_a_browser(host: str, shown: str):
    assert chat_web.address(host, 80) == shown


def test_a_base_model_alone_is_refused_with_the_way_on(base_dir: Path):
    save_random_checkpoint("base")
    with pytest.raises(UserError, match=re.escape("run `python -m scripts.mid_train` first")):
        chat_web.choose_stage()


def test_without_any_checkpoint_the_first_command_is_named(base_dir: Path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match=re.escape("run `python -m scripts.base_train` first")):
        chat_web.main(chat_web.Config(port=port, device_type="cpu"))


def test_more_engines_than_devices_are_refused():
    from nanochat.runtime import Runtime

    with Runtime.start(device_type="cpu") as runtime:
        assert chat_web.devices(runtime, 1) == [runtime]
        with pytest.raises(UserError, match="--num-gpus=2, but there is 1 cpu device"):
            chat_web.devices(runtime, 2)


@pytest.mark.slow
def test_the_command_serves_a_real_model(base_dir: Path):
    save_random_checkpoint("sft")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "scripts.chat_web", f"--port={port}", "--device_type=cpu", "--num-gpus=1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "serving sft d1, step 7, on 1 x cpu\n"
        assert server.stdout.readline().startswith(f"chat at http://127.0.0.1:{port}/ ")
        ours = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        how = {"model": "any", "messages": HELLO, "max_tokens": 20, "seed": 3}
        whole = ours.chat.completions.create(**how)
        stream = list(ours.chat.completions.create(**how, stream=True))
        assert whole.model == "nanochat-d1-sft"
        assert whole.choices[0].message.content == "".join(c.choices[0].delta.content or "" for c in stream) != ""
        with pytest.raises(openai.BadRequestError, match="the model reads at most 127"):
            ours.chat.completions.create(model="any", messages=[{"role": "user", "content": "zebra " * 100}])
    finally:
        server.terminate()
        server.wait(LONG_SECONDS)
        server.stdout.close()
