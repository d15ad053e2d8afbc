"""The oracle: one step of a rule as its author wrote it, at 300 bits, and how far rounding may carry an implementation.

The value comes from the graph as traced, before any rewrite, evaluated with mpmath; stored numbers and hyperparameters are taken as
exact. The bound comes with it, from the standard model of rounding applied to each operation of the same graph: the result of an
operation on numbers that are already off by so much is off by what these errors make of it, and by half a unit in
its own last place. So every rule, of whatever author, has its bound without anyone deriving it. For Adam it
comes to (u is half an ulp of 1):

    v    4u |v|                                    three operations and two rounded scalars, all of one sign
    m    3u (|beta1 m| + |(1 - beta1) g|)          relative to the terms, since m may cancel
    D    lr err(m_hat) / denominator + 10u |D|     the update; the root halves what v is off by (16u in float64, where the
                                                   corrections have no precision to spare; 8u is what is met in practice)
    p    half an ulp of p, and the error of D      decoupled decay adds u |p| (1 + 2 lr weight_decay)

What the package promises about its arithmetic enters in four places: `1 - b**t` is within 2 ulp although it cancels, dividing by a
scalar is multiplying by its reciprocal, dividing by 0 gives 0, and a state below the smallest normal number is stored as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from family import Variant
from mpmath import mp

from openadam import Optimizer, rules
from openadam.language.arrays import evaluate
from openadam.language.expression import Namespace, symbol
from openadam.language.rule import Traced

Array = npt.NDArray[Any]

exact = mp.clone()  # of its own, so that nobody else's precision changes
exact.prec = 300
_exactly = np.frompyfunc(lambda x: exact.mpf(float(x)), 1, 1)
_signs = np.frompyfunc(lambda x: exact.sign(x), 1, 1)
_root = np.frompyfunc(lambda x: exact.sqrt(x) if x >= 0 else exact.nan, 1, 1)


class Bounded:
    """A number of the step, or an array of them: the exact value, and how far an implementation may be from it."""

    def __init__(self, value: Any, error: Any = 0.0, *, power: bool = False) -> None:
        self.value = value
        self.error = error
        self.power = power  # whether this is b**t, so that 1 - b**t is known when it comes

    @property
    def is_element(self) -> bool:
        """Whether it differs from element to element; otherwise it is a scalar of the step."""
        return isinstance(self.value, np.ndarray)

    @cached_property
    def size(self) -> Any:
        """The magnitude, as float64: what errors are reckoned with."""
        return np.abs(np.asarray(self.value, np.float64))


class Condition:
    """A comparison: what is true, and where rounding cannot turn it."""

    def __init__(self, true: Any, certain: Any) -> None:
        self.true, self.certain = true, certain


class Arithmetic:
    """The operations of the language: scalars in float64, elements in ``dtype``, a scalar rounded once where it meets elements.

    Values are put together by NumPy's functions, not by operators: an mpmath number that meets an array tries to read it first.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.functions: dict[str, Callable[..., Any]] = {
            "add": self.add, "subtract": self.subtract, "multiply": self.multiply, "divide": self.divide, "power": self.power,
            "negative": lambda a: Bounded(-a.value, a.error), "absolute": lambda a: Bounded(abs(a.value), a.error), "sqrt": self.sqrt,
            "maximum": lambda a, b: self.choose(np.greater, a, b), "minimum": lambda a, b: self.choose(np.less, a, b),
            "less": lambda a, b: self.compare(np.less, a, b), "less_equal": lambda a, b: self.compare(np.less_equal, a, b),
            "equal": lambda a, b: self.compare(np.equal, a, b), "where": self.where,
            "sign": self.sign,
        }  # fmt: skip

    def half_ulp(self, size: Any, dtype: Any) -> Any:
        """The most that rounding to nearest changes a number of this size; 0, infinity and NaN are what they are."""
        with np.errstate(over="ignore", invalid="ignore"):
            spacing = np.spacing(np.asarray(size).astype(dtype)).astype(np.float64)
        half = np.maximum(spacing / 2, np.finfo(np.float64).smallest_subnormal)
        return np.where(np.isfinite(spacing) & (size != 0), half, 0.0)

    def rounded(self, value: Any, error: Any) -> Bounded:
        """The result of one operation: its arguments' errors, and its own."""
        result = Bounded(value, error)
        result.error = error + self.half_ulp(result.size + error, self.dtype if result.is_element else np.float64)
        return result

    def as_given(self, a: Any) -> Bounded:
        """A constant of the rule, which the graph holds as a number, exact."""
        return a if isinstance(a, Bounded) else Bounded(exact.mpf(a))

    def meeting(self, a: Any, b: Any) -> tuple[Bounded, Bounded]:
        """Both arguments as the operation sees them: a scalar is rounded to the elements' dtype."""
        a, b = self.as_given(a), self.as_given(b)
        if a.is_element == b.is_element:
            return a, b
        scalar = b if a.is_element else a
        number = float(scalar.value)
        if not (scalar.error == 0 and self.dtype.type(number) == scalar.value) and self.dtype != np.float64:
            scalar = Bounded(scalar.value, scalar.error + self.half_ulp(scalar.size, self.dtype))
        return (a, scalar) if a.is_element else (scalar, b)

    def add(self, a: Any, b: Any) -> Bounded:
        a, b = self.meeting(a, b)
        return self.rounded(np.add(a.value, b.value), a.error + b.error)

    def subtract(self, a: Any, b: Any) -> Bounded:
        a, b = self.meeting(a, b)
        if b.power and a.value == 1 and not a.error:
            value = a.value - b.value
            return Bounded(value, 2 * np.spacing(float(value)))
        return self.rounded(np.subtract(a.value, b.value), a.error + b.error)

    def multiply(self, a: Any, b: Any) -> Bounded:
        a, b = self.meeting(a, b)
        value, error = np.multiply(a.value, b.value), a.size * b.error + a.error * b.size + a.error * b.error
        unit = any(not x.is_element and abs(x.value) == 1 and not x.error for x in (a, b))
        return Bounded(value, error) if unit else self.rounded(value, error)

    def divide(self, a: Any, b: Any) -> Bounded:
        a, b = self.as_given(a), self.as_given(b)
        if a.is_element and not b.is_element:
            return self.multiply(a, self.divide(1, b))
        a, b = self.meeting(a, b)
        none = b.value == 0
        if not b.is_element and none:
            return Bounded(exact.nan, np.inf)
        value = np.divide(a.value, np.where(none, exact.mpf(1), b.value) if b.is_element else b.value)
        least = np.maximum(b.size - b.error, 0.0)  # of what the divisor may be
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(least > 0, (a.error + a.size / b.size * b.error) / least, np.inf)
        if b.is_element:
            value = np.where(none, exact.mpf(0), value)
            error = np.where(none & (b.error == 0), 0.0, error)
        return self.rounded(value, error)

    def power(self, a: Any, b: Any) -> Bounded:
        a, b = self.as_given(a), self.as_given(b)
        if a.is_element:
            assert b.value == 2, "of elements, the rules take squares only"
            return self.multiply(a, a)
        value = exact.power(a.value, b.value)
        base = float(a.value)
        error = 0.0 if base == 0 else float(abs(value)) * (abs(float(b.value)) * a.error / base + abs(np.log(base)) * b.error)
        return Bounded(value, error + np.spacing(float(value)), power=True)

    def sqrt(self, a: Any) -> Bounded:
        a = self.as_given(a)
        total = np.sqrt(np.maximum(a.size - a.error, 0.0)) + np.sqrt(a.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(total == 0, np.sqrt(a.error), a.error / total)
        return self.rounded(_root(a.value), error)

    def choose(self, wins: Callable[..., Any], a: Any, b: Any) -> Bounded:
        """The larger or smaller: off by no more than the worse of the two, whichever rounding picks."""
        a, b = self.meeting(a, b)
        if not a.is_element and not b.is_element:
            return Bounded(a.value if wins(a.value, b.value) else b.value, max(a.error, b.error))
        first = np.asarray(wins(a.value, b.value), bool)
        near = np.abs(np.asarray(np.subtract(a.value, b.value), np.float64)) <= a.error + b.error
        own = np.where(first, a.error, b.error)
        return Bounded(np.where(first, a.value, b.value), np.where(near, np.maximum(a.error, b.error), own))

    def compare(self, holds: Callable[..., Any], a: Any, b: Any) -> Condition:
        a, b = self.meeting(a, b)
        distance = np.abs(np.asarray(np.subtract(a.value, b.value), np.float64))
        error = a.error + b.error
        return Condition(np.asarray(holds(a.value, b.value), bool), (error == 0) | (distance > error))

    def sign(self, a: Any) -> Bounded:
        """Exact, but where an error could turn it."""
        a = self.as_given(a)
        if not a.is_element:
            assert a.size > a.error, "a scalar whose sign rounding could turn: choose other test values"
            return Bounded(exact.sign(a.value))
        return Bounded(_signs(a.value), np.where((a.error > 0) & (a.size <= a.error), 2.0, 0.0))

    def where(self, condition: Condition, a: Any, b: Any) -> Bounded:
        a, b = self.as_given(a), self.as_given(b)
        if condition.true.ndim == 0:
            assert condition.certain, "a scalar condition that rounding could turn: choose other test values"
            return a if condition.true else b
        a, b = self.meeting(a, b)
        off = np.where(condition.true, a.error, b.error)
        either = np.maximum(a.error, b.error) + np.abs(np.asarray(np.subtract(a.value, b.value), np.float64))
        return Bounded(np.where(condition.true, a.value, b.value), np.where(condition.certain, off, either))


def one_step(traced: Traced, scalars: Mapping[str, float], states: Mapping[str, Any], p: Array, g: Array) -> dict[str, Bounded]:
    """What one step makes of ``p`` and of every state, by the rule's own names.

    Args:
        traced: The rule.
        scalars: Hyperparameters, t, and where they are not as in `ALONE` the scalars of what surrounds a rule.
        states: The states before the step, arrays or floats.
        p: The parameter before the step.
        g: The gradient.
    """
    functions = Arithmetic(p.dtype).functions
    values: dict[tuple[str, str], Any] = {("scalar", name): Bounded(exact.mpf(x)) for name, x in {**ALONE, **scalars}.items()}
    values |= {("state", name): _stored(x) for name, x in states.items()}
    values["tensor", "p"], values["tensor", "g"] = _stored(p), _stored(g)
    h, given, old = Namespace("scalar"), symbol("tensor", "g"), symbol("tensor", "p")
    (values["tensor", "g"],) = evaluate([rules.prepare(given, old, h)], values, functions)
    roots = {name: traced.named[name] for name in traced.states} | {"p": rules.apply(old, traced.direction, h)}
    return dict(zip(roots, evaluate(list(roots.values()), values, functions), strict=True))


ALONE = {"gradient_scale": 1.0, "clip_value": np.inf, "coupled_decay": 0.0, "decoupled_decay": 0.0}
"""The scalars of `rules.prepare` and `rules.apply` that leave a rule to itself."""


def _stored(x: Any) -> Bounded:
    return Bounded(_exactly(x.reshape(-1).astype(np.float64)) if isinstance(x, np.ndarray) else exact.mpf(x))


def predict(subject: Variant, optimizer: Optimizer, grads: Mapping[str, Array], **surroundings: float) -> dict[str, dict[str, Bounded]]:
    """By parameter and the rule's name of it, what the next step of an optimizer should give, from the state it is in.

    Args:
        subject: What the optimizer should be; if it is not, `deviations` will tell.
        optimizer: Read, not stepped. Its hyperparameters must be numbers.
        grads: The gradients that it will be given, by name.
        surroundings: ``gradient_scale`` and ``clip_value``, if there are any.
    """
    result = {}
    coupled = subject.member.coupling == "coupled"
    for group in optimizer.groups:
        numbers = {name: value for name, value in group.items() if isinstance(value, float)}
        numbers["coupled_decay" if coupled else "decoupled_decay"] = group["weight_decay"]
        numbers["gradient_scale"] = -1.0 if group["maximize"] else 1.0
        for name in group["params"]:
            state = dict(optimizer.state[name])
            scalars = {**numbers, **surroundings, "t": float(state.pop("step") + 1)}
            own = {subject.private(public): x for public, x in state.items()}
            result[name] = one_step(subject.traced, scalars, own, optimizer.params[name], grads[name])
    return result


def deviations(subject: Variant, prediction: Mapping[str, Mapping[str, Bounded]], optimizer: Optimizer) -> dict[str, float]:
    """For p and each state, the worst distance from the oracle as a fraction of the bound: at most 1 if the step was right."""
    worst: dict[str, float] = {}
    for name, expected in prediction.items():
        for what, bounded in expected.items():
            actual = optimizer.params[name] if what == "p" else optimizer.state[name][subject.public(what)]
            worst[what] = max(worst.get(what, 0.0), deviation(bounded, actual, is_state=what != "p"))
    return worst


def deviation(expected: Bounded, actual: Any, *, is_state: bool = False) -> float:
    """The worst distance of a result from the oracle, as a fraction of the bound; a state's smallest magnitudes must be 0."""
    found = np.asarray(actual).reshape(-1)
    value = np.broadcast_to(np.asarray(expected.value, object), found.shape)
    error = np.broadcast_to(np.asarray(expected.error * SLACK, np.float64), found.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(_exactly(found.astype(np.float64)) - value).astype(np.float64)
        result = np.where(off == 0, 0.0, off / error)
    if is_state and isinstance(actual, np.ndarray):
        tiny = np.finfo(actual.dtype).smallest_normal
        size = np.abs(value).astype(np.float64)
        result = np.where((found == 0) & (size - error < tiny), 0.0, result)
        result = np.where((found != 0) & ((size + error < tiny) | (np.abs(found) < tiny)), np.inf, result)
    return float(np.max(np.where(np.isnan(result), np.inf, result), initial=0.0))


SLACK = 1 + 1e-9  # the bounds are themselves computed in float64
