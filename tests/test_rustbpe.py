"""The crate against a slow trainer of twenty lines and against tiktoken: merges, ids, arrays, text."""

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bpe import PATTERNS, in_tiktoken, train_slowly, trained

import rustbpe
from nanochat.tokenizer import SPLIT_PATTERN


@pytest.fixture(scope="module")
def strings(shared_data: Path) -> list[str]:
    """Every fourth of the 28,289 awkward strings, and passages in many languages."""
    with gzip.open(shared_data / "unicode" / "strings.jsonl.gz", "rt", encoding="utf-8") as lines:
        awkward = [json.loads(line)["text"] for line in lines][::4]
    with gzip.open(shared_data / "multilingual" / "udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        return awkward + [json.loads(line)["text"][:3000] for line in lines]


# --- training ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text("aab bé'ſs1\n.", max_size=40), max_size=8), st.sampled_from(PATTERNS), st.integers(256, 330))
def test_training_equals_the_textbook(texts: list[str], pattern: str, vocab_size: int) -> None:
    tokenizer = trained(texts, vocab_size, pattern)
    assert [token for token, _ in tokenizer.get_mergeable_ranks()] == train_slowly(texts, vocab_size, pattern)


def test_training_on_real_text_equals_the_textbook(shared_data: Path) -> None:
    texts = [(shared_data / "text" / "taylorswift.txt").read_text(encoding="utf-8")[:20_000]]
    tokens = [token for token, _ in trained(texts, 400).get_mergeable_ranks()]
    assert tokens == train_slowly(texts, 400, SPLIT_PATTERN)


def test_overlapping_pairs_are_counted_side_by_side_and_merged_from_the_left() -> None:
    tokenizer = trained(["aaaa" * 5, "aaa"], 262)
    assert [token for token, _ in tokenizer.get_mergeable_ranks()] == train_slowly(["aaaa" * 5, "aaa"], 262, ".+")
    assert trained(["aaa aaa"], 257).encode("aaaaa") == [256, 256, 97]


def test_the_ranks_are_the_bytes_and_then_the_merges() -> None:
    tokenizer = trained(["low lower lowest"], 259)
    ranks = tokenizer.get_mergeable_ranks()
    assert ranks == [(bytes([i]), i) for i in range(256)] + [(b"lo", 256), (b"low", 257), (b" low", 258)]
    assert tokenizer.vocab_size == 259
    assert tokenizer.get_merges() == [(b"l", b"o"), (b"lo", b"w"), (b" ", b"low")]
    assert tokenizer.get_pattern() == SPLIT_PATTERN


def test_a_small_corpus_gives_what_it_has() -> None:
    assert trained(["abc"], 10_000).vocab_size == 258
    assert trained([], 10_000).vocab_size == 256


def test_progress_ends_with_what_was_done() -> None:
    calls: list[tuple[int, int]] = []
    rustbpe.Tokenizer().train_from_iterator(["abcd"], 258, progress=lambda done, wanted: calls.append((done, wanted)))
    rustbpe.Tokenizer().train_from_iterator(["abcd"], 999, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls == [(2, 2), (3, 3)]


def test_other_threads_run_while_one_trains() -> None:
    tokenizer, done = rustbpe.Tokenizer(), threading.Event()
    seen = []

    def texts() -> Iterator[str]:
        for i in range(50):
            seen.append(tokenizer.encode("ab"))
            yield f"ab{i}"

    thread = threading.Thread(target=lambda: (tokenizer.train_from_iterator(texts(), 270), done.set()))
    thread.start()
    thread.join()
    assert done.is_set()
    assert all(ids == [97, 98] for ids in seen)
    assert tokenizer.encode("ab") == [256]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_change_nothing(num_threads: int) -> None:
    texts = ["some words and others, " * 1000 + str(i) for i in range(40)]
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(texts, 290, num_threads=num_threads)
    assert tokenizer.get_mergeable_ranks() == trained(texts, 290, rustbpe.GPT4_PATTERN).get_mergeable_ranks()


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_hold_the_ids_of_lists() -> None:
    texts = ["ab abc", "", "naïve 日本", "b" * 700_000, "cab " * 200_000, "ab"]
    tokenizer = trained(["ab abc abcd"], 262)
    rows = [tokenizer.encode(text) for text in texts]
    assert tokenizer.batch_encode(texts) == rows
    for num_threads in (1, 2, 3, None):
        ids, offsets = tokenizer.batch_encode_to_numpy(texts, num_threads)
        assert (ids.dtype, offsets.dtype) == (np.uint16, np.uint64)
        assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == rows
    for empty in ([], [""]):
        ids, offsets = tokenizer.batch_encode_to_numpy(empty)
        assert (ids.tolist(), offsets.tolist()) == ([], [0] * (len(empty) + 1))
    ids, _ = tokenizer.batch_encode_to_numpy(pa.array(texts))
    assert ids.tolist() == [i for row in rows for i in row]
    assert tokenizer.encode_to_numpy(texts[2]).tolist() == rows[2]
    large = rustbpe.Tokenizer.from_ranks(
        [(bytes([i]), i) for i in range(256)] + [(i.to_bytes(3, "big"), 256 + i) for i in range(65_536)]
    )
    assert large.encode_to_numpy("ab").dtype == np.uint32


def test_arrays_and_lists_decode_alike() -> None:
    tokenizer = trained(["ab abc", "a longer word than sixteen bytes: antidisestablishmentarianism " * 9], 400)
    ids = tokenizer.encode("antidisestablishmentarianism 日本 abc")
    assert any(len(token) > 15 for token, _ in tokenizer.get_mergeable_ranks())
    for dtype in (np.uint16, np.uint32, np.int32, np.int64, np.uint64, np.uint8):
        chosen = [i for i in ids if i < 256] if dtype == np.uint8 else ids
        assert tokenizer.decode(np.array(chosen, dtype)) == tokenizer.decode(chosen)
        assert tokenizer.decode_bytes(np.array(chosen, dtype)) == tokenizer.decode_bytes(chosen)
    assert tokenizer.decode(np.array(ids)[::-1]) == tokenizer.decode(ids[::-1])
    assert tokenizer.decode(tuple(ids)) == tokenizer.decode(iter(ids)) == tokenizer.decode(ids)
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match=f"id {wrong} is not in the vocabulary, whose ids go from 0 to "):
            tokenizer.decode(np.array([97, wrong], np.int64))


def test_ids_are_written_into_a_callers_array() -> None:
    tokenizer = trained(["ab abc"], 258)
    expected = tokenizer.encode("abc cab")
    for dtype in (np.uint16, np.uint32, np.int64, np.uint64):
        out = np.full(10, 9, dtype)
        assert tokenizer.encode_into("abc cab", out) == len(expected)
        assert out.tolist() == expected + [9] * (10 - len(expected))
    with pytest.raises(ValueError, match=f"the buffer has 1 places and the text {len(expected)} ids"):
        tokenizer.encode_into("abc cab", np.zeros(1, np.uint16))
    with pytest.raises(TypeError, match="must be an array of uint16, uint32, int64 or uint64"):
        tokenizer.encode_into("abc cab", np.zeros(9, np.float32))
    read_only = np.zeros(9, np.uint16)
    read_only.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        tokenizer.encode_into("abc cab", read_only)


# --- encoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_equal_tiktokens_on_awkward_strings(pattern: str, strings: list[str]) -> None:
    tokenizer = trained(strings[::3], 2000, pattern)
    oracle = in_tiktoken(tokenizer)
    expected = [oracle.encode_ordinary(text) for text in strings]
    assert tokenizer.batch_encode(strings) == expected
    assert [tokenizer.encode(text) for text in strings[:500]] == expected[:500]
    assert [tokenizer.decode(ids) for ids in expected] == strings


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_equal_tiktokens_with_the_ranks_of_gpt4(pattern: str, strings: list[str], shared_data: Path) -> None:
    lines = (shared_data / "tokenizer_reference" / "cl100k_base.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    tokenizer = rustbpe.Tokenizer.from_ranks(ranks, pattern)
    oracle = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    text = (shared_data / "text" / "json_samples" / "ja.json").read_text(encoding="utf-8")
    for sample in [*strings[::5], text]:
        assert tokenizer.encode(sample) == oracle.encode_ordinary(sample)


@settings(deadline=None, max_examples=300)
@given(st.text(), st.sampled_from(PATTERNS))
def test_any_text_survives_and_equals_tiktokens(text: str, pattern: str) -> None:
    tokenizer = trained(["the cat's on the mat, isn't it? 12345\n\n  \tété", text], 300, pattern)
    ids = tokenizer.encode(text)
    assert ids == in_tiktoken(tokenizer).encode_ordinary(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("unit", ["a", "ab", "abcab", "日"])
def test_a_word_of_a_megabyte_is_no_trap(unit: str) -> None:
    tokenizer = trained([unit * 40, "abba"], 280)
    word = unit * (1_000_000 // len(unit.encode()))
    ids = tokenizer.encode(word)
    assert tokenizer.decode_bytes(ids) == word.encode()
    assert ids[:20] == in_tiktoken(tokenizer).encode_ordinary(word[:2000])[:20]


def test_a_batch_equals_its_texts_whatever_the_number_of_threads() -> None:
    tokenizer = trained(["one two three"], 270)
    texts = [f"{i} one two" for i in range(20)] + [""]
    expected = [tokenizer.encode(text) for text in texts]
    for threads in [None, 0, 1, 2, 64]:
        assert tokenizer.batch_encode(texts, threads) == expected
    assert tokenizer.batch_encode(iter([])) == []


@given(st.lists(st.integers(0, 279)))
def test_decoding_never_fails_on_valid_ids(ids: list[int]) -> None:
    tokenizer = trained(["äöü the the"], 280)
    ids = [i for i in ids if i < tokenizer.vocab_size]
    tokens = [token for token, _ in tokenizer.get_mergeable_ranks()]
    assert tokenizer.decode_bytes(ids) == b"".join(tokens[i] for i in ids)
    assert tokenizer.decode(ids) == b"".join(tokens[i] for i in ids).decode(errors="replace")


def test_the_example_of_the_readme_runs() -> None:
    readme = Path(__file__).parent.parent / "rustbpe" / "README.md"
    [example] = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {})
