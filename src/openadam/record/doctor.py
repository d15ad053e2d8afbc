"""Judges recordings: turns what was measured into findings, each with its evidence, the tensor, the steps, what it means and what helps.

A finding needs a reading that stays beyond its threshold for some observed steps; it is over when the reading has come half-way back to its
null value, and each tensor and rule makes one at most. Thresholds follow from beta1, beta2 and eps; what a rule lacks is not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import RecordError
from ..readings import EARLY, ENOUGH, ROUNDING, uphill
from ..theory import momentum_span, number, uncorrected_peak
from .checks import CHECKS, Judgement, Told, View, largest_of, median_of
from .diseases import RULES, SEVERITIES, in_words
from .settings import groups_of, settings_of

__all__ = ["Finding", "by_disease", "diagnose"]

Array = npt.NDArray[Any]

OTHERS = re.compile(r"others in (\d+) more of (\d+)")  # as `NonFiniteGradientError` says it
NO_WARM_UP = 0.1  # update/weight of a first step; at learning rates that are usual it is below
BLOWN_UP = 0.7  # update/weight of a first step; healthy ones of small networks have 0.55
STARVED = ("D20", "D21", "D26", "D32")  # of gradients that a clip makes next to nothing
FOLLOW = ("D20", "D26", "D24", "D32", "D18", "D19", "D21", "D25", "D27")  # of a tensor without a gradient to speak of: old moments go on alone


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

    @property
    def where(self) -> str:
        """The tensor and the steps, as far as there are any: ``w, steps 3 to 20``."""
        parts = [self.tensor] if self.tensor is not None else []
        if self.first_step is not None:
            parts.append(f"step {self.first_step}" if self.first_step == self.last_step else f"steps {self.first_step} to {self.last_step}")
        return ", ".join(parts)

    @property
    def seen(self) -> str:
        """The evidence in words."""
        return in_words(self.evidence, self.id, whole=True)


class Recording(Protocol):
    """What is needed of a `session.Session`."""

    @property
    def tracks(self) -> Mapping[str, Told]: ...


def diagnose(session: Recording, track: str | None = None) -> list[Finding]:
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
    ('D20', 'warning', 'w', 1.0, 0.5)
    """
    if track is not None and track not in session.tracks:
        raise RecordError(f"there is no track {track!r}; there are {', '.join(map(repr, session.tracks)) or 'none'}")
    found = [finding for name, each in session.tracks.items() if track in (None, name) for finding in _track(each)]
    order = list(RULES)
    return sorted(found, key=lambda each: (SEVERITIES.index(each.severity), order.index(each.id)))


