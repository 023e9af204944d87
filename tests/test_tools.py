"""Tools by name beside the calculator: off by default, given constants alone, and answering every mistake by a text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.command import UserError
from nanochat.tools import TOOLS, check_tools, run_tool


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("convert(5, 'km', 'mi')", "3.106855961"),
        (" convert ( 1 , 'mi' , 'km' ) ", "1.609344"),
        ('convert(-40, "F", "C")', "-40"),
        ("convert(0, 'K', 'C')", "-273.15"),
        ("convert(100, 'C', 'F')", "212"),
        ("convert(2.5, 'kg', 'g')", "2500"),
        ("convert(1, 'gal', 'l')", "3.785411784"),
        ("convert(1, 'week', 'h')", "168"),
        ("6*7", "42"),
        ("'strawberry'.count('r')", "3"),
    ],
)
def test_a_named_tool_and_the_calculator_answer(call: str, answer: str) -> None:
    assert run_tool(call, ["convert"]) == answer


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("1/0", "error: division by zero"),
        ("9**9**9", "error: a number has more than 100 digits"),
        ("1e999", "error: a number is too large"),
        ("10.0**400", "error: a number is too large"),
        ("(-8)**.5", "error: the root of a negative number"),
        ("1+", "error: this is no expression"),
        ("", "error: this is no expression"),
        ("import os", "error: 'import' is not understood"),
        ("-" * 300 + "1", "error: nested more than 100 deep"),
        ("1" * 501, "error: more than 500 characters"),
        ("len(1)", "error: only numbers, 'text'.count('t') and len('text') are understood"),
        ("convert(1, 'm')", "error: convert needs value, unit, into; 2 were given"),
        ("convert('1', 'm', 'km')", "error: convert needs a number, got '1'"),
        ("convert(True, 'm', 'km')", "error: convert needs a number, got True"),
        ("convert(1e300, 'km', 'mm')", "error: a number is too large"),
        ("convert(1, 'm', 'kg')", "error: cannot convert 'm' into 'kg'; units are K, C, F, mm"),
        ("convert(1, 'm', ['km'])", "error: only numbers and texts can be given to a tool"),
        ("convert(open('/etc/passwd').read(), 'm', 'km')", "error: only numbers and texts can be given to a tool"),
        ("convert(1, 'm', into='km')", "error: this is no call"),
        ("convert(1, 'm', 'km').real", "error: this is no call"),
        ("convert(", "error: this is no call"),
        ("convert(" + "1" * 600, "error: more than 500 characters"),
    ],
)
def test_every_mistake_is_answered_by_a_text(call: str, answer: str) -> None:
    assert run_tool(call, ["convert"]).startswith(answer)


def test_a_tool_that_was_not_asked_for_is_not_there() -> None:
    assert run_tool("convert(1, 'm', 'km')") == "error: 'convert(1,' is not understood"


def test_a_name_that_no_tool_has_is_refused() -> None:
    check_tools(list(TOOLS))
    with pytest.raises(UserError, match="no tool is called 'browse'; there are convert"):
        check_tools(["convert", "browse"])


@given(st.text(max_size=40), st.sampled_from(["", "convert(", "convert(1, 'm', "]))
def test_no_text_makes_it_fail(text: str, start: str) -> None:
    assert isinstance(run_tool(start + text, ["convert"]), str)


@given(st.floats(-1e6, 1e6), st.sampled_from(["mm", "ft", "mi"]), st.sampled_from(["cm", "in", "km"]))
def test_there_and_back_is_the_same(value: float, unit: str, into: str) -> None:
    there = run_tool(f"convert({value!r}, '{unit}', '{into}')", ["convert"])
    back = float(run_tool(f"convert({float(there)!r}, '{into}', '{unit}')", ["convert"]))
    assert math.isclose(back, value, rel_tol=1e-8, abs_tol=1e-300)
