"""Readings: what the measures of steps mean. What is known of one stands in one object: its formula, null value, and from where on it is an alarm.

A reading is a function of `Numbers`: the measures of tensors and the settings of their groups, as numbers or arrays of one shape. So the same
formula serves the tensors of one step, the history of one tensor, and buckets of which least, mean and greatest values are known. The step's
report, the alarms of a running recording, the doctor, the report page and the live view judge by the same readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .theory import Settings, momentum_span

__all__ = [
    "EARLY", "ENOUGH", "READINGS", "ROUNDING", "UNUSUAL", "YOUNG", "Forecast", "Limits", "Numbers", "Reading", "Worst", "crossing", "halfway",
    "told", "trouble", "uphill", "worst_of",
]  # fmt: skip

ENOUGH = 32  # elements: of fewer, shares are chance
EARLY = 20  # steps in which all is still in motion
YOUNG = 100  # steps of which v knows too little to be surprised
UNUSUAL = 5  # times what is usual in a run
HORIZON = 10  # times what was seen: so far a forecast goes
NOT_MUCH = 0.01  # of a whole step: what a tensor with less does is of no consequence
ROUNDING = 1e-5  # of the largest gradients: what is below is what rounding leaves of a gradient that is 0

# --- what a reading is made of -----------------------------------------------------------------------------------------------


class Numbers:
    """What is known of tensors at steps: each measure is an attribute, a number or an array of the shape that all have.

    Args:
        pick: The measure of a name; NaN where it was not taken.
        h: The settings.
        over: What is divided by, if other values are meant: with the least values here and the greatest there, a reading is a lower bound.
        first, last: The steps.
        elements: Of the tensors.
        is_matrix: Whether they have two axes, or more.
        nonfinite: How many values of a measure are not finite; else whether the value is not.
        lr: The learning rate, where it is known.
        usual_rate: Whether it is not on its way to or from 0.
        rare: Whether most elements mostly have no gradient; else whether it is so here.
        new: Of how many elements this is the first gradient.
        left: What is left of the share that the gradient once had of the largest tensor's.
        part: What the tensor adds to the lengths of the whole step, whose descent it then has as large a part of.
    """

    def __init__(
        self, pick: Callable[[str], Any], h: Settings, *, over: Numbers | None = None, first: Any = math.inf, last: Any = math.inf,
        elements: Any = math.nan, is_matrix: Any = False, nonfinite: Callable[[str], Any] | None = None, lr: Any = math.nan,
        usual_rate: Any = True, rare: Any = None, new: Any = 0.0, left: Any = math.nan, part: Any = math.nan,
    ) -> None:  # fmt: skip
        self._pick, self._nonfinite = pick, nonfinite
        self.h, self.over, self.first, self.last = h, over or self, first, last
        self.elements, self.is_matrix, self.lr, self.usual_rate, self.new = elements, is_matrix, np.asarray(lr), usual_rate, new
        self.left, self.part = left, part
        if rare is not None:
            self.rare = rare

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = self.__dict__[name] = self._pick(name)
        return value

    def nonfinite(self, name: str) -> Any:
        return self._nonfinite(name) if self._nonfinite is not None else ~np.isfinite(getattr(self, name))

    @cached_property
    def with_gradient(self) -> Any:
        """How many of the sampled elements have a gradient that is not 0."""
        return self.over.sampled - self.zero_grad

    @cached_property
    def enough(self) -> Any:
        """Whether these are so many that a share of them is not chance."""
        return self.with_gradient >= ENOUGH

    @cached_property
    def lengths(self) -> Any:
        """The product of the lengths of direction and gradient, of the sample."""
        return np.sqrt(self.over.direction_sum_squares * self.over.seen_grad_sum_squares)

    @cached_property
    def rare(self) -> Any:
        """Whether most elements mostly have no gradient, as far as one step can tell."""
        return self.zero_grad > 0.5 * self.sampled

    @cached_property
    def surprising(self) -> Any:
        """Where a surprise would tell something: not at the beginning, and not of rows that are rare, which always come as one."""
        return (self.first > YOUNG) & self.enough & np.logical_not(self.rare)

    @cached_property
    def has_weight(self) -> Any:
        """Whether it is a matrix, and more than next to nothing: what is not may well change by more than it is."""
        return self.is_matrix & (self.param_sum_squares > 1e-6 * self.elements)

    @property
    def settled(self) -> Any:
        return self.usual_rate & (self.last > YOUNG)


Known = float | Callable[[Numbers], Any]


def told(what: Known, x: Numbers) -> Any:
    """A number, whether it is one or is to be computed."""
    return what(x) if callable(what) else what


@dataclass(frozen=True, eq=False)
class Reading:
    """A reading of a tensor.

    Args:
        name: What programs call it.
        label: What people call it, where there is little room.
        words: The same in full.
        meaning: What it says, for a page.
        formula: Its value. Shares are of the elements that have a gradient.
        rule: The disease that it is a sign of, where it is one.
        null: What it is without the disease; of noise, where noise makes it what it is.
        alarm: The value beyond which it is a sign.
        judged: Where it can be one, if not everywhere.
        below: It is too little that is bad.
        share: It lies between 0 and 1.
        ratio: It is thought of in powers of ten: half-way from 1 to 100 is 10.
        peak: One step is enough, so that of many steps the greatest value counts.
        steps: How many observed steps in a row make it a disease.
        span: How many steps from the first to the last of these.
        smooth: Over how many observed steps the mean is taken: one that is well between many that are not changes little.
        urgent: A running recording alarms.
        rounding: It is one even if the gradient is but what rounding leaves of 0.
    """

    name: str
    label: str
    words: str
    meaning: str
    formula: Callable[[Numbers], Any]
    rule: str | None = None
    null: Known = math.nan
    alarm: Known = math.nan
    judged: Callable[[Numbers], Any] | None = None
    below: bool = False
    share: bool = False
    ratio: bool = False
    peak: bool = False
    steps: Known = 5
    span: Known = 0
    smooth: int = 1
    urgent: bool = False
    rounding: bool = False

    def of(self, x: Numbers) -> Any:
        """The value; NaN where there is none.

        >>> x = Numbers({"surprise_sum": np.array([36.0, 1.0]), "sampled": np.array([4.0, 0.0])}.get, Settings(0.9, 0.999, 1e-8))
        >>> READINGS["surprise"].of(x).tolist()
        [3.0, nan]
        """
        with np.errstate(all="ignore"):
            value = np.asarray(self.formula(x), float)
            value = np.where(np.isfinite(value), value, np.nan)
            return np.clip(value, 0.0, 1.0) if self.share else value

    def limits(self, x: Numbers) -> Limits:
        """What to hold it against; NaN where there is nothing."""
        with np.errstate(all="ignore"):
            null, alarm = np.asarray(told(self.null, x), float), np.asarray(told(self.alarm, x), float)
            judged = True if self.judged is None else self.judged(x)
            alarm = np.where(judged & np.isfinite(null) & np.isfinite(alarm), alarm, np.nan)
            return Limits(null, halfway(null, alarm, self.ratio), alarm)


def halfway(null: Any, alarm: Any, ratio: bool) -> Any:
    """Where a reading deserves a look, and where an alarm is over."""
    return np.sqrt(null * alarm) if ratio else (null + alarm) / 2


class Limits(NamedTuple):
    """What a reading would be without a disease, from where on it deserves a look, and from where on it is an alarm."""

    null: Any
    look: Any
    alarm: Any

    def at(self, k: int) -> Limits:
        """Those of one tensor of many."""
        return Limits(*(float(each[k]) for each in self))

    def level(self, number: float) -> str:
        """``alarm``, ``look``, ``fine``, or ``unknown`` where there is no number or nothing to hold it against.

        >>> Limits(1.0, 2.0, 3.0).level(2.5), Limits(1.0, 0.5, 0.0).level(0.1), Limits(1.0, math.nan, math.nan).level(9.0)
        ('look', 'look', 'unknown')
        """
        if math.isnan(number) or math.isnan(self.alarm):
            return "unknown"
        sign = -1 if self.alarm < self.null else 1
        return "alarm" if sign * number > sign * self.alarm else "look" if sign * number > sign * self.look else "fine"


# --- the readings ------------------------------------------------------------------------------------------------------------


def share_of(count: str) -> Callable[[Numbers], Any]:
    """At least: what has no gradient is taken to be counted, so that rows at rest blame nobody."""
    return lambda x: (getattr(x, count) - x.over.zero_grad) / x.with_gradient


def enough(x: Numbers) -> Any:
    return x.enough


def noise(x: Numbers) -> Any:
    return x.h.noise


def against_chance(x: Numbers) -> Any:
    """By chance a step of n elements of noise goes uphill so often, and a row of such steps should not be chance. The elements of a tensor are
    not independent: they count as their root.
    """
    n = np.sqrt(np.maximum(1.0, np.nan_to_num(x.with_gradient)))
    far = np.sqrt(n * (1 - np.square(x.h.beta1)) / 2)
    needed = [_needed(min(0.5, 0.75 * math.erfc(each))) if each == each else 3 for each in np.atleast_1d(far).tolist()]
    return np.reshape(needed, np.shape(far))


def _needed(chance: float) -> int:
    return max(3, math.ceil(-6 * math.log(10) / math.log(chance))) if chance > 0 else 3


def uphill(x: Numbers) -> tuple[Any, Any]:
    """What each tensor adds to the whole step's descent, and to the lengths that it is divided by."""
    weights = x.elements / x.over.sampled
    return weights * x.descent, weights * x.lengths


