"""Judges a run while it goes on: the urgent readings of each observed step, over all tensors at once, and the loss of every step.

As in the doctor, whose thresholds these are, a reading has to stay beyond its threshold for some observed steps, and an alarm is over only when
the reading has come half-way back to its null value: it is raised once until then.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..readings import ENOUGH, READINGS, ROUNDING, UNUSUAL, Numbers, Reading, halfway, told, uphill
from ..reports import Measured
from ..theory import momentum_span
from .diseases import RULES, in_words

__all__ = ["Judge", "Raised"]

Array = npt.NDArray[Any]

URGENT = sorted((each for each in READINGS.values() if each.urgent), key=lambda each: each.below)
BELOW = slice(sum(not each.below for each in URGENT), None)
MEMORY = 0.05  # how much one observed step counts in what is usual

LOSSES = 64  # that a loss is compared with
FEW = 20  # of fewer nothing can be said
FAR = 3.0  # times their range above the largest of them
RISEN = 10.0  # times the largest of the first few
BACK = 0.25  # of all that was learnt


class Raised(NamedTuple):
    """An alarm: ``tensors`` are those in which it was raised at this step, the worst first, each with its evidence; None is all of them together."""

    what: str
    tensors: list[tuple[str | None, dict[str, Any]]]

    @property
    def in_words(self) -> str:
        """One line about the worst."""
        tensor, evidence = self.tensors[0]
        more = f" and {len(self.tensors) - 1} more" if len(self.tensors) > 1 else ""
        return f"{self.what}{f', in {tensor!r}' if tensor is not None else ''}{more}: {in_words(evidence, evidence.get('rule'))}"


class Judge:
    """What is remembered of the steps of one optimizer, so that each can be judged.

    >>> import openadam
    >>> judge, optimizer, random = Judge(), openadam.Adam({"w": np.ones(100)}), np.random.default_rng(0)
    >>> for t in range(1, 111):
    ...     report = optimizer.step({"w": random.normal(0, 1 if t < 110 else 30, 100)}, measure=True)
    ...     for raised in judge.observed(report.measures):
    ...         print(f"step {t}: {raised.what}, {raised.tensors[0][0]}")
    step 110: D16: gradients beyond what v expects (RMS spike), w
    step 110: D17: spikes of single coordinates, w
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}  # of the tensors that were seen
        self._about: Any = None  # what was last found out of tensors, beside their measures
        self._tensors, self._whole, self._largest = _Tensors(0), _Rows((1, 1)), 0.0
        self._losses = _Losses()
        self._skipping = False

    def taken(self, loss: float | None) -> Iterator[Raised]:
        """A step that was taken, with its loss."""
        self._skipping = False
        return self.loss(loss)

    def loss(self, loss: float | None) -> Iterator[Raised]:
        """The loss of a step, taken or not."""
        evidence = self._losses.judge(loss) if loss is not None else None
        if evidence is not None:
            yield Raised(_named(evidence["rule"]), [(None, evidence)])

    def skipped(self, why: Exception | None) -> Iterator[Raised]:
        """A step that was skipped. A scaler skips now and then, and has no reason; others raise an alarm, once until a step is taken."""
        if why is not None and not self._skipping:
            self._skipping = True
            evidence = {"rule": "D01", "reading": "steps skipped", "value": 1.0, "null": 0.0, "threshold": 0.0, "why": str(why)}
            yield Raised(_named("D01"), [(getattr(why, "parameter", None), evidence)])

    def observed(self, seen: Measured) -> list[Raised]:
        """A step that was measured."""
        if not len(seen):
            return []
        raised: list[Raised] = []
        with np.errstate(all="ignore"):
            state, which, x = self._at_hand(seen)
            t = seen.step
            values = np.array([each.formula(x) for each in URGENT])
            alarm, known = np.empty(values.shape), np.isfinite(values)
            for k, each in enumerate(URGENT):
                value, limit = values[k], told(each.alarm, x)
                if each.judged is not None:
                    known[k] &= each.judged(x)
                if each.smooth > 1:
                    value[:] = state.average(state.smooth, k, which, value, 2 / (each.smooth + 1), known[k])
                if each.rule == "D17":  # of what is rare it is much
                    limit = np.fmax(limit, UNUSUAL * state.usual[k, which])
                    state.average(state.usual, k, which, value, MEMORY, known[k])
                alarm[k] = limit
            beyond = values > alarm
            beyond[BELOW] = values[BELOW] < alarm[BELOW]
            bad = known & beyond
            rows = state.rows.part(which)
            if rows.count(t, bad, known):
                raised += self._due(rows, t, seen, x, values, alarm, known, bad)
            state.rows.put(which, rows)
            raised += self._all_together(t, x)
        return _one_of_each(raised) if raised else raised

    def _due(self, rows: _Rows, t: int, seen: Measured, x: Numbers, values: Array, alarm: Array, known: Array, bad: Array) -> Iterator[Raised]:
        """Alarms whose reading has come half-way back are over, and those that have lasted for long enough are raised."""
        for k in np.flatnonzero(rows.open.any(axis=1)).tolist():
            each = URGENT[k]
            calm = halfway(told(each.null, x), alarm[k], each.ratio)
            rows.open[k] &= ~(known[k] & (values[k] >= calm if each.below else values[k] <= calm))
        waiting = bad & ~rows.open
        real = x.grad_sum_squares > x.elements * (ROUNDING * self._largest) ** 2
        for k in np.flatnonzero(waiting.any(axis=1)).tolist():
            each = URGENT[k]
            due = waiting[k] & (t - rows.first[k] + 1 >= told(each.span, x)) & (real | each.rounding)
            if due.any() and (due := due & (rows.count_of[k] >= told(each.steps, x))).any():
                rows.open[k] |= due
                yield _raised(each, seen, x, due, values[k], alarm[k], rows.count_of[k])

    def _at_hand(self, seen: Measured) -> tuple[_Tensors, Any, Numbers]:
        """What is remembered of the tensors of a step, where it is, and their numbers with what only a past can tell."""
        about = seen.about
        if self._about is None or (about.key, seen.names) != self._about[0]:
            strangers = [name for name in seen.names if name not in self._columns]
            if strangers:
                self._columns |= {name: place for place, name in enumerate(strangers, len(self._columns))}
                self._tensors = self._tensors.widened(len(self._columns))
            places = [self._columns[name] for name in seen.names]
            everything = places == list(range(len(self._columns)))
            self._about = (about.key, seen.names), about.known(), slice(None) if everything else np.array(places)
        _, known, which = self._about
        state, rates = self._tensors, about.rates
        x = seen.numbers(known, lr=rates)
        state.rate[which] = np.fmax(state.rate[which], rates)
        state.least[which], state.most[which] = np.fmin(state.least[which], x.sampled), np.fmax(state.most[which], x.sampled)
        absent, zeros = state.absent[which], x.zero_grad / x.sampled
        absent = np.where(np.isnan(absent), zeros, absent + MEMORY * (zeros - absent))
        x.new = np.fmax(state.v_zero[which] - x.v_zero, 0.0)
        x.rare = (absent > 0.5) | (state.most[which] > 1.01 * state.least[which])
        x.usual_rate = ~(rates < 0.1 * state.rate[which])
        state.absent[which], state.v_zero[which] = absent, x.v_zero
        squares = x.grad_sum_squares / x.elements
        largest = float(np.fmax.reduce(squares))
        self._largest = max(self._largest, math.sqrt(largest)) if math.isfinite(largest) else self._largest
        share = np.sqrt(squares / largest)
        state.share[which] = most = np.fmax(state.share[which], share)
        x.left = share / most
        lengths = uphill(x)[1]
        x.part = lengths / np.nansum(lengths)
        return state, which, x

    def _all_together(self, t: int, x: Numbers) -> Iterator[Raised]:
        """Whether the step of all tensors goes uphill."""
        rows, beta1 = self._whole, float(x.h.beta1[0])
        descent, lengths = (float(each.sum()) for each in uphill(x))
        if not (lengths > 0 and math.isfinite(descent) and beta1 == beta1 and float(x.elements.sum()) >= ENOUGH):
            return
        null, cosine = float(x.h.noise[0]), descent / lengths
        if not rows.count(t, np.array([[cosine < 0]]), np.array([[True]])):
            return
        rows.open &= cosine < null / 2
        if cosine < 0 and not rows.open[0, 0] and rows.count_of[0, 0] >= 5 and t - rows.first[0, 0] + 1 >= momentum_span(beta1):
            rows.open[0, 0] = True
            yield Raised(_named("D14"), [(None, _evidence("D14", READINGS["descent"].words, cosine, null, 0.0, rows.count_of[0, 0]))])


