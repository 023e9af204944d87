"""Lesson 7: a real tokenizer class: byte-level, trained by your Rust, with special tokens, saved and loaded.

The check calls `Tokenizer` and its methods by these names; so do later lessons. `from lessons.learner import load`
gives what was written before: `load(5).train(words, merges)` is your trainer, for a list of (bytes, count) and a
number of merges; `load(6).split(text, pattern)` and `load(6).encode_word(word, ranks)` are your encoder.
"""

from collections.abc import Iterable
from pathlib import Path

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""nanochat's: GPT-4's with at most two digits a word."""

SPECIALS = [
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
]


class Tokenizer:
    """Merges, a pattern, special tokens. Ids: the 256 bytes, the merges in order, then the special tokens in order."""

    def __init__(self, merges: list[tuple[int, int]], pattern: str = PATTERN, specials: list[str] = SPECIALS):
        raise NotImplementedError("lesson 7: __init__ is yours to write")

    @classmethod
    def train_from_iterator(cls, texts: Iterable[str], vocab_size: int, pattern: str = PATTERN) -> "Tokenizer":
        """Learn from texts, each read once and then forgotten: what is kept is the different words and their counts.

        `vocab_size` counts all ids, the special tokens too. Raises ValueError, naming the least size, where it
        has no room for the bytes and the special tokens.
        """
        raise NotImplementedError("lesson 7: train_from_iterator is yours to write")

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        raise NotImplementedError("lesson 7: get_vocab_size is yours to write")

    def encode_special(self, name: str) -> int:
        """The id of a special token. Raises ValueError with the name for one that is none."""
        raise NotImplementedError("lesson 7: encode_special is yours to write")

    def get_bos_token_id(self) -> int:
        """The id of `<|bos|>`."""
        raise NotImplementedError("lesson 7: get_bos_token_id is yours to write")

    def encode(self, text: str | list[str], prepend: int | str | None = None) -> list[int] | list[list[int]]:
        """The ids of a text, or those of each text of a list. Whatever a text spells, no special token comes of it.

        `prepend`, an id or a special token's name, goes before each.
        """
        raise NotImplementedError("lesson 7: encode is yours to write")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, a special token by its name. Raises ValueError that names an id that is not there."""
        raise NotImplementedError("lesson 7: decode_bytes is yours to write")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        raise NotImplementedError("lesson 7: decode is yours to write")

    def token_bytes(self) -> list[int]:
        """How many bytes of text each id stands for; special tokens 0."""
        raise NotImplementedError("lesson 7: token_bytes is yours to write")

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` into a folder, which is made if need be. In JSON, which anybody can read."""
        raise NotImplementedError("lesson 7: save is yours to write")

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """Load what `save` wrote. Raises ValueError with the file's name where it is damaged."""
        raise NotImplementedError("lesson 7: from_directory is yours to write")
