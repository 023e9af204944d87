"""Documents or conversations, packed into rows of ids on the device.

Both loaders are iterators without end that start over in another order when their data is used up (`one_epoch` ends
them before), and both have an exact `state_dict`: the batch after a resume is the batch that would have come.

Shapes: B rows per rank, T tokens. A row holds T + 1 ids; inputs are all but the last, targets all but the first.

Lesson: lessons/09_x_and_y
"""

import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Protocol

import numpy
import torch
from numpy.typing import NDArray

from nanochat import dataset
from nanochat.chat_format import render_conversation
from nanochat.command import UserError
from nanochat.conversation import Conversation
from nanochat.document_stream import Documents, DocumentStream
from nanochat.packing import Counts, Turns, WaitingPieces, list_of, number_of
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer

IGNORED_TARGET = -1
State = dict[str, int | list[int]]


class Conversations(Protocol):
    """Anything with a length that gives conversations by index: a task, a mixture, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Conversation: ...


class DocumentLoader:
    """Text packed into full rows, nothing thrown away and nothing padded.

    Every document is led by `<|bos|>`; one longer than a row is cut into pieces, each led by it again. A row takes the
    longest waiting piece that fits, of equals the one that has waited longest; when none fits, one is cut to fill the
    row and its rest, led by `<|bos|>`, goes back to wait. Document number n, counted over all epochs, goes to rank n
    modulo the number of ranks. A thread tokenizes `ahead` chunks of documents before they are asked for.
    """

    def __init__(
        self,
        tokenizer: RustBPETokenizer,
        rows: int,
        tokens: int,
        runtime: Runtime,
        split: dataset.Split = "train",
        source: str | None = None,
        buffer_size: int = 256,
        seed: int = 42,
        ahead: int = 4,
    ):
        self.rows, self.tokens, self.runtime, self.buffer_size = rows, tokens, runtime, buffer_size
        self.documents = Documents.of(tokenizer, split, source, seed)
        self.epochs: int | None = None  # how many to give; None: without end
        self.counts = Counts()
        self.turns = Turns(runtime.rank, runtime.world_size)
        self.waiting = WaitingPieces(tokenizer.get_bos_token_id())
        self._stream = DocumentStream(self.documents, ahead)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 (B, T). Only where the last epoch ends do ignored targets fill up the batch."""
        self._refill()
        if not self.waiting:
            raise StopIteration
        ids = numpy.full((self.rows, self.tokens + 1), self.waiting.bos, dtype=numpy.int64)
        targets = numpy.empty((self.rows, self.tokens), dtype=numpy.int64)
        for row, row_targets in zip(ids, targets, strict=True):
            filled = self._fill(row)
            row_targets[:] = row[1:]
            row_targets[max(0, filled - 1) :] = IGNORED_TARGET
        return to_device(ids[:, :-1], self.runtime), to_device(targets, self.runtime)

    @property
    def epoch(self) -> int:
        """The epoch of the next document."""
        return self.turns.position // self.documents.count

    def close(self) -> None:
        """End the thread; the loader may go on, with a new one."""
        self._stream.close()

    def state_dict(self) -> State:
        """The position in the data, and the pieces that wait for a row."""
        position = {**self.turns.state(), "count": self.documents.count, "counts": self.counts.state()}
        return {**position, **self.waiting.state()}

    def load_state_dict(self, state: State) -> None:
        """Go on where `state_dict` was taken, as the same rank of as many."""
        self.load_state_dicts([state] * self.runtime.world_size)

    def load_state_dicts(self, states: Sequence[State]) -> None:
        """Go on from the states of all ranks, of as many as there were: what none has given is dealt out anew.

        Raises UserError when the text is not the one that they were taken in.
        """
        check_count(states, self.documents.count, "documents")
        rank, ranks = self.runtime.rank, self.runtime.world_size
        self.close()
        self.turns = Turns.from_states(rank, ranks, states)
        self.waiting = WaitingPieces.from_states(self.waiting.bos, rank, ranks, states)
        self.counts = counts_of(rank, ranks, states)

    def _fill(self, row: NDArray[numpy.int64]) -> int:
        """Fill a row as far as there is text; how many ids it holds."""
        at = 0
        while at < len(row):
            self._refill()
            if not self.waiting:
                break
            at, cut = self.waiting.fill(row, at)
            self.counts.cut += cut
        self.counts.rows += 1
        self.counts.tokens += max(0, at - 1)
        self.counts.padding += len(row) - max(1, at)
        return at

    def _refill(self) -> None:
        end = None if self.epochs is None else self.epochs * self.documents.count
        while len(self.waiting) < self.buffer_size and (end is None or self.turns.position < end):
            chunk = self._stream.take(self.turns, end)
            if chunk is None:
                self.turns.position = end or 0
                return
            self.turns.position = chunk.end
            self.counts.items += len(chunk.offsets) - 1
            for start, stop in pairwise(chunk.offsets.tolist()):
                for at in range(start, max(stop, start + 1), self.tokens):
                    # copied, so that a short piece that waits for long does not hold its whole chunk in memory
                    self.waiting.add(chunk.ids[at : min(at + self.tokens, stop)].copy())


