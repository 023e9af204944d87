"""Lesson 8: real text: get it, look at it, hold some out, train on it, measure."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import regex

from lessons.learner import load
from nanochat import dataset

Encode = Callable[[str], list[int]]


def python_help() -> list[str]:
    """The help texts that every Python carries, in the order of their names."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def documents(characters: int) -> list[str]:
    """Whole documents, in order, until they have so many characters: of a source of the product, or Python's help."""
    sources = dataset.sources()
    available: Iterable[str] = dataset.iterate_documents("train", sources[0]) if sources else python_help()
    found: list[str] = []
    for text in available:
        if characters <= 0:
            break
        found.append(text)
        characters -= len(text)
    return found


def hold_out(texts: list[str], every: int = 20) -> tuple[list[str], list[str]]:
    """Texts to learn from, and texts to measure on: of each `every` the last is held out; repeated ones are dropped."""
    different = list(dict.fromkeys(texts))
    held = different[every - 1 :: every]
    return [text for i, text in enumerate(different) if i % every != every - 1], held


@dataclass(frozen=True)
class Look:
    """What some texts are like."""

    documents: int
    characters: int
    bytes: int
    shortest: int
    median: int
    longest: int
    repeated: int
    share_of_ascii: float
    common_words: list[tuple[str, int]]


def look(texts: list[str]) -> Look:
    """Look at texts before anything is trained on them."""
    lengths = sorted(map(len, texts))
    words = Counter(word for text in texts for word in regex.findall(r"\p{L}+", text.lower()))
    return Look(
        documents=len(texts),
        characters=sum(lengths),
        bytes=sum(len(text.encode()) for text in texts),
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        repeated=len(texts) - len(set(texts)),
        share_of_ascii=sum(character < "\x80" for text in texts for character in text) / sum(lengths),
        common_words=sorted(words.items(), key=lambda item: (-item[1], item[0]))[:10],
    )


def bytes_per_token(encode: Encode, texts: list[str]) -> float:
    """Bytes of all texts over ids of all texts."""
    return sum(len(text.encode()) for text in texts) / sum(len(encode(text)) for text in texts)


def tok_eval(encoders: dict[str, Encode], texts: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Bytes per token by kind of text, and in each kind by tokenizer."""
    return {
        kind: {name: bytes_per_token(encode, some) for name, encode in encoders.items()} for kind, some in texts.items()
    }


def growth(texts: list[str], held_out: list[str], sizes: list[int]) -> list[tuple[int, float, float]]:
    """(size, bytes per token on the texts, on the held-out ones) for vocabularies of these sizes, trained once."""
    seven = load(7)
    fixed = 256 + len(seven.SPECIALS)
    counts = Counter(word for text in texts for word in load(6).split(text, seven.PATTERN))
    merges = load(5).train([(word.encode(), count) for word, count in counts.items()], max(sizes) - fixed)
    rows = []
    for size in sizes:
        encode = seven.Tokenizer(merges[: size - fixed]).encode
        rows.append((size, bytes_per_token(encode, texts), bytes_per_token(encode, held_out)))
    return rows
