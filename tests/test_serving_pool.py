"""The pool: queue, dispatch, cancelled and dead workers, drain; workers in threads, and once in real processes."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest
from fake_chat import FakeEngine, FakeTokenizer, WorkerDeath, WorkerThread, endless, pool_of, talker
from fake_engine import make_endless, make_nothing, slow

from nanochat.command import UserError
from nanochat.conversation import Part
from nanochat.serving import pool as pool_module
from nanochat.serving import wire
from nanochat.serving.pool import GenerationError, Job, Pool, PoolBusyError
from nanochat.serving.worker import start_process

LONG_SECONDS = 120  # a test that would hang fails after this


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
