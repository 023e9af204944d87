"""The small world is true to itself, the same for the same seed, and keeps what is held out from training."""

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from string import Formatter

import pytest

from nanochat import dataset, tinyworld
from nanochat.calculator import use_calculator
from nanochat.command import UserError
from nanochat.conversation import Conversation, validate
from nanochat.tinyworld import core_rows, document, documents, in_words
from nanochat.tinyworld_chats import KINDS, conversation, conversations
from nanochat.tinyworld_facts import facts, invented_name, load, relations, words
from nanochat.tinyworld_problems import letter_is_held_out, steps, sum_is_held_out
from nanochat.tinyworld_stories import tell

TRAINED_TASKS = 1500  # training conversations of each kind that the proofs read


@cache
def some_documents() -> tuple[str, ...]:
    return tuple(chain.from_iterable(documents(seed, 0.7) for seed in (1, 42, 7)))


@cache
def training() -> tuple[Conversation, ...]:
    return tuple(chain.from_iterable(conversations("train", kind, TRAINED_TASKS) for kind in KINDS))


def said(chat: Conversation, role: str = "") -> list[str]:
    return ["\n".join(part.text for part in m.parts) for m in chat.messages if not role or m.role == role]


def normalised(text: str) -> str:
    """Lower case, signs of arithmetic as words of their own, other marks gone, one space between words."""
    text = re.sub(r"(?<=[\d ])x(?= \d)", "*", text.lower())
    text = re.sub(r"([-+*/])(?=\s*\d)", r" \1 ", text)
    return " ".join(re.sub(r"[^a-z0-9+*/ -]", " ", text.replace("'", "")).split())


def training_texts() -> Iterator[str]:
    yield from some_documents()
    for chat in training():
        yield from said(chat)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_the_world_has_two_to_four_hundred_facts_and_a_few_more():
    assert 200 <= len(facts()) <= 410
    assert len({(relation.name, subject) for relation, subject in facts()}) == len(facts())


@pytest.mark.parametrize("relation", relations(), ids=lambda relation: relation.name)
def test_every_relation_has_eight_phrasings_each_and_held_out_ones_apart_from_them(relation):
    trained = {relation.reply, *relation.statements, *relation.common_statements}
    asked = {*relation.questions, *relation.common_questions}
    held_out = {*relation.held_out_questions, *relation.common_held_out_questions}
    assert len(trained) >= 8
    assert len(asked) >= 8
    assert len(held_out) >= 3
    assert len(relation.held_out_statements) >= 2
    assert not held_out & asked
    assert not set(relation.held_out_statements) & trained
    assert len(relation.other_values(next(iter(relation.facts)))) >= 3, "four choices need four values"
    for template in trained | set(relation.held_out_statements):
        names = {name.lower() for _, name, _, _ in Formatter().parse(template) if name}
        assert names & {"v", "b", "w"}, f"{template} does not say the value"
        assert names & {"s", "a", "n"}, f"{template} does not say the subject"
    for template in asked | held_out:
        assert not re.search(r"\{[vbwVBW]\}", template), f"{template} gives the answer away"


def test_held_out_phrasings_use_only_words_that_trained_phrasings_use():
    def vocabulary(templates: Iterator[str]) -> set[str]:
        return set(re.findall(r"[a-z]+", re.sub(r"\{\w\}", " ", " ".join(templates)).lower()))

    trained = chain.from_iterable(
        (*r.questions, *r.common_questions, *r.statements, *r.common_statements, r.reply, r.noun) for r in relations()
    )
    asked = chain.from_iterable((*r.held_out_questions, *r.common_held_out_questions) for r in relations())
    assert vocabulary(asked) <= vocabulary(trained)
    letters = load("problems")["letters"]
    assert vocabulary(letters["held_out_questions"]) <= vocabulary(letters["questions"])


def test_opposites_days_months_and_planets_fit_together():
    by_name = {relation.name: relation.facts for relation in relations()}
    opposite, after, before = by_name["opposite"], by_name["day_after"], by_name["day_before"]
    assert all(opposite.get(other, word) == word for word, other in opposite.items())
    assert all(before[next_day] == day for day, next_day in after.items())
    months = list(by_name["month_number"].values())
    assert all(by_name["month_after"][a] == b for a, b in zip(months, months[1:] + months[:1], strict=True))
    planets = list(by_name["planet_number"].values())
    assert all(by_name["planet_after"][a] == b for a, b in pairwise(planets))
    continents = by_name["continent"]
    assert {"France": "Europe", "Japan": "Asia", "Peru": "South America"}.items() <= continents.items()
    assert by_name["capital"]["France"] == "Paris"