def by_disease(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of the same disease and optimizer together, in their order."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.severity, each.id, each.track), []).append(each)
    return list(groups.values())


def _track(track: Told) -> Iterator[Finding]:
    views = [View(track, name) for name in track.tensors]
    seen = [view for view in views if len(view.last)]
    with np.errstate(all="ignore"):
        largest = max((largest_of(view.grad_rms) for view in seen), default=0.0)
        _beside_each_other(seen)
        died = {view.name: found for view in seen if (found := _judge("D43", view, CHECKS["D43"](view), largest)) is not None}
        begun = list(_beginning(track, seen))
    too_large = any(finding.id == "D11" for finding in begun)
    clipped = list(_clipped(track))
    too_small = any(finding.severity == "warning" for finding in clipped)
    yield from _events(track)
    yield from _loss(track)
    yield from begun
    yield from died.values()
    yield from _let_in(track, seen)
    yield from clipped
    for view in views:
        if len(view.last):
            ids = {"D01", "D43"}  # which are told of above
            for id, check in CHECKS.items():
                if id in ids or (id == "D21" and "D20" in ids) or (id == "D19" and "D18" in ids):  # it foretells the other, or is the same
                    continue
                if id == "D32" and too_large:  # which the weights that it has blown up decay of
                    continue
                if id in STARVED and too_small:
                    continue
                with np.errstate(all="ignore"):
                    finding = _judge(id, view, check(view), largest)
                if finding is not None and not _follows(finding, died.get(view.name)):
                    ids.add(id)
                    yield finding
            gone = _gone(view, seen)
            if gone is not None:
                yield gone
        elif track.observed >= EARLY:
            yield _finding("D23", view, "hint", None, None, {"value": 0.0, "null": 1.0, "threshold": 0.0, "gradient": "none was given"})
    with np.errstate(all="ignore"):
        yield from _settings(track, seen)
        yield from _whole(track, seen)


# --- one tensor ----------------------------------------------------------------------------------------------------------


def _judge(id: str, view: View, reading: Judgement | None, largest: float) -> Finding | None:
    if reading is None or not math.isfinite(reading.null):
        return None
    found = _episodes(view, reading)
    if found is None:
        return None
    values = reading.values[found]
    thresholds = np.broadcast_to(reading.threshold, reading.values.shape)[found]
    at = 0 if id == "D01" else int((np.argmin if reading.below else np.argmax)(values))  # what came of the first is everywhere
    value, threshold = float(values[at] if reading.worst else np.median(values)), float(thresholds[at])
    severity = reading.severity or RULES[id].severity
    if not reading.rounding and severity == "warning" and not np.max(view.grad_rms[found]) > ROUNDING * largest:
        severity = "hint"
    evidence = {"value": value, "null": reading.null, "threshold": threshold, "observed": int(view.observations[found].sum())}
    evidence |= reading.also or {}
    return _finding(id, view, severity, int(view.first[found][0]), int(view.last[found][-1]), evidence, reading.remedy)


def _episodes(view: View, reading: Judgement) -> Array | None:
    """Where a reading is bad in a row for long enough, or goes on to be; None if it never is."""
    sign = -1.0 if reading.below else 1.0
    values, threshold = sign * reading.values, sign * np.broadcast_to(reading.threshold, reading.values.shape)
    calm = sign * reading.calm
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


def _finding(
    id: str, view: View | Told, severity: str | None, first: int | None, last: int | None, evidence: dict[str, Any], remedy: str | None = None
) -> Finding:
    rule = RULES[id]
    tensor, track = (view.name, view.track.name) if isinstance(view, View) else (None, view.name)
    evidence = {"reading": rule.reading, **evidence}
    helps = rule.remedy if remedy is None else rule.instead[remedy]
    return Finding(id, severity or rule.severity, track, tensor, first, last, evidence, rule.meaning, helps, rule.source)


# --- one tensor beside the others ----------------------------------------------------------------------------------------


def _beside_each_other(seen: list[View]) -> None:
    """Tell each tensor of the largest gradient, with which its own may fall, as when all is learnt, or by far more; and of the whole step."""
    steps = np.unique(np.concatenate([view.last for view in seen])) if seen else np.zeros(0)
    largest, lengths = np.zeros(len(steps)), np.zeros(len(steps))
    for view in seen:
        at = np.searchsorted(steps, view.last)
        largest[at] = np.fmax(largest[at], view.grad_rms)
        lengths[at] += np.nan_to_num(uphill(view.means)[1])
    for view in seen:
        view.beside(steps, largest, lengths)


def _gone(view: View, seen: list[View]) -> Finding | None:
    """A tensor that had gradients, and is given none any more."""
    last = int(view.last[-1])
    missed = max(int(other.observations[other.first > last].sum()) for other in seen)
    if view.observations.sum() < EARLY or missed < EARLY:
        return None
    share = float(view.observations.sum() / (view.observations.sum() + missed))
    evidence = {"value": share, "null": 1.0, "threshold": 1.0, "gradient": f"the last one came at step {last}"}
    return _finding("D23", view, None, last + 1, max(int(other.last[-1]) for other in seen), evidence)


def _let_in(track: Told, seen: list[View]) -> Iterator[Finding]:
    """Gradients that are not finite and were let in: those of the step at which it began. All that follow are but its consequence."""
    found = [finding for view in seen if (finding := _judge("D01", view, CHECKS["D01"](view), 0.0)) is not None]
    norms = track.scalar("grad_norm") if "grad_norm" in track.scalars else None
    begun = min((finding.first_step for finding in found if finding.first_step is not None), default=None)
    if norms is not None and not any(event.kind in ("skipped", "failed") for event in track.events):
        bad = norms["first"][norms["nonfinite"] > 0]
        if len(bad) and (begun is None or bad[0] < begun):
            evidence = {"reading": "gradient norm", "value": math.nan, "null": median_of(norms["mean"]), "threshold": math.inf}
            yield _finding("D01", track, None, int(bad[0]), track.steps, evidence | {"tensors": "not measured at this step"}, "let in")
            return
    first = [finding for finding in found if finding.first_step == begun]
    remedy = RULES["D01"].instead["all" if len(first) == len(seen) > 1 else "let in"]
    yield from (replace(finding, remedy=remedy) for finding in first)


def _follows(finding: Finding, death: Finding | None) -> bool:
    """Whether it is but what the death of this tensor's gradient makes of its moments."""
    if death is None or death.first_step is None or finding.last_step is None:
        return False
    return finding.id in FOLLOW and finding.last_step >= death.first_step


# --- the optimizer as a whole --------------------------------------------------------------------------------------------


def _events(track: Told) -> Iterator[Finding]:
    """Steps that were refused or skipped, by what they say."""
    bad: dict[tuple[str, str, str | None], list[Any]] = {}
    for event in (each for each in track.events if each.kind != "event"):
        named = re.search(r"parameter '([^']*)'", event.text)
        tensor = event.tensor or (named.group(1) if named else None)
        if event.text.startswith("NonFiniteStateError") or (event.kind == "skipped" and "would not be finite" in event.text):
            bad.setdefault(("D02", event.kind, tensor), []).append(event)
        elif event.kind == "skipped" or event.text.startswith(("NonFiniteGradientError", "TooManySkipsError")):
            who = "scaler" if event.kind == "skipped" and "scaler" in event.text else event.kind
            bad.setdefault(("D01", who, tensor), []).append(event)
        elif event.kind == "failed" and not event.is_refusal:
            interrupted = event.text.startswith("KeyboardInterrupt")
            evidence = {"value": 1.0, "null": 0.0, "threshold": 0.0, "exception": event.text.removesuffix(": ")}
            yield _finding("D46", track, "hint" if interrupted else None, event.step, event.step, evidence, "interrupted" if interrupted else None)
    for (id, kind, tensor), found in bad.items():
        # A loss scale is found by trying: a scaler that skips now and then does its work.
        severity = "error" if kind == "failed" else "warning" if kind == "skipped" or len(found) > 0.05 * max(track.steps, 100) else "hint"
        reading = "steps refused" if kind == "failed" else "steps skipped"
        evidence = {"reading": reading, "value": float(len(found)), "null": 0.0, "threshold": 0.0}
        if kind == "scaler":
            evidence["by"] = "a scaler"
        remedy = None
        others = [(int(more), int(of)) for event in found for more, of in OTHERS.findall(event.text)]
        if others:
            more, of = max(others)
            evidence["tensors"] = f"{more + 1} of {of}"
            remedy = "all" if more + 1 == of else None
        steps = [event.step for event in found]
        yield replace(_finding(id, track, severity, min(steps), max(steps), evidence, remedy), tensor=tensor)


def _loss(track: Told) -> Iterator[Finding]:
    """What the recording was told of the loss, by the alarms that it raised at every step, measured or not."""
    for id in ("D44", "D47", "D45"):
        raised = [alarm for alarm in track.alarms if alarm.evidence.get("rule") == id]
        if not raised:
            continue
        worst = max(raised, key=lambda each: number(each.evidence.get("value")))
        evidence: dict[str, Any] = {"value": float(len(raised)), "null": 0.0, "threshold": 0.0}
        if id != "D44":
            evidence = {name: worst.evidence[name] for name in evidence} | ({"times": len(raised)} if len(raised) > 1 else {})
        remedy = "for good" if id == "D45" and _stays(track, worst) else None
        yield _finding(id, track, None, raised[0].step, raised[-1].step, evidence, remedy)


def _stays(track: Told, alarm: Any) -> bool:
    """Whether the loss has not come half-way back by the end."""
    table = track.scalar("loss")
    late = table["mean"][(table["first"] > alarm.step) & (table["last"] > (alarm.step + track.steps) / 2)]
    usual, threshold = (number(alarm.evidence.get(name)) for name in ("null", "threshold"))
    return len(late) >= 3 and median_of(late) > (usual + threshold) / 2


def _clipped(track: Told) -> Iterator[Finding]:
    """Whether the global norm is always clipped, and by how much."""
    if "clip_factor" in track.scalars:
        clip = track.scalar("clip_factor")
        clipped = clip["max"] < 1
        share = float(clip["count"][clipped].sum() / max(1, clip["count"].sum()))
        if clip["count"].sum() >= 50 and share > 0.95:
            factor = float(np.median(clip["mean"][clipped]))
            severity = "warning" if factor < 1e-3 else None
            evidence = {"value": share, "null": 0.1, "threshold": 0.95, "factor": factor}
            yield _finding("D40", track, severity, int(clip["first"][0]), int(clip["last"][-1]), evidence)


def _settings(track: Told, seen: list[View]) -> Iterator[Finding]:
    """What the hyperparameters alone tell."""
    has_v = any(np.isfinite(view.mean("v_sum")).any() for view in seen)
    groups = groups_of(track.about)
    for place, group in enumerate(groups):
        own = [view for view in seen if view.group is group]
        h = settings_of(track.about, group)
        beta1, beta2 = h.beta1, h.beta2
        where = {"group": place} if len(groups) > 1 else {}
        first, last = min((int(v.first[0]) for v in own), default=None), max((int(v.last[-1]) for v in own), default=None)
        if beta2 > 0 and beta1 >= math.sqrt(beta2):
            bound = math.sqrt(beta2)
            yield _finding("D36", track, None, first, last, {"value": beta1, "null": 0.9, "threshold": bound, "beta2": beta2, **where})
        if not h.corrected and (peak := uncorrected_peak(beta1, beta2)) > 1.5:
            yield _finding("D13", track, None, first, last, {"value": peak, "null": 1.0, "threshold": 1.5, **where})
        decay = number(group.get("weight_decay"))
        if has_v and track.about.get("coupling") == "coupled" and decay > 0 and own:
            value = max(median_of(v.mean("decay_over_grad") / v.means.sampled) for v in own)
            yield _finding("D34", track, None, first, last, {"value": value, "null": 0.0, "threshold": 0.0, "weight_decay": decay, **where})


def _beginning(track: Told, seen: list[View]) -> Iterator[Finding]:
    """What the first step tells of the learning rate of each group, and of its warm-up."""
    groups = groups_of(track.about)
    for place, group in enumerate(groups):
        yield from _warm_up(track, [view for view in seen if view.group is group], {"group": place} if len(groups) > 1 else {})


def _warm_up(track: Told, views: list[View], where: dict[str, Any]) -> Iterator[Finding]:
    begun = [view for view in views if view.first[0] == 1 and view.lr[0] >= 0.9 * largest_of(view.lr) and view.h.beta2 < 1 and view.h.corrected]
    ratios = [(float(view.update_to_weight[0]), view) for view in begun if np.isfinite(view.update_to_weight[0])]
    ratio, view = max(ratios, key=lambda each: each[0], default=(0.0, None))
    if view is not None and ratio > BLOWN_UP:  # nothing of what the weights were is left
        reading = {"reading": "update/weight in the first step", "value": ratio, "null": 1e-3, "threshold": BLOWN_UP}
        yield _finding("D11", track, None, 1, int(view.last[0]), {**reading, "in": view.name, **where})
    elif view is not None and ratio > NO_WARM_UP:
        suggested = math.ceil(2 / (1 - view.h.beta2) - 1e-6)
        evidence = {"value": ratio, "null": 1e-3, "threshold": NO_WARM_UP, "in": view.name, "steps of warm-up": suggested, **where}
        yield _finding("D38", track, None, 1, int(view.last[0]), evidence)


def _whole(track: Told, seen: list[View]) -> Iterator[Finding]:
    """What all tensors do together."""
    if seen and all(len(view.last) == len(seen[0].last) for view in seen):
        parts = [uphill(view.peaks) for view in seen]
        descent, lengths = sum(each[0] for each in parts), sum(each[1] for each in parts)
        h = seen[0].h
        if sum(view.means.elements for view in seen) >= ENOUGH and math.isfinite(h.beta1):
            reading = Judgement(descent / lengths, float(h.noise), 0.0, 5, below=True, span=int(momentum_span(h.beta1)))
            found = _episodes(seen[0], reading)
            if found is not None:
                evidence = {"value": float(np.median(reading.values[found])), "null": reading.null, "threshold": 0.0}
                yield _finding("D14", track, None, int(seen[0].first[found][0]), int(seen[0].last[found][-1]), evidence)
