"""The oracle: Python's Counter."""

import json
from collections import Counter
from pydoc_data.topics import topics

import pytest

from lessons.learner import crate

mine = crate(4)

LITTLE = ["the cat sat", "the hat", "", "cat the cat"]
LARGE = " ".join(topics[name] for name in sorted(topics)).replace("\n", " ").split(". ")


def words(text: str) -> list[str]:
    parts = text.split(" ")
    return [part for part in [*(f"{part} " for part in parts[:-1]), parts[-1]] if part]


def counted(texts: list[str], *command: str) -> dict[str, int]:
    lines = mine.run(*command, stdin="\n".join(texts)).splitlines()
    return {json.loads(word): int(count) for count, _, word in (line.partition(" ") for line in lines)}


def told(found: dict[str, int], texts: list[str], by: str) -> None:
    expected = Counter(word for text in texts for word in words(text))
    for word in sorted(expected.keys() | found.keys()):
        assert found.get(word, 0) == expected[word], (
            f"{by} counts {word!r} {found.get(word, 0)} times in {len(texts)} texts, it is there {expected[word]} times"
        )


@pytest.mark.parametrize("text", ["the cat sat", "a b  c", " cat", "cat ", "cat"])
def test_words_end_with_their_space_and_make_the_text(text: str) -> None:
    found = json.loads(mine.run("words", stdin=text))
    assert found == words(text), f"the words of {text!r} are {words(text)}, you have {found}"


def test_one_thread_counts() -> None:
    told(counted(LITTLE, "one"), LITTLE, "count")


@pytest.mark.parametrize("texts", [["the cat", "the hat", "a cat"], ["the hat a cat", "the"], ["x", ""]])
def test_two_counts_are_added(texts: list[str]) -> None:
    told(counted(texts, "add"), texts, "add")


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 64])
def test_threads_count_the_same_however_many_they_are(threads: int) -> None:
    told(counted(LITTLE, "threads", str(threads)), LITTLE, f"count_by_threads with {threads} threads")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_no_text_count_nothing(threads: int) -> None:
    assert counted([], "threads", str(threads)) == {}, f"{threads} threads and no text: there is nothing to count"


def test_rayon_counts_the_same() -> None:
    told(counted(LITTLE, "rayon"), LITTLE, "count_by_rayon")
    assert counted([], "rayon") == {}, "rayon and no text: there is nothing to count"


@pytest.mark.parametrize("command", [["one"], ["threads", "2"], ["threads", "5"], ["rayon"]])
def test_a_larger_text_is_counted_the_same_every_time(command: list[str]) -> None:
    for _ in range(3):
        told(counted(LARGE, *command), LARGE, " ".join(command))
