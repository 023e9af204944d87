"""The server's bench: its client reads what it is told, abuse tells right from wrong, the last line has its keys."""

import asyncio
import importlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from fake_chat import FakeEngine, FakeTokenizer, live_server, pool_of

from nanochat.command import UserError
from nanochat.conversation import Part
from nanochat.serving.app import create_app
from nanochat.serving.protocol import Limits

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`bench/serve.py`, imported as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    yield importlib.import_module("serve")
    for name in set(sys.modules) - before:
        if name.startswith("serve"):
            del sys.modules[name]


@contextmanager
def serving(*engines: FakeEngine, **limits: float) -> Iterator[int]:
    app = create_app(pool_of(*engines, max_waiting=200), FakeTokenizer(), limits=Limits(**limits))
    with live_server(app) as url:
        yield int(url.rsplit(":", 1)[1])


def words(_: str) -> Iterator[Part]:
    for _number in range(10):
        yield Part("text", " word")


def test_the_client_counts_tokens_and_times_of_every_stream(bench: ModuleType):
    asked = [bench.request({"messages": [{"role": "user", "content": str(n)}], "max_tokens": 50}) for n in range(12)]
    with serving(FakeEngine(answer=words, max_rows=8)) as port:
        told = asyncio.run(bench.load(port, asked, 4))
    assert (told.streams, told.requests, told.tokens) == (4, 12, 12 * 50)
    assert 0 < told.first_token_p50_ms <= told.first_token_p99_ms
    assert told.tokens_per_second == told.tokens / told.seconds


def test_a_refusal_is_no_answer(bench: ModuleType):
    asked = [bench.request({"messages": []})]
    with serving(FakeEngine()) as port, pytest.raises(ConnectionError, match=r"status 400: .*at least one message"):
        asyncio.run(bench.load(port, asked, 1))


def test_times_are_summed_up_over_all_streams(bench: ModuleType):
    client = sys.modules["serve_client"]
    answers = [
        client.Answered(sent=0.0, status=200, arrivals=[0.5, 0.6, 0.9], ended=1.0, tokens=10),
        client.Answered(sent=1.0, status=200, arrivals=[1.1, 1.2], ended=5.0, tokens=30),
    ]
    told = client.summed_up(answers, 2)
    assert (told.tokens, told.seconds, told.tokens_per_second) == (40, 5.0, 8.0)
    assert told.first_token_p50_ms == pytest.approx(300)
    assert told.between_tokens_p50_ms == pytest.approx(100)
    assert told.between_tokens_p99_ms == pytest.approx(296)


def test_abuse_does_not_hurt_and_who_asks_well_is_answered(bench: ModuleType):
    asked = [bench.request({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50})]
    engine = FakeEngine(answer=words)
    with serving(engine, requests_per_minute=0, body_seconds=0.2) as port:
        told = asyncio.run(bench.abuse(port, asked, connections=30, seconds=1.5))
        asyncio.run(bench.load(port, asked, 1))
    assert told["well_formed"] > 0
    assert told["status 200"] + told["status 503"] == told["well_formed"]
    assert told["rubbish"] > 0
    assert not [key for key in told if key.startswith(("unanswered", "rubbish was"))]
    assert not engine.rows


def test_an_answer_that_breaks_off_counts_as_none(bench: ModuleType):
    module = sys.modules["serve_abuse"]

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n")
        writer.close()

    async def ask() -> Counter[str]:
        told: Counter[str] = Counter()
        server = await asyncio.start_server(half, "127.0.0.1", 0)
        async with server:
            streams = await asyncio.open_connection(*server.sockets[0].getsockname())
            await module._well_formed(streams, random.Random(1), [b"GET / HTTP/1.1\r\n\r\n"], told)
            streams[1].close()
        return told

    assert asyncio.run(ask()) == {"unanswered: broken off": 1}


def test_the_last_line_has_its_keys_and_ratios_by_one_stream(bench: ModuleType, tmp_path: Path):
    def one(streams: int, seconds: float):
        return bench.Load(streams, streams, 100 * streams, seconds, 1.0, 2.0, 3.0, 4.0)

    loads = {1: one(1, 1.0), 32: one(32, 8.0)}
    told = json.loads(json.dumps(bench.summary(loads, None, None, bench.Config(streams=(1, 32)))))
    assert told.keys() == {"bench", "ratios", "figures", "machine"}
    assert told["ratios"] == {"streams_32_vs_one_after_another": 4.0}
    assert told["figures"]["targets"]["streams_32_vs_one_after_another"]["reached"]
    assert told["figures"]["streams"]["32"]["first_token_p99_ms"] == 2.0
    bench.draw(loads, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_streams_that_have_nothing_to_be_compared_with_are_refused(bench: ModuleType):
    with pytest.raises(UserError, match="--streams must name 1"):
        bench.main(bench.Config(streams=(8,)))


GUIDELLM = """#!{python}
import json, sys
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "run" and json.loads(flags["--profile"]) == {{"kind": "concurrent", "streams": 8}}
lines = open(json.loads(flags["--data"])["path"], encoding="utf-8").read().splitlines()
percentiles = {{"percentiles": {{"p50": 5.1, "p99": 8.4}}}}
metrics = {{
    "request_totals": {{"successful": len([json.loads(line)["prompt"] for line in lines])}},
    "output_tokens_per_second": {{"successful": {{"mean": 1080.5}}}},
    "time_to_first_token_ms": {{"successful": percentiles}},
    "inter_token_latency_ms": {{"successful": percentiles}},
}}
json.dump({{"benchmarks": [{{"metrics": metrics}}]}}, open(json.loads(flags["--output"])["path"], "w"))
"""


def test_the_report_of_guidellm_is_read(bench: ModuleType, tmp_path: Path):
    executable = tmp_path / "guidellm"
    executable.write_text(GUIDELLM.format(python=sys.executable))
    executable.chmod(0o755)
    told = bench.ask(executable, 1, ["one", "two"], 32, 8)
    assert (told["completed"], told["tokens_per_second"], told["first_token_p99_ms"]) == (2, 1080.5, 8.4)
    with pytest.raises(UserError, match=r"(?s)guidellm ended with 1: .*AssertionError"):
        bench.ask(executable, 1, ["one"], 32, 9)
    with pytest.raises(UserError, match="cannot be started: No such file"):
        bench.ask(tmp_path / "nothing", 1, ["one"], 32, 8)
