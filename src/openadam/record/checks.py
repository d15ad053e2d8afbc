"""What is asked of each tensor of a recorded run: readings of its whole history, each with its null value and threshold; `doctor` judges them.

Most questions are `openadam.readings` as they are. What takes more than them, such as what is usual in a run, stands here. What is read are means
over the observed steps of a bucket, or extremes where one step is enough. A check returns None where its question makes no sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..readings import EARLY, READINGS, UNUSUAL, Numbers, crossing, halfway, told, uphill
from .settings import group_of, groups_of, settings_of

__all__ = ["CHECKS", "Judgement", "Told", "View", "largest_of", "median_of"]

Array = npt.NDArray[Any]

LEARNT = 0.03  # of the largest gradients of a tensor
LARGE_EPS = 1e-6  # somebody chose it
APART = 0.05  # of the mean damping: elements are either held back altogether, or not at all


class Told(Protocol):
    """What is needed of a track: `session.TrackData`, which knows nothing of this file's questions."""

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def measures(self) -> Mapping[str, Any]: ...
    @property
    def scalars(self) -> Sequence[str]: ...
    @property
    def events(self) -> Sequence[Any]: ...
    @property
    def alarms(self) -> Sequence[Any]: ...
    @property
    def steps(self) -> int: ...
    @property
    def observed(self) -> int: ...
    def scalar(self, name: str, /) -> Array: ...
    def together(self, tensor: str, /) -> Any: ...


class View:
    """One tensor of a track: its measures in the order of the observed steps, and the settings of its group."""

    def __init__(self, track: Told, name: str) -> None:
        self.track, self.name = track, name
        about = track.tensors[name]
        together = track.together(name)
        self.first, self.last, self.observations = together.first, together.last, together.observations
        self._places = {measure: place for place, measure in enumerate(track.measures)}
        self._low, self._mean, self._high, self._nonfinite = together.minimum, together.mean, together.maximum, together.nonfinite
        place, self.group = group_of(groups_of(track.about), about)
        self.h = settings_of(track.about, self.group)
        rate = f"lr {place}" if place else "lr"
        rates = track.scalar(rate) if rate in track.scalars else None
        self.lr = np.interp(self.last, rates["last"], rates["mean"]) if rates is not None and len(rates) else np.full(len(self.last), math.nan)
        told = about.get("elements")
        known: dict[str, Any] = {
            "first": self.first, "last": self.last, "lr": self.lr, "nonfinite": self.nonfinite,
            "elements": told if isinstance(told, (int, float)) and told else math.nan,
            "is_matrix": isinstance(about.get("shape"), list) and len(about["shape"]) >= 2,
            "usual_rate": ~(self.lr < 0.1 * largest_of(self.lr)), "rare": self._rare(),
        }  # fmt: skip
        new = np.maximum(-np.diff(self.mean("v_zero"), prepend=np.inf), 0)  # these were expected nothing of
        self.means = Numbers(self.mean, self.h, new=new, **known)
        self.peaks = Numbers(self.high, self.h, over=self.means, new=new, **known)

    def mean(self, measure: str) -> Array:
        return self._of(self._mean, measure)

    def low(self, measure: str) -> Array:
        return self._of(self._low, measure)

    def high(self, measure: str) -> Array:
        return self._of(self._high, measure)

    def nonfinite(self, measure: str) -> Array:
        return self._nonfinite[:, self._places[measure]] if measure in self._places else np.zeros(len(self.last), np.int64)

    def _of(self, table: Array, measure: str) -> Array:
        return table[:, self._places[measure]] if measure in self._places else np.full(len(self.last), math.nan)

    def _rare(self) -> bool:
        """Whether this is about rows most of which are absent, or others in each step."""
        sampled = self.mean("sampled")
        with np.errstate(all="ignore"):
            absent = median_of(self.mean("zero_grad") / sampled) > 0.5
        return absent or largest_of(sampled) > 1.01 * -largest_of(-sampled, -np.inf)

    @property
    def grad_rms(self) -> Array:
        return READINGS["grad_rms"].of(self.means)  # type: ignore[no-any-return]

    @property
    def update_to_weight(self) -> Array:
        """NaN where it says nothing."""
        return np.where(self.means.has_weight, READINGS["update_weight"].of(self.means), np.nan)

    @property
    def is_learning(self) -> Array:
        """Where gradients are not far below what they were: else all is learnt, and steps may well be small."""
        return self.grad_rms > LEARNT * largest_of(self.grad_rms)

    def beside(self, steps: Array, largest: Array, lengths: Array) -> None:
        """Take note of the root mean square that the largest gradient had at each step, and of the lengths of all tensors."""
        at = np.searchsorted(steps, self.last)
        share = self.grad_rms / largest[at]
        self.means.left = share / np.fmax.accumulate(share)
        self.means.part = self.peaks.part = uphill(self.means)[1] / lengths[at]


