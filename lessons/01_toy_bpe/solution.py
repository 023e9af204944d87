"""Lesson 1: byte-pair encoding as a toy, on the bytes of one text."""

from collections import Counter
from itertools import pairwise

Pair = tuple[int, int]


def count_pairs(ids: list[int]) -> dict[Pair, int]:
    """How often each two neighbours occur."""
    return Counter(pairwise(ids))


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """A new list in which `new_id` stands for every occurrence of the pair, taken from left to right."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train(text: str, vocab_size: int) -> list[Pair]:
    """The merges that make a vocabulary of `vocab_size` ids: the commonest pair each time, of several the smallest."""
    ids = list(text.encode())
    merges: list[Pair] = []
    while 256 + len(merges) < vocab_size:
        counts = count_pairs(ids)
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        ids = merge(ids, pair, 256 + len(merges))
        merges.append(pair)
    return merges


def vocabulary(merges: list[Pair]) -> list[bytes]:
    """The bytes that each id stands for."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def encode(text: str, merges: list[Pair]) -> list[int]:
    """The ids of a text: its bytes, with the merges made in the order in which they were learned."""
    ids = list(text.encode())
    for i, pair in enumerate(merges):
        ids = merge(ids, pair, 256 + i)
    return ids


def decode(ids: list[int], merges: list[Pair]) -> str:
    """The text of some ids. Raises ValueError for an id that is not there."""
    tokens = vocabulary(merges)
    for i in ids:
        if not 0 <= i < len(tokens):
            raise ValueError(f"id {i} is not in the vocabulary, whose ids go from 0 to {len(tokens) - 1}")
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")
