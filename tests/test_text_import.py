"""A person's own files: every kind is read, invalid UTF-8 is counted, the unreadable is named with file and line."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nanochat.command import UserError
from nanochat.text_import import PIECE_CHARS, STDIN, Imported, import_documents, list_text_files


def read(*given: Path) -> tuple[list[str], Imported]:
    counts = Imported()
    return list(import_documents(list_text_files(given), counts)), counts


def test_a_text_file_is_one_document_with_plain_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\nthree")
    assert read(path)[0] == ["one\ntwo\nthree"]


def test_a_long_text_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path: Path) -> None:
    text = "".join(f"chapter {i}\n{'word ' * 2000}\n\n" for i in range(60))
    path = tmp_path / "book.md"
    path.write_text(text, encoding="utf-8", newline="\n")
    documents, counts = read(path)
    assert "".join(documents) == text
    assert len(documents) == 6
    assert all(len(d) < PIECE_CHARS * 1.2 and d.endswith("\n\n") and d.startswith("chapter") for d in documents)
    assert counts.documents == 6
    assert counts.characters == len(text)


def test_invalid_utf8_is_replaced_and_counted_but_a_real_replacement_character_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("real \ufffd, broken ".encode() + b"\xff and \xc3( here")
    documents, counts = read(path)
    assert documents == ["real \ufffd, broken \ufffd and \ufffd( here"]
    assert counts.replaced == 2


def test_jsonl_gives_a_document_a_line_and_lone_surrogates_are_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "t\\ud800wo"}\n{"text": ""}\n', encoding="utf-8")
    documents, counts = read(path)
    assert documents == ["one", "t\ufffdwo"]
    assert counts == Imported(documents=2, characters=7, empty=1, replaced=1)


def test_parquet_and_gzip_are_read(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"], "other": [1, 2, 3]}), table)
    packed = tmp_path / "x.txt.gz"
    packed.write_bytes(gzip.compress(b"packed"))
    documents, counts = read(table, packed)
    assert documents == ["a", "b", "packed"]
    assert counts.empty == 1


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def test_zstd_is_read_also_of_several_frames_and_around_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(b'{"text": "one"}\n') + zstd(b'{"text": "two"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["three"]}), tmp_path / "b.parquet")
    (tmp_path / "b.parquet.zst").write_bytes(zstd((tmp_path / "b.parquet").read_bytes()))
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "c.txt.zst").write_bytes(zstd(b"four \xff"))
    documents, counts = read(tmp_path)
    assert documents == ["one", "two", "three", "four \ufffd"]
    assert counts.replaced == 1


def test_a_document_that_came_before_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "one"}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text("two", encoding="utf-8")
    (tmp_path / "c.txt").write_text("two ", encoding="utf-8")
    documents, counts = read(tmp_path)
    assert documents == ["one", "two", "two "]
    assert counts == Imported(documents=3, characters=10, duplicates=2)


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd])
def test_standard_input_is_text_or_jsonl_however_packed(
    packed: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, expected in ((b"plain\ntext", ["plain\ntext"]), (b' {"text": "a"}\n{"text": "b"}\n', ["a", "b"])):
        (tmp_path / "in").write_bytes(packed(content))
        with (tmp_path / "in").open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert read(STDIN)[0] == expected
            assert not stdin.closed
    (tmp_path / "in").write_bytes(b"")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(UserError, match="nothing came by standard input"):
            read(STDIN)


def test_a_parquet_column_of_bytes_is_repaired(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([b"a\xffb"], pyarrow.binary())}), table)
    documents, counts = read(table)
    assert documents == ["a\ufffdb"]
    assert counts.replaced == 1


def test_a_folder_gives_its_known_files_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "deep/c.jsonl", ".hidden/d.txt", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert [p.name for p in list_text_files([tmp_path, tmp_path / "b.txt"])] == ["a.md", "b.txt", "c.jsonl"]


def test_an_empty_file_is_counted_and_stops_nothing(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one"), ("b.txt", ""), ("c.parquet", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    counts = Imported()
    assert list(import_documents(list_text_files([tmp_path]), counts)) == ["one"]
    assert counts.empty == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"a.jsonl line 1 is no JSON: Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1 is no JSON"),
        ("a.txt", "hello".encode("utf-16"), "a.txt is UTF-16"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl line 2 is no JSON"),
        ("a.jsonl", b'{"content": "x"}\n', "a.jsonl line 1 has no field 'text'.*it has content"),
        ("a.jsonl", b'{"messages": []}\n', "CustomJSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl line 1 has no field 'text'.*it has list"),
        ("a.txt.gz", b"not packed", "a.txt.gz cannot be unpacked"),
        ("a.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-12], "a.txt.gz cannot be unpacked"),
        ("a.txt.zst", b"not packed", "a.txt.zst cannot be unpacked"),
        ("a.txt.zst", zstd(b"text " * 1000)[:-2], "a.txt.zst cannot be unpacked"),
        ("a.parquet", b"PAR1", "a.parquet is no readable parquet file"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_what_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        list_text_files([tmp_path / "none.txt"])
    (tmp_path / "a.pdf").touch()
    with pytest.raises(UserError, match=r"a\.pdf: can read \.txt"):
        list_text_files([tmp_path / "a.pdf"])
    with pytest.raises(UserError, match=r"no file with \.txt"):
        list_text_files([tmp_path])
