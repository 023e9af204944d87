"""The front's tokenizer: what the server needs of one, and how single tokens are shown to a client.

Lesson: lessons/24_serving
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Protocol

from nanochat.conversation import Conversation


class ServedTokenizer(Protocol):
    """The part of `nanochat.tokenizer.RustBPETokenizer` that the server needs."""

    def encode(self, text: str, /) -> list[int]:
        """The ids of an ordinary text."""
        ...

    def encode_special(self, name: str, /) -> int:
        """The id of a control token."""
        ...

    def decode(self, ids: list[int], /) -> str:
        """The text of ids."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, a control token by its name."""
        ...

    def get_special_tokens(self) -> set[str]:
        """The names of the control tokens."""
        ...

    def get_vocab_size(self) -> int:
        """Number of ids."""
        ...

    def get_bos_token_id(self) -> int:
        """The id that starts every document."""
        ...

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """The ids of the conversation up to where the assistant speaks."""
        ...

    def render_conversation(self, conversation: Conversation, max_tokens: int = ...) -> tuple[list[int], list[int]]:
        """Ids and mask of a whole conversation."""
        ...


class Vocabulary:
    """Single tokens as text and bytes."""

    def __init__(self, tokenizer: ServedTokenizer):
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.names = {tokenizer.encode_special(name): name for name in tokenizer.get_special_tokens()}
        self.control = frozenset(self.names)
        self.raw = cache(self._raw)
        self.shown = cache(self._shown)

    def text(self, ids: Sequence[int]) -> str:
        """What the ordinary ids spell; control tokens are no text."""
        return self._tokenizer.decode([id for id in ids if id not in self.control])

    def _raw(self, id: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        return b"" if id in self.control else self._tokenizer.decode_bytes([id])

    def _shown(self, id: int) -> str:
        """A token by itself, no two alike: its text, its bytes where they are no text, a control token's name."""
        if id in self.names:
            return self.names[id]
        raw = self._raw(id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
