"""The built-in corpus: documents of a small, coherent, true English world, and rows in the shapes of CORE's tasks.

Deterministic in the seed; needs no network. Conversations of the same world are in `tinyworld_chats`.

    python -m nanochat.tinyworld                          # writes the source "tinyworld" under the base directory
    python -m nanochat.tinyworld --megabytes=20 --seed=7

Lesson: lessons/16_train_depth_4
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from nanochat import command, dataset
from nanochat.command import UserError
from nanochat.log import progress
from nanochat.tinyworld_facts import Relation, facts, load, relations, topics, words
from nanochat.tinyworld_problems import calculate, draw_sum, letter_is_held_out, sum_is_held_out
from nanochat.tinyworld_stories import tell

SOURCE = "tinyworld"
CoreKind = Literal["multiple_choice", "schema", "language_modeling"]
CoreRow = dict[str, str | int | list[str]]

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SPOKEN_SIGNS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


# --- documents --------------------------------------------------------------------------------------------------------


def documents(seed: int, megabytes: float) -> Iterator[str]:
    """Documents of 200 to 2,000 characters until `megabytes` (of 1,000,000 UTF-8 bytes) are full."""
    left, index = megabytes * 1e6, 0
    while left > 0:
        text = document(seed, index)
        left -= len(text.encode("utf-8"))
        index += 1
        yield text


def document(seed: int, index: int) -> str:
    """The document number `index`, of one kind: a subject, a list, questions, a story, sums, or spelling."""
    generator = random.Random(f"document-{seed}-{index}")
    make = generator.choices(list(_MAKERS), list(_MAKERS.values()))[0]
    return make(generator, generator.randint(300, 1500))


def _joined(lines: Iterator[str], target: int, separator: str) -> str:
    """Lines until the document has `target` characters."""
    text = next(lines)
    while len(text) < target:
        text += separator + next(lines)
    return text


def _subject_document(generator: random.Random, target: int) -> str:
    """All facts of some subjects of one topic, in many phrasings, a paragraph per subject."""
    of_topic = generator.choices(list(topics().values()), [sum(len(r.facts) for r in rs) for rs in topics().values()])[
        0
    ]

    def paragraphs() -> Iterator[str]:
        while True:
            subject = generator.choice([s for relation in of_topic for s in relation.facts])
            known = [relation for relation in of_topic if subject in relation.facts]
            generator.shuffle(known)
            twice = known + known[:1]
            yield " ".join(dict.fromkeys(relation.statement(generator, subject) for relation in twice))

    return _joined(paragraphs(), target, generator.choice(("\n", " ", "\n\n")))


def _list_document(generator: random.Random, target: int) -> str:
    """One relation, a line per subject; then another relation while there is room."""

    def lines() -> Iterator[str]:
        while True:
            relation = _weighted_relation(generator)
            subjects = generator.sample(list(relation.facts), min(len(relation.facts), generator.randint(5, 12)))
            if generator.random() < 0.5:
                yield from (relation.sentence(subject) for subject in subjects)
            else:
                yield from (relation.statement(generator, subject) for subject in subjects)

    return _joined(lines(), target, "\n")


def _question_document(generator: random.Random, target: int) -> str:
    """Questions with their answers."""
    opening, answer = generator.choice((("Question: ", "\nAnswer: "), ("", "\n"), ("", " ")))

    def lines() -> Iterator[str]:
        while True:
            relation, subject = generator.choice(facts())
            yield f"{opening}{relation.question(generator, subject, 'train')}{answer}{relation.sentence(subject)}"

    return _joined(lines(), target, "\n")


def _story_document(generator: random.Random, target: int) -> str:
    """Stories, each with questions about its end."""

    def paragraphs() -> Iterator[str]:
        while True:
            story = tell(generator, generator.randint(2, 6))
            asked = story.questions(generator)[: generator.randint(0, 3)]
            yield "\n".join([story.text, *(f"{question} {reply}" for question, reply in asked)])

    return _joined(paragraphs(), min(target, 900), "\n\n")


def _sum_document(generator: random.Random, target: int) -> str:
    """Sums in digits and in words, counting, comparing; no held-out sum."""
    return _joined(iter(lambda: _sum_line(generator), None), target, "\n")


def _sum_line(generator: random.Random) -> str:
    style = generator.randrange(6)
    sign = generator.choice("+-*/")
    if style < 3:
        a, b = draw_sum(generator, sign, "train")
        return f"{a} {sign} {b} = {calculate(a, sign, b)}" if style else f"{a}{sign}{b}={calculate(a, sign, b)}"
    if style == 3:
        a, b = generator.randint(0, 20), generator.randint(0, 20)
        if sign in "-/" or sum_is_held_out(a, sign, b):
            sign, a, b = "+", *_small_sum(generator)
        return (
            f"{in_words(a)} {_SPOKEN_SIGNS[sign]} {in_words(b)} is {in_words(calculate(a, sign, b))}".capitalize() + "."
        )
    if style == 4:
        start, step = generator.randint(0, 50), generator.choice((1, 1, 2, 5, 10))
        return "Counting: " + ", ".join(str(start + i * step) for i in range(generator.randint(5, 12)))
    a, b = generator.sample(range(1000), 2)
    return f"{max(a, b)} is more than {min(a, b)}." if sign in "+*" else f"{min(a, b)} is less than {max(a, b)}."


def _small_sum(generator: random.Random) -> tuple[int, int]:
    while True:
        a, b = generator.randint(0, 20), generator.randint(0, 20)
        if not sum_is_held_out(a, "+", b):
            return a, b


def in_words(number: int) -> str:
    """A number from 0 to 999 in words: `forty-two`, `three hundred and five`."""
    if number >= 100:
        rest = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{rest}"
    if number < 20:
        return _ONES[number]
    return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")


def _spelling_document(generator: random.Random, target: int) -> str:
    """Words letter by letter, bare and in quotes, held-out words too; no held-out count of letters.

    Held-out words come twice as often, since conversations add to the others. A quoted word begins a line, as it
    begins a call of the tool: after a space the same word is other tokens.
    """
    vocabulary = words("train") + 2 * words("test")

    def lines() -> Iterator[str]:
        while True:
            yield "\n".join(_spelling_lines(generator, generator.choice(vocabulary)))

    return _joined(lines(), target, "\n")


def _quoting_document(generator: random.Random, target: int) -> str:
    """Words and, a line below, the same words in quotes: nothing but the other tokens that a quoted word is."""
    vocabulary = words("train") + 2 * words("test")

    def lines() -> Iterator[str]:
        while True:
            word = generator.choice(vocabulary)
            typed = generator.choice((word, word, f"'{word}'", f'"{word}"'))
            yield f"{generator.choice(('in', 'in the word', 'word'))} {typed}?\n'{word}'"

    return _joined(lines(), target, "\n")


def _spelling_lines(generator: random.Random, word: str) -> list[str]:
    """Two things to say about a word: how it looks in quotes, and its letters."""
    typed = generator.choice((word, word, f"'{word}'", f'"{word}"'))
    quoted = f"The word {typed}:\n'{word}'"
    spelled = [
        f"The word {word} is spelled {' '.join(word)}.",
        f"'{word}' has {len(word)} letters: {' '.join(word)}",
        f"'{word}' begins with {word[0]} and ends with {word[-1]}.",
    ]
    countable = [letter for letter in dict.fromkeys(word) if not letter_is_held_out(word, letter)]
    if countable and generator.random() < 0.5:
        letter = generator.choice(countable)
        question = generator.choice(load("problems")["letters"]["questions"]).format(r=letter, q=typed)
        spelled = [f"{question}\n'{word}'.count('{letter}') is {word.count(letter)}."]
    return generator.sample([quoted, generator.choice(spelled)], 2)


def _weighted_relation(generator: random.Random) -> Relation:
    """A relation, likelier the more facts it has."""
    return generator.choices(relations(), [len(relation.facts) for relation in relations()])[0]


_MAKERS: dict[Callable[[random.Random, int], str], int] = {
    _subject_document: 26,
    _list_document: 20,
    _question_document: 15,
    _story_document: 10,
    _sum_document: 8,
    _spelling_document: 17,
    _quoting_document: 20,
}


# --- rows in the shapes of CORE's tasks -------------------------------------------------------------------------------


def core_rows(kind: CoreKind, seed: int, count: int) -> list[CoreRow]:
    """Rows as the CORE bundle has them, made of facts in statements that no document uses.

    multiple_choice: {query, choices, gold}; schema: {context_options, continuation, gold};
    language_modeling: {context, continuation}. At most one row per fact and held-out statement.
    """
    generator = random.Random(f"core-{kind}-{seed}")
    pairs = [(relation, s, t) for relation, s in facts() for t in relation.held_out_statements]
    make = {"multiple_choice": _choice_row, "schema": _schema_row, "language_modeling": _continuation_row}[kind]
    return [make(generator, *pair) for pair in generator.sample(pairs, min(count, len(pairs)))]


def _halves(relation: Relation, subject: str, template: str, value: str = "") -> tuple[str, str]:
    """A held-out statement up to its value, and from the value on."""
    cut = max(template.find("{v}"), template.find("{b}"))
    return relation.fill(template[:cut], subject).rstrip(), relation.fill(template[cut:], subject, value)


def _choice_row(generator: random.Random, relation: Relation, subject: str, template: str) -> CoreRow:
    query, right = _halves(relation, subject, template)
    wrong = generator.sample(relation.other_values(subject), 3)
    choices = [right, *(_halves(relation, subject, template, value)[1] for value in wrong)]
    generator.shuffle(choices)
    return {"query": query, "choices": choices, "gold": choices.index(right)}


def _schema_row(generator: random.Random, relation: Relation, subject: str, template: str) -> CoreRow:
    other = generator.choice([s for s, value in relation.facts.items() if value != relation.facts[subject]])
    right, continuation = _halves(relation, subject, template)
    contexts = [right, _halves(relation, other, template)[0]]
    generator.shuffle(contexts)
    return {"context_options": contexts, "continuation": continuation, "gold": contexts.index(right)}


def _continuation_row(generator: random.Random, relation: Relation, subject: str, template: str) -> CoreRow:
    context, continuation = _halves(relation, subject, template)
    return {"context": context, "continuation": continuation.rstrip(".")}


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """How much of the world to write."""

    megabytes: float = 8.0
    """How much text to write, in millions of bytes."""
    seed: int = 42
    """Another seed tells the same world in other words."""
    dry_run: bool = False
    """Say what would be written, and end."""


def main(config: Config) -> None:
    """Write the documents as the shards of the source "tinyworld"."""
    if not 0.01 <= config.megabytes <= 1000:
        raise UserError(f"--megabytes is {config.megabytes:g}, allowed are 0.01 to 1000")
    print(f"tinyworld: {len(facts())} facts, {config.megabytes:g} MB of documents, seed {config.seed}")
    if config.dry_run:
        return
    with progress(total=round(config.megabytes * 1e6), label="tinyworld", unit="B") as bar:

        def counted() -> Iterator[str]:
            for text in documents(config.seed, config.megabytes):
                bar.update(len(text.encode("utf-8")))
                yield text

        shards = dataset.write_shards(counted(), SOURCE)
    print(f"{len(shards)} shards in {shards[0].parent}")


if __name__ == "__main__":
    command.run(main, Config)
