"""Expressions: nodes with the operators of Python, the functions of the language, and the namespaces that symbols come from."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any, NoReturn

from ..errors import RuleError
from .graph import Node, postorder
from .notation import text

__all__ = [
    "Expression",
    "exp",
    "log",
    "maximum",
    "minimum",
    "sign",
    "sqrt",
    "substitute",
    "where",
]


# Operation -> number of arguments. "symbol" and "constant" are the leaves.
ARITIES = {
    "add": 2, "subtract": 2, "multiply": 2, "divide": 2, "power": 2, "negative": 1, "absolute": 1, "sqrt": 1,
    "exp": 1, "expm1": 1, "log": 1, "sign": 1, "maximum": 2, "minimum": 2,
    "less": 2, "less_equal": 2, "equal": 2, "where": 3,
}  # fmt: skip
CONDITIONS = frozenset({"less", "less_equal", "equal"})
UFUNCS = {"add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide", "true_divide": "divide", "power": "power"}
"""NumPy's names of operators, by which its own numbers calculate with symbols."""


class Expression(Node):
    """A node that one calculates with: operators make nodes, and what the language lacks is refused by name.

    The gradient ``g`` of a rule is one, and whatever is made of it; numbers are taken as they are.

    >>> import openadam
    >>> @openadam.rule
    ... def sign_descent(g: openadam.Expression, s: openadam.Namespace, h: openadam.Namespace) -> openadam.Step:
    ...     return openadam.Step(openadam.where(g < 0, -h.size, h.size))
    >>> sign_descent.hyperparameters
    ['lr', 'weight_decay', 'size']
    """

    __slots__ = ()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Expression:
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            _refuse_function(ufunc.__name__)
        return node(UFUNCS[ufunc.__name__], *inputs)

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        _refuse_function(function.__name__)

    @property
    def is_condition(self) -> bool:
        return self.operation in CONDITIONS

    def key(self) -> tuple[str, Any]:
        """What distinguishes a leaf from other leaves."""
        return (self.operation, self.value)

    def __add__(self, other: Any) -> Expression:
        return node("add", self, other)

    def __radd__(self, other: Any) -> Expression:
        return node("add", other, self)

    def __sub__(self, other: Any) -> Expression:
        return node("subtract", self, other)

    def __rsub__(self, other: Any) -> Expression:
        return node("subtract", other, self)

    def __mul__(self, other: Any) -> Expression:
        return node("multiply", self, other)

    def __rmul__(self, other: Any) -> Expression:
        return node("multiply", other, self)

    def __truediv__(self, other: Any) -> Expression:
        return node("divide", self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return node("divide", other, self)

    def __pow__(self, other: Any) -> Expression:
        return node("power", self, other)

    def __rpow__(self, other: Any) -> Expression:
        return node("power", other, self)

    def __pos__(self) -> Expression:
        return self

    def __neg__(self) -> Expression:
        return node("negative", self)

    def __abs__(self) -> Expression:
        return node("absolute", self)

    def __lt__(self, other: Any) -> Expression:
        return node("less", self, other)

    def __le__(self, other: Any) -> Expression:
        return node("less_equal", self, other)

    def __gt__(self, other: Any) -> Expression:
        return node("less", other, self)

    def __ge__(self, other: Any) -> Expression:
        return node("less_equal", other, self)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return node("equal", self, other)

    def __ne__(self, other: object) -> NoReturn:
        raise RuleError("`!=` is not in the language; swap the branches of where(a == b, …, …)")

    __hash__ = None  # type: ignore[assignment]  # `==` builds a graph, so a set or dict of expressions would lie

    def __bool__(self) -> NoReturn:
        raise RuleError("a rule cannot branch on a value (`if`, `and`, `or`, `not`, `min`, `max`); use where, maximum, minimum")

    def __and__(self, other: object) -> NoReturn:
        raise RuleError("comparisons cannot be joined (`&`, `|`, `~`); nest them: where(a < b, where(b < c, x, y), y)")

    __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __and__

    def __invert__(self) -> NoReturn:
        self.__and__(self)

    def __float__(self) -> NoReturn:
        raise RuleError("a rule cannot turn a symbol into a number (`float`, `math.…`); use openadam.sqrt, openadam.exp, openadam.log")

    __int__ = __index__ = __complex__ = __float__

    def __iter__(self) -> NoReturn:
        raise RuleError("a rule is elementwise: a symbol has no items to iterate over or index")

    def __getitem__(self, index: object) -> NoReturn:
        raise RuleError("a rule is elementwise: a symbol has no items to iterate over or index")

    def __matmul__(self, other: object) -> NoReturn:
        raise RuleError("a rule is elementwise: there is no matrix product in the language")

    __rmatmul__ = __matmul__

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)  # what Python and its tools look for
        raise RuleError(f"a symbol has no attribute or method `{name}`; the language has operators and functions only")

    def __repr__(self) -> str:
        return text(self)