READINGS: dict[str, Reading] = {
    each.name: each
    for each in (
        Reading(
            "nonfinite", "not finite", "elements that are not finite", "elements of the gradient that are not finite",
            lambda x: x.grad_nonfinite,
            "D01", 0.0, 0.0, peak=True, steps=1, urgent=True, rounding=True,
        ),
        Reading(
            "poisoned", "poisoned", "update that is not finite", "whether update or second moment are not finite though the gradient is",
            lambda x: (x.nonfinite("update_sum_squares") * 1.0 + x.nonfinite("v_sum")) * (x.grad_nonfinite == 0),
            "D02", 0.0, 0.0, peak=True, steps=1, urgent=True, rounding=True,
        ),
        Reading(
            "v_underflow", "v underflows", "share with a gradient but v = 0", "share of elements whose squares are too small for v",
            lambda x: x.v_underflow / x.with_gradient,
            "D04", 0.0, 0.1, enough, share=True, steps=3, urgent=True, rounding=True,
        ),
        Reading(
            "surprise", "RMS_t", "root mean square of g/sqrt(v)",
            "surprise: root of the mean of g²/v̂. 1 where v̂ expects the gradients as they come; peaks come before spikes of the loss",
            lambda x: np.sqrt(x.surprise_sum / x.over.sampled),
            "D16", 1.0, lambda x: np.maximum(3.0, x.h.cap_by(x.last) / 3), lambda x: x.surprising,
            ratio=True, peak=True, steps=1, urgent=True,
        ),
        Reading(
            "direction", "rms(direction)", "root mean square of the direction",
            "root mean square of the direction, the update before the learning rate: from noise alone to 1, where all signs stay",
            lambda x: np.sqrt(x.direction_sum_squares / x.over.sampled),
            "D09", noise, lambda x: np.maximum(2.0, x.h.bound / 4),
            lambda x: x.h.corrected & (x.over.sampled >= ENOUGH) & (x.last > 2), urgent=True,
        ),
        Reading(
            "direction_largest", "max |direction|", "largest direction", "the largest direction of an element",
            lambda x: x.direction_max_abs,
            "D10", lambda x: 5 * x.h.noise, lambda x: np.maximum(np.maximum(2.0, 7 * x.h.noise), x.h.bound_by(x.last) / 2),
            lambda x: x.h.bounded & (x.h.bound > 2) & (x.last > EARLY), peak=True, steps=2,
        ),
        Reading(
            "left", "gradient left", "gradient beside the largest tensor's, of what it was",
            "what is left of the share that the gradient once had of the largest tensor's",
            lambda x: x.left,
            "D43", 1.0, 1e-3, lambda x: x.elements >= ENOUGH, below=True, ratio=True, span=EARLY, urgent=True, rounding=True,
        ),
        Reading(
            "descent", "descent", "cosine of direction and gradient",
            "cosine of direction and gradient: below 0 the step goes uphill on the batch that it was computed for",
            lambda x: x.descent / x.lengths,
            "D26", noise, 0.0, lambda x: np.isfinite(x.h.noise) & ~(x.part < NOT_MUCH), below=True, peak=True, steps=against_chance,
            span=lambda x: momentum_span(x.h.beta1), urgent=True,
        ),
        Reading(
            "disagreement", "disagreement", "disagreement",
            "share of elements whose first moment points against the gradient, of those that have a gradient",
            lambda x: x.disagree / x.with_gradient,
            "D24", lambda x: x.h.agreement, lambda x: x.h.agreement + 0.1 + 2 * np.sqrt(x.h.agreement * (1 - x.h.agreement) / x.with_gradient),
            enough, share=True, steps=lambda x: momentum_span(x.h.beta1), smooth=10, urgent=True,
        ),
        Reading(
            "eps_share", "eps-dominated", "share of sqrt(v) below eps",
            "share of elements whose √v̂ is below eps: there Adam is SGD with the rate lr/eps",
            share_of("eps_dominated"),
            "D20", 0.0, 0.5, enough, share=True, urgent=True,
        ),
        Reading(
            "grad_over_eps", "rms(g)/eps", "gradient/eps",
            "how far gradients, as the rule sees them, stand above eps; below 100 the eps-dominated share is about to rise",
            lambda x: np.sqrt(x.seen_grad_sum_squares / x.over.sampled) / x.h.eps,
        ),
        Reading(
            "v_over_eps", "√v̂/eps", "sqrt(v)/eps",
            "how far the root of the mean second moment stands above eps, of elements that have one; at 1, eps counts as much",
            lambda x: np.sqrt(x.v_hat_sum / (x.over.sampled - x.v_zero)) / x.h.eps,
            "D21", 1000.0, 100.0, lambda x: x.over.sampled - x.v_zero >= ENOUGH, below=True, ratio=True,
        ),
        Reading(
            "update_weight", "update/weight", "update/weight",
            "norm of the update over the norm of the parameter; a rule of thumb for matrices is 0.001",
            lambda x: np.sqrt(x.update_sum_squares / x.over.param_sum_squares),
            "D11", 1e-3, 0.1, lambda x: x.has_weight & x.settled & (x.zero_grad < x.sampled), ratio=True, steps=10,
        ),
        Reading(
            "grad_rms", "rms(g)", "root mean square of the gradient", "root mean square of the gradient as it was given",
            lambda x: np.sqrt(x.grad_sum_squares / x.elements),
        ),
        Reading(
            "param_rms", "rms(parameter)", "root mean square of the parameter", "root mean square of the parameter before the step",
            lambda x: np.sqrt(x.param_sum_squares / x.elements),
        ),
        Reading(
            "spikes", "spikes", "share with g**2 > 25 v", "share of elements whose gradient is more than 5 times what v̂ expected",
            lambda x: np.maximum(x.spikes - x.new, 0) / x.with_gradient,
            "D17", 6e-7, 0.5, lambda x: x.surprising, share=True, peak=True, steps=1, urgent=True,
        ),
        Reading(
            "huge_spikes", "huge spikes", "share with g**2 > 5000 v", "share of elements whose gradient is more than 71 times what v̂ expected",
            lambda x: np.maximum(x.huge_spikes - x.new, 0) / x.with_gradient,
            "D17", 0.0, 0.1, lambda x: x.surprising, share=True, peak=True, steps=1, urgent=True,
        ),
        Reading(
            "swallowed", "swallowed", "share of updates lost to rounding",
            "share of elements that their update did not change, since it is below their precision",
            share_of("swallowed"),
            "D07", 0.0, 0.1, lambda x: x.enough & x.usual_rate & ~(x.lr <= 0), share=True, urgent=True,
        ),
        Reading(
            "v_frozen", "v frozen", "share of v that did not change", "share of elements whose second moment a step did not change",
            lambda x: (x.v_frozen - x.over.v_underflow - x.over.zero_grad) / x.with_gradient,
            "D08", 0.0, 0.2, enough, share=True, urgent=True,
        ),
        Reading(
            "stale_v", "v stale", "share with g**2 < 0.01 v", "share of elements whose gradient is far below what v̂ remembers",
            share_of("stale_v"),
            "D18", 0.08, 0.5, lambda x: x.enough & (x.last > EARLY), share=True, steps=50,
        ),
        Reading(
            "v_drift", "v drift", "v after / v before the step", "by how much the second moment changes in a step",
            lambda x: x.v_sum / x.over.v_before_sum,
            "D19", 1.0, lambda x: (1 + x.h.beta2) / 2,
            lambda x: (x.sampled >= ENOUGH) & (x.last > EARLY) & (x.zero_grad < x.sampled), below=True, steps=50,
        ),
        Reading(
            "overshoot", "cos(m, g)", "cosine of gradient and earlier first moment", "cosine of the gradient and the first moment before it",
            lambda x: x.m_before_dot_grad / np.sqrt(x.over.m_before_sum_squares * x.over.seen_grad_sum_squares),
            "D25", 0.0, -0.3, enough, below=True, steps=20,
        ),
        Reading(
            "absent", "absent rows", "share of motion without a gradient", "share of the motion that is of elements without a gradient",
            lambda x: x.direction_sum_abs_without_grad / x.over.direction_sum_abs,
            "D27", 0.0, 0.5, lambda x: x.is_matrix & (x.zero_grad > 0.5 * x.sampled) & (x.zero_grad < x.sampled), share=True,
        ),
        Reading(
            "decay_direction", "decay/direction", "decay/direction", "what weight decay takes, over what is learnt",
            lambda x: x.h.weight_decay * np.sqrt(x.param_sum_squares / x.elements) / np.sqrt(x.direction_sum_squares / x.over.sampled),
            "D32", 0.1, 1.0, lambda x: (x.h.weight_decay > 0) & x.is_matrix & x.settled, ratio=True, steps=10,
        ),
        Reading(
            "zero_grad", "zero gradients", "share of gradients that are 0", "share of elements whose gradient is zero",
            lambda x: x.zero_grad / x.over.sampled, share=True,
        ),
    )
}  # fmt: skip
"""By name."""


