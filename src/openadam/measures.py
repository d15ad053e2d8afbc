"""What can be seen inside a step: each measure is a name, a reduction and an element expression in the rules' language.

A measure rides in the same pass as the update, in a fixed order, so that it comes out the same for every thread count and instruction set,
native or not. There are two kinds:

- `MEASURES` look at the gradient as given, the parameter and its change, of every element: the gradient's sum of squares in float64, the others
  in the arithmetic of the step (whose squares leave out what is below 1e-22 of float32).
- `INSIDE` look into the rule: at its moments before and after the step, the direction, the corrected moments, its hyperparameters. They are
  taken in the arithmetic of the step over a fixed sample, a piece of every 1,024 elements: all of a small tensor, some 500 elements of one of
  up to 65,536, one in 128 of a larger one. Shares and means need no more. A rule that lacks what one of them looks at is seen without it.

One's own are looked at where they are given: ``step(grads, measure=[Measure("large", "sum", lambda x: one(abs(x.g) > 1))])``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from .errors import HyperparameterError, RuleError
from .hyperparameters import nearest
from .language import cpp
from .language.code import JOINS
from .language.expression import Expression, Namespace, as_expression, maximum, sqrt, substitute, symbol, where
from .language.program import SMALLEST_NORMAL, Program, lower
from .language.rule import Traced, check_elements, depends_on_tensors
from .rules import FAMILY, apply, scale

__all__ = [
    "GRAD_SUM_SQUARES",
    "HISTOGRAMS",
    "INSIDE",
    "MEASURES",
    "OCTAVES",
    "Measure",
    "Seen",
    "columns",
    "count",
    "one",
    "other_measures",
    "places",
    "program_inside",
    "sampled_elements",
    "sampled_pieces",
]


class NotSeenError(AttributeError):
    """The rule at hand lacks what a measure looks at."""


class _Told(Namespace):
    """The hyperparameters that a rule has."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__("scalar")
        self._names = {*names, "lr", "t", "coupled_decay", "decoupled_decay", "gradient_scale"}

    def __getattr__(self, name: str) -> Expression:
        if not name.startswith("_") and name not in self._names:
            raise NotSeenError(f"the rule has no hyperparameter {name!r}")
        return super().__getattr__(name)


class Seen:
    """What a measure may look at, as expressions of one element.

    ``given`` is the gradient as the caller gave it and ``g`` as the rule sees it: clipped, scaled, with coupled decay. ``p`` is the parameter
    before the step, ``p_after`` after it, ``u`` their difference. Of the rule there are ``direction`` (what it returns), ``gain`` (what it
    multiplies its numerator by, so that ``h.lr * gain`` is the learning rate of the element), everything that it returns by name (``m``, ``v``,
    ``m_hat``, ``v_hat``; states as they are stored), the same in ``before`` as it was before the step, and its hyperparameters in ``h``.
    """

    given: Expression
    g: Expression
    p: Expression
    p_after: Expression
    u: Expression
    direction: Expression
    gain: Expression
    before: Seen
    h: Any

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name not in _ever_seen():
            raise RuleError(f"there is no {name!r} in any rule of this package, nor in this one; {nearest(name, _ever_seen())}")
        raise NotSeenError(f"nothing called {name!r} is to be seen here")


@lru_cache(maxsize=1)
def _ever_seen() -> frozenset[str]:
    """What some rule of the family has, so that it may well be asked for where it is not."""
    traces = [traced for rule in FAMILY for traced in rule.traces()]
    return frozenset([*Seen.__annotations__, *(name for traced in traces for name in traced.named)])


