"""The same ids as tiktoken, where texts and vocabularies are at their oddest.

Trained vocabularies hide most mistakes of splitting, since few of their tokens would cross a wrong border. The one of
`every_border` has a token for each way that two characters can touch, so that its ids show every border of words.
"""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bpe import CUSTOM_PATTERN, in_tiktoken, train_slowly, trained

import rustbpe
from nanochat.tokenizer import SPLIT_PATTERN

BYTES = [bytes([byte]) for byte in range(256)]
PATTERNS = {**rustbpe.PATTERNS, "custom": CUSTOM_PATTERN}
# https://www.unicode.org/Public/16.0.0/ucd/PropList.txt
WHITE_SPACE = {ord(c) for c in "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"} | {*range(0x2000, 0x200B)}
BUSY_PLANES = {0, 1}


def of_tokens(tokens: list[bytes], pattern: str) -> rustbpe.Tokenizer:
    """A tokenizer whose ids are the places in the list."""
    return rustbpe.Tokenizer.from_ranks([(token, rank) for rank, token in enumerate(tokens)], pattern)


def every_border(pattern: str) -> rustbpe.Tokenizer:
    """The 256 bytes and every last byte of a character with every first byte of the next.

    Such a token comes out exactly where two characters are in one word. Only an ASCII character can be wanted by the
    tokens at both its sides; the one with more bytes from beyond ASCII wins, so that no border beside those is hidden.
    """
    touching = [bytes([a, b]) for a in range(0xC0) for b in [*range(0x80), *range(0xC2, 0xF5)]]
    touching.sort(key=lambda token: sum(byte < 0x80 for byte in token))
    return of_tokens(BYTES + touching, pattern)


def words(text: str, pattern: str) -> list[str]:
    """How a short text is split: every part of it is a token, so every word comes out whole."""
    places = range(len(text) + 1)
    parts = sorted({text[a:b].encode() for a in places for b in places} - {b"", *BYTES})
    tokenizer = of_tokens(BYTES + parts, pattern)
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@pytest.fixture(scope="module")
def varied() -> rustbpe.Tokenizer:
    """Merges of several scripts, of spaces, digits and line breaks."""
    texts = [
        "the cat's on the mat, isn't it? 12345 67890\n\n  \t",
        "été über Straße жизнь 日本語 한국어 नमस्ते 👩‍👩‍👧 e\u0301\r\n",
    ]
    return trained(texts * 3 + ["in " * 20, "the other thing " * 9], 600)


# --- every code point -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
def test_every_code_point_gives_tiktokens_ids_among_letters_spaces_breaks_and_digits(name: str) -> None:
    tokenizer = every_border(PATTERNS[name])
    oracle, share = in_tiktoken(tokenizer), list(PATTERNS).index(name)
    for start in range(0, 0x110000, 4096):
        # The patterns share out among them the planes where all characters are alike.
        first, step = (0, 1) if start >> 16 in BUSY_PLANES else (share, len(PATTERNS))
        points = range(start + first, start + 4096, step)
        characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
        text = "".join(f"a{c}b {c}{c}\n'{c}1{c}\r" for c in characters)
        same = np.array_equal(tokenizer.encode_to_numpy(text), oracle.encode_to_numpy(text))
        assert same, f"between U+{start:04X} and U+{start + 4095:04X}"


@pytest.mark.parametrize("name", PATTERNS)
def test_every_three_characters_of_a_few_give_tiktokens_ids(name: str) -> None:
    few = "aSs'1! \n\r\tſé²\u0301\u00a0\u3000\u200b"
    texts = [x + y + z + tail for x in few for y in few for z in few for tail in ("", "b")]
    tokenizer = every_border(PATTERNS[name])
    assert tokenizer.batch_encode(texts) == in_tiktoken(tokenizer).encode_ordinary_batch(texts, num_threads=1)


