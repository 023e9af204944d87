"""MMLU: questions from 57 subjects (Hendrycks et al. 2020, arXiv:2009.03300), `cais/mmlu`.

Lesson: lessons/19_validation
"""

from typing import TypedDict, cast

from nanochat.command import UserError
from nanochat.conversation import Conversation
from tasks.hub import HubRows, hub_file
from tasks.multiple_choice import MultipleChoice, multiple_choice

SPLITS = ("train", "validation", "dev", "test")


class _Row(TypedDict):
    question: str
    choices: list[str]
    answer: int


class MMLU(MultipleChoice):
    """All subjects together. "train" is the auxiliary set, questions of other benchmarks put in the same form."""

    def __init__(self, split: str = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        if split not in SPLITS:
            raise UserError(f"MMLU has no split {split!r}, allowed are {', '.join(SPLITS)}")
        # The hub's auxiliary set wraps each row in one more struct, called "train".
        self.wrapped = split == "train"
        subset = "auxiliary_train" if self.wrapped else "all"
        columns = ["train"] if self.wrapped else ["question", "choices", "answer"]
        self.rows = HubRows([hub_file("cais/mmlu", f"{subset}/{split}-00000-of-00001.parquet")], columns)

    def num_examples(self) -> int:
        """Questions in the split."""
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        """The question at `index`."""
        row = cast(_Row, self.rows[index]["train"] if self.wrapped else self.rows[index])
        return multiple_choice(row["question"], row["choices"], row["answer"])
