"""Checks of lesson 9, against the product's packing."""

import json
import random
from collections import Counter
from itertools import islice

import numpy
import pytest
import torch

from lessons.compare import same
from lessons.learner import load
from nanochat.packing import WaitingPieces

mine = load(9)
BOS = 1000


def some_documents(seed: int, count: int = 40, longest: int = 30) -> list[list[int]]:
    """Of 0 to `longest` ids below BOS."""
    generator = random.Random(seed)
    return [[generator.randrange(BOS) for _ in range(generator.randint(0, longest))] for _ in range(count)]


def expected_rows(documents: list[list[int]], tokens: int, buffer_size: int, count: int) -> list[list[int]]:
    """What the product's packing gives."""
    waiting, position, rows = WaitingPieces(BOS), 0, []
    for _ in range(count):
        row, at = numpy.zeros(tokens + 1, dtype=numpy.int64), 0
        while at < len(row):
            while len(waiting) < buffer_size:
                document = numpy.array(documents[position % len(documents)], dtype=numpy.int64)
                for start in range(0, max(1, len(document)), tokens):
                    waiting.add(document[start : start + tokens])
                position += 1
            at, _ = waiting.fill(row, at)
        rows.append(row.tolist())
    return rows


def rows_of(x: torch.Tensor, y: torch.Tensor) -> list[list[int]]:
    return torch.cat((x, y[:, -1:]), dim=1).tolist()


def test_y_is_x_one_later() -> None:
    x, y = mine.inputs_and_targets([[7, 1, 2, 3], [7, 4, 5, 6]])
    assert x.dtype == y.dtype == torch.int64, f"ids are int64, and these are {x.dtype} and {y.dtype}"
    same(x, torch.tensor([[7, 1, 2], [7, 4, 5]]), "x")
    same(y, torch.tensor([[1, 2, 3], [4, 5, 6]]), "y")


def test_packing_in_order_leaves_no_gap_and_throws_away_less_than_a_row() -> None:
    documents = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9]]
    found = mine.pack_in_order(documents, 0, 4)
    assert found == [[0, 1, 2, 3], [0, 4, 0, 0], [5, 6, 7, 8]], f"pack_in_order gives {found}; 9 fills no row"
    assert mine.pack_in_order([[1, 2, 3]], 0, 4) == [[0, 1, 2, 3]], "pack_in_order loses a row that is just full"


@pytest.mark.parametrize("size", [0, 1, 4, 5, 8, 9])
def test_pieces_are_a_document_and_none_is_too_long(size: int) -> None:
    found = mine.pieces(list(range(size)), 4)
    expected = [list(range(at, min(at + 4, size))) for at in range(0, max(size, 1), 4)]
    assert found == expected, f"pieces of a document of {size} ids are {found}, expected {expected}"


def test_the_longest_piece_that_fits_is_taken() -> None:
    row, waiting = [BOS, 1], [[2], [3, 4], [5, 6], [7, 8, 9, 10]]
    mine.add_piece(row, waiting, BOS, 6)
    assert row == [BOS, 1, BOS, 3, 4], f"room for 3 more ids behind <|bos|>, pieces of 1, 2, 2 and 4: the row is {row}"
    assert waiting == [[2], [5, 6], [7, 8, 9, 10]], f"waiting are {waiting}"


def test_where_none_fits_the_longest_is_cut_and_nothing_is_lost() -> None:
    row, waiting = [BOS, 1], [[2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    mine.add_piece(row, waiting, BOS, 5)
    assert row == [BOS, 1, BOS, 9, 10], f"room for 2 ids behind <|bos|>, pieces of 3, 4 and 4: the row is {row}"
    assert waiting == [[2, 3, 4], [5, 6, 7, 8], [11, 12]], f"the rest goes to the end; waiting are {waiting}"


def test_room_for_bos_alone_takes_bos_alone() -> None:
    row, waiting = [BOS, 1], [[2, 3], [4]]
    mine.add_piece(row, waiting, BOS, 3)
    assert row == [BOS, 1, BOS], f"room for one id, which is <|bos|>: the row is {row}"
    assert waiting == [[2, 3], [4]], f"no piece is taken and none is cut; waiting are {waiting}"


@pytest.mark.parametrize(("tokens", "buffer_size"), [(8, 1), (8, 4), (16, 16), (50, 8)])
def test_the_loader_gives_the_rows_that_nanochat_packs(tokens: int, buffer_size: int) -> None:
    documents = some_documents(3)
    loader = mine.Loader(documents, BOS, 3, tokens, buffer_size)
    for number, expected in enumerate(batched(expected_rows(documents, tokens, buffer_size, 60), 3)):
        x, y = next(loader)
        assert x.shape == y.shape == (3, tokens), f"x and y are {tuple(x.shape)} and {tuple(y.shape)}"
        found = rows_of(x, y)
        assert found == expected, f"batch {number} of rows of {tokens + 1} ids, {buffer_size} waiting, is not the same"


def batched(rows: list[list[int]], size: int) -> list[list[list[int]]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def test_every_row_begins_with_bos_and_every_id_comes_once_an_epoch() -> None:
    documents = [[number] * (number % 13) for number in range(200)]  # an id tells its document
    loader = mine.Loader(documents, BOS, 1, 12, 8)
    rows = [rows_of(*next(loader))[0] for _ in range(300)]
    assert all(row[0] == BOS for row in rows), "a row does not begin with <|bos|>"
    seen = Counter(each for row in rows for each in row if each != BOS)
    epochs = [seen[number] / (number % 13) for number in range(200) if number % 13]
    assert max(epochs) - min(epochs) < 1.01, "some documents come more often than others, or parts of them are lost"


@pytest.mark.parametrize("after", [0, 1, 7, 30])
def test_a_resumed_loader_gives_the_batches_that_would_have_come(after: int) -> None:
    documents = some_documents(5)
    loader = mine.Loader(documents, BOS, 2, 9, 6)
    for _ in range(after):
        next(loader)
    state = json.dumps(loader.state_dict())
    taken = loader.state_dict()
    expected = [rows_of(x, y) for x, y in islice(loader, 20)]
    assert json.dumps(taken) == state, "a state changes when the loader goes on: it must be a copy"
    resumed = mine.Loader(documents, BOS, 2, 9, 6)
    next(resumed)
    resumed.load_state_dict(json.loads(state))
    found = [rows_of(x, y) for x, y in islice(resumed, 20)]
    first_wrong = next((i for i in range(20) if found[i] != expected[i]), None)
    assert first_wrong is None, f"after {after} batches and a resume, batch number {first_wrong} is another one"
