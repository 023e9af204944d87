"""Byte-level BPE: a trainer, an encoder and a decoder."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

class _StringArray(Protocol):
    """A pyarrow Array or ChunkedArray of strings: read from its buffers, without a Python object for each text."""

    @property
    def null_count(self) -> int: ...

_Text = str | bytes | _StringArray
"""One text, or with an array many; bytes must be UTF-8."""

GPT4_PATTERN: str
"""The default split pattern."""
PATTERNS: dict[str, str]
"""The patterns that have a hand-written scanner: nanochat, gpt2, gpt4, qwen2."""
UNICODE_VERSION: str
"""Version of the tables that decide what is a letter, a number or white space."""
__version__: str

class Tokenizer:
    """Starts with the 256 bytes and `GPT4_PATTERN`; threads may encode while another trains."""

    def __init__(self) -> None: ...
    @staticmethod
    def from_ranks(ranks: Iterable[tuple[bytes, int]] | Mapping[bytes, int], pattern: str | None = None) -> Tokenizer:
        """A tokenizer of known tokens, ranks 0, 1, 2, ...; raises ValueError when a byte is missing."""
    def train_from_iterator(
        self,
        iterator: Iterable[_Text | None] | _StringArray,
        vocab_size: int,
        buffer_size: int = 8192,
        pattern: str | None = None,
        progress: Callable[[int, int], object] | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Train until there are `vocab_size` tokens or no pair is left, by all cores or `num_threads`.

        None and the nulls of an array are left out. `buffer_size` texts (or 16 MB) at most wait to be counted, so that
        a corpus may be larger than memory.
        `progress(merges done, merges wanted)` is called now and then, and at the end with the number of merges twice.
        """
    def get_pattern(self) -> str: ...
    def get_mergeable_ranks(self) -> list[tuple[bytes, int]]:
        """All tokens: the 256 bytes (rank = byte), then the merges in order."""
    def get_merges(self) -> list[tuple[bytes, bytes]]:
        """The pairs of tokens that merge, in order: for formats that list merges instead of ranks."""
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> list[int]:
        """The ids of a text, equal to tiktoken's `encode_ordinary` on the same ranks and pattern."""
    def batch_encode(self, texts: Iterable[_Text] | _StringArray, num_threads: int | None = None) -> list[list[int]]:
        """The ids of each text, by all cores or at most `num_threads`. Raises ValueError at a null, with its index."""
    def encode_to_numpy(self, text: str) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """The ids of a text as an array: uint16 for a vocabulary of up to 65,536, else uint32."""  # (ids,)
    def batch_encode_to_numpy(
        self, texts: Iterable[_Text] | _StringArray, num_threads: int | None = None
    ) -> tuple[NDArray[np.uint16] | NDArray[np.uint32], NDArray[np.uint64]]:
        """The ids of all texts, and offsets: text i is `ids[offsets[i]:offsets[i + 1]]`."""  # (ids,), (texts + 1,)
    def encode_into(self, text: str, out: Buffer) -> int:
        """Write the ids to the front of an array of uint16, uint32, int64 or uint64; how many there are.

        Raises ValueError when it is too small or has another byte order than the machine.
        """
    def decode(self, ids: Iterable[int] | Buffer) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD. Raises ValueError on an unknown id."""
    def decode_bytes(self, ids: Iterable[int] | Buffer) -> bytes:
        """The bytes of some ids. Raises ValueError on an unknown id."""

def train_bpe(
    input_file: str | PathLike[str], output_file: str | PathLike[str], vocab_size: int, pattern: str | None = None
) -> Tokenizer:
    """Train on one UTF-8 text file and write the ranks as tiktoken's text."""