@dataclass(frozen=True, eq=False)
class Measure:
    """A named reduction of an element expression over one tensor: ``sum``, ``max`` (both of what is not negative), or ``octaves``, a histogram.

    Args:
        name: What it is called in reports and recordings.
        reduction: How the elements are joined; by ``octaves``, they are counted by size (see `OCTAVES`).
        expression: A function of `Seen` that returns an expression.
        degree: The power of a factor of the gradient that it grows with, of measures of ``given``.

    Raises:
        ValueError: The reduction is none of these.

    >>> import numpy as np, openadam
    >>> from openadam.measures import one
    >>> large = openadam.Measure("large", "sum", lambda x: one(abs(x.g) > 1))
    >>> report = openadam.Adam({"w": np.zeros(3)}).step({"w": np.array([0.5, -2.0, 3.0])}, measure=[large])
    >>> report.measures["w"]["large"], report.measures["w"]["direction_max_abs"]
    (2.0, 0.9999999966666667)
    """

    name: str
    reduction: str
    expression: Callable[[Seen], Any]
    degree: int = 0

    def __post_init__(self) -> None:
        if self.reduction not in JOINS:
            raise ValueError(f"the measure {self.name!r} is reduced by {self.reduction!r}, which is none of 'sum', 'max' and 'octaves'")

    @cached_property
    def program(self) -> Program:
        """Of a measure that looks at no rule: over ``g`` (as given), ``p`` and ``p_after``."""
        p, p_after = symbol("tensor", "p"), symbol("tensor", "p_after")
        return lower(
            self.name, {"value": as_expression(self.expression(Seen({"given": symbol("tensor", "g"), "p": p, "p_after": p_after, "u": p_after - p})))}
        )

    @property
    def digest(self) -> str:
        return self.program.digest

    @property
    def width(self) -> int:
        """How many numbers it gives."""
        return len(OCTAVES) - 1 if self.reduction == "octaves" else 1

    @property
    def join(self) -> str:
        """How two values become one, in C++."""
        return "sum" if self.reduction == "sum" else "largest"


def one(condition: Expression) -> Expression:
    """1 where a condition holds, else 0."""
    return where(condition, 1, 0)


def count(name: str, condition: Callable[[Seen], Expression]) -> Measure:
    """The measure of how many elements a condition holds for."""
    return Measure(name, "sum", lambda x: one(condition(x)))


GRAD_SUM_SQUARES = Measure("grad_sum_squares", "sum", lambda x: x.given**2, degree=2)
"""The one that every step takes: the global norm comes from it, and it is not finite where a gradient is not."""

MEASURES: tuple[Measure, ...] = (
    GRAD_SUM_SQUARES,
    Measure("param_sum_squares", "sum", lambda x: x.p**2),
    Measure("update_sum_squares", "sum", lambda x: x.u**2),
    Measure("grad_max_abs", "max", lambda x: abs(x.given), degree=1),
)
"""In the order of the native table and of a tally's columns. A report adds ``grad_nonfinite``, how many elements are not."""

