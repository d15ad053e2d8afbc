"""A rule and its surroundings as equations, each over the names of those before it: what `show`, `trace` and `explain` print.

For example, Adam with decoupled weight decay is::

    g = gradient
    m = beta1*m[t-1] + (1 - beta1)*g
    v = beta2*v[t-1] + (1 - beta2)*g**2
    m_hat = m/(1 - beta1**t)
    v_hat = v/(1 - beta2**t)
    direction = m_hat/(sqrt(v_hat) + eps)
    p = p[t-1] - lr*weight_decay*p[t-1] - lr*direction

Nothing is written here: the equations are read off the graph of the rule and those of `rules.prepare` and `rules.apply`.
What is switched off (no clip, no weight decay) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .. import rules
from ..language.arrays import evaluate
from ..language.expression import Expression, Namespace, substitute, symbol
from ..language.graph import postorder
from ..language.notation import rounded
from ..language.program import Rewriter
from ..language.rule import Traced

__all__ = ["Decision", "Equation", "equations", "surroundings"]

Values = Mapping[tuple[str, str], float]

# The gradient is scaled and bounded, but by nothing if these are their values.
NEUTRAL = {"multiply": 1.0, "maximum": -math.inf, "minimum": math.inf}
# What the surroundings call by two names, people call by one.
SHOWN = {("scalar", "coupled_decay"): ("scalar", "weight_decay"), ("scalar", "decoupled_decay"): ("scalar", "weight_decay")}


@dataclass(frozen=True, eq=False)
class Decision:
    """A comparison of numbers that chose between the two branches of a `where`."""

    condition: Expression
    numbers: Expression
    """The comparison with both sides worked out."""
    holds: bool


@dataclass(frozen=True, eq=False)
class Equation:
    """One line of the algorithm: a name and what it is, over symbols only."""

    name: str
    expression: Expression
    decisions: tuple[Decision, ...] = ()


def surroundings(coupling: str, weight_decay: float) -> Values:
    """The scalars of `rules.prepare` and `rules.apply` where gradients are neither scaled nor bounded."""
    return {
        ("scalar", "gradient_scale"): 1.0,
        ("scalar", "clip_value"): math.inf,
        ("scalar", "coupled_decay"): weight_decay if coupling == "coupled" else 0.0,
        ("scalar", "decoupled_decay"): weight_decay if coupling == "decoupled" else 0.0,
    }


def equations(
    traced: Traced, around: Values, values: Values | None = None, *, scale: Expression | None = None, direction: bool = True
) -> list[Equation]:
    """The whole step of a rule as equations, from the gradient to the parameter, in the order of their dependence.

    Args:
        traced: The rule's graph.
        around: The scalars of `rules.prepare` and `rules.apply`.
        values: The scalars of one step, if a comparison of them is to be decided; else both branches are shown.
        scale: What the gradient's scale is made of, if that is to be shown in its place.
        direction: Whether the direction has an equation of its own, or stands in that of the parameter.
    """
    h = Namespace("scalar")
    gradient, p = symbol("tensor", "gradient"), symbol("tensor", "p")
    roots = _interned([*traced.named.values(), traced.direction, rules.apply(p, traced.direction, h)])
    named: dict[int, str] = {}  # values that stand as names in what follows
    for name, root in zip(traced.named, roots, strict=False):
        if root.arguments:
            named.setdefault(id(root), name)
    order = {id(expression): place for place, expression in enumerate(postorder(*roots))}
    lines = sorted(zip(traced.named, roots, strict=False), key=lambda line: order[id(line[1])])
    if direction and roots[-2].arguments and id(roots[-2]) not in named:
        named[id(roots[-2])] = "direction"
        lines.append(("direction", roots[-2]))
    prepared = _settled(rules.prepare(gradient, p, h), around, around)[0]
    if scale is not None:
        (prepared,) = substitute([prepared], {("scalar", "gradient_scale"): scale})
    result = [Equation("g", prepared)]
    for name, root in lines:
        others = {key: other for key, other in named.items() if (key, other) != (id(root), name)}
        result.append(Equation(name, *_settled(_local(root, others), around, {**around, **(values or {})})))
    return [*result, Equation("p", _settled(_local(roots[-1], named), around, around)[0])]


def _interned(roots: list[Expression]) -> list[Expression]:
    """The same graphs, in which equal sub-expressions are one node: a value is then found again by its identity."""
    unique: dict[tuple[object, ...], Expression] = {}
    done: dict[int, Expression] = {}
    for expression in postorder(*roots):
        arguments = tuple(done[id(argument)] for argument in expression.arguments)
        key = (expression.operation, expression.value, *map(id, arguments))
        done[id(expression)] = unique.setdefault(key, Expression(expression.operation, arguments, expression.value))
    return [done[id(root)] for root in roots]


def _local(root: Expression, named: Mapping[int, str]) -> Expression:
    """The expression with every named value in it as a symbol."""
    done: dict[int, Expression] = {}
    for expression in postorder(root):
        arguments = tuple(done[id(argument)] for argument in expression.arguments)
        name = named.get(id(expression))
        done[id(expression)] = symbol("value", name) if name else Expression(expression.operation, arguments, expression.value)
    return done[id(root)]


def _scalar(expression: Expression, values: Values) -> float | None:
    """The value of an expression of known scalars, computed as the optimizer computes it; None for any other."""
    rewritten = Rewriter(frozenset())(expression)
    known = all(node.value in values for node in postorder(rewritten) if node.operation == "symbol")
    return float(evaluate([rewritten], values)[0]) if known else None


def _decide(root: Expression, values: Values) -> dict[int, Decision]:
    """Which branch each `where` takes, if its condition is one of known scalars; what is not taken is not looked at."""
    decided: dict[int, Decision] = {}
    seen: set[int] = set()
    stack = [root]
    while stack:
        expression = stack.pop()
        if id(expression) in seen:
            continue
        seen.add(id(expression))
        arguments = expression.arguments
        holds = _scalar(arguments[0], values) if expression.operation == "where" else None
        if holds is not None:
            condition = arguments[0]
            sides = (Expression("constant", (), rounded(_scalar(side, values) or 0.0)) for side in condition.arguments)
            decided[id(expression)] = Decision(condition, Expression(condition.operation, tuple(sides)), bool(holds))
            arguments = (arguments[1 if holds else 2],)
        stack.extend(reversed(arguments))
    return decided


def _settled(root: Expression, around: Values, values: Values) -> tuple[Expression, tuple[Decision, ...]]:
    """The expression without what is switched off and without branches that are not taken."""
    decided = _decide(root, values)
    bounds = {key: around[key] for key in (("scalar", "gradient_scale"), ("scalar", "clip_value"))}
    done: dict[int, Expression] = {}
    for expression in postorder(root):
        arguments = tuple(done[id(argument)] for argument in expression.arguments)
        decision = decided.get(id(expression))
        if decision:
            done[id(expression)] = arguments[1 if decision.holds else 2]
            continue
        result = Expression(expression.operation, arguments, SHOWN.get(expression.value, expression.value))
        neutral = NEUTRAL.get(expression.operation)
        for place in (0, 1) if neutral is not None else ():
            factor = _scalar(arguments[place], bounds)
            if factor == neutral:
                result = arguments[1 - place]
            elif factor == -1.0 and expression.operation == "multiply":
                result = Expression("negative", (arguments[1 - place],))
        done[id(expression)] = result
    return done[id(root)], tuple(decided.values())
