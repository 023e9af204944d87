"""Documents or conversations, packed into rows of ids on the device.

Both loaders are iterators without end that start over in another order when their data is used up (`one_epoch` ends
them before), and both have an exact `state_dict`: the batch after a resume is the batch that would have come.

Shapes: B rows per rank, T tokens. A row holds T + 1 ids; inputs are all but the last, targets all but the first.
"""

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy
import torch

from nanochat import dataset
from nanochat.chat_format import render_conversation
from nanochat.command import UserError
from nanochat.conversation import Conversation
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
    row and its rest, led by `<|bos|>`, goes back to wait. Document number i of an epoch goes to rank i modulo the
    number of ranks.
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
    ):
        self.tokenizer, self.rows, self.tokens, self.runtime = tokenizer, rows, tokens, runtime
        self.buffer_size, self.seed = buffer_size, seed
        self.groups = [
            (path, group)
            for path in dataset.split_files(split, source)
            for group in range(len(dataset.row_group_counts(path)))
        ]
        self.bos = tokenizer.get_bos_token_id()
        self.epochs: int | None = None  # how many to give; None: without end
        self.epoch = self.group = self.offset = 0  # the next row group of the epoch's order, the next document in it
        self.number = 0  # documents passed in this epoch, over all ranks
        self.used = False  # whether this epoch has given this rank any document
        self.waiting: list[tuple[int, int, list[int]]] = []  # (length, serial number, ids), sorted
        self.serial = 0
        self._documents: list[str] = []
        self._loaded: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 (B, T). Only where the last epoch ends do ignored targets fill up the batch."""
        self._refill()
        if not self.waiting:
            raise StopIteration
        ids = numpy.full((self.rows, self.tokens + 1), self.bos, dtype=numpy.int64)
        targets = numpy.full((self.rows, self.tokens), IGNORED_TARGET, dtype=numpy.int64)
        for number in range(self.rows):
            row = self._next_row()
            ids[number, : len(row)] = row
            targets[number, : max(0, len(row) - 1)] = row[1:]
        return to_device(ids[:, :-1], self.runtime), to_device(targets, self.runtime)

    def state_dict(self) -> State:
        """The position in the data, and the pieces that wait for a row."""
        return {
            "epoch": self.epoch,
            "group": self.group,
            "offset": self.offset,
            "number": self.number,
            "serial": self.serial,
            "waiting_ids": [token for _, _, ids in self.waiting for token in ids],
            "waiting_lengths": [length for length, _, _ in self.waiting],
            "waiting_serials": [serial for _, serial, _ in self.waiting],
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where `state_dict` was taken."""
        for name in ("epoch", "group", "offset", "number", "serial"):
            setattr(self, name, state[name])
        ids, lengths, serials = (_list(state[f"waiting_{kind}"]) for kind in ("ids", "lengths", "serials"))
        self.waiting, start = [], 0
        for length, serial in zip(lengths, serials, strict=True):
            self.waiting.append((length, serial, ids[start : start + length]))
            start += length
        self.used = True

    def _next_row(self) -> list[int]:
        row: list[int] = []
        while (room := self.tokens + 1 - len(row)) > 0:
            self._refill()
            if not self.waiting:
                break
            fitting = bisect_right(self.waiting, (room, self.serial))
            if fitting:
                longest = self.waiting[fitting - 1][0]
                row += self.waiting.pop(bisect_left(self.waiting, (longest, 0)))[2]
                continue
            _, _, ids = self.waiting.pop()  # the longest; only its head fits
            row += ids[:room]
            self._wait([self.bos, *ids[room:]])  # with room for its <|bos|> alone the piece waits as it was
        return row

    def _wait(self, ids: list[int]) -> None:
        insort(self.waiting, (len(ids), self.serial, ids))
        self.serial += 1

    def _refill(self) -> None:
        """Tokenize documents until the buffer is full: many at a time, since the encoder works on all cores."""
        while len(self.waiting) < self.buffer_size:
            texts = list(islice(iter(self._next_document, None), self.buffer_size))
            if not texts:
                return
            for ids in self.tokenizer.encode(texts):
                for start in range(0, max(len(ids), 1), self.tokens):
                    self._wait([self.bos, *ids[start : start + self.tokens]])

    def _next_document(self) -> str | None:
        """The next text of this rank; None behind the last epoch."""
        while True:
            if self.group >= len(self.groups):
                if not self.used:
                    raise UserError(
                        f"rank {self.runtime.rank} of {self.runtime.world_size} gets no document: "
                        "the data has fewer documents than there are ranks; import more or use fewer ranks"
                    )
                if self.epochs is not None and self.epoch + 1 >= self.epochs:
                    return None
                self.epoch, self.group, self.offset, self.number, self.used = self.epoch + 1, 0, 0, 0, False
            if self._loaded != (self.epoch, self.group):
                path, group = self.groups[self._order()[self.group]]
                self._documents, self._loaded = dataset.read_row_group(path, group), (self.epoch, self.group)
            while self.offset < len(self._documents):
                text, mine = self._documents[self.offset], self.number % self.runtime.world_size == self.runtime.rank
                self.offset, self.number = self.offset + 1, self.number + 1
                if mine:
                    self.used = True
                    return text
            self.group, self.offset = self.group + 1, 0

    def _order(self) -> list[int]:
        """The row groups of this epoch: as they lie in the first, shuffled by seed in later ones."""
        order = list(range(len(self.groups)))
        if self.epoch:
            random.Random(f"{self.seed}-{self.epoch}").shuffle(order)
        return order