# --- of many at once ---------------------------------------------------------------------------------------------------------


class Worst(NamedTuple):
    """The tensor in which a reading is furthest beyond its threshold; None where it is of all tensors together."""

    tensor: str | None
    reading: str
    value: float
    null: float
    threshold: float


def worst_of(names: Sequence[str], x: Numbers) -> dict[str, Worst]:
    """Of each urgent disease of which a step alone has a sign the worst tensor: the one furthest from the null value, in steps to the threshold.

    Args:
        names: The tensors, at least one.
        x: Their numbers, as arrays.
    """
    found: dict[str, Worst] = {}
    most: dict[str, float] = {}
    with np.errstate(all="ignore"):
        for reading in READINGS.values():
            if reading.rule is None or not reading.urgent:
                continue
            values, (null, _, alarm) = np.broadcast_to(reading.of(x), len(names)), reading.limits(x)
            null, alarm = np.broadcast_to(null, len(names)), np.broadcast_to(alarm, len(names))
            beyond = values < alarm if reading.below else values > alarm
            if beyond.any():
                far = np.where(beyond, (values - null) / np.where(alarm == null, 1.0, alarm - null), -np.inf)
                at = int(np.argmax(far))
                if far[at] > most.get(reading.rule, -math.inf):
                    most[reading.rule] = float(far[at])
                    found[reading.rule] = Worst(names[at], reading.words, float(values[at]), float(null[at]), float(alarm[at]))
        descent, lengths = (float(np.sum(each)) for each in uphill(x))
        null = float(x.h.noise[0])
        if math.isfinite(null) and np.sum(x.elements) >= ENOUGH and descent < 0 < lengths:
            found["D14"] = Worst(None, READINGS["descent"].words, descent / lengths, null, 0.0)
    return dict(sorted(found.items()))


