"""The worker pool, as the front sees it: a bounded queue, the least loaded worker next, dead workers started anew.

All of it runs on the event loop and nothing of it computes. A job is one request's prompts with all their samples;
each prompt is a task for one worker.

Lesson: lessons/24_serving
"""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nanochat.command import UserError
from nanochat.serving import wire
from nanochat.serving.wire import Facts, Gain, Sampling

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 30.0  # before a dead worker is started anew
STEADY_SECONDS = 60.0  # a worker that lived so long may be started anew at once
END_SECONDS = 10.0  # what a worker has to end by itself

log = logging.getLogger(__name__)

FailureKind = Literal["refused", "overflow", "broken", "busy", "stopping", "late"]


class Handle(Protocol):
    """A worker that runs: a process."""

    def kill(self) -> None:
        """End it now."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        ...

    def is_alive(self) -> bool:
        """Whether it runs."""
        ...


# Starts the worker of this number on the far end of the socket; the facts of the first one pin what the others load.
Launch = Callable[[int, Facts | None, socket.socket], Handle]


class PoolBusyError(Exception):
    """The waiting queue is full, or nothing new is taken."""


@dataclass(eq=False)  # not frozen: Python sets an exception's traceback
class GenerationError(Exception):
    """The answer ended early; the message may be shown to the client."""

    message: str
    kind: FailureKind

    def __str__(self) -> str:
        """The message alone."""
        return self.message


class Job:
    """What one request waits for. Choices are numbered through: those of the first prompt, of the second, ..."""

    def __init__(self, cancel: Callable[["Job"], None], samples: int):
        self._cancel = cancel
        self._open_samples = samples
        self._pending: list[tuple[int, Gain]] = []
        self._failure: GenerationError | None = None
        self._woken = asyncio.Event()
        self.tasks: list[_Task] = []

    @property
    def done(self) -> bool:
        """Whether all samples have ended, each by itself, and all of it was taken."""
        return self._open_samples == 0 and not self._pending and self._failure is None

    @property
    def dispatched(self) -> bool:
        """Whether every prompt has its worker."""
        return all(task.worker is not None for task in self.tasks)

    async def take(self) -> list[tuple[int, Gain]]:
        """(choice, gain) of all that has come since the last call, at least one; [] when all samples have ended.

        Raises GenerationError.
        """
        while not self._pending:
            if self._failure is not None:
                raise self._failure
            if not self._open_samples:
                return []
            self._woken.clear()
            await self._woken.wait()
        taken, self._pending = self._pending, []
        return taken

    def cancel(self) -> None:
        """Nobody waits any more: free queue and rows; harmless on a job that is done."""
        self._cancel(self)

    def put(self, choice: int, gain: Gain) -> None:
        """What a sample gained."""
        if gain.finish_reason == "error":
            self.fail(GenerationError(gain.error or "the model failed while answering", "broken"))
            return
        if gain.finish_reason is not None:
            self._open_samples -= 1
        self._pending.append((choice, gain))
        self._woken.set()

    def fail(self, failure: GenerationError) -> None:
        """End the job before its time; the first failure counts."""
        self._failure = self._failure or failure
        self._woken.set()


@dataclass(eq=False)
class _Task:
    number: int
    job: Job
    first_choice: int
    prompt: list[int]
    sampling: Sampling
    n: int
    open_samples: int = 0
    worker: "Worker | None" = None


@dataclass(eq=False)
class Worker:
    """One worker as the front knows it; `restarts` counts the deaths behind it."""

    index: int
    ready: bool = False
    restarts: int = 0
    context_len: int = 0
    max_rows: int = 0
    facts: Facts = field(default_factory=dict)
    stats: Facts = field(default_factory=dict)
    tasks: dict[int, _Task] = field(default_factory=dict)
    handle: Handle | None = None
    writer: asyncio.StreamWriter | None = None

    @property
    def running(self) -> int:
        """Samples that it was given and that have not ended."""
        return sum(task.open_samples for task in self.tasks.values())

    def send(self, message: wire.FromFront) -> None:
        """Hand a message to the socket; whether the worker still lives shows at the other end of it."""
        assert self.writer is not None, f"worker {self.index} has no socket"
        self.writer.write(wire.pack(message))


class Pool:
    """`count` workers and the tasks that wait for one. `await start()` first, `await close()` last.

    At most `max_waiting` prompts wait for a worker, none of them longer than `queue_seconds`.
    """

    def __init__(self, launch: Launch, count: int = 1, max_waiting: int = 256, queue_seconds: float = 60.0):
        assert count, "a pool needs at least one worker"
        self._launch = launch
        self.max_waiting, self.queue_seconds = max_waiting, queue_seconds
        self.workers = [Worker(index) for index in range(count)]
        self.draining = False
        self._closing = False
        self._waiting: deque[_Task] = deque()
        self._numbers = itertools.count()
        self._pinned: Facts | None = None
        self._lives: list[asyncio.Task[None]] = []

    @property
    def context_len(self) -> int:
        """Most tokens that prompt and answer may have together."""
        return min(worker.context_len for worker in self.workers)

    @property
    def started(self) -> bool:
        """Whether `start` has done its work."""
        return self._pinned is not None

    @property
    def facts(self) -> Facts:
        """What the first worker told of its model."""
        return self._pinned or {}

    @property
    def ready(self) -> bool:
        """Whether a request would be taken and answered now."""
        return not self.draining and any(worker.ready for worker in self.workers)

    @property
    def running(self) -> int:
        """Samples that a worker has."""
        return sum(worker.running for worker in self.workers)

    @property
    def waiting(self) -> int:
        """Prompts in the queue."""
        return len(self._waiting)

    async def start(self) -> None:
        """Start the first worker, then the others with the model that it chose. Raises UserError when one cannot."""
        await self._start(self.workers[0])
        self._pinned = self.workers[0].facts
        await asyncio.gather(*(self._start(worker) for worker in self.workers[1:]))

    def submit(self, prompts: Sequence[list[int]], sampling: Sampling, n: int = 1) -> Job:
        """Queue `n` answers to each prompt. Raises PoolBusyError when there is no room for all of them."""
        free = sum(max(0, worker.max_rows - worker.running) for worker in self.workers if worker.ready)
        if self.draining or self._closing or len(self._waiting) + len(prompts) > self.max_waiting + free:
            raise PoolBusyError
        job = Job(self._cancel, len(prompts) * n)
        for index, prompt in enumerate(prompts):
            task = _Task(next(self._numbers), job, index * n, prompt, sampling, n, open_samples=n)
            job.tasks.append(task)
            self._waiting.append(task)
        self._dispatch()
        if not job.dispatched:
            asyncio.get_running_loop().call_later(self.queue_seconds, self._expire, job)
        return job

    def drain(self, seconds: float) -> None:
        """Take nothing new; what is under way has so long, and then ends with an error."""
        self.draining = True
        asyncio.get_running_loop().call_later(seconds, self._fail_all)

    async def close(self) -> None:
        """End all jobs and workers; returns when the workers have ended."""
        self.draining = self._closing = True
        self._fail_all()
        for worker in self.workers:
            if worker.writer is not None:
                worker.writer.close()  # a worker ends when its socket does
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        for worker in self.workers:
            if worker.handle is not None:  # one that still loads does not hear that it should end
                await asyncio.to_thread(_end, worker.handle, END_SECONDS if worker.ready else 0.0)

    async def _start(self, worker: Worker) -> None:
        reader = await self._launched(worker)
        first = await _first_message(reader)
        if isinstance(first, wire.Ready):
            self._admit(worker, first)
            self._lives.append(asyncio.create_task(self._live(worker, reader)))
        else:
            raise UserError(first.message if first else f"worker {worker.index} ended while it loaded the model")

    async def _launched(self, worker: Worker) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:  # the worker has its own copy; ours would hide its death
            worker.handle = await asyncio.to_thread(self._launch, worker.index, self._pinned, theirs)
        reader, worker.writer = await asyncio.open_connection(sock=ours)
        return reader

    def _admit(self, worker: Worker, told: wire.Ready) -> None:
        worker.context_len, worker.max_rows, worker.facts = told.context_len, told.max_rows, told.facts
        worker.ready = True
        self._dispatch()

    async def _live(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        """Hear a worker to its end; then start it anew, again and again with longer pauses."""
        loop = asyncio.get_running_loop()
        pause, began = FIRST_PAUSE_SECONDS, loop.time()
        while True:
            try:
                await self._listen(worker, reader)
            except (EOFError, OSError):
                log.error("worker %d has died and is started anew", worker.index)
            except Exception:  # ours; without this nobody would hear the worker any more
                log.exception("worker %d is not understood and is started anew", worker.index)
            await self._bury(worker)
            if loop.time() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            anew = None
            while anew is None:
                await asyncio.sleep(pause)
                pause, began = min(2 * pause, LONGEST_PAUSE_SECONDS), loop.time()
                anew = await self._anew(worker)
            reader = anew

    async def _anew(self, worker: Worker) -> asyncio.StreamReader | None:
        """Start a worker that has died; None, with the reason in the log, when it does not come up."""
        try:
            reader = await self._launched(worker)
        except OSError as refusal:
            log.error("worker %d cannot be started: %s", worker.index, refusal)
            return None
        first = await _first_message(reader)
        if isinstance(first, wire.Ready):
            self._admit(worker, first)
            return reader
        log.error("worker %d does not start: %s", worker.index, first.message if first else "it died")
        await self._bury(worker)
        return None

    async def _listen(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        while True:
            message = await wire.read(reader)
            if isinstance(message, wire.Report):
                worker.stats = message.stats or worker.stats
                for gain in message.gains:
                    self._deliver(worker, gain)
            elif isinstance(message, wire.Refused) and (task := worker.tasks.pop(message.task, None)):
                kind: FailureKind = "overflow" if message.overflow else "refused"
                task.job.fail(GenerationError(message.message, kind))
                task.job.cancel()
            self._dispatch()

    def _deliver(self, worker: Worker, gain: Gain) -> None:
        task = worker.tasks.get(gain.task)
        if task is None:
            return  # cancelled meanwhile
        if gain.finish_reason is not None:
            task.open_samples -= 1
            if not task.open_samples:
                del worker.tasks[gain.task]
        task.job.put(task.first_choice + gain.sample, gain)

    async def _bury(self, worker: Worker) -> None:
        """Answer a dead worker's tasks with an error."""
        worker.ready = False
        worker.restarts += 1
        for task in [*worker.tasks.values()]:
            task.job.fail(GenerationError("the worker that wrote this answer died; please try again", "broken"))
            task.job.cancel()
        assert worker.writer is not None, f"worker {worker.index} was never heard"
        worker.writer.close()
        if worker.handle is not None:
            await asyncio.to_thread(_end, worker.handle, END_SECONDS)

    def _dispatch(self) -> None:
        """Give waiting tasks to the workers that have rows for them, the least loaded first."""
        while self._waiting:
            open_to_more = [w for w in self.workers if w.ready and w.running < w.max_rows]
            if not open_to_more:
                return
            worker = min(open_to_more, key=lambda w: w.running / w.max_rows)
            task = self._waiting.popleft()
            task.worker, worker.tasks[task.number] = worker, task
            worker.send(wire.Submit(task.number, task.prompt, task.sampling, task.n))

    def _cancel(self, job: Job) -> None:
        for task in job.tasks:
            if task.worker is None:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(task)
            elif task.worker.tasks.pop(task.number, None) and task.worker.ready:
                task.worker.send(wire.Cancel(task.number))
        job.tasks.clear()
        self._dispatch()

    def _expire(self, job: Job) -> None:
        if job.tasks and not job.dispatched:
            job.fail(GenerationError(f"the server is busy: this waited {self.queue_seconds:g} seconds in vain", "busy"))
            job.cancel()

    def _fail_all(self) -> None:
        tasks = [*self._waiting, *(task for worker in self.workers for task in worker.tasks.values())]
        for task in tasks:
            task.job.fail(GenerationError("the server is stopping", "stopping"))
            task.job.cancel()


async def _first_message(reader: asyncio.StreamReader) -> wire.Ready | wire.Failed | None:
    try:
        message = await wire.read(reader)
    except (EOFError, OSError):
        return None
    assert isinstance(message, wire.Ready | wire.Failed), f"a worker began with {message!r}"
    return message


def _end(handle: Handle, seconds: float) -> None:
    """Let a worker end, or end it."""
    handle.join(seconds)
    if handle.is_alive():
        handle.kill()
        handle.join()
