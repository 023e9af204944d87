"""Lesson 6: a tiktoken object from hard-coded tokens; and what it does inside."""

import re
from itertools import pairwise

import regex
import tiktoken

from lessons.learner import load

BYTES = [bytes([byte]) for byte in range(256)]
TOKENS = [*BYTES, b"th", b"at", b"the", b" the", b" c", b"cat", b" cat", b"hat"]

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def ranks_of(tokens: list[bytes]) -> dict[bytes, int]:
    """The rank of each token, its place in the list."""
    ranks: dict[bytes, int] = {}
    for rank, token in enumerate(tokens):
        if token in ranks:
            raise ValueError(f"{token!r} stands twice, as {ranks[token]} and as {rank}")
        ranks[token] = rank
    for byte in BYTES:
        if byte not in ranks:
            raise ValueError(f"the byte {byte!r} is missing: without it some texts have no ids")
    return ranks


def as_tiktoken(ranks: dict[bytes, int], pattern: str, specials: list[str]) -> tiktoken.Encoding:
    """The same vocabulary as a tiktoken object; the special tokens get the first ids behind the ranks."""
    special_tokens = {name: len(ranks) + i for i, name in enumerate(specials)}
    return tiktoken.Encoding("mine", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)


def split(text: str, pattern: str) -> list[str]:
    """The words of a text, as the pattern cuts it."""
    return [found.group() for found in regex.finditer(pattern, text)]


def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The ids of one word: join the neighbours of the lowest rank, the leftmost of equals, until none are a token."""
    parts = [bytes([byte]) for byte in word]
    while True:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        lowest = min(joined, default=len(ranks))
        if lowest == len(ranks):
            return [ranks[part] for part in parts]
        i = joined.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def encode_ordinary(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """The ids of a text, word by word."""
    return [i for word in split(text, pattern) for i in encode_word(word.encode(), ranks)]


def encode(text: str, ranks: dict[bytes, int], pattern: str, specials: dict[str, int], allowed: set[str]) -> list[int]:
    """The same, but the special tokens whose names are in `allowed` become their ids where the text spells them."""
    if not allowed:
        return encode_ordinary(text, ranks, pattern)
    longest_first = sorted(allowed, key=len, reverse=True)
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
        ids += [specials[piece]] if piece in allowed else encode_ordinary(piece, ranks, pattern)
    return ids


def ranks_of_merges(merges: list[tuple[int, int]]) -> dict[bytes, int]:
    """Lesson 1's merges as tiktoken wants them."""
    return ranks_of(load(1).vocabulary(merges))
