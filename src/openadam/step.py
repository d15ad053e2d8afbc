"""One step over a table of tensors: everything is checked, then all is committed. Hosts bring the tensors.

A host (NumPy arrays, torch tensors) reads its tensors into the table and tells the `Stepper` three things about a row when it has
to: its name, its gradient, and what the step would make of it. Norm, clip and the policy for gradients that are not finite are the
same for all.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from . import rules
from .engine import Update, assign_all
from .errors import (
    ConcurrentStepError,
    HyperparameterError,
    NonFiniteGradientError,
    NonFiniteStateError,
    OpenAdamError,
    RecordError,
    RuleError,
    TooManySkipsError,
)
from .language.intervals import Interval
from .language.rule import Rule
from .measures import GRAD_SUM_SQUARES, INSIDE, MEASURES, Measure
from .ranges import Foresight
from .reports import Measured, StepReport, Subjects

__all__ = ["MAX_STEP", "Coordinate", "Stepper", "alone", "as_loss", "begin_recording", "check_dtype", "told_loss"]

Array = npt.NDArray[Any]
P = ParamSpec("P")
T = TypeVar("T")

ALL_MEASURES = list(range(len(MEASURES)))
NORM = [MEASURES.index(GRAD_SUM_SQUARES)]  # the first: the native table takes the norm from there
MAX_STEP = 2**53 - 1  # a float64 counts exactly up to here
FLOAT32_LARGEST = 3.4028235677973366e38  # a float64 from here on rounds to infinity
FLOAT32_TINIEST = 7.1e-46  # and one below half the smallest subnormal number to 0
# Above these magnitudes a gradient's square might overflow; only then is it worth trying the step out first.
SUSPICIOUS = {np.dtype(np.float32): 1e18, np.dtype(np.float64): 1e150}
SUSPICIOUS_SQUARES = 1e36  # of the least of them: up to here no tensor need be looked at


@dataclass
class Coordinate:
    """One element of a row in the step under way: what goes into the step, and how to see what comes of it."""

    name: str  # of the parameter
    t: int  # the step, as the parameter counts
    update: Update
    dtype: str  # of the parameter
    arithmetic: np.dtype[Any]
    gradient: float
    read: Callable[[], dict[str, float]]
    """What ``p`` and the states are now, by the rule's names."""


def told_loss(value: Any) -> float | None:
    """A loss that somebody tells, as a float.

    Raises:
        HyperparameterError: It is not one number.
    """
    told = as_loss(value)
    if told is None and value is not None:
        raise HyperparameterError(f"loss={value!r:.80} ({type(value).__name__}) is not one number; leave it out, or give that of these gradients")
    return told


def as_loss(value: Any) -> float | None:
    """A loss as a float: of a number, or of an array or tensor of one element; None for whatever else a closure may return."""
    if value is None or isinstance(value, (str, bytes, bool)):
        return None
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError):
        return None


def begin_recording(optimizer: Any, record: Any) -> None:
    """Record an optimizer's steps where it was told to, or else where ``OPENADAM_RECORD`` says."""
    told = record if record is not None else os.environ.get("OPENADAM_RECORD") or None
    if told is None:
        return
    try:
        optimizer.record(told)
    except RecordError as error:
        if record is not None:
            raise
        raise type(error)(f"OPENADAM_RECORD={told!r} (in the environment): {error}") from error


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


