"""One step over a table of tensors: everything is checked, the scalars are placed, then all is committed. Hosts bring the tensors.

A host (NumPy arrays, torch tensors) fills the rows of the table with addresses and tells the `Stepper` three things about
a row when it has to: its name, its gradient, and what the step would make of it. Norm, clip, the policy for gradients that are not
finite, scalars and counters are the same for all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from . import engine as engines
from . import rules
from .errors import ConcurrentStepError, HyperparameterError, NonFiniteGradientError, NonFiniteStateError
from .language.arrays import compile_scalars
from .language.expression import Traced
from .language.program import Program
from .measures import GRAD_SUM_SQUARES, MEASURES
from .parameters import Entry

__all__ = ["MAX_STEP", "StepReport", "Stepper", "Update", "allocate_states", "alone", "check_dtype", "compiled"]

Array = npt.NDArray[Any]
P = ParamSpec("P")
T = TypeVar("T")

NORM = (MEASURES.index(GRAD_SUM_SQUARES),)
ALL_MEASURES = tuple(range(len(MEASURES)))
MAX_STEP = 2**53 - 1  # a float64 counts exactly up to here
FLOAT32_LARGEST = 3.4028235677973366e38  # a float64 from here on rounds to infinity
FLOAT32_TINIEST = 7.1e-46  # and one below half the smallest subnormal number to 0
# Above these magnitudes a gradient's square might overflow; only then is it worth trying the step out first.
SUSPICIOUS = {np.dtype(np.float32): 1e18, np.dtype(np.float64): 1e150}
SUSPICIOUS_SQUARES = 1e36  # of the least of them: up to here no tensor need be looked at


class StepReport(NamedTuple):
    """What a trainer wants to log of one step.

    >>> import numpy as np, openadam
    >>> report = openadam.Adam(np.zeros(2)).step(np.array([3.0, 4.0]))
    >>> report.step, report.grad_norm, report.skipped
    (1, 5.0, False)
    """

    step: int
    """Number of steps taken so far, this one included unless it was skipped."""
    grad_norm: float
    """Global Euclidean norm of the gradients before clipping, of a loss scale freed; NaN where a scaler skipped the step, 0 where there were none."""
    clip_factor: float
    """What the gradients were multiplied by to keep to ``clip_norm``; 1.0 if nothing was clipped."""
    skipped: bool
    """Whether the step was skipped because of a gradient that is not finite: by ``nonfinite="skip"``, or by a scaler's word."""
    measures: dict[str, dict[str, float]] | None = None
    """Per tensor, what `step(..., measure=True)` saw on the way; see `openadam.measures`."""


