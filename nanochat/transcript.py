"""An answer's ids as the text of its parts, while they come: whole characters, and nothing behind a stop text.

Lesson: lessons/24_serving
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nanochat import chat_format
from nanochat.conversation import PartType


@dataclass(frozen=True)
class Piece:
    """A bit of an answer as it comes: of what is said, of a tool call, or of what the tool answered."""

    type: PartType
    text: str


class Vocabulary(Protocol):
    """What is needed of a tokenizer here."""

    def encode_special(self, name: str, /) -> int:
        """Id of a control token."""
        ...

    def decode_bytes(self, ids: Sequence[int], /) -> bytes:
        """The bytes that ids stand for."""
        ...


class Marks:
    """The control ids within and around an answer."""

    def __init__(self, vocabulary: Vocabulary):
        special = vocabulary.encode_special
        self.python_start, self.python_end = special(chat_format.PYTHON_START), special(chat_format.PYTHON_END)
        self.output_start, self.output_end = special(chat_format.OUTPUT_START), special(chat_format.OUTPUT_END)
        self.ends = frozenset({special(chat_format.ASSISTANT_END), special(chat_format.BOS)})
        unsayable = (chat_format.USER_START, chat_format.USER_END, chat_format.ASSISTANT_START)
        self.unsayable = [special(name) for name in unsayable] + [self.output_start, self.output_end]
        self.opens: dict[int, PartType] = {self.python_start: "python", self.output_start: "python_output"}
        self.switches = frozenset({*self.opens, self.python_end, self.output_end, *self.ends})


class Transcript:
    """One answer. Characters whose bytes are not all there yet wait, and so does what may become a stop text."""

    def __init__(self, vocabulary: Vocabulary, marks: Marks, stop: Sequence[str] = ()):
        self._vocabulary, self._marks, self._stop = vocabulary, marks, stop
        self._kind: PartType = "text"
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._pieces: list[Piece] = []
        self.stopped = False  # a stop text came: nothing is said from it on

    def take(self, token: int) -> None:
        """The next id."""
        if token in self._marks.switches:
            self.end()
            self._kind = self._marks.opens.get(token, "text")
        else:
            self._say(self._decoder.decode(self._vocabulary.decode_bytes([token])))

    def end(self) -> None:
        """Let go of what waits: nothing follows, or another part."""
        self._say(self._decoder.decode(b"", final=True))
        self._emit(self._held)
        self._held = ""

    def drain(self) -> tuple[Piece, ...]:
        """What has come since the last time."""
        pieces = tuple(self._pieces)
        self._pieces.clear()
        return pieces

    def _say(self, text: str) -> None:
        if not text or self.stopped:
            return
        if not self._stop or self._kind != "text":
            self._emit(text)
            return
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._emit(text[: min(found)])
            self._held = ""
            return
        waiting = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - waiting :]
        self._emit(text[: len(text) - waiting])

    def _emit(self, text: str) -> None:
        if text:
            self._pieces.append(Piece(self._kind, text))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that the stop text starts with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
