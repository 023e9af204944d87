"""TinyChat: everything else that one says to an assistant of the small world.

Greetings, who it is, several questions in a row, stories with a question, and what it cannot know. Mainly for training;
the test compares the reply with the one canonical reply.
"""

from nanochat.tinyworld_chats import Kind, conversation
from nanochat.tinyworld_facts import Split
from tasks.common import Conversation, Task

TRAIN_EXAMPLES = 8000
TEST_EXAMPLES = 400
# The kinds take turns; how often a kind stands here is its share.
KINDS: tuple[Kind, ...] = ("talk", "multi", "quote", "story", "multi", "talk", "unknown", "quote", "talk", "multi")


class TinyChat(Task):
    """Talk with one canonical reply each."""

    def __init__(self, split: Split = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.split = split

    def num_examples(self) -> int:
        """How many conversations the split has."""
        return TRAIN_EXAMPLES if self.split == "train" else TEST_EXAMPLES

    def get_example(self, index: int) -> Conversation:
        """The conversation at `index`."""
        return conversation(self.split, KINDS[index % len(KINDS)], index)
