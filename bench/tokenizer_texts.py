"""The texts of `bench/tokenizer.py`: prose of a folder and code of an environment, cut into disjoint sets.

No document occurs twice, so no size is ever reached by repetition.
"""

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizer_worker import size_bytes, write_texts

from nanochat.command import UserError


@dataclass(frozen=True)
class Sizes:
    """How much text each set asks for, in bytes."""

    mixed: int = 100_000_000
    books: int = 10_000_000
    held_out: int = 10_000_000
    """Of warming texts, and as much of unseen ones."""
    growth: int = 0


QUICK = Sizes(mixed=4_000_000, books=2_000_000, held_out=1_000_000)


def prose(folder: Path) -> Iterator[str]:
    """The documents of a folder: the rows of parquet and jsonl files (field `text`), txt files whole."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            for rows in parquet.ParquetFile(path).iter_batches(columns=["text"]):
                yield from (text for text in rows["text"].to_pylist() if text)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            content = path.read_bytes()
            lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
            yield from (text for text in (json.loads(line).get("text") for line in lines) if text)
        elif path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")


def code(folders: Iterable[Path]) -> Iterator[str]:
    """The Python files of some folders that are UTF-8."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def once(texts: Iterable[str], seen: set[bytes]) -> list[str]:
    """The texts that are not in `seen`, each once; `seen` learns them."""
    kept = []
    for text in texts:
        mark = hashlib.sha256(text.encode()).digest()
        if text and mark not in seen:
            seen.add(mark)
            kept.append(text)
    return kept


def take(texts: list[str], size: int) -> list[str]:
    """Texts from the end of the list, about `size` bytes of them; they leave the list."""
    taken = []
    while texts and size > 0:
        taken.append(texts.pop())
        size -= len(taken[-1].encode())
    return taken[::-1]


def mix(books: list[str], programs: list[str], size: int) -> list[str]:
    """About `size` bytes of both in random order: half and half, more of one where the other is short."""
    code_bytes = min(max(size // 2, size - size_bytes(books)), size_bytes(programs))
    mixed = take(programs[:], code_bytes) + take(books[:], size - code_bytes)
    random.Random(1).shuffle(mixed)
    return mixed


def prepare(folder: Path, text_folder: Path, code_folders: Iterable[Path], sizes: Sizes) -> dict[str, int]:
    """Write the sets `unseen`, `warming`, `books`, `mixed` and `growth` into `folder`; how many bytes each has.

    The held-out sets are the last documents of the prose, at most a fifth of it each. Books are the prose that is
    left; mixed, and growth, are code and prose, half and half as far as there is enough of both, in random order.
    """
    seen: set[bytes] = set()
    books = once(prose(text_folder), seen)
    if not books:
        raise UserError(f"{text_folder} has no parquet, jsonl or txt file with text: name another by --text")
    held_out = min(sizes.held_out, size_bytes(books) // 5)
    unseen, warming = take(books, held_out), take(books, held_out)
    programs = once(code(code_folders), seen)
    random.Random(0).shuffle(programs)
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "unseen": unseen,
        "warming": warming,
        "books": take(books[:], sizes.books),
        "mixed": mix(books, programs, sizes.mixed),
        "growth": mix(books, programs, sizes.growth),
    }
    for name, texts in sets.items():
        write_texts(folder / f"{name}.bin", texts)
    return {name: size_bytes(texts) for name, texts in sets.items()}