class Judgement(NamedTuple):
    """What a check reads: a value for each observed step, and when it is too much."""

    values: Array
    null: float
    threshold: float | Array
    needed: int = 5  # observed steps
    below: bool = False  # it is too little that is bad
    ratio: bool = False
    worst: bool = False  # what is told is the worst value, not the median of the bad ones
    span: int = 0  # steps from the first to the last of these
    severity: str | None = None
    also: dict[str, Any] | None = None
    rounding: bool = False  # whether a gradient that is but rounding is a reason to alarm
    remedy: str | None = None  # of those that the disease has, where it is not the usual one

    @property
    def calm(self) -> Array:
        """Where it is over: half-way back to the null value."""
        sign = -1.0 if self.below else 1.0
        threshold = np.broadcast_to(self.threshold, self.values.shape)
        return sign * np.minimum(sign * threshold, sign * halfway(self.null, threshold, self.ratio))  # type: ignore[no-any-return]


def read(name: str, x: View) -> Judgement:
    """A reading as it is."""
    reading = READINGS[name]
    numbers = x.peaks if reading.peak else x.means
    null, _, alarm = reading.limits(numbers)
    values = np.where(np.isnan(alarm), np.nan, reading.of(numbers))
    needed, span = int(np.median(told(reading.steps, numbers))), int(np.max(told(reading.span, numbers)))
    worst = reading.peak and not reading.below
    return Judgement(values, float(null), alarm, needed, reading.below, reading.ratio, worst, span, rounding=reading.rounding)


# --- the checks that take more ---------------------------------------------------------------------------------------------


def _lost_count(x: View) -> Judgement | None:
    before = np.where(x.first == 1, x.low("v_before_sum"), 0.0)
    if (before > 0).any():
        return Judgement(before, 0.0, 0.0, 1, rounding=True, also={"step count": "begins at 1 over old moments"})
    # Moments that are lost make steps as without bias correction; those of a parameter that is new count their steps themselves.
    rms = READINGS["direction"].of(x.peaks)
    fresh = (x.low("v_before_sum") == 0) & (x.low("m_before_sum_squares") == 0) & (x.first > 1) & (np.arange(len(x.first)) == 0)
    return Judgement(np.where(fresh, rms, 0.0), 1.0, 1.3, 1, rounding=True, also={"step count": "goes on over moments that begin anew"})


def _eps(x: View) -> Judgement:
    damping = x.mean("damping_sum") / (x.means.sampled - x.means.v_zero)
    reading = read("eps_share", x)._replace(remedy=_of_eps(x))
    most = int(x.observations[reading.values > reading.threshold].sum()) >= 5
    also = {"damping": -largest_of(-damping, -1.0), "eps": x.h.eps}
    if most:
        return reading._replace(also=also)
    # A part may be a bias whose gradient is 0 but for rounding, as that of attention's keys, beside others in one tensor: eps holds that back
    # altogether and the rest not at all, so that the damping is what the share says.
    apart = abs(damping - (1 - reading.values)) < APART
    return reading._replace(values=np.where(apart, np.nan, reading.values), threshold=0.1, severity="hint", also=also)


def _of_eps(x: View) -> str | None:
    return "large eps" if x.h.eps >= LARGE_EPS else None


