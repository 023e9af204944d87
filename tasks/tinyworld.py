"""What the tasks of the small world share: conversations made from (split, kind, index) alone, some kinds in turn."""

from nanochat.tinyworld_chats import Kind, conversation
from nanochat.tinyworld_facts import Split
from tasks.common import Conversation, Task
from tasks.gsm8k import final_number

TRAIN_EXAMPLES = 8000
TEST_EXAMPLES = 400


class WorldTask(Task):
    """Conversations whose kind at `index` is `kinds[index % len(kinds)]`."""

    kinds: tuple[Kind, ...] = ()

    def __init__(self, split: Split = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.split = split

    def num_examples(self) -> int:
        """How many conversations the split has."""
        return TRAIN_EXAMPLES if self.split == "train" else TEST_EXAMPLES

    def get_example(self, index: int) -> Conversation:
        """The conversation at `index`."""
        return conversation(self.split, self.kinds[index % len(self.kinds)], index)


def ends_in_the_number(problem: Conversation, completion: str) -> bool:
    """Whether the number behind `####` is there and the one of the problem's answer."""
    number = final_number(completion)
    return number is not None and number == final_number(problem.answer)
