"""Lesson 6: a tiktoken object from hard-coded tokens: ranks, a split pattern, special tokens; and what it does inside.

The check calls these by name: ranks_of, as_tiktoken, split, encode_word, encode_ordinary, encode, ranks_of_merges. Only
as_tiktoken may use tiktoken; the others are what tiktoken does, by hand.
"""

import tiktoken

BYTES = [bytes([byte]) for byte in range(256)]
TOKENS = [*BYTES, b"th", b"at", b"the", b" the", b" c", b"cat", b" cat", b"hat"]
"""A vocabulary written by hand: a token's place in the list is its id."""

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def ranks_of(tokens: list[bytes]) -> dict[bytes, int]:
    """The rank of each token, its place in the list.

    Raises ValueError that names the token where one stands twice, or a single byte that is missing.
    """
    raise NotImplementedError("lesson 6: ranks_of is yours to write")


def as_tiktoken(ranks: dict[bytes, int], pattern: str, specials: list[str]) -> tiktoken.Encoding:
    """The same vocabulary as a tiktoken object; the special tokens get the first ids behind the ranks."""
    raise NotImplementedError("lesson 6: as_tiktoken is yours to write")


def split(text: str, pattern: str) -> list[str]:
    """The words of a text, as the pattern cuts it. Python's `re` has no \\p{L}; the package `regex` has."""
    raise NotImplementedError("lesson 6: split is yours to write")


def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The ids of one word: of all neighbours that together are a token, join those of the lowest rank, the leftmost of
    equals; again, until none are left."""
    raise NotImplementedError("lesson 6: encode_word is yours to write")


def encode_ordinary(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """The ids of a text, word by word. Whatever it spells, no special token comes out."""
    raise NotImplementedError("lesson 6: encode_ordinary is yours to write")


def encode(text: str, ranks: dict[bytes, int], pattern: str, specials: dict[str, int], allowed: set[str]) -> list[int]:
    """The same, but the special tokens whose names are in `allowed` become their ids where the text spells them."""
    raise NotImplementedError("lesson 6: encode is yours to write")


def ranks_of_merges(merges: list[tuple[int, int]]) -> dict[bytes, int]:
    """Lesson 1's merges as tiktoken wants them: the 256 bytes, then what each merge makes, with its id as rank."""
    raise NotImplementedError("lesson 6: ranks_of_merges is yours to write")
