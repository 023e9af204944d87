"""What loading is in numbers alone: whose turn an item is, and which pieces share a row.

Where items come from, and what becomes of rows, is not here.

Lesson: lessons/09_x_and_y
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy
from numpy.typing import NDArray

Ids = NDArray[numpy.integer]


@dataclass
class Turns:
    """Which of the items 0, 1, 2, ... are one rank's: those with its rank as remainder, from `position` on.

    A run that went on with another number of ranks keeps in `done` how far each of the earlier ones had come: item n
    was given away already when n < ranks[n % len(ranks)] for any list `ranks` of it.
    """

    rank: int
    world_size: int
    position: int = 0
    done: list[list[int]] = field(default_factory=list)

    def between(self, begin: int, end: int) -> NDArray[numpy.int64]:
        """This rank's items from `begin` up to `end`, in order."""
        first = begin + (self.rank - begin) % self.world_size
        items = numpy.arange(first, max(first, end), self.world_size, dtype=numpy.int64)
        for reached in self.done:
            items = items[items >= numpy.array(reached)[items % len(reached)]]
        return items

    def state(self) -> dict[str, int | list[int]]:
        """Plain numbers that `from_states` takes."""
        return {
            "position": self.position,
            "done": [position for reached in self.done for position in reached],
            "done_ranks": [len(reached) for reached in self.done],
        }

    @classmethod
    def from_states(cls, rank: int, world_size: int, states: Sequence[dict[str, int | list[int]]]) -> "Turns":
        """Go on with any number of ranks, from the states of all that there were."""
        positions = [number_of(state["position"]) for state in states]
        flat, lengths = list_of(states[0]["done"]), list_of(states[0]["done_ranks"])
        done = [flat[sum(lengths[:i]) : sum(lengths[: i + 1])] for i in range(len(lengths))]
        if len(states) == world_size:
            return cls(rank, world_size, positions[rank], done)
        lowest = min(positions)
        return cls(rank, world_size, lowest, [each for each in [*done, positions] if max(each) > lowest])


@dataclass
class Counts:
    """What a loader has given since the run began, on one rank."""

    rows: int = 0
    tokens: int = 0
    """Targets that are trained on or could be: padding is left out."""
    items: int = 0
    """Documents or conversations taken in."""
    cut: int = 0
    """Pieces cut in two to fill a row; both parts are kept."""
    padding: int = 0
    cropped: int = 0
    """Tokens thrown away."""

    @property
    def wasted_share(self) -> float:
        """Padding and cropped tokens, of these and the tokens given."""
        wasted = self.padding + self.cropped
        return wasted / max(wasted + self.tokens, 1)

    def __str__(self) -> str:
        """One line for a person."""
        whole = max(self.tokens + self.padding + self.cropped, 1)
        return (
            f"{self.rows:,} rows from {self.items:,} items: {self.padding / whole:.2%} padding, "
            f"{self.cropped / whole:.2%} cropped, {self.cut / max(self.rows, 1):.1%} of the rows filled by a cut"
        )

    def state(self) -> list[int]:
        """The counts in the order of the fields."""
        return [getattr(self, each.name) for each in fields(self)]


class WaitingPieces:
    """Pieces of ids that wait for a row: shortest first, of equals the oldest first. A piece's `<|bos|>` is implied."""

    def __init__(self, bos: int):
        self.bos = bos
        self.serial = 0
        self._pieces: list[tuple[int, int, Ids]] = []  # (length, serial number, ids)

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, ids: Ids) -> None:
        """A piece starts to wait."""
        insort(self._pieces, (len(ids), self.serial, ids))
        self.serial += 1

    def fill(self, row: NDArray[numpy.int64], at: int) -> tuple[int, bool]:
        """Put the longest piece that fits, led by `<|bos|>`, into `row` from `at` on; where none fits, cut the longest.

        Gives where the row goes on, and whether there was a cut, whose rest goes on waiting. Room for a `<|bos|>` alone
        gets that. There must be a piece.
        """
        row[at] = self.bos
        at += 1
        room = len(row) - at
        fitting = bisect_right(self._pieces, (room, self.serial))
        if fitting:
            longest = self._pieces[fitting - 1][0]
            _, _, ids = self._pieces.pop(bisect_left(self._pieces, (longest, -1)))
            row[at : at + longest] = ids
            return at + longest, False
        if room:
            _, _, ids = self._pieces.pop()
            row[at:] = ids[:room]
            self.add(ids[room:])
        return len(row), bool(room)

    def state(self) -> dict[str, int | list[int]]:
        """All pieces as plain numbers."""
        return {
            "serial": self.serial,
            "waiting_ids": [each for _, _, ids in self._pieces for each in ids.tolist()],
            "waiting_lengths": [length for length, _, _ in self._pieces],
            "waiting_serials": [serial for _, serial, _ in self._pieces],
        }

    @classmethod
    def from_states(
        cls, bos: int, rank: int, world_size: int, states: Sequence[dict[str, int | list[int]]]
    ) -> "WaitingPieces":
        """The pieces of `rank`: those it had, or a share of everybody's where the number of ranks has changed."""
        same = len(states) == world_size
        found: list[tuple[int, int, Ids]] = []  # (serial number, rank that had it, ids)
        for owner, state in enumerate(states):
            if same and owner != rank:
                continue
            ids: Ids = numpy.array(list_of(state["waiting_ids"]), dtype=numpy.uint32)
            ends = numpy.cumsum(list_of(state["waiting_lengths"]), dtype=numpy.int64)[:-1]
            serials = list_of(state["waiting_serials"])
            pieces = numpy.split(ids, ends) if serials else []
            found += [(serial, owner, piece) for serial, piece in zip(serials, pieces, strict=True)]
        waiting = cls(bos)
        if same:
            waiting._pieces = [(len(piece), serial, piece) for serial, _, piece in found]
            waiting.serial = number_of(states[rank]["serial"])
            return waiting
        for _, _, piece in sorted(found, key=lambda each: each[:2])[rank::world_size]:
            waiting.add(piece)
        return waiting


def list_of(value: int | list[int]) -> list[int]:
    """A value of a state that is a list."""
    assert not isinstance(value, int), f"expected a list, got {value}"
    return list(value)


def number_of(value: int | list[int]) -> int:
    """A value of a state that is a number."""
    assert isinstance(value, int), f"expected a number, got {value}"
    return value
