"""The tasks by name. One line adds your own: `"MyTask": "tasks.mytask:MyTask",`."""

import importlib
import inspect
from collections.abc import Sequence

from nanochat.command import UserError
from tasks.common import Task, TaskMixture, TaskSequence

REGISTRY = {
    "ARC-Easy": "tasks.arc:ARCEasy",
    "ARC-Challenge": "tasks.arc:ARCChallenge",
    "MMLU": "tasks.mmlu:MMLU",
    "GSM8K": "tasks.gsm8k:GSM8K",
    "HumanEval": "tasks.humaneval:HumanEval",
    "SmolTalk": "tasks.smoltalk:SmolTalk",
    "TinyFacts": "tasks.tinyfacts:TinyFacts",
    "TinyMath": "tasks.tinymath:TinyMath",
    "TinyChat": "tasks.tinychat:TinyChat",
    "SpellingBee": "tasks.spellingbee:SpellingBee",
}


def load_task(name: str, split: str = "test", unsafe_exec: bool = False) -> Task:
    """The task called `name`; `split` ("train" or "test") and `unsafe_exec` go to classes that take them.

    Raises UserError for a name that is not in the registry.
    """
    lookup = {known.lower(): known for known in REGISTRY}
    if name.lower() not in lookup:
        raise UserError(f"no task is called {name!r}; known are {', '.join(REGISTRY)} (see tasks/__init__.py)")
    module, _, attribute = REGISTRY[lookup[name.lower()]].partition(":")
    task_class = getattr(importlib.import_module(module), attribute)
    taken = inspect.signature(task_class).parameters
    given = {"split": split, "unsafe_exec": unsafe_exec}
    task: Task = task_class(**{key: value for key, value in given.items() if key in taken})
    return task


def load_mixture(specs: Sequence[str], split: str, files: Sequence[str] = (), seed: int = 42) -> TaskMixture:
    """Tasks and files of own conversations, shuffled together. Raises UserError.

    A spec is a task's name, `SmolTalk`, or a name with the most problems to take from it, `SmolTalk:10000`.
    """
    parts: list[Task] = []
    for spec in specs:
        name, colon, count = spec.partition(":")
        if colon and not (count.isdigit() and int(count) > 0):
            raise UserError(f"{spec!r} is no task with a count; write {name}:1000, or {name} for all of it")
        task = load_task(name, split)
        parts.append(TaskSequence([task], stop=int(count)) if colon else task)
    if files:
        from tasks.customjson import CustomJSON

        parts += [CustomJSON(path) for path in files]
    mixture = TaskMixture(parts, seed)
    if not len(mixture):
        raise UserError(f"there is no conversation in {', '.join([*specs, *files]) or 'an empty list of tasks'}")
    return mixture
