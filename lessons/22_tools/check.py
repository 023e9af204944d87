"""Checks of lesson 22, against the product's calculator, its chat format and the operating system itself."""

import ast
import os
import sys
from pathlib import Path

import pytest

from lessons.learner import load
from nanochat.calculator import use_calculator
from nanochat.chat_format import render_conversation
from nanochat.conversation import Conversation, Message, Part
from nanochat.tokenizer import RustBPETokenizer

mine = load(22)
SUMS = (
    "6*7", "2+3*4", "(2+3)*4", "-3+1", "7/2", "6/2", "1,234,567+1", "0.1+0.2", "1/3", "2**10", "2**-1", "1.5*2",
    "10**99", " 137 * 46 ", "2-(-2)",
)  # fmt: skip
NO_SUMS = (
    "", "(1", "1/0", "0**-1", "10**100", "9**9**9", "9" * 300, "(-8)**0.5", "1e400", "True", "x", "[1]", "'a'*9",
    "1 if 1 else 2", "(lambda: 1)()", "().__class__", "__import__('os').getpid()", "(1).bit_length()", "1;2", "f'{1}'",
    "-" * 5000 + "1", "1 and 2",
)  # fmt: skip
tokenizer = RustBPETokenizer.train_from_iterator(["What is 137 * 46? It is 6302."], vocab_size=280)


@pytest.mark.parametrize("expression", SUMS)
def test_calculate_knows_the_sums_of_the_product(expression: str) -> None:
    found, expected = mine.calculate(expression), use_calculator(expression)
    assert found == expected, f"calculate({expression!r}) gave {found!r}, the product says {expected!r}"


@pytest.mark.parametrize("expression", NO_SUMS, ids=lambda text: text[:20] or "nothing")
def test_calculate_refuses_what_is_no_sum(expression: str) -> None:
    assert use_calculator(expression) is None
    try:
        found = mine.calculate(expression)
    except Exception as problem:
        raise AssertionError(
            f"calculate({expression[:40]!r}) raised {type(problem).__name__}: return None"
        ) from problem
    assert found is None, f"calculate({expression[:40]!r}) gave {found!r}: it is no sum, has no value, or is too large"


def test_your_escape_gets_out_of_the_naive_calculator_and_not_of_yours() -> None:
    try:
        found = mine.naive_calculator(mine.ESCAPE)
    except Exception as problem:
        raise AssertionError(f"ESCAPE raised {type(problem).__name__}: {problem}") from problem
    assert found == os.getpid(), f"ESCAPE gave {found!r}; the number of this process is {os.getpid()}"
    numbers = [node.value for node in ast.walk(ast.parse(mine.ESCAPE)) if isinstance(node, ast.Constant)]
    assert os.getpid() not in numbers, "ESCAPE must ask the system for the number, not spell it"
    assert mine.calculate(mine.ESCAPE) is None, "your own calculate falls for ESCAPE"


def ids_and_mask(*parts: tuple[str, str]) -> tuple[list[int], list[int]]:
    """What the product makes of an assistant's message."""
    message = Message("assistant", [Part(kind, text) for kind, text in parts])  # type: ignore[arg-type]
    ids, mask = render_conversation(Conversation([Message("user", "?"), message]), tokenizer)
    begin = ids.index(tokenizer.encode_special("<|assistant_start|>")) + 1
    return ids[begin:], mask[begin:]


CHATS = {
    "no call": [("text", "It is 46.")],
    "a call": [("text", "It is "), ("python", "137*46"), ("python_output", "6302"), ("text", "6302.")],
    "two calls": [
        ("python", "1+1"),
        ("python_output", "2"),
        ("python", "2/4"),
        ("python_output", "0.5"),
        ("text", "4"),
    ],
    "a call that is no sum": [("python", "What"), ("text", "It is 46.")],
}


@pytest.mark.parametrize("name", CHATS)
def test_take_gives_the_row_that_the_product_trains_on(name: str) -> None:
    ids, mask = ids_and_mask(*CHATS[name])
    user = mine.ToolUser(tokenizer)
    nonsense = tokenizer.encode("What")[0]
    for place, (expected, trained) in enumerate(zip(ids, mask, strict=True)):
        found = user.take(expected if trained else nonsense)
        told = "is forced by the tool, whatever is sampled" if not trained else "is what was sampled"
        where = f"{name}: id {place} of {tokenizer.decode(ids)!r} {told}"
        assert tuple(found) == (expected, trained), f"{where}; expected {(expected, trained)}, take gave {found}"


