"""Evaluating on intervals: what a program makes of elements of which only their range is known.

An answer holds for every way of rounding: each result is widened by more than an operation can be off. A value that may be infinite or NaN is
`ANYTHING`; what is made of it is, too, unless it is asked for no longer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .program import Program

__all__ = ["ANYTHING", "Interval", "Limits", "evaluate_on_intervals"]

Interval = tuple[float, float]

ANYTHING: Interval = (-math.inf, math.inf)
TRUE, FALSE, EITHER = (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)


class Limits(NamedTuple):
    """What numbers of a dtype are like."""

    largest: float
    smallest_normal: float
    unit: float  # by which a result may be off, beside itself


def evaluate_on_intervals(program: Program, inputs: Mapping[str, Interval], scalars: Sequence[float], limits: Limits) -> dict[str, Interval]:
    """The ranges of a program's outputs.

    Args:
        program: What `lower` made.
        inputs: The range of every input.
        scalars: Its scalars, as they are rounded to the dtype.
        limits: Of the dtype.

    >>> from openadam.rules import adam, update_program
    >>> program = update_program(adam.trace(epsilon="outside", bias_correction="off"))
    >>> ones = [1.0] * len(program.scalars)
    >>> found = evaluate_on_intervals(program, {"g": (-2, 2), "m": (-1, 1), "v": (0, 1), "p": (0, 9)}, ones, Limits(3e38, 1e-38, 1e-7))
    >>> [round(bound, 3) for bound in found["v"]]
    [0.0, 5.0]
    """
    points = [(scalar, scalar) if math.isfinite(scalar) else ANYTHING for scalar in scalars]
    found = _compiled(program, limits)([inputs[name] for name in program.inputs], points)
    return dict(zip(program.outputs, found, strict=True))


@functools.lru_cache(maxsize=256)
def _compiled(program: Program, limits: Limits) -> Callable[[Sequence[Interval], Sequence[Interval]], Sequence[Interval]]:
    """A function of the inputs and the scalars that returns the outputs."""
    constants: dict[str, Interval] = {}

    def name(argument: tuple[str, Any]) -> str:
        kind, which = argument
        if kind == "value":
            return f"x{which}"
        if kind == "input":
            return f"i[{program.inputs.index(which)}]"
        if kind == "scalar":
            return f"s[{which}]"
        number = limits.smallest_normal if which == "smallest_normal" else float(which)
        constants[f"c{len(constants)}"] = (number, number)
        return f"c{len(constants) - 1}"

    lines = []
    for place, each in enumerate(program.instructions):
        operands, operation = [name(argument) for argument in each.arguments], each.operation
        if operation == "multiply" and each.arguments[0] == each.arguments[1]:
            operation, operands = "square", operands[:1]
        if operation == "where" and each.arguments[0][0] == "value":
            # Where it is between the two sides of a comparison, each is chosen only where the comparison has it so.
            asked: Any = program.instructions[each.arguments[0][1]]  # type: ignore[call-overload]
            if asked.operation in ("less", "less_equal"):
                smaller, larger = asked.arguments
                x, y = name(smaller), name(larger)
                for side, (low, high) in ((1, (x, y)), (2, (y, x))):
                    if each.arguments[side] == (smaller if side == 1 else larger):
                        operands[side] = f"at_most({operands[side]}, {high})"
                    elif each.arguments[side] == (larger if side == 1 else smaller):
                        operands[side] = f"at_least({operands[side]}, {low})"
            elif asked.operation == "equal" and asked.arguments[0] == asked.arguments[1]:  # it is not NaN
                operation, operands = "known", [name(asked.arguments[0]), *operands[1:]]
        lines.append(f"    x{place} = {operation}({', '.join(operands)})\n")
    source = f"def compute(i, s):\n{''.join(lines)}    return [{', '.join(map(name, program.outputs.values()))}]\n"
    namespace: dict[str, Any] = {**_operations(limits), **constants}
    exec(source, namespace)
    return namespace["compute"]  # type: ignore[no-any-return]


def _operations(limits: Limits) -> dict[str, Callable[..., Interval]]:
    largest, tiny, unit = limits

    def widened(low: float, high: float) -> Interval:
        low -= abs(low) * unit
        high += abs(high) * unit
        if not (-largest < low and high < largest):  # or NaN
            return ANYTHING
        # What is below the smallest normal number may come out as any other that is.
        if -tiny < low < tiny and low != 0:
            low = 0.0 if low > 0 else -tiny
        if -tiny < high < tiny and high != 0:
            high = tiny if high > 0 else 0.0
        return low, high

    def multiply(a: Interval, b: Interval) -> Interval:
        if a[0] == a[1]:  # a number
            low, high = a[0] * b[0], a[0] * b[1]
            return widened(low, high) if low <= high else widened(high, low)
        corners = (a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1])
        return widened(min(corners), max(corners)) if not math.isnan(sum(corners)) else ANYTHING

    def divide(a: Interval, b: Interval) -> Interval:
        if b[0] <= 0 <= b[1]:
            return ANYTHING
        corners = (a[0] / b[0], a[0] / b[1], a[1] / b[0], a[1] / b[1])
        return widened(min(corners), max(corners)) if not math.isnan(sum(corners)) else ANYTHING

    def square(a: Interval) -> Interval:
        return widened(0.0 if a[0] <= 0 <= a[1] else min(a[0] * a[0], a[1] * a[1]), max(a[0] * a[0], a[1] * a[1]))

    def absolute(a: Interval) -> Interval:
        if a == ANYTHING:
            return a
        return (0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))), max(abs(a[0]), abs(a[1]))

    def where(condition: Interval, a: Interval, b: Interval) -> Interval:
        if condition[0] == condition[1]:
            return a if condition[0] else b
        return min(a[0], b[0]), max(a[1], b[1])

    return {
        "add": lambda a, b: widened(a[0] + b[0], a[1] + b[1]),
        "subtract": lambda a, b: widened(a[0] - b[1], a[1] - b[0]),
        "multiply": multiply,
        "divide": divide,
        "square": square,
        "negative": lambda a: (-a[1], -a[0]),
        "absolute": absolute,
        "sqrt": lambda a: widened(math.sqrt(a[0]), math.sqrt(a[1])) if a[0] >= 0 else ANYTHING,
        "less": lambda a, b: TRUE if a[1] < b[0] else FALSE if a[0] >= b[1] else EITHER,
        "less_equal": lambda a, b: TRUE if a[1] <= b[0] else FALSE if a[0] > b[1] else EITHER,
        "equal": lambda a, b: FALSE if a[1] < b[0] or b[1] < a[0] else TRUE if a[0] == a[1] == b[0] == b[1] else EITHER,
        "where": where,
        "known": lambda x, a, b: a if x != ANYTHING else (min(a[0], b[0]), max(a[1], b[1])),
        "at_most": lambda a, b: a if a == ANYTHING else (a[0], max(a[0], min(a[1], b[1]))),
        "at_least": lambda a, b: a if a == ANYTHING else (min(a[1], max(a[0], b[0])), a[1]),
    }
