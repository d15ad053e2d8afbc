"""Hyperparameters that change over the run: functions of the step number t, from 1, that can be printed, compared and pickled."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from .errors import HyperparameterError
from .hyperparameters import number, refuse_no_schedule

__all__ = ["Cosine", "Linear", "WarmUp"]


class _Schedule:
    """Its fields are checked, and kept as Python's own numbers."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _whole(value) if field.name == "steps" else self._level(field.name, value))

    def _level(self, name: str, value: Any) -> Any:
        where = f" of {type(self).__name__}"
        level = number(name, value, where=where, advice="give an int or float")
        if not math.isfinite(level):
            raise HyperparameterError(f"{name}={value!r}{where} is not finite")
        return level


def _whole(steps: Any) -> int:
    try:
        whole = 0 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        whole = 0
    if whole < 1:
        raise HyperparameterError(f"steps={steps!r}: a schedule needs a whole number of steps, at least 1")
    return whole


@dataclass(frozen=True)
class _Ramp(_Schedule):
    """From ``start`` (before the first step) to ``end``, reached at step ``steps`` and kept."""

    start: float
    end: float
    steps: int

    def _done(self, t: int) -> float:
        return min(t / self.steps, 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """From ``start`` (before the first step) straight to ``end``, reached at step ``steps`` and kept.

    >>> [Linear(1.0, 0.0, steps=4)(t) for t in range(1, 6)]
    [0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def __call__(self, t: int) -> float:
        return self.start + (self.end - self.start) * self._done(t)


@dataclass(frozen=True)
class Cosine(_Ramp):
    """From ``start`` along half a cosine to ``end``, reached at step ``steps`` and kept. Loshchilov and Hutter, 2017, eq. 5.

    >>> [round(Cosine(1.0, 0.0, steps=4)(t), 4) for t in range(1, 6)]
    [0.8536, 0.5, 0.1464, 0.0, 0.0]
    """

    def __call__(self, t: int) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * self._done(t)))


@dataclass(frozen=True)
class WarmUp(_Schedule):
    """Linear warm-up over ``steps`` to ``then``: a number, or a schedule that starts counting where the warm-up ends.

    The warm-up goes to where the schedule starts: for `Linear` and `Cosine` to their ``start``, for any other function of the step
    number, which counts from 1, to its first value.

    >>> [WarmUp(Linear(1.0, 0.0, steps=2), steps=2)(t) for t in range(1, 6)]
    [0.5, 1.0, 0.5, 0.0, 0.0]
    """

    then: float | Callable[[int], float]
    steps: int

    def _level(self, name: str, value: Any) -> Any:
        if not callable(value):
            return super()._level(name, value)
        refuse_no_schedule(name, value, where=" of WarmUp")
        return value

    def __call__(self, t: int) -> float:
        first = 0 if isinstance(self.then, _Schedule) else 1
        after = self.then(max(t - self.steps, first)) if callable(self.then) else self.then
        return after * min(t / self.steps, 1.0)
