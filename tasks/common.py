"""What a task is: problems as conversations, and a judge. Views, mixtures and sequences of tasks.

The least that a task of your own defines is `eval_type`, `num_examples`, `get_example` and `evaluate`;
`Task.__init__` need not be called.

Lesson: lessons/21_conversations
"""

import random
from collections.abc import Iterator, Sequence
from typing import Literal

from nanochat.conversation import Conversation, Message, Part

__all__ = ["Conversation", "Message", "Part", "Task", "TaskMixture", "TaskSequence"]

EvalType = Literal["generative", "categorical"]


class Task:
    """A list of problems, each a conversation that ends with the right answer.

    `Task(start, stop, step)` is the view of the problems that `range(start, stop, step)` picks.
    A "generative" task lets the model write and judges the text; in a "categorical" one the model
    picks the choice (`Conversation.choices`) that it finds likeliest.
    """

    start: int = 0
    stop: int | None = None
    step: int = 1

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1):
        if start < 0 or step < 1 or (stop is not None and stop < start):
            raise ValueError(f"a view needs 0 <= start <= stop and step >= 1, got {start}, {stop}, {step}")
        self.start, self.stop, self.step = start, stop, step

    @property
    def eval_type(self) -> EvalType:
        """How `chat_eval` puts the problem to the model."""
        return "generative"

    def num_examples(self) -> int:
        """How many problems there are, before the view."""
        raise ValueError(f"{type(self).__name__} does not define num_examples()")

    def get_example(self, index: int) -> Conversation:
        """The problem at `index`, before the view."""
        raise ValueError(f"{type(self).__name__} does not define get_example(index)")

    def evaluate(self, problem: Conversation, completion: str) -> bool | float:
        """Whether the completion (what the assistant said, or the choice it picked) is right, or a score in [0, 1]."""
        return completion.strip() == problem.answer.strip()

    def reward(self, problem: Conversation, completion: str) -> float:
        """The reward of a completion in reinforcement learning."""
        return float(self.evaluate(problem, completion))

    def _indices(self) -> range:
        count = self.num_examples()
        return range(self.start, count if self.stop is None else min(self.stop, count), self.step)

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> Conversation:
        indices = self._indices()
        if not -len(indices) <= index < len(indices):
            raise IndexError(f"problem {index} of {len(indices)}")
        return self.get_example(indices[index])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))


class TaskMixture(Task):
    """Several tasks shuffled together, the same way for the same seed; a task named twice counts twice."""

    def __init__(self, tasks: Sequence[Task], seed: int = 42):
        super().__init__()
        self.tasks = list(tasks)
        self._order = [(t, i) for t, task in enumerate(self.tasks) for i in range(len(task))]
        random.Random(seed).shuffle(self._order)

    def num_examples(self) -> int:
        """The sum of all tasks' lengths."""
        return len(self._order)

    def get_example(self, index: int) -> Conversation:
        """The problem at `index` of the shuffled order."""
        task, position = self._order[index]
        return self.tasks[task][position]


class TaskSequence(Task):
    """Several tasks one after another: a curriculum."""

    def __init__(self, tasks: Sequence[Task], start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        self.tasks = list(tasks)

    def num_examples(self) -> int:
        """The sum of all tasks' lengths."""
        return sum(len(task) for task in self.tasks)

    def get_example(self, index: int) -> Conversation:
        """The problem at `index`, counted through the tasks in order."""
        for task in self.tasks:
            if index < len(task):
                return task[index]
            index -= len(task)
        raise IndexError(f"problem {index} lies behind the last task")
