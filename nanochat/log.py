"""What a run says and keeps: lines from the first rank, progress bars, and `metrics.jsonl`.

Knows ranks by the environment that `torchrun` sets, so that it needs no torch. What is measured, and when, is not here.

Lesson: lessons/19_validation
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Never, Protocol, TypeVar, overload

from nanochat.command import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
Value = float | int | str | None

SCALED_UNITS = ("B", "bytes", "chars", "tok", "tokens")  # counted by the million, so shown with k, M, G


class Mirror(Protocol):
    """Somewhere else that metrics go: wandb, tensorboard."""

    def log(self, record: Mapping[str, Value]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Send what is left."""


def is_main_rank() -> bool:
    """Whether this process speaks for the run: `RANK` is 0 or unset."""
    return os.environ.get("RANK", "0") in ("", "0")


def print0(*values: object, end: str = "\n") -> None:
    """Print on the first rank only, and at once."""
    if is_main_rank():
        print(*values, end=end, flush=True)


@overload
def progress(iterable: Iterable[T], total: int | None = None, label: str = "", unit: str = "it") -> "tqdm[T]": ...


@overload
def progress(iterable: None = None, total: int | None = None, label: str = "", unit: str = "it") -> "tqdm[Never]": ...


def progress(
    iterable: Iterable[T] | None = None, total: int | None = None, label: str = "", unit: str = "it"
) -> "tqdm[T] | tqdm[Never]":
    """A bar on standard error with the remaining time; silent on other ranks, a line in ten seconds on no terminal."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        desc=label or None,
        unit=unit,
        unit_scale=unit in SCALED_UNITS,
        disable=not is_main_rank(),
        mininterval=0.1 if terminal else 10.0,
        # tqdm lowers miniters to what it saw last; off a terminal only the clock decides
        miniters=None if terminal else 1,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
    )


class MetricLog:
    """Appends records to one `metrics.jsonl`, a JSON object a line, and to wandb or tensorboard when asked.

    A number that is not finite is kept as null, so that every line is JSON for every reader. Other ranks write nothing.
    """

    def __init__(self, path: Path, run: str = "dummy", tensorboard: bool = False):
        self.path = path
        self._mirrors: list[Mirror] = []
        if not is_main_rank():
            return
        if run != "dummy":
            self._mirrors.append(_Wandb(run, path.parent))
        if tensorboard:
            self._mirrors.append(_Tensorboard(path.parent / "tensorboard"))
        path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, record: Mapping[str, Value]) -> None:
        """Append `record`, and see it on the disk's side of the process before returning."""
        if not is_main_rank():
            return
        clean = {key: _finite(value) for key, value in record.items()}
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(clean, ensure_ascii=False) + "\n")
        for mirror in self._mirrors:
            mirror.log(clean)

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that a kill tore: a resumed run writes them again."""
        if not is_main_rank() or not self.path.exists():
            return
        kept = [record for record in read_metrics(self.path) if _step(record) <= step]
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        part.replace(self.path)

    def close(self) -> None:
        """End wandb's and tensorboard's part; the file is complete after every `log`."""
        for mirror in self._mirrors:
            mirror.close()
        self._mirrors = []

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Value]]:
    """The records of a `metrics.jsonl`; lines that are no JSON object (a torn last one) are left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(record: Mapping[str, Value]) -> float:
    step = record.get("step")
    return step if isinstance(step, int | float) else -1


class _Wandb:
    def __init__(self, run: str, folder: Path):
        try:
            import wandb
        except ImportError as missing:
            raise UserError(
                f"--run={run} sends metrics to wandb, not installed here: `uv pip install wandb`, or leave --run out"
            ) from missing
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project="nanochat", name=run, dir=str(folder))

    def log(self, record: Mapping[str, Value]) -> None:
        self._run.log(dict(record))

    def close(self) -> None:
        self._run.finish()


class _Tensorboard:
    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as missing:
            raise UserError("--tensorboard needs a package: `uv pip install tensorboardX`") from missing
        self._writer = SummaryWriter(str(folder))

    def log(self, record: Mapping[str, Value]) -> None:
        step = record.get("step")
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()
