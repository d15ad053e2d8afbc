"""What is drawn of one optimizer of a recording, as plain data: the page and picture files draw the same figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..readings import Forecast, Reading, crossing
from ..record import TrackData
from ..record.settings import group_of, groups_of
from ..theory import betas_of, decay_equilibrium, noise_rms, number, rotation_equilibrium
from .derived import DERIVED, Noise, derived
from .histograms import spreads
from .histories import READINGS, Series, happened, histories, mean, null_of, scalar, thin
from .pictures import WIDE_RANGE
from .text import shown

__all__ = ["LABELS", "MOST_LINES", "Axis", "Lines", "Mark", "Path", "Plane", "Sight", "axis_of", "noise_in_words"]

MOST_LINES = 6
COLUMNS = 200  # of the history of a number of whole steps
NOISE_OF_ALL = "noise scale of all tensors"  # among the numbers of whole steps
AHEAD = 0.5  # of the run's length: so far a forecast is drawn

LABELS: dict[str, Reading | Any] = {**READINGS, **DERIVED}
"""What each reading is called and means: those that are judged, and those that follow from several measures."""


class Axis(NamedTuple):
    """Bounds of an axis of values, and a word on it."""

    low: float
    high: float
    log: bool
    word: str

    def part(self, number: float) -> float:
        """How far along the axis a number is, from 0 to 1."""
        if self.log:
            along = (math.log(max(number, self.low)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            along = (number - self.low) / (self.high - self.low)
        return min(max(along, 0.0), 1.0)


def axis_of(values: Any, log: bool | None = None) -> Axis:
    """An honest axis for values: from 0 if they are near it, logarithmic if they span much.

    >>> axis_of(np.array([1.0, 1000.0])).word, axis_of(np.array([5.0, 6.0])).word
    ('logarithmic', 'does not start at 0')
    """
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low > 0 and (high > WIDE_RANGE * low if log is None else log):
        return Axis(low * 0.9, high * 1.1, True, "logarithmic")
    if 0 <= low < 0.6 * high or low == high == 0:
        return Axis(0.0, high * 1.06 or 1.0, False, "from 0")
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return Axis(low - room, high + room, False, "does not start at 0" if low > 0 else "linear")


class Mark(NamedTuple):
    """An upright at a step."""

    step: float
    kind: str
    text: str


class Lines(NamedTuple):
    """Series over the steps. ``where`` of a line says what it is of: a scalar, or a reading of a tensor."""

    title: str
    about: str
    lines: list[tuple[str, Series, list[Any]]]
    steps: tuple[float, float]
    nulls: list[tuple[float, str]] = []
    marks: list[Mark] = []
    forecasts: list[tuple[int, Forecast]] = []  # of which line
    height: int = 170

    @property
    def references(self) -> list[tuple[str, list[Any]]]:
        """What each line is called, and where its numbers are."""
        return [(label, where) for label, _, where in self.lines]

    @property
    def axis(self) -> Axis:
        """Of the values."""
        known = [values for _, series, _ in self.lines for values in (series.low, series.high)]
        ahead = [self.forecast_end(forecast)[1] for _, forecast in self.forecasts]
        return axis_of(np.concatenate([*known, np.array([at for at, _ in self.nulls] + ahead, float)]))

    def forecast_end(self, forecast: Forecast) -> tuple[float, float]:
        """The step and the value at which the drawing of a forecast ends: where it comes down to 1, or at the edge."""
        end = min(float(forecast.crossing), self.steps[1])
        part = (end - forecast.step) / (forecast.crossing - forecast.step)
        return end, float(forecast.value ** (1 - part))


class Path(NamedTuple):
    """The way of a point over the steps."""

    label: str
    across: Any
    down: Any
    where: list[Any]


class Plane(NamedTuple):
    """Points that move in a plane with two logarithmic axes, and straight lines through its origin."""

    title: str
    about: str
    paths: list[Path]
    across: str
    down: str
    diagonals: list[tuple[float, str]]  # factor and meaning

    @property
    def references(self) -> list[tuple[str, list[Any]]]:
        """What each path is called, and where its numbers are."""
        return [(path.label, path.where) for path in self.paths]

    def axes(self) -> tuple[Axis, Axis]:
        across, down = (np.concatenate([each[way] for each in self.paths]) for way in (1, 2))
        return axis_of(across, log=True), axis_of(down, log=True)


class Sight:
    """One optimizer as it is drawn: some of its tensors, their readings on common columns, what happened, and the figures of all that.

    Args:
        track: What it told.
        tensors: Which are seen, the one in most trouble first.
        columns: Into how many their histories are thinned, at most.
        marks: How many happenings are marked.
        histograms: Of how many tensors histograms are shown.
    """

    def __init__(self, track: TrackData, tensors: Sequence[str], columns: int, marks: int, histograms: int = MOST_LINES) -> None:
        self.track, self.tensors = track, list(tensors)
        self.first, self.last, self.found = histories(track, tensors)
        more, self.noise_of_tensors = derived(track, tensors)
        scalars = {name: each for name in track.scalars[:40] if (each := scalar(track, name)) is not None}
        everything = self.noise.scale
        if np.isfinite(everything).any():
            scalars[NOISE_OF_ALL] = Series(self.first, self.last, everything, everything, everything)
        ends = [bound for each in scalars.values() for bound in (each.first.min(), each.last.max())]
        ends += [self.first.min(), self.last.max()] if len(self.first) else []
        self.steps = (float(min(ends)), float(max(ends))) if ends else (0.0, 1.0)
        # All readings of all tensors on the same columns.
        self.places = range(len(self.tensors)) if len(self.first) else range(0)
        means = {name: np.stack([each] * 3) for name, each in more.items()}
        known = {**self.found, **means}
        self.series = {(k, name): thin(Series(self.first, self.last, *each[:, :, k]), columns) for name, each in known.items() for k in self.places}
        self.told = [name for name in LABELS if any(np.isfinite(self.series[k, name].mid).any() for k in self.places)]
        self.grid = thin(Series(self.first, self.last, *np.zeros((3, len(self.first)))), columns)
        self.scalars = {name: thin(each, COLUMNS) for name, each in scalars.items()}
        self.events = happened(track)
        self.marks = [Mark(float(each.step), each.kind, f"{each.word}: {each.in_full}") for each in self.events[:marks]]
        self.forecasts = [(k, forecast) for k in self.places if (forecast := crossing(self.last, more["v_over_eps"][:, k])) is not None]
        self.forecasts.sort(key=lambda pair: pair[1].crossing)
        self.spreads = {name: own for name in self.tensors[:histograms] if (own := spreads(track, name))}

    # --- numbers that are told in words ------------------------------------------------------------------------------

    @cached_property
    def noise(self) -> Noise:
        """Of all elements together, by buckets: of the tensors in which it can be told."""
        known = np.isfinite(self.noise_of_tensors.trace) & np.isfinite(self.noise_of_tensors.signal)
        sums = (np.where(known, each, 0).sum(axis=1) for each in self.noise_of_tensors)
        return Noise(*(np.where(known.any(axis=1), each, np.nan) for each in sums))

    @property
    def latest_noise(self) -> Noise:
        """The same over the last quarter."""
        quarter = slice(len(self.first) - max(1, len(self.first) // 4), None)
        return Noise(*(float(mean(each[quarter][:, None])[0]) for each in self.noise)) if len(self.first) else Noise(math.nan, math.nan)

    @property
    def last_rate(self) -> float:
        """Of the first group."""
        rate = self.scalars.get("lr")
        return float(rate.mid[-1]) if rate is not None else math.nan

    @property
    def decay(self) -> float:
        """Of the first group."""
        groups = groups_of(self.track.about)
        return number(groups[0].get("weight_decay")) if groups else math.nan

    @property
    def equilibrium(self) -> tuple[float, float, float] | None:
        """Of Adam with decoupled decay: rms(parameter), over how many steps, and rotation, if noise alone moved the parameters."""
        decoupled = self.track.about.get("rule") == "adam" and self.track.about.get("coupling") == "decoupled"
        if not (decoupled and self.last_rate > 0 and self.decay > 0):
            return None
        beta1, _ = betas_of(groups_of(self.track.about)[0])
        turn = rotation_equilibrium(self.last_rate, self.decay, beta1) if 0 <= beta1 < 1 else math.nan
        return (*decay_equilibrium(self.last_rate, self.decay), turn)

    # --- the figures -------------------------------------------------------------------------------------------------

    @cached_property
    def figures(self) -> dict[str, Lines | Plane]:
        """By name, in the order in which they are drawn; those of what was not recorded are left out."""
        of = f"the {MOST_LINES} tensors in most trouble" if len(self.tensors) > MOST_LINES else "each tensor"
        rates = [name for name in self.scalars if name == "lr" or name.startswith("lr ")][:8]
        at_rest = self.equilibrium
        size, _, turn = at_rest if at_rest is not None else (math.nan, math.nan, math.nan)
        found = {
            "loss": self._scalars("Loss", "the loss as it was told", ["loss"]),
            "grad": self._scalars("Norm of the gradient", "over all tensors, before clipping", ["grad_norm"]),
            "update": self._scalars("Norm of the update", "over all tensors; of observed steps", ["update_norm"]),
            "lr": self._scalars("Learning rate", "of each group", rates),
            "direction": self._tensors("direction", f"rms(direction) of {of}"),
            "surprise": self._tensors("surprise", f"RMS_t (surprise) of {of}"),
            "disagreement": self._tensors("disagreement", f"Share of elements whose first moment disagrees with the gradient, {of}"),
            "phase": self._phase(f"First moment beside gradient, {of}"),
            "epsway": self._forecast(f"Root of the second moment over eps, {of}"),
            "epsratio": self._tensors("grad_over_eps", f"rms of the gradient over eps, {of}"),
            "epsshare": self._tensors("eps_share", f"Share of elements that eps dominates, {of}"),
            "paramnorm": self._scalars("Norm of all parameters", "of observed steps", ["param_norm"]),
            "param": self._tensors("param_rms", f"rms of the parameter, {of}", [(size, "noise against decay")]),
            "rotation": self._tensors("rotation", f"Rotation of the parameter in a step, {of}", [(turn, "noise against decay")]),
            "noise": self._noise(f"Noise scale of all tensors, and of {of}"),
        }
        return {name: figure for name, figure in found.items() if figure is not None}

    def _lines(self, name: str) -> list[tuple[str, Series, list[Any]]]:
        return [(self.tensors[k], self.series[k, name], ["tensor", k, name]) for k in self.places[:MOST_LINES]]

    def _scalars(self, title: str, about: str, names: Iterable[str]) -> Lines | None:
        lines = [(name, self.scalars[name], ["scalar", name]) for name in names if name in self.scalars]
        return Lines(title, about, lines, self.steps, marks=self.marks, height=140) if lines else None

    def _tensors(self, name: str, title: str, beside: Sequence[tuple[float, str]] = ()) -> Lines | None:
        if name not in self.told:
            return None
        nulls = [(at, text) for at, text in beside if math.isfinite(at)]
        if name in READINGS:
            word = {"surprise": "as v̂ expects", "direction": "noise alone", "disagreement": "noise alone"}.get(name, "healthy")
            known = sorted({float(each) for each in null_of(self.track, READINGS[name], self.tensors) if math.isfinite(each)})[:3]
            nulls += [(each, word) for each in known]
            nulls += [(1.0, "all signs stay")] if name == "direction" and known else []
        return Lines(title, LABELS[name].meaning, self._lines(name), self.steps, nulls, self.marks)

    def _forecast(self, title: str) -> Lines | None:
        plain = self._tensors("v_over_eps", title, [(1.0, "as large as eps")])
        if plain is None:
            return None
        drawn = [(k, forecast) for k, forecast in self.forecasts if k < len(plain.lines)]
        furthest = max((forecast.crossing for _, forecast in drawn), default=0)
        end = min(float(furthest), self.steps[1] + AHEAD * (self.steps[1] - self.steps[0]))
        return plain._replace(forecasts=drawn, steps=(self.steps[0], max(end, self.steps[1])))

    def _noise(self, title: str) -> Lines | None:
        whole = self.scalars.get(NOISE_OF_ALL)
        if whole is None:
            return None
        return Lines(
            title, DERIVED["noise_scale"].meaning, [*self._lines("noise_scale"), ("all tensors", whole, ["scalar", NOISE_OF_ALL])], self.steps,
            [(1.0, "as much noise as signal")], self.marks,
        )  # fmt: skip

    def _phase(self, title: str) -> Plane | None:
        paths = []
        for k in self.places[:MOST_LINES]:
            across, down = self.series[k, "seen_grad_rms"].mid, self.series[k, "m_rms"].mid
            with np.errstate(all="ignore"):
                there = (across > 0) & (down > 0) & np.isfinite(across) & np.isfinite(down)
            if there.any():
                where = ["plane", k, "seen_grad_rms", "m_rms"]
                paths.append(Path(self.tensors[k], np.where(there, across, np.nan), np.where(there, down, np.nan), where))
        if not paths:
            return None
        groups = groups_of(self.track.about)
        beta1 = {betas_of(group_of(groups, self.track.tensors[name])[1])[0] for name in self.tensors[:MOST_LINES]}
        noises = sorted(float(noise_rms(each)) for each in beta1 if 0 <= each < 1)[:3]
        about = (
            "each tensor's way over the steps, to the dot at its last: on the upper line signs stay, on the lower one gradients are noise that the "
            "first moment averages away; above both it is a memory of gradients that were larger"
        )
        diagonals = [(1.0, "all signs stay"), *((each, "noise alone") for each in noises if each < 1)]
        return Plane(title, about, paths, "rms of the gradient as the rule sees it", "rms of the first moment", diagonals)


def noise_in_words(noise: Noise, batch: int | None) -> str:
    """The noise scale of the last quarter, and what it means."""
    if not (math.isfinite(noise.trace) and math.isfinite(noise.signal)):
        return "It cannot be told from what was recorded."
    if noise.signal <= 0:
        return "Noise drowns the gradient: the first moment holds no more than noise leaves in it. The scale cannot be told, only that it is large."
    scale = float(noise.scale)
    samples = f", {shown(scale * batch)} samples at {batch} in a batch" if batch is not None else ""
    return f"Noise scale: {shown(scale)} batches{samples}."
