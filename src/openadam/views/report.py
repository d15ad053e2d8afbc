"""The report of a recording: one HTML file with all it needs in it, drawn by hand, that opens from a disk without a network."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._version import __version__
from ..errors import RecordError
from ..readings import Reading
from ..record import Finding, Session, TrackData, by_disease
from ..record.settings import groups_of
from .charts import LONGEST_NAME, chart, name_of, plane
from .figures import LABELS, Lines, Plane, Sight, noise_in_words
from .histograms import Spread
from .histograms import words as in_words
from .histories import READINGS, Happening, Series, by_trouble, limits_of, mean, overhead_in_words
from .text import shortened, shown

__all__ = ["LARGEST", "chosen_tracks", "report"]

LARGEST = 950_000  # bytes of a page
BUDGETS = (3000, 1800, 900, 400, 150, 48)  # tensors x columns that a page holds; a smaller one is taken where names and texts leave no room
COLUMNS = (8, 200)  # of a tensor's history, at least and at most
MOST_TRACKS, MOST_TENSORS, MOST_SPREADS, MOST_FINDINGS, SHOWN_FINDINGS = 8, 150, 12, 100, 3
MOST_EVENTS, MOST_MARKS, LONGEST_TEXT = 200, 30, 300

CARDS = ("nonfinite", "surprise", "direction", "disagreement", "eps_share", "update_weight", "spikes", "swallowed")
NOT_ENDED = {"running": "running when this was written", "killed": "never ended: its process is gone", "open": "not ended when this was written"}
WORDS = {"alarm": "Alarm", "look": "Worth a look", "fine": "Fine", "unknown": "Nothing to hold it against"}
TIMELINES = (
    "Bands reach from the least to the greatest value of the steps that share a column, lines are their means; of roots and ratios, the line is that "
    "of the means. Move the pointer over a chart, or focus it and use the arrow keys. Dotted uprights are marks, skips, failures and alarms."
)
PHASE = "Where gradient and first moment part, steps go by what was: above the line of the first figure, above both lines of the second."
NOISE_MEANS = (
    "The noise scale is the batch whose noise is as large as its signal: with batches far below it, larger ones (or averaging) make better steps; "
    "with batches far above it they gain little. The estimate takes it that gradients drift more slowly than v̂ forgets."
)


def report(session: Session, track: str | None = None, batch_size: int | None = None) -> str:
    """The page, as HTML of at most `LARGEST` bytes.

    Args:
        session: What `openadam.record.load` gave.
        track: Only this optimizer.
        batch_size: How many samples a gradient is of, to tell the noise scale in samples too: no optimizer knows.

    Raises:
        RecordError: There is no such track.
    """
    every, chosen = chosen_tracks(session, track)
    ranks = [by_trouble(each) for each in chosen]
    page = ""
    for budget in BUDGETS:
        page = _Page(session, every, chosen, ranks, budget, batch_size).html
        if len(page.encode()) <= LARGEST:
            return page
    raise RecordError(f"{session.path!r} holds names or settings that are too long for a report: take one track of it")


def chosen_tracks(session: Session, track: str | None) -> tuple[list[TrackData], list[TrackData]]:
    """All tracks that are asked for, and those of them that there is room for.

    Raises:
        RecordError: There is no such track.
    """
    if track is not None and track not in session.tracks:
        raise RecordError(f"there is no track {track!r}; there are {', '.join(map(repr, list(session.tracks)[:20])) or 'none'}")
    every = list(session.tracks.values()) if track is None else [session.tracks[track]]
    return every, every[:MOST_TRACKS]


class _Page:
    """One attempt at the page, with so much room for numbers."""

    def __init__(
        self, session: Session, every: Sequence[TrackData], chosen: Sequence[TrackData], ranks: Sequence[Sequence[tuple[str, float]]], budget: int,
        batch_size: int | None,
    ) -> None:  # fmt: skip
        self.session, self.budget, self.batch_size = session, budget // max(len(chosen), 1), batch_size
        self.data: dict[str, Any] = {
            "name": os.path.basename(session.path), "openadam": __version__, "about": session.about, "started": session.started,
            "ended": session.ended, "readings": {name: {"label": each.label, "meaning": each.meaning} for name, each in LABELS.items()},
            "tracks": [], "charts": {},
        }  # fmt: skip
        body = [_head(session, every, chosen), _findings(session)]
        body += [self._track(number, each, rank) for number, (each, rank) in enumerate(zip(chosen, ranks, strict=True))]
        body.append(
            '<section aria-labelledby="raw"><h2 id="raw">Raw data</h2><p>What this page draws, as files; of each column the first and last step, the '
            "least, mean and greatest value. The whole recording is handed on by <code>openadam export</code>.</p>"
            '<p><button type="button" data-file="json" hidden>Save as JSON</button> '
            '<button type="button" data-file="csv" hidden>Save as CSV</button></p>'
            "<noscript><p>Files, values under the pointer and heatmaps need JavaScript; everything else does without.</p></noscript></section>"
        )
        self.html = _document(f"Report of {self.data['name']}", "".join(body), self.data)

    def _track(self, number: int, track: TrackData, rank: Sequence[tuple[str, float]]) -> str:
        room = max(1, min(MOST_TENSORS, self.budget // COLUMNS[0]))
        tensors = [name for name, _ in rank[:room]]
        columns = max(COLUMNS[0], min(COLUMNS[1], self.budget // max(len(tensors), 1)))
        most_events = max(10, min(MOST_EVENTS, self.budget // 4))
        seen = Sight(track, tensors, columns, min(MOST_MARKS, most_events // 4), max(1, min(MOST_SPREADS, self.budget // 250)))
        self.data["tracks"].append({
            "name": track.name, "about": {**track.about, "groups": _groups(track)}, "steps": track.steps, "observed": track.observed,
            "scalars": {name: {"first": each.first, "last": each.last, **_bounds(each)} for name, each in seen.scalars.items()},
            "first": seen.grid.first, "last": seen.grid.last,
            "tensors": [
                {"name": name, **{key: track.tensors[name].get(key) for key in ("shape", "dtype", "elements", "group")},
                 "values": {key: _bounds(seen.series[k, key]) for key in seen.told}}
                for k, name in enumerate(tensors)
            ],
            "histograms": [{"tensor": name, "spreads": [_spread(each) for each in own]} for name, own in seen.spreads.items()],
            "events": [
                {"step": each.step, "kind": each.kind, "tensor": each.tensor, "text": each.in_full[:LONGEST_TEXT]}
                for each in seen.events[:most_events]
            ],
        })  # fmt: skip
        drawn = {name: self._figure(number, name, figure) for name, figure in seen.figures.items()}

        def section(title: str, note: str, *names: str) -> str:
            body = "".join(drawn.get(name, "") for name in names)
            return f'<h3>{title}</h3><p class="note">{note}</p>{body}' if body else ""

        cards = _cards(seen) if len(seen.first) else []
        cost = "; ".join(filter(None, [f"{len(track.tensors)} tensors", overhead_in_words(track)]))
        parts = [
            f'<section class="track" aria-labelledby="t{number}"><h2 id="t{number}">Optimizer {name_of(track.name)}</h2>',
            f"<p>{track.steps} steps told of, {track.observed} of them with their tensors measured; {cost}.</p>",
            _settings(track),
            '<h3>Readings</h3><p class="note">Means over the last quarter of what was recorded, of the tensor where they are highest, '
            'beside what healthy training or gradients of pure noise give.</p><ul class="cards">' + "".join([_counts(seen.events), *cards]) + "</ul>",
            section("Timelines", TIMELINES, "loss", "grad", "update", "lr", "direction", "surprise"),
            self._heat(number, seen, len(track.tensors)),
            self._histograms(number, seen),
            section("First moment against gradient", PHASE, "disagreement", "phase"),
            section("eps", _eps(seen), "epsway", "epsratio", "epsshare"),
            section("Size of the parameters", _decay(seen), "paramnorm", "param", "rotation"),
            section("Noise scale", f"{noise_in_words(seen.latest_noise, self.batch_size)} {NOISE_MEANS}", "noise"),
            _event_list(seen.events, most_events),
            "</section>",
        ]
        return "".join(parts)

    def _figure(self, number: int, name: str, figure: Lines | Plane) -> str:
        key = f"t{number}-{name}"
        self.data["charts"][key] = [[shortened(label, LONGEST_NAME), number, *where] for label, where in figure.references]
        return chart(key, figure) if isinstance(figure, Lines) else plane(key, figure)

    def _histograms(self, number: int, seen: Sight) -> str:
        if not seen.spreads:
            return ""
        options = "".join(f'<option value="{k}">{name_of(name)}</option>' for k, name in enumerate(seen.spreads))
        rows = "".join(
            f'<tr><th scope="row">{name_of(name)}</th><td>{html.escape(each.label)}</td><td>{html.escape(in_words(each))}</td></tr>'
            for name, own in seen.spreads.items()
            for each in own
        )
        head = "".join(f'<th scope="col">{text}</th>' for text in ("tensor", "of", "the last histogram"))
        caption = "<caption>Values within an octave are taken to be spread evenly</caption>"
        table = f'<table class="texts">{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        some = f" These are the {len(seen.spreads)} in most trouble." if len(seen.track.tensors) > len(seen.spreads) else ""
        return (
            '<h3>Histograms</h3><p class="note">How the elements of a tensor are spread, by octaves. To the left a column for each step that was '
            "kept, the stronger its colour the more elements; to the right the last of them, filled, and the first, as an outline. The dashed line "
            f"is what the quantity is held against.{some}</p>"
            f'<div data-histograms="{number}" hidden><p><label>Tensor <select>{options}</select></label></p><div class="heat"></div></div>'
            f"<details><summary>The histograms in words</summary>{_wide('Histograms in words', table)}</details>"
        )

    def _heat(self, number: int, seen: Sight, total: int) -> str:
        tensors, told = seen.tensors, seen.told
        if not told:
            return '<h3>Tensors</h3><p class="note">No step was measured, so there is nothing to see of single tensors.</p>'
        options = "".join(f'<option value="{name}">{html.escape(LABELS[name].label)}</option>' for name in told)
        rows = []
        for tensor in self.data["tracks"][-1]["tensors"]:
            cells = ""
            for name in told:
                known = [each for each in tensor["values"][name]["mid"] if math.isfinite(each)]
                cells += f"<td>{shown(known[-1] if known else None, LABELS[name].share)}</td>"
            rows.append(f'<tr><th scope="row">{name_of(tensor["name"])}</th><td>{name_of(tensor["elements"])}</td>{cells}</tr>')
        head = "".join(f'<th scope="col">{html.escape(LABELS[name].label)}</th>' for name in told)
        some = f" These are the {len(tensors)} in most trouble of {total}." if total > len(tensors) else ""
        table = (
            "<table><caption>The last readings of each tensor</caption><thead><tr>"
            f'<th scope="col">tensor</th><th scope="col">elements</th>{head}</tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table>"
        )
        return (
            f'<h3>Tensors over time</h3><p class="note">Sorted by trouble, the most first: what exceeds its limits, added up.{some}</p>'
            f'<div data-heat="{number}" hidden><p><label>Show <select>{options}</select></label> <span class="meaning note"></span></p>'
            '<p class="scale note"></p><div class="heat"></div><p class="readout" aria-live="polite">&#160;</p></div>'
            f"<details><summary>The last values as a table</summary>{_wide('Last values of the tensors', table)}</details>"
        )


# --- parts -------------------------------------------------------------------------------------------------------------


def _head(session: Session, every: Sequence[TrackData], chosen: Sequence[TrackData]) -> str:
    began = _when(session.started)
    ended = f"ended {_when(session.ended)}" if session.ended is not None else NOT_ENDED[session.state]
    links = "".join(f'<li><a href="#t{number}">{name_of(each.name)}</a></li>' for number, each in enumerate(chosen))
    left_out = (
        f"<p>{len(every) - len(chosen)} more optimizers are in the recording: <code>--track</code> shows them.</p>"
        if len(every) > len(chosen)
        else ""
    )
    nothing = "" if chosen else "<p>No optimizer has told anything yet.</p>"
    facts = _table("What ran where", session.about)
    nav = f'<nav aria-label="Optimizers"><ul>{links}</ul></nav>' if links else ""
    return f"<h1>Report of {name_of(os.path.basename(session.path))}</h1><p>Begun {began}, {ended}.</p>{nothing}{facts}{nav}{left_out}"


def _findings(session: Session) -> str:
    """What the doctor finds, the most urgent first."""
    found = by_disease(session.diagnose())
    what = f"<ol>{''.join(map(_disease, found))}</ol>" if found else "<p>Nothing was found.</p>"
    return f'<section aria-labelledby="findings"><h2 id="findings">Findings</h2>{what}</section>'


def _disease(same: Sequence[Finding]) -> str:
    """One disease with all tensors that have it."""
    first = same[0]
    seen = [": ".join(filter(None, [name_of(each.where), name_of(each.seen, 600)])) for each in same]
    rest = "".join(f"<li>{each}</li>" for each in seen[SHOWN_FINDINGS:MOST_FINDINGS])
    beyond = f"<li>and {len(same) - MOST_FINDINGS} more: <code>openadam doctor --json</code> tells all</li>" if len(same) > MOST_FINDINGS else ""
    more = f"<details><summary>{len(same) - SHOWN_FINDINGS} more</summary><ul>{rest}{beyond}</ul></details>" if rest else "<br>"
    told = [name_of(first.meaning, 600), f"<i>Remedy:</i> {name_of(first.remedy, 600)}", f"<small>{name_of(first.source, 200)}</small>"]
    title = f"<b>{name_of(first.severity)} {name_of(first.id)}: {name_of(first.title)}</b> ({name_of(first.track)})"
    return f"<li>{'<br>'.join([title, *seen[:SHOWN_FINDINGS]])}{more}{'<br>'.join(told)}</li>"


def _groups(track: TrackData) -> list[dict[str, Any]]:
    """The settings of the groups; which tensors are in them is told of the tensors."""
    return [{key: value for key, value in group.items() if key != "params"} for group in groups_of(track.about)]


def _settings(track: TrackData) -> str:
    plain = {key: value for key, value in track.about.items() if key != "groups"}
    for number, group in enumerate(_groups(track)[:20]):
        plain[f"group {number}"] = ", ".join(f"{key}={value}" for key, value in group.items())
    return f"<details open><summary>Settings</summary>{_table('How the optimizer is set', plain)}</details>"


def _table(caption: str, facts: Mapping[str, Any]) -> str:
    """Names and values."""
    told = [(key, value) for key, value in facts.items() if value is not None][:60]
    rows = "".join(f'<tr><th scope="row">{name_of(key)}</th><td>{name_of(value, 400)}</td></tr>' for key, value in told)
    return _wide(caption, f'<table class="texts"><caption>{caption}</caption><tbody>{rows}</tbody></table>')


def _wide(label: str, table: str) -> str:
    """A table that may be wider than the page, and is then moved with the arrow keys too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _counts(events: Sequence[Happening]) -> str:
    kinds = [each.kind for each in events]
    skipped, failed, alarms = (kinds.count(kind) for kind in ("skipped", "failed", "alarm"))
    told = (
        ("steps not taken", skipped + failed, f"{skipped} skipped, {failed} refused", "alarm" if failed else "look" if skipped else "fine"),
        ("alarms", alarms, "raised while it ran", "alarm" if alarms else "fine"),
    )
    return "".join(
        f'<li class="{state}"><p>{name}</p><p class="number">{number}</p><p>{words}</p><p class="verdict">{WORDS[state]}</p></li>'
        for name, number, words, state in told
    )


