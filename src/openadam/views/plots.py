"""The figures of a report as picture files, drawn by matplotlib: lines, planes, heatmaps of the tensors, histograms."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ..record import Session
from ..studies import demo_module
from .figures import LABELS, Axis, Lines, Mark, Plane, Sight, axis_of
from .histograms import Spread
from .histograms import words as in_words
from .histories import Series, by_trouble
from .pictures import COLOURS, check_picture_format
from .report import MOST_TRACKS, chosen_tracks
from .text import printable, shortened, shown

__all__ = ["plots"]

COLUMNS, MOST_MARKS, MOST_ROWS, LONGEST_NAME = 200, 30, 40, 40
NEAR = 30  # octaves from the bins: a line further away would leave them no room
HEATMAPS = ("surprise", "direction", "disagreement", "eps_share", "update_weight", "noise_scale")
PLAIN = {
    "text.usetex": False, "text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "openadam",
}  # fmt: skip
"""Whatever is set for other pictures; a name with a dollar in it is a name."""


def plots(session: Session, track: str | None, kind: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name of each picture, fit for a file, and what draws it.

    Args:
        session: What `openadam.record.load` gave.
        track: Only this optimizer.
        kind: ``png``, ``svg`` or ``pdf``.

    Raises:
        RecordError: There is no such track.
        ImportError: There is no matplotlib; the message says what to install.
    """
    check_picture_format(f".{kind}")
    demo_module("matplotlib")
    _, chosen = chosen_tracks(session, track)
    names: set[str] = set()
    for number, each in enumerate(chosen[:MOST_TRACKS]):
        start = re.sub(r"[^A-Za-z0-9]+", "-", each.name).strip("-")[:40] or "optimizer"
        start = start if start.lower() not in names else f"{start}-{number}"
        names.add(start.lower())  # of files that differ in case alone some systems keep one
        tensors = [name for name, _ in by_trouble(each)]
        seen = Sight(each, tensors[:MOST_ROWS], COLUMNS, MOST_MARKS)
        for name, figure in seen.figures.items():
            yield f"{start}-{name}", partial(_saved, each.name, _lines if isinstance(figure, Lines) else _plane, figure, kind)
        for name in HEATMAPS:
            if name in seen.told:
                yield f"{start}-heat-{name.replace('_', '-')}", partial(_saved, each.name, partial(_heat, name), seen, kind)
        for place, (tensor, spreads) in enumerate(seen.spreads.items(), 1):
            yield f"{start}-histograms-{place}", partial(_saved, each.name, partial(_histograms, tensor), spreads, kind)


