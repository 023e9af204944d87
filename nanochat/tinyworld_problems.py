"""Sums and letter counts: the problems of the small world that the tool solves, and which of them are held out.

A sum is known by its numbers and sign, a letter count by its word and letter; held-out ones occur in no training text.

Lesson: lessons/23_reinforcement
"""

import random
import re
from dataclasses import dataclass
from string import ascii_lowercase

from nanochat.tinyworld_facts import Split, load, share, words

HELD_OUT_SUMS = 0.1
HELD_OUT_LETTERS = 0.1  # of the letters of a training word; a held-out word is held out with every letter
DEMO_SUM = (137, "*", 46)
DEMO_LETTER = ("strawberry", "r")
DIGITS = (1, 2, 3, 4)
DIGIT_WEIGHTS = (2, 5, 4, 2)


@dataclass(frozen=True)
class Problem:
    """A question, the one call of the tool that solves it, what the tool answers, and what is said before `####`."""

    question: str
    call: str
    output: str
    spoken: str


def sum_is_held_out(a: int, sign: str, b: int) -> bool:
    """Whether `a sign b` belongs to the test split; `a + b` and `b + a` belong together, and so do products."""
    if sign in "+*":
        a, b = min(a, b), max(a, b)
    return f"{a}{sign}{b}" == "46*137" or share(f"{a}{sign}{b}") < HELD_OUT_SUMS


def letter_is_held_out(word: str, letter: str) -> bool:
    """Whether counting `letter` in `word` belongs to the test split."""
    return word in words("test") or share(f"{letter} in {word}") < HELD_OUT_LETTERS


def calculate(a: int, sign: str, b: int) -> int:
    """The result of one sum; division is exact."""
    assert sign != "/" or a % b == 0, f"{a} / {b} is not exact"
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]


def steps(expression: str) -> list[tuple[int, str, int]]:
    """The sums of an expression such as `12*5+3`, from left to right: (12, *, 5), (60, +, 3).

    Left to right is right here, since a product only ever comes first.
    """
    first, *rest = re.findall(r"\d+|[-+*/]", expression)
    done, found = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        found.append((done, sign, int(number)))
        done = calculate(done, sign, int(number))
    return found


def neighbours(expression: str) -> list[tuple[int, str, int]]:
    """The sums that the eye can read in an expression: (12, *, 5), (5, +, 3) in `12*5+3`."""
    parts = re.findall(r"\d+|[-+*/]", expression)
    return [(int(parts[i]), parts[i + 1], int(parts[i + 2])) for i in range(0, len(parts) - 2, 2)]


def draw_sum(generator: random.Random, sign: str, split: Split, minus_below_zero: bool = False) -> tuple[int, int]:
    """Two numbers of one to four digits for `sign`, of the split; a quotient is exact."""
    while True:
        digits = generator.choices(DIGITS, DIGIT_WEIGHTS, k=2)
        a, b = (generator.randrange(10 ** (n - 1) if n > 1 else 0, 10**n) for n in digits)
        if sign == "/":
            b = generator.randint(2, 99)
            a = b * generator.randint(1, 9999 // b)
        if sign == "-" and a < b and not minus_below_zero:
            a, b = b, a
        if sum_is_held_out(a, sign, b) == (split == "test"):
            return a, b


def sum_problem(generator: random.Random, split: Split) -> Problem:
    """A sum as people type it, or (one time in four) as a word problem of one or two steps."""
    if generator.random() < 0.25:
        return _story_problem(generator, split)
    data = load("problems")
    sign = generator.choices("+-*/", (3, 3, 3, 1))[0]
    own_words = generator.random() < 0.25
    a, b = draw_sum(generator, sign, split, minus_below_zero=not own_words and generator.random() < 0.15)
    template = generator.choice(data["sums"][sign] if own_words else data["sums"]["any"])
    typed, word = generator.choice(data["signs"][sign]), generator.choice(data["words"][sign])
    if typed == "x":
        template = template.replace("{a}{o}{b}", "{a} {o} {b}")  # 12x7 is read as a word with digits in it
    return _sum(template.format(a=a, b=b, o=typed, w=word), f"{a}{sign}{b}")


def demo_sum() -> Problem:
    """The problem that the README shows; it is held out."""
    a, sign, b = DEMO_SUM
    return _sum(f"What is {a} {sign} {b}?", f"{a}{sign}{b}")


def _sum(question: str, expression: str) -> Problem:
    result = calculate(*steps(expression)[-1])
    spaced = re.sub(r"([-+*/])", r" \1 ", expression)
    return Problem(question, expression, str(result), f"{spaced} = {result}")


def _story_problem(generator: random.Random, split: Split) -> Problem:
    data = load("problems")
    story = generator.choice(data["story"])
    while True:
        a, b, c = generator.randint(2, 99), generator.randint(2, 30), generator.randint(2, 60)
        if story["expression"] == "{a}/{b}":
            a = b * generator.randint(2, 12)
        expression = story["expression"].format(a=a, b=b, c=c)
        first, *later = steps(expression) + neighbours(expression)[1:]
        if sum_is_held_out(*first) != (split == "test") or calculate(*steps(expression)[-1]) < 0:
            continue
        if split == "train" and any(sum_is_held_out(*step) for step in later):
            continue
        person = generator.choice(load("stories")["people"])
        things = generator.choice(data["story_words"]["things"])
        return _sum(generator.choice(story["texts"]).format(a=a, b=b, c=c, x=person, t=things), expression)


def letter_problem(generator: random.Random, split: Split) -> Problem:
    """How often a letter occurs in a word, the word bare or in quotes; one time in seven any letter, maybe absent."""
    data = load("problems")["letters"]
    vocabulary: Split = "test" if split == "test" and generator.random() < 0.5 else "train"
    while True:
        word = generator.choice(words(vocabulary))
        letter = generator.choice(word if generator.random() < 0.85 else ascii_lowercase)
        if letter_is_held_out(word, letter) == (split == "test"):
            break
    template = generator.choice(data["questions"] if split == "train" else data["held_out_questions"])
    return count_letter(word, letter, template.format(r=letter, q=generator.choice(data["quotes"]).format(q=word)))


def demo_letter() -> Problem:
    """The letter count that everybody tries first; it is held out."""
    word, letter = DEMO_LETTER
    template = load("problems")["letters"]["held_out_questions"][0]
    return count_letter(word, letter, template.format(r=letter, q=word))


def count_letter(word: str, letter: str, question: str) -> Problem:
    """The letter count as a problem."""
    count = word.count(letter)
    spoken = f"The letter {letter} occurs {count} {'time' if count == 1 else 'times'}."
    return Problem(question, f"'{word}'.count('{letter}')", str(count), spoken)
