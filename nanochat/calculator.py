"""The chat tool: a calculator that a model may send any text to.

Numbers with + - * / // % ** and parentheses, comparisons of them, and texts as in `'strawberry'.count('r')` and
`len('strawberry')`. The text is first read by a lexer that knows nothing else (no other names, no attributes, no
prefixes of strings, no escapes), then parsed, and its syntax tree is walked node by node: nothing is ever evaluated by
Python. No signals and no clock: length, depth and digits are bounded instead, and with them the time, so it works in
any thread. Programs run in `execution`, not here.

Lesson: lessons/22_tools
"""

import ast
import math
import operator
import re
from collections.abc import Callable

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
    | (?P<other> '[^'\\\n]*' | "[^"\\\n]*" | \.\s*count\b | len\b(?=\s*\() | \*\* | // | [<>=!]= | [-+*/%()<>] )
    """,
    re.VERBOSE,
)

_COMPARISONS: dict[type[ast.cmpop], Callable[[int | float, int | float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class CalculatorError(Exception):
    """Why an expression has no value, in a few words."""


def use_calculator(expression: str) -> str | None:
    """The value of the expression as text, or None where `calculate` says why it has none."""
    try:
        return calculate(expression)
    except CalculatorError:
        return None


def calculate(expression: str) -> str:
    """The value of the expression as text. Raises CalculatorError.

    Commas between thousands are dropped (`1,234`), inside of quoted texts they stay. Whole numbers are exact, a
    quotient that is whole included; others are rounded to the 15 digits that a float holds. A comparison is `True` or
    `False`, and stands alone.
    """
    try:
        node = ast.parse(_lex(expression), mode="eval").body
        if isinstance(node, ast.Compare):
            return str(_compare(node))
        return _format(_evaluate(node, MAX_DEPTH))
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("a number is too large") from None
    except (SyntaxError, MemoryError, RecursionError):
        raise CalculatorError("this is no expression") from None


def _lex(expression: str) -> str:
    """The expression with one blank between its tokens and no commas in numbers. Raises on any unknown character."""
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"more than {MAX_LENGTH} characters")
    tokens, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise CalculatorError(f"{expression[position : position + 20].split()[0]!r} is not understood")
        position = match.end()
        if match["number"]:
            tokens.append(match["number"].replace(",", ""))
        elif match["other"]:
            tokens.append(match["other"])
    # The blanks also keep '' '...' '' from being read as one triple-quoted text.
    return " ".join(tokens)


def _compare(node: ast.Compare) -> bool:
    """As in Python, `1 < 2 < 3` is both of its halves."""
    values = [_evaluate(part, MAX_DEPTH) for part in (node.left, *node.comparators)]
    pairs = zip(node.ops, values, values[1:], strict=False)
    return all(_COMPARISONS[type(comparison)](left, right) for comparison, left, right in pairs)


def _evaluate(node: ast.expr, depth: int) -> int | float:
    if depth == 0:
        raise CalculatorError(f"nested more than {MAX_DEPTH} deep")
    match node:
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, depth - 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, depth - 1)
        case ast.BinOp(left=left, op=sign, right=right):
            return _bounded(_operate(sign, _evaluate(left, depth - 1), _evaluate(right, depth - 1)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as letters)],
            keywords=[],
        ):
            return text.count(letters)
        case ast.Call(func=ast.Name(id="len"), args=[ast.Constant(value=str() as text)], keywords=[]):
            return len(text)
    raise CalculatorError("only numbers, 'text'.count('t') and len('text') are understood")


def _operate(sign: ast.operator, left: int | float, right: int | float) -> int | float:
    match sign:
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
    raise AssertionError(f"the lexer lets no {sign} through")


def _divide(left: int | float, right: int | float) -> int | float:
    if isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0:
        return left // right
    return left / right


def _power(base: int | float, exponent: int | float) -> int | float:
    """Refused before the work is done: 9**9**9 would fill the memory."""
    if isinstance(base, int) and isinstance(exponent, int):
        least_bits = (abs(base).bit_length() - 1) * exponent
        if least_bits > MAX_DIGITS * math.log2(10):
            raise CalculatorError(f"a number has more than {MAX_DIGITS} digits")
    value = base**exponent
    if not isinstance(value, int | float):
        raise CalculatorError("the root of a negative number")  # complex in Python
    return value


def _bounded(value: int | float) -> int | float:
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise CalculatorError(f"a number has more than {MAX_DIGITS} digits")
    if isinstance(value, float) and not math.isfinite(value):
        raise CalculatorError("a number is too large")
    return value


def _format(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    rounded = float(f"{value:.15g}")  # 0.1 + 0.2 is 0.3 to a reader
    return str(int(rounded)) if rounded.is_integer() and abs(rounded) < 1e15 else repr(rounded)
