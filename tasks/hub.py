"""Data sets of the Hugging Face hub: the local copy of a file, or a download of it, and its rows.

A file lies at `<hub dir>/<owner>/<data set>/<path on the hub>`; `NANOCHAT_HUB_DIR` says where, `HF_ENDPOINT` names a
mirror to fetch from, `HF_HUB_OFFLINE=1` forbids to fetch. What the rows mean is each task's own business.

Lesson: lessons/08_real_text
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import paths
from nanochat.command import UserError
from nanochat.download import download

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, object]


def hub_file(dataset: str, file: str) -> Path:
    """The local path of `file` (`main/train-00000-of-00001.parquet`) of `dataset` (`owner/name`), fetched if need be.

    Raises UserError when it is neither here nor to be had.
    """
    path = paths.hub_dir() / dataset / file
    if path.exists():
        return path
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    remedy = f"copy {file} of {dataset} to {path}, or set NANOCHAT_HUB_DIR to a folder with {dataset}/{file}"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
        raise UserError(f"{path} is missing and HF_HUB_OFFLINE forbids to fetch it; {remedy}")
    try:
        return download(f"{endpoint}/datasets/{dataset}/resolve/main/{file}", path, attempts=3)
    except UserError as failure:
        raise UserError(f"{path} is missing and fetching it failed ({failure}); {remedy}") from failure


class HubRows(Sequence[Row]):
    """The rows of parquet files as dictionaries. Counted at once, read at the first row asked for.

    The tables stay in memory as columns: half a million chats take about as much as their files unpacked.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str]):
        import pyarrow.parquet as pq

        self.files, self.columns = list(files), list(columns)
        self._count = 0
        for path in self.files:
            try:
                with pq.ParquetFile(path) as file:
                    missing = [name for name in self.columns if name not in file.schema_arrow.names]
                    there = ", ".join(file.schema_arrow.names)
                    self._count += file.metadata.num_rows
            except (ValueError, OSError) as problem:
                raise UserError(_unreadable(path, problem)) from problem
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}, only {there}; is it the right data set?")

    @cached_property
    def table(self) -> "pyarrow.Table":
        """All rows, the wanted columns."""
        import pyarrow
        import pyarrow.parquet as pq

        tables = []
        for path in self.files:
            try:
                tables.append(pq.read_table(path, columns=self.columns))
            except (ValueError, OSError) as problem:
                raise UserError(_unreadable(path, problem)) from problem
        return pyarrow.concat_tables(tables)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # a slice is never asked for
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        row: Row = self.table.slice(index, 1).to_pylist()[0]
        return row


def _unreadable(path: Path, problem: Exception) -> str:
    """ArrowInvalid is a ValueError; its message may have several lines."""
    reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    return f"{path} is no readable parquet file ({reason}); delete it and run the same command to fetch it again"
