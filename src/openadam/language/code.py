"""Printing as numbers: a program for the native interpreter, whose instructions work in slots that are used again (native/code.hpp)."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .graph import postorder
from .program import Instruction, Program

__all__ = ["JOINS", "Code", "Constants", "Scalars", "encode"]

OPERATIONS = (
    "add", "subtract", "multiply", "divide", "negative", "absolute", "sqrt", "less", "less_equal", "equal", "where", "flush", "quotient", "blend",
    "scale_add", "subtract_scaled", "copy", "join",
)  # fmt: skip
LEAVES = ("constant", "hyperparameter", "memory", "t", "gradient_scale")
SCALAR_OPERATIONS = (
    *LEAVES, "add", "subtract", "multiply", "divide", "power", "negative", "absolute", "sqrt", "exp", "expm1", "log", "sign", "maximum", "minimum",
    "less", "less_equal", "equal", "where",
)  # fmt: skip
SLOT, TENSOR, SCALAR, TINY = range(4)
JOINS = ("sum", "max", "octaves")

Argument = tuple[str, Any]
Operand = tuple[int, int]  # kind and index


class Scalars(NamedTuple):
    """What a program computes once a step, as lists of numbers."""

    instructions: list[int]  # operation and three arguments, for each
    constants: list[float]
    roots: list[int]  # which of the values an operand's index counts; the scalar states after the step are the last


class Code(NamedTuple):
    """A program whose outputs are joined over the elements, or written, as lists of numbers."""

    instructions: list[int]  # operation, kind and index of the target and of four operands, for each
    outputs: list[int]  # of those that are joined: how, and the column
    slots: int
    scalars: Scalars


def encode(program: Program, tensors: Sequence[str], joined: Mapping[str, tuple[int, str]], constants: Constants | None = None) -> Code:
    """A program as numbers.

    Args:
        program: What `lower` made.
        tensors: What the interpreter is given, in its order.
        joined: Of the outputs that are joined over the elements their column, and how: one of `JOINS`. The others are written to the tensors of
            their names.
        constants: Of several programs that share their scalars.
    """
    constants = constants or Constants(program)
    joined = {name: joined[name] for name in program.outputs if name in joined}
    printer = _Printer(program, tensors, joined, constants)
    printed = [part for name in joined for part in (JOINS.index(joined[name][1]), joined[name][0])]
    return Code(printer.instructions, printed, max(printer.count, 1), constants.scalars())


class Constants:
    """The scalars of a program, and after them the constants that its instructions turn out to need."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._places: dict[str, tuple[int, float]] = {}

    def place(self, value: float) -> int:
        return self._places.setdefault(repr(value), (len(self._program.scalars) + len(self._places), value))[0]

    def scalars(self) -> Scalars:
        program = self._program
        places: dict[int, int] = {}
        code: list[int] = []
        constants: list[float] = []

        def add(operation: str, *arguments: int) -> int:
            code.extend([SCALAR_OPERATIONS.index(operation), *(list(arguments) + [0] * 3)[:3]])
            return len(code) // 4 - 1

        def constant(value: float) -> int:
            constants.append(float(value))
            return add("constant", len(constants) - 1)

        for expression in postorder(*program.once):
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
        more = [constant(value) for _, value in self._places.values()]
        first, last = ([places[id(each)] for each in roots] for roots in (program.scalars, program.memory.values()))
        return Scalars(code, constants, [*first, *more, *last])


