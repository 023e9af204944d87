"""A person's own files as documents: txt, md, jsonl, parquet, each also as gz or zst, folders, standard input.

Text that is not valid UTF-8 is repaired and counted, a document that came before is left out and counted; a file that
cannot be read at all stops with its name.
Where the documents go is not here.

Lesson: lessons/08_real_text
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nanochat.command import UserError

TEXT_SUFFIXES = (".txt", ".md", ".text", ".markdown")
STDIN = Path("-")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
PIECE_CHARS = 100_000  # a longer text file becomes several documents, cut at blank lines: a book is no one document


@dataclass
class Imported:
    """What an import met: documents and characters taken, empty and repeated ones left out, invalid UTF-8 replaced."""

    documents: int = 0
    characters: int = 0
    empty: int = 0
    replaced: int = 0
    duplicates: int = 0


def list_text_files(given: Sequence[Path]) -> list[Path]:
    """The files named, and those of known kinds in the folders named (hidden ones left out), each once, in order."""
    files: dict[Path, None] = {}
    for path in given:
        if path == STDIN:
            files[path] = None
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
            files.update(dict.fromkeys(p for p in inside if _kind(p) in SUFFIXES))
        elif not path.exists():
            raise UserError(f"--import {path}: no such file or folder")
        elif _kind(path) not in SUFFIXES:
            raise UserError(f"--import {path}: can read {', '.join(SUFFIXES)}, each also as .gz or .zst, and folders")
        else:
            files[path] = None
    if not files:
        raise UserError(f"no file with {', '.join(SUFFIXES)} in {', '.join(map(str, given))}")
    return list(files)


def import_documents(files: Iterable[Path], counts: Imported) -> Iterator[str]:
    """Every document of `files` once, counted in `counts`; some 100 bytes of memory each tell which have come.

    Raises UserError naming the file and line that are unreadable.
    """
    seen: set[bytes] = set()
    for path in files:
        if path != STDIN and path.stat().st_size == 0:
            counts.empty += 1
            continue
        try:
            for text in _documents(path, counts):
                digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
                if not text.strip():
                    counts.empty += 1
                elif digest in seen:
                    counts.duplicates += 1
                else:
                    seen.add(digest)
                    counts.documents += 1
                    counts.characters += len(text)
                    yield text
        except (EOFError, zlib.error) as broken:
            raise UserError(f"{path} cannot be unpacked: {broken}") from broken
        except OSError as broken:
            if isinstance(broken, gzip.BadGzipFile) or broken.errno is None:  # zstd's have no number
                raise UserError(f"{path} cannot be unpacked: {broken}") from broken
            raise


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path) -> str:
    """The suffix that tells how to read `path`, that of its packing left out."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in (".gz", ".zst") else path.suffix.lower()


def _documents(path: Path, counts: Imported) -> Iterator[str]:
    with contextlib.ExitStack() as opened:
        # a copy of standard input, which is not ours to close
        raw = os.fdopen(os.dup(sys.stdin.fileno()), "rb") if path == STDIN else path.open("rb")
        file = _unpacked(opened.enter_context(raw), "" if path == STDIN else path.suffix.lower())
        kind = _kind(path)
        if path == STDIN:
            begin = file.peek(4)
            if not begin:
                raise UserError("--import -: nothing came by standard input")
            kind = ".jsonl" if begin.lstrip()[:1] == b"{" else ".txt"
        if kind == ".parquet":
            # its end is read first, which gzip can do slowly and zstd not at all
            yield from _parquet_rows(path, io.BytesIO(file.read()) if path.suffix.lower() == ".zst" else file, counts)
        elif kind == ".jsonl":
            yield from _jsonl_rows(path, file, counts)
        else:
            yield from _pieces(_lines(path, file, counts))


def _unpacked(raw: io.BufferedReader, suffix: str) -> io.BufferedReader:
    """The bytes behind gzip or zstd, told by the suffix or, without one, by how they begin."""
    begin = b"" if suffix else raw.peek(4)[:4]
    if suffix == ".gz" or begin[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if suffix == ".zst" or begin == b"\x28\xb5\x2f\xfd":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"))
    return raw


def _lines(path: Path, file: Iterable[bytes], counts: Imported) -> Iterator[str]:
    """Lines as text; a byte order mark and carriage returns before line ends go, invalid UTF-8 becomes U+FFFD."""
    for number, raw in enumerate(file):
        if number == 0:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{path} is UTF-16: convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            line = raw.decode("utf-8", "replace")
            counts.replaced += line.count("\ufffd") - raw.count("\ufffd".encode())
        yield line[:-2] + "\n" if line.endswith("\r\n") else line


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """The text as one document, or from `PIECE_CHARS` on as one for each stretch that ends at a blank line."""
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= PIECE_CHARS and (not line.strip() or size >= 2 * PIECE_CHARS):
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _jsonl_rows(path: Path, file: Iterable[bytes], counts: Imported) -> Iterator[str]:
    for number, line in enumerate(_lines(path, file, counts), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as broken:  # plain ones: an integer of 5,000 digits, 100,000 brackets
            raise UserError(f"{path} line {number} is no JSON: {broken}") from broken
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            hint = "; conversations belong to `tasks.customjson.CustomJSON`" if "messages" in there else ""
            raise UserError(f"{path} line {number} has no field 'text' that is a string (it has {there}){hint}")
        yield _repaired(row["text"], counts)


def _parquet_rows(path: Path, file: BinaryIO | io.BufferedReader, counts: Imported) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{path} has no column 'text'; it has {', '.join(names)}")
            for batch in table.iter_batches(columns=["text"], batch_size=1000):
                # read as bytes: a column of strings may hold what is no UTF-8, and to_pylist would stop at it
                for raw in batch.column(0).cast(pyarrow.binary()).to_pylist():
                    yield from _lines_joined(path, raw or b"", counts)
    except (pyarrow.ArrowException, OSError) as broken:
        raise UserError(f"{path} is no readable parquet file: {broken}") from broken


def _lines_joined(path: Path, raw: bytes, counts: Imported) -> Iterator[str]:
    try:
        yield raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        counts.replaced += text.count("\ufffd") - raw.count("\ufffd".encode())
        yield text


def _repaired(text: str, counts: Imported) -> str:
    """`text` without the lone surrogates that JSON can spell and UTF-8 cannot."""
    if text.isascii():
        return text
    repaired, lone = re.subn("[\ud800-\udfff]", "\ufffd", text)
    counts.replaced += lone
    return repaired
