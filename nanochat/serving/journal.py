"""Conversations kept in a file, for those who ask for it: a line of JSON for every answer.

Lesson: lessons/24_serving
"""

import json
import os
import threading
from pathlib import Path

from nanochat.command import UserError


class Journal:
    """A file that only its owner reads, written to its end. Raises UserError where it cannot be written."""

    def __init__(self, path: Path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as refusal:
            raise UserError(f"conversations cannot be logged to {path}: {refusal.strerror}") from refusal
        self._file = os.fdopen(handle, "a", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, entry: dict[str, object]) -> None:
        """Add a line; from any thread."""
        line = json.dumps(entry, ensure_ascii=False)
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """The last line has been written."""
        self._file.close()
