"""What the crate takes (iterators, bytes, arrow arrays, files, Ctrl-C) and what it refuses, with the words it says."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from slow_bpe import trained

import rustbpe

# --- taken ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_size", [1, 3, 8192])
def test_the_buffer_changes_nothing(buffer_size: int) -> None:
    texts = [f"number {i} of many, isn't it?\n" * (i % 5) for i in range(40)]
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), 300, buffer_size=buffer_size)
    assert tokenizer.get_mergeable_ranks() == trained(texts, 300, rustbpe.GPT4_PATTERN).get_mergeable_ranks()


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
        [None, *texts[:9], pa.array(["no", None, *texts[9:], None])[1:]],
        [pa.array([], pa.string()), *texts],
    ]
    for given_texts in inputs:
        assert trained(given_texts, 300).get_mergeable_ranks() == expected
    for whole in (array, pa.chunked_array([array[:7], array[7:]])):
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(whole, 300)
        assert tokenizer.get_mergeable_ranks() == expected


def test_bytes_and_arrow_arrays_encode_as_their_texts_do() -> None:
    texts = ["ab abc", "", "naïve 日本", "cab " * 9]
    tokenizer = trained(["ab abc abcd"], 262)
    expected = [tokenizer.encode(text) for text in texts]
    array = pa.array(["left out", *texts])[1:]
    inputs: list[Any] = [
        (text for text in texts),
        [text.encode() for text in texts],
        array,
        array.cast(pa.large_string()),
        array.cast(pa.binary()),
        pa.chunked_array([array[:1], array[1:1], array[1:]]),
        [texts[0], array[1:3], texts[3].encode()],
        [array[index : index + 1].cast(kind) for index, kind in enumerate([pa.string(), pa.large_string()] * 2)],
    ]
    for given_texts in inputs:
        assert tokenizer.batch_encode(given_texts) == expected


@pytest.mark.parametrize("kind", ["u2", "u4", "i2", "i4", "i8", "u8"])
def test_ids_are_read_in_either_byte_order(kind: str) -> None:
    tokenizer = trained(["abc abc"], 258)
    ids = tokenizer.encode("abc abc")
    for order in "<>":
        array = np.array(ids, order + kind)
        assert tokenizer.decode(array) == "abc abc"
        assert tokenizer.decode_bytes(np.repeat(array, 2)[::2]) == b"abc abc"


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 258, 2**40, 2**63, -(2**63) - 1, 2**200])
def test_an_unknown_id_is_told(wrong: int) -> None:
    tokenizer = trained(["abc"], 258)
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(ValueError, match=f"^id {wrong} is not in the vocabulary, whose ids go from 0 to 257$"):
            decode([97, wrong])


@pytest.mark.parametrize("size", [-1, 0, 255, -(2**70)])
def test_a_vocabulary_below_the_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size is {size}, but must be .*256"):
        trained(["abc"], size)


@pytest.mark.parametrize("size", [2**32, 2**70])
def test_a_vocabulary_that_no_id_can_count_is_refused(size: int, tmp_path: Path) -> None:
    for call in (lambda: trained(["abc"], size), lambda: rustbpe.train_bpe(tmp_path / "in", tmp_path / "out", size)):
        with pytest.raises(ValueError, match=rf"^vocab_size is {size}, but must be from 256 to 4294967295$"):
            call()


@pytest.mark.parametrize("wrong", [-1, 2**70])
def test_a_number_of_threads_that_cannot_be_is_refused(wrong: int) -> None:
    tokenizer = rustbpe.Tokenizer()
    for call in (
        lambda: tokenizer.batch_encode(["abc"], wrong),
        lambda: tokenizer.batch_encode_to_numpy(["abc"], num_threads=wrong),
        lambda: tokenizer.train_from_iterator(["abc"], 300, num_threads=wrong),
    ):
        with pytest.raises(ValueError, match=rf"^num_threads is {wrong}, but must be from 0 to 9"):
            call()
    with pytest.raises(ValueError, match=r"^buffer_size is -1, but must be from 0 to 9"):
        tokenizer.train_from_iterator(["abc"], 300, buffer_size=-1)


@pytest.mark.parametrize("kind", ["u2", "u4", "i8", "u8"])
def test_ids_are_not_written_in_a_foreign_byte_order(kind: str) -> None:
    foreign = np.zeros(5, ("<" if sys.byteorder == "big" else ">") + kind)
    tokenizer = rustbpe.Tokenizer()
    with pytest.raises(ValueError, match=r"another byte order .*: out\.astype\(out\.dtype\.newbyteorder\('='\)\)"):
        tokenizer.encode_into("abc", foreign)
    assert not foreign.any()
    ours = foreign.astype(foreign.dtype.newbyteorder("="))
    assert tokenizer.encode_into("abc", ours) == 3
    assert ours.tolist() == [97, 98, 99, 0, 0]


def test_one_text_in_the_place_of_many_is_refused() -> None:
    tokenizer = rustbpe.Tokenizer()
    texts: list[Any] = ["abc", b"abc"]
    for text in texts:
        for call in (
            tokenizer.batch_encode,
            tokenizer.batch_encode_to_numpy,
            lambda text: tokenizer.train_from_iterator(text, 300),
        ):
            with pytest.raises(TypeError, match=rf"not by one {type(text).__name__}: put it in a list, \[text\]"):
                call(text)


def test_a_null_among_texts_to_encode_is_told_with_its_place() -> None:
    tokenizer = rustbpe.Tokenizer()
    array = pa.array(["a", "b", "c", None, "d"])
    inputs: list[tuple[Any, int]] = [
        (array, 3),
        (array[2:], 1),
        (array.cast(pa.large_string())[3:], 0),
        (pa.chunked_array([array[:2], array[2:]]), 3),
        ([b"a", array[4:], array[:4]], 5),
        (["a", None], 1),
        (iter([None]), 0),
    ]
    for texts, index in inputs:
        if not isinstance(texts, Iterator):
            with pytest.raises(ValueError, match=f"^text {index} is null: leave it out"):
                tokenizer.batch_encode_to_numpy(texts)
        with pytest.raises(ValueError, match=f"^text {index} is null: leave it out"):
            tokenizer.batch_encode(texts)
    assert tokenizer.batch_encode(array[:3]) == [[97], [98], [99]]


def test_arrow_arrays_of_another_layout_name_the_cast_that_helps() -> None:
    tokenizer = rustbpe.Tokenizer()
    plain = pa.array(["one", "two", "one"])
    for array in (plain.cast(pa.string_view()), plain.dictionary_encode()):
        for call in (tokenizer.batch_encode, lambda texts: tokenizer.train_from_iterator(texts, 300)):
            with pytest.raises(
                TypeError, match=r"not (string_view|dictionary<.*>): array\.cast\(pyarrow\.large_string"
            ):
                call(array)
        assert tokenizer.batch_encode(array.cast(pa.large_string())) == tokenizer.batch_encode(plain)


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


def test_bytes_that_are_no_utf8_are_told() -> None:
    starts = pa.py_buffer(np.array([0, 1, 2], np.int32))
    # All bytes of the array together are valid, but its two texts share a character.
    cut = pa.Array.from_buffers(pa.string(), 2, [None, starts, pa.py_buffer("é".encode())])
    tokenizer = rustbpe.Tokenizer()
    for wrong in ([b"ab\xff"], [cut], [b"ok", b"ab\xc3"], [b"\xed\xa0\x80"]):
        for call in (tokenizer.batch_encode, tokenizer.batch_encode_to_numpy, lambda texts: trained(texts, 300)):
            with pytest.raises(ValueError, match=r"no UTF-8: the first wrong one stands at offset \d"):
                call(wrong)
    with pytest.raises(ValueError, match=r"offset 2$"):
        trained([b"ab\xff"], 300)


def test_an_error_of_an_iterator_comes_out_of_encoding_and_decoding_too() -> None:
    def broken(first: Any) -> Iterator[Any]:
        yield first
        raise LookupError("the disk is gone")

    tokenizer = rustbpe.Tokenizer()
    for call, first in [
        (tokenizer.batch_encode, "text"),
        (tokenizer.batch_encode_to_numpy, "text"),
        (tokenizer.decode, 97),
        (tokenizer.decode_bytes, 97),
    ]:
        with pytest.raises(LookupError, match="the disk is gone"):
            call(broken(first))


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="has the type string and not int64"):
        trained([pa.array([1, 2])], 300)
    with pytest.raises(TypeError, match="a str, bytes, or a pyarrow array of strings, and not float"):
        trained([1.5], 300)
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
