"""A worker process: one engine, one loop without threads. Messages in, submit, cancel and step, reports out.

It lives as long as the socket to the front: when the front ends, however it ends, so does the worker.

Lesson: lessons/24_serving
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, ClassVar, Protocol

from nanochat.command import UserError
from nanochat.serving.wire import Cancel, Facts, Failed, Gain, Inbox, Logprob, Ready, Refused, Report, Submit, pack

if TYPE_CHECKING:
    from nanochat.rows import TokenLogprob, Update
    from nanochat.sampling import SamplingParams

STATS_EVERY_SECONDS = 0.5
TIDY_EVERY_SECONDS = 10.0
REPORTED_PER_SECOND = 1000  # samples; each is a write to a client, which costs as much as its share of a decode step
LONGEST_WAIT_SECONDS = 0.05  # of what was said, for what is said next


class Stats(Protocol):
    """Numbers in a dataclass, how many samples are decoded together among them."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]

    @property
    def max_rows(self) -> int:
        """That many."""
        ...


class StepEngine(Protocol):
    """The part of `nanochat.engine.Engine` that a worker needs."""

    @property
    def context_len(self) -> int:
        """Most tokens that prompt and answer may have together."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def submit(self, prompt: Sequence[int], params: "SamplingParams", n: int = 1) -> int:
        """Take a request, return its number. Raises UserError."""
        ...

    def step(self) -> "list[Update]":
        """Let all rows go on; what they gained."""
        ...

    def cancel(self, request: int) -> None:
        """Forget a request."""
        ...

    def stats(self) -> Stats:
        """How it is."""
        ...

    def tidy(self) -> None:
        """Give back to the system what memory is not needed now."""
        ...


# An engine, and what there is to say about its model, for as long as the block runs.
MakeEngine = Callable[[], contextlib.AbstractContextManager[tuple[StepEngine, Facts]]]


def start_process(make_engine: MakeEngine, connection: socket.socket) -> BaseProcess:
    """A fresh process (nothing of ours is forked) that makes its engine and serves it over `connection`."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run, args=(make_engine, connection), name="nanochat-worker", daemon=True)
    process.start()
    return process


def run(make_engine: MakeEngine, connection: socket.socket) -> None:
    """A worker process's life. The front alone hears signals that reach the whole group, and drains before it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with connection, contextlib.suppress(EOFError, ConnectionError):
        try:
            with make_engine() as (engine, facts):
                serve(engine, connection, facts)
        except UserError as mistake:
            connection.sendall(pack(Failed(str(mistake))))


def serve(engine: StepEngine, connection: socket.socket, facts: Facts) -> None:
    """Answer tasks until the front is gone (EOFError, ConnectionError). What the engine raises ends the worker."""
    connection.sendall(pack(Ready(engine.context_len, engine.stats().max_rows, {**facts, "pid": os.getpid()})))
    inbox = Inbox(connection)
    tasks = _Tasks(engine)
    stats_told = reported = 0.0
    tidied = time.monotonic()
    outbox: list[Gain] = []
    while True:
        for message in inbox.take(0.0 if engine.busy else TIDY_EVERY_SECONDS):
            if isinstance(message, Cancel):
                tasks.cancel(message.task)
            elif refusal := tasks.submit(message):
                connection.sendall(pack(refusal))
        gains = tasks.step()
        outbox += gains
        now = time.monotonic()
        stats: Facts | None = None
        if now - stats_told >= STATS_EVERY_SECONDS or not engine.busy:
            stats_told, stats = now, dataclasses.asdict(engine.stats())
        patience = min(LONGEST_WAIT_SECONDS, len(gains) / REPORTED_PER_SECOND)
        if stats or tasks.urgent or (outbox and now - reported >= patience):
            connection.sendall(pack(Report(outbox, stats)))
            outbox, reported = [], now
        if now - tidied >= TIDY_EVERY_SECONDS:
            engine.tidy()
            tidied = now


class _Tasks:
    """The front's tasks beside the engine's requests. `urgent`: in the last step a sample began or ended."""

    def __init__(self, engine: StepEngine):
        self.urgent = False
        self._engine = engine
        self._begun: set[tuple[int, int]] = set()  # (task, sample)
        self._request_of: dict[int, int] = {}
        self._task_of: dict[int, int] = {}
        self._open_samples: dict[int, int] = {}  # by task

    def submit(self, message: Submit) -> Refused | None:
        """Give a task to the engine, or say why it does not take it."""
        from nanochat.rows import ContextOverflow
        from nanochat.sampling import SamplingParams

        try:
            request = self._engine.submit(message.prompt, SamplingParams(**message.sampling), message.n)
        except UserError as mistake:
            return Refused(message.task, str(mistake), isinstance(mistake, ContextOverflow))
        self._request_of[message.task], self._task_of[request] = request, message.task
        self._open_samples[message.task] = message.n
        return None

    def cancel(self, task: int) -> None:
        """Forget a task; harmless when it has ended."""
        if task in self._request_of:
            self._engine.cancel(self._forget(task))

    def step(self) -> list[Gain]:
        """Let the engine go on; what that gave to tasks that somebody waits for."""
        gains = []
        self.urgent = False
        for update in self._engine.step():
            task = self._task_of.get(update.request)
            if task is None:
                continue
            gains.append(_gain(update, task))
            if update.finish_reason is not None or (task, update.sample) not in self._begun:
                self.urgent = True
                self._begun.add((task, update.sample))
            if update.finish_reason is not None:
                self._open_samples[task] -= 1
                if not self._open_samples[task]:
                    self._forget(task)
        return gains

    def _forget(self, task: int) -> int:
        request = self._request_of.pop(task)
        del self._task_of[request], self._open_samples[task]
        self._begun = {(begun, sample) for begun, sample in self._begun if begun != task}
        return request


def _gain(update: "Update", task: int) -> Gain:
    prompt = update.prompt_logprobs
    return Gain(
        task,
        update.sample,
        tuple((piece.type, piece.text) for piece in update.pieces),
        len(update.ids),
        tuple(_logprob(entry) for entry in update.logprobs),
        None if prompt is None else tuple(None if entry is None else _logprob(entry) for entry in prompt),
        update.finish_reason,
        update.error,
    )


def _logprob(entry: "TokenLogprob") -> Logprob:
    return Logprob(entry.id, entry.logprob, entry.top)
