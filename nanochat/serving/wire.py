"""What the front and a worker process say to each other, and how it goes through a socket.

Frames are four bytes of length and a pickle: both ends are this program. Nothing here knows HTTP, nor torch.

Lesson: lessons/24_serving
"""

import asyncio
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

from nanochat.conversation import PartType

FinishReason = Literal["stop", "length", "cancelled", "error"]
Facts = Mapping[str, str | int | float | bool | None]

_LENGTH_BYTES = 4


class Sampling(TypedDict, total=False):
    """The fields of `nanochat.sampling.SamplingParams`, without its import of torch."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int | None
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    logprobs: int | None
    prompt_logprobs: int | None
    tools: bool


class Logprob(NamedTuple):
    """As `nanochat.scheduler.TokenLogprob`."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Gain(NamedTuple):
    """What one sample of a task gained in one step: `nanochat.scheduler.Update`, with its ids counted only."""

    task: int
    sample: int
    pieces: tuple[tuple[PartType, str], ...] = ()
    tokens: int = 0
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True)
class Submit:
    """Front to worker: answer a prompt `n` times."""

    task: int
    prompt: list[int]
    sampling: Sampling
    n: int


@dataclass(frozen=True)
class Cancel:
    """Front to worker: nobody waits for this task any more."""

    task: int


@dataclass(frozen=True)
class Ready:
    """Worker to front, once: an engine is there. `facts` tell of the model and pin it for the other workers."""

    context_len: int
    max_rows: int
    facts: Facts


@dataclass(frozen=True)
class Failed:
    """Worker to front, as the last: a person's mistake keeps the engine from being made."""

    message: str


@dataclass(frozen=True)
class Refused:
    """Worker to front: the engine does not take this task. `overflow`: its prompt is too long."""

    task: int
    message: str
    overflow: bool


@dataclass(frozen=True)
class Report:
    """Worker to front: what the steps since the last report gave, and now and then how the engine is."""

    gains: list[Gain]
    stats: Facts | None = None


FromFront = Submit | Cancel
FromWorker = Ready | Failed | Refused | Report


def pack(message: FromFront | FromWorker) -> bytes:
    """One frame."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read(reader: asyncio.StreamReader) -> FromWorker:
    """The next message on the event loop. Raises EOFError or OSError when the other end is gone."""
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    message: FromWorker = pickle.loads(await reader.readexactly(size))
    return message


class Inbox:
    """The worker's end: frames out of a blocking socket, taken without waiting or waited for a while."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._bytes = bytearray()

    def take(self, wait_seconds: float) -> list[FromFront]:
        """All messages that are there; none after so long without one. Raises EOFError when the front is gone."""
        messages: list[FromFront] = []
        while True:
            while (message := self._next()) is not None:
                messages.append(message)
            self._connection.settimeout(0 if messages else wait_seconds)
            try:
                received = self._connection.recv(1 << 20)
            except (BlockingIOError, TimeoutError):
                return messages
            finally:
                self._connection.settimeout(None)
            if not received:
                raise EOFError
            self._bytes += received

    def _next(self) -> FromFront | None:
        if len(self._bytes) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._bytes[:_LENGTH_BYTES], "big")
        if len(self._bytes) < end:
            return None
        message: FromFront = pickle.loads(self._bytes[_LENGTH_BYTES:end])
        del self._bytes[:end]
        return message
