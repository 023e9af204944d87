"""The server, as other people's clients see it: each test is skipped where its client is not installed."""

import asyncio
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_chat import FakeEngine, FakeTokenizer, live_server, pool_of, talker, wait
from tiny import tiny_model, tiny_tokenizer

from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.serving.app import create_app
from nanochat.serving.protocol import Limits
from nanochat.task_eval import mean_losses

ROOT = Path(__file__).parent.parent
LONG_SECONDS = 120
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that recites."""
    with live_server(create_app(pool_of(FakeEngine(max_rows=16)), FakeTokenizer(), name="nanochat-d4")) as address:
        yield address


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(256)


@pytest.fixture(scope="module")
def real_url(model: GPT) -> Iterator[str]:
    """A server of a real, random model."""
    tokenizer = tiny_tokenizer()
    with live_server(create_app(pool_of(Engine(model, tokenizer)), tokenizer, name="nanochat-tiny")) as address:
        yield address


# --- openai -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai() -> Any:
    return pytest.importorskip("openai", reason="the openai client: uv pip install -r requirements-clients.txt")


@pytest.fixture(scope="module")
def client(openai: Any, url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def real(openai: Any, real_url: str) -> Any:
    return openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0)


def test_openai_reads_a_whole_answer(client: Any):
    answer = client.chat.completions.create(model="nanochat", messages=FRANCE, max_tokens=100)
    assert answer.choices[0].message.content == PARIS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "nanochat-d4"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")


def test_openai_reads_a_stream_and_its_usage(client: Any):
    question = [{"role": "user", "content": "What is 137 * 46? ü 日本 🎉"}]
    how = {"model": "nanochat", "messages": question, "stream": True, "stream_options": {"include_usage": True}}
    stream = list(client.chat.completions.create(**how))
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in stream[:-1]) == f"You said: {question[0]['content']}"
    )
    assert stream[0].choices[0].delta.role == "assistant"
    assert stream[-2].choices[0].finish_reason == "stop"
    assert stream[-1].choices == []
    assert stream[-1].usage.completion_tokens > 10


def test_openai_speaks_to_many_answers_at_once_without_waiting(openai: Any, url: str):
    async def one(ours: Any, number: int) -> str:
        question = [{"role": "user", "content": f"number {number}"}]
        stream = await ours.chat.completions.create(model="nanochat", messages=question, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ours:
            return await asyncio.gather(*(one(ours, number) for number in range(24)))

    assert asyncio.run(all_of_them()) == [f"You said: number {number}" for number in range(24)]


def test_openai_closes_a_stream_and_the_row_is_free(openai: Any):
    engine = talker()
    with live_server(create_app(pool_of(engine), FakeTokenizer(), limits=Limits(max_tokens=10**8))) as url:
        ours = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with ours.chat.completions.create(model="nanochat", messages=FRANCE, stream=True, max_tokens=10**8) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"
        assert wait(lambda: engine.cancelled == [0])


def test_openai_understands_our_errors(openai: Any, client: Any):
    def ask(**fields: Any) -> None:
        client.chat.completions.create(**{"model": "nanochat", "messages": FRANCE, **fields})

    with pytest.raises(openai.BadRequestError, match="the last message has 2004 tokens") as caught:
        ask(messages=[{"role": "user", "content": "x" * 2000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-4'") as caught:
        ask(model="gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="no such path"):
        client.embeddings.create(model="nanochat", input="x")
    with pytest.raises(openai.BadRequestError, match="n is 99, at most 16 are allowed"):
        ask(n=99)


@pytest.mark.parametrize(
    ("at_once", "error", "says"),
    [(2, "InternalServerError", "the server is busy"), (1, "RateLimitError", "1 of your requests are under way")],
)
def test_openai_understands_a_wrong_key_a_busy_server_and_a_limit(openai: Any, at_once: int, error: str, says: str):
    hold = threading.Event()
    engine = FakeEngine(before_step=lambda: hold.wait(LONG_SECONDS), max_rows=1)
    limits = Limits(requests_at_once=at_once)
    with live_server(create_app(pool_of(engine, max_waiting=0), FakeTokenizer(), limits=limits, api_key="k")) as url:
        wrong, right = (openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in "xk")
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            wrong.models.list()
        asked = {"model": "nanochat", "messages": FRANCE}
        first = threading.Thread(target=lambda: right.chat.completions.create(**asked))
        first.start()
        assert wait(lambda: len(engine.rows) == 1)
        with pytest.raises(getattr(openai, error), match=says) as caught:
            right.chat.completions.create(**asked)
        assert caught.value.response.headers["retry-after"] == "1"
        hold.set()
        first.join(LONG_SECONDS)


def test_openai_hears_of_a_break_in_the_middle_of_a_stream(openai: Any):
    from fake_chat import WorkerDeath

    steps = iter(range(10))

    def die() -> None:
        if next(steps) == 1:
            raise WorkerDeath

    engine = FakeEngine(before_step=die)
    with live_server(create_app(pool_of(engine), FakeTokenizer())) as url:
        ours = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="the worker that wrote this answer died"):
            list(ours.chat.completions.create(model="nanochat", messages=FRANCE, stream=True))


def test_openai_lists_and_finds_the_model(client: Any):
    assert [model.id for model in client.models.list()] == ["nanochat-d4"]
    assert client.models.retrieve("nanochat-d4").object == "model"


def test_the_same_seed_gives_the_same_answers_and_logprobs_are_those_of_the_model(real: Any, model: GPT):
    how = {"model": "nanochat", "messages": FRANCE, "max_tokens": 12, "seed": 5, "n": 2}
    first = real.chat.completions.create(**how, temperature=1, logprobs=True, top_logprobs=3)
    again = real.chat.completions.create(**how, temperature=1)
    assert [c.message.content for c in first.choices] == [c.message.content for c in again.choices]
    assert first.choices[0].message.content != first.choices[1].message.content
    tokens = first.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob <= max(top.logprob for top in token.top_logprobs) + 1e-6 for token in tokens)
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.render_for_completion([dict(message) for message in FRANCE])
    logits = model(torch.tensor([prompt]))[0, -1].float()
    best = logits.log_softmax(-1).topk(3)
    shown = [(top.token, top.logprob) for top in tokens[0].top_logprobs]
    for (token, logprob), value, id in zip(shown, best.values.tolist(), best.indices.tolist(), strict=True):
        assert logprob == pytest.approx(value, abs=1e-4)
        assert tokenizer.decode_bytes([id]).decode("utf-8", "replace") in (token, "\ufffd")


def test_openai_scores_a_prompt_by_completions(real: Any, model: GPT):
    text = "The sky is blue."
    scored = real.completions.create(model="nanochat", prompt=text, max_tokens=0, echo=True, logprobs=1)
    [choice] = scored.choices
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text, prepend="<|bos|>")
    assert choice.text == text
    assert choice.logprobs.token_logprobs[0] is None
    expected = -mean_losses(model, [(ids, 1)], batch_size=1)[0] * (len(ids) - 1)
    assert sum(choice.logprobs.token_logprobs[1:]) == pytest.approx(expected, abs=1e-4)
    pieces = [
        text[a:b]
        for a, b in zip(choice.logprobs.text_offset[1:], [*choice.logprobs.text_offset[2:], None], strict=True)
    ]
    assert pieces == choice.logprobs.tokens[1:]


# --- others -----------------------------------------------------------------------------------------------------------


def test_langchain_asks_streams_and_counts(url: str):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai: requirements-clients.txt")
    chat = langchain.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="nanochat", max_tokens=90, max_retries=0)
    whole = chat.invoke([("system", "Be brief."), ("human", "What now?")])
    assert whole.content == "You said: Be brief.\n\nWhat now?"
    assert whole.usage_metadata["output_tokens"] == len(whole.content)
    pieces = list(chat.stream([("human", "Who are you?")], stream_usage=True))
    assert "".join(piece.content for piece in pieces).startswith("I am nanochat,")
    told = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert sum(usage["output_tokens"] for usage in told) == len("".join(piece.content for piece in pieces))
    text = langchain.OpenAI(base_url=f"{url}/v1", api_key="none", model="nanochat", max_tokens=90, max_retries=0)
    assert text.invoke("hello") == "You said: hello"


@pytest.mark.parametrize("stream", [True, False])
def test_llm_asks_from_the_command_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    pytest.importorskip("llm", reason="llm: requirements-clients.txt")
    from click.testing import CliRunner
    from llm.cli import cli

    entry = {"model_id": "local", "model_name": "nanochat", "api_base": f"{url}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]), encoding="utf-8")
    flags = ["--no-log", "--key", "none", *([] if stream else ["--no-stream"])]
    result = CliRunner().invoke(cli, ["-m", "local", *flags, FRANCE[0]["content"]])
    assert result.exception is None, result.output
    assert result.output == f"{PARIS}\n"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_sees_the_answer_as_it_comes():
    hold = threading.Semaphore(1)
    engine = FakeEngine(before_step=hold.acquire)
    with live_server(create_app(pool_of(engine), FakeTokenizer())) as url:
        command = ["curl", "-sN", f"{url}/chat/completions", "-H", "Content-Type: application/json"]
        curl = subprocess.Popen([*command, "-d", json.dumps({"messages": FRANCE})], stdout=subprocess.PIPE, text=True)
        assert curl.stdout is not None
        assert '"role":"assistant"' in curl.stdout.readline()
        assert curl.stdout.readline() == "\n"
        assert '"content":"The "' in curl.stdout.readline()
        hold.release(100)
        rest, _ = curl.communicate(timeout=LONG_SECONDS)
    assert rest.endswith("data: [DONE]\n\n")


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
QUESTIONS = [
    {"question": "What is the capital of France?", "choices": ["Paris is", "The sky."], "answer": 0},
    {"question": "Who are you? The sky is", "choices": ["blue", "the answer", "6302"], "answer": 0},
]


def test_lm_eval_finds_the_log_likelihoods_of_our_own_evaluator(
    real_url: str, model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval: requirements-clients.txt")
    from lm_eval.tasks import TaskManager

    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    (tmp_path / "tiny_choice.yaml").write_text(TASK.replace("DATA", str(data)), encoding="utf-8")
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "nanochat", "base_url": f"{real_url}/v1/completions", "tokenizer_backend": "remote",
            "max_length": 256, "batch_size": 2,
        },
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    tokenizer = tiny_tokenizer()
    told, expected = [], []
    for sample in found["samples"]["tiny_choice"]:
        for (context, continuation), [(score, greedy)] in zip(sample["arguments"], sample["resps"], strict=True):
            ids, start = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
            loss = mean_losses(model, [(ids, start)], batch_size=1)[0]
            best = model(torch.tensor([ids[:-1]]))[0, start - 1 :].argmax(-1).tolist() == ids[start:]
            told.append((float(score), str(greedy) == "True"))
            expected.append((-loss * (len(ids) - start), best))
    assert len(told) == 5
    assert [greedy for _, greedy in told] == [greedy for _, greedy in expected]
    assert [score for score, _ in told] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_schemathesis_finds_no_request_that_the_server_fails_at(url: str):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis: requirements-clients.txt")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    modes = schemathesis.GenerationMode
    seen: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.startswith("/v1/"):
            continue  # the same routes
        for mode in (modes.POSITIVE, modes.NEGATIVE)[: 2 if operation.method == "post" else 1]:

            @settings(
                max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_it(case: Any) -> None:
                response = case.call()
                assert response.status_code < 500, case.as_curl_command()
                if response.status_code >= 400:
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}

            try_it()
        seen.append(operation.label)
    assert "POST /chat/completions" in seen
    assert len(seen) >= 12


# --- the README -------------------------------------------------------------------------------------------------------


def readme_blocks(language: str) -> list[str]:
    """The code of this language in the README's page on serving."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = text.split("\n## Serve\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_readmes_curl_lines_work(url: str):
    lines = [line for block in readme_blocks("bash") for line in block.splitlines() if line.startswith("curl")]
    assert lines
    for line in lines:
        there = re.sub(r"(http://)?localhost:8000", url, line)
        done = subprocess.run(["bash", "-c", f"{there} -sSf"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_readmes_python_works(openai: Any, url: str, capsys: pytest.CaptureFixture[str]):
    [code] = readme_blocks("python")
    assert "localhost:8000" in code
    exec(compile(code.replace("http://localhost:8000", url), "README.md", "exec"), {})
    assert "I am nanochat," in capsys.readouterr().out
