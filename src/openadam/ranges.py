"""Whether a step of a rule of one's own stays finite: foreseen from what its gradients and states can be, so that it need not be tried out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import Once, Update
from .language.intervals import Interval, Limits, evaluate_on_intervals
from .rules import PREPARE

__all__ = ["Ranges", "limits_of"]

Array = npt.NDArray[Any]

PARAMETER = 1e10  # in magnitude; a parameter may be changed between steps, and up to here it need not be looked at
LONGEST_PAUSE = 256  # steps in which nothing is foreseen, since it was in vain before


def limits_of(dtype: np.dtype[Any]) -> Limits:
    """What numbers of a dtype are like; a result may be off by its last digits."""
    found = np.finfo(dtype)
    return Limits(float(found.max), float(found.smallest_normal), 4 * float(found.eps))


class Ranges:
    """What the parameters and states of one class of tensors can be, as its steps go on.

    Args:
        update: What moves them.
        dtype: What they are worked on in.
        words: Of states what their rule says that they keep to.
    """

    def __init__(self, update: Update, dtype: np.dtype[Any], words: Mapping[str, Interval]) -> None:
        self._update, self._limits, self._words = update, limits_of(dtype), words
        self._round: Any = dtype.type
        self._known: dict[str, Interval] | None = None
        self._pause, self._pauses = 0, 0

    def forget(self) -> None:
        """States have been changed by other means than a step."""
        self._known, self._pause, self._pauses = None, 0, 0

    def foresees(self, largest: float, steps: Iterable[Once], arrays: Iterable[Mapping[str, Array]]) -> bool:
        """Whether the next step is known to leave nothing that is not finite, or that breaks the rule's word.

        Args:
            largest: A bound of the gradients' elements.
            steps: What is computed once for it; several where tensors differ in their number of steps.
            arrays: ``p`` and the states of each tensor: looked at where what is known does not suffice.
        """
        if self._pause:
            self._pause -= 1
            return False
        steps = list(steps)
        if self._known is None or not self._goes_on(largest, steps):
            self._known = self._measured(arrays)
            if self._known is None or not self._goes_on(largest, steps):
                self._known, self._pauses = None, min(2 * self._pauses + 1, LONGEST_PAUSE)
                self._pause = self._pauses
                return False
        self._pauses = 0
        return True

    def _goes_on(self, largest: float, steps: Sequence[Once]) -> bool:
        """Take what is known from before the step to after it; False if it may leave what it must not."""
        if not math.isfinite(largest) or self._known is None:
            return False
        after = dict(self._known)
        for once in steps:
            inputs = {**self._known, "g": (-largest, largest)}
            if once.prepare is not None:
                inputs["g"] = evaluate_on_intervals(PREPARE, inputs, self._rounded(once.prepare), self._limits)["prepared"]
            outputs = evaluate_on_intervals(self._update.program, inputs, self._rounded(once.scalars), self._limits)
            numbers = dict(zip(self._update.program.memory, once.memory, strict=True))
            for name, found in {**outputs, **{name: (number, number) for name, number in numbers.items()}}.items():
                low, high = self._words.get(name, (-math.inf, math.inf))
                if not (low <= found[0] and found[1] <= high and math.isfinite(found[0] - found[1])):
                    return False
                if name in after:
                    after[name] = min(after[name][0], found[0]), max(after[name][1], found[1])
        self._known = after
        return True

    def _measured(self, arrays: Iterable[Mapping[str, Array]]) -> dict[str, Interval] | None:
        found = dict.fromkeys(self._update.program.states, (0.0, 0.0)) | {"p": (-PARAMETER, PARAMETER)}
        for each in arrays:
            for name, array in each.items():
                if array.size:
                    low, high = float(array.min()), float(array.max())
                    if not math.isfinite(low - high):
                        return None
                    found[name] = min(found[name][0], low), max(found[name][1], high)
        return found

    def _rounded(self, scalars: Iterable[float]) -> list[float]:
        with np.errstate(over="ignore"):
            return [float(self._round(scalar)) for scalar in scalars]
