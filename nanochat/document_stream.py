"""The documents of a split as ids, read from row groups and tokenized by a thread ahead of their use.

What comes depends on the position alone, never on time. Rows and batches are not here.

Lesson: lessons/09_x_and_y
"""

import os
import random
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from nanochat import dataset
from nanochat.command import UserError
from nanochat.packing import Ids, Turns
from nanochat.tokenizer_base import BaseTokenizer

if TYPE_CHECKING:
    import pyarrow

CHUNK_DOCUMENTS = 64  # some 70,000 tokens, 2 ms of encoding: the first batch waits for one, and few wait at a save
THREAD_NAME = "nanochat-documents"


@dataclass(frozen=True)
class Chunk:
    """Some documents of one rank, tokenized: document i is `ids[offsets[i]:offsets[i + 1]]`."""

    end: int
    """The position behind them."""
    ids: Ids
    offsets: Ids


@dataclass(frozen=True)
class Documents:
    """The documents of a split, numbered without end: document n stands in epoch n // `count`.

    The first epoch has them as they lie; later ones shuffle the row groups, and the documents of each, by the seed.
    """

    tokenizer: BaseTokenizer
    groups: tuple[tuple[Path, int, int], ...]
    """File, row group, rows."""
    seed: int

    @classmethod
    def of(cls, tokenizer: BaseTokenizer, split: dataset.Split, source: str | None, seed: int) -> "Documents":
        """Those of a split of a source, from the footers of its shards."""
        return cls(
            tokenizer,
            tuple(
                (path, group, rows)
                for path in dataset.split_files(split, source)
                for group, rows in enumerate(dataset.row_group_counts(path))
            ),
            seed,
        )

    @cached_property
    def count(self) -> int:
        """Documents of an epoch."""
        return sum(rows for _, _, rows in self.groups)

    def chunks(self, turns: Turns, end: int | None = None) -> Iterator[Chunk]:
        """Those of one rank from its position on, up to document `end` or without end; one row group is held at a time.

        A chunk's borders follow from where the one before ended, so that any chunk's end can be started from.
        """
        count, position, shuffled = self.count, turns.position, -1
        while end is None or position < end:
            epoch, within = divmod(position, count)
            if epoch != shuffled:
                order, shuffled = self._order(epoch), epoch
                starts = list(accumulate((self.groups[i][2] for i in order), initial=0))
            place = bisect_right(starts, within) - 1
            begin, behind = epoch * count + starts[place], epoch * count + starts[place + 1]
            mine = turns.between(position, behind)
            if len(mine):
                path, group, _ = self.groups[order[place]]
                rows = self._rows(epoch, order[place])[mine - begin]
                texts = dataset.taken(dataset.read_row_group_array(path, group), rows)
                stops = [*mine[CHUNK_DOCUMENTS::CHUNK_DOCUMENTS].tolist(), behind]
                for number, stop in enumerate(stops):
                    some = texts.slice(number * CHUNK_DOCUMENTS, CHUNK_DOCUMENTS)
                    yield Chunk(stop, *self._encoded(some, path, group))
            position = behind

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.groups)))
        if epoch:
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return order

    def _rows(self, epoch: int, group: int) -> "numpy.typing.NDArray[numpy.int64]":
        """The order of a row group's rows in an epoch."""
        rows = list(range(self.groups[group][2]))
        if epoch:
            random.Random(f"{self.seed}-{epoch}-{group}").shuffle(rows)
        return numpy.array(rows, dtype=numpy.int64)

    def _encoded(self, texts: "pyarrow.Array", path: Path, group: int) -> tuple[Ids, Ids]:
        try:
            return self.tokenizer.encode_arrays(texts)
        except UserError as wrong:
            raise UserError(f"{path}, row group {group}: {wrong}") from wrong


class DocumentStream:
    """Chunks of `documents`, of which up to `ahead` are ready or in the making; 0 makes each when it is asked for.

    The thread begins with the first `take` and ends with `close`, with the last chunk, and with the stream. What it
    fails with is raised where the chunk was asked for. A forked child makes a thread of its own.
    """

    def __init__(self, documents: Documents, ahead: int):
        self.documents, self.ahead = documents, ahead
        self._chunks: Iterator[Chunk] | None = None
        self._waiting: deque[Future[Chunk | None]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def take(self, turns: Turns, end: int | None) -> Chunk | None:
        """The next chunk, and on the first call and after `close` the one at `turns.position`; None at the end."""
        if self._process != os.getpid():  # the threads of a parent are not in its child
            self._process, self._executor, self._chunks = os.getpid(), None, None
            self._waiting.clear()
        if self._chunks is None:
            self._chunks = self.documents.chunks(replace(turns), end)
        try:
            chunk = self._take_ahead(self._chunks) if self.ahead else next(self._chunks, None)
        except BaseException:
            self.close()
            raise
        if chunk is None:
            self.close()
        return chunk

    def close(self) -> None:
        """End the thread and forget what is ahead."""
        executor, self._executor, self._chunks = self._executor, None, None
        self._waiting.clear()
        if executor is not None and self._process == os.getpid():
            executor.shutdown(wait=True, cancel_futures=True)

    def _take_ahead(self, chunks: Iterator[Chunk]) -> Chunk | None:
        if self._executor is None:
            # one thread keeps the chunks in order; the crate gives up the interpreter's lock while it encodes
            self._executor = ThreadPoolExecutor(1, THREAD_NAME)
            weakref.finalize(self, _end, self._executor, os.getpid())
        while len(self._waiting) <= self.ahead:
            self._waiting.append(self._executor.submit(next, chunks, None))
        return self._waiting.popleft().result()


def _end(executor: ThreadPoolExecutor, process: int) -> None:
    """Let the thread of a stream that nobody holds any more end; the thread itself cannot wait for that."""
    if process == os.getpid():
        inside = threading.current_thread().name.startswith(THREAD_NAME)
        executor.shutdown(wait=not inside, cancel_futures=True)
