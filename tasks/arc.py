"""ARC: science questions for schools (Clark et al. 2018, arXiv:1803.05457), `allenai/ai2_arc`.

Lesson: lessons/19_validation
"""

from typing import Literal, TypedDict, cast, get_args

from nanochat.command import UserError
from nanochat.conversation import Conversation
from tasks.hub import HubRows, hub_file
from tasks.multiple_choice import MultipleChoice, multiple_choice

Subset = Literal["ARC-Easy", "ARC-Challenge"]
SPLITS = ("train", "validation", "test")


class _Choices(TypedDict):
    text: list[str]
    label: list[str]


class _Row(TypedDict):
    question: str
    choices: _Choices
    answerKey: str


class ARC(MultipleChoice):
    """One of the two sets. Choices that the original numbers 1 to 4 get letters like all others."""

    def __init__(self, subset: Subset, split: str = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        if subset not in get_args(Subset):
            raise UserError(f"ARC has no subset {subset!r}, allowed are {', '.join(get_args(Subset))}")
        if split not in SPLITS:
            raise UserError(f"{subset} has no split {split!r}, allowed are {', '.join(SPLITS)}")
        file = hub_file("allenai/ai2_arc", f"{subset}/{split}-00000-of-00001.parquet")
        self.rows = HubRows([file], ["question", "choices", "answerKey"])

    def num_examples(self) -> int:
        """Questions in the split."""
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        """The question at `index`."""
        row = cast(_Row, self.rows[index])
        choices = row["choices"]
        return multiple_choice(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


class ARCEasy(ARC):
    """The questions that simple methods answer."""

    def __init__(self, split: str = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__("ARC-Easy", split, start, stop, step)


class ARCChallenge(ARC):
    """The questions that retrieval and word statistics both got wrong."""

    def __init__(self, split: str = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__("ARC-Challenge", split, start, stop, step)
