"""Texts that were read before: the longest common start is found, and those used longest ago go first."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.prefixes import Prefixes, common_length

ids = st.lists(st.integers(0, 1), max_size=40)


@given(ids, ids)
def test_the_common_start_is_as_long_as_one_by_one(first: list[int], second: list[int]) -> None:
    expected = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    assert common_length(first, second) == (min(len(first), len(second)) if expected is None else expected)


def data(tokens: int) -> torch.Tensor:
    return torch.zeros(2, 2, 1, tokens, 4)


def test_the_longest_start_is_found() -> None:
    prefixes = Prefixes()
    for text in ([1, 2, 3, 4], [1, 2, 9, 9, 9], [5, 6]):
        prefixes.add(text, data(len(text)))
    kept, length = prefixes.find([1, 2, 9, 9, 7])
    assert kept is not None
    assert (kept.ids, length) == ([1, 2, 9, 9, 9], 4)
    assert prefixes.find([7, 1, 2]) == (None, 0)
    assert prefixes.holds([1, 2, 3])
    assert not prefixes.holds([1, 2, 3, 4, 5])


def test_a_text_takes_the_place_of_those_that_it_starts_with() -> None:
    prefixes = Prefixes()
    for text in ([1, 2], [1, 3], [1, 2, 3]):
        prefixes.add(text, data(len(text)))
    assert len(prefixes) == 2
    assert prefixes.bytes == data(2).nbytes + data(3).nbytes


def test_what_was_used_longest_ago_goes_first() -> None:
    prefixes = Prefixes()
    for first in (1, 2, 3):
        prefixes.add([first] * 4, data(4))
    kept, _ = prefixes.find([1, 1])
    assert kept is not None
    prefixes.use(kept)
    prefixes.shrink(2 * data(4).nbytes)
    assert [prefixes.holds([first]) for first in (1, 2, 3)] == [True, False, True]
    prefixes.shrink(0)
    assert (len(prefixes), prefixes.bytes) == (0, 0)
