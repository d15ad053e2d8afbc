"""Printing as numbers: a program for the native interpreter, whose instructions work in slots that are used again (native/code.hpp)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .graph import postorder
from .program import Program

__all__ = ["Code", "encode"]

OPERATIONS = ("add", "subtract", "multiply", "divide", "negative", "absolute", "sqrt", "less", "less_equal", "equal", "where", "join")
LEAVES = ("constant", "hyperparameter", "memory", "t", "gradient_scale")
SCALAR_OPERATIONS = (
    *LEAVES, "add", "subtract", "multiply", "divide", "power", "negative", "absolute", "sqrt", "exp", "expm1", "log", "sign", "maximum", "minimum",
    "less", "less_equal", "equal", "where",
)  # fmt: skip
SLOT, INPUT, SCALAR, TINY = range(4)
JOINS = ("sum", "max", "octaves")


class Code(NamedTuple):
    """A program whose outputs are joined over the elements, as lists of numbers."""

    instructions: list[int]  # operation, slot, and kind and index of three operands, for each
    outputs: list[int]  # how it is joined, and the column, for each
    slots: int
    scalars: list[int]  # operation and three arguments, for each
    constants: list[float]  # of the scalars
    roots: list[int]  # which of the scalars an operand's index counts


def encode(program: Program, inputs: Sequence[str], outputs: Mapping[str, tuple[int, str]]) -> Code:
    """A program as numbers.

    Args:
        program: What `lower` made.
        inputs: What the interpreter is given, in its order.
        outputs: Of each output its column, and how its elements are joined: one of `JOINS`.
    """
    used = {argument[1]: place for place, each in enumerate(program.instructions) for argument in each.arguments if argument[0] == "value"}
    asked: dict[tuple[str, Any], list[int]] = {}  # which outputs a value is
    for place, argument in enumerate(program.outputs.values()):
        asked.setdefault(argument, []).append(place)
    constants: dict[str, float] = {}
    slots: dict[Any, int] = {}
    free: list[int] = []
    count = 0

    def operand(argument: tuple[str, Any]) -> tuple[int, int]:
        kind, which = argument
        if kind == "value":
            return SLOT, slots[which]
        if kind == "input":
            return INPUT, inputs.index(which)
        if kind == "scalar":
            return SCALAR, which
        if which == "smallest_normal":
            return TINY, 0
        constants.setdefault(repr(which), which)
        return SCALAR, len(program.scalars) + list(constants).index(repr(which))

    instructions: list[int] = []

    def add(operation: str, target: int, operands: list[tuple[int, int]]) -> None:
        instructions.extend([OPERATIONS.index(operation), target])
        for kind, index in (operands + [(SLOT, 0)] * 3)[:3]:
            instructions.extend([kind, index])

    for argument, places in asked.items():
        if argument[0] != "value":
            for place in places:
                add("join", place, [operand(argument)])
    for place, each in enumerate(program.instructions):
        operands = [operand(argument) for argument in each.arguments]
        free += {slots[which] for kind, which in each.arguments if kind == "value" and used[which] == place}
        if free:
            slots[place] = free.pop()
        else:
            slots[place], count = count, count + 1
        add(each.operation, slots[place], operands)
        for output in asked.get(("value", place), ()):  # at once, so that it need not be kept
            add("join", output, [(SLOT, slots[place])])
        if place not in used:
            free.append(slots[place])
    joined: list[int] = []
    for name in program.outputs:
        column, join = outputs[name]
        joined += [JOINS.index(join), column]
    return Code(instructions, joined, max(count, 1), *_scalars(program, list(constants.values())))


def _scalars(program: Program, more: Sequence[float]) -> tuple[list[int], list[float], list[int]]:
    """What is computed once a step, and after it some constants."""
    places: dict[int, int] = {}
    code: list[int] = []
    constants: list[float] = []

    def add(operation: str, *arguments: int) -> int:
        code.extend([SCALAR_OPERATIONS.index(operation), *(list(arguments) + [0] * 3)[:3]])
        return len(code) // 4 - 1

    def constant(value: float) -> int:
        constants.append(float(value))
        return add("constant", len(constants) - 1)

    for expression in postorder(*program.scalars):
        if expression.operation == "constant":
            places[id(expression)] = constant(expression.value)
        elif expression.operation == "symbol":
            space, name = expression.value
            if space == "state":
                places[id(expression)] = add("memory", list(program.memory).index(name))
            elif name in LEAVES:
                places[id(expression)] = add(name)
            else:
                places[id(expression)] = add("hyperparameter", program.hyperparameters.index(name))
        else:
            places[id(expression)] = add(expression.operation, *(places[id(argument)] for argument in expression.arguments))
    return code, constants, [*(places[id(root)] for root in program.scalars), *map(constant, more)]