def _cards(seen: Sight) -> list[str]:
    """A card for each reading that has limits: where it is highest, its null value, and a verdict."""
    track, tensors, first, last, found = seen.track, seen.tensors, seen.first, seen.last, seen.found
    quarter = min(int(np.searchsorted(last, last[-1] - (last[-1] - first[0]) / 4)), len(last) - 1)
    limits = limits_of(track, tensors, len(first) - quarter)
    cards = []
    for name in CARDS:
        reading, own = READINGS[name], limits[name]
        recent = found[name][1, quarter:]
        means = mean(recent)
        if not np.isfinite(means).any():
            continue
        judged = means - np.where(np.isnan(own.alarm), np.nan, own.null)
        worst = int(np.nanargmax(judged if np.isfinite(judged).any() else means))
        here = own.at(worst)
        none, look, alarm = (None if math.isnan(each) else each for each in here)
        state = here.level(float(means[worst]))
        highest = found[name][2, :, worst]
        peak = int(np.nanargmax(highest))
        parts = [
            f'<p>{html.escape(reading.label)}</p><p class="number">{shown(float(means[worst]), reading.share)}</p>',
            f"<p>in {name_of(tensors[worst]) if means[worst] > 0 else 'every tensor'}; {_beside(reading, none)}",
            "" if alarm is None else f"; a look from {shown(look, reading.share)}, an alarm from {shown(alarm, reading.share)}",
            f"</p><p>greatest there {shown(float(highest[peak]), reading.share)}, ",
            f"step {first[peak]}" if first[peak] == last[peak] else f"steps {first[peak]} to {last[peak]}",
            f"; median of the tensors {shown(float(np.nanmedian(means)), reading.share)}</p>",
            f'<p class="verdict">{WORDS[state]}</p><p class="note">{html.escape(reading.meaning)}</p>',
        ]
        cards.append(f'<li class="{state}">{"".join(parts)}</li>')
    return cards


