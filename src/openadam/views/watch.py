"""The live view of a recording in the terminal: a header, tensors sorted by trouble, findings and what happened; or a plain line."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..extras import module
from ..readings import Limits, trouble
from ..record import Finding, Session, TrackData
from ..record.settings import groups_of
from ..theory import betas_of
from .histories import READINGS, happened, histories, latest, limits_of, mean, null_of, overhead, scalar
from .text import printable, shortened, shown

__all__ = ["Findings", "News", "line", "screen", "sparkline"]

BARS = "▁▂▃▄▅▆▇█"
GAP = "·"
SIGNS = {"alarm": "!", "look": "?", "fine": "", "unknown": ""}
COLOURS = {"alarm": "bold red", "look": "yellow", "fine": "", "unknown": ""}
RECENT = 5.0  # seconds over which the speed is told
GAUGE, SPARK = 6, 12  # characters
DRAWN = 130  # columns that have room for small pictures in the table
RMS_SCALE = (math.log(0.25), math.log(32))  # up to the cap of RMS_t at beta2 = 0.999
PATIENCE = 20  # times as long as findings took to make, until they are made again


class Column(NamedTuple):
    reading: str
    head: str
    narrowest: int  # terminal that has room for it


class Ranking(NamedTuple):
    """The tensors of an optimizer, the one in most trouble first: their names, trouble, readings and their limits."""

    names: list[str]
    scores: list[float]
    readings: dict[str, Any]
    limits: dict[str, Limits]


COLUMNS = (
    Column("direction", "dir", 0),
    Column("surprise", "RMS_t", 0),
    Column("disagreement", "dis-null", 0),
    Column("update_weight", "upd/w", 60),
    Column("eps_share", "eps", 52),
    Column("grad_rms", "rms g", 80),
    Column("spikes", "spikes", 90),
    Column("swallowed", "swallowed", 110),
)


def sparkline(values: Sequence[float], width: int, bounds: tuple[float, float] | None = None) -> str:
    """The values in so many characters, from their least to their greatest, or within bounds.

    >>> sparkline([1, 2, 3, 2, 1, math.nan], 6)
    '▁▅█▅▁·'
    """
    known = np.asarray(values, float)
    if not np.isfinite(known).any() or width < 1:
        return ""
    means = np.array([mean(part) for part in np.array_split(known, min(width, len(known)))])
    there = np.isfinite(means)
    low, high = bounds or (float(means[there].min()), float(means[there].max()))
    shares = np.zeros(len(means)) if high == low else (np.where(there, means, low) - low) / (high - low)
    places = np.clip(shares * len(BARS), 0, len(BARS) - 1).astype(int)
    return "".join(BARS[k] if here else GAP for k, here in zip(places, there, strict=True))


class Findings:
    """What the doctor finds in a recording that grows: made anew now and then, so that they take a small part of the time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._found: list[Finding] = []
        self._again = 0.0

    def __call__(self) -> list[Finding]:
        """The latest first."""
        if (began := time.monotonic()) >= self._again:
            self._found = sorted(self.session.diagnose(), key=lambda each: -(each.first_step or 0))
            ended = time.monotonic()
            self._again = ended + PATIENCE * (ended - began)
        return self._found


