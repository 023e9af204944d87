"""Your own chats: a file with one conversation per line, `{"messages": [...]}` or the bare list, plain or gzip.

Lesson: lessons/21_conversations
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from nanochat.command import UserError
from nanochat.conversation import Conversation
from tasks.common import Task

_EXPECTED = 'expected one conversation per line, as {"messages": [{"role": "user", "content": "Hi"}, ...]}'


class CustomJSON(Task):
    """The conversations of one file, all read and checked at once. Raises UserError with the file and the line."""

    def __init__(self, path: str | Path, start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.path = Path(path).expanduser()
        self.conversations = list(_read(self.path))
        if not self.conversations:
            raise UserError(f"{self.path} is empty; {_EXPECTED}")

    def num_examples(self) -> int:
        """Conversations in the file."""
        return len(self.conversations)

    def get_example(self, index: int) -> Conversation:
        """The conversation at `index`; blank lines do not count."""
        return self.conversations[index]


def _read(path: Path) -> Iterator[Conversation]:
    for number, line in _lines(path):
        where = f"{path} line {number}"
        try:
            plain = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as problem:
            raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from problem
        except json.JSONDecodeError as problem:
            raise UserError(f"{where}: not JSON ({problem.msg} at column {problem.colno}); {_EXPECTED}") from problem
        except RecursionError as problem:
            raise UserError(f"{where}: nested too deeply; {_EXPECTED}") from problem
        yield Conversation.from_dict(plain, where)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; gzip is told by its first bytes, not by the name."""
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {kind}; {_EXPECTED}")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    number = 0
    try:
        with gzip.open(path) if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise UserError(f"{path}: the gzip data are damaged behind line {number} ({problem})") from problem