def _beside(reading: Reading, none: float | None) -> str:
    """What a reading is held against."""
    if reading.name == "update_weight":
        return "rule of thumb 0.001"
    if none is None:
        return "nothing known to hold it against"
    if reading.name == "direction":
        return f"noise alone {shown(none)}, all signs stay 1"
    return f"{'noise alone' if reading.name == 'disagreement' else 'healthy'} {shown(none, reading.share)}"


def _decay(seen: Sight) -> str:
    """What decoupled decay would do to parameters that noise alone moves."""
    decays = [group.get("weight_decay") for group in _groups(seen.track)]
    told = ", ".join(dict.fromkeys(f"{each}" for each in decays if each is not None)) or "unknown"
    text = f"Weight decay {name_of(told, 200)} ({name_of(seen.track.about.get('coupling', 'unknown'))})."
    if seen.equilibrium is not None:
        size, time, turn = seen.equilibrium
        text += (
            f" At the first group's last learning rate, noise alone would bring rms(parameter) to {shown(size)}, over some {shown(time)} steps, and"
            f" turn each parameter by {shown(turn)} radians a step: what turns less learns slowly, what turns more has yet to settle."
        )
    return text


def _eps(seen: Sight) -> str:
    """When √v̂ would come down to eps."""
    soon = [
        f"{name_of(seen.tensors[k])} at about step {each.crossing}, in {each.crossing - each.step} steps (it is {shown(each.value)} times eps)"
        for k, each in seen.forecasts[:3]
    ]
    more = f"; {len(seen.forecasts) - 3} more tensors fall towards it" if len(seen.forecasts) > 3 else ""
    if not soon:
        return "In no tensor does √v̂ fall towards eps from above: there is no crossing to forecast."
    return f"At the pace of the second half of the run, √v̂ comes down to eps in {'; '.join(soon)}{more}. Dotted lines draw that pace on."