def test_two_rows_do_not_mix() -> None:
    ids, mask = ids_and_mask(*CHATS["a call"])
    one, other = mine.ToolUser(tokenizer), mine.ToolUser(tokenizer)
    for token, trained in zip(ids, mask, strict=True):
        one.take(token)
        found = other.take(ids[0])
        assert tuple(found) == (ids[0], 1), f"a second ToolUser gave {found} while the first one was at mask {trained}"


# --- the sandbox ------------------------------------------------------------------------------------------------------


def test_a_program_that_comes_to_its_end_passes() -> None:
    found = mine.run_program("print('six', 6)\nassert 6 * 7 == 42")
    assert found.passed, f"it ran to its end, and why says {found.why!r}"
    assert found.output.split() == ["six", "6"], f"it printed 'six 6', output holds {found.output!r}"


@pytest.mark.parametrize(
    ("code", "word"),
    [("assert 1 == 2, 'no'", "AssertionError: no"), ("def f(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_an_exception_is_told_in_words(code: str, word: str) -> None:
    found = mine.run_program(code)
    assert not found.passed, f"{code!r} must not pass"
    assert word in found.why, f"{code!r}: why should name {word!r}, it is {found.why!r}"


@pytest.mark.parametrize("code", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "quit()"])
def test_leaving_early_is_no_end(code: str) -> None:
    found = mine.run_program(code + "\nassert False")
    assert not found.passed, f"{code!r} left before the assertion with exit code 0, and passed"


def test_a_program_cannot_pass_by_what_it_writes() -> None:
    true = mine.run_program("pass")
    lies = [true.output, "passed", "+", "True", "0", "ok"]
    code = f"import os\nfor lie in {lies}:\n    for pipe in (1, 2):\n        os.write(pipe, lie.encode())\nassert False"
    found = mine.run_program(code)
    assert not found.passed, "it wrote words like 'passed' to both outputs and then failed; it was believed"


def test_a_program_that_takes_away_your_functions_still_fails() -> None:
    code = "import os, sys\nos._exit = os.write = os.read = sys.exit = print = None\nassert False"
    assert not mine.run_program(code).passed, "it replaced functions of os and sys, and its failure was not seen"


ENDLESS = "while True: pass"
# Hashing lets go of the interpreter's lock, so two threads spend two seconds of CPU in one.
ENDLESS_THREADS = """
import hashlib, threading
block = bytes(1 << 20)
def work():
    while True:
        hashlib.sha256(block)
threading.Thread(target=work).start()
work()
"""


@pytest.mark.parametrize("code", [ENDLESS, ENDLESS_THREADS], ids=["on one core", "on two"])
def test_an_endless_program_is_stopped(code: str) -> None:
    found = mine.run_program(f"print('begun', flush=True)\n{code}", seconds=1.0)
    assert not found.passed, "an endless program passed"
    assert "time" in found.why, f"why should say that time ran out, it is {found.why!r}"
    assert "begun" in found.output, f"what it wrote before should be in output, which is {found.output!r}"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system limits no memory of a process")
def test_memory_is_limited() -> None:
    found = mine.run_program("block = bytearray(1 << 30)", memory_bytes=256 << 20)
    assert not found.passed, "a program took 1 GiB where 256 MiB were allowed"


def test_a_program_sees_no_environment_no_input_and_nothing_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", "hunter2")
    code = "import os, sys\nprint(os.environ.get('MY_SECRET_KEY'), os.listdir('.'), repr(sys.stdin.read()))"
    found = mine.run_program(code)
    assert found.output.split() == ["None", "[]", "''"], f"it saw {found.output.strip()!r} {found.why}"


def test_what_a_program_writes_is_gone_afterwards() -> None:
    found = mine.run_program("import os\nopen('trace.txt', 'w').write('was here')\nprint(os.path.abspath('trace.txt'))")
    assert found.passed, f"it may write into its own folder: {found.why!r}"
    assert not Path(found.output.strip()).exists(), f"{found.output.strip()} is still there"
    assert not Path("trace.txt").exists(), "it wrote into our folder"
