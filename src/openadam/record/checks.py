"""What is asked of each tensor of a recorded run: checks that read its measures, each with its null value and threshold; `doctor` judges them.

A check returns a `Reading`, or None where its question makes no sense. What it reads are means over the observed steps of a bucket, or extremes
where one step is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .readings import agreement_alone, largest_ratio, largest_step, noise_rms
from .settings import betas_of, group_of, groups_of, number

__all__ = [
    "CHECKS", "EARLY", "ENOUGH", "Reading", "Told", "View", "is_corrected", "largest_of", "median_of", "momentum_span",
]  # fmt: skip

Array = npt.NDArray[Any]

ENOUGH = 32  # elements: of fewer, shares are chance
EARLY = 20  # steps in which all is still in motion
YOUNG = 100  # steps of which v knows too little to be surprised


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
        (self.beta1, self.beta2), self.eps = betas_of(self.group), number(self.group.get("eps"))
        self.elements = number(about.get("elements")) or math.nan
        self.is_matrix = isinstance(about.get("shape"), list) and len(about["shape"]) >= 2
        rate = f"lr {place}" if place else "lr"
        rates = track.scalar(rate) if rate in track.scalars else None
        self.lr = np.interp(self.last, rates["last"], rates["mean"]) if rates is not None and len(rates) else np.full(len(self.last), math.nan)
        self.sampled = self.mean("sampled")

    def mean(self, measure: str) -> Array:
        return self._mean[:, self._places[measure]] if measure in self._places else np.full(len(self.last), math.nan)

    def low(self, measure: str) -> Array:
        return self._low[:, self._places[measure]] if measure in self._places else np.full(len(self.last), math.nan)

    def high(self, measure: str) -> Array:
        return self._high[:, self._places[measure]] if measure in self._places else np.full(len(self.last), math.nan)

    def nonfinite(self, measure: str) -> Array:
        return self._nonfinite[:, self._places[measure]] if measure in self._places else np.zeros(len(self.last), np.int64)

    @property
    def with_gradient(self) -> Array:
        """How many of the sampled elements have a gradient that is not 0; NaN where these are too few."""
        n = self.sampled - self.mean("zero_grad")
        return np.where(n >= ENOUGH, n, np.nan)

    def share(self, measure: str) -> Array:
        """Of those with a gradient; at least. What has none is taken to be counted, so that rows at rest blame nobody."""
        return (self.mean(measure) - self.mean("zero_grad")) / self.with_gradient

    @property
    def grad_rms(self) -> Array:
        rms: Array = np.sqrt(self.mean("grad_sum_squares") / self.elements)
        return rms

    @property
    def update_to_weight(self) -> Array:
        """NaN where the weights are next to nothing, and of what is no matrix: they may well change by more than they are."""
        weights = np.sqrt(self.mean("param_sum_squares"))
        counts = self.is_matrix & (weights > 1e-3 * math.sqrt(self.elements))
        return np.where(counts, np.sqrt(self.mean("update_sum_squares")) / weights, np.nan)

    @property
    def lengths(self) -> Array:
        """The product of the lengths of direction and gradient, of the sample."""
        product: Array = np.sqrt(self.mean("direction_sum_squares") * self.mean("seen_grad_sum_squares"))
        return product

    @property
    def usual_rate(self) -> Array:
        """Where the learning rate is not on its way to or from 0."""
        usual: Array = ~(self.lr < 0.1 * largest_of(self.lr))
        return usual

    @property
    def settled(self) -> Array:
        settled: Array = self.usual_rate & (self.last > YOUNG)
        return settled

    @property
    def surprised(self) -> Array:
        """Where a surprise would tell something: not at the beginning, and not of rows that are rare, which always come as one."""
        rare = median_of(self.mean("zero_grad") / self.sampled) > 0.5 or largest_of(self.sampled) > 1.01 * -largest_of(-self.sampled, -np.inf)
        surprised: Array = (self.first > YOUNG) & (self.with_gradient >= ENOUGH) & (not rare)
        return surprised


class Reading(NamedTuple):
    """What a check reads: a value for each observed step, and when it is too much."""

    values: Array
    null: float
    threshold: float | Array
    needed: int = 5  # observed steps
    below: bool = False  # it is too little that is bad
    worst: bool = False  # what is told is the worst value, not the median of the bad ones
    span: int = 0  # steps from the first to the last of these
    severity: str | None = None
    also: dict[str, Any] | None = None
    noise: bool = True  # whether a gradient that is but rounding is no reason to alarm


# --- the checks of a tensor ----------------------------------------------------------------------------------------------


def _nonfinite(x: View) -> Reading:
    return Reading(x.high("grad_nonfinite"), 0.0, 0.0, 1, worst=True, noise=False)


def _poisoned(x: View) -> Reading:
    bad = (x.nonfinite("update_sum_squares") + x.nonfinite("v_sum")) * (x.high("grad_nonfinite") == 0)
    return Reading(bad.astype(float), 0.0, 0.0, 1, worst=True, noise=False)


def _lost_count(x: View) -> Reading | None:
    before = np.where(x.first == 1, x.low("v_before_sum"), 0.0)
    if (before > 0).any():
        return Reading(before, 0.0, 0.0, 1, noise=False, also={"step count": "begins at 1 over old moments"})
    # Moments that are lost make steps as without bias correction; those of a parameter that is new count their steps themselves.
    rms = np.sqrt(x.high("direction_sum_squares") / x.sampled)
    fresh = (x.low("v_before_sum") == 0) & (x.low("m_before_sum_squares") == 0) & (x.first > 1) & (np.arange(len(x.first)) == 0)
    return Reading(np.where(fresh, rms, 0.0), 1.0, 1.3, 1, noise=False, also={"step count": "goes on over moments that begin anew"})


def _underflow(x: View) -> Reading:
    return Reading(x.mean("v_underflow") / x.with_gradient, 0.0, 0.1, 3, noise=False)


def _eps(x: View) -> Reading:
    damping = x.mean("damping_sum") / (x.sampled - x.mean("v_zero"))
    share = x.share("eps_dominated")
    # A part may be a bias whose gradient is 0 but for rounding, as that of attention's keys, beside others in one tensor.
    most = int(x.observations[share > 0.5].sum()) >= 5
    also = {"damping": -largest_of(-damping, -1.0), "eps": x.eps}
    return Reading(share, 0.0, 0.5 if most else 0.1, severity=None if most else "hint", also=also)


def _rms_spike(x: View) -> Reading:
    cap = largest_ratio(x.beta2) * np.sqrt(1 - x.beta2**x.last)  # of the steps taken so far
    values = np.where(x.surprised, np.sqrt(x.high("surprise_sum") / x.sampled), np.nan)
    return Reading(values, 1.0, np.maximum(3.0, cap / 3), 1, worst=True, also={"cap": float(cap[-1])})


def _coordinate_spikes(x: View) -> Reading:
    new = np.maximum(-np.diff(x.mean("v_zero"), prepend=np.inf), 0)  # elements whose first gradient this is were expected nothing of
    for measure, times, null, threshold in (("huge_spikes", 5000, 0.0, 0.1), ("spikes", 25, 6e-7, 0.5)):
        values = np.where(x.surprised, np.maximum(x.high(measure) - new, 0) / x.with_gradient, np.nan)
        usual = float(np.nan_to_num(median_of(values)))  # of what is rare it is much
        reading = Reading(values, null, max(threshold, 5 * usual), 1, worst=True, also={"times v": times, "usual": usual})
        if largest_of(values) > max(threshold, 5 * usual):
            break
    return reading


def _uphill(x: View) -> Reading:
    # By chance a step of n elements of noise goes uphill so often, and a row of such steps should not be chance. The elements of a tensor are
    # not independent: they count as their root.
    n = math.sqrt(max(1.0, np.nan_to_num(median_of(x.sampled - x.mean("zero_grad")))))
    chance = min(0.5, 0.75 * math.erfc(math.sqrt(n * (1 - x.beta1**2) / 2)))
    needed = math.ceil(-6 * math.log(10) / math.log(chance)) if chance > 0 else 3
    return Reading(x.high("descent") / x.lengths, noise_rms(x.beta1), 0.0, max(3, needed), below=True, span=momentum_span(x.beta1))


def momentum_span(beta1: float) -> int:
    """How many steps uphill in a row are no mere overshoot, which takes as long as the first moment remembers."""
    return max(8, math.ceil(2 / (1 - beta1) - 1e-6)) if 0 <= beta1 < 1 else 8


def _disagreement(x: View) -> Reading:
    n, null = median_of(x.with_gradient), agreement_alone(x.beta1)
    width = max(1, round(10 / max(1.0, median_of(x.observations))))  # a step that agrees between many that do not changes little
    share = x.mean("disagree") / x.with_gradient
    return Reading(_smooth(share, width), null, null + 0.1 + 2 * math.sqrt(null * (1 - null) / n), momentum_span(x.beta1))


def _large_steps(x: View) -> Reading | None:
    if not is_corrected(x.track):
        return None
    values = np.where((x.sampled >= ENOUGH) & (x.last > 2), np.sqrt(x.mean("direction_sum_squares") / x.sampled), np.nan)
    return Reading(values, noise_rms(x.beta1), max(2.0, largest_step(x.beta1, x.beta2) / 4))


def _one_large_step(x: View) -> Reading | None:
    bound = largest_step(x.beta1, x.beta2) * np.sqrt(1 - x.beta2**x.last)
    if str(x.track.about.get("rule", "")).split("_")[0] not in ("adam", "amsgrad") or not is_corrected(x.track) or not np.max(bound) > 2:
        return None
    values = np.where(x.last > EARLY, x.high("direction_max_abs"), np.nan)
    return Reading(values, 5 * noise_rms(x.beta1), np.maximum(2.0, bound / 2), 1, worst=True, also={"bound": float(bound[-1])})


def _rate(x: View) -> Reading:
    ratio = np.where(x.settled & (x.mean("zero_grad") < x.sampled), x.update_to_weight, np.nan)
    if median_of(ratio) < 1e-4:
        return Reading(ratio, 1e-3, 1e-5, 10, below=True)
    return Reading(ratio, 1e-3, 0.1, 10)


def _swallowed(x: View) -> Reading:
    return Reading(np.where(x.usual_rate & ~(x.lr <= 0), x.share("swallowed"), np.nan), 0.0, 0.1)


def _frozen(x: View) -> Reading:
    return Reading((x.mean("v_frozen") - x.mean("v_underflow") - x.mean("zero_grad")) / x.with_gradient, 0.0, 0.2)


def _never_updated(x: View) -> Reading:
    if largest_of(x.high("grad_max_abs")) > 0 or x.nonfinite("grad_max_abs").any():
        return Reading(np.full(len(x.last), np.nan), 1.0, 0.0)
    return Reading(np.where(np.isfinite(x.high("grad_max_abs")), 0.0, np.nan), 1.0, 1e-9, EARLY, below=True, noise=False)


def _decay_outweighs(x: View) -> Reading | None:
    decay = number(x.group.get("weight_decay"))
    if not is_decoupled(x.track) or not decay > 0:
        return None
    weights, learnt = np.sqrt(x.mean("param_sum_squares") / x.elements), np.sqrt(x.mean("direction_sum_squares") / x.sampled)
    return Reading(np.where(x.settled & x.is_matrix, decay * weights / learnt, np.nan), 0.1, 1.0, 10)


def _stale_v(x: View) -> Reading:
    return Reading(np.where(x.last > EARLY, x.share("stale_v"), np.nan), 0.08, 0.5, 50)


def _drift(x: View) -> Reading:
    values = np.where((x.sampled >= ENOUGH) & (x.last > EARLY) & (x.mean("zero_grad") < x.sampled), x.mean("v_sum") / x.mean("v_before_sum"), np.nan)
    return Reading(values, 1.0, (1 + x.beta2) / 2, 50, below=True)


def _near_eps(x: View) -> Reading | None:
    alive = x.sampled - x.mean("v_zero")
    ratio = np.where(alive >= ENOUGH, np.sqrt(x.mean("v_hat_sum") / alive) / x.eps, np.nan)
    also: dict[str, Any] = {"eps": x.eps}
    good = np.isfinite(ratio) & (ratio > 0)
    if good.sum() >= 10:
        half = np.flatnonzero(good)[good.sum() // 2 :]
        slope = np.polyfit(x.last[half], np.log(ratio[half]), 1)[0]
        if slope < 0 and ratio[half[-1]] > 1:
            also["steps until it is 1, at this pace"] = math.ceil(math.log(ratio[half[-1]]) / -slope)
    return Reading(ratio, 1000.0, 100.0, below=True, also=also)


def _overshoot(x: View) -> Reading:
    cosine = x.mean("m_before_dot_grad") / np.sqrt(x.mean("m_before_sum_squares") * x.mean("seen_grad_sum_squares"))
    return Reading(np.where(x.with_gradient > 0, cosine, np.nan), 0.0, -0.3, 20, below=True)


def _absent_rows(x: View) -> Reading:
    sparse = x.is_matrix & (x.mean("zero_grad") > 0.5 * x.sampled) & (x.mean("zero_grad") < x.sampled)
    return Reading(np.where(sparse, x.mean("direction_sum_abs_without_grad") / x.mean("direction_sum_abs"), np.nan), 0.0, 0.5)


def _changed(x: View) -> Reading | None:
    null = agreement_alone(x.beta1)
    surprise = np.where(x.surprised, np.sqrt(x.high("surprise_sum") / x.sampled), np.nan)
    after = np.zeros(len(x.last), bool)
    marks = [event for event in x.track.events if event.kind == "event"]
    for event in marks:
        after |= (x.last > event.step) & (x.first <= event.step + EARLY)
    marked = np.where(after, surprise, np.nan)
    if largest_of(marked) > 3:
        shown = next(event.text for event in reversed(marks) if event.step < x.last[int(np.nanargmax(marked))])
        return Reading(marked, 1.0, 3.0, 1, worst=True, also={"after": shown})
    agreeing = x.mean("disagree") / x.with_gradient < null / 3
    return Reading(np.where(agreeing, surprise, np.nan), 1.0, 3.0, 2, worst=True)


CHECKS: dict[str, Callable[[View], Reading | None]] = {
    "D01": _nonfinite, "D02": _poisoned, "D35": _lost_count, "D04": _underflow, "D20": _eps, "D16": _rms_spike, "D17": _coordinate_spikes,
    "D26": _uphill, "D24": _disagreement, "D09": _large_steps, "D11": _rate, "D07": _swallowed, "D08": _frozen, "D23": _never_updated,
    "D32": _decay_outweighs, "D10": _one_large_step, "D18": _stale_v, "D19": _drift, "D21": _near_eps, "D25": _overshoot, "D27": _absent_rows,
    "D39": _changed,
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


# --- settings ------------------------------------------------------------------------------------------------------------


def is_corrected(track: Told) -> bool:
    """Whether moments are corrected: a rule's name tells its options."""
    return "off" not in str(track.about.get("rule", "")).split("_")


def is_decoupled(track: Told) -> bool:
    return track.about.get("coupling") == "decoupled"
