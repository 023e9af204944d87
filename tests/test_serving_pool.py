"""The pool: queue, dispatch, cancelled and dead workers, drain; workers in threads, and once in real processes."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from fake_chat import FakeEngine, FakeTokenizer, WorkerDeath, WorkerThread, live_server, pool_of
from fake_engine import make_endless, make_nothing
from fastapi.testclient import TestClient

from nanochat.command import UserError
from nanochat.conversation import Part
from nanochat.serving import pool as pool_module
from nanochat.serving import responses, wire
from nanochat.serving.app import create_app
from nanochat.serving.pool import GenerationError, Job, Pool, PoolBusyError
from nanochat.serving.protocol import Limits
from nanochat.serving.worker import start_process

LONG_SECONDS = 120  # a test that would hang fails after this
HELLO = [{"role": "user", "content": "hello"}]


def run(pool: Pool, test: Callable[[Pool], Awaitable[None]]) -> None:
    """A test on an event loop, with a pool that is started before and closed after it."""

    async def whole() -> None:
        await pool.start()
        try:
            async with asyncio.timeout(LONG_SECONDS):
                await test(pool)
        finally:
            await pool.close()

    asyncio.run(whole())


def ids(text: str) -> list[int]:
    return FakeTokenizer().encode(text)


async def text_of(job: Job) -> list[str]:
    """What each choice of a job says, to the end."""
    texts: dict[int, str] = {}
    while gains := await job.take():
        for choice, gain in gains:
            texts[choice] = texts.get(choice, "") + "".join(text for _, text in gain.pieces)
    return [texts[choice] for choice in sorted(texts)]


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def endless(_: str) -> Iterator[Part]:
    while True:
        yield Part("text", "x")


def slow() -> None:
    threading.Event().wait(0.002)


def talker() -> FakeEngine:
    """An engine that never ends by itself."""
    return FakeEngine(answer=endless, context_len=10**9, before_step=slow)


def test_choices_are_numbered_through_the_prompts_and_their_samples():
    async def test(pool: Pool) -> None:
        job = pool.submit([ids("a"), ids("b")], {"max_tokens": 50}, n=2)
        assert await text_of(job) == ["You said: a", "You said: a", "You said: b", "You said: b"]
        assert job.done

    run(pool_of(FakeEngine(), FakeEngine()), test)


def test_what_came_together_is_taken_together():
    async def test(pool: Pool) -> None:
        job = pool.submit([ids("Who are you?")], {"max_tokens": 500})
        await until(lambda: not pool.running)
        gains = await job.take()
        assert len(gains) == 6
        assert job.done

    run(pool_of(), test)


def test_the_least_loaded_worker_is_next():
    engines = [talker(), talker(), talker()]

    async def test(pool: Pool) -> None:
        pool.submit([ids("a")], {"max_tokens": 10**6}, n=3)
        for _ in range(4):
            pool.submit([ids("b")], {"max_tokens": 10**6})
        await until(lambda: sum(len(engine.rows) for engine in engines) == 7)
        assert [worker.running for worker in pool.workers] == [3, 2, 2]

    run(pool_of(*engines), test)


def test_no_more_prompts_wait_than_may_and_one_that_is_cancelled_makes_room():
    engine = talker()

    async def test(pool: Pool) -> None:
        running = pool.submit([ids("a")] * 4, {"max_tokens": 10**6})
        waiting = pool.submit([ids("b")], {"max_tokens": 5})
        with pytest.raises(PoolBusyError):
            pool.submit([ids("c")] * 2, {"max_tokens": 5})
        other = pool.submit([ids("c")], {"max_tokens": 5})
        with pytest.raises(PoolBusyError):
            pool.submit([ids("d")], {"max_tokens": 5})
        waiting.cancel()
        assert pool.waiting == 1
        running.cancel()
        assert await text_of(other) == ["xxxxx"]
        await until(lambda: not engine.rows)
        assert len(engine.cancelled) == 4
        assert len(engine.prompts) == 5, "the one that was cancelled while it waited was never begun"

    run(pool_of(engine, max_waiting=2), test)


def test_a_prompt_that_waits_too_long_is_refused_as_the_server_is_busy():
    async def test(pool: Pool) -> None:
        running = pool.submit([ids("a")] * 4, {"max_tokens": 10**6})
        waiting = pool.submit([ids("b")] * 2, {"max_tokens": 5})
        with pytest.raises(GenerationError, match=r"waited 0.05 seconds in vain") as caught:
            await text_of(waiting)
        assert caught.value.kind == "busy"
        assert pool.waiting == 0
        assert await running.take(), "what a worker has goes on"

    pool = pool_of(talker())
    pool.queue_seconds = 0.05
    run(pool, test)


def test_a_worker_takes_no_more_than_its_rows():
    go = threading.Event()
    engine = FakeEngine(lambda asked: [Part("text", asked)] * 3, before_step=lambda: go.wait(LONG_SECONDS), max_rows=3)

    async def test(pool: Pool) -> None:
        jobs = [pool.submit([ids(f"{number};")], {"max_tokens": 50}) for number in range(12)]
        await until(lambda: pool.running == 3)
        go.set()
        assert await asyncio.gather(*map(text_of, jobs)) == [[f"{number};" * 3] for number in range(12)]

    run(pool_of(engine), test)
    assert engine.most_rows == 3


def test_a_refusal_of_the_engine_is_the_jobs():
    async def test(pool: Pool) -> None:
        with pytest.raises(GenerationError, match="the prompt has 8 tokens") as caught:
            await text_of(pool.submit([ids("fits"), ids("much too")], {"max_tokens": 5}))
        assert caught.value.kind == "overflow"
        with pytest.raises(GenerationError, match="temperature must be 0 or more") as caught:
            await text_of(pool.submit([ids("a")], {"temperature": -1.0}))
        assert caught.value.kind == "refused"
        await until(lambda: not pool.running)

    run(pool_of(FakeEngine(context_len=8)), test)


def test_a_dead_workers_jobs_end_with_an_error_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "FIRST_PAUSE_SECONDS", 0.01)
    dying = FakeEngine(answer=endless, context_len=10**9)

    def die() -> None:
        raise WorkerDeath

    dying.before_step = die
    engines = [dying, FakeEngine(answer=lambda _: [Part("text", "fine")])]

    async def test(pool: Pool) -> None:
        jobs = [pool.submit([ids("a")], {"max_tokens": 10}) for _ in range(2)]
        with pytest.raises(GenerationError, match="the worker that wrote this answer died"):
            await text_of(jobs[0])
        assert await text_of(jobs[1]) == ["fine"]
        dying.before_step = slow
        await until(lambda: all(worker.ready for worker in pool.workers))
        assert [worker.restarts for worker in pool.workers] == [1, 0]
        later = [pool.submit([ids("a")], {"max_tokens": 3}) for _ in range(2)]
        assert sorted(await asyncio.gather(*map(text_of, later))) == [["fin"], ["xxx"]]

    run(pool_of(*engines), test)


def test_jobs_wait_while_the_only_worker_is_started_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "FIRST_PAUSE_SECONDS", 0.01)
    engine = FakeEngine()

    async def test(pool: Pool) -> None:
        worker = pool.workers[0]
        assert worker.handle is not None
        worker.handle.kill()
        await until(lambda: not worker.ready)
        assert not pool.ready
        assert await text_of(pool.submit([ids("still there?")], {"max_tokens": 50})) == ["You said: still there?"]

    run(pool_of(engine), test)


def test_the_facts_of_the_first_worker_pin_what_the_others_load():
    seen: list[wire.Facts | None] = []

    def launch(index: int, pinned: wire.Facts | None, far_end: socket.socket) -> WorkerThread:
        seen.append(pinned)
        return WorkerThread(FakeEngine(), far_end, {"step": 7 + index})

    async def test(pool: Pool) -> None:
        assert pool.facts["step"] == 7

    run(Pool(launch, 3), test)
    assert [pinned and pinned["step"] for pinned in seen] == [None, 7, 7]


def test_a_worker_that_cannot_start_is_the_starters_error():
    def launch(index: int, pinned: wire.Facts | None, far_end: socket.socket) -> WorkerThread:
        far_end.sendall(wire.pack(wire.Failed("no sft checkpoint; run `python -m scripts.chat_sft` first")))
        return WorkerThread(FakeEngine(), far_end, {})

    async def start() -> None:
        pool = Pool(launch)
        try:
            await pool.start()
        finally:
            await pool.close()

    with pytest.raises(UserError, match="no sft checkpoint"):
        asyncio.run(start())


def test_a_drain_lets_answers_end_takes_nothing_new_and_has_an_end():
    engine = FakeEngine(answer=lambda question: endless("") if "long" in question else [Part("text", "short")])
    engine.context_len, engine.before_step = 10**9, slow

    async def test(pool: Pool) -> None:
        long, short = (pool.submit([ids(text)], {"max_tokens": 10**6}) for text in ("long", "brief"))
        pool.drain(0.3)
        with pytest.raises(PoolBusyError):
            pool.submit([ids("new")], {"max_tokens": 5})
        assert not pool.ready
        assert await text_of(short) == ["short"]
        with pytest.raises(GenerationError, match="the server is stopping") as caught:
            await text_of(long)
        assert caught.value.kind == "stopping"

    run(pool_of(engine), test)


def test_closing_ends_running_and_waiting_jobs_and_every_worker():
    engine = talker()

    async def test(pool: Pool) -> None:
        jobs = [pool.submit([ids("a")], {"max_tokens": 10**6}) for _ in range(6)]
        await until(lambda: pool.waiting == 2)
        await pool.close()
        for job in jobs:
            with pytest.raises(GenerationError, match="the server is stopping"):
                await text_of(job)
        assert pool.workers[0].handle is not None
        assert not pool.workers[0].handle.is_alive()

    run(pool_of(engine), test)


def test_frames_survive_any_cut():
    messages = [wire.Submit(number, list(range(number * 100)), {"max_tokens": number}, 1) for number in range(20)]
    stream = b"".join(map(wire.pack, messages))
    for cut in (1, 3, 7, 1000, len(stream)):
        near, far = socket.socketpair()
        with near, far:
            inbox, got = wire.Inbox(far), []
            assert inbox.take(0.0) == []
            for start in range(0, len(stream), cut):
                near.sendall(stream[start : start + cut])
                got += inbox.take(0.0)
            assert got == messages
            near.close()
            with pytest.raises(EOFError):
                inbox.take(60.0)


# --- over HTTP --------------------------------------------------------------------------------------------------------


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


def wait(true: Callable[[], bool]) -> bool:
    pause = threading.Event()
    return any(true() or pause.wait(0.01) for _ in range(LONG_SECONDS * 100))


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


# --- in processes -----------------------------------------------------------------------------------------------------


def test_a_real_process_serves_ignores_the_groups_signals_dies_alone_and_ends_with_the_front():
    def launch(index: int, pinned: wire.Facts | None, far_end: socket.socket):
        return start_process(make_endless, far_end)

    async def test(pool: Pool) -> None:
        job = pool.submit([ids("a")], {"max_tokens": 5})
        assert await text_of(job) == ["xxxxx"]
        first = pool.workers[0].facts["pid"]
        assert isinstance(first, int)
        assert first != os.getpid()
        job = pool.submit([ids("a")], {"max_tokens": 10**6})
        assert await job.take()
        os.kill(first, signal.SIGTERM)
        os.kill(first, signal.SIGINT)
        assert await job.take()
        assert await job.take()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(GenerationError, match="died"):
            await text_of(job)
        job = pool.submit([ids("a")], {"max_tokens": 5})
        assert await text_of(job) == ["xxxxx"]
        assert pool.workers[0].facts["pid"] != first

    pool = Pool(launch)
    run(pool, test)
    assert pool.workers[0].handle is not None
    assert not pool.workers[0].handle.is_alive()


def test_a_process_that_cannot_make_its_engine_says_why():
    async def start() -> None:
        pool = Pool(lambda index, pinned, far_end: start_process(make_nothing, far_end))
        try:
            await pool.start()
        finally:
            await pool.close()

    with pytest.raises(UserError, match="there is no model"):
        asyncio.run(start())
