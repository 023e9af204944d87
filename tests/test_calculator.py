"""The calculator against Python's own arithmetic, and against what a hostile model may send."""

import ast
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nanochat.calculator import MAX_LENGTH, use_calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("137*46", "6302"),
        ("6302/2", "3151"),
        ("7/2", "3.5"),
        ("-7//2", "-4"),
        ("-7%3", "2"),
        ("2**-2", "0.25"),
        ("-2**2", "-4"),
        ("2**3**2", "512"),
        ("2**100", str(2**100)),
        ("0**0", "1"),
        (" ( 1 + 2 )\n* 3 ", "9"),
        ("0.1+0.2", "0.3"),
        ("1/3", "0.333333333333333"),
        (".5*4", "2"),
        ("5.", "5"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1e30", "1e+30"),
        ("10**30/10**10", "100000000000000000000"),
        ("1,234+1", "1235"),
        ("1,234,567.5*2", "2469135"),
        ("'strawberry'.count('r')", "3"),
        ('"it\'s".count("\'")', "1"),
        ("'1,000, or 2,000'.count(',')", "3"),
        ("'banana'.count('na') * 2 + 1", "5"),
        ("'banana' .count ( 'x' )", "0"),
        ("'Straße 🍓🍓'.count('🍓')", "2"),
        ("''.count('')", "1"),
        ("len('strawberry')", "10"),
        ("len ( '' ) + 1", "1"),
        ("2 < 3", "True"),
        ("2 > 3", "False"),
        ("1 <= 1 != 2", "True"),
        ("3 > 2 > 2", "False"),
        ("0.1 + 0.2 >= 0.3", "True"),
        ("1,000 == 10**3", "True"),
        ("len('aa') == 'aa'.count('a')", "True"),
    ],
)
def test_arithmetic_and_letter_counts(expression: str, value: str) -> None:
    assert use_calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        # No value, or not an expression.
        "",
        " ",
        "1+",
        "2 3",
        "(1",
        "1)",
        "1/0",
        "1//0",
        "5%0",
        "0**-1",
        "(-8)**.5",
        "007",
        "'text'",
        "'a'+'b'",
        "'a'*3",
        "-'a'",
        "'%s' % 1",
        "hello",
        "1,2",
        "1,2345",
        "1234,567",
        "1,,000",
        # Too large.
        "9**9**9",
        "9**9**9**9",
        "(9**99)**99",
        "2**1000",
        "1e308*10",
        "1e999",
        "1e999*0",
        "10.0**400",
        "9" * 101,
        "9" * 5000,
        "1" + "+1" * 200,
        "-" * 300 + "1",
        "(" * 220 + "1" + ")" * 220,
        "(" * 100_000,
        "'" + "a" * MAX_LENGTH + "'.count('a')",
        # Words of the language.
        "True",
        "None",
        "1 if 1 else 2",
        "1if 1else 2",
        "1 and 2",
        "not 1",
        "1 < 'a'",
        "(1 < 2) + 1",
        "-(1 < 2)",
        "1 < (2 < 3)",
        "1 < ",
        "1 = 1",
        "1 =< 1",
        "1 <> 2",
        "len",
        "len(",
        "len()",
        "len(1)",
        "len('a', 'b')",
        "len(*'a')",
        "len('a').real",
        "len.count('a')",
        "len(len)",
        "length('a')",
        "xlen('a')",
        "len'a'",
        "1 is 1",
        "lambda: 1",
        "(lambda: 1)()",
        "[1]",
        "[1][0]",
        "(1, 2)",
        "{1: 2}",
        "[x for x in (1,)]",
        "sum(x for x in [1])",
        "(x := 1)",
        "x = 1",
        "1; 2",
        "1 # comment",
        "1\\\n+1",
        "await 1",
        "yield 1",
        "import os",
        "...",
        "1j",
        "0x10",
        "0b1",
        "1_000",
        "~1",
        "1 << 99999999",
        "1 | 2",
        "1 @ 2",
        "١+١",
        "1\x00",
        "\ud800",
        # Ways out of simple evaluators.
        "__import__('os').system('id')",
        "().__class__.__bases__[0].__subclasses__()",
        "(1).__class__",
        "1 .real",
        "'a'.upper()",
        "'a'.format(1)",
        "'{0.__class__}'.format(1)",
        "'a'.join('b')",
        "'a'.__len__()",
        "'a'.__class__.count('a')",
        "'a'.count",
        "'a'.count()",
        "'a'.count('a', 0)",
        "'a'.count(*'a')",
        "'a'.count(sub='a')",
        "'a'.count(1)",
        "'a'.count('a'.upper())",
        "'a'.count('a').real",
        "'a'.count('a').bit_length()",
        "'a'.counter('a')",
        "('a'*10**9).count('a')",
        "(1).count(1)",
        "count('a')",
        "f'{1}'.count('1')",
        "f'{__import__(\"os\")}'",
        "b'a'.count(b'a')",
        "r'a'.count('a')",
        "u'a'.count('a')",
        "'\\x61'.count('a')",
        "open('/etc/passwd').read().count('root')",
        "open('/etc/passwd')",
        "exec('1')",
        "eval('1')",
        "globals()",
        "signal.raise_signal(9)",
        "print(1)",
        "abs(-1)",
        "''.__doc__.count('a')",
        "''''''.__class__",
    ],
)
def test_everything_else_is_refused(expression: str) -> None:
    assert use_calculator(expression) is None


