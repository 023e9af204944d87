"""HumanEval: functions to write, judged by running them (arXiv:2107.03374), `openai/openai_humaneval`.

Lesson: lessons/22_tools
"""

import re
from dataclasses import dataclass
from typing import TypedDict, cast

from nanochat.command import UserError
from nanochat.conversation import Conversation, Message
from nanochat.execution import execute_code
from tasks.common import Task
from tasks.hub import HubRows, hub_file

_FENCE = re.compile(
    r"```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)


class _Row(TypedDict):
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


@dataclass
class Program(Conversation):
    """A problem with what judging it takes: the beginning of the function, its name, and the tests."""

    prompt: str = ""
    entry_point: str = ""
    test: str = ""


class HumanEval(Task):
    """164 problems. `evaluate` runs what the model wrote, and only with `unsafe_exec`."""

    def __init__(
        self, split: str = "test", start: int = 0, stop: int | None = None, step: int = 1, unsafe_exec: bool = False
    ):
        super().__init__(start, stop, step)
        if split != "test":
            raise UserError(f"HumanEval has no split {split!r}, allowed is test")
        self.unsafe_exec = unsafe_exec
        file = hub_file("openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet")
        self.rows = HubRows([file], ["prompt", "canonical_solution", "test", "entry_point"])

    def num_examples(self) -> int:
        """Problems."""
        return len(self.rows)

    def get_example(self, index: int) -> Program:
        """The problem at `index`, answered by the whole function in a fence."""
        row = cast(_Row, self.rows[index])
        solution = f"```python\n{row['prompt']}{row['canonical_solution'].rstrip()}\n```"
        return Program(
            [Message("user", row["prompt"]), Message("assistant", solution)],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            test=row["test"],
        )

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        """Whether the function passes its tests in a process with limits. Raises UserError without leave to run it."""
        if not self.unsafe_exec:
            raise UserError(
                "HumanEval runs programs that the model wrote, with limits but no sandbox; "
                "add --unsafe_exec to allow it on this machine, or leave HumanEval out"
            )
        assert isinstance(problem, Program)
        return execute_code(program_text(problem, completion)).success


def program_text(problem: Program, completion: str) -> str:
    """The program that judges a completion: the code it holds, in place, and the tests.

    A completion that defines the function stands behind what the prompt has before it (imports, helpers); one that does
    not goes on where the prompt ends.
    """
    fence = _FENCE.search(completion)
    code = fence[1] if fence else completion
    definition = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(problem.entry_point)}\b", re.MULTILINE)
    beginning = problem.prompt
    if definition.search(code):
        place = definition.search(problem.prompt)
        beginning = problem.prompt[: place.start()] if place else ""
    return f"{beginning}{code}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"