def _swallowed(x: View) -> Judgement:
    dtype = str(x.track.tensors[x.name].get("dtype", ""))
    return read("swallowed", x)._replace(remedy="full precision" if dtype.endswith(("float32", "float64")) else None)


def _rms_spike(x: View) -> Judgement:
    return read("surprise", x)._replace(also={"cap": float(x.h.cap_by(x.last[-1]))})


def _coordinate_spikes(x: View) -> Judgement:
    for name in ("huge_spikes", "spikes"):
        reading = read(name, x)
        usual = float(np.nan_to_num(median_of(reading.values)))  # of what is rare it is much
        reading = reading._replace(threshold=np.maximum(reading.threshold, UNUSUAL * usual), also={"reading": READINGS[name].words, "usual": usual})
        if (reading.values > reading.threshold).any():
            break
    return reading


def _disagreement(x: View) -> Judgement:
    reading = read("disagreement", x)
    width = max(1, round(READINGS["disagreement"].smooth / max(1.0, median_of(x.observations))))
    return reading._replace(values=_smooth(reading.values, width), threshold=median_of(np.asarray(reading.threshold)))


def _one_large_step(x: View) -> Judgement:
    return read("direction_largest", x)._replace(also={"bound": float(x.h.bound_by(x.last[-1]))})


def _rate(x: View) -> Judgement:
    reading = read("update_weight", x)
    if not median_of(reading.values) < 1e-4:
        return reading
    return reading._replace(values=np.where(x.is_learning, reading.values, np.nan), threshold=1e-5, below=True, remedy="small")


def _decay(x: View) -> Judgement:
    reading = read("decay_direction", x)
    return reading._replace(values=np.where(x.is_learning, reading.values, np.nan))


def _never_updated(x: View) -> Judgement:
    if largest_of(x.high("grad_max_abs")) > 0 or x.nonfinite("grad_max_abs").any():
        return Judgement(np.full(len(x.last), np.nan), 1.0, 0.0)
    return Judgement(np.where(np.isfinite(x.high("grad_max_abs")), 0.0, np.nan), 1.0, 1e-9, EARLY, below=True, rounding=True)


def _near_eps(x: View) -> Judgement:
    reading = read("v_over_eps", x)
    ahead = crossing(x.last, reading.values)
    also = {"eps": x.h.eps} | ({"at this pace it is 1 at step": ahead.crossing} if ahead is not None else {})
    return reading._replace(also=also, remedy=_of_eps(x))


def _changed(x: View) -> Judgement:
    surprise = read("surprise", x).values
    after = np.zeros(len(x.last), bool)
    marks = [event for event in x.track.events if event.kind == "event"]
    for event in marks:
        after |= (x.last > event.step) & (x.first <= event.step + EARLY)
    marked = np.where(after, surprise, np.nan)
    if largest_of(marked) > 3:
        shown = next(event.text for event in reversed(marks) if event.step < x.last[int(np.nanargmax(marked))])
        return Judgement(marked, 1.0, 3.0, 1, worst=True, also={"after": shown})
    agreeing = read("disagreement", x).values < x.h.agreement / 3
    return Judgement(np.where(agreeing, surprise, np.nan), 1.0, 3.0, 2, worst=True)


CHECKS: dict[str, Callable[[View], Judgement | None]] = {
    each.rule: partial(read, each.name) for each in READINGS.values() if each.rule is not None
} | {
    "D35": _lost_count, "D07": _swallowed, "D20": _eps, "D16": _rms_spike, "D17": _coordinate_spikes, "D24": _disagreement, "D10": _one_large_step,
    "D11": _rate, "D32": _decay, "D23": _never_updated, "D21": _near_eps, "D39": _changed,
}  # fmt: skip


def largest_of(values: Array, least: float = 0.0) -> float:
    """Of what is finite."""
    return float(np.max(values[np.isfinite(values)], initial=least))


def _smooth(values: Array, width: int) -> Array:
    """The mean over a window that ends at each value; NaN where there are not as many."""
    result = np.full(len(values), np.nan)
    if len(values) >= width:
        result[width - 1 :] = np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1)
    return result


def median_of(values: Array) -> float:
    """Of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan
