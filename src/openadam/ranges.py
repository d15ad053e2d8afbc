"""Whether a step of a rule of one's own stays finite: foreseen from what its gradients and states can be, so that it need not be tried out.

What tensors hold is known from the steps that made it; it is looked at where it was changed by other means, or where too little is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .engine import Once, Update
from .language.intervals import ANYTHING, Interval, Limits, evaluate_on_intervals
from .language.rule import Rule
from .rules import PREPARE

__all__ = ["Foresight", "Ranges", "limits_of"]

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

    def foresees(self, largest: float, steps: Iterable[Once], contents: Iterable[Mapping[str, Interval]]) -> bool:
        """Whether the next step is known to leave nothing that is not finite, or that breaks the rule's word.

        Args:
            largest: A bound of the gradients' elements.
            steps: What is computed once for it; several where tensors differ in their number of steps.
            contents: What ``p`` and the states of each tensor are: asked for where what is known does not suffice.
        """
        if self._pause:
            self._pause -= 1
            return False
        steps = list(steps)
        if self._known is None or not self._goes_on(largest, steps):
            self._known = self._measured(contents)
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

    def _measured(self, contents: Iterable[Mapping[str, Interval]]) -> dict[str, Interval] | None:
        found = dict.fromkeys(self._update.program.states, (0.0, 0.0)) | {"p": (-PARAMETER, PARAMETER)}
        for each in contents:
            for name, (low, high) in each.items():
                if not math.isfinite(low - high):
                    return None
                found[name] = min(found[name][0], low), max(found[name][1], high)
        return found

    def _rounded(self, scalars: Sequence[float]) -> list[float]:
        if self._round is np.float64:
            return list(scalars)
        with np.errstate(over="ignore"):
            return np.array(scalars, np.float64).astype(self._round).tolist()  # type: ignore[no-any-return]


class Rows(Protocol):
    """What is asked of a stepper."""

    updates: list[Update]

    @property
    def count(self) -> int: ...
    def is_active(self, i: int, /) -> bool: ...
    def place(self, i: int, /) -> int: ...
    def dtype(self, i: int, /) -> np.dtype[Any]: ...
    def numbers(self, i: int, /) -> Sequence[float]: ...
    def contents(self, i: int, /) -> Mapping[str, Interval] | None: ...


class Foresight:
    """The ranges of all tensors of an optimizer.

    Args:
        rule: Theirs.
    """

    def __init__(self, rule: Rule) -> None:
        self.words = rule.words
        self._rows: Any = None  # by class and dtype; None: they may be others than they were
        self._together = False  # whether all have taken as many steps

    def forget(self) -> None:
        """Tensors, or what they hold, may have been changed by other means than a step."""
        self._rows = None

    def doubtful(self, rows: Rows, factor: float, largest: float, clip_value: float, *, all_active: bool) -> Iterator[int]:
        """The active rows of which it is not known that the step leaves them in order.

        Args:
            rows: A stepper.
            factor: What gradients are multiplied by.
            largest: A bound of their elements before that.
            clip_value: Largest magnitude of an element of them.
            all_active: Whether every row takes part in the step.
        """
        if self._rows is None:
            self._rows = {}
            for i in range(rows.count):
                update = rows.updates[rows.place(i)]
                key = rows.place(i), rows.dtype(i)
                self._rows.setdefault(key, ([], Ranges(update, rows.dtype(i), self.words)))[0].append(i)
            self._together = len({tuple(rows.numbers(i)) for i in range(rows.count)}) == 1
        self._together &= all_active
        largest *= 1 + 1e-12
        for (place, _), (which, ranges) in self._rows.items():
            active = which if self._together else [i for i in which if rows.is_active(i)]
            if not active:
                continue
            counts = {tuple(rows.numbers(i)) for i in (active[:1] if self._together else active)}
            steps = [rows.updates[place].once(t + 1, factor, clip_value, memory) for t, *memory in counts]
            if not ranges.foresees(largest, steps, (rows.contents(i) or {"p": ANYTHING} for i in which)):
                yield from active