def test_documents_never_say_another_value_than_the_fact():
    replies = {}
    for relation, subject in facts():
        prefix = relation.reply.split("{v}")[0] if "{v}" in relation.reply else relation.reply.split("{b}")[0]
        replies[relation.fill(prefix, subject)] = relation.sentence(subject)
    seen = 0
    for line in chain.from_iterable(re.split(r"(?<=[.?]) |\n", text) for text in some_documents()):
        for prefix in (p for p in replies if line.startswith(p)) if line.endswith(".") else ():
            seen += line == replies[prefix]
            assert line == replies[prefix] or replies[prefix].startswith(line), (line, replies[prefix])
    assert seen > 5000


# --- determinism ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_and_another_seed_other_text():
    first, again, other = (list(documents(seed, 0.1)) for seed in (3, 3, 4))
    assert first == again
    assert not set(first) & set(other)
    assert document(3, 5) == first[5]


def test_documents_fill_the_megabytes_asked_for_with_200_to_2000_characters_each():
    texts = list(documents(5, 0.5))
    assert 500_000 <= sum(len(text.encode("utf-8")) for text in texts) < 502_500
    assert all(200 <= len(text) <= 2000 for text in texts), sorted(map(len, texts))[-3:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_conversation_depends_on_split_kind_and_index_alone_and_is_well_formed(kind, split):
    chats = list(conversations(split, kind, 60))
    assert [chat.to_dict() for chat in chats[40:]] == [
        conversation(split, kind, index).to_dict() for index in range(40, 60)
    ]
    for chat in chats:
        validate(chat)
        assert chat.answer
    assert len({str(chat.to_dict()) for chat in chats}) > (10 if split == "test" and kind == "talk" else 35)


# --- right answers ----------------------------------------------------------------------------------------------------


def test_every_sum_in_documents_is_right():
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
    numbers = {in_words(n): n for n in range(1000)}
    seen = {"digits": 0, "words": 0}
    for text in some_documents():
        for expression, result in re.findall(r"^(\d+ ?[-+*/] ?\d+) ?= ?(-?\d+)$", text, re.MULTILINE):
            assert use_calculator(expression) == result
            seen["digits"] += 1
        for a, sign, b, result in re.findall(
            r"^([\w -]+?) (plus|minus|times|divided by) ([\w -]+) is ([\w -]+)\.$", text, re.MULTILINE
        ):
            assert use_calculator(f"{numbers[a.lower()]}{signs[sign]}{numbers[b]}") == str(numbers[result])
            seen["words"] += 1
        for left, word, right in re.findall(r"(\d+) is (more|less) than (\d+)\.", text):
            assert (int(left) > int(right)) == (word == "more")
    assert min(seen.values()) > 100, seen


def test_every_spelling_and_letter_count_in_training_text_is_right():
    seen = {"counts": 0, "letters": 0}
    for text in training_texts():
        for word, letter, count in re.findall(r"'([a-z]+)'\.count\('([a-z])'\) (?:is )?(\d+)", text):
            assert word.count(letter) == int(count)
            seen["counts"] += 1
        for word, length, letters in re.findall(r"'([a-z]+)' has (\d+) letters: ((?:[a-z] ?)+)$", text, re.MULTILINE):
            assert (len(word), " ".join(word)) == (int(length), letters)
            seen["letters"] += 1
        for word, letters in re.findall(r"The word ([a-z]+) is spelled ((?:[a-z] ?)+)\.", text):
            assert " ".join(word) == letters
            seen["letters"] += 1
        for word, first, last in re.findall(r"'([a-z]+)' begins with ([a-z]) and ends with ([a-z])\.", text):
            assert (word[0], word[-1]) == (first, last)
    assert min(seen.values()) > 500, seen


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["math", "spelling", "multi"])
def test_the_calculator_gives_what_the_conversation_says_it_gives(kind, split):
    seen = 0
    for chat in conversations(split, kind, 400):
        for message in chat.messages:
            calls = [part.text for part in message.parts if part.type == "python"]
            outputs = [part.text for part in message.parts if part.type == "python_output"]
            assert [use_calculator(call) for call in calls] == outputs
            if calls:
                assert message.text.endswith(f"\n#### {outputs[-1]}")
                seen += 1
    assert seen > 80


