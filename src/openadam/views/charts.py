"""Charts in plain SVG: lines with bands from the least to the greatest value, on honest axes; and tables of the same numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .histories import Series, thin
from .pictures import WIDE_RANGE
from .readings import shown
from .text import printable, shortened

__all__ = ["LONGEST_NAME", "chart", "name_of", "table", "ticks"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 64, 10, 10, 30
LONGEST_NAME = 80
ROWS = 12  # of a table of numbers


def name_of(text: object, longest: int = LONGEST_NAME) -> str:
    """A name as HTML: whatever is in it is text, on one line, and not too long."""
    return html.escape(shortened(printable(text), longest), quote=True)


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers within bounds, some five of them.

    >>> ticks(0, 97, log=False), ticks(0.002, 150, log=True)
    ([0.0, 20.0, 40.0, 60.0, 80.0], [0.01, 0.1, 1.0, 10.0, 100.0])
    """
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first < 2:
            return [number for k in range(first - 1, last + 1) for m in (1, 2, 5) if low <= (number := float(f"{m}e{k}")) <= high]
        apart = max(1, (last - first) // 5)
        return [10.0**k for k in range(first, last + 1, apart)]
    raw = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    apart_by = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / apart_by - 1e-9)
    return [round(k * apart_by, 12) if abs(k * apart_by) > 1e-6 else k * apart_by for k in range(first, int(high / apart_by + 1e-9) + 1)]


def _scale(lines: Sequence[Series], nulls: Iterable[float]) -> tuple[float, float, bool, str]:
    """Bounds of the axis of values, whether it is logarithmic, and a word on it."""
    known = [np.concatenate([each.low, each.high]) for each in lines]
    values = np.concatenate([*known, np.array(list(nulls), float)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low > 0 and high > WIDE_RANGE * low:
        return low * 0.9, high * 1.1, True, "logarithmic"
    if 0 <= low < 0.6 * high or low == high == 0:
        return 0.0, high * 1.06 or 1.0, False, "from 0"
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + room, False, "does not start at 0" if low > 0 else "linear"


def chart(
    key: str, title: str, about: str, lines: Sequence[tuple[str, Series]], steps: tuple[float, float], *,
    nulls: Sequence[tuple[float, str]] = (), marks: Sequence[tuple[float, str, str]] = (), height: int = 170,
) -> str:  # fmt: skip
    """One chart as an SVG figure.

    Args:
        key: The id that its readout and its numbers are known by.
        title, about: What it shows, for everybody and for screen readers.
        lines: Labels and histories.
        steps: The axis of steps, which charts that stand above each other share.
        nulls: Horizontal lines and what they mean.
        marks: Vertical lines: step, kind, text.
    """
    first, last = steps
    low, high, log, axis = _scale([series for _, series in lines], [at for at, _ in nulls])
    span = (last - first) or 1.0
    depth = height - TOP - BOTTOM

    def across(step: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * min(max((step - first) / span, 0), 1):.1f}"

    def down(number: float) -> str:
        if log:
            part = (math.log(max(number, low)) - math.log(low)) / (math.log(high) - math.log(low))
        else:
            part = (number - low) / (high - low)
        return f"{TOP + depth * (1 - min(max(part, 0), 1)):.1f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{key}-t {key}-d" tabindex="0" data-chart="{key}" '
        f'data-left="{LEFT}" data-right="{WIDTH - RIGHT}" data-top="{TOP}" data-bottom="{height - BOTTOM}" '
        f'data-first="{first:.12g}" data-last="{last:.12g}">',
        f'<title id="{key}-t">{html.escape(title)}</title><desc id="{key}-d">{html.escape(about)}</desc>',
    ]
    for number in ticks(low, high, log):
        y = down(number)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y}" text-anchor="end" dy="4">{number:.4g}</text>')
    whole = [number for number in ticks(first, last, log=False) if number == int(number)]  # there are no halves of steps
    parts += [f'<text class="tick" x="{across(step)}" y="{height - BOTTOM + 15}" text-anchor="middle">{step:.10g}</text>' for step in whole]
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{height - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{height - 2}" text-anchor="end">step</text>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{height - 2}">axis of values: {axis}</text>')
    for step, kind, text in marks:
        parts.append(
            f'<path class="mark {kind}" d="M{across(step)} {TOP}V{height - BOTTOM}"><title>{name_of(text)} (step {step:.12g})</title></path>'
        )
    for number, (_, series) in enumerate(lines):
        for band, line in _paths(series, across, down):
            parts.append(f'<path class="band c{number % 8}" d="{band}"/><path class="line c{number % 8}" d="{line}"/>')
    for at, text in nulls:
        parts.append(f'<path class="null" d="M{LEFT} {down(at)}H{WIDTH - RIGHT}"><title>{html.escape(text)}</title></path>')
    parts.append(f'<path class="cursor" d="M0 {TOP}V{height - BOTTOM}" visibility="hidden"/></svg>')
    legend = "".join(f'<li><span class="swatch c{k % 8}" aria-hidden="true"></span>{name_of(label)}</li>' for k, (label, _) in enumerate(lines))
    legend += "".join(f'<li><span class="swatch dash" aria-hidden="true"></span>{html.escape(text)}: {shown(at)}</li>' for at, text in nulls)
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><ul class="legend">{legend}</ul><div class="plot">{"".join(parts)}</div>'
        f'<p class="readout" id="{key}-r" aria-live="polite">&#160;</p>{table(title, lines)}</figure>'
    )


def _paths(series: Series, across: Callable[[float], str], down: Callable[[float], str]) -> Iterable[tuple[str, str]]:
    """Of each unbroken stretch the outline of the band and the line of the means; each column at the middle of its steps."""
    whole = np.isfinite(series.mid) & np.isfinite(series.low) & np.isfinite(series.high)
    places = np.flatnonzero(whole)
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else ():
        xs = [across((float(series.first[k]) + float(series.last[k])) / 2) for k in run]
        upper = [f"{x} {down(float(series.high[k]))}" for x, k in zip(xs, run, strict=True)]
        lower = [f"{x} {down(float(series.low[k]))}" for x, k in zip(xs, run, strict=True)]
        middle = [f"{x} {down(float(series.mid[k]))}" for x, k in zip(xs, run, strict=True)]
        if len(run) == 1:
            middle.append(f"{float(xs[0]) + 1:.1f} {down(float(series.mid[run[0]]))}")  # a point that can be seen
        yield f"M{'L'.join(upper + lower[::-1])}Z", f"M{'L'.join(middle)}"


def table(title: str, lines: Sequence[tuple[str, Series]]) -> str:
    """The numbers of a chart in a few rows, for whoever does not see it."""
    rows = []
    for label, series in lines:
        few = thin(series, ROWS)
        for first, last, *values in zip(*few, strict=True):
            steps = f"{first}" if first == last else f"{first} to {last}"
            cells = "".join(f"<td>{shown(float(each))}</td>" for each in values)
            rows.append(f'<tr><th scope="row">{name_of(label)}</th><td>{steps}</td>{cells}</tr>')
    head = "".join(f'<th scope="col">{text}</th>' for text in ("series", "steps", "least", "mean", "greatest"))
    body = f"<table><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<details><summary>The numbers as a table</summary>{body}</details>"