def _saved(track: str, draw: Callable[[Any, Any], None], what: Any, kind: str) -> bytes:
    with demo_module("matplotlib").rc_context(PLAIN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        figure = demo_module("matplotlib.figure").Figure(layout="constrained", dpi=130)
        draw(figure, what)
        figure.supxlabel(f"optimizer {_name(track)}", fontsize=8, color="#555555", x=0.99, ha="right")
        file = io.BytesIO()
        metadata = {"Software": "openadam report"} if kind == "png" else {"Creator": "openadam report", **({"Date": None} if kind == "svg" else {})}
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def _name(text: str) -> str:
    return shortened(printable(text), LONGEST_NAME)


def _legend(figure: Any, handles: list[Any], labels: list[str]) -> None:
    figure.legend(handles, [f"\u200b{label}" for label in labels], loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _plain_ticks(axis: Any) -> None:
    """Powers of ten as numbers: they would be formulas, which names must not be taken for."""
    ticker = demo_module("matplotlib.ticker")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _dress(axes: Any, across: Axis | None, down: Axis) -> None:
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    for axis, set_scale, set_limits in ((across, axes.set_xscale, axes.set_xlim), (down, axes.set_yscale, axes.set_ylim)):
        if axis is not None:
            set_scale("log" if axis.log else "linear")
            set_limits(axis.low, axis.high)
            if axis.log:
                _plain_ticks(axes.xaxis if axis is across else axes.yaxis)


def _begin(figure: Any, title: str, width: float, height: float) -> Any:
    figure.set_size_inches(width, height)
    figure.suptitle(title, fontsize=10)
    return figure.subplots()


def _mark(axes: Any, marks: list[Mark]) -> None:
    for mark in marks:
        axes.axvline(mark.step, color="#b00020" if mark.kind in ("failed", "alarm") else "#777777", linestyle=":", linewidth=1)


def _lines(figure: Any, lines: Lines) -> None:
    axes = _begin(figure, lines.title, 9, 4)
    _dress(axes, None, lines.axis)
    axes.set_xlim(lines.steps[0], max(lines.steps[1], lines.steps[0] + 1))
    axes.set(xlabel="step", ylabel=f"axis of values: {lines.axis.word}")
    _mark(axes, lines.marks)
    handles, labels = [], []
    for k, (label, series, _) in enumerate(lines.lines):
        middle = (np.asarray(series.first, float) + series.last) / 2
        marker = {"marker": "."} if np.isfinite(series.mid).sum() < 3 else {}
        handles += axes.plot(middle, series.mid, color=COLOURS[k % 8], linewidth=1.4, **marker)
        axes.fill_between(middle, series.low, series.high, color=COLOURS[k % 8], alpha=0.18, linewidth=0)
        labels.append(_name(label))
    for k, forecast in lines.forecasts:
        step, value = lines.forecast_end(forecast)
        ahead = axes.plot([forecast.step, step], [forecast.value, value], color=COLOURS[k % 8], linestyle=(0, (1, 2)), linewidth=1.8)
        handles, labels = ([*handles, *ahead], [*labels, "forecast"]) if "forecast" not in labels[len(lines.lines) :] else (handles, labels)
    for at, text in lines.nulls:
        handles.append(axes.axhline(at, color="black", linestyle="--", linewidth=1))
        labels.append(f"{text}: {shown(at)}")
    _legend(figure, handles, labels)


def _plane(figure: Any, plane: Plane) -> None:
    axes = _begin(figure, plane.title, 7, 5.5)
    across, down = plane.axes()
    _dress(axes, across, down)
    axes.set(xlabel=plane.across, ylabel=plane.down)
    handles, labels = [], []
    for k, path in enumerate(plane.paths):
        handles += axes.plot(path.across, path.down, color=COLOURS[k % 8], linewidth=1, alpha=0.8)
        last = int(np.flatnonzero(np.isfinite(path.across))[-1])
        axes.plot(path.across[last], path.down[last], marker="o", color=COLOURS[k % 8])
        labels.append(_name(path.label))
    for factor, text in plane.diagonals:
        ends = np.array([across.low, across.high])
        handles += axes.plot(ends, factor * ends, color="black", linestyle="--", linewidth=1)
        labels.append(f"{text}: {shown(factor)} of the gradient")
    _legend(figure, handles, labels)


def _heat(name: str, figure: Any, seen: Sight) -> None:
    axes = _begin(figure, f"{LABELS[name].label} of each tensor, the one in most trouble first", 9, 1.6 + 0.19 * len(seen.tensors))
    values = np.array([seen.series[k, name].mid for k in seen.places])
    scale = "log" if axis_of(values).log else "linear"
    grid: Series = seen.grid
    edges = np.append(grid.first, grid.last[-1] + 1).astype(float)
    if not (np.diff(edges) > 0).all():  # steps that were counted anew
        edges = np.arange(len(edges), dtype=float)
    drawn = axes.pcolormesh(edges, np.arange(len(values) + 1), values, cmap="cividis", norm=scale, rasterized=True)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(values)) + 0.5, [_name(each) for each in seen.tensors], fontsize=7)
    axes.set_xlabel("step")
    _plain_ticks(figure.colorbar(drawn, ax=axes, label="logarithmic" if scale == "log" else scale).ax.yaxis)


def _histograms(tensor: str, figure: Any, spreads: list[Spread]) -> None:
    figure.set_size_inches(9, 3 * len(spreads) + 0.4)
    figure.suptitle(f"Histograms of {_name(tensor)}, by octaves", fontsize=10)
    panels = figure.subplots(len(spreads), 2, width_ratios=[3, 1], squeeze=False, sharey="row")
    for (over, last), spread in zip(panels, spreads, strict=True):
        over.set_title(f"{spread.label}. {in_words(spread)}", fontsize=7, loc="left", wrap=True)
        if len(spread.edges) > 1:
            steps = np.array(spread.steps, float)
            end = steps[-1] + ((steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 1)
            columns = np.append(steps, end) if (np.diff(steps) > 0).all() else np.arange(len(steps) + 1.0)
            over.pcolormesh(columns, spread.edges, np.sqrt(spread.shares.T), cmap="Blues", rasterized=True)
            last.stairs(spread.shares[-1], spread.edges, orientation="horizontal", fill=True, color=COLOURS[0], alpha=0.7, label="last")
            last.stairs(spread.shares[0], spread.edges, orientation="horizontal", color="black", label="first")
            over.set_yscale("log")
            _plain_ticks(over.yaxis)
            for axes in (over, last):
                if spread.line is not None and spread.line / spread.edges[0] > 2**-NEAR and spread.line / spread.edges[-1] < 2**NEAR:
                    axes.axhline(spread.line, color="black", linestyle="--", linewidth=1)
            if spread.line is not None:
                over.set_ylabel(f"dashed: {spread.line_label} {shown(spread.line)}", fontsize=8)
            last.legend(fontsize=7, frameon=False)
        over.set_xlabel("step")
        last.set_xlabel("share of the elements")
