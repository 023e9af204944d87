"""Lesson 7: a real tokenizer class: byte-level, trained by Rust, with special tokens, saved and loaded."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lessons.learner import load

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

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
        words = load(6)
        self._merges, self._pattern = [tuple(pair) for pair in merges], pattern
        self._ranks: dict[bytes, int] = words.ranks_of_merges(self._merges)
        self._specials = {name: len(self._ranks) + i for i, name in enumerate(specials)}
        self._tokens = [*self._ranks, *(name.encode() for name in specials)]
        self._split, self._encode_word = words.split, words.encode_word
        self._known: dict[str, list[int]] = {}  # words that were encoded before

    @classmethod
    def train_from_iterator(cls, texts: Iterable[str], vocab_size: int, pattern: str = PATTERN) -> "Tokenizer":
        """Learn from texts; what is kept of them is the different words and their counts."""
        merges = vocab_size - 256 - len(SPECIALS)
        if merges < 0:
            raise ValueError(
                f"vocab_size must be at least {256 + len(SPECIALS)} (bytes, special tokens), got {vocab_size}"
            )
        split, counts = load(6).split, Counter()
        for text in texts:
            counts.update(split(text, pattern))
        words = [(word.encode(), count) for word, count in counts.items()]
        return cls(load(5).train(words, merges), pattern)

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._tokens)

    def encode_special(self, name: str) -> int:
        """The id of a special token."""
        if name not in self._specials:
            raise ValueError(f"no special token is called {name!r}; there are {', '.join(self._specials)}")
        return self._specials[name]

    def get_bos_token_id(self) -> int:
        """The id of `<|bos|>`."""
        return self.encode_special("<|bos|>")

    def encode(self, text: str | list[str], prepend: int | str | None = None) -> list[int] | list[list[int]]:
        """The ids of a text, or those of each text of a list; `prepend` goes before each."""
        if not isinstance(text, str):
            return [self.encode(one, prepend) for one in text]
        ids = [] if prepend is None else [self.encode_special(prepend) if isinstance(prepend, str) else prepend]
        for word in self._split(text, self._pattern):
            if word not in self._known:
                self._known[word] = self._encode_word(word.encode(), self._ranks)
            ids += self._known[word]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, a special token by its name."""
        ids, size = list(ids), self.get_vocab_size()
        for i in ids:
            if not 0 <= i < size:
                raise ValueError(f"id {i} is not in the vocabulary, whose ids go from 0 to {size - 1}")
        return b"".join(self._tokens[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> list[int]:
        """How many bytes of text each id stands for; special tokens 0."""
        return [len(token) for token in self._ranks] + [0] * len(self._specials)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` into a folder, which is made if need be."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        parts = {"pattern": self._pattern, "specials": list(self._specials), "merges": self._merges}
        (directory / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """Load what `save` wrote."""
        path = Path(directory) / "tokenizer.json"
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))
            return cls(parts["merges"], parts["pattern"], parts["specials"])
        except (ValueError, KeyError, TypeError, IndexError) as wrong:
            raise ValueError(f"{path} is no tokenizer that save wrote: {wrong!r}") from wrong
