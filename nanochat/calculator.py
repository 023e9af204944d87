"""The chat tool: a calculator that a model may send any text to.

Numbers with + - * / // % ** and parentheses, and letter counting as in `'strawberry'.count('r')`. The text is first
read by a lexer that knows nothing else (no names, no attributes, no prefixes of strings, no escapes), then parsed, and
its syntax tree is walked node by node: nothing is ever evaluated by Python. No signals and no clock: size, depth and
digits are bounded instead, so it works in any thread. Programs run in `execution`, not here.
"""

import ast
import math
import re

MAX_LENGTH = 500
"""Characters of an expression."""
MAX_DEPTH = 100
"""Nested operations; a sum of n terms is n - 1 deep."""
MAX_DIGITS = 100
"""Decimal digits of any whole number on the way."""

_TOKEN = re.compile(
    r"""
    \s+
    | (?P<number> (?: [0-9]{1,3} (?: ,[0-9]{3} )+ (?![0-9]) (?: \.[0-9]* )? | [0-9]+ (?: \.[0-9]* )? | \.[0-9]+ )
                  (?: [eE][-+]?[0-9]+ )? )
    | (?P<other> '[^'\\\n]*' | "[^"\\\n]*" | \.\s*count\b | \*\* | // | [-+*/%()] )
    """,
    re.VERBOSE,
)


class _RefusedError(Exception):
    """The expression is outside of what the calculator does."""


def use_calculator(expression: str) -> str | None:
    """The value of the expression as text, or None when it is no such expression, has no value or is too large.

    Commas between thousands are dropped (`1,234`), inside of quoted texts they stay. Whole numbers are exact, a
    quotient that is whole included; others are rounded to the 15 digits that a float holds.
    """
    try:
        tree = ast.parse(_lex(expression), mode="eval")
        return _format(_evaluate(tree.body, MAX_DEPTH))
    except (_RefusedError, SyntaxError, ArithmeticError, MemoryError, RecursionError):
        return None


def _lex(expression: str) -> str:
    """The expression with one blank between its tokens and no commas in numbers. Raises on any unknown character."""
    if len(expression) > MAX_LENGTH:
        raise _RefusedError
    tokens, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise _RefusedError
        position = match.end()
        if match["number"]:
            tokens.append(match["number"].replace(",", ""))
        elif match["other"]:
            tokens.append(match["other"])
    # The blanks also keep '' '...' '' from being read as one triple-quoted text.
    return " ".join(tokens)


def _evaluate(node: ast.expr, depth: int) -> int | float:
    if depth == 0:
        raise _RefusedError
    match node:
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, depth - 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, depth - 1)
        case ast.BinOp(left=left, op=operator, right=right):
            return _bounded(_operate(operator, _evaluate(left, depth - 1), _evaluate(right, depth - 1)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as letters)],
            keywords=[],
        ):
            return text.count(letters)
    raise _RefusedError


def _operate(operator: ast.operator, left: int | float, right: int | float) -> int | float:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return _divide(left, right)
        case ast.FloorDiv():
            return left // right
        case ast.Mod():
            return left % right
        case ast.Pow():
            return _power(left, right)
    raise _RefusedError


def _divide(left: int | float, right: int | float) -> int | float:
    if isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0:
        return left // right
    return left / right


def _power(base: int | float, exponent: int | float) -> int | float:
    """Refused before the work is done: 9**9**9 would fill the memory."""
    if isinstance(base, int) and isinstance(exponent, int):
        least_bits = (abs(base).bit_length() - 1) * exponent
        if least_bits > MAX_DIGITS * math.log2(10):
            raise _RefusedError
    value = base**exponent
    # The root of a negative number is complex in Python.
    if not isinstance(value, int | float):
        raise _RefusedError
    return value


def _bounded(value: int | float) -> int | float:
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise _RefusedError
    if isinstance(value, float) and not math.isfinite(value):
        raise _RefusedError
    return value


def _format(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    rounded = float(f"{value:.15g}")  # 0.1 + 0.2 is 0.3 to a reader
    return str(int(rounded)) if rounded.is_integer() and abs(rounded) < 1e15 else repr(rounded)
