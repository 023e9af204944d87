"""Pretraining text on disk: shards of documents, listed and read; and the command that fetches or imports some.

A source is a folder `data/<source>/` of parquet files with a column `text`, a document a row; the last file by name is
the validation shard. Shards are written in `shard_writer`, come from the hub in `hub_shards`, foreign files are read in
`text_import`; what documents become (ids, batches) is not here.

    python -m nanochat.dataset -n 8                        # eight shards of fineweb-edu, and the validation shard
    python -m nanochat.dataset -n 8 --source=owner/name    # of another data set of the hub
    python -m nanochat.dataset --import notes/ book.txt    # your own txt, md, jsonl, parquet, gz, zst, folders
    python -m nanochat.dataset --info

Lesson: lessons/08_real_text
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat import command, hub_shards, paths
from nanochat.command import UserError
from nanochat.hub_shards import HUB_SOURCE
from nanochat.log import print0, progress
from nanochat.shard_writer import write_shards
from nanochat.text_import import STDIN, Imported, import_documents, list_text_files
from nanochat.tokenizer import get_tokenizer
from nanochat.tokenizer_base import BaseTokenizer

if TYPE_CHECKING:
    import numpy.typing
    import pyarrow
    import pyarrow.parquet

Split = Literal["train", "val"]

SURVEY_BYTES = 32_000_000  # a corpus up to this is counted whole, a larger one by evenly spaced row groups of as much

__all__ = ["iterate_documents", "list_parquet_files", "split_files", "write_shards"]


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
            array = column.cast(pyarrow.large_string()).combine_chunks()
            return array.fill_null("") if array.null_count else array  # filling imports pandas, where it is installed
        except (pyarrow.ArrowException, OSError) as broken:
            raise UserError(f"{path}: row group {index} is unreadable ({broken}); delete it, get it again") from broken


def taken(texts: "pyarrow.Array", rows: "numpy.typing.NDArray[numpy.int64]") -> "pyarrow.Array":
    """These elements in this order. From numpy's numbers pyarrow would make a detour by pandas."""
    import pyarrow

    return texts.take(pyarrow.Array.from_buffers(pyarrow.int64(), len(rows), [None, pyarrow.py_buffer(rows)]))


def text_bytes(split: Split, source: str | None = None) -> int:
    """Bytes of text in a split before compression, from the shards' footers alone."""
    total = 0
    for path in split_files(split, source):
        total += _column_bytes(path)
    return total


def _column_bytes(path: Path) -> int:
    with _open(path) as file:
        column = file.schema_arrow.names.index("text")
        groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
        return sum(group.column(column).total_uncompressed_size for group in groups)


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


@dataclass(frozen=True)
class Survey:
    """How much text there is: documents to the last one, the rest counted over `share` of them and scaled up."""

    training: int
    validation: int
    characters: int
    tokens: int | None
    """None without a tokenizer."""
    share: float
    samples: list[str]


