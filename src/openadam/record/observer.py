"""What an optimizer tells its recording: what it is, and what each step saw. Every host of tensors gives its stepper one."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measures import HISTOGRAMS, INSIDE, MEASURES, OCTAVES, Measure, columns
from .alarms import Judge, Raised
from .recorder import track
from .track import Track

if TYPE_CHECKING:
    from ..reports import Measured, StepReport

__all__ = ["Observer", "observer"]

COLUMNS = columns()
REDUCTIONS = {each.name: each.reduction for each in (*MEASURES, *INSIDE)}
EDGES = np.array(OCTAVES)
logger = logging.getLogger("openadam.record")

ALWAYS = np.arange(len(COLUMNS)) <= len(MEASURES)  # what of these is seen of every rule


def observer(optimizer: Any, record: Any, about: Mapping[str, Any], tensors: Iterable[Mapping[str, Any]]) -> Observer:
    """The observer of an optimizer.

    Args:
        optimizer: Whose end is the recording's, too.
        record: A path, a `Recorder`, or a pair of one of these and the name that the optimizer is to have in it.
        about: What is known of it, as plain data.
        tensors: Each with ``name``, ``shape``, ``dtype``, ``elements`` and ``group``.
    """
    given, name = record if isinstance(record, tuple) and len(record) == 2 else (record, None)
    made = Observer(given, about, tensors, name)
    weakref.finalize(optimizer, made.track.close).atexit = False  # at exit recordings end by themselves, whole
    return made


class Observer:
    """Tells a track of a recording what the steps of one optimizer see."""

    def __init__(self, record: Any, about: Mapping[str, Any], tensors: Iterable[Mapping[str, Any]], name: str | None) -> None:
        self._tensors = {str(each["name"]): dict(each) for each in tensors}
        measures = [{"name": name, "reduction": REDUCTIONS.get(name, "sum")} for name in COLUMNS]
        self.track: Track = track(record, {**about, "tensors": list(self._tensors.values()), "measures": measures}, name)
        self._began: float | None = None  # when the step at hand was asked about
        self._telling: float | None = None  # seconds that it took to tell of the step before
        self._judge = Judge()

    def wants(self, step: int) -> bool | tuple[Measure, ...]:
        """Whether a step is to be observed, and what beside all measures."""
        self._began = time.perf_counter()
        if not self.track.wants(step):
            return False
        return HISTOGRAMS if self.track.wants_histograms() else True

    def saw(self, report: StepReport, rates: Iterable[float]) -> None:
        """A step that was taken or skipped; what it measured is recorded if it measured, and judged. Never raises: the step has been taken."""
        if self.track.closed:
            return
        ended, began, self._began = time.perf_counter(), self._began, None
        try:
            self._record(report, rates, None if began is None else ended - began)
            self._telling = time.perf_counter() - ended
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Record no more, since a training is worth more than its recording."""
        self.track.close()
        logger.warning("the recording of %s was given up: %s: %s", self.track.name, type(error).__name__, error)

    def _record(self, report: StepReport, rates: Iterable[float], seconds: float | None) -> None:
        scalars: dict[str, Any] = {
            "loss": report.loss, "grad_norm": report.grad_norm, "clip_factor": report.clip_factor, "skipped": float(report.skipped),
            "update_norm": report.update_norm, "param_norm": report.param_norm, "telling_seconds": self._telling,
            "observed_step_seconds" if report.measures else "step_seconds": seconds,
        }  # fmt: skip
        scalars |= {f"lr {k}" if k else "lr": rate for k, rate in enumerate(rates)}
        self.track.step(report.step, scalars)
        if report.measures:
            self._keep(report.measures)
        if not report.skipped:  # else it was told of already
            self._raise(report.step, self._judge.taken(report.loss))
        if report.measures:
            self._raise(report.step, self._judge.observed(report.measures))

    def _keep(self, seen: Measured) -> None:
        strangers = [name for name in seen.names if name not in self._tensors]
        if strangers:
            self._tensors |= {name: {"name": name} for name in strangers}
            self.track.tensors(list(self._tensors.values()))
        values = seen.table[:, : len(COLUMNS)]
        measured = ~np.isnan(values) | ALWAYS
        if seen.names != tuple(self._tensors):
            places = {name: place for place, name in enumerate(self._tensors)}
            rows = [places[name] for name in seen.names]
            some, values = values, np.full((len(places), len(COLUMNS)), np.nan)
            some_measured, measured = measured, np.zeros((len(places), len(COLUMNS)), bool)
            values[rows], measured[rows] = some, some_measured
        number = self.track.observed
        self.track.observe(seen.step, values, measured=measured)
        for name, counts in seen.histograms.items():
            for tensor, own in zip(seen.names, counts, strict=True):
                if own[0] == own[0]:  # the rule has what is counted
                    self.track.histogram(seen.step, tensor, name, own.astype(np.int64), EDGES, number)

    def _raise(self, step: int, alarms: Iterable[Raised]) -> None:
        """Alarms: they are noted, with the last steps in full, and logged."""
        for each in alarms:
            for tensor, evidence in each.tensors:
                self.track.alarm(step, tensor, each.what, evidence)
            logger.warning("%s, step %d: %s", self.track.name, step, each.in_words)

    def skipped(self, step: int, said: str, why: Exception | None, loss: float | None = None) -> None:
        """A step that was not taken; without a reason it was a scaler's word."""
        self.track.skipped(step, said)
        self._not_taken(step, why, loss)

    def failed(self, step: int, error: BaseException, loss: float | None = None) -> None:
        """A step that was refused: the last ones are kept in full."""
        self.track.failed(step, error)
        self._not_taken(step, None, loss)

    def _not_taken(self, step: int, why: Exception | None, loss: float | None) -> None:
        try:
            self._raise(step, [*self._judge.loss(loss), *self._judge.skipped(why)])
        except Exception as error:
            self.give_up(error)

    def mark(self, step: int, text: str) -> None:
        """Something that a user wants to see beside the steps."""
        self.track.event(step, text)
