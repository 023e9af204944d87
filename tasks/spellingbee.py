"""SpellingBee: how often a letter occurs in a word, counted by the tool: `'strawberry'.count('r')`.

The test asks in phrasings, and for pairs of word and letter, that no training text contains; in half of its words no
training text counts letters at all (such a word is only spelled or put in quotes). Its first problem is strawberry's r.

Lesson: lessons/22_tools
"""

from tasks.common import Conversation
from tasks.tinyworld import WorldTask, ends_in_the_number


class SpellingBee(WorldTask):
    """Letter counts with the tool, judged by the number behind `####`."""

    kinds = ("spelling",)

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the completion gives the right count."""
        return ends_in_the_number(problem, completion)
