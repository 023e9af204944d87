"""Many connections that open, read slowly, vanish or send rubbish, with requests among them that deserve an answer."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

ANSWER_SECONDS = 120.0  # what a well-formed request may take before it counts as unanswered

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Behave = Callable[[Streams, random.Random, list[bytes], Counter[str]], Awaitable[None]]


async def abuse(port: int, requests: list[bytes], connections: int, seconds: float, seed: int = 1) -> Counter[str]:
    """So many connections at any time, for so long; how often what happened."""
    told: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        chance = random.Random(seed * 1_000_003 + number)
        await asyncio.sleep(chance.random() * min(5.0, seconds / 4))
        while time.monotonic() < end:
            behave = chance.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0]
            told[behave.__name__.strip("_")] += 1
            try:
                streams = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                told["no_connection"] += 1
                await asyncio.sleep(0.5)
                continue
            try:
                await behave(streams, chance, requests, told)
            except (OSError, EOFError):
                pass  # the server may close on whoever misbehaves
            finally:
                streams[1].close()
            await asyncio.sleep(chance.random())

    await asyncio.gather(*(one(number) for number in range(connections)))
    return told


async def _well_formed(streams: Streams, chance: random.Random, requests: list[bytes], told: Counter[str]) -> None:
    """Ask, and read to the end: the answer must be one, or a refusal with 429 or 503."""
    reader, writer = streams
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(chance.choice(requests).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            whole = await reader.read(-1)
    except (OSError, TimeoutError) as failure:
        told[f"unanswered: {type(failure).__name__}"] += 1
        return
    status = whole[9:12].decode("ascii", "replace")
    if status == "200" and not whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        told["unanswered: broken off"] += 1
    else:
        told[f"status {status}"] += 1


async def _vanish(streams: Streams, chance: random.Random, requests: list[bytes], told: Counter[str]) -> None:
    """Ask, read a little, and leave without a word."""
    reader, writer = streams
    writer.write(chance.choice(requests))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3 * chance.random()):
            await reader.read(500)
    writer.transport.abort()


async def _read_slowly(streams: Streams, chance: random.Random, requests: list[bytes], told: Counter[str]) -> None:
    """Ask, and take a few bytes a second."""
    reader, writer = streams
    writer.write(chance.choice(requests))
    for _ in range(chance.randrange(2, 10)):
        if not await reader.read(50):
            return
        await asyncio.sleep(1)


async def _say_nothing(streams: Streams, chance: random.Random, requests: list[bytes], told: Counter[str]) -> None:
    """Hold a connection."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10 * chance.random()):
            await streams[0].read(1)


async def _say_half(streams: Streams, chance: random.Random, requests: list[bytes], told: Counter[str]) -> None:
    """Half a request, then silence."""
    whole = chance.choice(requests)
    streams[1].write(whole[: chance.randrange(1, len(whole))])
    await _say_nothing(streams, chance, requests, told)


async def _rubbish(streams: Streams, chance: random.Random, requests: list[bytes], told: Counter[str]) -> None:
    """Bytes that are no HTTP, or HTTP whose body is no JSON, or JSON that is no request."""
    body = chance.choice([b"{", b"[]", b'{"messages": 5}', b'{"messages": []}', chance.randbytes(200), b"\xff" * 9])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    framed = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    streams[1].write(chance.choice([framed, chance.randbytes(300), b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50]))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            said = await streams[0].read(12)
            if said[9:10] == b"5":
                told["rubbish was answered with 5xx"] += 1


BEHAVIOURS: dict[Behave, float] = {
    _well_formed: 3, _vanish: 3, _read_slowly: 2, _say_nothing: 1, _say_half: 1, _rubbish: 3
}  # fmt: skip