class Stepper:
    """Takes steps over the rows of a table.

    Args:
        rule: Theirs, or one of them where all are of the family.
        clip_norm, clip_value, nonfinite, max_skips: As the hosts tell.
    """

    def __init__(self, rule: Rule, *, clip_norm: float | None, clip_value: float | None, nonfinite: str, max_skips: int | None) -> None:
        self.rule = rule
        self.clip_norm, self.clip_value, self.nonfinite, self.max_skips = clip_norm, clip_value, nonfinite, max_skips
        self.table: Any = None
        self.latest_skips = [0, 0]  # steps taken before the latest skips, and how many these were in a row
        self.updates: list[Update] = []  # of each group that which decays, and that which does not
        self.observer: Any = None  # who records what the steps see
        self.followed: Any = None  # the coordinates that somebody follows
        self.foresight: Foresight | None = None  # of a rule of one's own, where it is not looked at what was computed before that is written

    # --- what a host tells -----------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Rows."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        """The name of row i's tensor, for messages."""
        raise NotImplementedError

    def shape(self, i: int) -> tuple[int, ...]:
        """The shape of row i's tensor."""
        raise NotImplementedError

    def place(self, i: int) -> int:
        """Which of the updates moves row i."""
        raise NotImplementedError

    def is_active(self, i: int) -> bool:
        """Whether row i takes part in this step."""
        return bool(self.table.is_active(i))

    def gradient(self, i: int) -> Array:
        """The gradient of an active row in the order of its axes as given."""
        raise NotImplementedError

    def element(self, i: int, index: int) -> int:
        """The flat index in the parameter of an element of an active row's gradient, which may be for some rows of it only."""
        return index

    def dtype(self, i: int) -> np.dtype[Any]:
        """What an active row is worked on in."""
        raise NotImplementedError

    @property
    def doubles(self) -> bool:
        """Whether any row is worked on in float64."""
        return any(self.dtype(i) == np.float64 for i in range(self.count))

    def preview(self, i: int, factor: float) -> tuple[Array, Iterable[tuple[str, Array, Array]]]:
        """The gradient of row i and what this step would make of ``p`` and of each state, by the rule's names, before and after.

        All flat, in one order of elements. Nothing is written.
        """
        raise NotImplementedError

    def public(self, name: str) -> str:
        """What the host calls a state of the rule."""
        raise NotImplementedError

    def numbers(self, i: int) -> Sequence[float]:
        """How many steps row i has taken, and its scalar states."""
        raise NotImplementedError

    def contents(self, i: int) -> Mapping[str, Interval] | None:
        """The least and the greatest element of ``p`` and of each state of row i; None where that cannot be told."""
        raise NotImplementedError

    @property
    def active_count(self) -> int:
        """Rows that take part in this step."""
        return self.table.active_count  # type: ignore[no-any-return]

    def look(self, key: Any, index: tuple[int, ...]) -> Coordinate | str:
        """An element of the row that the host knows by a key, before the step; or why it does not take part in it."""
        raise NotImplementedError

    def measure(self, threads: int) -> tuple[float, float]:
        """The gradients' sum of squares, and the largest of one row."""
        return self.table.measure(threads)  # type: ignore[no-any-return]

    def prepare(self, factor: float, measures: list[int], inside: tuple[Measure, ...]) -> NonFiniteStateError | None:
        """Whatever of the step can still fail; the last chance to refuse it. Returns what would not be finite, if that was looked at."""
        return None

    @property
    def grows(self) -> bool:
        """Whether bounded gradients can make a state grow without bound."""
        return False

    def update(self, factor: float, measures: list[int], threads: int, inside: tuple[Measure, ...]) -> tuple[float, float]:
        """The step itself; returns what `measure` does if the norm is among the measures. Those of ``inside`` look into it."""
        raise NotImplementedError

    def tallies(self) -> Array:
        """What the last pass measured: rows x measures."""
        return self.table.tallies()  # type: ignore[no-any-return]

    def observed(self) -> Array:
        """What was seen inside the last step: rows x measures, NaN where a rule lacks what a measure looks at."""
        return self.table.observed()  # type: ignore[no-any-return]

    def everywhere(self, total: float, largest: float) -> tuple[float, float]:
        """The norm of all gradients, and the largest sum of squares of one tensor, over all who take this step."""
        return self.norm(total), largest

    def agreed(self, error: Exception | None) -> Exception | None:
        """What keeps any of those who take this step together from taking it."""
        return error

    # --- the step --------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.table.taken  # type: ignore[no-any-return]

    @property
    def skipped(self) -> int:
        """Steps skipped because of gradients that are not finite."""
        return self.table.skipped  # type: ignore[no-any-return]

    @property
    def skips_in_a_row(self) -> int:
        """Steps skipped since the last one that was taken."""
        after, count = self.latest_skips
        return count if after == self.steps else 0

    def skip(
        self,
        norm: float,
        clip: float = 1.0,
        measures: Measured | None = None,
        why: Exception | None = None,
        loss: float | None = None,
    ) -> StepReport:
        """Skip this step and count it.

        Raises:
            TooManySkipsError: As many in a row as allowed have been skipped; counting them starts anew.
        """
        taken, skipped, count = self.steps, self.skipped, self.skips_in_a_row
        if self.max_skips is not None and count >= self.max_skips:
            self.latest_skips = [taken, 0]
            reason = getattr(why, "what", str(why)) if why is not None else "a scaler found gradients that are not finite"
            raise TooManySkipsError(taken + 1, count, self.max_skips, reason) from why
        assign_all([self.table.counts, self.latest_skips], [np.array([taken, skipped + 1]), [taken, count + 1]])
        said = str(why) if why is not None else "a scaler found gradients that are not finite"
        if self.observer is not None:
            self.observer.skipped(taken + 1, said, why, loss)
        if self.followed is not None:
            self.followed.missed(f"step {taken + 1} was skipped: {said}")
        return StepReport(taken, norm, clip, True, measures, said, loss)

    def take(
        self,
        threads: int,
        *,
        scale: float = 1.0,
        measure: bool | Iterable[Measure] = False,
        loss: float | None = None,
        before_commit: Callable[[], None] | None = None,
        only_makes_states: Callable[[], bool] | None = None,
    ) -> StepReport:
        """One step over the active rows; all of it, or nothing.

        Args:
            threads: Most threads to use.
            scale: What the gradients are to be multiplied by first: the inverse of a loss scale.
            measure: Report all measures, and those that are given.
            loss: To be reported.
            before_commit: Called once nothing can be refused any more.
            only_makes_states: Asked, where all gradients are zero, whether to neither move nor count anything.
        """
        measures, inside = self._asked(measure) if measure is not False else ([], ())
        checks = self.nonfinite != "propagate"
        looks = checks or self.clip_norm is not None
        clip, norm = 1.0, math.nan
        largest = 0.0
        if looks or only_makes_states is not None:
            norm, largest = self.everywhere(*self.measure(threads))
            if checks and not math.isfinite(norm):
                bad = self.agreed(self._non_finite())
                if bad is not None and self.nonfinite == "raise":
                    raise bad
                if bad is not None:
                    return self.skip(norm * scale, 1.0, Measured() if measures else None, bad, loss)
            if only_makes_states is not None and norm == 0 and only_makes_states():
                if before_commit is not None:
                    before_commit()
                return StepReport(self.steps, 0.0, 1.0, False, loss=loss)
            if self.clip_norm is not None:
                clip = rules.clip_factor(norm * scale, self.clip_norm)
        squares = self.tallies() if looks and measures else None  # of the gradients: they need not be added up once more
        wanted = measures[1:] if squares is not None else measures or ([] if looks else NORM)
        unbounded: Exception | None = None
        if checks and (largest > SUSPICIOUS_SQUARES or self.grows):
            unbounded = self.agreed(self._try_out(clip * scale))
            if unbounded is not None and not self.grows:
                raise unbounded
        if inside:
            for index, update in enumerate(self.updates):
                update.tell_inside(self.table, index, inside)
        unbounded = unbounded or self.prepare(clip * scale, wanted, inside)
        if self.foresight is not None and unbounded is None:
            unbounded = self.agreed(self._doubted(clip * scale, largest if looks else None, threads))
            if unbounded is not None and (isinstance(unbounded, RuleError) or not checks):
                raise unbounded
        if checks and unbounded is not None:
            if self.nonfinite == "raise":
                raise unbounded
            return self.skip(norm * scale, clip, Measured() if measures else None, unbounded, loss)
        if before_commit is not None:
            before_commit()
        total, _ = self.update(clip * scale, wanted, threads, inside)
        if not looks:
            norm = self.norm(total)
        return StepReport(self.steps, norm * scale, clip, False, self._measured(squares, scale, inside) if measures else None, None, loss)

    def take_and_tell(self, threads: int, *, measure: bool | Iterable[Measure] = False, **how: Any) -> StepReport:
        """`take`, where somebody records it or follows coordinates: some steps are measured for who records, and what is refused is told, too."""
        observer, followed = self.observer, self.followed
        if measure is not False:  # what cannot be asked for is no step that failed
            measure = measure if isinstance(measure, (bool, Measure)) or not isinstance(measure, Iterable) else tuple(measure)
            self._asked(measure)
        looks = observer.wants(self.steps + 1) if observer is not None and measure is False else measure
        if followed is not None:
            followed.before(self)
        try:
            report = self.take(threads, measure=looks, **how)
        except OpenAdamError as error:
            if observer is not None:
                observer.failed(self.steps + 1, error, how.get("loss"))
            raise
        if followed is not None:
            followed.after(self, report, how.get("scale", 1.0))
        if observer is not None:
            observer.saw(report, (update.values["lr"] for update in self.updates[::2]))
        return report if measure is not False else report._replace(measures=None)

    def norm(self, total: float, which: Iterable[int] | None = None) -> float:
        """The Euclidean norm of the gradients here (or of some rows) from the sum of their squares."""
        # In float64 itself the squares can leave the range though the norm does not.
        if not 1e-280 < total < math.inf and self.doubles:
            with np.errstate(all="ignore"):
                rows = range(self.count) if which is None else which
                given = [g for g in map(self.gradient, filter(self.is_active, rows)) if g.size]
                largest = max((float(np.max(np.abs(g))) for g in given), default=0.0)
                if 0.0 < largest < math.inf:
                    scaled = [float(np.sum((np.asarray(g, np.float64) / largest) ** 2)) for g in given]
                    return largest * math.sqrt(math.fsum(scaled))
        return math.sqrt(total) if total >= 0 else math.nan

    @staticmethod
    def _asked(measure: Any) -> tuple[list[int], tuple[Measure, ...]]:
        """Which measures are taken, and which look inside."""
        if measure is True:
            return ALL_MEASURES, INSIDE
        own = tuple(measure) if isinstance(measure, Iterable) else (measure,)
        for each in own:
            if not isinstance(each, Measure):
                raise HyperparameterError(f"measure={measure!r:.80} is neither True nor a list of openadam.Measure")
        return ALL_MEASURES, _beside(own)

    def _measured(self, squares: Array | None, scale: float, inside: tuple[Measure, ...]) -> Measured:
        """What was seen of each row, the gradients freed of a loss scale as the norm is; ``squares`` were if they were added up before."""
        tallies = self.tallies() if squares is None else np.hstack([squares[:, :1], self.tallies()])
        exact = tallies * [scale**measure.degree for measure in MEASURES]
        active = [i for i in range(self.count) if self.is_active(i)]
        which = slice(None) if len(active) == self.count else active
        nonfinite = np.zeros((self.count, 1))
        for i in np.flatnonzero(~np.isfinite(exact[:, 0])).tolist():  # else its gradient is
            nonfinite[i] = np.count_nonzero(~np.isfinite(self.gradient(i))) if i in active else 0
        classes = [(update.traced.name, update.coupling, update.values) for update in self.updates]
        about = Subjects([self.shape(i) for i in active], [self.place(i) for i in active], classes)
        exact = np.hstack([exact, nonfinite])[which]
        return Measured.of([self.name(i) for i in active], exact, self.observed()[which], inside, self.steps, about)

    def _non_finite(self) -> NonFiniteGradientError | None:
        """The error that names the first element that is not finite, if there is one."""
        active = [i for i in range(self.count) if self.is_active(i)]
        finite = np.isfinite(self.tallies()[:, 0])  # else an element is not, or its square
        bad = [i for i in active if not finite[i] and not np.isfinite(self.gradient(i)).all()]
        if not bad:
            return None
        flat = self.gradient(bad[0]).reshape(-1)
        where = np.flatnonzero(~np.isfinite(flat))
        name, index = self.name(bad[0]), self.element(bad[0], int(where[0]))
        return NonFiniteGradientError(name, index, flat[where[0]].item(), where.size, self.steps + 1, len(bad) - 1, len(active))

    def _try_out(self, factor: float) -> NonFiniteStateError | None:
        """The error that names a gradient so large that a state would not be finite, if there is one."""
        squares = self.tallies()[:, 0]
        for i in range(self.count) if self.grows else np.flatnonzero(squares > SUSPICIOUS_SQUARES).tolist():
            if self.is_active(i) and (self.grows or math.sqrt(squares[i]) > SUSPICIOUS.get(self.dtype(i), 0.0)):
                gradient, outcomes = self.preview(i, factor)
                for what, before, after in outcomes:
                    bad = self.unbounded(i, gradient, what, before, after)
                    if bad is not None:
                        return bad
        return None

    def _doubted(self, factor: float, largest: float | None, threads: int) -> Exception | None:
        """The error that names what a step of a rule of one's own would leave not finite, or otherwise than the rule says of it; only rows are looked
        at of which it is not known that they stay in order.

        Args:
            factor: What gradients are multiplied by.
            largest: The largest sum of squares of one of them; None where nobody has looked yet.
            threads: Most threads to look with.
        """
        assert self.foresight is not None
        if self.nonfinite == "propagate" and not self.foresight.words:
            return None
        if largest is None:
            _, largest = self.measure(threads)
        clip_value = math.inf if self.clip_value is None else self.clip_value
        bad = None
        for i in self.foresight.doubtful(self, factor, math.sqrt(largest), clip_value, all_active=self.active_count == self.count):
            gradient, outcomes = self.preview(i, factor)
            for name, before, after in outcomes:
                broken = self.broken_word(i, name, after)
                if broken is not None:
                    return broken
                if bad is None and self.nonfinite != "propagate":
                    bad = self.unbounded(i, gradient, name, before, after)
        return bad

    def broken_word(self, i: int, name: str, after: Array) -> RuleError | None:
        """The error that names a state that is not what the rule says of it: it could be saved, and not be loaded again."""
        update = self.updates[self.place(i)]
        low, high = self.rule.words.get(name, (-math.inf, math.inf))
        outside = np.flatnonzero((after < low) | (after > high))
        if not outside.size:
            return None
        index, value = int(outside[0]), float(after[outside[0]])
        index = self.element(i, index) if name in update.program.states else index
        says = f"`nonnegative` has {name!r}" if value < low else f"`at_most` has {name!r} at {high:g}"
        found = f"the state of parameter {self.name(i)!r} would be {value:g} at flat index {index}, at step {self.steps + 1}"
        return RuleError(f"rule {self.rule.name!r}: {says}, and {found}; nothing was changed")

    def unbounded(self, i: int, gradient: Array, what: str, before: Array, after: Array) -> NonFiniteStateError | None:
        """The error that names an element of a state, or of the parameter (``p``), that was finite and would not be."""
        what = what if what == "p" else self.public(what)
        finite = np.isfinite(after)
        if finite.all():
            return None
        bad = np.flatnonzero(~finite & np.isfinite(before))
        if not bad.size:
            return None
        element = int(bad[0])
        place = self.element(i, element) if after.size == gradient.size else element
        name, dtype = self.name(i), self.dtype(i)
        if element < gradient.size and abs(gradient[element]) > SUSPICIOUS.get(dtype, math.inf):
            named, size = "it" if what == "p" else f"its state {what!r}", f"{float(gradient[element]):g} at element {place}"
            return NonFiniteStateError(
                f"the gradient of parameter {name!r} is so large ({size}) that {named} would not be finite in {dtype} at step {self.steps + 1}; "
                "nothing was changed (clipping bounds gradients)"
            )
        named = f"parameter {self.name(i)!r}" if what == "p" else f"the state {what!r} of parameter {self.name(i)!r}"
        size = f" from the gradient {float(gradient[element]):g}" if element < gradient.size else ""
        return NonFiniteStateError(
            f"{named} would not be finite, {after[element]:g} at flat index {place} in {self.dtype(i)}{size}, at step {self.steps + 1}; "
            "nothing was changed (of a large gradient, clipping bounds it; of a rule of one's own, look at what it divides by and takes roots of)"
        )


@functools.lru_cache(maxsize=64)
def _beside(own: tuple[Measure, ...]) -> tuple[Measure, ...]:
    """All that look inside, where these are asked for."""
    names = [each.name for each in (*MEASURES, *INSIDE, *own)]
    for name in names:
        if names.count(name) > 1:
            raise HyperparameterError(f"there are two measures called {name!r}; call yours otherwise")
    return INSIDE + own


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
