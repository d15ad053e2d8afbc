"""Working a step out: every line of the algorithm with its numbers, computed from the graph in the arithmetic of the step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rules
from ..engine import Update
from ..language.arrays import compile_scalars, evaluate, run
from ..language.expression import Expression, Namespace, minimum, symbol
from ..language.graph import Node, postorder
from ..language.notation import LATEX, TEXT, Notation, Piece, names_in
from ..language.program import Program, lower
from ..language.rule import Traced
from .data import Line, TracedStep, Value, Written, shown
from .equations import Equation, equations

__all__ = ["Surroundings", "plain", "work_out"]

Array = npt.NDArray[Any]
Values = Mapping[tuple[str, str], Any]
Notations = tuple[Notation, Notation]  # as text, as LaTeX

AFTER = "p[t]"  # no name that a rule could give to a value of its own
UNFLUSHED = "{}[t]"  # nor this
ZERO = "a coordinate divided by 0 counts as 0"
TINY = "a number below the smallest normal one is stored as 0"


@dataclass(frozen=True)
class Surroundings:
    """What a step does to all gradients before the rule sees them."""

    clip_norm: float | None = None
    grad_norm: float = 0.0
    clip_factor: float = 1.0
    clip_value: float | None = None
    scale: float = 1.0
    """What they are multiplied by to free them of a loss scale."""


CLIP_FACTOR, LOSS_SCALE, GRAD_NORM = (symbol("around", name) for name in ("clip_factor", "loss_scale", "grad_norm"))


def work_out(
    update: Update,
    t: int,
    gradient: Array,
    p: Array,
    states: Mapping[str, Any],
    around: Surroundings,
    stored: Mapping[str, float] | None = None,
) -> TracedStep:
    """One step with its numbers.

    Args:
        update: The rule and its hyperparameters in this step.
        t: The step, from 1.
        gradient: As given.
        p: The parameter before the step; like the gradient a vector in the dtype that is worked in.
        states: What the rule remembered before the step, by its own names: vectors like these, floats where it is one number.
        around: What happens to the gradient first.
        stored: What was seen in the parameter and the states afterwards, of a step over one element: a line whose result is another says so.
    """
    traced = update.traced
    bound = math.inf if around.clip_value is None else around.clip_value
    factor = around.clip_factor * around.scale
    memory = [states[name] for name in traced.scalar_states]
    known = {name: float(value) for name, value in update.known(t, factor, bound).items()}
    scalars = known | dict(zip(traced.scalar_states, memory, strict=True))
    g = _compute(rules.PREPARE, {"g": gradient, "p": p}, scalars)["prepared"]
    program = _program(traced)
    results = _compute(program, {"g": g, "p": p, **{name: states[name] for name in program.states}}, scalars)
    results |= dict(zip(traced.scalar_states, update.once(t, factor, bound, memory).memory, strict=True))  # as the engines compute them

    values: dict[tuple[str, str], Any] = {("scalar", name): value for name, value in known.items()}
    values |= {("state", name): state for name, state in states.items()}
    first_lines, scale = _scaling(around, maximize=bool(update.values["maximize"]))
    values |= {CLIP_FACTOR.value: around.clip_factor, GRAD_NORM.value: around.grad_norm, LOSS_SCALE.value: 1 / around.scale if around.scale else 0.0}
    values["scalar", "clip_norm"] = math.inf if around.clip_norm is None else around.clip_norm
    values |= {("tensor", "gradient"): gradient, ("tensor", "g"): g, ("tensor", "p"): p}
    values |= {("value", name): result for name, result in results.items()}
    numbers = {key: value for key, value in values.items() if isinstance(value, float)}
    first, *inner, last = equations(traced, {("scalar", name): value for name, value in known.items()}, numbers, scale=scale)
    named = [(line, around.clip_factor) for line in first_lines]
    named += [(first, g), *((line, results[line.name]) for line in inner), (last, results[AFTER])]
    names = names_in(line.expression for line, _ in named) | {line.name for line, _ in named}
    writing = _Writing(t, values, (TEXT.telling_apart(names), LATEX.telling_apart(names)))
    lines = []
    for line, value in named:
        notes = []
        raw = results.get(UNFLUSHED.format(line.name)) if line.name in program.states else None
        if raw is not None and np.any((value == 0) & (raw != 0)):
            notes.append(_plainly(TINY))
        after = stored.get(line.name) if stored is not None else None
        if after is not None and not _same(float(np.asarray(value).item()), after):
            notes.append(writing.number("stored as", after, p.dtype))
        lines.append(writing.line(line, value, notes))
    return TracedStep(t, tuple(lines))


@functools.lru_cache(maxsize=256)
def _program(traced: Traced) -> Program:
    """Whatever has a name in a step, from the gradient that the rule sees."""
    elements = tuple(name for name in traced.states if name in traced.element_states)
    outputs = {
        **traced.named, "direction": traced.direction, AFTER: rules.apply(rules.P, traced.direction, Namespace("scalar")),
        **{UNFLUSHED.format(name): traced.named[name] for name in elements},
    }  # fmt: skip
    return lower("worked", outputs, states=elements, element_states=traced.element_states)


def _scaling(around: Surroundings, *, maximize: bool) -> tuple[list[Equation], Expression | None]:
    """The lines before the gradient's, and what its scale is made of."""
    lines, factors = [], []
    if around.clip_norm is not None:
        lines.append(Equation("clip_factor", minimum(rules.clip_ratio(GRAD_NORM, symbol("scalar", "clip_norm")), 1.0)))
    if around.clip_factor != 1.0:
        factors.append(CLIP_FACTOR)
    if around.scale != 1.0:
        factors.append(1 / LOSS_SCALE)
    scale = factors[0] * factors[1] if len(factors) > 1 else factors[0] if factors else None
    return lines, -scale if scale is not None and maximize else scale