class ConversationLoader:
    """Whole conversations packed into rows; the rest of a row is padding that is not trained on.

    A row takes the longest waiting conversation that fits, until none does. One longer than a row is cropped.
    With `train_on_all` every token is a target, else what the mask of `chat_format` says. Rank r takes the
    conversations number r, r + world_size, ... of each epoch's shuffled order.
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
        if len(conversations) < runtime.world_size:
            raise UserError(f"{len(conversations)} conversations are too few for {runtime.world_size} ranks")
        self.conversations, self.tokenizer, self.runtime = conversations, tokenizer, runtime
        self.rows, self.tokens, self.train_on_all = rows, tokens, train_on_all
        self.buffer_size, self.seed = buffer_size, seed
        self.epochs: int | None = None  # how many to give; None: without end
        self.epoch, self.position = 0, runtime.rank
        self.waiting: list[int] = []  # indices of conversations
        self._rendered: dict[int, tuple[list[int], list[int]]] = {}  # of those
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

    def state_dict(self) -> State:
        """The position in the data, and the conversations that wait for a row."""
        return {"epoch": self.epoch, "position": self.position, "waiting": list(self.waiting)}

    def load_state_dict(self, state: State) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch, self.position = _int(state["epoch"]), _int(state["position"])
        self.waiting = _list(state["waiting"])

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
            more_ids, more_mask = self._rendered.pop(chosen)
            ids, mask = ids + more_ids, mask + more_mask
        padding = self.tokens + 1 - len(ids)
        return ids + [self.tokenizer.get_bos_token_id()] * padding, mask + [0] * padding

    def _refill(self) -> None:
        while len(self.waiting) < self.buffer_size:
            if self.position >= len(self.conversations):
                if self.epochs is not None and self.epoch + 1 >= self.epochs:
                    return
                self.epoch, self.position = self.epoch + 1, self.runtime.rank
            self.waiting.append(self._order()[self.position])
            self.position += self.runtime.world_size

    def _order(self) -> list[int]:
        if self._order_of[0] != self.epoch:
            order = list(range(len(self.conversations)))
            random.Random(f"{self.seed}-{self.epoch}").shuffle(order)
            self._order_of = (self.epoch, order)
        return self._order_of[1]

    def _render(self, index: int) -> tuple[list[int], list[int]]:
        if index not in self._rendered:
            self._rendered[index] = render_conversation(
                self.conversations[index], self.tokenizer, max_tokens=self.tokens + 1, mask_all=self.train_on_all
            )
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


def _list(value: int | Sequence[int]) -> list[int]:
    assert not isinstance(value, int), f"expected a list, got {value}"
    return list(value)


def _int(value: int | Sequence[int]) -> int:
    assert isinstance(value, int), f"expected a number, got {value}"
    return value