INSIDE: tuple[Measure, ...] = (
    Measure("sampled", "sum", lambda x: where(x.given == 0, 1, 1)),
    count("zero_grad", lambda x: x.given == 0),
    Measure("direction_sum_squares", "sum", lambda x: x.direction**2),
    Measure("direction_max_abs", "max", lambda x: abs(x.direction)),
    Measure("direction_sum_abs", "sum", lambda x: abs(x.direction)),
    Measure("direction_sum_abs_without_grad", "sum", lambda x: where(x.given == 0, abs(x.direction), 0)),
    Measure("descent", "sum", lambda x: x.g * x.direction),
    Measure("seen_grad_sum_squares", "sum", lambda x: x.g**2),
    Measure("param_dot_update", "sum", lambda x: x.p * x.u),
    count("swallowed", lambda x: where(x.direction == 0, 1, x.u) == 0),
    Measure("gain_sum", "sum", lambda x: x.gain),
    Measure("gain_max", "max", lambda x: x.gain),
    Measure("damping_sum", "sum", lambda x: x.gain * sqrt(x.v_hat)),
    Measure("surprise_sum", "sum", lambda x: x.g**2 / maximum(x.v_hat, x.h.eps**2)),
    count("spikes", lambda x: spiking(x, 25)),
    count("huge_spikes", lambda x: spiking(x, 5000)),
    count("stale_v", lambda x: x.g**2 < 0.01 * x.v_hat),
    Measure("v_sum", "sum", lambda x: x.v),
    Measure("v_before_sum", "sum", lambda x: x.before.v),
    count("eps_dominated", lambda x: where(x.v == 0, x.h.eps**2, x.v_hat) < x.h.eps**2),
    count("v_zero", lambda x: x.v == 0),
    count("v_underflow", lambda x: where(x.g == 0, 1, x.v) == 0),
    count("v_frozen", lambda x: where(abs(x.g**2 - x.v) <= 0.01 * x.v, 1, x.v - x.before.v) == 0),  # where v has arrived, it may rest
    count("disagree", lambda x: x.m * x.g < 0),
    Measure("disagree_sum_abs", "sum", lambda x: where(x.m * x.g < 0, abs(x.direction), 0)),
    Measure("m_before_dot_grad", "sum", lambda x: x.g * x.before.m),
    Measure("m_before_sum_squares", "sum", lambda x: x.before.m**2),
    Measure("m_hat_sum_squares", "sum", lambda x: x.m_hat**2),
    Measure("v_hat_sum", "sum", lambda x: x.v_hat),
    count("decay_over_grad", lambda x: abs(x.h.gradient_scale * x.given) < abs(x.h.coupled_decay * x.p)),
)
"""Of the catalogue of diagnoses. Counts and sums are over the sample, whose size is the first of them."""


HISTOGRAMS: tuple[Measure, ...] = (
    Measure("v_root", "octaves", lambda x: sqrt(x.v_hat)),
    Measure("direction_abs", "octaves", lambda x: abs(x.direction)),
    Measure("rate", "octaves", lambda x: x.h.lr * x.gain),
)
"""How what Adam divides by, the magnitude of its direction, and the learning rate of each element are spread over the sample."""

OCTAVES: tuple[float, ...] = tuple(2.0**k for k in range(-48, 17))
"""The edges of such a histogram; its first bin holds all that is smaller, too (and 0), and its last all that is larger."""


@lru_cache(maxsize=256)
def columns(inside: tuple[Measure, ...] = INSIDE) -> tuple[str, ...]:
    """What a report holds of each tensor, in its order, beside histograms."""
    return (*(measure.name for measure in MEASURES), "grad_nonfinite", *(measure.name for measure in inside if measure.width == 1))


@lru_cache(maxsize=256)
def places(inside: tuple[Measure, ...]) -> tuple[int, ...]:
    """Where the numbers of each measure begin, and where those of the last one end."""
    return tuple(itertools.accumulate((measure.width for measure in inside), initial=0))


def printed_norm() -> str:
    """The first of `MEASURES`, which every step takes, as C++: in float64, over a gradient alone."""
    return cpp.reduction("norm", GRAD_SUM_SQUARES.program, GRAD_SUM_SQUARES.join, "double")


@lru_cache(maxsize=1)
def other_measures() -> Program:
    """What the others see, as a program over ``given``, ``p`` and ``p_after``."""
    given, p, p_after = (symbol("tensor", name) for name in ("given", "p", "p_after"))
    x = Seen({"given": given, "p": p, "p_after": p_after, "u": p_after - p})
    return lower("other_measures", {measure.name: as_expression(measure.expression(x)) for measure in MEASURES[1:]})


def printed_with(update: Program) -> str:
    """An update that takes the others on its way, as C++."""
    return cpp.measured(update, other_measures(), {measure.name: measure.join for measure in MEASURES[1:]})


def spiking(x: Seen, times: float) -> Expression:
    """Where the square of a gradient is so many times what was expected of it; nothing is expected of the first."""
    return times * x.before.v_hat < where(x.h.t == 1, 0, 1) * x.g**2  # type: ignore[no-any-return]


# --- what is to be seen of a rule --------------------------------------------------------------------------------------


