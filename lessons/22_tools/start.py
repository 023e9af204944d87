"""Lesson 22: a calculator without eval, tokens that the tool forces, and a process for programs that nobody trusts.

The check calls these by name: calculate, ESCAPE, ToolUser (made from a tokenizer, with a method take), run_program, and
of what that returns the fields passed, output, why. Any design of your own is welcome behind them.
"""

from dataclasses import dataclass

from nanochat.tokenizer import RustBPETokenizer

ESCAPE = "137 * 46"  # yours to write: see naive_calculator
"""An expression that makes `naive_calculator` return the number of this process, `os.getpid()`."""


def naive_calculator(expression: str) -> object:
    """What one writes first: eval without built-in names. It is given, and a trap: do not call it in your work."""
    return eval(expression, {"__builtins__": {}}, {})


def calculate(expression: str) -> str | None:
    """The value of a sum as text, or None for whatever is none, has no value, or is too large.

    Numbers with + - * / ** and parentheses; commas between thousands are dropped. Whole numbers are exact, a quotient
    that is whole is written without a point, floats with the 15 digits that they hold. Nothing may reach 10**100, and
    `9**9**9` must be refused *before* it is computed. Python evaluates nothing: parse with `ast`, walk the tree.
    """
    raise NotImplementedError("lesson 22: calculate is yours to write")


class ToolUser:
    """One row of a generation: what the model samples goes in, what stands in the row comes out."""

    def __init__(self, tokenizer: RustBPETokenizer) -> None:
        raise NotImplementedError("lesson 22: ToolUser is yours to write")

    def take(self, sampled: int) -> tuple[int, int]:
        """The id that comes next, and its mask: 1 where it is the sampled one, 0 where the tool forces another.

        What is sampled between <|python_start|> and <|python_end|> is a call. Behind its end the tool forces
        <|output_start|>, the ids of the answer, <|output_end|>, whatever is sampled meanwhile; nothing where
        `calculate` gives None. `tokenizer.encode_special(name)` is the id of such a mark.
        """
        raise NotImplementedError("lesson 22: take is yours to write")


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    output: str
    """What it wrote to standard output."""
    why: str
    """Empty where it passed, else the reason in words: `AssertionError: no`, `timed out after 2 seconds`, ..."""


def run_program(code: str, seconds: float = 2.0, memory_bytes: int = 256 << 20) -> Outcome:
    """Run a program in a process of its own, and say whether it came to its end without an exception.

    It has no environment, no standard input, an empty folder of its own that vanishes, `seconds` of time and (where
    the system can) `memory_bytes` of memory. Leaving early, whatever the exit code, is no end; printing proves nothing.
    """
    raise NotImplementedError("lesson 22: run_program is yours to write")