def as_expression(value: Any) -> Expression:
    if isinstance(value, Expression):
        return value
    number: Any = value if not isinstance(value, bool) and isinstance(value, numbers.Real) else None  # NumPy's numbers among them
    if number is not None:
        try:
            constant = float(number)
        except OverflowError:
            raise RuleError("a constant of the rule is too large for a float") from None
        if not math.isfinite(constant):
            raise RuleError(f"the constant {value!r} is not finite")
        return Expression("constant", (), constant)
    raise RuleError(f"{value!r} ({type(value).__name__}) cannot stand in a rule; use symbols and plain numbers")


def _refuse_function(name: str) -> NoReturn:
    """Refuse a function of NumPy, with what there is in its place."""
    instead = {"absolute": "abs(x)", "square": "x**2"}.get(name, f"openadam.{name}(…)" if name in FUNCTIONS else "")
    raise RuleError(f"np.{name} is not in the language; " + (f"write {instead}" if instead else f"it has operators and {', '.join(FUNCTIONS)}"))


FUNCTIONS = ("sqrt", "exp", "log", "sign", "maximum", "minimum", "where", "abs")


def symbol(space: str, name: str) -> Expression:
    return Expression("symbol", (), (space, name))


def node(operation: str, *arguments: Any) -> Expression:
    expressions = tuple(as_expression(argument) for argument in arguments)
    for position, expression in enumerate(expressions):
        wants_condition = operation == "where" and position == 0
        if expression.is_condition != wants_condition:
            if wants_condition:
                raise RuleError("the first argument of where must be a comparison")
            raise RuleError("a comparison can only be the first argument of where(condition, a, b)")
    made = Expression(operation, expressions)
    if operation in ("power", "exp", "log"):
        made.line = _line_of_the_rule()
    return made


def _line_of_the_rule() -> tuple[str, int] | None:
    """The line, outside of this file, that is being traced."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None


def sqrt(x: Any) -> Expression:
    """Square root; correctly rounded on every back end.

    >>> h = Namespace("scalar")
    >>> sqrt(h.t)
    sqrt(t)
    """
    return node("sqrt", x)


def exp(x: Any) -> Expression:
    """Exponential, of scalars only.

    >>> h = Namespace("scalar")
    >>> exp(-h.t)
    exp(-t)
    """
    return node("exp", x)


def log(x: Any) -> Expression:
    """Natural logarithm, of scalars only.

    >>> h = Namespace("scalar")
    >>> log(h.t + 1)
    log(t + 1)
    """
    return node("log", x)


def sign(x: Any) -> Expression:
    """The sign: -1, 0 or 1; NaN stays NaN.

    >>> h = Namespace("scalar")
    >>> sign(h.x)
    sign(x)
    """
    return node("sign", x)


def maximum(a: Any, b: Any) -> Expression:
    """The larger of two; NaN if either is NaN.

    >>> h = Namespace("scalar")
    >>> maximum(h.x, 0)
    maximum(x, 0)
    """
    return node("maximum", a, b)


def minimum(a: Any, b: Any) -> Expression:
    """The smaller of two; NaN if either is NaN.

    >>> h = Namespace("scalar")
    >>> minimum(h.x, 1)
    minimum(x, 1)
    """
    return node("minimum", a, b)


def where(condition: Any, a: Any, b: Any) -> Expression:
    """``a`` where the comparison holds, else ``b``.

    >>> h = Namespace("scalar")
    >>> where(h.t == 1, h.a, h.b)
    where(t == 1, a, b)
    """
    return node("where", condition, a, b)


def substitute(
    roots: Sequence[Expression], replacements: Mapping[tuple[str, str], Expression], nodes: Mapping[int, Expression] = MappingProxyType({})
) -> list[Expression]:
    """The same expressions with symbols, given by (space, name), replaced; and nodes, given by their ids."""
    results: dict[int, Expression] = {}
    for expression in postorder(*roots):
        if id(expression) in nodes:
            results[id(expression)] = nodes[id(expression)]
        elif expression.operation == "symbol":
            results[id(expression)] = replacements.get(expression.value, expression)
        elif expression.arguments:
            arguments = tuple(results[id(argument)] for argument in expression.arguments)
            results[id(expression)] = Expression(expression.operation, arguments, expression.value)
        else:
            results[id(expression)] = expression
    return [results[id(root)] for root in roots]


class Namespace:
    """The ``s`` and ``h`` of a rule: reading any name gives its symbol, and is remembered.

    >>> import openadam
    >>> @openadam.rule
    ... def heavy_ball(g: openadam.Expression, s: openadam.Namespace, h: openadam.Namespace) -> openadam.Step:
    ...     m = h.momentum * s.m + g
    ...     return openadam.Step(m, m=m)
    >>> heavy_ball.traces()[0].states
    ('m',)
    """

    def __init__(self, space: str) -> None:
        self._space = space
        self._symbols: dict[str, Expression] = {}

    def __getattr__(self, name: str) -> Expression:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._space == "state" and name == "p":
            raise RuleError("a rule does not see the parameter: weight decay is around a rule, `weight_decay=…` of the optimizer")
        return self._symbols.setdefault(name, symbol(self._space, name))

    def __getitem__(self, name: object) -> NoReturn:
        raise RuleError(f"names are read with a dot: write {'s' if self._space == 'state' else 'h'}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise RuleError(f"`{name}` cannot be assigned inside a rule; return the new state as Step(direction, {name}=…)")
        super().__setattr__(name, value)