def _gain(direction: Expression, traced: Traced) -> Expression:
    """What a direction multiplies its numerator by: the first thing in it that has a name, or else the gradient."""
    if any(direction is value for value in traced.named.values()):
        return as_expression(1.0)
    if direction.operation == "divide":
        return _gain(direction.arguments[0], traced) / direction.arguments[1]
    if direction.operation == "multiply" and not depends_on_tensors(direction.arguments[0], traced.element_states):
        return direction.arguments[0] * _gain(direction.arguments[1], traced)
    if direction.operation == "where":
        condition, a, b = direction.arguments
        return where(condition, _gain(a, traced), _gain(b, traced))
    return as_expression(1.0)


def _stored(state: Expression) -> Expression:
    return where(abs(state) < SMALLEST_NORMAL, 0, state)


def look(traced: Traced) -> Seen:
    """All that is to be seen of a rule."""
    h = _Told(traced.hyperparameters)
    given, p = symbol("tensor", "given"), symbol("tensor", "p")
    g = scale(symbol("tensor", "g"), h)
    named = list(traced.named.values())
    *values, direction, gain = substitute([*named, traced.direction, _gain(traced.direction, traced)], {("tensor", "g"): g})
    states = {id(traced.named[name]): symbol("state", name) for name in traced.states}
    earlier = substitute(named, {("tensor", "g"): g, ("scalar", "t"): h.t - 1}, states)
    now, before = (dict(zip(traced.named, each, strict=True)) for each in (values, earlier))
    p_after = apply(p, direction, h)
    for name in traced.element_states:
        now[name] = _stored(now[name])
    around = {"given": given, "g": g, "p": p, "p_after": p_after, "u": p_after - p, "direction": direction, "gain": gain, "h": h}
    return Seen({**now, **around, "before": Seen(before)})


@lru_cache(maxsize=256)
def program_inside(traced: Traced, measures: tuple[Measure, ...] = INSIDE) -> Program:
    """What these measures see of a rule, as a program over ``given``, ``g``, ``p`` and the states; an output for each that sees anything."""
    x = look(traced)
    outputs: dict[str, Expression] = {}
    for measure in measures:
        try:
            value = as_expression(measure.expression(x))
            if value.is_condition:
                raise RuleError("it is a comparison; write one(condition)")
            check_elements([value], traced.element_states)
        except NotSeenError:
            continue
        except Exception as error:  # of any kind: the expression is the user's
            why = str(error) if isinstance(error, RuleError) else f"{type(error).__name__}: {error}"
            raise HyperparameterError(f"the measure {measure.name!r} cannot be taken of {traced.name!r}: {why}") from error
        outputs[measure.name] = value
    memory = {name: traced.named[name] for name in traced.scalar_states}
    return lower(f"{traced.name}_inside", outputs, element_states=traced.element_states, memory=memory)


# --- the sample --------------------------------------------------------------------------------------------------------

BLOCK = 1024
LANES = 16
MOST = 512  # of a chunk of 16 blocks


def sampled_pieces(length: int) -> Iterator[slice]:
    """Which of a tensor's elements are looked into: of every block a piece, at a place that goes by the golden ratio, so that no period of the
    tensor's can meet it.
    """
    blocks = -(-length // BLOCK)
    piece = MOST
    while piece > MOST // 64 and piece * blocks > MOST:
        piece //= 2
    for block in range(blocks):
        apart = max(piece, LANES)
        place = (block * 2654435769 % 2**32 * (BLOCK // apart) >> 32) * apart
        n = min(BLOCK, length - block * BLOCK)
        place = place if place + piece <= n else 0
        yield slice(block * BLOCK + place, block * BLOCK + min(place + piece, n))


@lru_cache(maxsize=4096)
def sampled_elements(length: int) -> int:
    """How many elements that are.

    >>> sampled_elements(100), sampled_elements(10_000), sampled_elements(1_000_000)
    (100, 320, 7816)
    """
    return sum(piece.stop - piece.start for piece in sampled_pieces(length))
