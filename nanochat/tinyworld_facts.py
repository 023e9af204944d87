"""The small world's facts and the ways to say and to ask them, read from `nanochat/data/tinyworld.toml`.

Also what is held out: phrasings by their place in the data file, sums and names by a stable hash.
Documents, conversations and problems made of this are in the neighbouring rooms.

Lesson: lessons/16_train_depth_4
"""

import random
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Split = Literal["train", "test"]
HELD_OUT_NAMES = 0.2  # share of invented names that belongs to the test split


@dataclass(frozen=True)
class Relation:
    """One kind of fact (capital, sound, opposite, ...): its facts, subject -> value, and its phrasings."""

    name: str
    topic: str
    noun: str
    reply: str
    said: str
    invented: str
    facts: Mapping[str, str]
    statements: tuple[str, ...]
    held_out_statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]
    followups: tuple[str, ...]
    common_statements: tuple[str, ...]
    common_questions: tuple[str, ...]
    common_held_out_questions: tuple[str, ...]

    def fill(self, template: str, subject: str, value: str = "") -> str:
        """The template with subject and value in their places."""
        return template.format(**self._slots(subject, value or self.facts.get(subject, "")))

    def _slots(self, subject: str, value: str) -> dict[str, str]:
        plain = {"s": subject, "a": with_article(subject), "v": value, "b": with_article(value)}
        plain["w"] = self.said.format(**plain)
        plain["n"] = self.noun.format(**plain)
        return plain | {name.upper(): capitalised(text) for name, text in plain.items()}

    def sentence(self, subject: str, value: str = "") -> str:
        """The sentence in which the assistant answers; with another `value` it is a wrong one."""
        return self.fill(self.reply, subject, value)

    def statement(self, generator: random.Random, subject: str) -> str:
        """The fact in one of the phrasings that documents use."""
        choices = self.statements if generator.random() < 0.6 else (self.reply, *self.common_statements)
        return self.fill(generator.choice(choices), subject)

    def question(self, generator: random.Random, subject: str, split: Split) -> str:
        """A question for the fact, in the phrasings of the split."""
        own, common = self.questions, self.common_questions
        if split == "test":
            own, common = self.held_out_questions, self.common_held_out_questions
        # "What is {n}?" is the plainest question: it gets a third of the common half of the training questions.
        if split == "train" and generator.random() < 1 / 6:
            return self.fill(common[0], subject)
        return self.fill(generator.choice(own if generator.random() < 0.5 else common), subject)

    def followup(self, generator: random.Random, subject: str) -> str:
        """A short question that leans on the one before: "And of Spain?"."""
        return self.fill(generator.choice(self.followups), subject)

    def other_values(self, subject: str) -> list[str]:
        """The values of this relation that are wrong for `subject`, each once, in the data's order."""
        return [value for value in dict.fromkeys(self.facts.values()) if value != self.facts[subject]]


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`a cow`, `an owl`."""
    return f"an {noun}" if noun[:1].lower() in tuple("aeiou") else f"a {noun}"


def share(key: str) -> float:
    """A number in [0, 1) that belongs to `key` for ever: what is held out must not depend on seed or version."""
    return zlib.crc32(key.encode("utf-8")) / 2**32


@cache
def load(name: str) -> dict[str, Any]:  # TOML: each reader knows the shape of its own tables
    """A data file of the world, `nanochat/data/<name>.toml`, parsed once."""
    return tomllib.loads((resources.files("nanochat") / "data" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def words(split: Split) -> tuple[str, ...]:
    """Common English words for spelling; no training text counts letters in those of "test"."""
    name = "words.txt" if split == "train" else "words_held_out.txt"
    return tuple((resources.files("nanochat") / "data" / name).read_text(encoding="utf-8").split())


@cache
def relations() -> tuple[Relation, ...]:
    """All relations of the world, in the data's order."""
    plain = load("tinyworld")
    common = plain["phrasings"]
    return tuple(
        Relation(
            name=table["name"],
            topic=table["topic"],
            noun=table["noun"],
            reply=table["reply"],
            said=table.get("said", "{v}"),
            invented=table.get("invented", ""),
            facts=table["facts"],
            statements=tuple(table["statements"]),
            held_out_statements=tuple(table["held_out_statements"]),
            questions=tuple(table["questions"]),
            held_out_questions=tuple(table["held_out_questions"]),
            followups=tuple(table["followups"]) + tuple(common["followups"]),
            common_statements=tuple(common["statements"]),
            common_questions=tuple(common["questions"]),
            common_held_out_questions=tuple(common["held_out_questions"]),
        )
        for table in plain["relation"]
    )


@cache
def facts() -> tuple[tuple[Relation, str], ...]:
    """Every fact as (relation, subject), shuffled once and for all, so that a view of the first n is a fair sample."""
    every = [(relation, subject) for relation in relations() for subject in relation.facts]
    random.Random("facts").shuffle(every)
    return tuple(every)


@cache
def topics() -> dict[str, tuple[Relation, ...]]:
    """Topic -> its relations."""
    names = dict.fromkeys(relation.topic for relation in relations())
    return {name: tuple(r for r in relations() if r.topic == name) for name in names}


def invented_name(generator: random.Random, kind: str, split: Split) -> str:
    """A name that the world lacks: a country (`Zorbonia`) or an animal (`zorbox`), of the split's own names."""
    parts = load("chat")["invented"]
    while True:
        name = "".join(generator.choice(parts[part]) for part in ("first", "second", kind))
        if (share(name) < HELD_OUT_NAMES) == (split == "test"):
            return name if kind == "country" else name.lower()
