"""One URL to one file: resumed, retried, checked, and only then put in place.

What is worth downloading, and from which mirror, is not here.

Lesson: lessons/08_real_text
"""

import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.command import UserError

if TYPE_CHECKING:
    import httpx

CHUNK_BYTES = 1 << 20
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class UnfinishedError(Exception):
    """An attempt that failed in a way worth another: what was wrong, and how long the server asked to wait."""

    def __init__(self, reason: str, wait_seconds: float | None = None):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    size: int | None = None,
    attempts: int = 5,
    sleep: Callable[[float], None] = time.sleep,
    on_bytes: Callable[[int], None] = lambda count: None,
    stall_seconds: float = 30.0,
) -> Path:
    """Fetch `url` to `path` unless it is there; several processes may ask at once, one fetches.

    The bytes gather in `<name>.part`, which a later attempt (or run) continues. Size and SHA-256 are checked where they
    are given or the server tells them; a file that fails the check is deleted and fetched anew. A server that sends
    nothing for `stall_seconds` is given up. `on_bytes` hears of every piece that arrives. Raises UserError after
    `attempts`, or at once when the server says that there is nothing, or the disk has no room for what it announces.
    """
    from filelock import FileLock

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        if path.exists():
            return path
        part = path.with_name(path.name + ".part")
        reason, asked_seconds = "", None
        for attempt in range(max(attempts, 1)):
            if attempt:
                sleep(_backoff_seconds(attempt) if asked_seconds is None else asked_seconds)
            try:
                _attempt(url, part, sha256, size, on_bytes, stall_seconds)
            except UnfinishedError as failure:
                reason, asked_seconds = str(failure), failure.wait_seconds
                continue
            part.replace(path)
            return path
    raise UserError(f"could not download {url} in {attempts} attempts ({reason}); run the same command to go on")


def _attempt(
    url: str,
    part: Path,
    sha256: str | None,
    size: int | None,
    on_bytes: Callable[[int], None],
    stall_seconds: float,
) -> None:
    """Continue or begin `part`, and check it whole."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    # identity: a Content-Length of packed bytes says nothing about the file's
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = httpx.Timeout(stall_seconds, connect=15.0)
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as response:
            total, announced = _receive(url, response, part, have, on_bytes)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as mistake:
        raise UserError(f"{url} is no address to download from: {mistake}") from mistake
    except httpx.RequestError as failure:
        raise UnfinishedError(str(failure) or type(failure).__name__) from failure
    got = part.stat().st_size
    for expected in (size, total):
        if expected is not None and got != expected:
            if got > expected:
                part.unlink()
            raise UnfinishedError(f"got {got:,} of {expected:,} bytes")
    expected_sum = sha256 or announced
    if expected_sum is not None and (actual := file_sha256(part)) != expected_sum.lower():
        part.unlink()
        raise UnfinishedError(f"the checksum is {actual[:16]}..., expected {expected_sum[:16]}...")


def _receive(
    url: str, response: "httpx.Response", part: Path, have: int, on_bytes: Callable[[int], None]
) -> tuple[int | None, str | None]:
    """Write what comes to `part`; the file's whole size and SHA-256 where the server tells them."""
    if response.status_code == 416:
        if response.headers.get("Content-Range", "") == f"bytes */{have}":
            return have, _announced_sha256(response)  # a kill came between the last byte and the rename
        part.unlink(missing_ok=True)
        raise UnfinishedError("the server has no bytes after those already here")
    if response.status_code in RETRIED:
        raise UnfinishedError(f"the server answered {response.status_code}", _retry_after(response))
    if response.status_code not in (200, 206):
        raise UserError(f"{url}: the server answered {response.status_code} {response.reason_phrase}")
    resumed = response.status_code == 206 and have > 0
    total = _whole_size(response, have if resumed else 0)
    needed, free = (total or 0) - (have if resumed else 0), shutil.disk_usage(part.parent).free
    if not resumed and part.exists():
        free += part.stat().st_size  # it is written over
    if needed > free:
        raise UserError(
            f"{url} needs {needed / 1e6:,.0f} MB and {part.parent} has {free / 1e6:,.0f} MB left: make room, or set "
            "NANOCHAT_BASE_DIR to a folder on a larger disk"
        )
    with part.open("ab" if resumed else "wb") as file:
        for chunk in response.iter_raw(CHUNK_BYTES):  # as they come: what a server says of packing is not believed
            file.write(chunk)
            on_bytes(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return total, _announced_sha256(response)


def _whole_size(response: "httpx.Response", begin: int) -> int | None:
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and content_range:
        if int(content_range[1]) != begin:
            raise UnfinishedError(
                f"the server sent bytes from {content_range[1]} on, asked for were those from {begin}"
            )
        return None if content_range[2] == "*" else int(content_range[2])
    length = response.headers.get("Content-Length", "")
    return begin + int(length) if length.isdigit() else None


def _announced_sha256(response: "httpx.Response") -> str | None:
    """The checksum that hubs send for large files with the redirect to their storage."""
    for answer in (*response.history, response):
        tag = answer.headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return str(tag)
    return None


def _retry_after(response: "httpx.Response") -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), 120.0) if value.isdigit() else None


def fetch_json(url: str, attempts: int = 5, sleep: Callable[[float], None] = time.sleep) -> tuple[object, str | None]:
    """What an address answers, read as JSON, and the address of the next page where the answer names one.

    Raises UserError after `attempts`, or at once when the server refuses.
    """
    import httpx

    reason = ""
    for attempt in range(max(attempts, 1)):
        if attempt:
            sleep(_backoff_seconds(attempt))
        try:
            response = httpx.get(url, follow_redirects=True, timeout=30.0)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as mistake:
            raise UserError(f"{url} is no address to ask: {mistake}") from mistake
        except httpx.RequestError as failure:
            reason = str(failure) or type(failure).__name__
            continue
        if response.status_code in RETRIED:
            reason = f"the server answered {response.status_code}"
            continue
        if response.status_code != 200:
            raise UserError(f"{url}: the server answered {response.status_code} {response.reason_phrase}")
        try:
            return response.json(), response.links.get("next", {}).get("url")
        except ValueError as broken:
            raise UserError(f"{url}: the answer is no JSON: {broken}") from broken
    raise UserError(f"could not ask {url} in {attempts} attempts ({reason}); try again later")


def _backoff_seconds(attempt: int) -> float:
    """1, 2, 4, ... seconds, and up to as much again by chance, so that many clients do not return in step."""
    return float(2.0 ** (attempt - 1) * (1 + random.SystemRandom().random()))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
