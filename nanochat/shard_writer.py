"""Documents written as the shards of a source: parquet files, the last of them for validation.

How shards are read is in `dataset`.

Lesson: lessons/08_real_text
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import paths
from nanochat.command import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

ONE_IN_VALIDATION = 20
ROW_GROUP_CHARS = 10_000_000


def write_shards(
    documents: Iterable[str], source: str, shard_chars: int = 50_000_000, row_group_rows: int = 1000
) -> list[Path]:
    """Write `documents` as the shards of `source`, which replace what it held once all are written.

    Every twentieth document goes to the validation shard, until that is as long as a shard. Of fewer than twenty
    documents each gives its last tenth, so that even one document has a training and a validation part.
    Empty documents are left out. Of several writers of one source each waits for the one before. Raises UserError when
    nothing is left.
    """
    from filelock import FileLock

    if not re.fullmatch(r"[\w-][\w.-]*", source):
        raise UserError(f"--source={source} cannot be a folder's name: use letters, digits, '-', '_' and '.'")
    target = paths.data_dir(source)
    part = target.with_name(f".{source}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{source}.lock")):
        _put_back(target)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            writer, validation = _Shards(part, shard_chars, row_group_rows), list[str]()
            _deal((text for text in documents if text.strip()), writer, validation, shard_chars)
            if not validation or not writer.documents:
                raise UserError(f"no text for {source!r}: a corpus needs at least one document of two characters")
            writer.end_shard()
            for text in validation:
                writer.add(text, may_split=False)
            writer.end_shard()
            _swap(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return sorted(target.glob("*.parquet"))


def _deal(documents: Iterator[str], writer: "_Shards", validation: list[str], limit: int) -> None:
    first = list(islice(documents, ONE_IN_VALIDATION))
    if len(first) < ONE_IN_VALIDATION:
        for text in first:
            cut = _border(text, len(text) * 9 // 10)
            writer.add(text[:cut])
            validation.append(text[cut:])
        validation[:] = [text for text in validation if text.strip()]
        return
    room = limit
    for index, text in enumerate(chain(first, documents), start=1):
        if index % ONE_IN_VALIDATION == 0 and room > 0:
            validation.append(text)
            room -= len(text)
        else:
            writer.add(text)


def _border(text: str, near: int) -> int:
    """Where to cut `text`: the last blank line, line end or space before `near` in its last half, else at `near`."""
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, near // 2, near)
        if at >= 0:
            return at + len(mark)
    return max(near, 1)


class _Shards:
    """Writes documents to numbered parquet files, a row group at a time."""

    def __init__(self, folder: Path, shard_chars: int, row_group_rows: int):
        self.folder, self.shard_chars, self.row_group_rows = folder, shard_chars, row_group_rows
        self.documents = 0
        self._shards = 0
        self._writer: pyarrow.parquet.ParquetWriter | None = None
        self._rows: list[str] = []
        self._row_chars = self._shard_chars = 0

    def add(self, text: str, may_split: bool = True) -> None:
        """Append one document; `may_split` lets a full shard end here."""
        # a lone surrogate (JSON can spell one) is no text that UTF-8 can hold
        self._rows.append(text.encode("utf-8", "replace").decode("utf-8"))
        self.documents += 1
        self._row_chars += len(text)
        if len(self._rows) >= self.row_group_rows or self._row_chars >= ROW_GROUP_CHARS:
            self._flush()
        if may_split and self._shard_chars + self._row_chars >= self.shard_chars:
            self.end_shard()

    def end_shard(self) -> None:
        """Close the current file, if anything is in it."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer, self._shard_chars = None, 0
            self._shards += 1

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        table = pyarrow.table({"text": pyarrow.array(self._rows, pyarrow.string())})
        if self._writer is None:
            path = self.folder / f"shard_{self._shards:05d}.parquet"
            self._writer = pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=len(self._rows))
        self._shard_chars += self._row_chars
        self._rows, self._row_chars = [], 0


def _put_back(target: Path) -> None:
    """Undo half a swap, where a kill left it."""
    old = target.with_name(f".{target.name}.old")
    if (old.is_symlink() or old.exists()) and not (target.is_symlink() or target.exists()):
        old.rename(target)


def _swap(part: Path, target: Path) -> None:
    """Put the folder `part` where `target` is or was."""
    old = target.with_name(f".{target.name}.old")
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    if target.is_symlink() or target.exists():
        target.rename(old)
    part.rename(target)
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
