"""Shards of the hub against a small hub on this machine: what is asked for, in which order, and what is kept."""

import hashlib
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow
import pyarrow.parquet
import pytest

from nanochat import dataset, hub_shards, paths
from nanochat.command import UserError
from nanochat.hub_shards import HUB_LAST_SHARD, HUB_SOURCE, Shard, fetch_shards, list_shards, missing


def parquet(text: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": [text] * 3}), sink)
    return bytes(sink.getvalue())


@dataclass
class Hub:
    """Files by their address; what was asked for, in order; what it does wrong."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    lies: bool = False
    """The first answer for each file has a byte changed."""
    busy: int = 0
    """So many requests are turned away."""
    url: str = ""


@pytest.fixture
def hub(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path, page = urlsplit(self.path).path, "page=2" in self.path
            first = path not in state.asked
            state.asked.append(path)
            status, headers, body = 200, {}, b""
            if state.busy:
                state.busy -= 1
                status = 503
            elif path == "/api/datasets/someone/prose/tree/main":
                names = sorted(name.removeprefix(FOLDER) for name in state.files if name.startswith(FOLDER))
                body = json.dumps([row(state, name) for name in names[2 * page : None if page else 2]]).encode()
                if not page:
                    headers["Link"] = f'<{state.url}{path}?recursive=true&page=2>; rel="next"'
            elif path in state.files:
                body = state.files[path]
                if state.lies and first:
                    body = bytes([body[0] ^ 1]) + body[1:]
            else:
                status = 404
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.url + "/")
    monkeypatch.setattr("nanochat.download._backoff_seconds", lambda attempt: 0.0)
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


FOLDER = "/datasets/someone/prose/resolve/main/"


def row(state: Hub, name: str) -> dict[str, object]:
    content = state.files[FOLDER + name]
    return {
        "type": "file",
        "path": name,
        "size": len(content),
        "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)},
    }


def serve_prose(hub: Hub, count: int) -> None:
    for number in range(count):
        hub.files[f"{FOLDER}data/train-{number}.parquet"] = parquet(f"text {number} {random.Random(number).random()}")
    hub.files[FOLDER + "README.md"] = b"no text"


def fineweb(index: int) -> str:
    return f"/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main/shard_{index:05d}.parquet"


def test_the_validation_shard_is_fetched_first_and_never_moves_with_the_number_of_shards(hub: Hub) -> None:
    for index in (0, 1, 2, HUB_LAST_SHARD):
        hub.files[fineweb(index)] = parquet(f"shard {index}")
    held = []
    for count in (1, 3):
        dataset.main(dataset.Config(num_files=count, num_workers=2))
        held.append(list(dataset.iterate_documents("val")))
        assert len(dataset.split_files("train")) == count
    assert held == [["shard 1822"] * 3] * 2
    assert hub.asked[:2] == [fineweb(HUB_LAST_SHARD), fineweb(0)]
    assert sorted(hub.asked[2:]) == [fineweb(1), fineweb(2)]


def test_a_failing_fetch_of_one_shard_ends_the_command_and_keeps_the_others(hub: Hub) -> None:
    for index in (0, HUB_LAST_SHARD):
        hub.files[fineweb(index)] = parquet(f"shard {index}")
    with pytest.raises(UserError, match=r"shard_00001\.parquet: the server answered 404"):
        dataset.main(dataset.Config(num_files=2, num_workers=1))
    assert [path.name for path in dataset.list_parquet_files()] == ["shard_00000.parquet", "shard_01822.parquet"]


def test_ctrl_c_ends_what_is_on_its_way(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to wait for every shard in flight to be whole."""
    on_its_way, ended = threading.Event(), []

    def fetched(
        url: str, path: Path, on_bytes: Callable[[int], None], sleep: Callable[[float], None], **given: Any
    ) -> None:
        if path.name == "shard_00001.parquet":
            assert on_its_way.wait(60)
            raise KeyboardInterrupt
        if path.name == "shard_00002.parquet":
            on_its_way.set()
            try:
                sleep(60.0)
            except CancelledError:
                with pytest.raises(CancelledError):
                    on_bytes(1)
                ended.append(path.name)
                raise

    monkeypatch.setattr(hub_shards, "download", fetched)
    wanted = [Shard(f"shard_{number:05d}.parquet", "url", None, None) for number in (9, 1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        fetch_shards(HUB_SOURCE, wanted, workers=2)
    assert ended == ["shard_00002.parquet"]


def test_any_data_set_of_the_hub_is_listed_checked_and_pinned(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """The listing tells sizes and checksums, so that wrong bytes are fetched anew; a later file moves nothing."""
    serve_prose(hub, 4)
    hub.lies, hub.busy = True, 1
    dataset.main(dataset.Config(num_files=2, source="someone/prose"))
    assert "3 shards in" in capsys.readouterr().out
    folder = paths.data_dir("prose")
    names = [path.name for path in dataset.list_parquet_files("prose")]
    assert names == ["shard_00000.parquet", "shard_00001.parquet", "shard_00003.parquet"]
    for number in (0, 1, 3):
        assert (folder / f"shard_{number:05d}.parquet").read_bytes() == hub.files[
            f"{FOLDER}data/train-{number}.parquet"
        ]
    serve_prose(hub, 6)
    dataset.main(dataset.Config(num_files=3, source="someone/prose"))
    assert [path.name for path in dataset.split_files("val", "prose")] == ["shard_00003.parquet"]
    with pytest.raises(UserError, match="someone/prose has 1 to 3 training shards"):
        missing("someone/prose", 4)
    with pytest.raises(UserError, match="holds someone/prose: move it away to fetch another/prose"):
        list_shards("another/prose")


def test_a_source_that_is_none_is_told_what_one_is(hub: Hub) -> None:
    with pytest.raises(UserError, match="fineweb-edu or a data set of the hub as owner/name"):
        dataset.main(dataset.Config(num_files=1, source="prose"))
    with pytest.raises(UserError, match="the server answered 404"):
        dataset.main(dataset.Config(num_files=1, source="nobody/nothing"))
    hub.files[FOLDER + "data/train-0.parquet"] = parquet("alone")
    with pytest.raises(UserError, match="has 1 parquet files: at least two are needed"):
        list_shards("someone/prose")


def test_a_disk_without_room_is_told_before_anything_is_asked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=250_000_000)
    monkeypatch.setattr(hub_shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"3 shards need about 0\.3 GB and .* has 0\.2 GB left: ask for fewer with -n"):
        dataset.main(dataset.Config(num_files=2))
    assert hub.asked == []
    folder = paths.data_dir("fineweb-edu")
    folder.mkdir(parents=True)
    (folder / "shard_01822.parquet.part").write_bytes(bytes(60_000_000))
    assert len(missing("fineweb-edu", 2)) == 3


def test_what_is_here_is_not_fetched_again(hub: Hub) -> None:
    serve_prose(hub, 3)
    assert len(fetch_shards("someone/prose", missing("someone/prose", -1))) == 3
    asked = len(hub.asked)
    assert missing("someone/prose", -1) == []
    assert fetch_shards("someone/prose", []) == []
    assert len(hub.asked) == asked
