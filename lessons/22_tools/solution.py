"""Lesson 22: a calculator without eval, tokens that the tool forces, and a process for programs that nobody trusts."""

import ast
import contextlib
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass

from nanochat.tokenizer import RustBPETokenizer

ESCAPE = (
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".close.__globals__['getpid']()"
)


def naive_calculator(expression: str) -> object:
    """What one writes first: eval without built-in names. Given, and not to be used."""
    return eval(expression, {"__builtins__": {}}, {})


class RefusedError(Exception):
    """Not what a calculator does."""


def calculate(expression: str) -> str | None:
    """The value of a sum as text, or None for whatever is none, has no value, or is too large."""
    if len(expression) > 200:
        return None
    try:
        tree = ast.parse(re.sub(r"(?<=\d),(?=\d{3}\b)", "", expression).strip(), mode="eval")
        value = evaluate(tree.body, depth=50)
    except (RefusedError, SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError):
        return None
    if isinstance(value, int):
        return str(value)
    value = float(f"{value:.15g}")  # the digits that a float holds: 0.1 + 0.2 is 0.3
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def evaluate(node: ast.expr, depth: int) -> int | float:
    """The value of a tree's node. Raises RefusedError for anything that is not listed here."""
    if depth == 0:
        raise RefusedError("nested too deeply")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value: int | float = number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -evaluate(operand, depth - 1)
        case ast.BinOp(left=left, op=operator, right=right):
            value = operate(operator, evaluate(left, depth - 1), evaluate(right, depth - 1))
        case _:
            raise RefusedError(type(node).__name__)
    if abs(value) >= 1e100 or not math.isfinite(value):
        raise RefusedError("too large")
    return value


def operate(operator: ast.operator, left: int | float, right: int | float) -> int | float:
    """One operation of two numbers."""
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            exact = isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0
            return left // right if exact else left / right
        case ast.Pow() if abs(left) <= 1 or abs(right) * math.log10(abs(left)) < 100:
            value = left**right
            if not isinstance(value, complex):
                return value
    raise RefusedError(type(operator).__name__)


class ToolUser:
    """One row of a generation: what the model samples goes in, what stands in the row comes out."""

    def __init__(self, tokenizer: RustBPETokenizer) -> None:
        special = tokenizer.encode_special
        self.tokenizer = tokenizer
        self.call_starts, self.call_ends = special("<|python_start|>"), special("<|python_end|>")
        self.output_starts, self.output_ends = special("<|output_start|>"), special("<|output_end|>")
        self.forced: deque[int] = deque()
        self.call: list[int] | None = None

    def take(self, sampled: int) -> tuple[int, int]:
        """The id that comes next, and its mask: 1 where it is the sampled one, 0 where the tool forces another."""
        if self.forced:
            return self.forced.popleft(), 0
        if sampled == self.call_starts:
            self.call = []
        elif sampled == self.call_ends and self.call is not None:
            answer = calculate(self.tokenizer.decode(self.call))
            self.call = None
            if answer is not None:
                self.forced.extend([self.output_starts, *self.tokenizer.encode(answer), self.output_ends])
        elif self.call is not None:
            self.call.append(sampled)
        return sampled, 1


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    output: str
    why: str
    """Empty where it passed, else the reason in words."""


# Runs in the child. Behind its program waits a secret word, which it reads only when the program is through; what it
# needs for that is bound before, since a program may replace the functions of os.
CHILD = """
import os, sys
read, write, leave = os.read, os.write, os._exit
orders, verdict = os.dup(0), os.dup(2)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
code, seconds, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except ImportError:
    pass
try:
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    found = b"+"
except BaseException as problem:
    found = f"-{type(problem).__name__}: {problem}".encode()
try:
    sys.stdout.flush()
except BaseException:
    pass
word = read(orders, 32)
write(verdict, word + found + word)
leave(0)
"""


def run_program(code: str, seconds: float = 2.0, memory_bytes: int = 256 << 20) -> Outcome:
    """Run a program in a process of its own, and say whether it came to its end without an exception."""
    word = secrets.token_hex(16).encode()
    kept = {name: value for name, value in os.environ.items() if name == "SYSTEMROOT"}  # Windows needs it to start
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD, code, str(math.ceil(seconds)), str(memory_bytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=folder, env=kept, start_new_session=os.name == "posix",
        )  # fmt: skip
        try:
            output, told = child.communicate(word, timeout=seconds)
            timed_out = os.name == "posix" and child.returncode == -signal.SIGXCPU  # two threads spend two a second
        except subprocess.TimeoutExpired:
            kill(child)
            output, told = child.communicate()
            timed_out = True
        kill(child)
    _, found, verdict = told.partition(word)
    why = ""
    if timed_out:
        why = f"timed out after {seconds:g} seconds"
    elif not found:
        why = f"left early with exit code {child.returncode}"
    elif not verdict.startswith(b"+"):
        why = verdict.removesuffix(word)[1:].decode(errors="replace")
    return Outcome(not why, output.decode(errors="replace"), why)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a process and, where there are sessions, all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
