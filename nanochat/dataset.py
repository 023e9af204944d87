"""Pretraining text on disk: shards of documents, listed, read, written, fetched and imported.

A source is a folder `data/<source>/` of parquet files with a column `text`, a document a row; the last file by name is
the validation shard. How foreign files are read is in `text_import`; what documents become (ids, batches) is not here.

    python -m nanochat.dataset -n 8                        # eight shards of fineweb-edu, and the validation shard
    python -m nanochat.dataset --import notes/ book.txt    # your own txt, md, jsonl, parquet, gz, folders
    python -m nanochat.dataset --info
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat import command, paths
from nanochat.command import UserError
from nanochat.download import download
from nanochat.log import print0, progress
from nanochat.text_import import Imported, import_documents, list_text_files

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

Split = Literal["train", "val"]

HUB_SOURCE = "fineweb-edu"
HUB_REPOSITORY = "karpathy/fineweb-edu-100b-shuffle"
HUB_LAST_SHARD = 1822  # the pinned validation shard: the same for however many shards one trains on
ONE_IN_VALIDATION = 20
ROW_GROUP_CHARS = 10_000_000


# --- read -------------------------------------------------------------------------------------------------------------


def sources() -> list[str]:
    """The sources that have at least one shard here."""
    folder = paths.data_dir()
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(p.name for p in found if not p.name.startswith(".") and any(p.glob("*.parquet")))


def default_source() -> str:
    """`fineweb-edu` where it is, else the only source. Raises UserError when there is none, or a choice to make."""
    found = sources()
    if HUB_SOURCE in found:
        return HUB_SOURCE
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several sources of text are here ({', '.join(found)}): name one with --data=NAME")
    raise UserError(
        f"no text in {paths.data_dir()}: `python -m nanochat.tinyworld` writes the built-in corpus, `python -m "
        "nanochat.dataset -n 8` fetches public shards, `python -m nanochat.dataset --import PATH` takes your own"
    )


def list_parquet_files(source: str | None = None) -> list[Path]:
    """The shards of `source` by name; the last is the validation shard. Raises UserError when there is none."""
    source = source or default_source()
    files = sorted(paths.data_dir(source).glob("*.parquet"))
    if not files:
        known = ", ".join(sources()) or "none"
        raise UserError(f"no source called {source!r} in {paths.data_dir()}; there: {known}")
    return files


def split_files(split: Split, source: str | None = None) -> list[Path]:
    """The training shards (all but the last), or the validation shard (the last)."""
    files = list_parquet_files(source)
    if len(files) < 2:
        raise UserError(
            f"{files[0]} is the only shard: training needs one more beside the validation shard; fetch more "
            f"(`python -m nanochat.dataset -n 8`) or let `python -m nanochat.dataset --import {files[0]}` divide it"
        )
    return files[:-1] if split == "train" else files[-1:]


def row_group_counts(path: Path) -> list[int]:
    """Rows of each row group of a shard. Raises UserError for a file that is empty or no parquet file with `text`."""
    with _open(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]


def read_row_group(path: Path, index: int) -> list[str]:
    """The documents of one row group; a row without text is an empty one."""
    return list(read_row_group_array(path, index).to_pylist())


def read_row_group_array(path: Path, index: int) -> "pyarrow.Array":
    """The same as one array of strings, without a Python object for each."""
    import pyarrow

    with _open(path) as file:
        try:
            column = file.read_row_group(index, columns=["text"]).column("text")
            return column.cast(pyarrow.large_string()).fill_null("").combine_chunks()
        except (pyarrow.ArrowException, OSError) as broken:
            raise UserError(f"{path}: row group {index} is unreadable ({broken}); delete it, get it again") from broken


def text_bytes(split: Split, source: str | None = None) -> int:
    """Bytes of text in a split before compression, from the shards' footers alone."""
    total = 0
    for path in split_files(split, source):
        with _open(path) as file:
            column = file.schema_arrow.names.index("text")
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            total += sum(group.column(column).total_uncompressed_size for group in groups)
    return total


def iterate_documents(split: Split, source: str | None = None) -> Iterator[str]:
    """Every document of a split, in order."""
    for path in split_files(split, source):
        for index in range(len(row_group_counts(path))):
            yield from read_row_group(path, index)