class _Rows:
    """Of each reading and tensor how many observed steps in a row were bad, since which step, and whether an alarm is on."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.count_of, self.first, self.open = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
        self.busy = False  # whether anything of this is not 0

    def count(self, t: int, bad: Array, known: Array) -> bool:
        """Whether anything is bad, or an alarm on. What is neither bad nor known to be good says nothing."""
        if not (self.busy or bad.any()):
            return False
        self.count_of *= bad | ~known
        self.count_of += bad
        np.copyto(self.first, t, where=bad & (self.count_of == 1))
        self.busy = bool(self.count_of.any() or self.open.any())
        return True

    def part(self, which: Any) -> _Rows:
        """Those of some tensors: of all of them these, else copies."""
        if isinstance(which, slice):
            return self
        part = object.__new__(_Rows)
        part.busy = True
        part.count_of, part.first, part.open = (each[:, which] for each in (self.count_of, self.first, self.open))
        return part

    def put(self, which: Any, part: _Rows) -> None:
        if part is not self:
            self.busy = True
            self.count_of[:, which], self.first[:, which], self.open[:, which] = part.count_of, part.first, part.open


class _Tensors:
    """What is remembered of each tensor."""

    def __init__(self, count: int) -> None:
        self.rows = _Rows((len(URGENT), count))
        self.usual, self.smooth = (np.full((len(URGENT), count), math.nan) for _ in range(2))
        self.absent, self.v_zero, self.least, self.most = (np.full(count, each) for each in (math.nan, math.inf, math.nan, math.nan))
        self.rate, self.share = (np.full(count, math.nan) for _ in range(2))  # the largest so far

    @staticmethod
    def average(past: Array, k: int, which: Any, value: Array, weight: float, known: Array) -> Array:
        """A mean that forgets, of one reading, with its newest value; kept where that is known."""
        before = past[k, which]
        now: Array = np.where(np.isnan(before), value, before + weight * (value - before))
        past[k, which] = np.where(known, now, before)
        return now

    def widened(self, count: int) -> _Tensors:
        """The same with room for more."""
        wider, known = _Tensors(count), self.absent.size
        for mine, its in ((self.rows, wider.rows), (self, wider)):
            for name, value in vars(mine).items():
                if isinstance(value, np.ndarray):
                    getattr(its, name)[..., :known] = value
        return wider


class _Losses:
    """What is remembered of the losses.

    A loss jumps where it is above the largest of the last ones by three times their range, which noise does not reach, and takes back a quarter
    of all that was learnt, so that a bad batch of a model that knows nearly everything is none. It has risen where it stays above ten times the
    first losses, if these are of one size, which those of players against each other are not.
    """

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=LOSSES)
        self._start, self._count, self._best = 0.0, 0, math.inf
        self._first: list[float] = []  # the least and the greatest of the first few
        self._risen = False
        self._calm: float | None = None  # what a loss must come down to until another alarm can be raised

    def judge(self, loss: float) -> dict[str, Any] | None:
        """The evidence, if it is an alarm."""
        if not math.isfinite(loss):
            seen = {"rule": "D44", "reading": "loss", "value": loss, "null": self._usual(), "threshold": math.inf}
            evidence = None if self._calm is not None else seen
            self._calm = math.inf if self._calm is None else self._calm
            return evidence
        evidence = self._rise(loss)
        if self._calm is not None and loss <= self._calm:
            self._calm = None
        elif self._calm is None and self._count >= FEW and loss > (high := max(self._latest)):
            threshold = max(high + FAR * (high - min(self._latest)), self._best + BACK * (self._start / FEW - self._best))
            if loss > threshold and high > self._best:
                usual = self._usual()
                self._calm = halfway(usual, threshold, False)
                evidence = {"rule": "D45", "reading": "loss", "value": loss, "null": usual, "threshold": threshold}
        self._start += loss if self._count < FEW else 0.0
        self._count += 1
        self._best = min(self._best, loss)
        self._latest.append(loss)
        return evidence

    def _rise(self, loss: float) -> dict[str, Any] | None:
        """The evidence of losses that stay far above the first ones, once until they come down."""
        if self._count < FEW:
            self._first = [min([loss, *self._first]), max([loss, *self._first])]
            return None
        low, high = self._first
        if not low > high / RISEN > 0:  # they have no scale
            return None
        threshold = max(RISEN * high, high + FAR * (high - low))
        if not loss > threshold:
            self._risen = False
        elif not self._risen and len(self._latest) == LOSSES and (least := min(self._latest)) > threshold:
            self._risen = True
            return {"rule": "D47", "reading": "least of the last 64 losses", "value": least, "null": high, "threshold": threshold}
        return None

    def _usual(self) -> float:
        return statistics.median(self._latest) if self._latest else math.nan


def _raised(reading: Reading, seen: Measured, x: Numbers, due: Array, values: Array, alarm: Array, counts: Array) -> Raised:
    assert reading.rule is not None
    null = np.broadcast_to(told(reading.null, x), values.shape)
    far = (values - null) / np.where(alarm == null, 1.0, alarm - null)
    worst = sorted(np.flatnonzero(due).tolist(), key=lambda i: -far[i])
    return Raised(
        _named(reading.rule), [(seen.names[i], _evidence(reading.rule, reading.words, values[i], null[i], alarm[i], counts[i])) for i in worst]
    )


def _evidence(rule: str, words: str, value: float, null: float, threshold: float, observed: int) -> dict[str, Any]:
    return {"rule": rule, "reading": words, "value": float(value), "null": float(null), "threshold": float(threshold), "observed": int(observed)}


def _named(rule: str) -> str:
    return f"{rule}: {RULES[rule].title}"


def _one_of_each(raised: list[Raised]) -> list[Raised]:
    """Two readings of one disease make one alarm of a tensor."""
    found: dict[str, dict[str | None, dict[str, Any]]] = {}
    for each in raised:
        of = found.setdefault(each.what, {})
        for tensor, evidence in each.tensors:
            of.setdefault(tensor, evidence)
    return [Raised(what, list(tensors.items())) for what, tensors in found.items()]
