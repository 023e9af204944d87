"""The worker pool: one thread and one engine per device, a bounded queue in front, pieces handed to the event loop.

Nothing here knows HTTP. A job is submitted on the event loop and generates on a worker's thread; whoever loses
interest calls `Job.cancel()`, and the worker stops at the next piece.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from nanochat.command import UserError
from nanochat.conversation import PartType

log = logging.getLogger(__name__)


class Piece(Protocol):
    """What an engine streams: whole characters of text, of a tool call, or of the tool's answer."""

    @property
    def type(self) -> PartType:
        """Which of the three it is."""
        ...

    @property
    def text(self) -> str:
        """The characters."""
        ...


class StreamingEngine(Protocol):
    """The part of `nanochat.engine.Engine` that a worker needs."""

    @property
    def context_len(self) -> int:
        """Most tokens that prompt and answer may have together."""
        ...

    def stream(
        self,
        prompt: list[int],
        max_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        seed: int = ...,
    ) -> Iterator[Piece]:
        """Generate the answer to `prompt`, piece by piece; closing the iterator ends the generation."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How to sample one answer. `top_k` None takes all tokens."""

    max_tokens: int
    temperature: float
    top_k: int | None
    seed: int


class PoolBusyError(Exception):
    """The waiting queue is full."""


class GenerationError(Exception):
    """The answer ended early; the text may be shown to the client."""


class Job:
    """One answer under way. Made on the event loop that reads `pieces()`."""

    def __init__(self, prompt: list[int], sampling: Sampling):
        self.prompt = prompt
        self.sampling = sampling
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | GenerationError | None] = asyncio.Queue()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop the generation at its next piece; harmless on a finished job; from any thread."""
        self._cancelled.set()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer's pieces as they come. Raises GenerationError when the engine breaks or the pool closes."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, GenerationError):
                raise event
            yield event

    def put(self, event: Piece | GenerationError | None) -> None:
        """Hand one event to the event loop, None as the last; from the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server is gone, and so is the client
            self.cancel()


class Pool:
    """Engines that each answer one job at a time, the next free one taking the oldest waiting job.

    At most `max_waiting` jobs wait; waiting jobs that were cancelled free their place.
    """

    def __init__(self, engines: Sequence[StreamingEngine], max_waiting: int = 32):
        assert engines, "a pool needs at least one engine"
        self.context_len = min(engine.context_len for engine in engines)
        self.max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"engine-{index}", daemon=True)
            for index, engine in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> int:
        """How many answers can be generated at once."""
        return len(self._threads)

    @property
    def running(self) -> int:
        """Jobs that are being answered now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs in the queue that somebody still waits for."""
        with self._changed:
            return sum(not job.cancelled for job in self._waiting)

    def submit(self, prompt: list[int], sampling: Sampling) -> Job:
        """Queue one answer; call it on the event loop. Raises PoolBusyError when the queue is full."""
        job = Job(prompt, sampling)
        with self._changed:
            self._waiting = deque(other for other in self._waiting if not other.cancelled)
            free = self.workers - len(self._running)
            if self._closed or len(self._waiting) >= self.max_waiting + free:
                raise PoolBusyError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """End all jobs and threads; returns when the threads have ended (each at its next piece)."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.put(GenerationError("the server is stopping"))
            self._waiting.clear()
            for job in self._running:
                job.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, engine: StreamingEngine) -> None:
        """A worker's life: take the oldest job, answer it, until the pool closes."""
        while (job := self._take()) is not None:
            try:
                job.put(self._answer(engine, job))
            finally:
                with self._changed:
                    self._running.discard(job)

    def _take(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            job = self._waiting.popleft()
            self._running.add(job)
            return job

    def _answer(self, engine: StreamingEngine, job: Job) -> GenerationError | None:
        """Generate until the end or until nobody listens; whatever the engine raises becomes the job's last event."""
        if job.cancelled:
            return None
        how = job.sampling
        stream = engine.stream(
            job.prompt, max_tokens=how.max_tokens, temperature=how.temperature, top_k=how.top_k, seed=how.seed
        )
        try:
            for piece in stream:
                if job.cancelled:
                    return GenerationError("the answer was stopped")
                job.put(piece)
        except UserError as mistake:
            return GenerationError(str(mistake))
        except Exception:
            log.exception("an engine failed")
            return GenerationError("the model failed while answering; the server's log says why")
        finally:
            if isinstance(stream, Generator):  # free the cache now, not when the garbage is collected
                stream.close()
        return None
