"""Charts in plain SVG: lines with bands from the least to the greatest value, on honest axes; and tables of the same numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .figures import Lines, Plane
from .histories import Series, thin
from .text import printable, shortened, shown

__all__ = ["LONGEST_NAME", "chart", "name_of", "plane", "table", "ticks"]

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


def chart(key: str, figure: Lines) -> str:
    """Lines as an SVG figure; ``key`` is the id that its readout and its numbers are known by."""
    first, last = figure.steps
    axis = figure.axis
    span = (last - first) or 1.0
    depth = figure.height - TOP - BOTTOM

    def across(step: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * min(max((step - first) / span, 0), 1):.1f}"

    def down(number: float) -> str:
        return f"{TOP + depth * (1 - axis.part(number)):.1f}"

    parts = _begin(key, figure.title, figure.about, figure.height, f'data-chart="{key}" data-first="{first:.12g}" data-last="{last:.12g}"')
    whole = [number for number in ticks(first, last, log=False) if number == int(number)]  # there are no halves of steps
    marked = [(across(step), f"{step:.10g}") for step in whole]
    parts += _frame(figure.height, marked, [(down(each), f"{each:.4g}") for each in ticks(axis.low, axis.high, axis.log)])
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{figure.height - 2}" text-anchor="end">step</text>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{figure.height - 2}">axis of values: {axis.word}</text>')
    for step, kind, text in figure.marks:
        upright = f"M{across(step)} {TOP}V{figure.height - BOTTOM}"
        parts.append(f'<path class="mark {kind}" d="{upright}"><title>{name_of(text)} (step {step:.12g})</title></path>')
    for number, (_, series, _) in enumerate(figure.lines):
        for band, line in _paths(series, across, down):
            parts.append(f'<path class="band c{number % 8}" d="{band}"/><path class="line c{number % 8}" d="{line}"/>')
    for number, forecast in figure.forecasts:
        step, value = figure.forecast_end(forecast)
        way = f"M{across(forecast.step)} {down(forecast.value)}L{across(step)} {down(value)}"
        parts.append(f'<path class="line ahead c{number % 8}" d="{way}"><title>forecast: 1 at step {forecast.crossing}</title></path>')
    for at, text in figure.nulls:
        parts.append(f'<path class="null" d="M{LEFT} {down(at)}H{WIDTH - RIGHT}"><title>{html.escape(text)}</title></path>')
    parts.append(f'<path class="cursor" d="M0 {TOP}V{figure.height - BOTTOM}" visibility="hidden"/></svg>')
    lines = [(label, series) for label, series, _ in figure.lines]
    beside = [f"{text}: {shown(at)}" for at, text in figure.nulls]
    return _end(key, figure.title, parts, [label for label, _ in lines], beside, bool(figure.forecasts), table(figure.title, lines))


def plane(key: str, figure: Plane) -> str:
    """Points that move in a plane, as an SVG figure."""
    height, (wide, deep) = 300, figure.axes()
    depth = height - TOP - BOTTOM

    def across(number: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * wide.part(number)

    def down(number: float) -> float:
        return TOP + depth * (1 - deep.part(number))

    ends = f'data-x-low="{wide.low:.6g}" data-x-high="{wide.high:.6g}" data-y-low="{deep.low:.6g}" data-y-high="{deep.high:.6g}"'
    parts = _begin(key, figure.title, figure.about, height, f'data-plane="{key}" {ends}')
    marked = [(f"{across(each):.1f}", f"{each:.4g}") for each in ticks(wide.low, wide.high, wide.log)]
    parts += _frame(height, marked, [(f"{down(each):.1f}", f"{each:.4g}") for each in ticks(deep.low, deep.high, deep.log)])
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{height - 2}" text-anchor="end">{html.escape(figure.across)}</text>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{height - 2}">upwards: {html.escape(figure.down)}; both axes logarithmic</text>')
    for factor, text in figure.diagonals:
        low, high = max(wide.low, deep.low / factor), min(wide.high, deep.high / factor)
        if low < high:
            way = f"M{across(low):.1f} {down(factor * low):.1f}L{across(high):.1f} {down(factor * high):.1f}"
            parts.append(f'<path class="null" d="{way}"><title>{html.escape(text)}</title></path>')
    for number, path in enumerate(figure.paths):
        points = [(across(x), down(y)) for x, y in zip(path.across.tolist(), path.down.tolist(), strict=True) if math.isfinite(x)]
        parts.append(f'<path class="line way c{number % 8}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')
        parts.append(f'<circle class="dot c{number % 8}" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="4"/>')
    parts.append('<circle class="cursor" r="6" visibility="hidden"/></svg>')
    beside = [f"{text}: {shown(factor)} of the gradient" for factor, text in figure.diagonals]
    return _end(key, figure.title, parts, [path.label for path in figure.paths], beside, False, "")


def _begin(key: str, title: str, about: str, height: int, data: str) -> list[str]:
    return [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{key}-t {key}-d" tabindex="0" {data} '
        f'data-left="{LEFT}" data-right="{WIDTH - RIGHT}" data-top="{TOP}" data-bottom="{height - BOTTOM}">',
        f'<title id="{key}-t">{html.escape(title)}</title><desc id="{key}-d">{html.escape(about)}</desc>',
    ]


def _frame(height: int, across: Iterable[tuple[str, str]], down: Iterable[tuple[str, str]]) -> list[str]:
    """Grid, ticks and axes."""
    parts = []
    for y, text in down:
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y}" text-anchor="end" dy="4">{text}</text>')
    for x, text in across:
        anchor = "end" if float(x) > WIDTH - RIGHT - 20 else "middle"  # within the picture
        parts.append(f'<text class="tick" x="{x}" y="{height - BOTTOM + 15}" text-anchor="{anchor}">{text}</text>')
    return [*parts, f'<path class="axis" d="M{LEFT} {TOP}V{height - BOTTOM}H{WIDTH - RIGHT}"/>']


def _end(key: str, title: str, parts: list[str], labels: Sequence[str], beside: Sequence[str], ahead: bool, numbers: str) -> str:
    """The figure around the picture: its caption, legend, readout and table."""
    legend = "".join(f'<li><span class="swatch c{k % 8}" aria-hidden="true"></span>{name_of(label)}</li>' for k, label in enumerate(labels))
    legend += "".join(f'<li><span class="swatch dash" aria-hidden="true"></span>{html.escape(text)}</li>' for text in beside)
    legend += '<li><span class="swatch dots" aria-hidden="true"></span>forecast</li>' if ahead else ""
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><ul class="legend">{legend}</ul><div class="plot">{"".join(parts)}</div>'
        f'<p class="readout" id="{key}-r" aria-live="polite">&#160;</p>{numbers}</figure>'
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
            middle.append(f"{float(xs[0]) + 6:.1f} {down(float(series.mid[run[0]]))}")  # a point that can be seen
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
