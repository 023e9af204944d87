"""GSM8K: word problems for schools (Cobbe et al. 2021, arXiv:2110.14168), `openai/gsm8k`.

Its answers carry marks as in `48/2 = <<48/2=24>>24 clips` and end with `#### 72`. The marks become calls of the
calculator; the number behind `####` is what counts.

Lesson: lessons/22_tools
"""

import re

from nanochat.calculator import use_calculator
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from tasks.common import Task
from tasks.hub import HubRows, hub_file

SPLITS = ("train", "test")
_MARK = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
_NUMBER = re.compile(r"####\s*\$?\s*(-?)\$?([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")


class GSM8K(Task):
    """Problems with worked answers that use the calculator."""

    def __init__(self, split: str = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        if split not in SPLITS:
            raise UserError(f"GSM8K has no split {split!r}, allowed are {', '.join(SPLITS)}")
        self.rows = HubRows([hub_file("openai/gsm8k", f"main/{split}-00000-of-00001.parquet")], ["question", "answer"])

    def num_examples(self) -> int:
        """Problems in the split."""
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        """The problem at `index`; the answer as parts."""
        row = self.rows[index]
        return Conversation(
            [Message("user", str(row["question"])), Message("assistant", answer_parts(str(row["answer"])))]
        )

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the number behind `####` is the right one; no such number is wrong."""
        right = final_number(problem.answer)
        assert right is not None, problem.answer
        return final_number(completion) == right


def answer_parts(answer: str) -> list[Part]:
    """The answer with every `<<expression=result>>` as a tool call and its output.

    The output is spelled as our calculator spells it where both mean the same number (`16` for `16.00`), since that is
    what the model will be given; where the data rounds, the data's own result stays, which the text goes on with.
    """
    parts: list[Part] = []
    position = 0
    for mark in _MARK.finditer(answer):
        parts.append(Part("text", answer[position : mark.start()]))
        expression, written = mark[1].strip(), mark[2].strip()
        computed, meant = use_calculator(expression), use_calculator(written)
        result = computed if computed is not None and computed == meant else written
        parts += [Part("python", expression), Part("python_output", result)]
        position = mark.end()
    parts.append(Part("text", answer[position:]))
    return [part for part in parts if part.text]


def final_number(text: str) -> float | None:
    """The first number behind `####`, commas and a dollar sign left out; None without one."""
    match = _NUMBER.search(text)
    return float(match[1] + match[2].replace(",", "")) if match else None