def survey(source: str, tokenizer: BaseTokenizer | None = None, samples: int = 3) -> Survey:
    """Count the text of a source, and show the beginnings of some documents of it."""
    files = list_parquet_files(source)
    rows = [row_group_counts(path) for path in files]
    groups = [(path, group) for path, counts in zip(files, rows, strict=True) for group in range(len(counts))]
    every = max(1, -(-sum(_column_bytes(path) for path in files) // SURVEY_BYTES))
    chosen = groups[::every]
    documents = characters = tokens = 0
    shown: list[str] = []
    for number, (path, group) in enumerate(chosen):
        texts = read_row_group_array(path, group)
        documents += len(texts)
        plain = texts.to_pylist()
        characters += sum(map(len, plain))
        tokens += len(tokenizer.encode_arrays(texts)[0]) if tokenizer else 0
        if number % -(-len(chosen) // samples) == 0:
            shown.append(plain[len(plain) // 2])
    total = sum(map(sum, rows))
    scale = total / documents
    return Survey(
        sum(map(sum, rows[:-1])),
        sum(rows[-1]),
        round(characters * scale),
        round(tokens * scale) if tokenizer else None,
        documents / total,
        shown,
    )


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Get pretraining text."""

    num_files: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Training shards to fetch (of fineweb-edu about 100 MB each), -1 for all; the validation shard comes with them."""
    num_workers: Annotated[int, tyro.conf.arg(aliases=["-w"])] = 4
    """Shards fetched at once."""
    import_paths: Annotated[tuple[Path, ...], tyro.conf.arg(name="import")] = ()
    """Your own files and folders: txt, md, jsonl (field `text`), parquet (column `text`), each also as .gz or .zst; -
    is what comes by standard input (text or jsonl)."""
    source: str | None = None
    """With -n what to fetch, fineweb-edu or a data set of the hub as owner/name; with --import the name under which the
    text is kept, by default that of the first file or folder."""
    overwrite: bool = False
    """Let an import replace a source that is here already."""
    info: bool = False
    """Say what is here: documents, characters, tokens, and some samples."""
    dry_run: bool = False
    """Print what would be done, and do nothing."""


def main(config: Config) -> None:
    """Fetch, import, or say what is here."""
    if config.num_workers < 1:
        raise UserError(f"--num_workers={config.num_workers}: at least 1")
    if config.import_paths and config.num_files is not None:
        raise UserError("-n fetches and --import takes your own: give one of them, then the other")
    if config.import_paths:
        _import(config)
    elif config.num_files is not None:
        _fetch(config.num_files, config)
    if config.info or (config.num_files is None and not config.import_paths):
        _print_info([config.source] if config.source and config.info else sources())


def _fetch(count: int, config: Config) -> None:
    source = config.source or HUB_SOURCE
    wanted = hub_shards.missing(source, count)
    folder = paths.data_dir(hub_shards.source_name(source))
    size = sum(shard.size or hub_shards.ABOUT_SHARD_BYTES for shard in wanted)
    print0(f"{source}: {len(wanted):,} shards to fetch, about {size / 1e6:,.0f} MB, to {folder}")
    if config.dry_run or not wanted:
        return
    with progress(total=len(wanted), label="shards", unit="shard") as bar:
        hub_shards.fetch_shards(
            source, wanted, config.num_workers, lambda path: _open(path).close(), lambda path: bar.update()
        )
    print0(f"{len(list_parquet_files(folder.name)):,} shards in {folder}; the last is for validation")


def _import(config: Config) -> None:
    files = list_text_files(config.import_paths)
    first = config.import_paths[0]
    named = "stdin" if first == STDIN else re.sub(r"[^\w-]+", "_", first.resolve().name.split(".")[0])
    source = config.source or named or "own"
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
    if counts.empty or counts.duplicates:
        print0(f"{counts.empty:,} empty documents and {counts.duplicates:,} repeated ones were left out")
    if len(sources()) > 1:
        print0(f"several sources are here: train on this one with --data={source}")


def _print_info(shown: Sequence[str]) -> None:
    tokenizer = get_tokenizer() if (paths.tokenizer_dir() / "tokenizer.json").exists() else None
    for source in shown:
        files = list_parquet_files(source)
        found = survey(source, tokenizer)
        about = "" if found.share == 1 else "about "
        tokens = "" if found.tokens is None else f", {about}{found.tokens:,} tokens of this tokenizer"
        print0(
            f"{source}: {len(files):,} shards, {found.training:,} training and {found.validation:,} validation "
            f"documents, {about}{found.characters:,} characters{tokens}, "
            f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB in {paths.data_dir(source)}"
        )
        for sample in found.samples:
            print0(f"  {' '.join(sample.split())[:160]!r}")
    if tokenizer is None and shown:
        print0("tokens are counted once there is a tokenizer: python -m scripts.tok_train")
    if len(sources()) > 1 and HUB_SOURCE not in sources():
        print0("several sources are here: name one with --data=NAME")
    else:
        print0(f"commands read {default_source()!r} unless told otherwise with --data=NAME")


if __name__ == "__main__":
    command.run(main, Config)