def test_a_story_keeps_its_things_and_people_together():
    """An independent reader follows the sentences and must agree with every answer."""
    asked = 0
    for seed in range(300):
        generator = random.Random(seed)
        story = tell(generator, 6)
        where, holder, lying = _read(story.sentences)
        for question, reply in story.questions(generator):
            name, _, rest = reply.rstrip(".").partition(" ")
            if " has the " in reply:
                assert holder[rest.removeprefix("has the ")] == name
            elif " gave the " in reply:
                assert name in where, question
                assert name != rest.split(" to ")[1]
            elif name == "The":
                thing, place = rest.split(" is in the ")
                assert lying[thing] == place
            else:
                assert where[name] == rest.removeprefix("is in the ")
            asked += 1
    assert asked > 1000


def _read(sentences: list[str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    people, places = load("stories")["people"], load("stories")["places"]
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    lying: dict[str, str] = {}
    for index, sentence in enumerate(sentences):
        named = [word for word in re.findall(r"[A-Z][a-z]+", sentence) if word in people]
        place = next((p for p in places if f"the {p}" in sentence), "")
        thing = re.search(rf"\b(?:an?|the) (\w+ (?:{'|'.join(load('stories')['things'])}))\b", sentence)
        if index == 0:
            where = dict.fromkeys(named, place)
        elif thing and place:
            assert where[named[0]] == place
            assert holder.pop(thing[1]) == named[0]
            lying[thing[1]] = place
        elif (thing and len(named) == 2) or "asks for" in sentence:
            assert thing
            giver, receiver = named[:2] if "asks" not in sentence else (named[1], named[0])
            assert holder[thing[1]] == giver
            assert where[giver] == where[receiver], "a gift needs both in one place"
            holder[thing[1]] = receiver
        elif thing:
            holder[thing[1]] = named[0]
        elif place:
            where[named[0]] = place
    return where, holder, lying


# --- held out ---------------------------------------------------------------------------------------------------------


def test_no_test_question_occurs_in_any_training_conversation_or_document():
    asked = {
        kind: {normalised(said(chat, "user")[0]) for chat in conversations("test", kind, count)}
        for kind, count in (("facts", len(facts())), ("math", 400), ("spelling", 400))
    }
    assert len(asked["facts"]) == len(facts())
    assert min(len(asked["math"]), len(asked["spelling"])) >= 380
    text = " \n ".join(map(normalised, training_texts()))
    for kind, questions in asked.items():
        # Whole words: 12 + 30 does not occur in 12 + 305; a bare sum may still be the tail of a longer one, as 5 in 15.
        found = [q for q in questions if q in text and re.search(rf"(?<!\w){re.escape(q)}(?!\w)", text)]
        assert not found, (kind, found[:5])


def test_all_held_out_phrasings_of_all_facts_stay_out_of_training_text():
    questions = {
        normalised(relation.fill(template, subject))
        for relation, subject in facts()
        for template in (
            *relation.held_out_questions,
            *relation.common_held_out_questions,
            *relation.held_out_statements,
        )
    }
    starts = {" ".join(question.split()[:3]) for question in questions}
    for text in training_texts():
        tokens = normalised(text).split()
        for i in range(len(tokens) - 2):
            if " ".join(tokens[i : i + 3]) in starts:
                for end in range(i + 3, min(len(tokens), i + 16) + 1):
                    assert " ".join(tokens[i:end]) not in questions, " ".join(tokens[i:end])


def test_no_held_out_sum_occurs_in_any_training_text():
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/", "x": "*"}
    numbers = {in_words(n): str(n) for n in range(1000)}
    in_words_pattern = re.compile(r"^([\w -]+?) (plus|minus|times|divided by) ([\w -]+) is ", re.MULTILINE)
    seen = 0
    for text in training_texts():
        found = re.findall(r"(\d+)(?= ?([-+*/]|plus|minus|times|divided by|x) ?(\d+))", text)
        found += [(numbers[a.lower()], sign, numbers[b]) for a, sign, b in in_words_pattern.findall(text)]
        for a, sign, b in found:
            assert not sum_is_held_out(int(a), signs.get(sign, sign), int(b)), f"{a} {sign} {b}"
            seen += 1
    assert seen > 5000


def test_every_step_of_a_training_sum_is_a_training_sum_and_the_first_of_a_test_sum_is_held_out():
    for split in ("train", "test"):
        for chat in conversations(split, "math", 1000):
            call = next(part.text for part in chat.messages[1].parts if part.type == "python")
            held_out = [sum_is_held_out(*step) for step in steps(call)]
            assert held_out[0] == (split == "test"), call
            assert split == "test" or not any(held_out), call


def test_held_out_words_are_counted_in_no_training_text_but_are_seen_in_documents_and_put_in_quotes():
    held_out = set(words("test"))
    assert not held_out & set(words("train"))
    assert 0.15 < len(held_out) / (len(held_out) + len(words("train"))) < 0.25
    quoting = {str(chat.to_dict()) for chat in conversations("train", "quote", TRAINED_TASKS)}
    for chat in training():
        if str(chat.to_dict()) not in quoting:
            for text in said(chat):
                assert not held_out & set(re.findall(r"[a-z]+", text.lower())), text
    text = "\n".join(documents(42, 3))
    assert all(f" {word}" in text and f"\n'{word}'" in text for word in held_out)
    for source in (text, *(t for chat in training() for t in said(chat))):
        for word, letter in re.findall(r"'([a-z]+)'\.count\('([a-z])'\)", source):
            assert not letter_is_held_out(word, letter)


def test_the_questions_of_the_readme_are_held_out_or_trained_as_they_should_be():
    assert sum_is_held_out(137, "*", 46)
    assert sum_is_held_out(46, "*", 137)
    assert letter_is_held_out("strawberry", "r")
    asked = [text for chat in training() for text in said(chat, "user")]
    assert "Who are you?" in asked
    assert "What is the capital of France?" in [
        conversation("train", "facts", index).messages[0].text for index in range(8000)
    ]


def test_invented_names_are_not_names_that_the_world_knows():
    generator = random.Random(1)
    known = {subject.lower() for _, subject in facts()}
    trained = {invented_name(generator, kind, "train") for kind in ("country", "animal") for _ in range(2000)}
    tested = {invented_name(generator, kind, "test") for kind in ("country", "animal") for _ in range(2000)}
    assert not trained & tested
    assert not {name.lower() for name in trained | tested} & known


# --- rows for base_eval, the command ----------------------------------------------------------------------------------


def test_core_rows_have_the_shapes_of_the_bundle_and_one_right_answer():
    choice, schema, model = (core_rows(kind, 1, 200) for kind in ("multiple_choice", "schema", "language_modeling"))
    assert [len(rows) for rows in (choice, schema, model)] == [200, 200, 200]
    true = {
        relation.fill(template, subject) for relation, subject in facts() for template in relation.held_out_statements
    }
    for row in choice:
        assert row.keys() == {"query", "choices", "gold"}
        assert len(set(row["choices"])) == 4
        assert [i for i, c in enumerate(row["choices"]) if f"{row['query']} {c}" in true] == [row["gold"]]
    for row in schema:
        assert row.keys() == {"context_options", "continuation", "gold"}
        right = [i for i, c in enumerate(row["context_options"]) if f"{c} {row['continuation']}" in true]
        assert right == [row["gold"]]
    for row in model:
        assert row.keys() == {"context", "continuation"}
        assert f"{row['context']} {row['continuation']}." in true
    assert {row["gold"] for row in choice} == {0, 1, 2, 3}
    assert core_rows("schema", 1, 5) == core_rows("schema", 1, 5) != core_rows("schema", 2, 5)


def test_the_command_writes_the_source_tinyworld(base_dir: Path, capsys: pytest.CaptureFixture[str]):
    tinyworld.main(tinyworld.Config(megabytes=0.2, seed=3, dry_run=True))
    assert not base_dir.exists()
    tinyworld.main(tinyworld.Config(megabytes=0.2, seed=3))
    kept = [*dataset.iterate_documents("train", "tinyworld"), *dataset.iterate_documents("val", "tinyworld")]
    assert sorted(kept) == sorted(documents(3, 0.2))
    assert "402 facts" in capsys.readouterr().out


def test_an_impossible_size_is_one_sentence():
    with pytest.raises(UserError, match="--megabytes is -1"):
        tinyworld.main(tinyworld.Config(megabytes=-1))
