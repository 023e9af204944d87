"""TinyFacts: questions of fact about the small world; the test asks in phrasings that training never uses.

The four choices are whole replies in the assistant's own style, so their text can be scored by its mean loss: the
right sentence, the same sentence with two wrong values, and the true sentence about another subject. Knowing how to
repeat the subject leaves three, knowing the facts without reading the question leaves two; chance is 25 %.
"""

from nanochat.tinyworld_chats import conversation
from nanochat.tinyworld_facts import Split, facts
from tasks.common import Conversation, EvalType, Task

TRAIN_EXAMPLES = 8000


class TinyFacts(Task):
    """Questions of fact with four replies to choose from; every fact of the world once in the test."""

    def __init__(self, split: Split = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.split = split

    @property
    def eval_type(self) -> EvalType:
        """The model picks the reply that it finds likeliest."""
        return "categorical"

    def num_examples(self) -> int:
        """How many questions the split has."""
        return TRAIN_EXAMPLES if self.split == "train" else len(facts())

    def get_example(self, index: int) -> Conversation:
        """The question at `index` with its reply and `choices`."""
        return conversation(self.split, "facts", index)