# --- awkward texts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awkward(shared_data: Path) -> list[str]:
    """Naughty strings and emoji, all forms of the normalisation test, and hundreds of languages."""
    texts = []
    for file, step in [("unicode/strings", 1), ("multilingual/udhr", 1), ("multilingual/xquad_passages", 24)]:
        with gzip.open(shared_data / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"][:800] for line in lines][::step]
    with gzip.open(shared_data / "unicode" / "NormalizationTest.txt.gz", "rt", encoding="utf-8") as lines:
        rows = [line.split(";")[:5] for line in lines if line[0] not in "#@\n"]
    texts += ["".join(chr(int(code, 16)) for code in " ".join(row).split()) for row in rows]
    return ["".join(texts[i : i + 9]) for i in range(0, len(texts), 9)]


@pytest.mark.parametrize("name", PATTERNS)
def test_awkward_texts_give_tiktokens_ids_and_come_back(
    name: str, awkward: list[str], varied: rustbpe.Tokenizer
) -> None:
    merged = rustbpe.Tokenizer.from_ranks(varied.get_mergeable_ranks(), PATTERNS[name])
    for tokenizer in (every_border(PATTERNS[name]), merged):
        rows = tokenizer.batch_encode(awkward, 1)
        assert rows == in_tiktoken(tokenizer).encode_ordinary_batch(awkward, num_threads=1)
        assert [tokenizer.decode(ids) for ids in rows] == awkward


@pytest.mark.parametrize("unit", ["a", "ab", "abcab", "日", None])
def test_a_word_of_a_hundred_kilobytes_gives_tiktokens_ids(unit: str | None) -> None:
    word = unit * (100_000 // len(unit.encode())) if unit else "".join(random.Random(1).choices("ab", k=100_000))
    tokenizer = trained([word[:300]], 600)
    assert tokenizer.encode(word) == in_tiktoken(tokenizer).encode_ordinary(word)


# --- vocabularies that no training makes ------------------------------------------------------------------------------


@st.composite
def odd_vocabularies(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A few characters, and tokens of their bytes in any order: unreachable ones, parts ranked above their wholes."""
    characters = draw(st.sampled_from(["ab", "abc", "aé", "a日b", "ab 1"]))
    alphabet = sorted(set(characters.encode()))
    piece = st.lists(st.sampled_from(alphabet), min_size=2, max_size=6).map(bytes)
    repeated = st.builds(lambda token, times: token * times, piece, st.integers(2, 9))
    tokens = draw(st.lists(piece | repeated, min_size=2, max_size=25, unique=True))
    own = draw(st.permutations([bytes([byte]) for byte in alphabet] + tokens))
    others = [token for token in BYTES if token[0] not in alphabet]
    return characters, own + others if draw(st.booleans()) else others + own


@settings(deadline=None, max_examples=150)
@given(odd_vocabularies(), st.data())
def test_an_odd_vocabulary_gives_tiktokens_ids(vocabulary: tuple[str, list[bytes]], data: st.DataObject) -> None:
    characters, tokens = vocabulary
    tokenizer = of_tokens(tokens, SPLIT_PATTERN)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    oracle = tiktoken.Encoding("odd", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert dict(tokenizer.get_mergeable_ranks()) == ranks
    # A token that merging cannot reach comes out where it is a word, and words of more than 64 bytes go another way.
    whole = [token.decode() for token in tokens if token.decode(errors="ignore").encode() == token]
    texts = data.draw(st.lists(st.text(characters, max_size=30) | st.sampled_from(whole), max_size=6))
    long = "".join(random.Random(data.draw(st.integers(0, 99))).choices(characters, k=400))
    for text in [*texts, "".join(texts), long, long.replace(" ", "a")]:
        expected = oracle.encode_ordinary(text)
        # A second look finds the words in the cache.
        assert tokenizer.encode(text) == tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize(("characters", "count"), [("ab", 12), ("ab", 40), ("abc", 40), ("etaoin  shé日😀\n.1", 3000)])
def test_vocabularies_of_random_pieces_give_tiktokens_ids(characters: str, count: int) -> None:
    for seed in range(40):
        chance = random.Random(seed)
        text = "".join(chance.choices(characters, k=1000))
        raw = text.encode()
        starts = [chance.randrange(len(raw)) for _ in range(count)]
        pieces = {raw[a : a + chance.choice([2, 2, 2, 3, 3, 4, 5, 8, 30])] for a in starts}
        tokens = sorted({*pieces, *BYTES, *(chance.randbytes(3) for _ in range(9))})
        chance.shuffle(tokens)
        tokenizer = of_tokens(tokens, chance.choice([SPLIT_PATTERN, r"(?s).+"]))
        assert tokenizer.encode(text) == in_tiktoken(tokenizer).encode_ordinary(text), f"seed {seed}"


# --- decoding ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(odd_vocabularies(), st.data())
def test_any_ids_decode_as_tiktoken_decodes_them(vocabulary: tuple[str, list[bytes]], data: st.DataObject) -> None:
    _, tokens = vocabulary
    tokenizer = of_tokens(tokens, SPLIT_PATTERN)
    oracle = in_tiktoken(tokenizer)
    for _ in range(4):
        ids = data.draw(st.lists(st.integers(0, len(tokens) - 1)))
        assert tokenizer.decode_bytes(ids) == oracle.decode_bytes(ids)
        assert tokenizer.decode(ids) == oracle.decode(ids, errors="replace")


@settings(deadline=None, max_examples=400)
@given(
    st.lists(
        st.binary(max_size=3) | st.sampled_from("é日😀\ufeff".encode().split()) | st.text(max_size=2).map(str.encode)
    )
)
def test_any_bytes_decode_as_python_decodes_them(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    assert rustbpe.Tokenizer().decode(list(raw)) == raw.decode(errors="replace")


def test_malformed_text_decodes_as_python_decodes_it(shared_data: Path) -> None:
    raw = (shared_data / "unicode" / "UTF-8-test.txt").read_bytes()
    text = rustbpe.Tokenizer().decode(np.frombuffer(raw, np.uint8))
    assert text == raw.decode(errors="replace")
    assert "\ufffd" in text


# --- traps ------------------------------------------------------------------------------------------------------------


def test_the_long_s_after_an_apostrophe_is_an_s_unless_the_pattern_minds_the_case() -> None:
    for name in ("nanochat", "gpt4", "qwen2"):
        assert words("it'ſa'Sa'LL", PATTERNS[name]) == ["it", "'ſ", "a", "'S", "a", "'LL"]
    assert words("it'ſa'Sa'll", PATTERNS["gpt2"]) == ["it", "'", "ſa", "'", "Sa", "'ll"]


@pytest.mark.parametrize("pattern", [PATTERNS["gpt2"], r"\s+|\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+"])
def test_white_space_is_the_25_characters_of_unicode_and_not_pythons(pattern: str) -> None:
    characters = [chr(i) for i in range(0x10000) if not 0xD800 <= i < 0xE000]
    tokenizer = every_border(pattern)
    apart = np.ones(len(characters), bool)
    for other in "a1!":
        texts = [other + character for character in characters]
        _, offsets = tokenizer.batch_encode_to_numpy(texts)
        apart &= np.diff(offsets) == [len(text.encode()) for text in texts]
    found = {ord(character) for character, is_apart in zip(characters, apart, strict=True) if is_apart}
    assert found == WHITE_SPACE
    assert len(WHITE_SPACE) == 25
    pythons = {i for i in range(0x110000) if chr(i).isspace()}
    assert pythons - found == {0x1C, 0x1D, 0x1E, 0x1F}


@pytest.mark.parametrize("name", PATTERNS)
def test_white_space_before_a_word_leaves_it_the_last_character(name: str) -> None:
    for run in ("  ", "   ", "\t ", "\u3000 ", "\x85\u2028 "):
        assert words(f"a{run}b", PATTERNS[name]) == ["a", run[:-1], " b"]
        assert words(f"a{run}", PATTERNS[name]) == ["a", run]
    # What is given back and fits no word stands alone.
    assert words("a  \t!", PATTERNS[name]) == ["a", "  ", "\t", "!"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=6), max_size=6))
def test_runs_of_one_letter_train_as_the_textbook_does(runs: list[list[tuple[str, int]]]) -> None:
    texts = ["".join(letter * times for letter, times in text) for text in runs]
    tokens = [token for token, _ in trained(texts, 280).get_mergeable_ranks()]
    assert tokens == train_slowly(texts, 280, SPLIT_PATTERN)


def test_neither_threads_nor_hashes_nor_the_order_of_texts_reach_the_merges() -> None:
    # Random words, so that most pairs are as frequent as others; a set, which comes in the order of its hashes.
    code = (
        "import random, rustbpe, sys\n"
        "chance = random.Random(0)\n"
        "texts = {' '.join(''.join(chance.choices('abcdefgh', k=6)) for _ in range(60)) for _ in range(1500)}\n"
        "tokenizer = rustbpe.Tokenizer()\n"
        "tokenizer.train_from_iterator(texts, 1500, num_threads=int(sys.argv[1]) or None)\n"
        "print(tokenizer.get_merges())\n"
    )
    answers = set()
    for seed, threads in [("0", "1"), ("1", "2"), ("2", "3"), ("3", "0")]:
        command = [sys.executable, "-c", code, threads]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
        answers.add(done.stdout)
    assert len(answers) == 1
    assert answers.pop().count("(b'") == 1500 - 256
