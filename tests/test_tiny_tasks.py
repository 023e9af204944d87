"""The four tasks of the small world: sizes, judges, and the problems that everybody tries first."""

import pytest

from nanochat.conversation import Conversation, Message, validate
from tasks import load_task
from tasks.spellingbee import SpellingBee
from tasks.tinychat import TinyChat
from tasks.tinyfacts import TinyFacts
from tasks.tinymath import TinyMath

TASKS = [TinyFacts, TinyMath, SpellingBee, TinyChat]


@pytest.mark.parametrize("task_class", TASKS)
def test_a_task_has_thousands_of_training_and_hundreds_of_test_conversations(task_class):
    train, test = task_class(split="train"), task_class(split="test")
    assert len(train) >= 8000
    assert 200 <= len(test) <= 500
    for chat in (train[0], train[7999], test[len(test) - 1]):
        validate(chat)
        assert chat.messages[-1].role == "assistant"
    first = {str(train[index].to_dict()) for index in range(2000)}
    assert len(first) > (1100 if task_class is TinyChat else 1700), "few conversations are said twice"


@pytest.mark.parametrize("task_class", TASKS)
def test_the_right_answer_is_judged_right_and_another_wrong(task_class):
    task = task_class(split="test")
    for index in range(0, len(task), 7):
        problem = task[index]
        assert task.evaluate(problem, problem.answer)
        assert task.reward(problem, problem.answer) == 1.0
        assert not task.evaluate(problem, "I do not know.")
        assert task.reward(problem, "#### 123456789") == 0.0


def test_a_view_of_a_task_picks_its_problems():
    whole, view = TinyMath(split="test"), TinyMath(split="test", start=10, stop=20, step=3)
    assert [c.to_dict() for c in view] == [whole[index].to_dict() for index in (10, 13, 16, 19)]


def test_the_tasks_are_found_by_name_on_the_split_asked_for():
    for name, task_class in (("TinyFacts", TinyFacts), ("tinymath", TinyMath), ("SpellingBee", SpellingBee)):
        task = load_task(name, split="train")
        assert isinstance(task, task_class)
        assert len(task) >= 8000


def test_facts_offer_four_different_replies_one_of_them_right_at_every_place():
    places = set()
    for split in ("train", "test"):
        for chat in TinyFacts(split=split, stop=300):
            assert len(set(chat.choices)) == 4
            places.add(chat.choices.index(chat.answer))
    assert places == {0, 1, 2, 3}
    assert TinyFacts().eval_type == "categorical"
    assert TinyMath().eval_type == "generative"


def test_the_test_of_facts_asks_for_every_fact_once():
    assert len({chat.answer for chat in TinyFacts(split="test")}) == len(TinyFacts(split="test"))


def test_the_first_test_problems_are_those_that_everybody_tries():
    product, letter = TinyMath(split="test")[0], SpellingBee(split="test")[0]
    assert product.messages[0].text == "What is 137 * 46?"
    assert [part.text for part in product.messages[1].parts] == ["137*46", "6302", "137 * 46 = 6302\n#### 6302"]
    assert "strawberry" in letter.messages[0].text
    assert [part.text for part in letter.messages[1].parts][:2] == ["'strawberry'.count('r')", "3"]


def test_a_reply_without_a_number_is_wrong_even_where_the_problem_has_none():
    task = TinyMath(split="test")
    assert not task.evaluate(Conversation([Message("user", "?"), Message("assistant", "?")]), "no number")
