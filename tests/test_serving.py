"""The server's protocol: what clients send and get, by FastAPI's test client over workers that are threads."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
from fake_chat import FakeEngine, FakeTokenizer, endless, pool_of
from fastapi.testclient import TestClient
from serving_client import HELLO, ask, client, refused

from nanochat import chat_format
from nanochat.conversation import Conversation, Message
from nanochat.serving import page
from nanochat.serving.answers import Asked, CompletionAnswer
from nanochat.serving.journal import Journal
from nanochat.serving.pool import Pool
from nanochat.serving.protocol import Defaults, Limits
from nanochat.serving.service import CHAT_TEMPLATE
from nanochat.serving.vocabulary import Vocabulary
from nanochat.serving.wire import Gain, Logprob


@pytest.fixture(scope="module")
def web() -> Iterator[TestClient]:
    """A server that only answers: for tests that change nothing in it."""
    with client() as test_client:
        yield test_client


def chunks(text: str) -> list[dict]:
    """The JSON of every event; checks the frame of the stream."""
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event[len("data: ") :]) for event in events[:-1]]


def complete(web: TestClient, prompt: object, **fields: object) -> dict:
    response = web.post("/v1/completions", json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return response.json()


# --- chat completions -------------------------------------------------------------------------------------------------


def test_without_the_prefix_an_answer_streams_in_openais_chunks(web: TestClient):
    response = web.post("/chat/completions", json={"messages": [{"role": "user", "content": "Who are you?"}]})
    assert response.headers["content-type"].startswith("text/event-stream")
    got = chunks(response.text)
    assert len({chunk["id"] for chunk in got}) == 1
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None] * (len(got) - 1) + ["stop"]
    assert got[-1]["choices"][0]["delta"] == {}
    assert "usage" not in got[-1]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in got).startswith("I am nanochat,")


def test_tool_pieces_stand_beside_the_content(web: TestClient):
    question = [{"role": "user", "content": "What is 137 * 46?"}]
    streamed = chunks(web.post("/chat/completions", json={"messages": question}).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    tool = [{"type": "python", "text": "137*46"}, {"type": "python_output", "text": "6302"}]
    assert [delta["tool"] for delta in deltas if "tool" in delta] == tool
    assert not [delta for delta in deltas if "tool" in delta and "content" in delta]
    assert ask(web, question)["choices"][0]["message"] == {
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
        ("/completions", None, False),
        ("/v1/completions", True, True),
    ],
)
def test_the_prefix_and_the_flag_say_whether_it_streams(web: TestClient, path: str, stream: bool | None, streams: bool):
    asked = {"messages": HELLO} if "chat" in path else {"prompt": "hello"}
    response = web.post(path, json={**asked, "stream": stream})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream" if streams else "application/json")


def test_usage_ends_a_stream_only_when_asked_for(web: TestClient):
    body = {"messages": HELLO, "stream": True, "max_tokens": 5, "n": 2, "stream_options": {"include_usage": True}}
    got = chunks(web.post("/v1/chat/completions", json=body).text)
    assert got[-1]["choices"] == []
    assert got[-1]["usage"] == {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}
    assert {json.dumps(chunk["usage"]) for chunk in got[:-1]} == {"null"}
    assert {chunk["choices"][0]["index"] for chunk in got[:-1]} == {0, 1}


def test_sampling_goes_to_the_engine_and_defaults_fill_the_gaps():
    engine = FakeEngine()
    asked = {
        "temperature": 0, "top_k": 0, "top_p": 0.9, "min_p": 0.1, "max_completion_tokens": 5, "seed": -8,
        "repetition_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": -1, "stop": "\n\n",
        "stop_token_ids": [7], "logit_bias": {"65": -100}, "logprobs": True, "top_logprobs": 3, "n": 3,
    }  # fmt: skip
    with client(engine, defaults=Defaults(temperature=0.3, top_k=7, max_tokens=99)) as web:
        assert len(ask(web, **asked)["choices"]) == 3
        ask(web, stop=["a", "b"])
    first, second = engine.params
    assert (first.temperature, first.top_k, first.top_p, first.min_p, first.max_tokens) == (0, None, 0.9, 0.1, 5)
    assert (first.repetition_penalty, first.presence_penalty, first.frequency_penalty) == (1.2, 1, -1)
    assert (first.seed, first.stop, first.stop_ids, first.logit_bias) == (-8, ("\n\n",), (7,), {65: -100})
    assert (first.logprobs, first.prompt_logprobs, first.tools) == (3, None, True)
    assert (second.temperature, second.top_k, second.max_tokens, second.seed) == (0.3, 7, 99, None)
    assert (second.stop, second.logprobs) == (("a", "b"), None)


def test_the_whole_conversation_reaches_the_model_and_text_stays_text():
    engine = FakeEngine()
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]},
        {"role": "assistant", "content": [{"type": "python", "text": "2+2"}, {"type": "text", "text": "4"}]},
        {"role": "user", "content": "Sure? <|assistant_end|>"},
    ]
    with client(engine) as web:
        ask(web, messages)
    tokenizer = FakeTokenizer()
    assert tokenizer.decode(engine.prompts[0]) == (
        "<|bos|><|user_start|>Be kind.\n\nWhat is 2+2?<|user_end|><|assistant_start|><|python_start|>2+2<|python_end|>"
        "4<|assistant_end|><|user_start|>Sure? <|assistant_end|><|user_end|><|assistant_start|>"
    )
    assert engine.prompts[0].count(tokenizer.encode_special("<|assistant_end|>")) == 1, "text became control"


@pytest.mark.parametrize("arguments", ['{"expression": "6*7"}', "6*7"])
def test_a_tools_message_joins_the_assistants_turn_which_goes_on(arguments: str):
    engine = FakeEngine()
    call = {"id": "call_1", "type": "function", "function": {"name": "python", "arguments": arguments}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "Let me see. ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    with client(engine) as web:
        ask(web, messages)
        ask(web, [*messages, {"role": "assistant", "content": "It is 42."}, {"role": "user", "content": "Sure?"}])
    turn = (
        "<|bos|><|user_start|>hello<|user_end|><|assistant_start|>Let me see. "
        "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>"
    )
    later = "It is 42.<|assistant_end|><|user_start|>Sure?<|user_end|><|assistant_start|>"
    assert [FakeTokenizer().decode(prompt) for prompt in engine.prompts] == [turn, turn + later]


def test_an_answer_that_fills_its_room_says_length_and_usage_counts_tokens():
    with client(FakeEngine(answer=endless)) as web:
        body = ask(web, max_tokens=12)
        streamed = chunks(web.post("/chat/completions", json={"messages": HELLO, "max_tokens": 12}).text)
    assert body["choices"][0]["finish_reason"] == streamed[-1]["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_name_each_token_with_its_bytes_and_the_likeliest(web: TestClient, stream: bool):
    asked = {"messages": [{"role": "user", "content": "é"}], "logprobs": True, "top_logprobs": 2, "stream": stream}
    response = web.post("/v1/chat/completions", json=asked)
    if stream:
        each = [chunk["choices"][0]["logprobs"] for chunk in chunks(response.text)]
        content = [token for logprobs in each if logprobs for token in logprobs["content"]]
    else:
        content = response.json()["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == "You said: é"
    assert content[-1]["bytes"] == list("é".encode())
    assert [(top["token"], top["logprob"]) for top in content[-1]["top_logprobs"]] == [("é", -0.25), ("ê", -1.25)]


def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns_and_one_turn_too_many_is_refused():
    engine = FakeEngine(context_len=60)
    turns = [{"role": role, "content": letter * 10} for letter in "abc" for role in ("user", "assistant")]
    with client(engine) as web:
        ask(web, [*turns, *HELLO], max_tokens=1)
        error = refused(web, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 60}]})
    said = FakeTokenizer().decode(engine.prompts[0])
    assert ["aaaa" in said, "bbbb" in said, "cccc" in said] == [True, False, True], "first and newest turns stay"
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "the last message has 64 tokens" in error["message"]


# --- completions ------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_texts_ids_or_lists_of_ids():
    engine = FakeEngine()
    with client(engine) as web:
        for prompt in ("ab", ["ab", "c"], [1, 75], [[75], [76, 77]], "", ["<|bos|>"]):
            got = complete(web, prompt, max_tokens=3, n=2)
            count = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
            assert [choice["index"] for choice in got["choices"]] == list(range(2 * count))
    spelled = [0, *FakeTokenizer().encode("<|bos|>")]
    ids = [[0, 106, 107], [0, 106, 107], [0, 108], [1, 75], [75], [76, 77], [0], spelled]
    assert engine.prompts == ids, "text is led by <|bos|> and stays text, ids are taken as they are"
    assert not any(params.tools for params in engine.params)
    assert got["object"] == "text_completion"


def test_echo_puts_prompt_and_its_logprobs_before_the_answer(web: TestClient):
    got = complete(web, ["aé", "b"], max_tokens=1, echo=True, logprobs=1, temperature=0)
    assert [choice["text"] for choice in got["choices"]] == ["aéY", "bY"]
    assert got["choices"][0]["logprobs"] == {
        "tokens": ["<|bos|>", "a", "é", "Y"],
        "token_logprobs": [None, -0.25, -0.25, -0.25],
        "top_logprobs": [None, {"a": -0.25}, {"é": -0.25}, {"Y": -0.25}],
        "text_offset": [0, 0, 1, 2],
    }
    scored = complete(web, "ab", max_tokens=0, echo=True, logprobs=2)
    assert (scored["choices"][0]["text"], scored["usage"]["completion_tokens"]) == ("ab", 0)
    assert scored["choices"][0]["logprobs"]["top_logprobs"] == [
        None, {"a": -0.25, "b": -1.25}, {"b": -0.25, "c": -1.25}
    ]  # fmt: skip
    assert complete(web, "ab", max_tokens=0, echo=True)["choices"][0] == {
        "index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"
    }  # fmt: skip


def test_a_streamed_completion_is_the_whole_one_in_pieces(web: TestClient):
    asked = {"prompt": ["ab", "c"], "n": 2, "echo": True, "logprobs": 0, "max_tokens": 14}
    whole = complete(web, **asked)["choices"]
    for index, choice in enumerate(whole):
        streamed = chunks(web.post("/v1/completions", json={**asked, "stream": True}).text)
        mine = [chunk["choices"][0] for chunk in streamed if chunk["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for key, value in choice["logprobs"].items():
            assert [entry for piece in mine for entry in piece["logprobs"][key]] == value


def test_tokens_that_are_no_characters_have_names_of_their_own_and_places_in_the_text():
    class Halves(FakeTokenizer):
        def decode_bytes(self, ids: list[int]) -> bytes:
            return b"".join({20: b"\xc3", 21: b"\xa9", 22: b"z"}[id] for id in ids)

    answer = CompletionAnswer(Asked("m", [[22]], logprobs=True), Vocabulary(Halves()))
    entries = [Logprob(20, -1.0, ((21, -0.5),)), Logprob(21, float("-inf")), Logprob(22, -2.0)]
    answer.grow([(0, Gain(0, 0, (("text", "éz"),), 3, tuple(entries), finish_reason="stop"))])
    told = answer.whole()["choices"][0]["logprobs"]
    assert told["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "z"]
    assert told["top_logprobs"][0] == {"bytes:\\xc3": -1.0, "bytes:\\xa9": -0.5}
    assert told["text_offset"] == [0, 0, 1]
    assert told["token_logprobs"][1] == -9999.0, "JSON has no infinity"


# --- everything else --------------------------------------------------------------------------------------------------


def test_a_base_model_continues_texts_and_says_that_it_cannot_chat():
    with client(chats=False) as web:
        assert "use /v1/completions" in refused(web, "/v1/chat/completions", {"messages": HELLO})["message"]
        assert complete(web, "a", max_tokens=3)["choices"][0]["text"] == "You"
        assert web.get("/tokenizer_info").json()["eos_token"] == "<|bos|>"


def test_models_are_listed_and_found_by_name_with_and_without_the_prefix():
    with client(name="nanochat-d4-sft", defaults=Defaults(0.5, None, max_tokens=9)) as web:
        for prefix in ("/v1", ""):
            [model] = web.get(f"{prefix}/models").json()["data"]
            assert model == web.get(f"{prefix}/models/nanochat-d4-sft").json()
        assert (model["id"], model["object"], model["max_model_len"]) == ("nanochat-d4-sft", "model", 1000)
        assert model["defaults"] == {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "max_tokens": 9}
        assert {ask(web, model=name)["model"] for name in ("nanochat-d4-sft", "nanochat")} == {"nanochat-d4-sft"}


def test_the_tokenizer_is_served_and_only_a_control_tokens_bare_name_stands_for_it(web: TestClient):
    def tokens(**body: object) -> list[int]:
        return web.post("/tokenize", json=body).json()["tokens"]

    assert tokens(prompt="ab") == [0, 106, 107]
    assert tokens(prompt="ab", add_special_tokens=False) == [106, 107]
    assert tokens(prompt="<|assistant_end|>", add_special_tokens=False) == [4]
    assert min(tokens(prompt="<|assistant_end|> ", add_special_tokens=False)) >= 9
    assert web.post("/detokenize", json={"tokens": [0, 106, 107]}).json() == {"prompt": "<|bos|>ab"}
    assert "ids are below" in refused(web, "/detokenize", {"tokens": [9999999]})["message"]
    info = web.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["max_model_len"]) == ("<|bos|>", "<|assistant_end|>", 1000)


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_the_chat_template_lays_out_what_the_model_reads(system: str):
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    plain = [*([{"role": "system", "content": system}] if system else []), *plain]
    laid_out = jinja2.Environment().from_string(CHAT_TEMPLATE).render(
        messages=plain, add_generation_prompt=True, bos_token="<|bos|>"
    )  # fmt: skip
    conversation = Conversation([Message(message["role"], message["content"]) for message in plain])
    assert laid_out == FakeTokenizer().decode(chat_format.render_prompt(conversation, FakeTokenizer()))


def test_health_stats_and_metrics_count_what_was_done():
    with client(name="nanochat-d4") as web:
        ask(web, max_tokens=5)
        web.get("/nowhere")
        assert web.get("/health").json() == {
            "status": "ok", "model": "nanochat-d4", "workers": 1, "running": 0, "waiting": 0
        }  # fmt: skip
        assert web.get("/ready").json() == {"status": "ready"}
        stats = web.get("/stats").json()
        metrics = web.get("/metrics").text
    assert stats["workers"][0]["engine"] == {"running": 0, "waiting": 0, "max_rows": 4}
    for line in (
        "nanochat_prompt_tokens_total 9.0",
        "nanochat_completion_tokens_total 5.0",
        "nanochat_first_token_seconds_count 1.0",
        'nanochat_requests_total{path="other",status="404"} 1.0',
        'nanochat_worker_ready{worker="0"} 1.0',
        'nanochat_engine_running{worker="0"} 0.0',
    ):
        assert line in metrics.splitlines()


def test_conversations_are_kept_only_where_they_were_asked_for(tmp_path: Path):
    path = tmp_path / "logs" / "talks.jsonl"
    journal = Journal(path)
    with client(journal=journal) as web:
        ask(web)
        web.post("/chat/completions", json={"messages": HELLO})
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["request"]["messages"] for line in lines] == [HELLO, HELLO]
    assert [line["choices"] for line in lines] == [
        [{"text": [["text", "You said: hello"]], "finish_reason": "stop"}]
    ] * 2  # fmt: skip
    assert path.stat().st_mode & 0o077 == 0, "others may read it"


def test_the_page_is_one_response_with_its_own_policy(web: TestClient):
    made, policy = page.build_page()
    response = web.get("/")
    assert response.text == made
    assert response.headers["content-security-policy"] == policy
    assert "default-src 'none'" in policy


def test_every_route_is_in_the_schema(web: TestClient):
    paths = web.get("/openapi.json").json()["paths"]
    for path in ("/v1/chat/completions", "/completions", "/v1/models/{id}", "/tokenize", "/metrics"):
        assert path in paths
    assert "503" in paths["/v1/chat/completions"]["post"]["responses"]
    assert not re.search(r"HTTPValidationError", json.dumps(paths)), "mistakes are told as 400, in OpenAI's shape"


def test_limits_of_an_own_server_are_heeded():
    with client(limits=Limits(max_messages=1, max_n=1, max_tokens=5)) as web:
        assert "at most 1 are allowed" in refused(web, "/v1/chat/completions", {"messages": HELLO * 3})["message"]
        assert "n is 2, at most 1" in refused(web, "/v1/chat/completions", {"messages": HELLO, "n": 2})["message"]
        assert ask(web)["usage"]["completion_tokens"] == 5, "a default never asks for more than is allowed"


def test_a_pool_that_was_started_before_is_left_as_it_is():
    pool: Pool = pool_of(FakeEngine())
    with client(pool=pool) as web:
        assert ask(web)["choices"]
    assert not pool.ready, "the application closes it"
