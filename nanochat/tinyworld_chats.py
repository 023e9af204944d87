"""Conversations of the small world, each made from (split, kind, index) alone: facts, sums, letters, talk.

The assistant answers in one canonical form each, so that a small model can learn it. Documents are in `tinyworld`.

Lesson: lessons/21_conversations
"""

import random
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from nanochat.conversation import Conversation, Message, Part
from nanochat.tinyworld_facts import Relation, Split, facts, invented_name, load, relations, words
from nanochat.tinyworld_problems import Problem, demo_letter, demo_sum, letter_problem, sum_problem
from nanochat.tinyworld_stories import tell

Kind = Literal["facts", "math", "spelling", "quote", "talk", "multi", "unknown", "story"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Turn = tuple[str, str | list[Part]]


def conversation(split: Split, kind: Kind, index: int, seed: int = 42) -> Conversation:
    """The conversation number `index` of a kind: always the same one for the same arguments."""
    generator = random.Random(f"{split}-{kind}-{seed}-{index}")
    if kind == "facts":
        return _fact_conversation(generator, index, split)
    if split == "test" and index == 0 and kind in ("math", "spelling"):
        return _conversation([solved(demo_sum() if kind == "math" else demo_letter())])
    return _conversation(_TURNS[kind](generator, split))


def conversations(split: Split, kind: Kind, count: int, seed: int = 42) -> Iterator[Conversation]:
    """The first `count` conversations of a kind."""
    return (conversation(split, kind, index, seed) for index in range(count))


def solved(problem: Problem) -> Turn:
    """The question and its answer through the tool, ended by `#### result` as in GSM8K."""
    parts = [
        Part("python", problem.call),
        Part("python_output", problem.output),
        Part("text", f"{problem.spoken}\n#### {problem.output}"),
    ]
    return problem.question, parts


def _conversation(turns: list[Turn]) -> Conversation:
    messages: list[Message] = []
    for question, reply in turns:
        messages += [Message("user", question), Message("assistant", reply)]
    return Conversation(messages)


def _casual(generator: random.Random, question: str, split: Split) -> str:
    """In training, now and then without capitals or without the mark at the end, as people type."""
    if split == "train" and generator.random() < 0.08:
        question = question.lower()
    if split == "train" and generator.random() < 0.08:
        question = question.rstrip(".?!")
    return question


def _fact_conversation(generator: random.Random, index: int, split: Split) -> Conversation:
    """A question of fact with four choices; every fact comes once before one comes twice.

    The choices are the sentences in which the assistant answers: the right one, the same sentence with two wrong
    values, and the true sentence about another subject, which only somebody who reads the question rules out.
    """
    relation, subject = facts()[index % len(facts())]
    chat = _conversation([_fact_turn(generator, relation, subject, split)])
    wrong = generator.sample(relation.other_values(subject), 2)
    other = generator.choice([s for s, value in relation.facts.items() if value != relation.facts[subject]])
    sentences = [chat.answer, *(relation.sentence(subject, value) for value in wrong), relation.sentence(other)]
    chat.choices = generator.sample(sentences, len(sentences))
    return chat


def _fact_turn(generator: random.Random, relation: Relation, subject: str, split: Split) -> Turn:
    question = relation.question(generator, subject, split)
    return _casual(generator, question, split), relation.sentence(subject)


def _talk(generator: random.Random, split: Split, names: tuple[str, ...] = ()) -> list[Turn]:
    """Greetings, thanks, who the assistant is, what it cannot know; `names` picks among the groups."""
    groups = [group for group in load("chat")["group"] if not names or group["name"] in names]
    group = generator.choices(groups, [group.get("weight", len(group["prompts"])) for group in groups])[0]
    prompt = generator.choice(group["prompts"] if split == "train" else group["held_out"])
    return [(_casual(generator, prompt, split), group["reply"])]


def _unknown(generator: random.Random, split: Split) -> list[Turn]:
    """A question about a country or an animal that does not exist."""
    relation = generator.choice([relation for relation in relations() if relation.invented])
    name = invented_name(generator, relation.invented, split)
    question = relation.question(generator, name, "train")
    return [(question, relation.fill("I am sorry, I do not know {n}.", name))]


def _story(generator: random.Random, split: Split) -> list[Turn]:
    """A little story and a question that it answers."""
    story = tell(generator, generator.randint(1, 3))
    question, reply = story.questions(generator)[0]
    return [(f"{story.text} {question}", reply)]


def _quote(generator: random.Random, split: Split) -> list[Turn]:
    """A word to put in quotes, as the tool wants it; words whose letters only the test counts come twice as often.

    A word of one or two tokens is other tokens in quotes, and which ones has to be seen word by word.
    """
    templates = load("problems")["letters"]
    word = generator.choice(words("train") + 2 * words("test"))
    typed = generator.choice((word, word, f'"{word}"', f"'{word}'"))
    prompt = generator.choice(templates["in_quotes" if split == "train" else "held_out_in_quotes"]).format(q=typed)
    return [(prompt, f"'{word}'")]


def _multi(generator: random.Random, split: Split) -> list[Turn]:
    """Two or three questions, the later ones often short ("And of Spain?"), with or without a greeting and thanks."""
    turns: list[Turn] = []
    if generator.random() < 0.3:
        turns += _talk(generator, split, ("greeting", "how_are_you", "name", "ready"))
    style = generator.random()
    if style < 0.6:
        relation = generator.choice(relations())
        first, *later = generator.sample(list(relation.facts), generator.choice((2, 3)))
        turns.append(_fact_turn(generator, relation, first, "train"))
        turns += [(relation.followup(generator, subject), relation.sentence(subject)) for subject in later]
    else:
        if style < 0.8:
            turns.append(_fact_turn(generator, *generator.choice(facts()), "train"))
        turns.append(solved(sum_problem(generator, split)))
        if style > 0.9:
            turns.append(solved(letter_problem(generator, split)))
    if generator.random() < 0.3:
        turns += _talk(generator, split, ("thanks", "goodbye", "praise"))
    return turns


_TURNS: dict[str, Callable[[random.Random, Split], list[Turn]]] = {
    "math": lambda generator, split: [solved(sum_problem(generator, split))],
    "spelling": lambda generator, split: [solved(letter_problem(generator, split))],
    "quote": _quote,
    "talk": _talk,
    "multi": _multi,
    "unknown": _unknown,
    "story": _story,
}
