"""Questions with lettered choices, put so that a small model can answer with the letter. Shared by ARC and MMLU.

Lesson: lessons/19_validation
"""

from collections.abc import Sequence

from nanochat.conversation import Conversation, Message
from tasks.common import EvalType, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class MultipleChoice(Task):
    """A categorical task whose choices are the letters that stand in the question."""

    @property
    def eval_type(self) -> EvalType:
        """The likeliest of the letters counts."""
        return "categorical"


def multiple_choice(question: str, choices: Sequence[str], answer: int) -> Conversation:
    """The problem with letters for its choices, answered by the letter of the choice at `answer`.

    A letter stands on a line of its own below its choice, for two reasons. The split pattern never joins a letter with
    a line break, so it has the same id there as in the answer, which a letter in `(A)`, `=A` or after a blank has not:
    the model has only to copy. And a causal model has read the choice when it comes to the letter, so one look back
    at the letters finds both what the choice says and what to write.
    """
    assert 0 <= answer < len(choices) <= len(LETTERS), (answer, len(choices))
    letters = list(LETTERS[: len(choices)])
    lines = [line for choice, letter in zip(choices, letters, strict=True) for line in (choice.strip(), letter)]
    prompt = "\n".join([question.strip(), "", *lines, "", "Answer with the letter below the right choice."])
    return Conversation([Message("user", prompt), Message("assistant", letters[answer])], choices=letters)
