"""Scores of tasks: choices by likelihood against one row at a time, completions judged by a task of a user's own."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, tiny_model, tiny_tokenizer
from two_ranks import Numbers, results

from nanochat.chat_format import render_prompt
from nanochat.command import UserError
from nanochat.conversation import Part
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.report import wilson
from nanochat.task_eval import complete, evaluate_task, fitting_prompt, mean_losses, pick_choices, said
from tasks.common import Conversation, Message, Task

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(sequence_len=32, n_layer=1)


@torch.no_grad()
def slow_loss(model: GPT, ids: list[int], start: int) -> float:
    """One row alone, what does not fit cut off at its left."""
    while len(ids) > model.config.sequence_len + 1:
        ids, start = ids[1:], start - 1
    start = max(start, 1)
    log_probabilities = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    losses = [-float(log_probabilities[position - 1, ids[position]]) for position in range(start, len(ids))]
    return sum(losses) / len(losses)


rows_of_ids = st.lists(st.tuples(st.integers(2, 70), st.integers(1, 70), st.integers(0, 9)), min_size=1, max_size=8)


@given(rows_of_ids, st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_mean_losses_are_those_of_each_row_alone_in_the_order_given(
    given_rows: list[tuple[int, int, int]], batch_size: int
) -> None:
    """Rows of up to 70 ids in a context of 32: some start in what is cut off."""
    rows = []
    for length, start, seed in given_rows:
        ids = torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        rows.append((ids, min(start, length - 1)))
    found = mean_losses(MODEL, rows, batch_size)
    assert found == pytest.approx([slow_loss(MODEL, ids, start) for ids, start in rows], rel=1e-4)


def question(text: str, choices: Sequence[str] = (), answer: str = "") -> Conversation:
    return Conversation([Message("user", text), Message("assistant", answer)], list(choices))


def test_the_choice_with_the_lowest_mean_loss_is_picked() -> None:
    words = ("red", "a very light blue", "blue", "north", "x", "nowhere at all", "1", "seven of nine")
    problems = [question(f"Which, {n}?", [words[(n * m) % 8] for m in range(1, 2 + n % 4)]) for n in range(1, 25)]
    expected = []
    for problem in problems:
        prompt = render_prompt(problem, TOKENIZER)
        losses = [slow_loss(MODEL, prompt + TOKENIZER.encode(choice), len(prompt)) for choice in problem.choices]
        expected.append(losses.index(min(losses)))
    assert pick_choices(MODEL, TOKENIZER, problems) == expected
    assert len(set(expected)) > 2


def test_an_empty_choice_is_never_picked() -> None:
    """It has no token to lose on: its mean loss used to be 0, the best of all."""
    assert pick_choices(MODEL, TOKENIZER, [question("Which?", ["", "right", ""])]) == [1]
    assert mean_losses(MODEL, [([1, 2, 3], 3)]) == [float("inf")]


def test_a_categorical_problem_without_choices_is_named() -> None:
    with pytest.raises(UserError, match="needs choices; this one has none: 'What is it\\?'"):
        pick_choices(MODEL, TOKENIZER, [question("What is it?")])


# --- completions --------------------------------------------------------------------------------------------------


class Saying:
    """In an engine's place: answers each prompt with the parts that the table has for its question, in turn."""

    tokenizer = TOKENIZER

    def __init__(self, table: dict[str, list[list[Part]]], context_len: int = 1000):
        self.table, self.context_len = table, context_len
        self.asked: list[dict[str, object]] = []

    def generate_batch(
        self, prompts: Sequence[list[int]], num_samples: int, max_tokens: int, temperature: float, top_k: int, seed: int
    ) -> list[tuple[list[int], list[int]]]:
        self.asked.append(
            {
                "prompts": len(prompts),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_k": top_k,
                "seed": seed,
            }
        )
        results = []
        for prompt in prompts:
            assert len(prompt) < self.context_len
            known = [text for text in self.table if text in TOKENIZER.decode(prompt)]
            for sample in range(num_samples):
                parts = self.table[known[0]][sample % len(self.table[known[0]])] if known else [Part("text", "?")]
                ids: list[int] = []
                for part in parts:
                    marks = {"python": ("<|python_start|>", "<|python_end|>")}
                    marks["python_output"] = ("<|output_start|>", "<|output_end|>")
                    body = TOKENIZER.encode(part.text)
                    around = [TOKENIZER.encode_special(name) for name in marks.get(part.type, ())]
                    ids += [*around[:1], *body, *around[1:]]
                ids.append(TOKENIZER.encode_special("<|assistant_end|>"))
                results.append((ids, [1] * len(ids)))
        return results


def text(*texts: str) -> list[list[Part]]:
    return [[Part("text", each)] for each in texts]


class Capitals:
    """A user's own task: no base class, no call of one, these methods and nothing more."""

    known = (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"))
    eval_type = "generative"

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int) -> Conversation:
        country, capital = self.known[index]
        return Conversation(
            [Message(role="user", content=f"Capital of {country}?"), Message(role="assistant", content=capital)]
        )

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        return completion.strip() == problem.answer.strip()


