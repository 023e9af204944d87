"""Lesson 8: real text: get it, look at it, hold some out, train on it, measure.

The check calls these by name: python_help, documents, hold_out, look, bytes_per_token, tok_eval, growth. The last one
goes on with lessons 5 to 7, which `from lessons.learner import load` gives.
"""

from collections.abc import Callable
from dataclasses import dataclass

Encode = Callable[[str], list[int]]


def python_help() -> list[str]:
    """The help texts that every Python carries, `topics` in the module `pydoc_data.topics`, sorted by their names."""
    raise NotImplementedError("lesson 8: python_help is yours to write")


def documents(characters: int) -> list[str]:
    """Whole documents, in order, until they have so many characters.

    Those of the first source in `nanochat.dataset.sources()`, by `nanochat.dataset.iterate_documents("train", source)`;
    where there is no source, those of `python_help()`.
    """
    raise NotImplementedError("lesson 8: documents is yours to write")


def hold_out(texts: list[str], every: int = 20) -> tuple[list[str], list[str]]:
    """Texts to learn from, and texts to measure on: of each `every` the last is held out. None is in both; a text that
    stands twice counts once, where it stands first."""
    raise NotImplementedError("lesson 8: hold_out is yours to write")


@dataclass(frozen=True)
class Look:
    """What some texts are like."""

    documents: int
    characters: int
    bytes: int
    """In UTF-8."""
    shortest: int
    """Characters of the shortest text."""
    median: int
    """Characters of the middle one when they are sorted by length, of two middle ones the longer."""
    longest: int
    repeated: int
    """Texts that were there before."""
    share_of_ascii: float
    """Characters below 128, of all characters."""
    common_words: list[tuple[str, int]]
    """The ten commonest words and their counts: runs of letters (`\\p{L}+`), all small; equals by alphabet."""


def look(texts: list[str]) -> Look:
    """Look at texts before anything is trained on them."""
    raise NotImplementedError("lesson 8: look is yours to write")


def bytes_per_token(encode: Encode, texts: list[str]) -> float:
    """Bytes of all texts over ids of all texts: how well a tokenizer packs. (Not the mean of each text's own ratio.)"""
    raise NotImplementedError("lesson 8: bytes_per_token is yours to write")


def tok_eval(encoders: dict[str, Encode], texts: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Bytes per token by kind of text, and in each kind by tokenizer: `found["code"]["mine"]`."""
    raise NotImplementedError("lesson 8: tok_eval is yours to write")


def growth(texts: list[str], held_out: list[str], sizes: list[int]) -> list[tuple[int, float, float]]:
    """(size, bytes per token on the texts, bytes per token on the held-out ones) for vocabularies of these sizes.

    A size counts all ids, with lesson 7's special tokens. Training once is enough: what a smaller vocabulary
    has learned is how a larger one begins.
    """
    raise NotImplementedError("lesson 8: growth is yours to write")
