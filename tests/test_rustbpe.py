"""The crate against a slow trainer of twenty lines and against tiktoken."""

import base64
import gzip
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import rustbpe
from nanochat.tokenizer import SPLIT_PATTERN

# cl100k_base as tiktoken 0.14 writes it; the general engine gets the last one.
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
CUSTOM_PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = [*rustbpe.PATTERNS.values(), CL100K_PATTERN, CUSTOM_PATTERN]


def train_slowly(texts: list[str], vocab_size: int, pattern: str) -> list[bytes]:
    """The textbook: count all pairs anew before every merge; ties go to the smaller left, then right id."""
    words = [(list(word.encode()), count) for word, count in _count(texts, pattern).items()]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                counts[pair] += count
        if not counts:
            break
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        for ids, _ in words:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == (left, right):
                    ids[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[left] + tokens[right])
    return tokens


def _count(texts: list[str], pattern: str) -> Counter[str]:
    return Counter(word for text in texts for word in regex.findall(pattern, text))


def trained(texts: Iterable[Any], vocab_size: int, pattern: str = SPLIT_PATTERN) -> rustbpe.Tokenizer:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=pattern)
    return tokenizer


def in_tiktoken(tokenizer: rustbpe.Tokenizer) -> tiktoken.Encoding:
    ranks = dict(tokenizer.get_mergeable_ranks())
    return tiktoken.Encoding("x", pat_str=tokenizer.get_pattern(), mergeable_ranks=ranks, special_tokens={})


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


@pytest.mark.parametrize("buffer_size", [1, 3, 8192])
def test_the_buffer_changes_nothing(buffer_size: int) -> None:
    texts = [f"number {i} of many, isn't it?\n" * (i % 5) for i in range(40)]
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), 300, buffer_size=buffer_size)
    assert tokenizer.get_mergeable_ranks() == trained(texts, 300, rustbpe.GPT4_PATTERN).get_mergeable_ranks()


def test_a_small_corpus_gives_what_it_has() -> None:
    assert trained(["abc"], 10_000).vocab_size == 258
    assert trained([], 10_000).vocab_size == 256


def test_an_error_of_the_iterator_comes_out_and_leaves_the_tokenizer_as_it_was() -> None:
    def broken() -> Iterator[str]:
        yield "some text"
        raise LookupError("the disk is gone")

    tokenizer = trained(["abab"], 257)
    with pytest.raises(LookupError, match="the disk is gone"):
        tokenizer.train_from_iterator(broken(), 300)
    assert tokenizer.encode("ab") == [256]


def test_an_error_of_the_progress_call_stops_training() -> None:
    def stop(done: int, wanted: int) -> None:
        raise InterruptedError(f"{done} of {wanted}")

    with pytest.raises(InterruptedError, match="2 of 2"):
        rustbpe.Tokenizer().train_from_iterator(["abc"], 259, progress=stop)


