"""The tasks by name. One line adds your own: `"MyTask": "tasks.mytask:MyTask",`."""

import importlib
import inspect

from nanochat.command import UserError
from tasks.common import Task

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


def load_task(name: str, split: str = "test") -> Task:
    """The task called `name`, on `split` ("train" or "test") where the class takes one. Raises UserError."""
    lookup = {known.lower(): known for known in REGISTRY}
    if name.lower() not in lookup:
        raise UserError(f"no task is called {name!r}; known are {', '.join(REGISTRY)} (see tasks/__init__.py)")
    module, _, attribute = REGISTRY[lookup[name.lower()]].partition(":")
    task_class = getattr(importlib.import_module(module), attribute)
    takes_split = "split" in inspect.signature(task_class).parameters
    return task_class(split=split) if takes_split else task_class()
