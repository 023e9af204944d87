"""`scripts.chat_web`: its flags, its port, and the whole of it in processes of their own."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fake_chat import save_random_checkpoint

from nanochat.command import UserError
from nanochat.serving import load
from nanochat.serving.load import Load
from nanochat.serving.protocol import Limits
from scripts import chat_web

LONG_SECONDS = 120


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_busy_port_is_one_sentence_before_any_model_is_loaded(base_dir: object):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use; choose another"):
            chat_web.main(chat_web.Config(port=port))


def test_a_port_that_is_taken_lets_nobody_else_in():
    port = free_port()
    with chat_web.take_port("127.0.0.1", port), pytest.raises(UserError, match="in use"):
        chat_web.take_port("127.0.0.1", port)


def test_no_token_waits_for_the_acknowledgement_of_the_one_before():
    async def accepted_delays() -> bool:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_client(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            seen.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with chat_web.take_port("127.0.0.1", free_port()) as listening:
            async with await asyncio.start_server(on_client, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                try:
                    return await seen == 0
                finally:
                    writer.close()

    assert not asyncio.run(accepted_delays())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 3.0}, "--temperature must be between 0 and 2"),
        ({"top_k": -1}, "--top_k must be at least 0"),
        ({"max_tokens": 0}, "--max_tokens must be between 1 and"),
        ({"max_tokens": 5, "limits": Limits(max_tokens=4)}, "--max_tokens must be between 1 and 4, got 5"),
        ({"port": 70000}, "--port must be between 1 and 65535"),
        ({"num_gpus": 0}, "--num-gpus must be at least 1"),
        ({"num_workers": 0}, "--num-workers must be at least 1"),
        ({"max_rows": 0}, "--max_rows must be at least 1"),
        ({"cache_gb": 0.0}, "--cache_gb must be above 0"),
        ({"tools": ("weather",)}, "no tool is called 'weather'; there are convert"),
        ({"max_waiting": -1}, "--max_waiting must be at least 0"),
        ({"drain_seconds": -1.0}, "--drain_seconds must be at least 0"),
        ({"limits": Limits(max_body_bytes=0)}, "--limits.max_body_bytes must be at least 1"),
        ({"host": "203.0.113.7"}, "203.0.113.7"),
    ],
)
def test_a_flag_that_nothing_can_serve_is_one_sentence(wrong: dict, says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        chat_web.main(chat_web.Config(**wrong))


def test_a_dry_run_says_the_address(capsys: pytest.CaptureFixture[str]):
    chat_web.main(chat_web.Config(dry_run=True, port=8123, num_workers=2))
    assert "http://127.0.0.1:8123/ by 2 worker(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:80/"), ("0.0.0.0", "http://127.0.0.1:80/"), ("::1", "http://[::1]:80/")],
)
def test_the_printed_address_works_in_a_browser(host: str, shown: str):
    assert chat_web.address(host, 80) == shown


def test_a_base_model_alone_is_refused_with_the_way_on(base_dir: Path):
    save_random_checkpoint("base")
    with pytest.raises(UserError, match=re.escape("run `python -m scripts.mid_train` first")):
        load.choose_stage()


def test_more_gpus_than_there_are_are_refused():
    wanted = Load("sft", None, None, device_type="cpu", dtype="auto", weights=None, max_rows=1, gpus=2, workers=2)
    with pytest.raises(UserError, match=r"--num-gpus=2, but there is 1 cpu device here; .* --num-workers"), wanted():
        pass


def test_every_worker_loads_what_the_first_one_found():
    asked = Load(None, None, None, device_type="", dtype="auto", weights="int8", max_rows=8, gpus=2, workers=2)
    assert asked.of(0, None) == asked
    second = asked.of(1, {"stage": "sft", "tag": "d4", "step": 70})
    assert (second.stage, second.tag, second.step, second.index, second.weights) == ("sft", "d4", 70, 1, "int8")


@contextmanager
def running(port: int, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "scripts.chat_web", f"--port={port}", "--device_type=cpu", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


def test_without_any_checkpoint_the_first_command_is_named(base_dir: Path):
    with running(free_port()) as server:
        out, err = server.communicate(timeout=LONG_SECONDS)
    assert server.returncode == 2
    assert re.fullmatch(r"error: no base checkpoint in \S+; run `python -m scripts.base_train` first\n", err)
    assert out == ""


def test_a_truncated_checkpoint_is_one_sentence(base_dir: Path):
    save_random_checkpoint("sft")
    weights = next(base_dir.glob("checkpoints/sft/d1/*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    wanted = Load("sft", None, None, device_type="cpu", dtype="auto", weights=None, max_rows=1)
    with pytest.raises(UserError, match=r"model.safetensors has 1000 bytes instead of \d+"), wanted():
        pass


@pytest.mark.slow
def test_the_command_serves_a_real_model_and_drains_at_sigterm(base_dir: Path, tmp_path: Path):
    save_random_checkpoint("sft", context_len=2048)
    port = free_port()
    kept = tmp_path / "talks.jsonl"
    with running(port, "--num-workers=2", f"--log_conversations={kept}", "--api_key=k") as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "serving sft d1, step 7, on 2 x cpu\n"
        assert server.stdout.readline().startswith(f"chat at http://127.0.0.1:{port}/ ")
        web = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=LONG_SECONDS, headers={"Authorization": "Bearer k"}
        )
        asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "seed": 3}
        whole = web.post("/v1/chat/completions", json=asked).json()
        assert whole["model"] == "nanochat-d1-sft"
        assert 0 < whole["usage"]["completion_tokens"] <= 20
        assert [worker["ready"] for worker in web.get("/stats").json()["workers"]] == [True, True]
        endless = {"prompt": "once", "max_tokens": 1500, "logit_bias": {}, "stream": True}
        with web.stream("POST", "/v1/completions", json=endless) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            server.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest, "what was under way went on to its end"
        assert server.wait(LONG_SECONDS) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            web.get("/health")
    first = json.loads(kept.read_text(encoding="utf-8").splitlines()[0])
    assert first["request"]["messages"] == asked["messages"]
    assert first["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
