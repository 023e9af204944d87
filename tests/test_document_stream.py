"""The thread that tokenizes ahead: it brings what would have come without it, tells its failures, and ends."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny import tiny_tokenizer

from nanochat import dataset, paths
from nanochat.command import UserError
from nanochat.document_stream import CHUNK_DOCUMENTS, THREAD_NAME, Chunk, Documents, DocumentStream
from nanochat.packing import Turns
from nanochat.tokenizer_base import BaseTokenizer

TEXTS = [f"Text {n} of France is {'blue ' * (n % 9)}" for n in range(400)]


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture
def documents(base_dir: Path) -> Iterator[Documents]:
    dataset.write_shards(TEXTS, "own", shard_chars=4000, row_group_rows=90)
    yield Documents.of(tiny_tokenizer(), "train", "own", seed=3)
    assert our_threads() == []


def read(chunks: Iterator[Chunk]) -> Iterator[str]:
    for chunk in chunks:
        for begin, end in pairwise(chunk.offsets):
            yield tiny_tokenizer().decode(chunk.ids[begin:end].tolist())


def drained(stream: DocumentStream, turns: Turns, end: int) -> list[str]:
    return list(read(iter(lambda: stream.take(turns, end), None)))


def test_the_first_epoch_comes_as_it_lies_and_later_ones_shuffle_groups_and_documents(documents: Documents) -> None:
    train = list(dataset.iterate_documents("train", "own"))
    count = documents.count
    assert count == len(train) == 380
    epochs = [drained(DocumentStream(documents, 2), Turns(0, 1, n * count), (n + 1) * count) for n in range(3)]
    assert epochs[0] == train
    assert sorted(epochs[1]) == sorted(epochs[2]) == sorted(train)
    assert epochs[1] != epochs[2]
    first_group = epochs[1][: documents.groups[0][2]]
    assert any(train.index(a) > train.index(b) for a, b in pairwise(first_group))
    for seed, same in ((3, True), (4, False)):
        again = Documents(documents.tokenizer, documents.groups, seed)
        assert (list(read(again.chunks(Turns(0, 1, count), 2 * count))) == epochs[1]) == same


@pytest.mark.parametrize("ranks", [1, 3, 400])
def test_any_chunks_end_can_be_started_from(documents: Documents, ranks: int) -> None:
    whole = list(documents.chunks(Turns(ranks - 1, ranks), 2 * documents.count))
    assert max(len(chunk.offsets) for chunk in whole) <= CHUNK_DOCUMENTS + 1
    for number, chunk in enumerate(whole[:-1]):
        later = documents.chunks(Turns(ranks - 1, ranks, chunk.end), 2 * documents.count)
        following = next(later)
        assert following.end == whole[number + 1].end
        assert following.ids.tolist() == whole[number + 1].ids.tolist()


def test_a_thread_reads_ahead_and_ends_with_the_data_with_close_and_with_the_stream(documents: Documents) -> None:
    main = threading.current_thread()
    seen: set[threading.Thread] = set()

    class Watching(type(documents.tokenizer)):  # type: ignore[misc]
        def encode_arrays(self, texts: pyarrow.Array) -> object:
            seen.add(threading.current_thread())
            return super().encode_arrays(texts)

    tokenizer = Watching(documents.tokenizer._bpe)  # type: ignore[attr-defined]
    watched = Documents(tokenizer, documents.groups, 3)
    assert our_threads() == []
    stream = DocumentStream(watched, 2)
    assert our_threads() == []
    drained(stream, Turns(0, 1), watched.count)
    assert seen
    assert main not in seen
    assert our_threads() == []
    stream.take(Turns(0, 1), None)
    assert len(our_threads()) == 1
    stream.close()
    assert our_threads() == []
    stream.take(Turns(0, 1), None)
    del stream
    assert our_threads() == []
    seen.clear()
    drained(DocumentStream(watched, 0), Turns(0, 1), 10)
    assert seen == {main}


def test_a_failure_in_the_thread_is_raised_where_the_chunk_is_asked_for_again_and_again(documents: Documents) -> None:
    path = documents.groups[-1][0]
    stream = DocumentStream(documents, 8)
    path.write_bytes(b"nothing")
    begin = sum(rows for file, _, rows in documents.groups if file != path)
    good = [*iter(lambda: stream.take(Turns(0, 1), begin), None)]
    assert good[-1].end == begin
    for _ in range(2):
        with pytest.raises(UserError, match=f"{path.name} is no readable parquet file"):
            stream.take(Turns(0, 1, begin), None)
        assert our_threads() == []


def test_text_that_is_no_utf8_is_told_with_its_file_and_row_group(base_dir: Path) -> None:
    folder = paths.data_dir("own")
    folder.mkdir(parents=True)
    wrong = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"a\xff"]).buffers())
    for name in ("a", "b"):
        pyarrow.parquet.write_table(pyarrow.table({"text": wrong}), folder / f"{name}.parquet")
    stream = DocumentStream(Documents.of(tiny_tokenizer(), "train", "own", 0), 1)
    with pytest.raises(UserError, match=r"a\.parquet"):
        stream.take(Turns(0, 1), None)


def test_every_tokenizer_gives_arrays() -> None:
    texts = pyarrow.array(["The sky", "", "is blue. «é»"])
    ours = tiny_tokenizer()
    expected = ours.encode(texts.to_pylist())
    for ids, offsets in (ours.encode_arrays(texts), BaseTokenizer.encode_arrays(ours, texts)):
        assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_a_thread_of_its_own_and_both_end(documents: Documents) -> None:
    stream = DocumentStream(documents, 3)
    first = stream.take(Turns(0, 1), None)
    assert first is not None
    expected = next(documents.chunks(Turns(0, 1, first.end))).ids.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            chunk = stream.take(Turns(0, 1, first.end), None)
            code = 0 if chunk is not None and chunk.ids.tolist() == expected and len(our_threads()) == 1 else 2
            stream.close()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    second = stream.take(Turns(0, 1, first.end), None)
    assert second is not None
    assert second.ids.tolist() == expected
    stream.close()


def test_a_program_that_stops_in_the_middle_ends(documents: Documents) -> None:
    program = """
from nanochat.document_stream import Documents, DocumentStream
from nanochat.packing import Turns
from nanochat.tokenizer import RustBPETokenizer
tokenizer = RustBPETokenizer.train_from_iterator(["some text"], vocab_size=270)
stream = DocumentStream(Documents.of(tokenizer, "train", "own", 3), 4)
assert stream.take(Turns(0, 1), None)
raise SystemExit(5)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (5, "")
