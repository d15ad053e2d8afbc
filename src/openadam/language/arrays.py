"""Evaluating: a graph as its author wrote it on numbers of any kind, scalars in float64, and a program on arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .expression import Expression
from .graph import postorder
from .program import Program

__all__ = ["compile_scalars", "evaluate", "run"]


def _total(function: Callable[..., float], *, overflow: float = math.inf) -> Callable[..., float]:
    """A function of floats that answers like IEEE arithmetic where Python raises."""

    def wrapped(*arguments: float) -> float:
        try:
            return function(*arguments)
        except OverflowError:
            return overflow
        except (ValueError, ZeroDivisionError):
            return math.nan

    return wrapped


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _choose(a_wins: bool, a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else a if a_wins else b


NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": _divide,
    "power": _total(math.pow),
    "negative": operator.neg,
    "absolute": abs,
    "sqrt": _total(math.sqrt),
    "exp": _total(math.exp),
    "expm1": _total(math.expm1),
    "log": lambda x: -math.inf if x == 0 else _total(math.log)(x),
    "sign": lambda x: x if math.isnan(x) else float((x > 0) - (x < 0)),
    "maximum": lambda a, b: _choose(a > b, a, b),
    "minimum": lambda a, b: _choose(a < b, a, b),
    "less": lambda a, b: float(a < b),
    "less_equal": lambda a, b: float(a <= b),
    "equal": lambda a, b: float(a == b),
    "where": lambda condition, a, b: a if condition else b,
}
"""The operations on Python floats, with IEEE answers (NaN, infinity) where Python would raise."""


def evaluate(roots: Sequence[Expression], values: Mapping[tuple[str, str], Any], functions: Mapping[str, Callable[..., Any]] = NUMBERS) -> list[Any]:
    """The values of expressions; ``values`` maps a symbol's (space, name), ``functions`` each operation.

    With mpmath's functions this is the oracle of the tests.
    """
    results: dict[int, Any] = {}
    for expression in postorder(*roots):
        if expression.operation == "constant":
            results[id(expression)] = expression.value
        elif expression.operation == "symbol":
            results[id(expression)] = values[expression.value]
        else:
            results[id(expression)] = functions[expression.operation](*(results[id(argument)] for argument in expression.arguments))
    return [results[id(root)] for root in roots]


def compile_scalars(roots: Sequence[Expression]) -> Callable[[Mapping[str, float]], list[float]]:
    """A fast function that does what `evaluate` does for scalars, from their symbols' names, in float64.

    It is called at every step; walking the graph each time would cost more than a small step itself.
    """
    infix = {"add": "+", "subtract": "-", "multiply": "*"}
    lines: list[str] = []
    places: dict[int, str] = {}
    for expression in postorder(*roots):
        if expression.operation == "constant":
            places[id(expression)] = repr(expression.value)
            continue
        operands = [places[id(argument)] for argument in expression.arguments]
        if expression.operation == "symbol":
            code = f"values[{expression.value[1]!r}]"
        elif expression.operation in infix:
            code = infix[expression.operation].join(operands)
        else:
            code = f"{expression.operation}({', '.join(operands)})"
        places[id(expression)] = f"x{len(lines)}"
        lines.append(f"    x{len(lines)} = {code}\n")
    source = f"def scalars(values):\n{''.join(lines)}    return [{', '.join(places[id(root)] for root in roots)}]\n"
    namespace: dict[str, Any] = dict(NUMBERS)
    exec(source, namespace)
    return namespace["scalars"]  # type: ignore[no-any-return]


def run(program: Program, arrays: Mapping[str, Any], scalars: Sequence[Any], np: Any, number: Callable[[float], Any] | None = None) -> dict[str, Any]:
    """The outputs of a program on arrays of one floating dtype, operation by operation.

    Args:
        program: What `lower` made.
        arrays: Every input of the program by name, of one shape and dtype.
        scalars: the program's scalars, computed in float64; each is rounded once to the arrays' dtype.
        np: The array module: ``numpy`` or one that speaks like it, ``torch``.
        number: Makes a scalar one of the arrays' dtype; default: NumPy's type of that name.
    """
    dtype = arrays[program.inputs[0]].dtype
    number = number or dtype.type
    tiny = np.finfo(dtype).smallest_normal
    rounded = [number(scalar) for scalar in scalars]
    functions: dict[str, Callable[..., Any]] = {
        "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
        "negative": operator.neg, "absolute": np.abs, "sqrt": np.sqrt,
        "less": operator.lt, "less_equal": operator.le, "equal": operator.eq,
    }  # fmt: skip
    truth = (np.zeros(()) == 0).dtype  # of this module's comparisons
    values: list[Any] = []

    def look_up(argument: tuple[str, Any]) -> Any:
        kind, which = argument
        if kind == "value":
            return values[which]
        if kind == "input":
            return arrays[which]
        if kind == "scalar":
            return rounded[which]
        return tiny if which == "smallest_normal" else number(which)

    for instruction in program.instructions:
        operands = [look_up(argument) for argument in instruction.arguments]
        if instruction.operation == "where":
            condition, a, b = operands
            values.append(np.where(condition if condition.dtype == truth else condition != 0, a, b))
        else:
            values.append(functions[instruction.operation](*operands))
    return {target: look_up(argument) for target, argument in program.outputs.items()}
