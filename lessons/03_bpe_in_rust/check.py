"""The oracle: lesson 1's sentences again, now by the product's trainer (rustbpe) and tiktoken's encoder."""

from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

import pytest
import regex
import tiktoken

import rustbpe
from lessons.learner import crate
from nanochat.tokenizer import SPLIT_PATTERN

mine = crate(3)

WHOLE = r"[\s\S]+"
SONG = "the cat in the hat sat on the mat; that cat, the fat cat, ate the rat"
TEXTS = ["abacadabacad", SONG, "a" * 40, "naïve 🙂 café 🙂 naïve 🙂", "x", ""]
PYTHON_DOCS = "\n".join(topics[name] for name in sorted(topics))

Pair = tuple[int, int]


def trained(text: str, merges: int, pattern: str = WHOLE) -> rustbpe.Tokenizer:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator([text], 256 + merges, pattern=pattern)
    return tokenizer


def merges_of(tokenizer: rustbpe.Tokenizer) -> list[Pair]:
    rank = dict(tokenizer.get_mergeable_ranks())
    return [(rank[left], rank[right]) for left, right in tokenizer.get_merges()]


def pairs_in(printed: str) -> list[Pair]:
    return [(int(left), int(right)) for left, _, right in (line.partition(",") for line in printed.split())]


def ids_in(printed: str) -> list[int]:
    return [int(number) for number in printed.strip().strip("[]").split(",") if number]


def as_arguments(merges: list[Pair]) -> list[str]:
    return [f"{left},{right}" for left, right in merges]


def told(found: list[Pair], expected: list[Pair], of: str) -> None:
    """That two lists of merges are equal, and otherwise where they part."""
    for i, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, f"of {of} merge number {i} is {one}, and should be {other}"
    made, possible = len(found), len(expected)
    assert made <= possible, f"of {of}: after {possible} merges no pair is left, and you made {made}"
    assert made == possible, f"of {of}: you made {made} merges, and there are pairs for {possible}"


def counted_words(text: str) -> Counter[str]:
    return Counter(regex.findall(SPLIT_PATTERN, text))


def as_lines(words: Counter[str]) -> str:
    return "\n".join(f"{count} {word.encode().hex()}" for word, count in words.items())


def test_count_pairs_counts_neighbours() -> None:
    for text in TEXTS:
        ids = text.encode()
        counts = Counter(pairwise(ids))
        expected = "".join(f"{left},{right} {count}\n" for (left, right), count in sorted(counts.items()))
        assert mine.run("pairs", stdin=text) == expected, f"the pairs of {text!r} are\n{expected}"


@pytest.mark.parametrize(
    ("text", "pair", "expected"),
    [
        ("abcab", "ab", [256, 99, 256]),
        ("aaa", "aa", [256, 97]),
        ("aaaa", "aa", [256, 256]),
        ("aab", "ab", [97, 256]),
        ("ba", "ab", [98, 97]),
        ("a", "ab", [97]),
        ("", "ab", []),
    ],
)
def test_merge_replaces_from_left_to_right(text: str, pair: str, expected: list[int]) -> None:
    found = ids_in(mine.run("merge", *(str(byte) for byte in pair.encode()), "256", stdin=text))
    assert found == expected, f"merging {pair!r} in {text!r} gave {found}, and should give {expected}"


@pytest.mark.parametrize("text", TEXTS)
def test_train_finds_the_merges_of_the_product(text: str) -> None:
    told(pairs_in(mine.run("train", "20", stdin=text)), merges_of(trained(text, 20)), repr(text))


def test_train_stops_where_it_was_asked_to() -> None:
    for merges in (0, 1, 5):
        found = len(pairs_in(mine.run("train", str(merges), stdin=SONG)))
        assert found == merges, f"asked for {merges} merges, train made {found}"


@pytest.mark.parametrize("text", [*TEXTS, "that hat", "tttheee"])
def test_encode_gives_the_ids_of_tiktoken(text: str) -> None:
    tokenizer = trained(SONG, 20)
    ranks = dict(tokenizer.get_mergeable_ranks())
    theirs = tiktoken.Encoding("toy", pat_str=WHOLE, mergeable_ranks=ranks, special_tokens={})
    found = ids_in(mine.run("encode", *as_arguments(merges_of(tokenizer)), stdin=text))
    expected = theirs.encode_ordinary(text)
    assert found == expected, f"encode({text!r}) gave {found}, tiktoken gives {expected}"


def test_decode_gives_the_bytes_back() -> None:
    merges = as_arguments([(97, 98), (256, 99)])
    found = mine.run("decode", "257", "256", "240", "/", *merges).strip()
    expected = f"ok {[*b'abcab', 240]}"
    assert found == expected, f"ids 257 256 240 with the merges {merges} gave {found!r}, and should give {expected!r}"


def test_decode_names_an_unknown_id() -> None:
    found = mine.run("decode", "97", "300", "/", "97,98").strip()
    assert found == "error id 300 is not in the vocabulary", f"id 300 of 257 gave {found!r}"


@pytest.mark.parametrize("command", ["words-slowly", "words"])
def test_words_give_the_merges_of_the_product(command: str) -> None:
    for text in (SONG, "aaaa aaaaa aaa a aa", "banana bandana ban anna", PYTHON_DOCS[:20_000]):
        found = pairs_in(mine.run(command, "60", stdin=as_lines(counted_words(text))))
        told(found, merges_of(trained(text, 60, SPLIT_PATTERN)), f"{command} {text[:40]!r}")


def test_words_does_it_for_real_text_too() -> None:
    found = pairs_in(mine.run("words", "1500", stdin=as_lines(counted_words(PYTHON_DOCS))))
    told(found, merges_of(trained(PYTHON_DOCS, 1500, SPLIT_PATTERN)), "words in Python's help texts")
