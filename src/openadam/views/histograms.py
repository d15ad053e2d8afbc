"""Histograms of a tensor as they went over a run: shares of its elements by octaves, beside the line that matters; the same in words."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..record import TrackData
from ..record.settings import group_of, groups_of, settings_of
from .text import shown

__all__ = ["Spread", "quantile", "share_below", "spreads", "words"]


class Spread(NamedTuple):
    """One quantity of a tensor over the run."""

    name: str
    label: str
    meaning: str
    steps: list[int]
    edges: Any  # of the bins that are drawn: those that ever held anything, without the open ends
    shares: Any  # of all elements, columns x bins
    below: Any  # share of what is zero, or smaller than any bin
    above: Any  # and of what is larger, or infinite
    limits: tuple[float, float]  # where the open ends begin
    line: float | None
    line_label: str


KINDS = {
    "v_root": ("√v̂", "root of the second moment, element by element; below eps, eps divides"),
    "direction_abs": ("|direction|", "the update before the learning rate, without its sign; no gradients can bring it beyond the bound"),
    "rate": ("effective learning rate", "what each element's first moment is multiplied by: lr/(√v̂ + eps); the wider, the more is adapted"),
}


def spreads(track: TrackData, tensor: str) -> list[Spread]:
    """What was recorded of a tensor: of each quantity one, in the order of `KINDS`."""
    found = []
    for name, (label, meaning) in KINDS.items():
        own = sorted((each for each in track.histograms if each.tensor == tensor and each.name == name), key=lambda each: each.step)
        own = [each for each in own if each.counts.sum() > 0 and len(each.counts) >= 3 and np.array_equal(each.edges, own[-1].edges)]
        if not own:
            continue
        counts = np.array([each.counts for each in own], float)
        shares = counts / counts.sum(axis=1, keepdims=True)
        held = np.flatnonzero(shares[:, 1:-1].any(axis=0)) + 1
        drawn = slice(held[0], held[-1] + 1) if len(held) else slice(1, 1)
        edges = own[-1].edges
        inner = edges[drawn.start : drawn.stop + 1] if len(held) else edges[:0]
        line, words_of = _line(track, tensor, name)
        open_ends = float(edges[1]), float(edges[-2])
        steps = [each.step for each in own]
        found.append(Spread(name, label, meaning, steps, inner, shares[:, drawn], shares[:, 0], shares[:, -1], open_ends, line, words_of))
    return found


def _line(track: TrackData, tensor: str, name: str) -> tuple[float | None, str]:
    """What a quantity is held against, and what that is called."""
    place, group = group_of(groups_of(track.about), track.tensors.get(tensor, {}))
    h, rate = settings_of(track.about, group), f"lr {place}" if place else "lr"
    lr = float(track.scalar(rate)["mean"][-1]) if rate in track.scalars and len(track.scalar(rate)) else math.nan
    bound = float(h.bound) if h.bounded else math.nan
    value, label = {"v_root": (h.eps, "eps"), "direction_abs": (bound, "bound"), "rate": (lr / h.eps if h.eps > 0 else math.nan, "lr/eps")}[name]
    return (value, label) if math.isfinite(value) and value > 0 else (None, "")


def share_below(spread: Spread, column: int, value: float) -> float:
    """The share of elements below a value, within its bin as if they were spread evenly over the octave."""
    if value <= spread.limits[0] or not len(spread.edges):
        return float(spread.below[column])
    inside = np.interp(math.log(value), np.log(spread.edges), np.concatenate([[0.0], np.cumsum(spread.shares[column])]))
    return float(spread.below[column] + inside)


def quantile(spread: Spread, column: int, part: float) -> float:
    """The value that so large a part of the elements is below; 0 or infinity where it is in an open end."""
    inside = part - float(spread.below[column])
    sums = np.concatenate([[0.0], np.cumsum(spread.shares[column])])
    if inside < 0 or sums[-1] == 0:
        return 0.0 if part <= spread.below[column] else math.inf
    if inside > sums[-1] + 1e-12:
        return math.inf
    k = min(max(int(np.searchsorted(sums, inside, side="left")), 1), len(sums) - 1)
    within = (inside - sums[k - 1]) / (sums[k] - sums[k - 1])
    return float(math.exp(math.log(spread.edges[k - 1]) + within * math.log(spread.edges[k] / spread.edges[k - 1])))


def words(spread: Spread) -> str:
    """The last histogram, and how it came there."""
    low, middle, high = (quantile(spread, -1, part) for part in (0.01, 0.5, 0.99))
    text = f"Step {spread.steps[-1]}: median {_value(spread, middle)}, 98 of 100 from {_value(spread, low)} to {_value(spread, high)}"
    if len(spread.steps) > 1:
        text += f" (median at step {spread.steps[0]}: {_value(spread, quantile(spread, 0, 0.5))})"
    if spread.line is not None:
        beyond = share_below(spread, -1, spread.line)
        side, share = ("below", beyond) if spread.name == "v_root" else ("above", max(0.0, 1 - beyond))
        text += f"; {_share(share)} {side} {spread.line_label}, {shown(spread.line)}"
    small, large = spread.limits
    ends = ((float(spread.below[-1]), f"zero or below {shown(small)}"), (float(spread.above[-1]), f"above {shown(large)} or infinite"))
    text += "".join(f"; {_share(share)} {where}, which is not drawn" for share, where in ends if share > 0)
    return f"{text}."


def _share(share: float) -> str:
    return "none" if share < 1e-9 else "all" if share > 1 - 1e-9 else "less than 0.1%" if share < 1e-3 else shown(share, True)


def _value(spread: Spread, value: float) -> str:
    if value == 0:
        return f"0 (or below {shown(spread.limits[0])})"
    return f"beyond {shown(spread.limits[1])}" if math.isinf(value) else shown(value)
