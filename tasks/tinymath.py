"""TinyMath: sums in digits, in words and in little stories, solved by one call of the tool, in GSM8K's answer format.

The test asks for sums that no training text contains; its first problem is the README's "What is 137 * 46?".
"""

import re

from nanochat.tinyworld_chats import conversation
from nanochat.tinyworld_facts import Split
from tasks.common import Conversation, Task

TRAIN_EXAMPLES = 8000
TEST_EXAMPLES = 400


def final_number(text: str) -> str | None:
    """The number after the last `####`, without commas; None where there is none."""
    found = re.match(r"\s*(-?[\d,]+)", text.rpartition("####")[2]) if "####" in text else None
    return found[1].replace(",", "") if found else None


class TinyMath(Task):
    """Sums with the tool, judged by the number after the last `####`."""

    def __init__(self, split: Split = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.split = split

    def num_examples(self) -> int:
        """How many sums the split has."""
        return TRAIN_EXAMPLES if self.split == "train" else TEST_EXAMPLES

    def get_example(self, index: int) -> Conversation:
        """The sum at `index`, solved."""
        return conversation(self.split, "math", index)

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the completion ends in the right number."""
        number = final_number(completion)
        return number is not None and number == final_number(problem.answer)
