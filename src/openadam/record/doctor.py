"""Judges recordings: turns what was measured into findings, each with its evidence, the tensor, the steps, what it means and what helps.

A finding needs a reading that stays beyond its threshold for some observed steps; it is over when the reading has come half-way back to its
null value, and each tensor and rule makes one at most. Thresholds follow from beta1, beta2 and eps; what a rule lacks is not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import RecordError
from .readings import RULES, SEVERITIES, agreement_alone, largest_ratio, largest_step, noise_rms, uncorrected_peak

if TYPE_CHECKING:
    from .session import Session, TrackData

__all__ = ["Finding", "diagnose"]

Array = npt.NDArray[Any]

ENOUGH = 32  # elements: of fewer, shares are chance
EARLY = 20  # steps in which all is still in motion
ROUNDING = 1e-5  # of the largest gradients: what is below is what rounding leaves of a gradient that is 0


@dataclass(frozen=True)
class Finding:
    """One disease of one tensor, or of the whole optimizer where ``tensor`` is None.

    ``evidence`` holds ``reading`` (its name), ``value``, ``null`` (what it would be without the disease) and ``threshold``, and what else is telling.
    """

    id: str
    severity: str
    track: str
    tensor: str | None
    first_step: int | None
    last_step: int | None
    evidence: dict[str, Any]
    meaning: str
    remedy: str
    source: str

    @property
    def title(self) -> str:
        """The disease in a few words."""
        return RULES[self.id].title


def diagnose(session: Session, track: str | None = None) -> list[Finding]:
    """What is wrong with a recorded run, the most urgent first.

    Args:
        session: What `load` returned.
        track: Only this optimizer.

    Raises:
        RecordError: There is no such track.

    >>> import os, tempfile
    >>> import numpy as np, openadam
    >>> from openadam import record
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with record.Recorder(os.path.join(folder, "run.oadam"), every=1) as recorder:
    ...         opt = openadam.Adam({"w": np.ones((8, 8))}, record=recorder)
    ...         for t in range(30):
    ...             _ = opt.step({"w": np.random.default_rng(t).normal(0, 1e-10, (8, 8))})
    ...     finding = record.load(recorder.path).diagnose()[0]
    >>> finding.id, finding.severity, finding.tensor, finding.evidence["value"], finding.evidence["threshold"]
    ('D20', 'warning', 'w', 1.0, 0.1)
    """
    if track is not None and track not in session.tracks:
        raise RecordError(f"there is no track {track!r}; there are {', '.join(map(repr, session.tracks)) or 'none'}")
    found = [finding for name, each in session.tracks.items() if track in (None, name) for finding in _track(each)]
    order = list(RULES)
    return sorted(found, key=lambda each: (SEVERITIES.index(each.severity), order.index(each.id)))


def _track(track: TrackData) -> Iterator[Finding]:
    views = [View(track, name) for name in track.tensors]
    seen = [view for view in views if len(view.last)]
    with np.errstate(all="ignore"):
        largest = max((_largest(view.grad_rms) for view in seen), default=0.0)
    yield from _events(track)
    for view in views:
        if len(view.last):
            ids = set()
            for id, check in CHECKS.items():
                if (id == "D21" and "D20" in ids) or (id == "D19" and "D18" in ids):  # it foretells the other, or is the same
                    continue
                with np.errstate(all="ignore"):
                    finding = _judge(id, view, check(view), largest)
                if finding is not None:
                    ids.add(id)
                    yield finding
        elif track.observed >= EARLY:
            yield _finding("D23", view, "hint", None, None, {"value": 0.0, "null": 1.0, "threshold": 0.0, "gradient": "none was given"})
    with np.errstate(all="ignore"):
        yield from _settings(track, seen)
        yield from _whole(track, seen)


# --- one tensor ----------------------------------------------------------------------------------------------------------


class View:
    """One tensor of a track: its measures in the order of the observed steps, and the settings of its group."""

    def __init__(self, track: TrackData, name: str) -> None:
        self.track, self.name = track, name
        about = track.tensors[name]
        together = track.together(name)
        self.first, self.last, self.observations = together.first, together.last, together.observations
        self._places = {measure: place for place, measure in enumerate(track.measures)}
        self._low, self._mean, self._high, self._nonfinite = together.minimum, together.mean, together.maximum, together.nonfinite
        group = int(about.get("group") or 0)
        groups = track.about.get("groups") or [{}]
        self.group: Mapping[str, Any] = groups[group] if group < len(groups) else {}
        self.beta1, self.beta2, self.eps = _betas(self.group)[0], _betas(self.group)[1], _number(self.group.get("eps"))
        self.elements = float(about.get("elements") or math.nan)
        self.is_matrix = len(about.get("shape") or ()) >= 2
        rates = track.scalar(f"lr {group}" if group else "lr") if (f"lr {group}" if group else "lr") in track.scalars else None
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
    def settled(self) -> Array:
        """Where the beginning is over, and the learning rate is not on its way to or from 0."""
        usual = ~(self.lr < 0.1 * _largest(self.lr))
        settled: Array = usual & (self.last > EARLY)
        return settled


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


def _judge(id: str, view: View, reading: Reading | None, largest: float) -> Finding | None:
    if reading is None or not (math.isfinite(reading.null) and np.isfinite(reading.threshold).all()):
        return None
    found = _episodes(view, reading)
    if found is None:
        return None
    values = reading.values[found]
    thresholds = np.broadcast_to(reading.threshold, reading.values.shape)[found]
    at = int((np.argmin if reading.below else np.argmax)(values))
    value, threshold = float(values[at] if reading.worst else np.median(values)), float(thresholds[at])
    severity = reading.severity or RULES[id].severity
    if reading.noise and severity == "warning" and not np.max(view.grad_rms[found]) > ROUNDING * largest:
        severity = "hint"
    evidence = {"value": value, "null": reading.null, "threshold": threshold, "observed": int(view.observations[found].sum())}
    return _finding(id, view, severity, int(view.first[found][0]), int(view.last[found][-1]), evidence | (reading.also or {}))


def _episodes(view: View, reading: Reading) -> Array | None:
    """Where a reading is bad in a row for long enough, or goes on to be; None if it never is."""
    sign = -1.0 if reading.below else 1.0
    values, threshold = sign * reading.values, sign * np.broadcast_to(reading.threshold, reading.values.shape)
    calm = np.minimum(threshold, (sign * reading.null + threshold) / 2)
    found: list[int] = []
    row: list[int] = []
    is_open = False
    for at in np.flatnonzero(np.isfinite(values)).tolist():
        if values[at] > threshold[at]:
            row.append(at)
            long_enough = view.observations[row].sum() >= reading.needed and view.last[at] - view.first[row[0]] + 1 >= reading.span
            if is_open or long_enough:
                found += row
                row, is_open = [], True
        elif not is_open or values[at] <= calm[at]:
            row, is_open = [], False
    return np.array(found) if found else None


def _finding(id: str, view: View | TrackData, severity: str | None, first: int | None, last: int | None, evidence: dict[str, Any]) -> Finding:
    rule = RULES[id]
    tensor, track = (view.name, view.track.name) if isinstance(view, View) else (None, view.name)
    evidence = {"reading": rule.reading, **evidence}
    return Finding(id, severity or rule.severity, track, tensor, first, last, evidence, rule.meaning, rule.remedy, rule.source)


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
    return Reading(x.share("eps_dominated"), 0.0, 0.1, also={"damping": -_largest(-damping, -1.0), "eps": x.eps})


def _rms_spike(x: View) -> Reading:
    cap = largest_ratio(x.beta2) * np.sqrt(1 - x.beta2**x.last)  # of the steps taken so far
    values = np.where((x.sampled >= ENOUGH) & (x.last > EARLY), np.sqrt(x.high("surprise_sum") / x.sampled), np.nan)
    return Reading(values, 1.0, np.maximum(2.3, cap / 4), 1, worst=True, also={"cap": float(cap[-1])})


def _coordinate_spikes(x: View) -> Reading:
    late = x.first > EARLY
    new = np.maximum(-np.diff(x.mean("v_zero"), prepend=np.inf), 0)  # elements whose first gradient this is were expected nothing of
    for measure, times, null, threshold in (("huge_spikes", 5000, 0.0, 0.05), ("spikes", 25, 6e-7, 0.2)):
        values = np.where(late, np.maximum(x.high(measure) - new, 0) / x.with_gradient, np.nan)
        usual = float(np.nan_to_num(_median(values)))  # of what is rare it is much
        reading = Reading(values, null, max(threshold, 5 * usual), 1, worst=True, also={"times v": times, "usual": usual})
        if _largest(values) > max(threshold, 5 * usual):
            break
    return reading


def _uphill(x: View) -> Reading:
    # By chance a step of n elements of noise goes uphill so often, and a row of such steps should not be chance. The elements of a tensor are
    # not independent: they count as their root.
    n = math.sqrt(max(1.0, np.nan_to_num(_median(x.sampled - x.mean("zero_grad")))))
    chance = min(0.5, 0.75 * math.erfc(math.sqrt(n * (1 - x.beta1**2) / 2)))
    needed = math.ceil(-6 * math.log(10) / math.log(chance)) if chance > 0 else 3
    return Reading(x.high("descent") / x.lengths, noise_rms(x.beta1), 0.0, max(3, needed), below=True, span=_momentum_span(x.beta1))


def _momentum_span(beta1: float) -> int:
    """How many steps uphill in a row are no mere overshoot, which takes as long as the first moment remembers."""
    return max(8, math.ceil(2 / (1 - beta1) - 1e-6)) if beta1 < 1 else 8


def _disagreement(x: View) -> Reading:
    n, null = _median(x.with_gradient), agreement_alone(x.beta1)
    return Reading(x.mean("disagree") / x.with_gradient, null, null + 0.1 + 3 * math.sqrt(null * (1 - null) / n), 10)


def _large_steps(x: View) -> Reading | None:
    if not _corrected(x.track):
        return None
    values = np.where((x.sampled >= ENOUGH) & (x.last > 2), np.sqrt(x.mean("direction_sum_squares") / x.sampled), np.nan)
    return Reading(values, noise_rms(x.beta1), 1.2)


def _one_large_step(x: View) -> Reading | None:
    bound = largest_step(x.beta1, x.beta2) * np.sqrt(1 - x.beta2**x.last)
    if str(x.track.about.get("rule", "")).split("_")[0] not in ("adam", "amsgrad") or not _corrected(x.track) or not np.max(bound) > 2:
        return None
    values = np.where(x.last > EARLY, x.high("direction_max_abs"), np.nan)
    return Reading(values, 5 * noise_rms(x.beta1), np.maximum(2.0, bound / 2), 1, worst=True, also={"bound": float(bound[-1])})


def _rate(x: View) -> Reading:
    ratio = np.where(x.settled & (x.mean("zero_grad") < x.sampled), x.update_to_weight, np.nan)
    if _median(ratio) < 1e-4:
        return Reading(ratio, 1e-3, 1e-5, 10, below=True)
    return Reading(ratio, 1e-3, 0.1, 10)


def _swallowed(x: View) -> Reading:
    return Reading(np.where(x.settled | (x.last <= EARLY) & (x.lr > 0), x.share("swallowed"), np.nan), 0.0, 0.1)


def _frozen(x: View) -> Reading:
    return Reading((x.mean("v_frozen") - x.mean("v_underflow") - x.mean("zero_grad")) / x.with_gradient, 0.0, 0.2)


def _never_updated(x: View) -> Reading:
    if _largest(x.high("grad_max_abs")) > 0 or x.nonfinite("grad_max_abs").any():
        return Reading(np.full(len(x.last), np.nan), 1.0, 0.0)
    return Reading(np.full(len(x.last), 0.0), 1.0, 1e-9, EARLY, below=True, noise=False)


def _decay_outweighs(x: View) -> Reading | None:
    decay = _number(x.group.get("weight_decay"))
    if not _is_decoupled(x.track) or not decay > 0:
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
    surprise = np.where((x.with_gradient > 0) & (x.last > EARLY), np.sqrt(x.high("surprise_sum") / x.sampled), np.nan)
    after = np.zeros(len(x.last), bool)
    marks = [event for event in x.track.events if event.kind == "event"]
    for event in marks:
        after |= (x.last > event.step) & (x.first <= event.step + EARLY)
    marked = np.where(after, surprise, np.nan)
    if _largest(marked) > 3:
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


# --- the optimizer as a whole --------------------------------------------------------------------------------------------


def _events(track: TrackData) -> Iterator[Finding]:
    """Steps that were refused or skipped, by what they say."""
    bad: dict[tuple[str, str, str | None], list[int]] = {}
    for event in (each for each in track.events if each.kind != "event"):
        named = re.search(r"parameter '([^']*)'", event.text)
        tensor = event.tensor or (named.group(1) if named else None)
        if event.text.startswith("NonFiniteStateError") or (event.kind == "skipped" and "would not be finite" in event.text):
            bad.setdefault(("D02", event.kind, tensor), []).append(event.step)
        elif event.kind == "skipped" or event.text.startswith(("NonFiniteGradientError", "TooManySkipsError")):
            who = "scaler" if event.kind == "skipped" and "scaler" in event.text else event.kind
            bad.setdefault(("D01", who, tensor), []).append(event.step)
    for (id, kind, tensor), steps in bad.items():
        # A loss scale is found by trying: a scaler that skips now and then does its work.
        severity = "error" if kind == "failed" else "warning" if kind == "skipped" or len(steps) > 0.05 * max(track.steps, 100) else "hint"
        rule = RULES[id]
        evidence = {"reading": "steps refused" if kind == "failed" else "steps skipped", "value": float(len(steps)), "null": 0.0, "threshold": 0.0,
                    "by": kind}  # fmt: skip
        yield Finding(id, severity, track.name, tensor, min(steps), max(steps), evidence, rule.meaning, rule.remedy, rule.source)


def _settings(track: TrackData, seen: list[View]) -> Iterator[Finding]:
    """What the hyperparameters alone tell."""
    has_v = any(np.isfinite(view.mean("v_sum")).any() for view in seen)
    for number, group in enumerate(track.about.get("groups") or []):
        own = [view for view in seen if view.group is group]
        beta1, beta2 = _betas(group)
        where = {"group": number}
        first, last = min((int(v.first[0]) for v in own), default=None), max((int(v.last[-1]) for v in own), default=None)
        if beta2 > 0 and beta1 >= math.sqrt(beta2):
            bound = math.sqrt(beta2)
            yield _finding("D36", track, None, first, last, {"value": beta1, "null": 0.9, "threshold": bound, "beta2": beta2, **where})
        if not _corrected(track) and (peak := uncorrected_peak(beta1, beta2)) > 1.5:
            yield _finding("D13", track, None, first, last, {"value": peak, "null": 1.0, "threshold": 1.5, **where})
        decay = _number(group.get("weight_decay"))
        if has_v and track.about.get("coupling") == "coupled" and decay > 0 and own:
            value = max(_median(v.mean("decay_over_grad") / v.sampled) for v in own)
            yield _finding("D34", track, None, first, last, {"value": value, "null": 0.0, "threshold": 0.0, "weight_decay": decay, **where})
        yield from _warm_up(track, own, where)


def _warm_up(track: TrackData, views: list[View], where: dict[str, Any]) -> Iterator[Finding]:
    begun = [view for view in views if view.first[0] == 1 and view.lr[0] >= 0.9 * _largest(view.lr) and view.beta2 < 1 and _corrected(track)]
    ratios = [(float(view.update_to_weight[0]), view) for view in begun if np.isfinite(view.update_to_weight[0])]
    ratio, view = max(ratios, key=lambda each: each[0], default=(0.0, None))
    if view is not None and ratio > 0.01:
        suggested = math.ceil(2 / (1 - view.beta2) - 1e-6)
        evidence = {"value": ratio, "null": 1e-3, "threshold": 0.01, "in": view.name, "warm-up": suggested, **where}
        yield _finding("D38", track, None, 1, int(view.last[0]), evidence)


def _whole(track: TrackData, seen: list[View]) -> Iterator[Finding]:
    """What all tensors do together."""
    if seen and all(len(view.last) == len(seen[0].last) for view in seen):
        zero = np.zeros(len(seen[0].last))
        descent = sum((view.elements / view.sampled * view.high("descent") for view in seen), zero)
        lengths = sum((view.elements / view.sampled * view.lengths for view in seen), zero)
        beta1 = seen[0].beta1
        elements = sum(view.elements for view in seen)
        if elements >= ENOUGH and math.isfinite(beta1):
            found = _episodes(seen[0], reading := Reading(descent / lengths, noise_rms(beta1), 0.0, 5, below=True, span=_momentum_span(beta1)))
            if found is not None:
                evidence = {"value": float(np.median(reading.values[found])), "null": reading.null, "threshold": 0.0}
                yield _finding("D14", track, None, int(seen[0].first[found][0]), int(seen[0].last[found][-1]), evidence)
    if "clip_factor" in track.scalars:
        clip = track.scalar("clip_factor")
        clipped = clip["max"] < 1
        share = float(clip["count"][clipped].sum() / max(1, clip["count"].sum()))
        if clip["count"].sum() >= 50 and share > 0.95:
            factor = float(np.median(clip["mean"][clipped]))
            severity = "warning" if factor < 1e-3 else None
            evidence = {"value": share, "null": 0.1, "threshold": 0.95, "factor": factor}
            yield _finding("D40", track, severity, int(clip["first"][0]), int(clip["last"][-1]), evidence)


def _largest(values: Array, least: float = 0.0) -> float:
    """Of what is finite."""
    return float(np.max(values[np.isfinite(values)], initial=least))


def _median(values: Array) -> float:
    """Of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


# --- settings ------------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float:
    """A setting; NaN where there is none, or one that changes."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _betas(group: Mapping[str, Any]) -> tuple[float, float]:
    betas = group.get("betas")
    if isinstance(betas, (list, tuple)) and len(betas) == 2:
        return _number(betas[0]), _number(betas[1])
    return _number(group.get("beta1")), _number(group.get("beta2"))


def _corrected(track: TrackData) -> bool:
    """Whether moments are corrected: a rule's name tells its options."""
    return "off" not in str(track.about.get("rule", "")).split("_")


def _is_decoupled(track: TrackData) -> bool:
    return track.about.get("coupling") == "decoupled"