class ConversationLoader:
    """Whole conversations packed into rows; the rest of a row is padding that is not trained on.

    A row takes the longest waiting conversation that fits, until none does. One longer than a row is cropped.
    With `train_on_all` every token is a target, else what the mask of `chat_format` says. Each epoch has an order of
    its own; conversation number n, counted over all epochs, goes to rank n modulo the number of ranks.
    """

    def __init__(
        self,
        conversations: Conversations,
        tokenizer: RustBPETokenizer,
        rows: int,
        tokens: int,
        runtime: Runtime,
        train_on_all: bool = False,
        buffer_size: int = 64,
        seed: int = 42,
    ):
        if not len(conversations):
            raise UserError("there are no conversations to train on: name a file or a task that has some")
        self.conversations, self.tokenizer, self.runtime = conversations, tokenizer, runtime
        self.rows, self.tokens, self.train_on_all = rows, tokens, train_on_all
        self.buffer_size, self.seed = buffer_size, seed
        self.epochs: int | None = None  # how many to give; None: without end
        self.counts = Counts()
        self.turns = Turns(runtime.rank, runtime.world_size)
        self.waiting: list[int] = []  # indices of conversations
        self._rendered: dict[int, tuple[list[int], list[int], int]] = {}  # of those
        self._order_of: tuple[int, list[int]] = (-1, [])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 (B, T); a target of -1 is not trained on."""
        self._refill()
        if not self.waiting:
            raise StopIteration
        rows = [self._next_row() for _ in range(self.rows)]
        ids = numpy.array([row for row, _ in rows], dtype=numpy.int64)
        mask = numpy.array([row_mask for _, row_mask in rows], dtype=bool)
        targets = numpy.where(mask[:, 1:], ids[:, 1:], IGNORED_TARGET)
        return to_device(ids[:, :-1], self.runtime), to_device(targets, self.runtime)

    @property
    def epoch(self) -> int:
        """The epoch of the next conversation."""
        return self.turns.position // len(self.conversations)

    def state_dict(self) -> State:
        """The position in the data, and the conversations that wait for a row."""
        position = {**self.turns.state(), "count": len(self.conversations), "counts": self.counts.state()}
        return {**position, "waiting": list(self.waiting)}

    def load_state_dict(self, state: State) -> None:
        """Go on where `state_dict` was taken, as the same rank of as many."""
        self.load_state_dicts([state] * self.runtime.world_size)

    def load_state_dicts(self, states: Sequence[State]) -> None:
        """Go on from the states of all ranks, of as many as there were: what none has given is dealt out anew.

        Raises UserError when the conversations are not those that they were taken in.
        """
        check_count(states, len(self.conversations), "conversations")
        rank, ranks = self.runtime.rank, self.runtime.world_size
        self.turns = Turns.from_states(rank, ranks, states)
        self.counts = counts_of(rank, ranks, states)
        if len(states) == ranks:
            self.waiting = list_of(states[rank]["waiting"])
        else:
            self.waiting = [index for state in states for index in list_of(state["waiting"])][rank::ranks]

    def _next_row(self) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        mask: list[int] = []
        while True:
            self._refill()
            room = self.tokens + 1 - len(ids)
            fitting = [index for index in self.waiting if len(self._render(index)[0]) <= room]
            if not fitting:
                break
            chosen = max(fitting, key=lambda index: len(self._render(index)[0]))
            self.waiting.remove(chosen)
            more_ids, more_mask, cropped = self._render(chosen)
            self.counts.cropped += cropped
            if chosen not in self.waiting:  # of two epochs it may wait twice
                del self._rendered[chosen]
            ids, mask = ids + more_ids, mask + more_mask
        padding = self.tokens + 1 - len(ids)
        self.counts.rows += 1
        self.counts.tokens += max(0, len(ids) - 1)
        self.counts.padding += min(padding, self.tokens)
        return ids + [self.tokenizer.get_bos_token_id()] * padding, mask + [0] * padding

    def _refill(self) -> None:
        count, ranks = len(self.conversations), self.runtime.world_size
        end = sys.maxsize if self.epochs is None else self.epochs * count
        while len(self.waiting) < self.buffer_size and (begin := self.turns.position) < end:
            for number in self.turns.between(begin, min(begin + ranks, end)).tolist():
                self.waiting.append(self._order(number // count)[number % count])
                self.counts.items += 1
            self.turns.position = begin + ranks

    def _order(self, epoch: int) -> list[int]:
        if self._order_of[0] != epoch:
            order = list(range(len(self.conversations)))
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
            self._order_of = (epoch, order)
        return self._order_of[1]

    def _render(self, index: int) -> tuple[list[int], list[int], int]:
        """Ids and mask of a conversation, cropped to a row, and how many ids were cropped."""
        if index not in self._rendered:
            ids, mask = render_conversation(
                self.conversations[index], self.tokenizer, max_tokens=sys.maxsize, mask_all=self.train_on_all
            )
            most = self.tokens + 1
            self._rendered[index] = ids[:most], mask[:most], max(0, len(ids) - most)
        return self._rendered[index]


def one_epoch(loader: DocumentLoader | ConversationLoader, batches: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """At most `batches` batches of a fresh loader, which ends when every document has come once: for measuring."""
    loader.epochs = 1
    return islice(loader, batches)


def mean_tokens(conversations: Conversations, tokenizer: RustBPETokenizer, tokens: int, samples: int = 200) -> float:
    """The mean length in tokens of a conversation cropped to a row, from evenly spaced samples."""
    step = max(1, len(conversations) // samples)
    lengths = [
        len(render_conversation(conversations[index], tokenizer, max_tokens=tokens + 1)[0])
        for index in range(0, len(conversations), step)
    ]
    return sum(lengths) / len(lengths)


def to_device(array: numpy.ndarray, runtime: Runtime) -> torch.Tensor:
    """A tensor on the device; on cuda by way of pinned memory, not waited for."""
    tensor = torch.from_numpy(numpy.ascontiguousarray(array))
    if runtime.device.type == "cuda":
        return tensor.pin_memory().to(runtime.device, non_blocking=True)
    return tensor.to(runtime.device)


def check_count(states: Sequence[State], count: int, items: str) -> None:
    """Raises UserError when states were taken in data with another number of items; more are welcome in epoch 0."""
    had = number_of(states[0]["count"])
    reached = max(n for state in states for n in [number_of(state["position"]), *list_of(state["done"])])
    if count < had or (count > had and reached > had):
        raise UserError(
            f"the checkpoint was made with {had:,} {items} and now there are {count:,}: its place in them is lost; "
            "put the old data back, or begin a new run"
        )


def counts_of(rank: int, ranks: int, states: Sequence[State]) -> Counts:
    """What this rank has counted; after a change of the number of ranks the first one has the sum."""
    if len(states) == ranks:
        return Counts(*list_of(states[rank]["counts"]))
    sums = [sum(each) for each in zip(*(list_of(state["counts"]) for state in states), strict=True)]
    return Counts(*sums) if rank == 0 else Counts()
