"""A person's terminal: reading what is typed, showing answers as they come, heeding Ctrl-C.

Lesson: lessons/00_setting_up
"""

import contextlib
import json
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from nanochat.conversation import Message, Part, PartType


class Spoken(Protocol):
    """A bit of an answer."""

    @property
    def type(self) -> PartType:
        """What it is of."""
        ...

    @property
    def text(self) -> str:
        """Its characters."""
        ...


class Screen:
    """Shows an answer as it comes: text as it is, a tool call as `[137*46 = 6302]`, dim on a terminal.

    With `as_json` it is one line of JSON at the end. What is no answer goes to `notes`.
    """

    def __init__(self, out: TextIO, notes: TextIO, as_json: bool = False, with_tools: bool = True):
        self.out, self.notes, self.as_json, self.with_tools = out, notes, as_json, with_tools
        self.terminal = out.isatty()
        self.last = "text"

    def show(self, piece: Spoken) -> None:
        """Write one piece."""
        if self.as_json:
            return
        if piece.type == "text":
            self._close_call()
            self._write(piece.text)
        elif self.with_tools:
            if piece.type != self.last:
                if piece.type == "python":
                    self._close_call()
                opens = piece.type == "python" or self.last == "text"
                self.out.write(f"{dim(self.out)[0]}[" if opens else " = ")
            self._write(piece.text)
        self.last = piece.type
        self.out.flush()

    def end(self, parts: Sequence[Part], facts: dict[str, object]) -> None:
        """End the answer."""
        self._close_call()
        self.last = "text"
        if self.as_json:
            said = {"answer": Message("assistant", list(parts)).text, "parts": [vars(part) for part in parts]}
            self.out.write(json.dumps(facts | said, ensure_ascii=False))
        self.out.write("\n")
        self.out.flush()

    def note(self, text: str) -> None:
        """Say something about the chat, in parentheses."""
        before, after = dim(self.notes)
        print(f"{before}({text}){after}", file=self.notes, flush=True)

    def _close_call(self) -> None:
        if self.with_tools and self.last != "text" and not self.as_json:
            self.out.write(f"]{dim(self.out)[1]}")

    def _write(self, text: str) -> None:
        # A model may spell the codes that move a terminal's cursor or rename its window: they stay out of it.
        shown = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
        self.out.write(shown if self.terminal else text)


def dim(stream: TextIO) -> tuple[str, str]:
    """What begins and ends a dim passage: nothing but on a terminal that may have colours."""
    return ("\x1b[2m", "\x1b[0m") if stream.isatty() and not os.environ.get("NO_COLOR") else ("", "")


def read_text(read: Callable[[str], str]) -> str:
    """One text; a line that ends with a backslash goes on in the next. Raises EOFError."""
    lines = [read("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("  "))
    return "\n".join(lines)


def read_line(prompt: str) -> str:
    """A line of standard input; who types it sees the prompt. Raises EOFError."""
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def line_editor(history: Path, commands: Sequence[str]) -> Callable[[str], str]:
    """Reads several lines, with what was typed before (kept in the file `history`) and the commands' names by Tab."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    kept: History = InMemoryHistory()
    with contextlib.suppress(OSError):  # a base directory that is read-only
        history.touch(mode=0o600)
        kept = FileHistory(history)
    session: PromptSession[str] = PromptSession(
        history=kept,
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )
    return session.prompt


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted, so that no step is torn apart; a second one interrupts as ever."""
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