def test_a_triple_quoted_text_is_never_read_as_python_reads_it() -> None:
    """Its lexer and ours must agree on what is quoted, or a comma is dropped inside of a text."""
    assert use_calculator("'''1' + 1,000 + '1'''") is None
    assert use_calculator("'''1,000'''.count(',')") == "1"


numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.integers(0, 10**9).map(lambda n: f"{n:,}"),
    st.floats(0, 1e6, allow_subnormal=False).map(lambda x: f"{x:.3f}"),
)
letters = st.text(st.sampled_from("abc, "), max_size=5)
counts = st.builds(lambda text, part: f"'{text}'.count('{part}')", letters, letters)
expressions = st.recursive(
    numbers | counts,
    lambda inner: st.one_of(
        st.builds(lambda a, op, b: f"({a} {op} {b})", inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner),
        st.builds(lambda sign, a: f"{sign}{a}", st.sampled_from("+-"), inner),
        st.builds(lambda a, n: f"({a})**{n}", inner, st.integers(-2, 3)),
    ),
    max_leaves=8,
)


def python_values(expression: str) -> list[int | float]:
    """The oracle: Python's own values of the expression (first) and of all its parts.

    We built the expression and therefore trust it. Raises ArithmeticError.
    """
    plain = re.sub(r"('[^']*')|,(?=[0-9]{3})", r"\1", expression)
    parts = [node for node in ast.walk(ast.parse(plain, mode="eval").body) if isinstance(node, ast.expr)]
    values = [eval(ast.unparse(part), {"__builtins__": {}}) for part in parts if not isinstance(part, ast.Attribute)]
    return [value for value in values if not isinstance(value, str)]


@given(expressions)
def test_random_expressions_have_the_value_that_python_gives_them(expression: str) -> None:
    assume(len(expression) <= MAX_LENGTH)
    try:
        values = python_values(expression)
    except ArithmeticError:
        assert use_calculator(expression) is None
        return
    # Beyond, a whole quotient is exact with us and a rounded float in Python.
    assume(all(abs(value) < 1e15 for value in values))
    ours = use_calculator(expression)
    assert ours is not None
    assert float(ours) == float(f"{values[0]:.15g}")
    assert "." not in ours or not float(ours).is_integer()


@given(st.text(max_size=60) | st.text(st.sampled_from("0123456789.+-*/%()<>=! ,'\"\\countlenabe"), max_size=60))
def test_no_text_makes_it_fail_or_return_more_than_a_number(text: str) -> None:
    result = use_calculator(text)
    assert result is None or result in ("True", "False") or math.isfinite(float(result))
    assert result is None or len(result) <= 101


def test_it_works_in_any_thread() -> None:
    """A clock by SIGALRM would raise in every thread but the main one."""
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(use_calculator, ["2*21", "9**9**9", "'aa'.count('a')"])) == ["42", None, "2"]


def test_the_marks_of_gsm8k_compute_to_what_they_say(shared_data: Path) -> None:
    """Real tool calls as the training set has them: nearly all must compute, and to the result written beside them."""
    import pyarrow.parquet as pq

    path = shared_data / "hub/openai/gsm8k/main/test-00000-of-00001.parquet"
    answers = pq.read_table(path).column("answer").to_pylist()
    marks = [mark for answer in answers for mark in re.findall(r"<<([^=<>]+)=([^<>]*)>>", answer)]
    values = [(use_calculator(expression), result) for expression, result in marks]
    assert len(marks) > 4000
    assert sum(value is not None for value, _ in values) / len(values) > 0.99
    right = [math.isclose(float(v), float(r), rel_tol=0.01) for v, r in values if v and re.fullmatch(r"-?[\d.]+", r)]
    assert sum(right) / len(right) > 0.99
