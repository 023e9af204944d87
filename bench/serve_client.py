"""An asyncio client that costs little: one connection per stream, arrivals noted as they come and read afterwards."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

Json = dict[str, object]

_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_SAYS = b'"delta":{"content"'
_OPENS = b'"delta":{"role"'
_END = b"0\r\n\r\n"


@dataclass(frozen=True)
class Answered:
    """One request: when it was sent and what came, in seconds of one clock."""

    sent: float
    status: int
    arrivals: list[float]  # of what was said
    ended: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """Many requests by so many streams. Times in milliseconds."""

    streams: int
    requests: int
    tokens: int
    seconds: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    between_tokens_p50_ms: float
    between_tokens_p99_ms: float

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together."""
        return self.tokens / self.seconds


class _Exchange(asyncio.Protocol):
    """A connection that is kept for one request after the other."""

    def __init__(self) -> None:
        self.got: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got.append((time.perf_counter(), data))
        refused = self.got[0][1][9:12] != b"200" and not data.endswith(b"\r\n\r\n")  # the head goes out by itself
        if (data.endswith(_END) or refused) and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection in the middle"))

    async def ask(self, request: bytes) -> Answered:
        """Send, and wait for the end of a streamed answer. Raises ConnectionError for any other."""
        assert self.transport is not None
        self.got, self.done = [], asyncio.get_running_loop().create_future()
        sent = time.perf_counter()
        self.transport.write(request)
        await self.done
        return _read(sent, self.got)


def _read(sent: float, got: Sequence[tuple[float, bytes]]) -> Answered:
    whole = b"".join(data for _, data in got)
    status = int(whole[9:12])
    if status != 200:
        raise ConnectionError(f"status {status}: {whole.partition(b'{')[2][:200].decode('utf-8', 'replace')}")
    told = _TOKENS.findall(whole)
    if not told:
        raise ConnectionError(f"an answer without its usage: {whole[-200:].decode('utf-8', 'replace')}")
    said = [at for at, data in got if _SAYS in data or _OPENS in data]
    return Answered(sent, status, said, got[-1][0], int(told[-1]))


def request(body: Json, host: str = "localhost") -> bytes:
    """A streamed chat completion as it goes over the wire."""
    told = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(told)}\r\n\r\n".encode() + told


async def load(port: int, requests: Sequence[bytes], streams: int) -> Load:
    """All requests, so many at a time, each stream one after the other."""
    waiting = iter(requests)
    answers: list[Answered] = []
    loop = asyncio.get_running_loop()
    exchanges = [(await loop.create_connection(_Exchange, "127.0.0.1", port))[1] for _ in range(streams)]

    async def go_on(exchange: _Exchange) -> None:
        for one in waiting:
            answers.append(await exchange.ask(one))

    await asyncio.gather(*map(go_on, exchanges))
    for exchange in exchanges:
        if exchange.transport is not None:
            exchange.transport.close()
    return summed_up(answers, streams)


def summed_up(answers: Sequence[Answered], streams: int) -> Load:
    """The figures of a load."""
    firsts = [1000 * (answer.arrivals[0] - answer.sent) for answer in answers]
    gaps = [
        1000 * (later - earlier)
        for answer in answers
        for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)
    ]
    seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    return Load(streams, len(answers), tokens, seconds, *_percentiles(firsts), *_percentiles(gaps))


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
