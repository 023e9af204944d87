"""Pretraining text of the Hugging Face hub: which shards a data set has, and fetching them into a folder.

The shard with the last name is for validation: it is fetched first and stays the same for however many are asked for.
How one file is fetched is in `download`; what is in a shard is not known here.

Lesson: lessons/08_real_text
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat import paths
from nanochat.command import UserError
from nanochat.download import download, fetch_json

HUB_SOURCE = "fineweb-edu"
HUB_REPOSITORY = "karpathy/fineweb-edu-100b-shuffle"
HUB_LAST_SHARD = 1822
ABOUT_SHARD_BYTES = 100_000_000
LISTING = "hub.json"


@dataclass(frozen=True)
class Shard:
    """A file of the hub; size and SHA-256 where the listing tells them (else the answer to the download does)."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


def endpoint() -> str:
    """The hub, or the mirror that `HF_ENDPOINT` names."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def source_name(source: str) -> str:
    """The folder for a source: the part behind the owner of `owner/name`."""
    return re.sub(r"[^\w.-]+", "_", source.split("/")[-1])


def list_shards(source: str = HUB_SOURCE) -> list[Shard]:
    """All shards of `fineweb-edu` or of the parquet files of a data set `owner/name`, the validation shard last.

    The listing of the first time is kept beside the shards, so that the validation shard stays where it was when the
    data set grows. Raises UserError for another source and for a data set with fewer than two files.
    """
    if source == HUB_SOURCE:
        base = f"{endpoint()}/datasets/{HUB_REPOSITORY}/resolve/main"
        names = [f"shard_{index:05d}.parquet" for index in range(HUB_LAST_SHARD + 1)]
        return [Shard(name, f"{base}/{name}") for name in names]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            f"--source={source} cannot be fetched: it must be {HUB_SOURCE} or a data set of the hub as owner/name"
        )
    kept = paths.data_dir(source_name(source)) / LISTING
    if kept.exists():
        listing = json.loads(kept.read_text(encoding="utf-8"))
        if listing["source"] != source:
            raise UserError(f"{kept.parent} holds {listing['source']}: move it away to fetch {source}")
        return [Shard(**{**each, "url": _url(source, each["url"])}) for each in listing["shards"]]
    return _numbered(source, _files_of(source))


def missing(source: str, count: int) -> list[Shard]:
    """The validation shard and the first `count` training shards (-1: all), those that are here left out.

    Raises UserError for an impossible count, and when the disk has no room for them.
    """
    shards = list_shards(source)
    if count != -1 and not 1 <= count < len(shards):
        raise UserError(f"-n {count}: {source} has 1 to {len(shards) - 1} training shards; -1 means all")
    folder = paths.data_dir(source_name(source))
    wanted = [shards[-1], *shards[: len(shards) - 1 if count == -1 else count]]
    wanted = [shard for shard in wanted if not (folder / shard.name).exists()]
    needed = sum(shard.size or ABOUT_SHARD_BYTES for shard in wanted)
    for shard in wanted:
        part = folder / f"{shard.name}.part"
        needed -= part.stat().st_size if part.exists() else 0
    room = next(each for each in (folder, *folder.parents) if each.exists())
    if (free := shutil.disk_usage(room).free) < needed:
        raise UserError(
            f"{len(wanted):,} shards need about {needed / 1e9:.1f} GB and {room} has {free / 1e9:.1f} GB left: "
            "ask for fewer with -n, or set NANOCHAT_BASE_DIR to a folder on a larger disk"
        )
    return wanted


def fetch_shards(
    source: str,
    wanted: Sequence[Shard],
    workers: int = 4,
    check: Callable[[Path], object] = lambda path: None,
    on_progress: Callable[[Path], object] = lambda path: None,
) -> list[Path]:
    """Fetch `wanted`, the first of them alone before the others; `check` looks at each file that has come."""
    folder = paths.data_dir(source_name(source))
    stopped = threading.Event()

    def go_on(count: int) -> None:
        if stopped.is_set():
            raise CancelledError

    def wait(seconds: float) -> None:
        if stopped.wait(seconds):
            raise CancelledError

    def fetch(shard: Shard) -> Path:
        path = folder / shard.name
        download(shard.url, path, sha256=shard.sha256, size=shard.size, sleep=wait, on_bytes=go_on)
        check(path)
        on_progress(path)
        return path

    if not wanted:
        return []
    if source != HUB_SOURCE:
        _keep(source, folder)
    # validation first and alone: a run that starts on the first shards never takes a training shard for it
    files = [fetch(wanted[0])]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = [pool.submit(fetch, shard) for shard in wanted[1:]]
        try:
            files += [done.result() for done in as_completed(waiting)]
        except BaseException:  # Ctrl-C too: what is on its way ends where it is, and is continued next time
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(files)


def _url(source: str, file: str) -> str:
    return f"{endpoint()}/datasets/{source}/resolve/main/{file}"


def _numbered(source: str, files: Sequence[dict[str, object]]) -> list[Shard]:
    """The files by name, numbered, so that they sort alike here whatever their folders were called."""
    shards = []
    for number, file in enumerate(sorted(files, key=lambda each: str(each["path"]))):
        lfs = file.get("lfs")
        size, sha256 = file.get("size"), lfs.get("oid") if isinstance(lfs, dict) else None
        shards.append(
            Shard(
                f"shard_{number:05d}.parquet",
                _url(source, str(file["path"])),
                size if isinstance(size, int) else None,
                sha256 if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256) else None,
            )
        )
    if len(shards) < 2:
        raise UserError(f"{source} has {len(shards)} parquet files: at least two are needed, one is for validation")
    return shards


def _files_of(source: str) -> list[dict[str, object]]:
    """Every parquet file of a data set, as the hub lists them, page by page."""
    files: list[dict[str, object]] = []
    url: str | None = f"{endpoint()}/api/datasets/{source}/tree/main?recursive=true"
    while url:
        page, url = fetch_json(url)
        if not isinstance(page, list):
            raise UserError(f"{endpoint()} lists no files of {source}: is the name right?")
        files += [each for each in page if isinstance(each, dict) and str(each.get("path", "")).endswith(".parquet")]
    return files


def _keep(source: str, folder: Path) -> None:
    kept = folder / LISTING
    if not kept.exists():
        shards = list_shards(source)
        prefix = _url(source, "")
        plain = [{**asdict(shard), "url": shard.url.removeprefix(prefix)} for shard in shards]
        folder.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"source": source, "shards": plain}), encoding="utf-8")
        part.replace(kept)
