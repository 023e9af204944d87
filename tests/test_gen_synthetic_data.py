"""The identity generator, run as people run it, and against a little server that speaks the OpenAI protocol."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from nanochat.command import UserError
from tasks.customjson import CustomJSON

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "dev" / "gen_synthetic_data.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module; `dev` is no package."""
    spec = importlib.util.spec_from_file_location("gen_synthetic_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gen_synthetic_data"] = module
    spec.loader.exec_module(module)
    return module


class Server(ThreadingHTTPServer):
    """Answers with `replies` in turn, then the last one for ever; keeps what it was asked."""

    def __init__(self, status: int, replies: list[str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.replies = status, replies
        self.asked: list[tuple[str, str, dict[str, object]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization", ""), body))
        reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[object]:
    servers: list[Server] = []

    def start(status: int, *replies: str) -> Server:
        server = Server(status, list(replies))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_command_writes_a_file_that_customjson_reads(tmp_path: Path) -> None:
    path = tmp_path / "my_identity.jsonl"
    with path.open("wb") as file:
        subprocess.run(
            [sys.executable, str(SCRIPT), "--name", "Ada 1{0}", "--creator", "Zoë", "--count=50"],
            stdout=file,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
    task = CustomJSON(path)
    assert len(task) == 50
    said = " ".join(message.text for problem in task for message in problem.messages if message.role == "assistant")
    assert "Ada 1{0}" in said
    assert "Zoë" in said
    assert "{name}" not in said
    assert "nanochat" not in said


def test_the_same_seed_gives_the_same_different_conversations(script: ModuleType) -> None:
    chats = [str(chat.to_dict()) for chat in script.from_templates(script.Config(count=1000))]
    assert len(chats) == len(set(chats)) == 1000
    assert chats == [str(chat.to_dict()) for chat in script.from_templates(script.Config(count=1000))]
    assert chats != [str(chat.to_dict()) for chat in script.from_templates(script.Config(count=1000, seed=1))]


def test_a_dry_run_writes_no_conversation(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(script.Config(dry_run=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "1000 conversations of 'nanochat' from templates" in err


def test_a_model_behind_an_address_writes_them(
    script: ModuleType, serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am Ada."}]}
    good = f"Here it is:\n```json\n{json.dumps(chat)}\n```"
    unanswered = json.dumps({"messages": chat["messages"][:1]})
    server = serve(200, good, "Sorry, I cannot.", "{}", unanswered, good)
    script.main(script.Config(base_url=server.url, model="large", count=3, name="Ada", workers=2))
    path = tmp_path / "out.jsonl"
    path.write_text(capsys.readouterr().out)
    assert [problem.answer for problem in CustomJSON(path)] == ["I am Ada."] * 3
    assert len(server.asked) == 6
    for address, key, body in server.asked:
        assert (address, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "large")
        assert "called Ada" in str(body["messages"])


def test_what_goes_wrong_is_told_in_one_sentence(script: ModuleType, serve) -> None:
    def run(**flags: object) -> str:
        with pytest.raises(UserError) as raised:
            script.main(script.Config(**flags))
        return str(raised.value)

    assert "at least 1, got 0" in run(count=0)
    assert "go together" in run(model="large")
    assert "can not be reached" in run(base_url="http://127.0.0.1:9/v1", model="m")
    assert "answered 401" in run(base_url=serve(401, "no").url, model="m")
    assert "wrote only 0 of 2 conversations (no JSON in 'nothing')" in run(
        base_url=serve(200, "nothing").url, model="m", count=2
    )
