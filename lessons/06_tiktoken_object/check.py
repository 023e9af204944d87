"""The oracle: tiktoken, made from the same parts."""

import pytest
import tiktoken

import rustbpe
from lessons.learner import load
from nanochat.tokenizer import SPECIAL_TOKENS

mine = load(6)

BYTES = [bytes([byte]) for byte in range(256)]
TOKENS = [*BYTES, b"th", b"at", b"the", b" the", b" c", b"cat", b" cat", b"hat"]
RANKS = {token: rank for rank, token in enumerate(TOKENS)}
SPECIALS = {name: len(TOKENS) + i for i, name in enumerate(SPECIAL_TOKENS)}
SONG = "the cat in the hat sat on the mat; that cat, the fat cat, ate the rat"
TEXTS = [
    SONG,
    "",
    " ",
    "   the   cat  ",
    "don't we'll\r\n\n  x = 3141592;\t# why?",
    "naïve 한국어 🙂🙂 ١٢٣",
    "thethethe hathat",
    "<|bos|> is spelled",
]


def theirs(ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("theirs", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


def trained_ranks() -> dict[bytes, int]:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator([SONG, *TEXTS], 330)
    return dict(tokenizer.get_mergeable_ranks())


def test_ranks_are_places() -> None:
    assert mine.ranks_of(TOKENS) == RANKS, "the rank of a token is its place in the list"


def test_ranks_refuse_a_token_that_stands_twice_and_a_missing_byte() -> None:
    with pytest.raises(ValueError, match="hat"):
        mine.ranks_of([*TOKENS, b"hat"])
    with pytest.raises(ValueError, match="~"):
        mine.ranks_of([token for token in TOKENS if token != b"~"])


def test_as_tiktoken_gives_a_tiktoken_object_with_special_tokens() -> None:
    found = mine.as_tiktoken(RANKS, rustbpe.PATTERNS["gpt2"], SPECIAL_TOKENS)
    assert isinstance(found, tiktoken.Encoding), f"as_tiktoken gave {type(found).__name__}"
    size = len(TOKENS) + len(SPECIAL_TOKENS)
    assert found.n_vocab == size, f"its vocabulary has {found.n_vocab} ids instead of {size}"
    for name, expected in SPECIALS.items():
        ids = found.encode(name, allowed_special="all")
        assert ids == [expected], f"{name} has the ids {ids}, and should have [{expected}]"
    expected = theirs(RANKS, rustbpe.PATTERNS["gpt2"]).encode_ordinary(SONG)
    assert found.encode_ordinary(SONG) == expected, "the song has other ids: which pattern did the object get?"


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "nanochat"])
def test_split_loses_nothing_and_cuts_where_the_pattern_does(name: str) -> None:
    for text in TEXTS:
        words = mine.split(text, rustbpe.PATTERNS[name])
        assert all(isinstance(word, str) for word in words), f"split({text!r}) gives things that are no texts: {words}"
        assert "".join(words) == text, f"joined, the words of {text!r} are {''.join(words)!r}"
    expected = {"gpt2": ["don", "'t", " 3141"], "gpt4": ["don", "'t", " ", "314", "1"]}
    expected["nanochat"] = ["don", "'t", " ", "31", "41"]
    found = mine.split("don't 3141", rustbpe.PATTERNS[name])
    assert found == expected[name], f'{name} cuts "don\'t 3141" into {expected[name]}, you have {found}'


@pytest.mark.parametrize("ranks", [RANKS, RANKS | {b"aa": len(RANKS)}, trained_ranks()], ids=["hand", "aa", "trained"])
def test_encode_word_joins_the_lowest_rank_first(ranks: dict[bytes, int]) -> None:
    whole = tiktoken.Encoding("whole", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    for word in ("the", " the", "hat", " cat", "that", "thehat", "ththth", "한", "x", SONG, "aaaaa"):
        found, expected = mine.encode_word(word.encode(), ranks), whole.encode_ordinary(word)
        assert list(found) == expected, f"the ids of {word!r} are {expected}, you have {found}"


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "nanochat"])
def test_encode_ordinary_gives_the_ids_of_tiktoken(name: str) -> None:
    for ranks in (RANKS, trained_ranks()):
        pattern = rustbpe.PATTERNS[name]
        for text in TEXTS:
            found, expected = mine.encode_ordinary(text, ranks, pattern), theirs(ranks, pattern).encode_ordinary(text)
            assert list(found) == expected, f"by {name}, {text!r} has the ids {expected}, you have {found}"


@pytest.mark.parametrize("allowed", [set(), {"<|bos|>"}, set(SPECIAL_TOKENS)], ids=["none", "one", "all"])
def test_encode_lets_only_allowed_special_tokens_through(allowed: set[str]) -> None:
    pattern = rustbpe.PATTERNS["nanochat"]
    for text in (*TEXTS, "<|bos|>the cat<|user_start|> <|bos|>", "<|bos|", "<|bos|><|bos|>"):
        found = mine.encode(text, RANKS, pattern, SPECIALS, allowed)
        expected = theirs(RANKS, pattern).encode(text, allowed_special=allowed, disallowed_special=())
        assert list(found) == expected, f"allowing {sorted(allowed)}, {text!r} has the ids {expected}, you have {found}"


def test_ranks_of_merges_spell_the_tokens_of_lesson_one() -> None:
    toy = load(1)
    merges = toy.train(SONG, 276)
    ranks = mine.ranks_of_merges(merges)
    expected = {bytes(token): rank for rank, token in enumerate(toy.vocabulary(merges))}
    assert ranks == expected, "the ranks are lesson 1's vocabulary, in its order"
    ids = tiktoken.Encoding("toy", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={}).encode_ordinary(SONG)
    assert ids == toy.encode(SONG, merges), "a tiktoken object of these ranks gives other ids than lesson 1"
