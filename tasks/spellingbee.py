"""SpellingBee: how often a letter occurs in a word, counted by the tool: `'strawberry'.count('r')`.

The test asks in phrasings, and for pairs of word and letter, that no training text contains; in half of its words no
training text counts letters at all (such a word is only spelled or put in quotes). Its first problem is strawberry's r.
"""

from nanochat.tinyworld_chats import conversation
from nanochat.tinyworld_facts import Split
from tasks.common import Conversation, Task
from tasks.tinymath import final_number

TRAIN_EXAMPLES = 8000
TEST_EXAMPLES = 400


class SpellingBee(Task):
    """Letter counts with the tool, judged by the number after the last `####`."""

    def __init__(self, split: Split = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.split = split

    def num_examples(self) -> int:
        """How many words and letters the split asks for."""
        return TRAIN_EXAMPLES if self.split == "train" else TEST_EXAMPLES

    def get_example(self, index: int) -> Conversation:
        """The letter count at `index`, solved."""
        return conversation(self.split, "spelling", index)

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the completion ends in the right count."""
        number = final_number(completion)
        return number is not None and number == final_number(problem.answer)