def trouble(values: Mapping[str, Any], limits: Mapping[str, Limits]) -> Any:
    """How much trouble tensors are in, to sort them by: how far readings are beyond what deserves a look, 1 at the alarm, each up to 3, added up."""
    total: Any = 0.0
    with np.errstate(all="ignore"):
        for name, value in values.items():
            reading, (_, look, alarm) = READINGS[name], limits[name]
            far = np.log(value / look) / np.log(alarm / look) if reading.ratio else (value - look) / (alarm - look)
            total = total + np.clip(np.nan_to_num(far, nan=0.0, posinf=3.0, neginf=0.0), 0, 3)
    return total


# --- over time ---------------------------------------------------------------------------------------------------------------


class Forecast(NamedTuple):
    """Where a falling series would come down to a level at the pace of its second half."""

    step: int  # the last one seen
    value: float
    crossing: int


def crossing(steps: Any, values: Any, level: float = 1.0) -> Forecast | None:
    """The forecast of a series that falls towards a level; None if it does not fall by more than it strays, is there already, or would take more
    than ten times as long as was seen.

    >>> crossing(np.arange(0, 1000, 10), 1024 * 0.5 ** (np.arange(0, 1000, 10) / 110))
    Forecast(step=990, value=2.0, crossing=1100)
    """
    good = np.isfinite(values) & (values > 0)
    steps, values = np.asarray(steps, float)[good], np.asarray(values, float)[good]
    if len(steps) < 10 or not values[-1] > level:
        return None
    late = slice(len(steps) // 2, None)
    slope, start = np.polyfit(steps[late], np.log(values[late]), 1)
    strays = float(np.std(np.log(values[late]) - (start + slope * steps[late])))
    if not -slope * (steps[-1] - steps[late][0]) > max(3 * strays, 1e-3):
        return None
    further = math.log(values[-1] / level) / -slope
    near = further <= HORIZON * (steps[-1] - steps[0])
    return Forecast(int(steps[-1]), float(values[-1]), int(steps[-1]) + math.ceil(further - 1e-6)) if near else None
