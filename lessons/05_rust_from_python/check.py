"""The oracle: lesson 1 in Python, Python's Counter, and the product's trainer."""

import sys
import threading
import time
from collections import Counter
from pydoc_data.topics import topics

import pytest
import regex

import rustbpe
from lessons.learner import load
from nanochat.tokenizer import SPLIT_PATTERN

mine = load(5)

DOCS = "\n".join(topics[name] for name in sorted(topics))
MERGES = [(97, 98), (256, 99), (257, 257)]


@pytest.fixture(scope="module")
def words() -> list[tuple[bytes, int]]:
    counts = Counter(regex.findall(SPLIT_PATTERN, DOCS))
    return [(word.encode(), count) for word, count in counts.items()]


def test_count_words_is_a_function_of_the_module() -> None:
    assert hasattr(mine, "count_words"), "the module has no count_words yet: a #[pyfunction] inside `mod lesson05`"
    found = mine.count_words(["the cat sat", "the hat", "", "한국어 the"])
    expected = {"the ": 2, "cat ": 1, "sat": 1, "hat": 1, "한국어 ": 1, "the": 1}
    assert found == expected, f"count_words gave {found}, and should give {expected}"


def test_train_finds_the_merges_of_the_product(words: list[tuple[bytes, int]]) -> None:
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator([DOCS], 256 + 300, pattern=SPLIT_PATTERN)
    rank = dict(theirs.get_mergeable_ranks())
    expected = [(rank[left], rank[right]) for left, right in theirs.get_merges()]
    found = mine.train(words, 300)
    first = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), len(found))
    assert found == expected, (
        f"merge {first} is {found[first : first + 1]}, the product's {expected[first : first + 1]}"
    )


def test_train_takes_bytes_and_refuses_other_things() -> None:
    assert mine.train([(b"abab", 3)], 1) == [(97, 98)], "train([(b'abab', 3)], 1) is [(97, 98)]"
    with pytest.raises(TypeError):
        mine.train([("abab", 3)], 1)
    with pytest.raises(OverflowError):
        mine.train([(b"abab", -3)], 1)


@pytest.mark.parametrize("data", [b"abcabc", b"", b"abab", bytes(range(256))])
def test_encode_and_decode_as_in_lesson_one(data: bytes) -> None:
    bpe, toy = mine.Bpe(MERGES), load(1)
    expected = list(data)
    for i, pair in enumerate(MERGES):
        expected = toy.merge(expected, pair, 256 + i)
    found = bpe.encode(data)
    assert found == expected, f"encode({data!r}) gave {found}, and should give {expected}"
    back = bpe.decode(found)
    assert isinstance(back, bytes), (
        f"decode should give bytes, and gives {type(back).__name__}: see the hint on Vec<u8>"
    )
    assert back == data, f"decode({found}) gave {back!r}, and should give {data!r}"


def test_an_unknown_id_is_a_value_error_with_its_number() -> None:
    with pytest.raises(ValueError, match="300"):
        mine.Bpe(MERGES).decode([97, 300])


@pytest.mark.parametrize("merges", [[(256, 97)], [(97, 98), (97, 257)], [(97, 98), (256, 98), (300, 97)]])
def test_a_merge_of_ids_that_are_not_made_yet_is_refused(merges: list[tuple[int, int]]) -> None:
    raised: BaseException | None = None
    try:
        mine.Bpe(merges)
    except BaseException as error:  # a Rust panic is no Exception
        raised = error
    assert isinstance(raised, ValueError), f"Bpe({merges}) uses an id before it is made: ValueError, not {raised!r}"
    named = str(len(merges) - 1) in str(raised)
    assert named, f"of {merges} the last is wrong, and the error says only: {raised}"


@pytest.mark.parametrize("name", ["train", "count_words"])
def test_other_threads_go_on_while_rust_works(name: str, words: list[tuple[bytes, int]]) -> None:
    def long_call() -> None:
        if name == "train":
            mine.train(words * 3, 3000)
        else:
            mine.count_words([DOCS] * 60)

    turns, working = 0, True

    def tick() -> None:
        nonlocal turns
        while working:
            time.sleep(0)  # lets the other thread have the interpreter, and asks for it back
            turns += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # so that nobody is made to hand over: Rust does it itself or not at all
    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        started_with = turns
        long_call()
        made = turns - started_with
    finally:
        working = False
        ticking.join()
        sys.setswitchinterval(interval)
    assert made > 50, (
        f"a second thread made {made} turns during {name}: Rust kept the interpreter to itself (py.detach)"
    )
