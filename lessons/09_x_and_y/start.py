"""Lesson 9: what x and y are, and how documents become rows of them.

Shapes: B rows, T tokens. A row is T + 1 ids, of which x has all but the last and y all but the first. `bos` is the id
of <|bos|>, which leads every document and every piece of one.

The check calls these by name: inputs_and_targets, pack_in_order, pieces, add_piece, Loader. Any design of your own is
welcome behind them.
"""

import torch

Ids = list[int]
State = dict[str, int | list[Ids]]


def inputs_and_targets(rows: list[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of T + 1 ids to x and y, int64 (B, T): y[b, t] is the id that follows x[b, t] in its row."""
    raise NotImplementedError("lesson 9: inputs_and_targets is yours to write")


def pack_in_order(documents: list[Ids], bos: int, length: int) -> list[Ids]:
    """The simplest way: all documents one behind the other, each led by `bos`, cut every `length` ids.

    What is left at the end and fills no row is thrown away.
    """
    raise NotImplementedError("lesson 9: pack_in_order is yours to write")


def pieces(document: Ids, longest: int) -> list[Ids]:
    """A document in pieces of at most `longest` ids, in order; an empty document is one empty piece."""
    raise NotImplementedError("lesson 9: pieces is yours to write")


def add_piece(row: Ids, waiting: list[Ids], bos: int, length: int) -> None:
    """Make `row` longer by `bos` and the best of the waiting pieces, which then no longer waits.

    The best is the longest that fits into `length`; of equals the one that has waited longest (it stands first).
    Where none fits, the longest is cut (of equals the last one): the row is filled with its beginning and the rest
    goes to the end of `waiting`. Where there is room for `bos` alone, `bos` is all that is added.
    """
    raise NotImplementedError("lesson 9: add_piece is yours to write")


class Loader:
    """Batches without end: x, y = next(loader).

    Before each `add_piece` documents are taken, in order, until at least `buffer_size` pieces wait. Behind the last
    document comes the first again.
    """

    def __init__(self, documents: list[Ids], bos: int, rows: int, tokens: int, buffer_size: int = 8):
        raise NotImplementedError("lesson 9: Loader.__init__ is yours to write")

    def __iter__(self) -> "Loader":
        raise NotImplementedError("lesson 9: Loader.__iter__ is yours to write")

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y, int64 (B, T)."""
        raise NotImplementedError("lesson 9: Loader.__next__ is yours to write")

    def state_dict(self) -> State:
        """All that decides what comes next, as numbers and lists that JSON can hold. It does not change afterwards."""
        raise NotImplementedError("lesson 9: Loader.state_dict is yours to write")

    def load_state_dict(self, state: State) -> None:
        """Go on where `state_dict` was taken: the next batch is the one that would have come."""
        raise NotImplementedError("lesson 9: Loader.load_state_dict is yours to write")