class MyTask(Task):
    """The shape of the README: a subclass that never calls super().__init__()."""

    def __init__(self) -> None:
        self.rows = [("2+2", "4"), ("3+3", "6")]

    @property
    def eval_type(self) -> str:  # type: ignore[override]
        return "generative"

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        asked, answer = self.rows[index]
        return Conversation([Message(role="user", content=asked), Message(role="assistant", content=answer)])

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        return completion.strip() == problem.answer.strip()


def test_a_users_own_task_is_scored_with_count_and_interval() -> None:
    engine = Saying({"France": text(" Paris\n"), "Italy": text("Milan"), "Spain": text("Madrid")})
    score = evaluate_task(Capitals(), "Capitals", "sft", engine, CPU, batch_size=2)  # type: ignore[arg-type]
    assert (score.task, score.stage, score.count) == ("Capitals", "sft", 3)
    assert score.value == pytest.approx(2 / 3)
    assert (score.low, score.high) == wilson(2, 3)
    subclass = Saying({"2+2": text("4"), "3+3": text("7")})
    assert evaluate_task(MyTask(), "MyTask", "sft", subclass, CPU).value == 0.5  # type: ignore[arg-type]


def test_what_the_tool_was_asked_and_answered_is_no_part_of_the_completion() -> None:
    spoken = [Part("text", "Pa"), Part("python", "1+1"), Part("python_output", "2"), Part("text", "ris")]
    engine = Saying({"France": [spoken]})
    assert complete(engine, [Capitals()[0]], 1, 9, 0.0, None, 1) == [["Paris"]]  # type: ignore[arg-type]
    assert said([*TOKENIZER.encode("Rome"), TOKENIZER.encode_special("<|assistant_end|>"), 65], TOKENIZER) == "Rome"


def test_several_samples_count_with_their_mean_and_as_one_problem() -> None:
    engine = Saying({"France": text("Paris", "Lyon"), "Italy": text("Rome"), "Spain": text("a", "b", "c", "Madrid")})
    score = evaluate_task(Capitals(), "C", "sft", engine, CPU, num_samples=4)  # type: ignore[arg-type]
    assert score.value == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert score.count == 3


def test_problems_come_in_batches_each_with_a_seed_and_progress_of_its_own() -> None:
    engine, told = Saying({}), []
    evaluate_task(
        Capitals(), "C", "sft", engine, CPU, batch_size=2, max_tokens=7, temperature=0.5, top_k=3, seed=10,
        on_progress=told.append,
    )  # type: ignore[arg-type]  # fmt: skip
    common = {"max_tokens": 7, "temperature": 0.5, "top_k": 3}
    assert engine.asked == [{"prompts": 2, "seed": 10, **common}, {"prompts": 1, "seed": 12, **common}]
    assert told == [2, 1]
    engine.asked.clear()
    assert evaluate_task(Capitals(), "C", "sft", engine, CPU, max_problems=2).count == 2  # type: ignore[arg-type]
    assert evaluate_task(Capitals(), "C", "sft", engine, CPU, max_problems=99).count == 3  # type: ignore[arg-type]


def test_a_task_without_a_problem_is_told() -> None:
    for empty in (0, -1):
        with pytest.raises(UserError, match="the task C has no problem to evaluate"):
            evaluate_task(Capitals(), "C", "sft", Saying({}), CPU, max_problems=empty)  # type: ignore[arg-type]


class Colours(Capitals):
    """Categorical: the right choice is the one that the model picks, but for the last."""

    eval_type = "categorical"

    def __getitem__(self, index: int) -> Conversation:
        choices = ["red", "green", "blue", "red", "green"][index : index + 3]  # the same in other orders
        problem = question(f"Colour {index}?", choices)
        [picked] = pick_choices(MODEL, TOKENIZER, [problem])
        answer = choices[picked if index < 2 else (picked + 1) % 3]
        return question(f"Colour {index}?", choices, answer)


def test_a_categorical_task_is_judged_by_the_text_of_the_choice_picked() -> None:
    score = evaluate_task(Colours(), "Colours", "base", Engine(MODEL, TOKENIZER), CPU)
    assert (score.value, score.count) == (pytest.approx(2 / 3), 3)


def test_one_problem_that_is_too_long_does_not_stop_the_others() -> None:
    """It used to end the whole evaluation with ContextOverflow; now its end is kept, and room for an answer."""
    engine = Engine(MODEL, TOKENIZER)  # a context of 32
    long = question("word " * 100 + "last?")
    whole = render_prompt(long, TOKENIZER)
    for max_tokens, kept in ((10, 22), (500, 16), (1, 31)):
        prompt = fitting_prompt(long, engine, max_tokens)
        assert prompt == [whole[0], *whole[-(kept - 1) :]]
    short = question("Hi?")
    assert fitting_prompt(short, engine, 500) == render_prompt(short, TOKENIZER)
    assert [len(answers) for answers in complete(engine, [long, short], 2, 500, 1.0, None, 1)] == [2, 2]


def test_two_ranks_share_the_problems_and_agree_on_the_score() -> None:
    engine = Engine(tiny_model(n_layer=1), TOKENIZER)
    expected = evaluate_task(Numbers(), "N", "sft", engine, CPU, max_tokens=2)
    assert expected.value == (0 + 1 + 2 + 3 + 4) / 4 / 5
    assert [found["score"] for found in results()] == [expected, expected]
