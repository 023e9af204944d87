"""TinyMath: sums in digits, in words and in little stories, solved by one call of the tool, in GSM8K's answer format.

The test asks for sums that no training text contains; its first problem is the README's "What is 137 * 46?".

Lesson: lessons/23_reinforcement
"""

from tasks.common import Conversation
from tasks.tinyworld import WorldTask, ends_in_the_number


class TinyMath(WorldTask):
    """Sums with the tool, judged by the number behind `####`."""

    kinds = ("math",)

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the completion gives the right number."""
        return ends_in_the_number(problem, completion)
