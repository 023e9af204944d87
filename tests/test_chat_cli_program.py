"""The terminal chat as a program on a tiny model: flags, one question, a pipe, a person at a terminal."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_chat import save_random_checkpoint

from nanochat.command import UserError
from scripts import chat_cli
from scripts.chat_cli import Config

ROOT = Path(__file__).parent.parent
LONG_SECONDS = 300  # a test that would hang fails after this


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt": "  "}, "--prompt is empty"),
        ({"temperature": -1.0}, "--temperature must be at least 0"),
        ({"top_k": -1}, "--top_k must be at least 0"),
        ({"max_tokens": 0}, "--max_tokens must be at least 1"),
        ({"system": "x", "source": "base"}, "--system is for a model that chats"),
    ],
)
def test_a_flag_that_no_answer_can_have_is_one_sentence(wrong: dict, says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        chat_cli.main(Config(**wrong))


def test_a_dry_run_says_what_it_would_do(capsys: pytest.CaptureFixture[str]):
    chat_cli.main(Config(dry_run=True, prompt="hi"))
    assert "sft, else mid, else base" in capsys.readouterr().out


REAL = {"max_tokens": 12, "device_type": "cpu", "dtype": "float32"}


def test_one_prompt_prints_the_answer_alone_and_the_checkpoint_to_stderr(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_random_checkpoint("sft")
    save_random_checkpoint("base")
    answers = []
    for prompt in ("Who are you?", "-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?"))
        chat_cli.main(Config(prompt=prompt, **REAL))
        shown = capsys.readouterr()
        assert shown.err.startswith("sft d1, step 7, on cpu\n")
        answers.append(shown.out)
    assert answers[0] == answers[1] != "\n", "the same seed gives the same answer, wherever the question comes from"
    chat_cli.main(Config(prompt="Who are you?", json=True, **REAL))
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] + "\n" == answers[0]
    assert told["completion_tokens"] == 12
    chat_cli.main(Config(prompt="Who are you?", weights="bfloat16", **REAL))
    assert capsys.readouterr().out.strip()
    chat_cli.main(Config(prompt="The sky", source="base", **REAL))
    shown = capsys.readouterr()
    assert shown.err.startswith("base d1, step 7, on cpu (a base model: it continues your text)\n")
    assert shown.out not in ("", "\n", answers[0])


def test_a_pipe_of_questions_gives_a_pipe_of_answers(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_random_checkpoint("mid", context_len=64)
    monkeypatch.setattr(sys, "stdin", io.StringIO("The capital of France\n" * 5))
    chat_cli.main(Config(json=True, **REAL))
    shown = capsys.readouterr()
    assert len([json.loads(line) for line in shown.out.splitlines()]) == 5
    assert "it does not see 1 older turn" in shown.err, "the chat goes on when its context is full"


def test_without_any_checkpoint_the_first_command_is_named(base_dir: Path):
    with pytest.raises(UserError, match=re.escape("run `python -m scripts.base_train` first")):
        chat_cli.main(Config(prompt="hi", **REAL))


def test_a_truncated_checkpoint_is_one_sentence(base_dir: Path):
    save_random_checkpoint("sft")
    file = next(base_dir.rglob("model.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"no valid sft checkpoint of d1 .* has 1000 bytes instead of"):
        chat_cli.main(Config(prompt="hi", **REAL))


@pytest.mark.slow
def test_on_a_terminal_a_person_types_stops_an_answer_and_goes_on(base_dir: Path):
    """The whole program behind a pseudo-terminal, with keys as a person presses them."""
    save_random_checkpoint("sft", context_len=4096)
    person, terminal = pty.openpty()
    flags = ["--device_type=cpu", "--max_tokens=4000", "--temperature=0"]
    program = subprocess.Popen(
        [sys.executable, "-m", "scripts.chat_cli", *flags],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1", "PROMPT_TOOLKIT_NO_CPR": "1"},
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    seen, grown = "", threading.Condition()

    def watch() -> None:
        nonlocal seen
        while True:
            try:
                data = os.read(person, 4096).decode("utf-8", "replace")
            except OSError:  # the program has closed its terminal
                return
            with grown:
                seen += data
                grown.notify_all()

    threading.Thread(target=watch, daemon=True).start()

    def wait_for(text: str) -> None:
        with grown:
            assert grown.wait_for(lambda: text in seen, timeout=LONG_SECONDS), f"no {text!r} in {seen!r}"

    wait_for("Ctrl-D ends")

    def line_editor(times: int) -> None:
        """Wait until it is there for the so-manieth time: keys that come before are lost."""
        with grown:
            assert grown.wait_for(lambda: seen.count("\x1b[?2004h") >= times, timeout=LONG_SECONDS), seen

    line_editor(1)
    os.write(person, b"Who are you?\r")
    with grown:
        before = len(seen)
        assert grown.wait_for(lambda: len(seen) > before + 200, timeout=LONG_SECONDS), "the answer streams"
    os.write(person, b"\x03")
    wait_for("(stopped)")
    line_editor(2)
    os.write(person, b"/temperature 0.5\r")
    wait_for("(temperature is 0.5)")
    line_editor(3)
    os.write(person, b"\x04")
    assert program.wait(timeout=LONG_SECONDS) == 0
