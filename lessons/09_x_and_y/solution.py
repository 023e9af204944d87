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
    whole = torch.tensor(rows, dtype=torch.int64)  # (B, T + 1)
    return whole[:, :-1], whole[:, 1:]


def pack_in_order(documents: list[Ids], bos: int, length: int) -> list[Ids]:
    """The simplest way: all documents one behind the other, each led by `bos`, cut every `length` ids.

    What is left at the end and fills no row is thrown away.
    """
    ids = [each for document in documents for each in (bos, *document)]
    return [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]


def pieces(document: Ids, longest: int) -> list[Ids]:
    """A document in pieces of at most `longest` ids, in order; an empty document is one empty piece."""
    return [document[at : at + longest] for at in range(0, max(len(document), 1), longest)]


def add_piece(row: Ids, waiting: list[Ids], bos: int, length: int) -> None:
    """Make `row` longer by `bos` and the best of the waiting pieces, which then no longer waits.

    The best is the longest that fits into `length`; of equals the one that has waited longest (it stands first).
    Where none fits, the longest is cut (of equals the last one): the row is filled with its beginning and the rest
    goes to the end of `waiting`. Where there is room for `bos` alone, `bos` is all that is added.
    """
    row.append(bos)
    room = length - len(row)
    fitting = [index for index, piece in enumerate(waiting) if len(piece) <= room]
    if fitting:
        row += waiting.pop(max(fitting, key=lambda index: len(waiting[index])))
    elif room:
        piece = waiting.pop(max(reversed(range(len(waiting))), key=lambda index: len(waiting[index])))
        row += piece[:room]
        waiting.append(piece[room:])


class Loader:
    """Batches without end: x, y = next(loader).

    Before each `add_piece` documents are taken, in order, until at least `buffer_size` pieces wait. Behind the last
    document comes the first again.
    """

    def __init__(self, documents: list[Ids], bos: int, rows: int, tokens: int, buffer_size: int = 8):
        self.documents, self.bos, self.rows, self.tokens = documents, bos, rows, tokens
        self.buffer_size = buffer_size
        self.position = 0  # documents taken so far, over all epochs
        self.waiting: list[Ids] = []

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y, int64 (B, T)."""
        return inputs_and_targets([self._row() for _ in range(self.rows)])

    def state_dict(self) -> State:
        """All that decides what comes next, as numbers and lists that JSON can hold. It does not change afterwards."""
        return {"position": self.position, "waiting": [list(piece) for piece in self.waiting]}

    def load_state_dict(self, state: State) -> None:
        """Go on where `state_dict` was taken: the next batch is the one that would have come."""
        position, waiting = state["position"], state["waiting"]
        assert isinstance(position, int)
        assert isinstance(waiting, list)
        self.position, self.waiting = position, [list(piece) for piece in waiting]

    def _row(self) -> Ids:
        row: Ids = []
        while len(row) < self.tokens + 1:
            while len(self.waiting) < self.buffer_size:
                self.waiting += pieces(self.documents[self.position % len(self.documents)], self.tokens)
                self.position += 1
            add_piece(row, self.waiting, self.bos, self.tokens + 1)
        return row
