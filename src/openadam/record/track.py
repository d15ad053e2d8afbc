"""A track: what one optimizer tells of its steps, kept in bounded memory until it is written; the ring of the flight recorder among it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import RecordError
from .history import Bucket, History
from .layout import to_bytes, to_json, to_text

__all__ = ["Batch", "Track"]

Array = npt.NDArray[Any]
Scalars = tuple[int, float, dict[str, float]]  # step, time, values

AROUND = 20  # steps observed after an event, an alarm or a failure
MAX_PENDING = 4096  # steps whose scalars wait to be put into buckets
MAX_SCALARS = 256  # names; further ones are passed over
MAX_EVENTS = 1000  # of a kind: the first half of them, and as many of the latest
MAX_HISTOGRAMS = 32  # of a tensor and name
MAX_RINGS = 20  # written at alarms; from then on one each time their number has doubled


class _Event(NamedTuple):
    kind: str  # event, skipped, alarm, failed
    number: int
    step: int
    time: float
    tensor: str | None
    text: str
    evidence: str | None


class _Histogram(NamedTuple):
    tensor: str
    name: str
    number: int
    step: int
    time: float
    edges: bytes
    counts: bytes


class _Ring(NamedTuple):
    step: int
    time: float
    reason: str
    steps: Array
    times: Array
    data: Array
    scalars: list[Scalars]


class Batch(NamedTuple):
    """What one flush writes of one track."""

    stale: dict[str, bool]
    dirty: dict[str, int]
    buckets: dict[str, list[tuple[int, Bucket]]]
    tensors: list[tuple[int, str, str]] | None
    events: list[_Event]
    histograms: list[_Histogram]
    thinned: dict[tuple[str, str], int]
    rings: list[_Ring]
    row: tuple[Any, ...]


class Track:
    """What one optimizer tells of its steps; made by `Recorder.track` or `openadam.record.track`.

    Its methods may be called from any thread. After `close`, and in a forked child, they do nothing. A copy of a track is None: an
    optimizer that was copied or pickled with one records nothing.
    """

    def __init__(self, recorder: Any, name: str, about: Mapping[str, Any]) -> None:
        self.recorder, self.name = recorder, name
        self.measures = [dict(each) for each in about.get("measures", ())]
        known = {key: value for key, value in about.items() if key not in ("tensors", "measures")}
        self._about = (to_json(known), to_json(self.measures))
        self._lock = threading.RLock()  # a signal handler may note an event while its thread holds it
        self._closed = False
        self._id: int | None = None
        self._revision = 0
        # The schedule.
        self._every, self._dense = recorder.every, recorder.dense
        self._base: int | None = None
        self._attention = -AROUND
        # Scalars of every step.
        self._scalars: dict[str, int] = {}  # name and column
        self._steps = 0
        self._waiting: list[Scalars] = []
        self._recent: deque[Scalars] = deque(maxlen=recorder.ring)
        # Measures of observed steps: the ring is also where they wait to be put into buckets.
        self._tensors: dict[str, Mapping[str, Any]] = {}  # all that ever were, in the order of their columns
        self._tensors_changed = False
        self._columns: Array | None = None  # of the values as they are given; None if as they are kept
        self._given = 0
        self._observed = self._folded = 0
        self._ring_steps, self._ring_times = np.zeros(recorder.ring, np.int64), np.zeros(recorder.ring)
        self._ring, self._ring_measured = np.empty((recorder.ring, 0)), np.empty((recorder.ring, 0), bool)
        self._history = {"scalars": History(recorder.buckets), "measures": History(recorder.buckets)}
        # What is rare.
        self._events: deque[_Event] = deque()
        self._event_numbers: dict[str, int] = {}
        self._failure = ("", 0)
        self._histograms: list[_Histogram] = []
        self._thinning: dict[tuple[str, str], list[int]] = {}  # how many were seen, how many apart they are kept, how many are kept
        self._thinned: dict[tuple[str, str], int] = {}
        self._apart = 1  # of histograms, the most
        self._rings: list[_Ring] = []
        self._ring_wishes = 0
        self._ring_at = (-1, -1)  # steps and observations when one was last written
        self.tensors(about.get("tensors", ()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    # --- what a host calls in each step ----------------------------------------------------------------------------

    def wants(self, step: int) -> bool:
        """Whether this step is to be observed: the first ones, every n-th, and some after an event or alarm."""
        if self._closed:
            return False
        base = self._base
        if base is None or step < base:
            self._base = base = step
        return step - base < self._dense or step % self._every == 0 or 0 <= step - self._attention <= AROUND

    def step(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Numbers of a step as a whole, for every step; None is passed over."""
        if self._closed:
            return
        told = (step, time.time(), {name: float(value) for name, value in scalars.items() if value is not None})
        with self._lock:
            self._recent.append(told)
            self._waiting.append(told)
            self._steps += 1
            if len(self._waiting) >= MAX_PENDING:
                self._fold_scalars()

    def observe(self, step: int, values: Array, scalars: Mapping[str, Any] | None = None, measured: Array | None = None) -> None:
        """What was measured in an observed step: float64, tensors x measures in the order in which they were named.

        Args:
            step: The step.
            values: The numbers. They are copied.
            scalars: As for `step`, which need not be called as well then.
            measured: Which of them were measured, as booleans of the same shape or of one column; else those that are not NaN. Of what
                was measured, NaN and infinity are counted as such.
        """
        if self._closed:
            return
        if scalars is not None:
            self.step(step, scalars)
        if len(values) != self._given or values.size != self._given * len(self.measures):
            raise ValueError(f"{values.shape} values for {self._given} tensors and {len(self.measures)} measures")
        seen = ~np.isnan(values) if measured is None else np.broadcast_to(measured, values.shape)
        with self._lock:
            if self._observed - self._folded == len(self._ring):
                self._fold_measures()
            at = self._observed % len(self._ring)
            if self._columns is None:
                self._ring[at], self._ring_measured[at] = values.reshape(-1), seen.reshape(-1)
            else:
                self._ring_measured[at] = False
                self._ring[at, self._columns], self._ring_measured[at, self._columns] = values.reshape(-1), seen.reshape(-1)
            self._ring_steps[at], self._ring_times[at] = step, time.time()
            self._observed += 1

    # --- what is rare ----------------------------------------------------------------------------------------------

    def tensors(self, tensors: Iterable[Mapping[str, Any]]) -> None:
        """The tensors that values are given of from now on, each ``{"name": …}`` with whatever else is known of it. Names must differ."""
        told = [dict(each) for each in tensors]
        given = {to_text(each["name"]): each for each in told}
        if len(given) < len(told):
            raise RecordError(f"{len(told)} tensors have {len(given)} different names; a recording tells them apart by name")
        width = len(self.measures)
        with self._lock:
            self._fold_measures()
            before = len(self._tensors)
            self._tensors.update(given)
            self._tensors_changed = True
            self._given = len(given)
            numbers = {name: number for number, name in enumerate(self._tensors)}
            rows = np.array([numbers[name] for name in given], np.int64)
            same = len(rows) == len(numbers) and bool((rows == np.arange(len(rows))).all())
            self._columns = None if same else (rows[:, None] * width + np.arange(width)).reshape(-1)
            if len(self._tensors) > before:
                more = ((0, 0), (0, len(self._tensors) * width - self._ring.shape[1]))
                self._ring = np.pad(self._ring, more, constant_values=np.nan)
                self._ring_measured = np.pad(self._ring_measured, more)
                self._history["measures"].widen(len(self._tensors) * width)

    def wants_histograms(self) -> bool:
        """Whether those of the next observed step would be kept, if they are told with its ``number``."""
        return not self._closed and self._observed % self._apart == 0

    @property
    def observed(self) -> int:
        """How many steps were observed."""
        return self._observed

    def histogram(self, step: int, tensor: str, name: str, counts: Array, edges: Array, number: int | None = None) -> None:
        """How many elements lie between edges. Of each tensor and name some are kept, evenly spread over the run.

        Args:
            step: The step.
            tensor: Its name.
            name: What is spread.
            counts: One for each bin.
            edges: One more.
            number: Where it stands among those that might have been told; else it comes right after the one before.
        """
        if self._closed:
            return
        counts, edges = np.asarray(counts), np.asarray(edges, "<f8")
        if edges.ndim != 1 or counts.shape != (len(edges) - 1,):
            raise ValueError(f"{counts.shape} counts between {edges.shape} edges")
        tensor, name = to_text(tensor), to_text(name)
        small = np.min_scalar_type(max(int(counts.max(initial=0)), 0)).newbyteorder("<")
        with self._lock:
            thinning = self._thinning.setdefault((tensor, name), [0, 1, 0])
            before, apart, _ = thinning
            number = before if number is None else number
            thinning[0] = number + 1
            if number % apart:
                return
            self._histograms.append(_Histogram(tensor, name, number, int(step), time.time(), edges.tobytes(), counts.astype(small).tobytes()))
            thinning[2] += 1
            if thinning[2] == MAX_HISTOGRAMS:
                thinning[1:] = [2 * apart, MAX_HISTOGRAMS // 2]
                self._thinned[tensor, name] = 2 * apart
                self._apart = max(self._apart, 2 * apart)

    def event(self, step: int, text: str) -> None:
        """Something that a user marked, such as a change of the target network."""
        self._note("event", step, None, text)
        self._attention = step

    def skipped(self, step: int, why: str) -> None:
        """A step that was skipped."""
        self._note("skipped", step, None, why)

    def alarm(self, step: int, tensor: str | None, what: str, evidence: Mapping[str, Any] | None = None) -> None:
        """Something is wrong: the ring is written out, unless it was just before, and the next steps are observed."""
        self._note("alarm", step, tensor, what, evidence)
        self._attention = step
        self._keep_ring(step, f"alarm: {what}")

    def failed(self, step: int, error: BaseException) -> None:
        """A step was refused with an error: the ring is written out and the next steps are observed, as at an alarm."""
        self._attention = step
        self._fail(step, error, always=False)

    def close(self) -> None:
        """Nothing more follows. What was told is written in the next flush; this waits for nothing, so that a finalizer may call it."""
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closed

    def _fail(self, step: int, error: BaseException, *, always: bool) -> None:
        text = f"{type(error).__name__}: {error}"
        if (text, self._steps) != self._failure:  # a step that fails is told of, and perhaps once more when nobody handles its error
            self._failure = (text, self._steps)
            self._note("failed", step, getattr(error, "parameter", None), text)
        self._keep_ring(step, text, always=always)

    def _note(self, kind: str, step: int, tensor: str | None, text: str, evidence: Mapping[str, Any] | None = None) -> None:
        if self._closed:
            return
        shown = None if evidence is None else to_json(dict(evidence))
        with self._lock:
            number = self._event_numbers.get(kind, 0)
            self._event_numbers[kind] = number + 1
            about = None if tensor is None else to_text(tensor)
            self._events.append(_Event(kind, number, int(step), time.time(), about, to_text(text), shown))
            if len(self._events) > 8 * MAX_EVENTS:  # faster than they can be written
                self._forget_events()

    def _forget_events(self) -> None:
        half = MAX_EVENTS // 2
        self._events = deque(each for each in self._events if each.number < half or each.number >= self._event_numbers[each.kind] - half)

    def _keep_ring(self, step: int, reason: str, *, always: bool = False) -> None:
        """Copy the ring so that it will be written; bounded in number, and not before half of it is new."""
        if self._closed and not always:
            return
        with self._lock:
            steps, observed = self._ring_at
            new = max(self._steps - steps, self._observed - observed)
            if not always:
                if steps >= 0 and new < max(1, len(self._ring) // 2):
                    return
                self._ring_wishes += 1
                doublings, rest = divmod(self._ring_wishes, MAX_RINGS)
                if self._ring_wishes > MAX_RINGS and (rest or doublings & (doublings - 1)):
                    return
            elif new == 0 or self._steps + self._observed == 0:
                return
            self._ring_at = (self._steps, self._observed)
            rows = np.arange(max(0, self._observed - len(self._ring)), self._observed) % len(self._ring)
            data = np.where(self._ring_measured[rows], self._ring[rows], np.nan)
            steps_seen, times = self._ring_steps[rows], self._ring_times[rows]
            self._rings.append(_Ring(int(step), time.time(), to_text(reason), steps_seen, times, data, list(self._recent)))

    # --- from memory into buckets, and to the writer ---------------------------------------------------------------

    def _fold_scalars(self) -> None:
        told, self._waiting = self._waiting, []
        if not told:
            return
        for name in {name: None for _, _, values in told for name in values}:
            if len(self._scalars) < MAX_SCALARS:
                self._scalars.setdefault(name, len(self._scalars))
        self._history["scalars"].widen(len(self._scalars))
        table = np.full((len(told), len(self._scalars)), np.nan)
        measured = np.zeros(table.shape, bool)
        for row, (_, _, values) in enumerate(told):
            for name, value in values.items():
                column = self._scalars.get(name)
                if column is not None:
                    table[row, column], measured[row, column] = value, True
        steps, times = np.array([each[0] for each in told], np.int64), np.array([each[1] for each in told])
        self._history["scalars"].add(steps, times, table, measured)

    def _fold_measures(self) -> None:
        while self._folded < self._observed:
            at = self._folded % len(self._ring)
            rows = slice(at, min(len(self._ring), at + self._observed - self._folded))
            self._history["measures"].add(self._ring_steps[rows], self._ring_times[rows], self._ring[rows], self._ring_measured[rows])
            self._folded += rows.stop - rows.start

    def _collect(self) -> Batch | None:
        """What is to be written, if anything is; it counts as written from here on."""
        with self._lock:
            self._fold_scalars()
            self._fold_measures()
            if len(self._events) > MAX_EVENTS:
                self._forget_events()
            apart = self._thinning
            self._histograms = [each for each in self._histograms if each.number % apart[each.tensor, each.name][1] == 0]
            rare = self._events or self._histograms or self._thinned or self._rings or self._tensors_changed
            if self._id is not None and not rare and all(each.dirty >= each.size for each in self._history.values()):
                return None
            self._revision += 1
            counts = (self._steps, self._observed, *(self._history[stream].per_bucket for stream in ("scalars", "measures")))
            tensors = [(number, name, to_json(each)) for number, (name, each) in enumerate(self._tensors.items()) if self._tensors_changed]
            batch = Batch(
                stale={stream: each.stale for stream, each in self._history.items()},
                dirty={stream: each.dirty for stream, each in self._history.items()},
                buckets={stream: list(each.changed()) for stream, each in self._history.items()},
                tensors=tensors if self._tensors_changed else None,
                events=list(self._events),
                histograms=self._histograms,
                thinned=self._thinned,
                rings=self._rings,
                row=(self.name, *self._about, to_json(list(self._scalars)), self._revision, *counts),
            )
            for each in self._history.values():
                each.dirty, each.stale = each.size, False
            self._tensors_changed = False
            self._events.clear()
            self._histograms, self._thinned, self._rings = [], {}, []
            return batch

    def _restore(self, batch: Batch) -> None:
        """The batch was not written after all."""
        with self._lock:
            for stream, each in self._history.items():
                each.dirty = min(each.dirty, batch.dirty[stream])
                each.stale |= batch.stale[stream]
            self._tensors_changed |= batch.tensors is not None
            self._events.extendleft(reversed(batch.events))
            self._histograms = batch.histograms + self._histograms
            self._thinned = {**batch.thinned, **self._thinned}
            self._rings = batch.rings + self._rings

    def _begin_anew(self) -> None:
        """The file is another one: all that memory holds has to go there."""
        with self._lock:
            self._id = None
            self._tensors_changed = True
            for each in self._history.values():
                each.dirty = 0

    def _write(self, connection: sqlite3.Connection, session: int, batch: Batch) -> None:
        if self._id is None:
            columns = "session, name, about, measures, scalars, revision, steps, observed, scalars_per_bucket, measures_per_bucket"
            row = connection.execute(f"INSERT INTO tracks({columns}) VALUES(?,?,?,?,?,?,?,?,?,?)", (session, *batch.row))
            own = row.lastrowid
        else:
            own = self._id
            settings = "scalars = ?, revision = ?, steps = ?, observed = ?, scalars_per_bucket = ?, measures_per_bucket = ?"
            connection.execute(f"UPDATE tracks SET {settings} WHERE id = ?", (*batch.row[3:], own))
        connection.executemany("INSERT OR REPLACE INTO tensors VALUES(?,?,?,?)", [(own, *each) for each in batch.tensors or ()])
        for stream, buckets in batch.buckets.items():
            if batch.stale[stream]:
                connection.execute("DELETE FROM buckets WHERE track = ? AND stream = ?", (own, stream))
            connection.executemany(
                "INSERT OR REPLACE INTO buckets VALUES(?,?,?,?,?,?,?,?,?,?)", ((own, stream, at, *_bucket_row(bucket)) for at, bucket in buckets)
            )
        connection.executemany(
            "INSERT INTO events(track, kind, number, step, time, tensor, text, evidence) VALUES(?,?,?,?,?,?,?,?)",
            [(own, *each) for each in batch.events],
        )
        for kind, last in {each.kind: each.number for each in batch.events}.items():
            half = MAX_EVENTS // 2
            between = (own, kind, half, last - half)
            connection.execute("DELETE FROM events WHERE track = ? AND kind = ? AND number >= ? AND number <= ?", between)
        for each in batch.histograms:
            connection.execute("INSERT OR IGNORE INTO edges(data) VALUES(?)", (each.edges,))
            connection.execute(
                "INSERT INTO histograms(track, tensor, name, number, step, time, counts, edges) SELECT ?,?,?,?,?,?,?, id FROM edges WHERE data = ?",
                (own, each.tensor, each.name, each.number, each.step, each.time, each.counts, each.edges),
            )
        for (tensor, name), apart in batch.thinned.items():
            connection.execute("DELETE FROM histograms WHERE track = ? AND tensor = ? AND name = ? AND number % ? != 0", (own, tensor, name, apart))
        connection.executemany(
            "INSERT INTO rings(track, step, time, reason, steps, times, columns, data, scalar_steps, scalar_times, scalars, scalar_data)"
            " VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
            [(own, *_ring_row(each)) for each in batch.rings],
        )
        self._written_as = own


def _bucket_row(bucket: Bucket) -> tuple[Any, ...]:
    complete = (bucket.finite == bucket.observations).all()  # then the counts say nothing new
    counts = None if complete else np.concatenate([bucket.finite, bucket.nonfinite]).astype("<u4").tobytes()
    summary = to_bytes(bucket.minimum, bucket.mean, bucket.maximum)
    return bucket.first, bucket.last, bucket.observations, bucket.time, len(bucket.minimum), summary, counts


def _ring_row(ring: _Ring) -> tuple[Any, ...]:
    names = list(dict.fromkeys(name for _, _, values in ring.scalars for name in values))
    steps, times = np.array([each[0] for each in ring.scalars], "<i8"), np.array([each[1] for each in ring.scalars], "<f8")
    table = np.array([[values.get(name, np.nan) for name in names] for _, _, values in ring.scalars], "<f8")
    observed = (ring.steps.astype("<i8").tobytes(), ring.times.astype("<f8").tobytes(), ring.data.shape[1], to_bytes(*ring.data))
    return ring.step, ring.time, ring.reason, *observed, steps.tobytes(), times.tobytes(), to_json(names), table.tobytes()