def _event_list(events: Sequence[Happening], most: int) -> str:
    if not events:
        return '<h3>Events</h3><p class="note">Nothing was marked, no step was skipped or refused, and there was no alarm.</p>'
    rows = ""
    for event in events[:most]:
        cells = "".join(f"<td>{name_of(each, LONGEST_TEXT)}</td>" for each in (event.word, event.where, event.in_full))
        rows += f'<tr><th scope="row">{event.step}</th>{cells}</tr>'
    more = f'<p class="note">The latest {most} of {len(events)}.</p>' if len(events) > most else ""
    head = "".join(f'<th scope="col">{each}</th>' for each in ("step", "what", "tensor", "text"))
    table = f'<table class="texts"><caption>Newest first</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<h3>Events</h3>{more}{_wide('Events', table)}"


def _when(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


# --- the document ------------------------------------------------------------------------------------------------------


def _bounds(series: Series) -> dict[str, Any]:
    """The bounds of a series; of one that has no band, its values alone."""
    even = np.array_equal(series.low, series.mid, equal_nan=True) and np.array_equal(series.high, series.mid, equal_nan=True)
    return {"mid": series.mid} if even else {"low": series.low, "mid": series.mid, "high": series.high}


def _spread(spread: Spread) -> dict[str, Any]:
    """A histogram over the run for the page: shares as whole ten-thousandths."""
    return {
        "label": spread.label, "meaning": spread.meaning, "words": in_words(spread), "steps": spread.steps, "edges": spread.edges,
        "shares": np.round(1e4 * spread.shares).astype(int), "line": spread.line, "lineLabel": spread.line_label,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """As JSON has it: four digits are what a picture needs, and there are no numbers but finite ones."""
    if isinstance(value, dict):
        return {shortened(str(key), LONGEST_NAME): _plain(each) for key, each in list(value.items())[:500]}
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value[:500]]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)[:400]


def _document(title: str, body: str, data: Mapping[str, Any]) -> str:
    """The page around its parts. It may run its own script and use its own style, known by their digests, and reach nothing else."""
    style, script = (importlib.resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; base-uri 'none'; form-action 'none'"
    # In a script only "<" could end it or begin a comment; in JSON it stands within strings alone, where it may be written so.
    numbers = (
        json.dumps(_plain(dict(data)), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
        f"<title>{name_of(title)}</title><style>{style}</style></head><body><main>{body}</main>"
        f'<script type="application/json" id="data">{numbers}</script><script>{script}</script></body></html>\n'
    )
