"""A person's terminal: what is shown, what is typed, Ctrl-C."""

import io
import json
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from nanochat.conversation import Part
from nanochat.terminal import Screen, heeding_ctrl_c, line_editor, read_line, read_text


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(*pieces: tuple[str, str], out: io.StringIO | None = None, **how: bool) -> str:
    out = out or io.StringIO()
    screen = Screen(out, io.StringIO(), **how)
    for kind, text in pieces:
        screen.show(Part(kind, text))
    screen.end([Part(kind, text) for kind, text in pieces], {"finish_reason": "stop"})
    return out.getvalue()


CALL = [("text", "Let me see. "), ("python", "137*"), ("python", "46"), ("python_output", "6302"), ("text", "6302.")]


def test_a_tool_call_is_shown_in_brackets_and_dim_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown(*CALL) == "Let me see. [137*46 = 6302]6302.\n"
    assert shown(*CALL, out=Terminal()) == "Let me see. \x1b[2m[137*46 = 6302]\x1b[0m6302.\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(*CALL, out=Terminal()) == "Let me see. [137*46 = 6302]6302.\n"


def test_tool_calls_without_an_answer_and_one_after_another_are_closed():
    pieces = [("python", "1/0"), ("text", "Hm. "), ("python", "1+1"), ("python_output", "2"), ("python", "2*2")]
    assert shown(*pieces, ("python_output", "4")) == "[1/0]Hm. [1+1 = 2][2*2 = 4]\n"


def test_the_answer_alone_leaves_the_tool_out():
    assert shown(*CALL, with_tools=False) == "Let me see. 6302.\n"


def test_json_is_one_line_with_every_part():
    line = shown(*CALL[:2], ("python_output", "ä\n👩‍🚀"), as_json=True)
    assert line.count("\n") == 1
    assert "ä" in line
    parts = [{"type": "text", "text": "Let me see. "}, {"type": "python", "text": "137*"}]
    parts.append({"type": "python_output", "text": "ä\n👩‍🚀"})
    assert json.loads(line) == {"finish_reason": "stop", "answer": "Let me see. ", "parts": parts}


def test_a_model_cannot_drive_the_terminal():
    text = "\x1b]0;title\x07\x9b2Jred\r\tümläut 👩‍🚀\n"
    assert shown(("text", text), out=Terminal()) == "]0;title2Jred\tümläut 👩‍🚀\n\n"
    assert shown(("text", text)) == f"{text}\n", "a pipe gets what was said"


def test_notes_go_beside_the_answers_and_are_dim_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, notes, terminal = io.StringIO(), io.StringIO(), Terminal()
    Screen(out, notes).note("new chat")
    Screen(out, terminal).note("new chat")
    assert (out.getvalue(), notes.getvalue()) == ("", "(new chat)\n")
    assert terminal.getvalue() == "\x1b[2m(new chat)\x1b[0m\n"


def test_a_line_that_ends_with_a_backslash_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\\\ntwo \\\n\nthree\nfour\\\n"))
    assert [read_text(read_line), read_text(read_line)] == ["one\ntwo \n", "three"]
    with pytest.raises(EOFError):
        read_text(read_line)


def test_only_a_person_sees_the_prompt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert read_line("> ") == "hello"
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stdin", Terminal("hello"))
    assert read_line("> ") == "hello"
    assert capsys.readouterr() == ("", "> ")


@pytest.fixture
def typed() -> Iterator[Callable[[str], None]]:
    """Sends keys to the line editor."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys.send_text


ALT_ENTER, CTRL_D, CTRL_C, UP = "\x1b\r", "\x04", "\x03", "\x1b[A"


def test_alt_enter_breaks_a_line_and_pasted_lines_stay_together(typed: Callable[[str], None], tmp_path: Path):
    read = line_editor(tmp_path / "history", ["/help"])
    typed(f"one{ALT_ENTER}two\r")
    assert read("> ") == "one\ntwo"
    typed("\x1b[200~three\nfour\x1b[201~\r")
    assert read("> ") == "three\nfour"


def test_what_was_typed_comes_back_also_in_the_next_chat(typed: Callable[[str], None], tmp_path: Path):
    history = tmp_path / "history"
    typed("hello\r")
    line_editor(history, [])("> ")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    read = line_editor(history, [])
    typed(f"{UP}!\r")
    assert read("> ") == "hello!"


def test_commands_are_completed_by_tab(typed: Callable[[str], None], tmp_path: Path):
    read = line_editor(tmp_path / "history", ["/temperature", "/help"])
    typed("/tem\t 0.5\r")
    assert read("> ") == "/temperature 0.5"


def test_the_ends_of_a_line_editor(typed: Callable[[str], None], tmp_path: Path):
    read = line_editor(tmp_path / "nowhere" / "history", [])  # no history can be kept there, and none is
    typed(CTRL_D)
    with pytest.raises(EOFError):
        read("> ")
    typed(f"half{CTRL_C}")
    with pytest.raises(KeyboardInterrupt):
        read("> ")


def test_the_first_ctrl_c_is_noted_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with heeding_ctrl_c() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