def alone(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """One use of an optimizer at a time: a second one is refused, not made to wait (a wait could hang after a fork).

    The lock is held for one line without calls, in which neither a signal handler nor another thread can run.
    """

    @functools.wraps(method)
    def exclusive(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        mine = False
        try:
            with self._guard:
                mine, self._in_use = not self._in_use, True
            if not mine:
                raise ConcurrentStepError("this optimizer is in use by another thread, or by the call that led here; use one optimizer per thread")
            return method(self, *args, **kwargs)
        finally:
            if mine:
                self._in_use = False

    return exclusive


@dataclass(frozen=True, eq=False)
class Update:
    """What moves the tensors of one class: a traced rule, compiled, and how weight decay joins it."""

    traced: Traced
    program: Program
    scalars: Callable[[Mapping[str, float]], list[float]]
    coupling: str
    kernel: int


@functools.lru_cache(maxsize=256)
def compiled(traced: Traced) -> tuple[Program, Callable[[Mapping[str, float]], list[float]]]:
    """The program of a traced rule, and the function that computes its scalars and then its scalar states."""
    program = rules.update_program(traced)
    return program, compile_scalars([*program.scalars, *(traced.named[name] for name in traced.scalar_states)])


_prepare_scalars = compile_scalars(rules.PREPARE.scalars)


class Stepper:
    """Takes steps over a table. Tensors of one class share their hyperparameters, and their scalars while their counters agree.

    Counters are, in this order: the steps of each tensor, the steps of the optimizer, the steps skipped, and, for hosts that show
    steps as floating-point numbers, a copy of the first in room for as many int64. The engine commits them, and the scalar states,
    together with the tensors.
    """

    def __init__(self, engine: engines.Engine, *, clip_norm: float | None, clip_value: float | None, nonfinite: str) -> None:
        self.engine = engine
        self.clip_norm, self.clip_value, self.nonfinite = clip_norm, clip_value, nonfinite
        self.table = engines.Table(np.zeros((0, engines.COLUMNS), np.int64))
        self.class_of: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.updates: Mapping[int, Update] = {}
        self.dtypes: Sequence[np.dtype[Any]] = ()
        self.missing: list[int] = []  # tensors without a gradient in the current step
        self.shows: np.dtype[Any] | None = None  # the dtype of the copy of the steps that a host shows
        # A sample of each class and, for each tensor, which; while all tensors have taken the same number of steps.
        self._classes: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] = (self.class_of, self.class_of)
        self._together = True  # every tensor has taken the same number of steps and holds the same scalar states
        self._placed: tuple[list[int], list[int]] | None = None
        self._doubles = False

    # --- what a host tells -----------------------------------------------------------------------------------------

    def name(self, i: int) -> str:
        """The name of row i's tensor, for messages."""
        raise NotImplementedError

    def gradient(self, i: int) -> Array | None:
        """The gradient of row i in the order of its axes as given, or None."""
        raise NotImplementedError

    def preview(self, i: int) -> tuple[Array, Iterable[tuple[str, Array, Array]]]:
        """The gradient of row i and what this step would make of each state and of ``p``, by public name, before and after.

        All flat, in one order of elements. Nothing is written.
        """
        raise NotImplementedError

    def norm(self, squares: Array) -> tuple[float, float]:
        """The norm of all gradients, and the largest sum of squares of one tensor, over all who take this step."""
        return self.local_norm(squares), float(squares.max(initial=0.0))

    def agreed(self, error: Exception | None) -> Exception | None:
        """What keeps any of those who take this step together from taking it."""
        return error

    # --- rows and counters -----------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Tensors in the table."""
        return len(self.class_of)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self.table.counters[self.count]) if self.table.counters.size else 0

    @property
    def skipped(self) -> int:
        """Steps skipped because of gradients that are not finite."""
        return int(self.table.counters[self.count + 1]) if self.table.counters.size else 0

    @property
    def steps_of(self) -> npt.NDArray[np.int64]:
        """Steps taken by each tensor."""
        return self.table.counters[: self.count]

    def rebuild(self, rows: npt.NDArray[np.int64], class_of: npt.NDArray[np.int64], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Take over new rows; the table's counters and scalar states must already be theirs."""
        self.table.rows = rows
        self.class_of = class_of
        self.dtypes = dtypes
        _, sample, inverse = np.unique(class_of, return_index=True, return_inverse=True)
        self._classes = (sample, inverse.reshape(-1))
        rows[:, engines.LAYOUT] = -1
        self._doubles = np.dtype(np.float64) in dtypes
        self._placed = None
        self.note_together()

    def note_together(self) -> None:
        """Find out whether all tensors share their counters, after these have been set from outside."""
        if not self.count:
            return
        steps = self.steps_of
        memory = self.table.memory.reshape(self.count, -1)
        self._together = bool((steps == steps[0]).all() and (memory == memory[0]).all())

    def no_longer_together(self) -> None:
        """Before counters are set from outside."""
        self._together = False

    # --- the step --------------------------------------------------------------------------------------------------

    def take(
        self,
        settings: Mapping[int, Mapping[str, Any]],
        threads: int,
        *,
        scale: float = 1.0,
        measure: bool = False,
        before_commit: Callable[[], None] | None = None,
        only_makes_states: Callable[[], bool] | None = None,
    ) -> StepReport:
        """One step over the active rows; all of it, or nothing.

        Args:
            settings: Of each class its hyperparameters and ``maximize``, as numbers.
            threads: Most threads to use.
            scale: What the gradients are to be multiplied by first: the inverse of a loss scale.
            measure: Report all measures.
            before_commit: Called once nothing can be refused any more.
            only_makes_states: Asked, where all gradients are zero, whether to neither move nor count anything.
        """
        table = self.table
        if self.count and table.counters[: self.count + 1].max() >= MAX_STEP:
            raise HyperparameterError(f"a parameter has taken {MAX_STEP} steps, more than can be counted exactly; start a new optimizer")
        checks = self.nonfinite != "propagate"
        clip, norm, largest = 1.0, math.nan, 0.0
        squares = np.zeros(0)
        if checks or self.clip_norm is not None or only_makes_states is not None:
            squares = self.engine.measure(table, NORM, threads)[:, 0]
            norm, largest = self.norm(squares)
            if checks and not math.isfinite(norm):
                bad = self.agreed(self._non_finite())
                if bad is not None and self.nonfinite == "raise":
                    raise bad
                if bad is not None:
                    table.counters[self.count + 1] += 1
                    return StepReport(self.steps, norm * scale, 1.0, True, {} if measure else None)
            if only_makes_states is not None and norm == 0 and only_makes_states():
                if before_commit is not None:
                    before_commit()
                return StepReport(self.steps, 0.0, 1.0, False)
            if self.clip_norm is not None:
                clip = rules.clip_factor(norm * scale, self.clip_norm)
        self._place_scalars(settings, clip * scale)
        if checks and largest > SUSPICIOUS_SQUARES:
            bad = self.agreed(self._try_out(squares))
            if bad is not None:
                raise bad
        taken = ALL_MEASURES if measure else () if checks or self.clip_norm is not None else NORM
        if self.missing:
            self._together = False
        if before_commit is not None:
            before_commit()
        tallies = self.engine.update(table, taken, threads)
        if math.isnan(norm) and not checks and self.clip_norm is None:
            norm = self.local_norm(tallies[:, taken.index(NORM[0])])
        seen = None
        if measure:
            names = [m.name for m in MEASURES]
            given = table.rows[:, engines.ACTIVE].tolist()
            seen = {self.name(i): dict(zip(names, row, strict=True)) for i, row in enumerate(tallies.tolist()) if given[i]}
        return StepReport(self.steps, norm * scale, clip, False, seen)

    def local_norm(self, squares: Array, which: Sequence[int] | None = None) -> float:
        """The Euclidean norm of the gradients here (or of some rows) from each tensor's sum of squares, added in order."""
        chosen = squares if which is None else squares[list(which)]
        if not chosen.size:
            return 0.0
        with np.errstate(all="ignore"):
            total = float(np.add.accumulate(chosen)[-1])
            # In float64 itself the squares can leave the range though the norm does not.
            if self._doubles and not 1e-280 < total < math.inf:
                given = [g for g in map(self.gradient, range(self.count) if which is None else which) if g is not None]
                largest = max((float(np.max(np.abs(g))) for g in given if g.size), default=0.0)
                if 0.0 < largest < math.inf:
                    scaled = [float(np.sum((np.asarray(g, np.float64) / largest) ** 2)) for g in given]
                    return largest * math.sqrt(math.fsum(scaled))
        return math.sqrt(total) if total >= 0 else math.nan

    def _non_finite(self) -> NonFiniteGradientError | None:
        """The error that names the first element that is not finite, if there is one."""
        for i in range(self.count):
            gradient = self.gradient(i)
            if gradient is None:
                continue
            flat = gradient.reshape(-1)
            bad = np.flatnonzero(~np.isfinite(flat))
            if bad.size:
                index = int(bad[0])
                return NonFiniteGradientError(self.name(i), index, flat[index].item(), int(bad.size), self.steps + 1)
        return None

    def _try_out(self, squares: Array) -> NonFiniteStateError | None:
        """The error that names a gradient so large that a state would not be finite, if there is one."""
        for i in np.flatnonzero(squares > SUSPICIOUS_SQUARES).tolist():
            if math.sqrt(squares[i]) <= SUSPICIOUS.get(self.dtypes[i], 0.0):
                continue
            gradient, outcomes = self.preview(i)
            for what, before, after in outcomes:
                bad = np.flatnonzero(~np.isfinite(after) & np.isfinite(before))
                if bad.size:
                    element = int(bad[0])
                    named = "it" if what == "p" else f"its state {what!r}"
                    size = f"{float(gradient[element]):g} at element {element}"
                    return NonFiniteStateError(
                        f"the gradient of parameter {self.name(i)!r} is so large ({size}) that {named} would not be finite in {self.dtypes[i]} "
                        f"at step {self.steps + 1}; nothing was changed (clipping bounds gradients)"
                    )
        return None

    def _place_scalars(self, settings: Mapping[int, Mapping[str, Any]], factor: float) -> None:
        """Compute the scalars of the step, once for each set of tensors that share them, and the counters after it."""
        table, count = self.table, self.count
        steps = self.steps_of
        table.counters_after = after_steps = table.counters.copy()
        after_steps[: count + 1] += 1
        if self.missing:
            after_steps[self.missing] -= 1
        if self.shows is not None:
            after_steps[count + 2 :].view(self.shows)[:count] = after_steps[:count]
        memory = table.memory.reshape(count, -1)
        after = memory.copy()
        if self._together:
            sample, inverse = self._classes
        else:
            columns = [self.class_of, steps, *memory.T.copy().view(np.int64)]
            _, sample, inverse = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
            inverse = inverse.reshape(-1)
        scalars: list[float] = []
        starts: list[int] = []
        prepare_starts: list[int] = []
        for k, i in enumerate(sample.tolist()):
            update = self.updates[int(self.class_of[i])]
            h = dict(settings[int(self.class_of[i])])
            decay, coupled = h["weight_decay"], update.coupling == "coupled"
            h |= {"coupled_decay": decay if coupled else 0.0, "decoupled_decay": 0.0 if coupled else decay}
            h["t"] = float(steps[i] + 1)
            h["gradient_scale"] = -factor if h["maximize"] else factor
            h["clip_value"] = math.inf if self.clip_value is None else self.clip_value
            prepare_starts.append(-1)
            if h["clip_value"] != math.inf or h["coupled_decay"] != 0.0:
                prepare_starts[-1] = len(scalars)
                scalars += _prepare_scalars(h)
                h["gradient_scale"] = 1.0  # it has been applied
            names = update.traced.scalar_states
            if names:
                h.update(zip(names, memory[i].tolist(), strict=True))
            computed = update.scalars(h)
            split = len(computed) - len(names)
            starts.append(len(scalars))
            scalars += computed[:split]
            if names:
                after[inverse == k] = computed[split:]
        table.scalars = np.array(scalars)
        placed = (starts, prepare_starts) if self._together else None
        if placed is None or placed != self._placed:
            self._placed = None
            if count:
                table.rows[:, engines.SCALARS] = np.array(starts)[inverse]
                table.rows[:, engines.PREPARATION] = np.array(prepare_starts)[inverse]
            self._placed = placed
        after[self.missing] = memory[self.missing]
        table.memory_after = after.reshape(-1)


def allocate_states(entries: Sequence[Entry], first_values: Sequence[Sequence[float]]) -> list[tuple[Array, ...]]:
    """The states of new parameters, filled with their first values, in one piece of memory; each starts on a cache line."""
    kinds = max(map(len, first_values), default=0)
    places: dict[tuple[int, int], int] = {}
    total = 0
    for k in range(kinds):
        # Arrays at equal distances from a 4 KiB boundary get in each other's way in the cache; these start apart.
        total += -total % 4096 + 1088 * (k + 1)
        for i, entry in enumerate(entries):
            if k < len(first_values[i]):
                places[i, k] = total
                total += entry.view.nbytes + -entry.view.nbytes % 64
    memory = engines.zeros(total)
    states: list[tuple[Array, ...]] = []
    for i, (entry, values) in enumerate(zip(entries, first_values, strict=True)):
        own = []
        for k, value in enumerate(values):
            at = places[i, k]
            array = memory[at : at + entry.view.nbytes].view(entry.view.dtype).reshape(entry.view.shape)
            if value:
                array[...] = value
            own.append(array)
        states.append(tuple(own))
    return states


def check_dtype(index: int, values: Mapping[str, Any], single: str | None) -> None:
    """Refuse numbers that a float32 parameter of the group cannot work with: infinite there, or an eps that is 0 there."""
    for name, value in values.items() if single is not None else ():
        if callable(value):
            continue
        if name == "eps" and 0 < value < FLOAT32_TINIEST:
            hint = f"use at least {FLOAT32_TINIEST:.2g}, or eps=0"
            raise HyperparameterError(f"eps={value!r} in group {index} is 0 in float32, the dtype of parameter {single!r}; {hint}")
        if abs(value) > FLOAT32_LARGEST:
            raise HyperparameterError(f"{name}={value!r} in group {index} is infinite in float32, the dtype of parameter {single!r}")
