"""TinyFacts: questions of fact about the small world; the test asks in phrasings that training never uses.

The four choices are whole replies in the assistant's own style, so their text can be scored by its mean loss: the
right sentence, the same sentence with two wrong values, and the true sentence about another subject. Knowing how to
repeat the subject leaves three, knowing the facts without reading the question leaves two; chance is 25 %.

Lesson: lessons/21_conversations
"""

from nanochat.tinyworld_facts import facts
from tasks.common import EvalType
from tasks.tinyworld import WorldTask


class TinyFacts(WorldTask):
    """Questions of fact with four replies to choose from; every fact of the world once in the test."""

    kinds = ("facts",)

    @property
    def eval_type(self) -> EvalType:
        """The model picks the reply that it finds likeliest."""
        return "categorical"

    def num_examples(self) -> int:
        """How many questions the split has."""
        return super().num_examples() if self.split == "train" else len(facts())
