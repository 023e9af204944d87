"""Downloads against a real server on this machine that truncates, drops, fails, ignores ranges and lies."""

import hashlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nanochat.command import UserError
from nanochat.download import CHUNK_BYTES, download, file_sha256

CONTENT = random.Random(0).randbytes(3 * CHUNK_BYTES + 123)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Answers request number i with `behaviours[i]`, all later ones with "good"; keeps what was asked."""

    url: str = ""
    behaviours: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour = state.behaviours[len(state.ranges)] if len(state.ranges) < len(state.behaviours) else "good"
            state.ranges.append(asked)
            BEHAVIOURS[behaviour](self, int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0)
            self.close_connection = True

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def answer(
    handler: BaseHTTPRequestHandler, begin: int, content: bytes = CONTENT, cut: int | None = None, **headers: str
) -> None:
    """Send `content` from `begin`, announced whole; `cut` bytes short of it the connection ends."""
    if begin >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if begin else 200)
    if begin:
        handler.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content) - begin))
    handler.end_headers()
    handler.wfile.write(content[begin : len(content) - (cut or 0)])


def stall(handler: BaseHTTPRequestHandler, begin: int) -> None:
    """Send two thirds, then nothing until the other side has gone."""
    handler.send_response(206 if begin else 200)
    if begin:
        handler.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
    handler.send_header("Content-Length", str(len(CONTENT) - begin))
    handler.end_headers()
    handler.wfile.write(CONTENT[begin : begin + 2 * CHUNK_BYTES])
    handler.wfile.flush()
    handler.connection.recv(1)


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, int], None]:
    def respond(handler: BaseHTTPRequestHandler, begin: int) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


BEHAVIOURS: dict[str, Callable[[BaseHTTPRequestHandler, int], None]] = {
    "good": answer,
    "truncates": lambda handler, begin: answer(handler, begin, cut=CHUNK_BYTES),
    "drops": lambda handler, begin: None,
    "stalls": lambda handler, begin: stall(handler, begin),
    "fails": status(500),
    "busy": status(429, Retry_After="7"),
    "missing": status(404),
    "ignores range": lambda handler, begin: answer(handler, 0),
    "wrong range": lambda handler, begin: answer(handler, max(begin - 5, 1)),
    "other bytes": lambda handler, begin: answer(handler, 0, content=bytes(len(CONTENT))),
    "announces": lambda handler, begin: answer(handler, begin, X_Linked_Etag=f'"{SHA256}"'),
    "announces another": lambda handler, begin: answer(handler, begin, X_Linked_Etag=f'"{"0" * 64}"'),
    "says it is packed": lambda handler, begin: answer(handler, begin, Content_Encoding="gzip"),
    "moved": status(302, Location="/elsewhere.bin"),
}


def fetch(server: Server, folder: Path, *behaviours: str, **options: object) -> tuple[Path, list[float]]:
    server.behaviours = list(behaviours)
    slept: list[float] = []
    path = download(server.url, folder / "deep" / "file.bin", sleep=slept.append, **options)  # type: ignore[arg-type]
    return path, slept


def assert_whole(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert not path.with_name("file.bin.part").exists()


def test_a_file_is_fetched_whole_and_not_again(server: Server, tmp_path: Path) -> None:
    arrived: list[int] = []
    path, slept = fetch(server, tmp_path, sha256=SHA256, size=len(CONTENT), on_bytes=arrived.append)
    assert_whole(path)
    assert sum(arrived) == len(CONTENT)
    fetch(server, tmp_path)
    assert server.ranges == [None]
    assert slept == []


def test_a_truncated_answer_is_continued_where_it_ended(server: Server, tmp_path: Path) -> None:
    path, slept = fetch(server, tmp_path, "truncates", sha256=SHA256)
    assert_whole(path)
    assert len(server.ranges) == 2
    begun = int(str(server.ranges[1]).removeprefix("bytes=").rstrip("-"))
    assert 0 < begun <= len(CONTENT) - CHUNK_BYTES
    assert 1 <= slept[0] <= 2


def test_a_server_that_stalls_is_given_up_and_asked_for_the_rest(server: Server, tmp_path: Path) -> None:
    path, slept = fetch(server, tmp_path, "stalls", sha256=SHA256, stall_seconds=0.2)
    assert_whole(path)
    assert server.ranges == [None, f"bytes={2 * CHUNK_BYTES}-"]
    assert len(slept) == 1


def test_a_disk_without_room_is_told_before_a_byte_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room(free: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr("nanochat.download.shutil.disk_usage", lambda path: usage)

    room(len(CONTENT) - 1)
    with pytest.raises(UserError, match=r"needs 3 MB and .* has 3 MB left: make room, or set NANOCHAT_BASE_DIR"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1
    assert [p.name for p in (tmp_path / "deep").iterdir() if p.suffix != ".lock"] == []
    room(len(CONTENT))
    with pytest.raises(UserError, match="in 1 attempts"):
        fetch(server, tmp_path, "good", "truncates", attempts=1)
    room(2 * CHUNK_BYTES)  # enough for the rest
    path, _ = fetch(server, tmp_path)
    assert_whole(path)


def test_a_later_run_continues_the_part_of_an_earlier_one(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in 1 attempts.*run the same command to go on"):
        fetch(server, tmp_path, "truncates", attempts=1)
    path, _ = fetch(server, tmp_path)
    assert_whole(path)
    assert str(server.ranges[1]).startswith("bytes=")


def test_a_kill_between_the_last_byte_and_the_rename_fetches_nothing_again(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "deep" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    path, _ = fetch(server, tmp_path, sha256=SHA256)
    assert_whole(path)
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_drops_and_server_errors_are_tried_again_with_longer_pauses(server: Server, tmp_path: Path) -> None:
    path, slept = fetch(server, tmp_path, "drops", "fails", "drops", "fails")
    assert_whole(path)
    assert [1 <= slept[0] <= 2, 2 <= slept[1] <= 4, 4 <= slept[2] <= 8, 8 <= slept[3] <= 16] == [True] * 4


def test_a_server_that_says_when_to_return_is_obeyed(server: Server, tmp_path: Path) -> None:
    _, slept = fetch(server, tmp_path, "busy")
    assert slept == [7.0]


@pytest.mark.parametrize("behaviour", ["ignores range", "wrong range"])
def test_a_server_that_ignores_or_mistakes_the_range_spoils_nothing(
    behaviour: str, server: Server, tmp_path: Path
) -> None:
    path, _ = fetch(server, tmp_path, "truncates", behaviour, sha256=SHA256)
    assert_whole(path)


def test_wrong_bytes_are_thrown_away_and_fetched_anew(server: Server, tmp_path: Path) -> None:
    path, _ = fetch(server, tmp_path, "other bytes", sha256=SHA256)
    assert_whole(path)
    assert server.ranges == [None, None]


def test_a_server_that_calls_its_bytes_packed_is_not_believed(server: Server, tmp_path: Path) -> None:
    """It used to end with a traceback of the library that unpacks."""
    path, _ = fetch(server, tmp_path, "says it is packed", sha256=SHA256)
    assert_whole(path)
    assert server.ranges == [None]


def test_a_checksum_that_never_fits_is_an_error_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in 3 attempts \(the checksum is .*, expected 1111"):
        fetch(server, tmp_path, sha256="1" * 64, attempts=3)
    assert len(server.ranges) == 3
    assert [p.name for p in (tmp_path / "deep").iterdir() if p.suffix != ".lock"] == []


def test_the_checksum_that_a_hub_announces_is_held(server: Server, tmp_path: Path) -> None:
    path, _ = fetch(server, tmp_path, "announces another", "announces")
    assert_whole(path)
    assert len(server.ranges) == 2


def test_a_wrong_size_is_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"got {len(CONTENT):,} of 10 bytes"):
        fetch(server, tmp_path, size=10, attempts=2)


def test_a_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    path, _ = fetch(server, tmp_path, "moved")
    assert_whole(path)


def test_what_is_not_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answered 404"):
        fetch(server, tmp_path, "missing")
    assert len(server.ranges) == 1


def test_an_address_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no address to download from"):
        download("nowhere/file.bin", tmp_path / "file.bin")


def test_of_several_processes_that_want_one_file_one_fetches_it(server: Server, tmp_path: Path) -> None:
    program = "import sys\nfrom pathlib import Path\nfrom nanochat.download import download\n"
    program += "download(sys.argv[1], Path(sys.argv[2]))"
    command = [sys.executable, "-c", program, server.url, str(tmp_path / "deep" / "file.bin")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert_whole(tmp_path / "deep" / "file.bin")
    assert server.ranges == [None]


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert file_sha256(tmp_path / "a") == SHA256