def test_progress_ends_with_what_was_done() -> None:
    calls: list[tuple[int, int]] = []
    rustbpe.Tokenizer().train_from_iterator(["abcd"], 258, progress=lambda done, wanted: calls.append((done, wanted)))
    rustbpe.Tokenizer().train_from_iterator(["abcd"], 999, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls == [(2, 2), (3, 3)]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_stops_training() -> None:
    # An endless iterator written in C: only the crate itself can notice the signal.
    code = (
        "import itertools, os, rustbpe, signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job starts with it ignored
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: rustbpe.Tokenizer().train_from_iterator(itertools.repeat('some words'), 300)\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout == "stopped\n"


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


def test_one_file_becomes_ranks_that_tiktoken_reads(tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.tiktoken"
    source.write_text("der Hut und die Hüte\nzwei Hüte\n" * 50, encoding="utf-8")
    tokenizer = rustbpe.train_bpe(input_file=source, output_file=str(target), vocab_size=280)
    from tiktoken.load import load_tiktoken_bpe

    assert load_tiktoken_bpe(str(target)) == dict(tokenizer.get_mergeable_ranks())
    assert tokenizer.get_mergeable_ranks() == trained([source.read_text(encoding="utf-8")], 280).get_mergeable_ranks()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_stops_while_one_huge_text_is_counted() -> None:
    code = (
        "import os, rustbpe, signal, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "text = 'x ' * 20_000_000\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: rustbpe.Tokenizer().train_from_iterator(iter([text] * 100), 300)\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout == "stopped\n"


def test_bytes_and_arrow_arrays_train_as_their_texts_do() -> None:
    texts = [f"number {i} of many, isn't it? naïve 日本\n" * (i % 4) for i in range(50)]
    expected = trained(texts, 300).get_mergeable_ranks()
    array = pa.array(texts)
    inputs: list[list[Any]] = [
        [text.encode() for text in texts],
        [array[:20], array[20:]],
        [pa.array(texts, pa.large_string())],
        [pa.chunked_array([array[:7], array[7:7], array[7:]])],
        [pa.array([None, *texts, None])],
        [pa.array([], pa.string()), *texts],
    ]
    for given_texts in inputs:
        assert trained(given_texts, 300).get_mergeable_ranks() == expected
    with pytest.raises(TypeError, match="has the type string and not int64"):
        trained([pa.array([1, 2])], 300)
    with pytest.raises(TypeError, match="a str, bytes, or a pyarrow array of strings, and not float"):
        trained([1.5], 300)
    with pytest.raises(ValueError, match="no UTF-8: the first wrong one stands at offset 2"):
        trained([b"ab\xff"], 300)


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


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 258, 2**40])
def test_an_unknown_id_is_told(wrong: int) -> None:
    tokenizer = trained(["abc"], 258)
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(ValueError, match=f"^id {wrong} is not in the vocabulary, whose ids go from 0 to 257$"):
            decode([97, wrong])


@pytest.mark.parametrize("size", [-1, 0, 255])
def test_a_vocabulary_below_the_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size is {size}, but must be .*256"):
        trained(["abc"], size)


def test_a_bad_pattern_is_shown_with_its_place() -> None:
    with pytest.raises(ValueError) as raised:
        trained(["abc"], 300, pattern=r"\p{L}+|(?:\d")
    *_, shown, marker = str(raised.value).splitlines()
    assert shown.strip() == r"\p{L}+|(?:\d"
    assert marker.endswith("^")
    with pytest.raises(ValueError, match="attempts"):
        trained(["x" * 60], 300, pattern=r"(x+x+)+(?=y)z\1")


def test_a_lone_surrogate_is_told_with_its_place() -> None:
    tokenizer = rustbpe.Tokenizer()
    for call in (tokenizer.encode, lambda text: tokenizer.batch_encode([text]), lambda text: trained([text], 300)):
        with pytest.raises(ValueError, match="a lone surrogate stands at character 3"):
            call("abc\ud800")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError):
        trained([7], 300)
    with pytest.raises(TypeError):
        rustbpe.Tokenizer().encode(7)  # type: ignore[arg-type]


def test_ranks_that_are_no_vocabulary_are_refused() -> None:
    ranks = [(bytes([i]), i) for i in range(256)]
    assert rustbpe.Tokenizer.from_ranks(ranks).vocab_size == 256
    with pytest.raises(ValueError, match="byte 255 has no token"):
        rustbpe.Tokenizer.from_ranks(ranks[:255])
    with pytest.raises(ValueError, match="rank 300 is too high for 257 tokens"):
        rustbpe.Tokenizer.from_ranks([*ranks, (b"ab", 300)])


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        rustbpe.train_bpe(tmp_path / "none.txt", tmp_path / "out", 300)
    assert raised.value.filename == str(tmp_path / "none.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("süß".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: the first wrong byte stands at offset 1"):
        rustbpe.train_bpe(latin, tmp_path / "out", 300)
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_readme_runs() -> None:
    readme = Path(__file__).parent.parent / "rustbpe" / "README.md"
    [example] = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {})