def _open(path: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as broken:
        size = path.stat().st_size
        raise UserError(f"{path} is no readable parquet file ({size:,} bytes); delete it and get it again") from broken
    columns = file.schema_arrow.names
    if "text" not in columns:
        file.close()
        raise UserError(f"{path} has no column 'text'; it has {', '.join(columns)}")
    if file.metadata.num_rows == 0:
        file.close()
        raise UserError(f"{path} holds no documents")
    return file


# --- write ------------------------------------------------------------------------------------------------------------


def write_shards(
    documents: Iterable[str], source: str, shard_chars: int = 50_000_000, row_group_rows: int = 1000
) -> list[Path]:
    """Write `documents` as the shards of `source`, which replace what it held once all are written.

    Every twentieth document goes to the validation shard, until that is as long as a shard. Of fewer than twenty
    documents each gives its last tenth, so that even one document has a training and a validation part.
    Empty documents are left out. Raises UserError when nothing is left.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", source):
        raise UserError(f"--source={source} cannot be a folder's name: use letters, digits, '-', '_' and '.'")
    target = paths.data_dir(source)
    part = target.with_name(f".{source}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
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
    return list_parquet_files(source)


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


# --- fetch and import -------------------------------------------------------------------------------------------------


def shard_url(index: int) -> str:
    """Where shard `index` of the public corpus lies; `HF_ENDPOINT` names a mirror."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return f"{endpoint}/datasets/{HUB_REPOSITORY}/resolve/main/shard_{index:05d}.parquet"


def fetch_shards(count: int, workers: int = 4, on_progress: Callable[[Path], object] = lambda path: None) -> list[Path]:
    """Fetch the pinned validation shard and the first `count` training shards (-1: all) that are not here yet."""
    indices = _shard_indices(count)

    def fetch(index: int) -> Path:
        path = paths.data_dir(HUB_SOURCE) / f"shard_{index:05d}.parquet"
        download(shard_url(index), path)
        _open(path).close()
        on_progress(path)
        return path

    # validation first and alone: a run that starts on the first shards never takes a training shard for it
    files = [fetch(indices[0])]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = [pool.submit(fetch, index) for index in indices[1:]]
        try:
            files += [done.result() for done in as_completed(waiting)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(files)


def _shard_indices(count: int) -> list[int]:
    if count != -1 and not 1 <= count <= HUB_LAST_SHARD:
        raise UserError(f"-n {count}: {HUB_SOURCE} has 1 to {HUB_LAST_SHARD} training shards; -1 means all")
    return [HUB_LAST_SHARD, *range(HUB_LAST_SHARD if count == -1 else count)]


@dataclass(frozen=True)
class Config:
    """Get pretraining text."""

    num_files: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Training shards of fineweb-edu to fetch (about 100 MB each), -1 for all; the validation shard comes with them."""
    num_workers: Annotated[int, tyro.conf.arg(aliases=["-w"])] = 4
    """Shards fetched at once."""
    import_paths: Annotated[tuple[Path, ...], tyro.conf.arg(name="import")] = ()
    """Your own files and folders: txt, md, jsonl (field `text`), parquet (column `text`), each also as .gz."""
    source: str | None = None
    """The name under which imported text is kept; by default that of the first file or folder."""
    overwrite: bool = False
    """Let an import replace a source that is here already."""
    info: bool = False
    """Say what is here."""
    dry_run: bool = False
    """Print what would be done, and do nothing."""


def main(config: Config) -> None:
    """Fetch, import, or say what is here."""
    if config.num_workers < 1:
        raise UserError(f"--num_workers={config.num_workers}: at least 1")
    if config.import_paths:
        _import(config)
    elif config.num_files is not None:
        _fetch(config.num_files, config)
    if config.info or (config.num_files is None and not config.import_paths):
        _print_info()


def _fetch(count: int, config: Config) -> None:
    indices = _shard_indices(count)
    missing = [i for i in indices if not (paths.data_dir(HUB_SOURCE) / f"shard_{i:05d}.parquet").exists()]
    print0(f"{HUB_SOURCE}: {len(indices):,} shards asked for, {len(missing):,} to fetch, about 100 MB each")
    if config.dry_run:
        print0(f"the first from {shard_url(indices[0])} to {paths.data_dir(HUB_SOURCE)}")
        return
    with progress(total=len(indices), label="shards", unit="shard") as bar:
        fetch_shards(count, config.num_workers, lambda path: bar.update())
    print0(
        f"{len(list_parquet_files(HUB_SOURCE)):,} shards in {paths.data_dir(HUB_SOURCE)}; the last is for validation"
    )


def _import(config: Config) -> None:
    files = list_text_files(config.import_paths)
    source = config.source or re.sub(r"[^\w-]+", "_", config.import_paths[0].resolve().name.split(".")[0]) or "own"
    print0(f"{len(files):,} files into the source '{source}', {paths.data_dir(source)}")
    if source in sources() and not config.overwrite:
        raise UserError(f"a source {source!r} is here already: --overwrite replaces it, --source=NAME keeps both")
    if config.dry_run:
        return
    counts = Imported()
    shards = write_shards(import_documents(progress(files, label="import", unit="file"), counts), source)
    held = sum(sum(row_group_counts(path)) for path in shards[-1:])
    print0(
        f"{counts.documents:,} documents, {counts.characters:,} characters in {len(shards)} shards; {held:,} held out"
    )
    if counts.replaced:
        print0(f"{counts.replaced:,} bytes or characters were not valid UTF-8 and became U+FFFD")
    if counts.empty:
        print0(f"{counts.empty:,} empty documents were left out")
    if len(sources()) > 1:
        print0(f"several sources are here: train on this one with --data={source}")


def _print_info() -> None:
    for source in sources():
        files = list_parquet_files(source)
        rows = [sum(row_group_counts(path)) for path in files]
        size = sum(path.stat().st_size for path in files)
        print0(
            f"{source}: {len(files):,} shards, {sum(rows[:-1]):,} training and {rows[-1]:,} validation documents, "
            f"{size / 1e6:,.1f} MB in {paths.data_dir(source)}"
        )
    if len(sources()) > 1 and HUB_SOURCE not in sources():
        print0("several sources are here: name one with --data=NAME")
    else:
        print0(f"commands read {default_source()!r} unless told otherwise with --data=NAME")


if __name__ == "__main__":
    command.run(main, Config)
