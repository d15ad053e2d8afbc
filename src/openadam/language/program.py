"""Lowering: a traced rule, put in its surroundings and rewritten, becomes one list of operations for every back end.

The rewrites, each applied to the graph so that all back ends agree bit for bit:

- ``1 - b**t`` becomes ``-expm1(t * log(b))`` where b > 0: the plain form cancels (off by 1.3e-5 in float32 at b = 0.999, t = 1).
- ``2 / (1 - b) - 1 - 2*n*b**n / (1 - b**n)``, the length of an average after n steps (RAdam's rho), becomes a series where n is small beside
  that length: its two parts, of about ``2 / (1 - b)`` each, cancel (by 7e-5 at b = 1 - 1e-12).
- An element divided by a scalar is multiplied by the scalar's reciprocal, which is rounded once.
- An element divided by an element is 0 where the denominator is 0: a coordinate without history does not move.
- An element raised to a whole number is multiplied out; raised to 0.5, its square root is taken.
- A new state whose magnitude is below the smallest normal number is stored as 0: subnormal numbers never decay
  away and slow the step down.
- Maximum, minimum and sign become comparisons and choices, so that NaN and signed zero come out alike everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from .expression import Expression, as_expression, log
from .graph import postorder

__all__ = ["SMALLEST_NORMAL", "Instruction", "Program", "lower", "together"]

SMALLEST_NORMAL = Expression("constant", value="smallest_normal")
"""Of the dtype that is worked in."""


@dataclass(frozen=True)
class Instruction:
    """One elementwise operation; its arguments are ``("value", i)``, ``("input", name)``, ``("scalar", i)``, ``("constant", x)``."""

    operation: str
    arguments: tuple[tuple[str, object], ...]


@dataclass(frozen=True, eq=False)
class Program:
    """Straight-line elementwise code: what the kernels are printed from and what the reference evaluates."""

    name: str
    inputs: tuple[str, ...]  # tensors that are read: g, p and states
    scalars: tuple[Expression, ...]  # computed once a step, in float64, and rounded once
    instructions: tuple[Instruction, ...]
    outputs: Mapping[str, tuple[str, object]]  # tensor that is written -> argument
    states: tuple[str, ...] = ()  # element states, in table order
    memory: Mapping[str, Expression] = field(default_factory=dict)  # scalar states -> what they become

    @property
    def once(self) -> tuple[Expression, ...]:
        """What is computed once a step, in float64: the scalars, then the scalar states after it."""
        return (*self.scalars, *self.memory.values())

    @cached_property
    def hyperparameters(self) -> tuple[str, ...]:
        """What the scalars are computed from, beside the scalar states, the step number ``t`` and ``gradient_scale``."""
        symbols = (expression.value for expression in postorder(*self.once) if expression.operation == "symbol")
        return tuple(dict.fromkeys(name for space, name in symbols if space == "scalar" and name not in ("t", "gradient_scale")))

    @cached_property
    def digest(self) -> str:
        """Identifies the operations and their order, once a step and for each element: a kernel is used only if its digest is this one."""
        places: dict[int, int] = {}
        once = []
        for expression in postorder(*self.once):
            once.append((expression.operation, expression.value, [places[id(argument)] for argument in expression.arguments]))
            places[id(expression)] = len(places)
        asked = [places[id(root)] for root in self.once]
        listing = repr((self.inputs, self.instructions, sorted(self.outputs.items()), self.states, tuple(self.memory), once, asked))
        return hashlib.sha256(listing.encode()).hexdigest()[:16]


def together(program: Program, other: Program, named: Mapping[str, str]) -> Program:
    """A program that also computes what another does, which has no scalars, of the same elements.

    Args:
        program: The one.
        other: The other.
        named: Of the other's inputs those that are outputs of the one.
    """
    shift = len(program.instructions)

    def argument(pair: tuple[str, Any]) -> tuple[str, object]:
        kind, which = pair
        if kind == "value":
            return kind, which + shift
        return program.outputs[named[which]] if kind == "input" and which in named else pair

    instructions = tuple(Instruction(each.operation, tuple(map(argument, each.arguments))) for each in other.instructions)
    outputs = {name: argument(pair) for name, pair in other.outputs.items()}
    inputs = dict.fromkeys([*program.inputs, *(name for name in other.inputs if name not in named)])
    return replace(program, inputs=tuple(inputs), instructions=program.instructions + instructions, outputs={**program.outputs, **outputs})


def length_of_an_average(expression: Expression) -> tuple[Expression, Expression] | None:
    """B and n where an expression is ``2 / (1 - b) - 1 - 2*n*b**n / (1 - b**n)``, written in this way."""
    last = expression.arguments[1]
    if last.operation != "divide" or last.arguments[1].operation != "subtract" or last.arguments[1].arguments[1].operation != "power":
        return None
    b, n = last.arguments[1].arguments[1].arguments
    return (b, n) if repr(expression) == repr(2 / (1 - b) - 1 - 2 * n * b**n / (1 - b**n)) else None


SMALL = 0.3  # up to here the series below is exact to a unit in the last place of 1


def langevin(x: Expression) -> Expression:
    """Langevin's function coth(x) - 1/x, for small x.

    With ``x = -n*log(b)/2`` the length of an average is ``n + langevin(x/n) - n*langevin(x)``, in which the large parts are gone.
    """
    square = x * x
    total = as_expression(0.0)
    for coefficient in (4 / 18243225, -1382 / 638512875, 2 / 93555, -1 / 4725, 2 / 945, -1 / 45, 1 / 3):
        total = total * square + coefficient
    return total * x


class Rewriter:
    """Applies the rewrites bottom-up; equal sub-expressions become one node."""

    def __init__(self, element_states: frozenset[str]) -> None:
        self.element_states = element_states
        self.unique: dict[tuple[object, ...], Expression] = {}
        self.rewritten: dict[int, Expression] = {}
        self.elements: dict[int, bool] = {}
        self.alive: list[Expression] = []  # ids are keys above, so nothing may be freed

    def intern(self, operation: str, *arguments: Expression, value: Any = None) -> Expression:
        key = (operation, repr(value), *(id(argument) for argument in arguments))  # by repr, -0.0 is not 0.0
        if key not in self.unique:
            expression = self.unique[key] = Expression(operation, arguments, value)
            is_leaf = operation == "symbol" and (value[0] == "tensor" or (value[0] == "state" and value[1] in self.element_states))
            self.elements[id(expression)] = is_leaf or any(map(self.is_element, arguments))
        return self.unique[key]

    def constant(self, value: float) -> Expression:
        return self.intern("constant", value=float(value))

    def is_element(self, expression: Expression) -> bool:
        """Whether a rewritten expression differs from element to element."""
        return self.elements[id(expression)]

    def __call__(self, root: Expression) -> Expression:
        for expression in postorder(root):
            if id(expression) not in self.rewritten:
                self.alive.append(expression)
                arguments = [self.rewritten[id(argument)] for argument in expression.arguments]
                self.rewritten[id(expression)] = self.rewrite(expression, arguments)
        return self.rewritten[id(root)]

    def rewrite(self, expression: Expression, arguments: list[Expression]) -> Expression:
        operation = expression.operation
        if not arguments:
            return self.intern(operation, value=expression.value)
        if not any(self.is_element(argument) for argument in arguments):
            return self.rewrite_scalar(expression, arguments)
        zero = self.constant(0.0)
        if operation == "divide":
            a, b = arguments
            if not self.is_element(b):
                return self.intern("multiply", a, self.intern("divide", self.constant(1.0), b))
            return self.intern("where", self.intern("equal", b, zero), zero, self.intern("divide", a, b))
        if operation == "power":
            base, exponent = arguments
            return self.intern("sqrt", base) if exponent.value == 0.5 else self.multiply_out(base, int(exponent.value))
        if operation in ("maximum", "minimum"):
            a, b = arguments
            a_wins = self.intern("less", *((b, a) if operation == "maximum" else (a, b)))
            # NaN in b loses no comparison and so is chosen; NaN in a must be asked for.
            chosen = self.intern("where", a_wins, a, b)
            return self.intern("where", self.intern("equal", a, a), chosen, a)
        if operation == "sign":
            (a,) = arguments
            below = self.intern("where", self.intern("less", a, zero), self.constant(-1.0), a)  # zero and NaN stay
            return self.intern("where", self.intern("less", zero, a), self.constant(1.0), below)
        return self.intern(operation, *arguments)

    def rewrite_scalar(self, expression: Expression, arguments: list[Expression]) -> Expression:
        operation = expression.operation
        if operation == "subtract":
            a, b = arguments
            if a.operation == "constant" and a.value == 1.0 and b.operation == "power":
                base, exponent = b.arguments
                exact = self.intern("negative", self.intern("expm1", self.intern("multiply", exponent, self.intern("log", base))))
                plain = self.intern(operation, *arguments)
                return self.intern("where", self.intern("less", self.constant(0.0), base), exact, plain)
            parts = length_of_an_average(expression)
            if parts is not None:
                base, steps = parts
                x = steps * log(base) / -2
                early = self(steps + langevin(x / steps) - steps * langevin(x))
                return self.intern("where", self(x < SMALL), early, self.intern(operation, *arguments))
        return self.intern(operation, *arguments)

    def multiply_out(self, base: Expression, exponent: int) -> Expression:
        if exponent == 1:
            return base
        half = self.multiply_out(base, exponent // 2)
        square = self.intern("multiply", half, half)
        return self.intern("multiply", square, base) if exponent % 2 else square

    def flush(self, state: Expression) -> Expression:
        """The state as it is stored: without subnormal numbers."""
        tiny = self.intern("constant", value="smallest_normal")
        return self.intern("where", self.intern("less", self.intern("absolute", state), tiny), self.constant(0.0), state)


def lower(
    name: str,
    outputs: Mapping[str, Expression],
    *,
    states: tuple[str, ...] = (),
    element_states: frozenset[str] = frozenset(),
    memory: Mapping[str, Expression] | None = None,
) -> Program:
    """One program that computes the outputs; those named as states are flushed. ``memory`` is what scalar states become."""
    rewriter = Rewriter(element_states)
    roots = {target: rewriter(expression) for target, expression in outputs.items()}
    roots = {target: rewriter.flush(root) if target in states else root for target, root in roots.items()}
    inputs: dict[str, None] = {}
    scalars: list[Expression] = []
    instructions: list[Instruction] = []
    places: dict[int, tuple[str, object]] = {}

    def argument(expression: Expression) -> tuple[str, object]:
        """Where an operand is found; a scalar that meets an element for the first time is numbered."""
        if expression.operation == "constant":
            return ("constant", expression.value)
        if id(expression) not in places:
            places[id(expression)] = ("scalar", len(scalars))
            scalars.append(expression)
        return places[id(expression)]

    for expression in postorder(*roots.values()):
        if not rewriter.is_element(expression):
            continue
        if expression.operation == "symbol":
            _, symbol_name = expression.value
            inputs.setdefault(symbol_name)
            places[id(expression)] = ("input", symbol_name)
        else:
            instructions.append(Instruction(expression.operation, tuple(map(argument, expression.arguments))))
            places[id(expression)] = ("value", len(instructions) - 1)
    outputs_at = {target: argument(root) for target, root in roots.items()}
    return Program(
        name=name,
        inputs=tuple(inputs),
        scalars=tuple(scalars),
        instructions=tuple(instructions),
        outputs=outputs_at,
        states=states,
        memory=dict(memory or {}),
    )