def screen(session: Session, track: str | None, width: int, height: int, findings: Sequence[Finding] = ()) -> Any:
    """The view as something that rich prints in so many columns and some so many lines."""
    group = module("rich.console", "demo").Group
    chosen = _chosen(session, track)
    parts: list[Any] = []
    room = max(4, height // max(len(chosen), 1))
    for each in chosen:
        parts += _panel(session, each, width, room, [finding for finding in findings if finding.track == each.name])
    return group(*parts) if parts else _text("Nothing is recorded yet.")


class News:
    """What happens in a recording that grows, as lines: each once, in its order."""

    def __init__(self, track: str | None) -> None:
        self._track = track
        self._told: set[tuple[Any, ...]] = set()

    def __call__(self, session: Session) -> list[str]:
        """What has not been told yet."""
        lines = []
        for each in _chosen(session, self._track):
            for event in reversed(happened(each)):
                key = (each.name, event.kind, event.step, event.text)
                if key not in self._told:
                    self._told.add(key)
                    lines.append(f"{printable(each.name)}: step {event.step}  {event.word}: {printable(event.in_full)}")
        return lines


def line(session: Session, track: str | None) -> str:
    """The view on one line."""
    parts = []
    for each in _chosen(session, track):
        ranking = _ranked(each)
        told = [f"step {'–' if each.last_step is None else each.last_step}", *([session.state] if session.is_over else [])]
        told += [*(f"{name} {number}" for name, number in _numbers(each))]
        told += [*filter(None, [_speed_of(each)]), *_cost(each)]
        if ranking.names and ranking.scores[0] > 0:
            values = ", ".join(f"{column.head} {_cell(ranking, column, 0)}" for column in COLUMNS[:5])
            told.append(f"worst {printable(ranking.names[0])}: {values}")
        words = [event.word for event in happened(each)]
        told += [f"{words.count(word)} {word}" for word in ("skipped", "refused", "stopped") if word in words]
        parts.append(f"{printable(each.name)}: " + "  ".join(told))
    return " | ".join(parts) or "nothing is recorded yet"


# --- one optimizer -----------------------------------------------------------------------------------------------------


def _panel(session: Session, track: TrackData, width: int, height: int, findings: Sequence[Finding]) -> list[Any]:
    ranking = _ranked(track)
    names = ranking.names
    state = session.state if session.is_over else _silence(track)
    head = _text(f"{printable(track.name)}  step {'–' if track.last_step is None else track.last_step}  {state}  {_speed_of(track)}", "bold")
    lines = [head, _text("  ".join([*(f"{name} {number}" for name, number in _numbers(track)), *_cost(track)]))]
    loss = scalar(track, "loss")
    if loss is not None:
        lines.append(_text(f"loss {sparkline(loss.mid.tolist(), max(8, width - 6))}"))
    if (memory := _memory(track, width)) and height >= 16:
        lines.append(_text(memory))
    events = _news(track, findings, max(1, min(8, height // 3)), width)
    shown_rows = max(1, height - len(lines) - len(events) - 4)
    if names:
        lines.append(_table(track, ranking, shown_rows, width))
        left = len(names) - shown_rows
        lines.append(_text("! beyond its threshold now  ? half-way there" + (f"  and {left} more" if left > 0 else ""), "dim"))
        lines.append(_text("dir: 1 where all signs stay" + _noise(track, names), "dim"))
    else:
        lines.append(_text("no step was measured yet", "dim"))
    return [*lines, *events]


def _table(track: TrackData, ranking: Ranking, rows: int, width: int) -> Any:
    names = ranking.names[:rows]
    made = module("rich.table", "demo").Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    columns = [column for column in COLUMNS if column.narrowest <= width]
    cells = [[_cell(ranking, column, k) for column in columns] for k in range(len(names))]
    wide, drawn = width >= 66, width >= DRAWN
    if drawn:
        gauges = [
            _gauge(float(ranking.readings["direction"][k]), float(np.nan_to_num(ranking.limits["direction"].null[k]))) for k in range(len(names))
        ]
        cells = [[f"{gauge} {first}", *others] for gauge, (first, *others) in zip(gauges, cells, strict=True)]
    widths = [max([len(column.head), *(len(row[at]) for row in cells)]) + 1 for at, column in enumerate(columns)]
    taken = sum(widths) + (9 if wide else 0) + (SPARK + 1 if drawn else 0)
    made.add_column("tensor", no_wrap=True, width=max(6, min(max(len("tensor"), *(len(printable(name)) for name in names)), width - taken - 1)))
    if wide:
        made.add_column("n", justify="right", no_wrap=True)
    for column in columns:
        made.add_column(column.head, justify="right", no_wrap=True)
    if drawn:
        made.add_column("RMS_t so far", no_wrap=True)
    surprise = histories(track, names)[2]["surprise"][1] if drawn else None
    room = made.columns[0].width
    for k, name in enumerate(names):
        size = track.tensors[name].get("elements")
        states = [_state(ranking, column, k) for column in columns]
        row = [_text(cell, COLOURS[state]) for cell, state in zip(cells[k], states, strict=True)]
        row += [] if surprise is None else [_text(sparkline(_log(surprise[:, k]).tolist(), SPARK, RMS_SCALE))]
        made.add_row(_text(shortened(printable(name), room)), *([_text(_count(size))] if wide else []), *row)
    return made


def _cell(ranking: Ranking, column: Column, k: int) -> str:
    """A reading as text, with a sign that does without colour where it is beyond its limits."""
    reading, number, none = READINGS[column.reading], float(ranking.readings[column.reading][k]), float(ranking.limits[column.reading].null[k])
    text = "nan" if math.isnan(number) and ranking.readings["nonfinite"][k] > 0 else shown(number, reading.share)
    if column.reading == "disagreement":
        text = text if np.isnan(none) or np.isnan(number) else f"{number - none:+.2f}"
    return SIGNS[_state(ranking, column, k)] + text


def _state(ranking: Ranking, column: Column, k: int) -> str:
    if ranking.readings["nonfinite"][k] > 0:
        return "alarm"
    return ranking.limits[column.reading].at(k).level(float(ranking.readings[column.reading][k]))


def _ranked(track: TrackData) -> Ranking:
    """Tensors that were measured, the one in most trouble first."""
    names = list(track.tensors)
    readings, buckets = latest(track, names)
    known = [k for k in range(len(names)) if any(np.isfinite(values[k]) for values in readings.values())]
    scores = trouble(readings, limits_of(track, names, buckets))
    order = sorted(known, key=lambda k: -scores[k])
    ranked = [names[k] for k in order]
    known_of = {name: values[order] for name, values in readings.items()}
    return Ranking(ranked, [float(scores[k]) for k in order], known_of, limits_of(track, ranked, buckets))


def _numbers(track: TrackData) -> list[tuple[str, str]]:
    """The last numbers of whole steps, as far as they were told."""
    rates = [name for name in track.scalars if name == "lr" or name.startswith("lr ")]
    told = []
    for name, label in (("loss", "loss"), ("grad_norm", "|g|"), ("clip_factor", "clip"), *((rate, rate) for rate in rates[:2])):
        series = scalar(track, name)
        if series is not None:
            told.append((label, shown(float(series.mid[-1])) if math.isfinite(series.mid[-1]) else "nan"))
    return told


def _speed(track: TrackData) -> float | None:
    """Steps a second, of the last seconds."""
    name = next((name for name in ("grad_norm", "lr", "loss", "skipped") if name in track.scalars), None)
    if name is None:
        return None
    table = track.scalar(name)
    if len(table) < 2:
        return None
    start = min(int(np.searchsorted(table["time"], table["time"][-1] - RECENT)), len(table) - 2)
    seconds, steps = float(table["time"][-1] - table["time"][start]), int(table["last"][-1] - table["last"][start])
    return steps / seconds if seconds > 0 and steps > 0 else None


def _silence(track: TrackData) -> str:
    """A word on a run that tells nothing any more."""
    times = [float(table["time"][-1]) for name in track.scalars[:4] if len(table := track.scalar(name))]
    quiet = time.time() - max(times, default=time.time())
    return f"no news for {quiet:.0f} s" if quiet > 10 else "running"


def _noise(track: TrackData, names: list[str]) -> str:
    known = null_of(track, READINGS["direction"], names)
    known = known[np.isfinite(known)]
    return f", {known[0]:.3g} of noise alone" if len(known) and (known == known[0]).all() else ""


def _speed_of(track: TrackData) -> str:
    speed = _speed(track)
    return f"{speed:.3g} steps/s" if speed is not None else ""


def _cost(track: TrackData) -> list[str]:
    """What recording takes of the run, as far as it is known."""
    cost = overhead(track)
    return [] if cost is None else [f"recording {'<0.1' if cost.share < 1e-3 else f'{100 * cost.share:.2g}'}%"]


def _memory(track: TrackData, width: int) -> str:
    """How many of the steps that the moments remember have been taken, and the factor of bias correction; of the first group."""
    groups, t = groups_of(track.about), track.last_step
    betas = dict(zip(("m", "v"), betas_of(groups[0]), strict=True)) if groups else {}
    if not t or not all(0 < beta < 1 for beta in betas.values()):
        return ""
    spans = {name: 1 / (1 - beta) for name, beta in betas.items()}
    told = [f"{name} {_gauge(t / span)} {min(t, round(span))}/{span:.0f}" for name, span in spans.items()]
    if betas and "off" not in str(track.about.get("rule", "")).split("_"):
        told.append(f"c_t {(1 - betas['v'] ** t) ** 0.5 / (1 - betas['m'] ** t):.3g}")
    return ("  " if width >= 60 else " ").join(["memory", *told]) if told else ""


def _log(values: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.log(values)


def _gauge(part: float, low: float = 0.0, high: float = 1.0) -> str:
    """A bar from one value to another."""
    if not np.isfinite(part):
        return ""
    filled = round(GAUGE * min(max((part - low) / (high - low), 0.0), 1.0)) if high > low else 0
    return "━" * filled + "┄" * (GAUGE - filled)


def _news(track: TrackData, findings: Sequence[Finding], most: int, width: int) -> list[Any]:
    """Findings with evidence and remedy, marks, and steps that were not taken: the latest first."""
    told: list[tuple[int, list[Any]]] = []
    for each in findings:
        where = f"{printable(shortened(each.tensor, 30))}: " if each.tensor is not None else ""
        head = f"step {each.first_step if each.first_step is not None else '–'}  {each.id} {where}{each.title}"
        style = "yellow" if each.severity == "hint" else "bold red"
        sign = "?" if each.severity == "hint" else "!"
        lines = [_text(f"{sign} {printable(head)}", style), _text(f"    {printable(each.seen)}"), _text(f"    → {printable(each.remedy)}")]
        told.append((each.first_step or 0, lines))
    told_of = {each.id for each in findings}
    for event in [each for each in happened(track) if each.evidence is None or each.evidence.get("rule") not in told_of][:most]:
        text = f"{'  ' if event.kind == 'event' else '! '}step {event.step}  {event.word}: {printable(event.in_full)}"
        told.append((event.step, [_text(text, "" if event.kind == "event" else "bold red" if event.kind == "alarm" else "yellow")]))
    told.sort(key=lambda pair: (pair[1][0].plain.startswith("?"), -pair[0]))  # hints come last
    lines = [line for _, group in told for line in group]
    if len(lines) > most:  # then all of them in short, before one of them in full
        lines = [group[0] for _, group in told]
    return lines[:most] + ([_text(f"  {len(lines) - most} more: openadam doctor", "dim")] if len(lines) > most else [])


def _chosen(session: Session, track: str | None) -> list[TrackData]:
    """The tracks that are shown; one that is named may yet come."""
    return [each for name, each in session.tracks.items() if track is None or name == track]


def _text(text: str, style: str = "") -> Any:
    return module("rich.text", "demo").Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _count(size: Any) -> str:
    if not isinstance(size, int):
        return "–"
    for unit, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if size >= 10 * unit:
            return f"{size / unit:.3g}{suffix}"
    return str(size)
