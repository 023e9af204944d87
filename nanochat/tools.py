"""What a model may send between `<|python_start|>` and `<|python_end|>`: the calculator's expressions, and named tools.

A named tool is a function of numbers and texts, called as in `convert(5, 'km', 'mi')`; nothing but such constants
reaches it. All of them are off until they are asked for by name: a model has to be trained to use one.

Lesson: lessons/22_tools
"""

import ast
import inspect
from collections.abc import Callable, Collection, Mapping

from nanochat.calculator import MAX_LENGTH, CalculatorError, calculate
from nanochat.command import UserError

Tool = Callable[..., str]


class ToolError(Exception):
    """Why a tool has no answer, in a few words for the model."""


# What one of each is in metres, kilograms, litres and seconds.
_UNITS: Mapping[str, Mapping[str, float]] = {
    "length": {"mm": 1e-3, "cm": 1e-2, "m": 1, "km": 1e3, "in": 0.0254, "ft": 0.3048, "yd": 0.9144, "mi": 1609.344},
    "mass": {"mg": 1e-6, "g": 1e-3, "kg": 1, "t": 1e3, "oz": 0.028349523125, "lb": 0.45359237},
    "volume": {"ml": 1e-3, "l": 1, "m3": 1e3, "gal": 3.785411784, "pt": 0.473176473},
    "time": {"s": 1, "min": 60, "h": 3600, "d": 86_400, "week": 604_800},
}
# Kelvin are scale x degrees + shift.
_TEMPERATURES: Mapping[str, tuple[float, float]] = {"K": (1, 0), "C": (1, 273.15), "F": (5 / 9, 273.15 - 32 * 5 / 9)}


def convert(value: object, unit: object, into: object) -> str:
    """`convert(5, 'km', 'mi')`: lengths, masses, volumes, times and temperatures, to 10 digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolError(f"convert needs a number, got {value!r}")
    if abs(value) > 1e100:
        raise ToolError("a number is too large")
    if unit in _TEMPERATURES and into in _TEMPERATURES:
        (scale, shift), (to_scale, to_shift) = _TEMPERATURES[str(unit)], _TEMPERATURES[str(into)]
        return f"{(scale * value + shift - to_shift) / to_scale:.10g}"
    for units in _UNITS.values():
        if unit in units and into in units:
            return f"{value * units[str(unit)] / units[str(into)]:.10g}"
    known = ", ".join([*_TEMPERATURES, *(name for units in _UNITS.values() for name in units)])
    raise ToolError(f"cannot convert {unit!r} into {into!r}; units are {known}")


TOOLS: Mapping[str, Tool] = {"convert": convert}
"""The named tools there are."""


def check_tools(names: Collection[str]) -> None:
    """Raise UserError for a name that no tool has."""
    if unknown := [name for name in names if name not in TOOLS]:
        raise UserError(f"no tool is called {unknown[0]!r}; there are {', '.join(TOOLS)}")


def run_tool(call: str, names: Collection[str] = ()) -> str:
    """The answer to a call: by one of the tools named, else by the calculator; to a mistake `error: ...`."""
    try:
        name = call.strip().partition("(")[0].rstrip()
        if name not in names:
            return calculate(call)
        arguments = _constants(call)
        wanted = list(inspect.signature(TOOLS[name]).parameters)
        if len(arguments) != len(wanted):
            raise ToolError(f"{name} needs {', '.join(wanted)}; {len(arguments)} were given")
        return TOOLS[name](*arguments)
    except (CalculatorError, ToolError) as mistake:
        return f"error: {mistake}"


def _constants(call: str) -> list[object]:
    """The arguments of `name(1, -2.5, 'text')`. Raises ToolError for anything else."""
    if len(call) > MAX_LENGTH:
        raise ToolError(f"more than {MAX_LENGTH} characters")
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("this is no call") from None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
        raise ToolError("this is no call")
    values: list[object] = []
    for argument in node.args:
        match argument:
            case ast.Constant(value=int() | float() | str() as value):
                values.append(value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                values.append(-value)
            case _:
                raise ToolError("only numbers and texts can be given to a tool")
    return values
