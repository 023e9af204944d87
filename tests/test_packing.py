"""Turns, counts and waiting pieces against slow versions of themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.packing import Counts, Turns, WaitingPieces

BOS = 7


@given(st.integers(1, 5), st.integers(0, 40), st.integers(0, 40), st.lists(st.lists(st.integers(0, 40), min_size=1)))
def test_ranks_have_all_that_is_not_done_between_them_and_nothing_twice(
    ranks: int, begin: int, more: int, done: list[list[int]]
) -> None:
    shares = [Turns(rank, ranks, 0, done).between(begin, begin + more).tolist() for rank in range(ranks)]
    left = [n for n in range(begin, begin + more) if all(n >= reached[n % len(reached)] for reached in done)]
    assert sorted(n for share in shares for n in share) == left
    assert all(n % ranks == rank for rank, share in enumerate(shares) for n in share)


def test_the_same_ranks_keep_their_positions_and_others_begin_at_the_lowest() -> None:
    states = [Turns(rank, 3, 10 + 6 * rank, [[20, 5]]).state() for rank in range(3)]
    assert Turns.from_states(1, 3, states) == Turns(1, 3, 16, [[20, 5]])
    assert Turns.from_states(0, 2, states) == Turns(0, 2, 10, [[20, 5], [10, 16, 22]])
    one = [Turns(0, 1, 25, [[20, 5]]).state()]
    assert Turns.from_states(1, 2, one) == Turns(1, 2, 25, [])  # all that was done lies behind


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 12))
def test_a_row_takes_the_longest_that_fits_or_cuts_the_longest(lengths: list[int], width: int) -> None:
    waiting = WaitingPieces(BOS)
    for number, length in enumerate(lengths):
        waiting.add(np.full(length, 100 + number))
    slow = [(length, number) for number, length in enumerate(lengths)]
    row = np.full(width, -1, dtype=np.int64)
    at = 0
    while at < width and len(waiting):
        room = width - at - 1
        fitting = [each for each in slow if each[0] <= room]
        before, (at, cut) = at, waiting.fill(row, at)
        assert row[before] == BOS
        if fitting:
            length, number = max(fitting, key=lambda each: (each[0], -each[1]))
            slow.remove((length, number))
            assert not cut
            assert row[before + 1 : at].tolist() == [100 + number] * length
        else:
            assert at == width
            assert cut == (room > 0)
            if room:
                length, number = max(slow)
                slow.remove((length, number))
                assert row[before + 1 :].tolist() == [100 + number] * room
                break
    left = WaitingPieces.from_states(BOS, 0, 1, [waiting.state()]).state()
    assert left == waiting.state()
    assert len(waiting) == len(slow) + (len(slow) < len(lengths) and bool(cut))


def test_the_pieces_of_all_are_dealt_out_by_how_long_they_have_waited() -> None:
    states = []
    for owner in range(2):
        waiting = WaitingPieces(BOS)
        for number in range(4):
            waiting.add(np.array([10 * owner + number] * (4 - number)))
        states.append(waiting.state())
    dealt = []
    for rank in range(3):
        state = WaitingPieces.from_states(BOS, rank, 3, states).state()
        ids, lengths = state["waiting_ids"], state["waiting_lengths"]
        assert isinstance(ids, list)
        assert isinstance(lengths, list)
        assert len(ids) == sum(lengths)
        dealt.append(sorted(set(ids)))
    # the oldest first: 0 10 1 11 2 12 3 13
    assert dealt == [[0, 3, 11], [2, 10, 13], [1, 12]]


def test_waste_is_padding_and_cropping_over_all() -> None:
    counts = Counts(rows=2, tokens=90, items=3, cut=1, padding=6, cropped=4)
    assert counts.wasted_share == pytest.approx(0.1)
    assert str(counts) == "2 rows from 3 items: 6.00% padding, 4.00% cropped, 50.0% of the rows filled by a cut"
    assert Counts(*counts.state()) == counts
    assert Counts().wasted_share == 0