def _compute(program: Program, arrays: Mapping[str, Array], scalars: Mapping[str, float]) -> dict[str, Any]:
    """The outputs of a program as the engines compute them: vectors, and floats for what is a scalar of the step."""
    computed = compile_scalars(program.scalars)(scalars)
    with np.errstate(all="ignore"):
        outputs = run(program, arrays, computed, np)
    where: Mapping[str, tuple[str, Any]] = program.outputs
    for name, (kind, which) in where.items():
        if kind in ("scalar", "constant"):
            outputs[name] = float(computed[which] if kind == "scalar" else which)
    return {name: np.array(output) if isinstance(output, np.ndarray) else float(output) for name, output in outputs.items()}


def plain(value: Any) -> Value:
    """A scalar or a vector of one as a float, a longer vector as a tuple; exactly."""
    if isinstance(value, float):
        return value
    return float(value[0]) if value.size == 1 else tuple(value.tolist())


def _same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)


def _plainly(text: str) -> Written:
    return Written(text, rf"\text{{{text}}}")


@dataclass(frozen=True)
class _Writing:
    """Writes the equations of step t with these values of their symbols."""

    t: int
    values: Values
    notations: Notations

    def line(self, equation: Equation, value: Any, notes: list[Written]) -> Line:
        """An equation with its numbers, in both notations."""
        decided = []
        for decision in equation.decisions:
            verb = "holds" if decision.holds else "does not hold"
            names, numbers = self._written(decision.condition), self._written(decision.numbers)
            decided.append(Written(f"{names.text} {verb}: {numbers.text}", rf"{names.latex} \text{{ {verb}: }} {numbers.latex}"))
        if self._divides_by_zero(equation.expression):
            decided.append(_plainly(ZERO))
        return Line(
            name=equation.name,
            left=Written(equation.name, self.notations[1].name(equation.name, "t")),
            formula=self._written(equation.expression),
            numbers=self._written(equation.expression, lambda symbol, notation: _digits(self.values[symbol.value], notation)),
            value=plain(value),
            result=Written(*(_digits(value, notation).text for notation in self.notations)),
            symbol=Written(*(notation.name(equation.name, str(self.t)) for notation in self.notations)),
            notes=(*decided, *notes),
        )

    def number(self, words: str, value: float, dtype: Any) -> Written:
        """A note that is a number after some words."""
        text, latex = (_digits(np.array([value], dtype), notation).text for notation in self.notations)
        return Written(f"{words} {text}", rf"\text{{{words} }} {latex}")

    def _written(self, expression: Expression, leaf: Callable[[Node, Notation], Piece] | None = None) -> Written:
        def write(notation: Notation) -> str:
            return notation.write(expression, None if leaf is None else lambda symbol: leaf(symbol, notation))

        return Written(*map(write, self.notations))

    def _divides_by_zero(self, expression: Expression) -> bool:
        """Whether some coordinate is divided by zero, which is defined as 0."""
        vectors = {key: value for key, value in self.values.items() if isinstance(value, np.ndarray)}
        denominators = [node.arguments[1] for node in postorder(expression) if node.operation == "divide"]
        elementwise = [denominator for denominator in denominators if any(leaf.value in vectors for leaf in postorder(denominator))]
        p = vectors["tensor", "p"]
        points = ({key: float(value[i]) if key in vectors else value for key, value in self.values.items()} for i in range(p.size))
        with np.errstate(all="ignore"):
            return any(p.dtype.type(result) == 0 for point in points for result in evaluate(elementwise, point))


def _digits(value: Any, notation: Notation) -> Piece:
    """A number or a vector with the digits that tell it from others of its dtype, at most ten."""
    if isinstance(value, float):
        return notation.value(value)
    exact = [shown(x, value.dtype) for x in value.tolist()]
    return notation.value(exact[0] if len(exact) == 1 else exact)
