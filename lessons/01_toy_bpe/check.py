"""The oracle: the product's trainer in Rust (rustbpe), and tiktoken with the ranks that it finds."""

import copy

import pytest
import tiktoken

import rustbpe
from lessons.learner import load

mine = load(1)

WHOLE = r"[\s\S]+"
"""A split pattern that does not split: the toy sees a text as one piece."""
SONG = "the cat in the hat sat on the mat; that cat, the fat cat, ate the rat"
TEXTS = {
    "song": SONG,
    "one letter": "a" * 40,
    "ties": "abacadabacad",
    "emoji": "naïve 🙂 café 🙂 naïve 🙂",
    "byte": "x",
}


def trained(text: str, vocab_size: int) -> rustbpe.Tokenizer:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator([text], vocab_size, pattern=WHOLE)
    return tokenizer


def merges_of(text: str, vocab_size: int) -> list[tuple[int, int]]:
    """The product's merges as pairs of ids."""
    tokenizer = trained(text, vocab_size)
    rank = dict(tokenizer.get_mergeable_ranks())
    return [(rank[left], rank[right]) for left, right in tokenizer.get_merges()]


def in_tiktoken(text: str, vocab_size: int) -> tiktoken.Encoding:
    ranks = dict(trained(text, vocab_size).get_mergeable_ranks())
    return tiktoken.Encoding("toy", pat_str=WHOLE, mergeable_ranks=ranks, special_tokens={})


def test_count_pairs_counts_neighbours() -> None:
    found = dict(mine.count_pairs([1, 2, 3, 1, 2]))
    expected = {(1, 2): 2, (2, 3): 1, (3, 1): 1}
    assert found == expected, f"count_pairs([1, 2, 3, 1, 2]) gave {found}, and should give {expected}"


def test_count_pairs_counts_overlapping_ones_and_none_in_one_id() -> None:
    found = dict(mine.count_pairs([7, 7, 7]))
    assert found == {(7, 7): 2}, f"count_pairs([7, 7, 7]) gave {found}: neighbours 0 1 and 1 2 are two pairs"
    assert not mine.count_pairs([7]), "one id has no neighbours, so there is nothing to count"


def test_merge_replaces_from_left_to_right() -> None:
    for ids, pair, expected in (
        ([1, 2, 3, 1, 2], (1, 2), [9, 3, 9]),
        ([7, 7, 7], (7, 7), [9, 7]),
        ([7, 7, 7, 7], (7, 7), [9, 9]),
        ([1, 1, 2], (1, 2), [1, 9]),
        ([2, 1], (1, 2), [2, 1]),
        ([], (1, 2), []),
    ):
        found = mine.merge(copy.copy(ids), pair, 9)
        assert found == expected, f"merge({ids}, {pair}, 9) gave {found}, and should give {expected}"


def test_merge_leaves_its_argument_alone() -> None:
    ids = [1, 2, 3]
    mine.merge(ids, (1, 2), 9)
    assert ids == [1, 2, 3], f"merge changed the list that it was given, to {ids}: make a new one"


@pytest.mark.parametrize("name", TEXTS)
def test_train_finds_the_merges_of_the_product(name: str) -> None:
    found, expected = [tuple(pair) for pair in mine.train(TEXTS[name], 276)], merges_of(TEXTS[name], 276)
    for i, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, (
            f"of {TEXTS[name]!r} your merges are {found[: i + 1]}, the product's {expected[: i + 1]}: is the last one "
            "as common as yours, and smaller?"
        )
    assert len(found) == len(expected), f"of {TEXTS[name]!r} {len(expected)} merges can be made, you made {len(found)}"


def test_train_stops_at_the_vocabulary_asked_for() -> None:
    for vocab_size in (256, 257, 260):
        found = len(mine.train(SONG, vocab_size))
        assert found == vocab_size - 256, (
            f"a vocabulary of {vocab_size} has {vocab_size - 256} merges, you made {found}"
        )


def test_vocabulary_spells_every_token() -> None:
    found = mine.vocabulary(merges_of(SONG, 276))
    expected = [token for token, _ in trained(SONG, 276).get_mergeable_ranks()]
    assert len(found) == len(expected), f"20 merges make {len(expected)} tokens, you have {len(found)}"
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert bytes(one) == other, f"id {i} stands for {other!r}, you have {one!r}"


@pytest.mark.parametrize("text", [*TEXTS.values(), "that hat", "tttheee", "ein Käse", ""])
def test_encode_gives_the_ids_of_tiktoken(text: str) -> None:
    found, expected = mine.encode(text, merges_of(SONG, 276)), in_tiktoken(SONG, 276).encode_ordinary(text)
    assert list(found) == expected, f"encode({text!r}) gave {found}, tiktoken gives {expected}"


@pytest.mark.parametrize("text", [*TEXTS.values(), "that hat", "ein Käse", ""])
def test_decode_gives_the_text_back(text: str) -> None:
    merges = merges_of(SONG, 276)
    ids = in_tiktoken(SONG, 276).encode_ordinary(text)
    found = mine.decode(ids, merges)
    assert found == text, f"decode({ids}) gave {found!r}, and should give {text!r}"


def test_decode_survives_half_a_character_and_names_an_unknown_id() -> None:
    half = "🙂".encode()[:2]
    found = mine.decode(list(half), [])
    assert found == half.decode(errors="replace"), f"two bytes of an emoji gave {found!r}: see errors= of bytes.decode"
    for unknown in (300, -1):
        with pytest.raises(ValueError, match=str(unknown)):
            mine.decode([unknown], [])