class _Printer:
    """Prints the instructions of a program over the elements, each value to a slot that is free, or to the tensor that it becomes."""

    def __init__(self, program: Program, tensors: Sequence[str], joined: Mapping[str, Any], constants: Constants) -> None:
        self.instructions: list[int] = []
        self.count = 0  # of slots
        self._tensors, self._constants = tensors, constants
        self._places: dict[int, Operand] = {}  # of values
        self._free: list[int] = []
        given: Mapping[str, Argument] = program.outputs
        written = {name: argument for name, argument in given.items() if name not in joined}
        instructions = _fused(program)
        reads = [_values(each.arguments) if each is not None else [] for each in instructions]  # of each instruction
        joins: dict[Argument, list[int]] = {}
        for output, name in enumerate(joined):
            joins.setdefault(given[name], []).append(output)
        at_once = _written_at_once(instructions, written, {name for kind, name in joins if kind == "input"})
        last = {which: place for place, each in enumerate(reads) for which in each}
        last |= {which: len(reads) for name, argument in written.items() for which in _values([argument]) if at_once.get(which) != name}
        kept = {name: self._copied(argument) for name, argument in written.items() if argument[0] == "input" and argument[1] != name}
        for argument, places in joins.items():
            if argument[0] != "value":
                self._join(argument, places)
        for place, each in enumerate(instructions):
            if each is None:
                continue
            operands = [self._operand(argument) for argument in each.arguments]
            for which in {which for which in reads[place] if last[which] == place}:
                self._release(which)
            self._places[place] = (TENSOR, tensors.index(at_once[place])) if place in at_once else self._slot()
            self._add(each.operation, self._places[place], operands)
            self._join(("value", place), joins.get(("value", place), ()))  # at once, so that it need not be kept
            if place not in last:
                self._release(place)
        for name, argument in written.items():
            if name not in at_once.values() and argument != ("input", name):
                self._add("copy", (TENSOR, tensors.index(name)), [kept.get(name) or self._operand(argument)])

    def _operand(self, argument: Argument) -> Operand:
        kind, which = argument
        if kind == "value":
            return self._places[which]
        if kind == "input":
            return TENSOR, self._tensors.index(which)
        if kind == "scalar":
            return SCALAR, which
        return (TINY, 0) if which == "smallest_normal" else (SCALAR, self._constants.place(which))

    def _slot(self) -> Operand:
        if not self._free:
            self._free.append(self.count)
            self.count += 1
        return SLOT, self._free.pop()

    def _release(self, value: int) -> None:
        kind, slot = self._places[value]
        if kind == SLOT:
            self._free.append(slot)

    def _copied(self, argument: Argument) -> Operand:
        """A slot with what a tensor is before the step."""
        slot = self._slot()
        self._add("copy", slot, [self._operand(argument)])
        return slot

    def _join(self, argument: Argument, outputs: Sequence[int]) -> None:
        for output in outputs:
            self._add("join", (SLOT, output), [self._operand(argument)])

    def _add(self, operation: str, target: Operand, operands: list[Operand]) -> None:
        self.instructions.extend([OPERATIONS.index(operation), *target])
        for operand in (operands + [(SLOT, 0)] * 4)[:4]:
            self.instructions.extend(operand)


def _values(arguments: Iterable[tuple[str, Any]]) -> list[int]:
    return [which for kind, which in arguments if kind == "value"]


def _written_at_once(instructions: Sequence[Instruction | None], written: Mapping[str, Argument], joined: set[str]) -> dict[int, str]:
    """Which values are written to their tensor as soon as they are known: nothing reads it afterwards."""
    read: dict[Any, int] = {}
    for place, each in enumerate(instructions):
        read |= {which: place for kind, which in (each.arguments if each is not None else ()) if kind == "input"}
    found: dict[int, str] = {}
    for name, (kind, which) in written.items():
        if kind == "value" and which not in found and read.get(name, -1) <= which and name not in joined:
            found[which] = name
    return found


ZERO: Argument = ("constant", 0.0)


def _fused(program: Program) -> list[Instruction | None]:
    """The instructions, each in its place, where some that belong together have become one: with the same roundings, and less to fetch and store."""
    found: list[Instruction | None] = list(program.instructions)
    uses = collections.Counter(which for each in program.instructions for which in _values(each.arguments))
    uses.update(_values(program.outputs.values()))

    def made(argument: Argument, operation: str) -> Any:
        """The instruction that makes a value for this use alone."""
        kind, which = argument
        each = found[which] if kind == "value" and uses[which] == 1 else None
        return each if each is not None and each.operation == operation else None

    def is_scalar(argument: Argument) -> bool:
        return argument[0] in ("scalar", "constant")

    def product(argument: Argument) -> Any:
        """Its two sides, a scalar first."""
        each = made(argument, "multiply")
        return None if each is None else sorted(each.arguments, key=lambda side: not is_scalar(side))

    def merged(place: int, operation: str, arguments: Sequence[Argument], gone: Sequence[Argument]) -> None:
        found[place] = Instruction(operation, tuple(arguments))
        for _, which in gone:
            found[which] = None

    for place, each in enumerate(program.instructions):
        arguments: Any = each.arguments
        if each.operation == "where" and repr(arguments[1]) == repr(ZERO):
            condition, _, other = arguments
            below, zero, quotient = made(condition, "less"), made(condition, "equal"), made(other, "divide")
            if below is not None and below.arguments[1] == ("constant", "smallest_normal"):
                size = made(below.arguments[0], "absolute")
                if size is not None and size.arguments[0] == other:
                    merged(place, "flush", [other], [condition, below.arguments[0]])
            elif zero is not None and quotient is not None and zero.arguments[1] == ZERO and quotient.arguments[1] == zero.arguments[0]:
                merged(place, "quotient", quotient.arguments, [condition, other])
        elif each.operation == "add":
            first, second = map(product, arguments)
            if first is not None and second is not None and all(is_scalar(a) and not is_scalar(b) for a, b in (first, second)):
                merged(place, "blend", [*first, *second], arguments)
            else:
                for sides, whole, other in ((first, arguments[0], arguments[1]), (second, arguments[1], arguments[0])):
                    if sides is not None and not is_scalar(sides[1]) and not is_scalar(other):
                        merged(place, "scale_add", [*sides, other], [whole])
                        break
        elif each.operation == "subtract":
            sides = product(arguments[1])
            if sides is not None and not is_scalar(sides[1]) and not is_scalar(arguments[0]):
                merged(place, "subtract_scaled", [*sides, arguments[0]], [arguments[1]])
    return found
