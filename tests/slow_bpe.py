"""A slow clear trainer, and tiktoken, as oracles for the crate; texts for vocabularies that are trained in no time."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import regex
import tiktoken

import rustbpe
from nanochat.tokenizer import SPLIT_PATTERN

# cl100k_base as tiktoken 0.14 writes it; the general engine gets the last one.
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
CUSTOM_PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = [*rustbpe.PATTERNS.values(), CL100K_PATTERN, CUSTOM_PATTERN]
TEXTS = ["The cat's on the mat; isn't it? It was 1234 years ago.\n\n  Yes, über 日本語 and so on.\t\n"] * 3 + [
    "the " * 9
]


def train_slowly(texts: list[str], vocab_size: int, pattern: str) -> list[bytes]:
    """The textbook: count all pairs anew before every merge; ties go to the smaller left, then right id."""
    words = [(list(word.encode()), count) for word, count in _count(texts, pattern).items()]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                counts[pair] += count
        if not counts:
            break
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        for ids, _ in words:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == (left, right):
                    ids[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[left] + tokens[right])
    return tokens


def _count(texts: list[str], pattern: str) -> Counter[str]:
    return Counter(word for text in texts for word in regex.findall(pattern, text))


def trained(texts: Iterable[Any], vocab_size: int, pattern: str = SPLIT_PATTERN) -> rustbpe.Tokenizer:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=pattern)
    return tokenizer


def in_tiktoken(tokenizer: rustbpe.Tokenizer) -> tiktoken.Encoding:
    ranks = dict(tokenizer.get_mergeable_ranks())
    return tiktoken.Encoding("x", pat_str=tokenizer.get_pattern(), mergeable_ranks=ranks, special_tokens={})
