"""What views take of one track of a recording: readings of its tensors over time, thinned to so many columns, and sorted by trouble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..measures import columns, sampled_elements
from ..readings import READINGS as ALL
from ..readings import Limits, Numbers, Reading, trouble
from ..record import TrackData
from ..record.diseases import in_words
from ..record.settings import group_of, groups_of, settings_of
from ..theory import Settings

__all__ = [
    "READINGS", "Happening", "Overhead", "Series", "about_of", "by_trouble", "happened", "histories", "latest", "limits_of", "mean", "null_of",
    "overhead", "overhead_in_words", "scalar", "thin",
]  # fmt: skip

READINGS = {
    name: ALL[name]
    for name in (
        "nonfinite", "surprise", "direction", "disagreement", "eps_share", "grad_over_eps", "update_weight", "grad_rms", "param_rms", "spikes",
        "swallowed", "zero_grad",
    )
}  # fmt: skip
"""Those that are shown, in this order."""

CHUNK = 100  # tensors whose measures are looked at together
LATEST = 8  # buckets that are now


class Series(NamedTuple):
    """Of each column the first and last step, and least, mean and greatest value; NaN where there is none."""

    first: Any
    last: Any
    low: Any
    mid: Any
    high: Any


def scalar(track: TrackData, name: str) -> Series | None:
    """The history of a number of whole steps."""
    if name not in track.scalars:
        return None
    table = track.scalar(name)
    return Series(table["first"], table["last"], table["min"], table["mean"], table["max"]) if len(table) else None


class Happening(NamedTuple):
    """A mark, a step that was skipped or refused, an error that stopped the program, or an alarm of one or more tensors, with the evidence of the
    first, which has it worst.
    """

    step: int
    time: float
    kind: str  # event, skipped, failed, stopped, alarm
    tensor: str | None
    text: str
    evidence: Mapping[str, Any] | None = None
    others: int = 0  # tensors that raised the same alarm at this step

    @property
    def word(self) -> str:
        """The kind as people call it."""
        return {"event": "mark", "failed": "refused"}.get(self.kind, self.kind)

    @property
    def where(self) -> str:
        """The tensors, if it is about some."""
        return "" if self.tensor is None else f"{self.tensor} and {self.others} more" if self.others else self.tensor

    @property
    def in_full(self) -> str:
        """The text, of an alarm with the tensors and what was seen."""
        parts = [self.text, f"in {self.where}" if self.kind == "alarm" and self.tensor is not None else ""]
        return ", ".join(filter(None, parts)) + (f": {in_words(self.evidence, self.evidence.get('rule'))}" if self.evidence else "")


def happened(track: TrackData) -> list[Happening]:
    """What happened, newest first."""
    kinds = ["stopped" if each.kind == "failed" and not each.is_refusal else each.kind for each in track.events]
    events = [Happening(each.step, each.time, kind, each.tensor, each.text) for kind, each in zip(kinds, track.events, strict=True)]
    alarms: dict[tuple[int, str], Happening] = {}
    for each in track.alarms:
        known = alarms.get((each.step, each.what))
        now = Happening(each.step, each.time, "alarm", each.tensor, each.what, each.evidence)
        alarms[each.step, each.what] = now if known is None else known._replace(others=known.others + 1)
    return sorted([*events, *alarms.values()], key=lambda each: (each.time, each.step), reverse=True)


def thin(series: Series, columns: int) -> Series:
    """The same in at most so many columns: neighbours are joined, their least and greatest values kept."""
    n = len(series.first)
    if n <= columns:
        return series
    starts = np.arange(0, n, -(-n // columns))
    ends = np.append(starts[1:], n) - 1
    there = ~np.isnan(series.mid)
    counts = np.add.reduceat(there.astype(float), starts)
    with np.errstate(all="ignore"):
        middle = np.add.reduceat(np.where(there, series.mid, 0.0), starts) / np.where(counts > 0, counts, np.nan)
    low, high = np.fmin.reduceat(series.low, starts), np.fmax.reduceat(series.high, starts)
    return Series(series.first[starts], series.last[ends], low, middle, high)


def histories(track: TrackData, tensors: Sequence[str]) -> tuple[Any, Any, dict[str, Any]]:
    """First and last step of each bucket, and of each reading: least, mean, greatest x buckets x tensors."""
    return _readings(track, tensors, None)


def limits_of(track: TrackData, tensors: Sequence[str], steps: int = 1) -> dict[str, Limits]:
    """Of each reading what to hold it against in each tensor, where it is the mean of so many steps; NaN where that is not known."""
    told = [track.tensors[name].get("elements") for name in tensors]
    seen = np.array([max(sampled_elements(size), 1) if isinstance(size, int) and size >= 0 else np.inf for size in told], float) * max(steps, 1)
    known = {"sampled": seen, "zero_grad": np.zeros(len(seen)), "param_sum_squares": np.full(len(seen), np.inf)}
    x = Numbers(lambda name: known.get(name, np.full(len(seen), np.nan)), **about_of(track, tensors))
    return {name: Limits(*(np.broadcast_to(each, len(seen)) for each in reading.limits(x))) for name, reading in READINGS.items()}


def null_of(track: TrackData, reading: Reading, tensors: Sequence[str]) -> Any:
    """What a reading would be in each tensor if all were well, or of noise; NaN where that is not known."""
    return limits_of(track, tensors)[reading.name].null


def latest(track: TrackData, tensors: Sequence[str]) -> tuple[dict[str, Any], int]:
    """The readings of the last buckets: of each a mean for each tensor; and how many buckets that are."""
    first, _, found = _readings(track, tensors, LATEST)
    return {name: mean(values[1]) for name, values in found.items()}, len(first)


def mean(values: Any) -> Any:
    """Over buckets; NaN where there is nothing."""
    there = np.isfinite(values)
    return np.where(there, values, 0).sum(axis=0) / np.where(there.any(axis=0), there.sum(axis=0), np.nan)


def by_trouble(track: TrackData) -> list[tuple[str, float]]:
    """All tensors and how much trouble each was in at its worst, once the first tenth of the buckets is over; the worst first."""
    names = list(track.tensors)
    scores: list[float] = []
    for start in range(0, len(names), CHUNK):
        some = names[start : start + CHUNK]
        first, _, found = histories(track, some)
        settled = slice(len(first) // 10, None)
        each = trouble({name: values[1, settled] for name, values in found.items()}, limits_of(track, some))
        scores += each.max(axis=0).tolist() if len(first) else [0.0] * len(some)
    return sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1])


def about_of(track: TrackData, tensors: Sequence[str]) -> dict[str, Any]:
    """What `Numbers` are told of tensors beside their measures."""
    groups = groups_of(track.about)
    told = [track.tensors[name] for name in tensors]
    own = [settings_of(track.about, group_of(groups, each)[1]) for each in told]
    sizes, shapes = [each.get("elements") for each in told], [each.get("shape") for each in told]
    return {
        "h": Settings.together(own, range(len(own))) if own else Settings(*np.zeros((3, 0))),
        "elements": np.array([size if isinstance(size, int) else np.nan for size in sizes], float),
        "is_matrix": np.array([isinstance(shape, list) and len(shape) >= 2 for shape in shapes], bool),
    }


def _readings(track: TrackData, tensors: Sequence[str], last: int | None) -> tuple[Any, Any, dict[str, Any]]:
    names = columns()
    first, final, summary = track.block(tensors, names, last)
    tables = [dict(zip(names, np.moveaxis(each, -1, 0), strict=True)) for each in summary]
    about = about_of(track, tensors)
    low, mean, high = (Numbers(each.__getitem__, **about) for each in tables)
    bounds = [Numbers(tables[0].__getitem__, over=high, **about), mean, Numbers(tables[2].__getitem__, over=low, **about)]
    return first, final, {name: np.stack([reading.of(x) for x in bounds]) for name, reading in READINGS.items()}


class Overhead(NamedTuple):
    """What recording costs: seconds of a step that was observed and of one that was not, and the share of the run from its first step to its last."""

    observed: float
    plain: float
    share: float


def overhead(track: TrackData) -> Overhead | None:
    """None where it was not timed, or no steps of both kinds were.

    What an observed step takes longer than others, and what is told to the recording, beside the whole run. The thread that writes the file is
    not in it.
    """
    tables = {name: track.scalar(name) for name in ("observed_step_seconds", "step_seconds", "telling_seconds") if name in track.scalars}
    if len(tables) < 3 or not all(map(len, tables.values())):
        return None
    counts, sums = zip(*((int(each["count"].sum()), float((each["count"] * each["mean"]).sum())) for each in tables.values()), strict=True)
    if not all(counts):
        return None
    observed, plain = sums[0] / counts[0], sums[1] / counts[1]
    begin, end = (choose(float(each["time"][place]) for each in tables.values()) for choose, place in ((min, 0), (max, -1)))
    return Overhead(observed, plain, (max(0.0, observed - plain) * counts[0] + sums[2]) / (end - begin)) if end > begin else None


def overhead_in_words(track: TrackData) -> str:
    """Empty where it is not known.

    >>> from openadam.record.session import TrackData
    >>> overhead_in_words(TrackData(1, "nothing"))
    ''
    """
    found = overhead(track)
    if found is None:
        return ""
    cost = "less than 0.1%" if found.share < 1e-3 else f"{100 * found.share:.2g}%"
    return f"recording took {cost} of the run (an observed step {1e3 * found.observed:.3g} ms, another {1e3 * found.plain:.3g} ms)"
