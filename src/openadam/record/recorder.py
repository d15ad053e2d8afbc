"""Writes recordings: what an optimizer tells is kept in memory, and a thread of its own brings it to an SQLite file twice a second.

A step only copies numbers into memory that is there already, under a lock that is held for no disk access. What a file will hold is in
memory as well, bounded by the number of buckets; the file mirrors it. So a disk that is full, slow or gone costs nothing but the
file: one warning is logged, and what is missing is written once the disk takes it again.

Each flush is one transaction in SQLite's write-ahead log. Once it is committed, its bytes are the operating system's: a process that
is killed, by ``kill -9`` too, loses what came after the last flush, half a second of a run, and the next reader finds the file whole.
When the machine itself dies, the last seconds before may be lost, but no older ones (``PRAGMA synchronous = NORMAL``: the log is
brought to the disk when it moves into the database).

A forked child writes nothing: the recorders that it inherited ignore what they are told, since a database connection must not be
used on both sides of a fork. A `Recorder` made in the child is a recording of its own, in the same file if it is given the same path.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import operator
import os
import platform
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import RecordError, RecordFormatError
from .history import Bucket, History
from .layout import SCHEMA, identify, to_bytes, to_json, to_text

__all__ = ["Recorder", "Track", "track"]

Array = npt.NDArray[Any]
Scalars = tuple[int, float, dict[str, float]]  # step, time, values

AROUND = 20  # steps observed after an event or an alarm
MAX_PENDING = 4096  # steps whose scalars wait to be put into buckets
MAX_SCALARS = 256  # names; further ones are passed over
MAX_EVENTS = 1000  # of a kind: the first half of them, and as many of the latest
MAX_HISTOGRAMS = 32  # of a tensor and name
MAX_RINGS = 20  # written at alarms; from then on one each time their number has doubled
BUSY_SECONDS = 2.0  # to wait for another process that writes to the same file
EXIT_SECONDS = 10.0  # to wait at exit for a flush in progress
FORK_SECONDS = 1.0  # and before a fork
LONGEST_PAUSE = 60.0  # seconds between attempts to write to a disk that fails

logger = logging.getLogger("openadam.record")


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


class _Batch(NamedTuple):
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

    def __init__(self, recorder: Recorder, name: str, about: Mapping[str, Any]) -> None:
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

    def histogram(self, step: int, tensor: str, name: str, counts: Array, edges: Array) -> None:
        """How many elements lie between edges. Of each tensor and name some are kept, evenly spread over the run."""
        if self._closed:
            return
        counts, edges = np.asarray(counts), np.asarray(edges, "<f8")
        if edges.ndim != 1 or counts.shape != (len(edges) - 1,):
            raise ValueError(f"{counts.shape} counts between {edges.shape} edges")
        tensor, name = to_text(tensor), to_text(name)
        small = np.min_scalar_type(max(int(counts.max(initial=0)), 0)).newbyteorder("<")
        with self._lock:
            thinning = self._thinning.setdefault((tensor, name), [0, 1, 0])
            number, apart, _ = thinning
            thinning[0] += 1
            if number % apart:
                return
            self._histograms.append(_Histogram(tensor, name, number, int(step), time.time(), edges.tobytes(), counts.astype(small).tobytes()))
            thinning[2] += 1
            if thinning[2] == MAX_HISTOGRAMS:
                thinning[1:] = [2 * apart, MAX_HISTOGRAMS // 2]
                self._thinned[tensor, name] = 2 * apart

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
        """A step was refused with an error: the ring is written out, as at an alarm."""
        self._fail(step, error, always=False)

    def close(self) -> None:
        """Nothing more follows. What was told is written in the next flush; this waits for nothing, so that a finalizer may call it."""
        self._closed = True

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

    def _collect(self) -> _Batch | None:
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
            batch = _Batch(
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

    def _restore(self, batch: _Batch) -> None:
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

    def _write(self, connection: sqlite3.Connection, session: int, batch: _Batch) -> None:
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


class Recorder:
    """A recording: a session in a file, with a track for each optimizer that is given it.

    A file that is there already is added to if it is a recording; a run that is started again with the same path loses nothing.
    `openadam.record.sessions` lists what a file holds, and `load` reads the last one. Several processes may write to one file, each
    its own session, if they run on one machine.

    Args:
        path: The file. By custom it ends in ``.oadam``.
        every: Observe every so manieth step.
        dense: Observe all of the first steps.
        ring: How many of the last steps the flight recorder keeps in full.
        buckets: How many buckets the history of a series has at most; an even number. It bounds the file's size: about 12 bytes for each
            bucket, tensor and measure.
        flush: Seconds between writes to the file.

    Raises:
        RecordError: There can be no file at this path, or an option is out of its range.
        RecordFormatError: Something else is at this path: it is never overwritten.

    >>> import numpy as np, os, tempfile
    >>> from openadam import record
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = os.path.join(directory, "run.oadam")
    ...     with record.Recorder(path) as recorder:
    ...         track = recorder.track({"optimizer": "Adam", "tensors": [{"name": "w"}], "measures": [{"name": "grad_max_abs"}]})
    ...         for step in range(1, 4):
    ...             track.step(step, {"loss": 1 / step})
    ...             if track.wants(step):
    ...                 track.observe(step, np.array([[10.0 * step]]))
    ...     run = record.load(path).tracks["Adam"]
    >>> run.scalar("loss")["mean"].round(2).tolist(), run.measure("w", "grad_max_abs")["max"].tolist()
    ([1.0, 0.5, 0.33], [10.0, 20.0, 30.0])
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 10, dense: int = 100, ring: int = 64, buckets: int = 512, flush: float = 0.5
    ) -> None:
        self.path = _absolute(path)
        self.every, self.dense = _whole("every", every, 1), _whole("dense", dense, 0)
        self.ring, self.buckets = _whole("ring", ring, 1), _whole("buckets", buckets, 2)
        if self.buckets % 2:
            raise RecordError(f"buckets is {buckets}; they are joined in pairs: give an even number")
        if not 0.01 <= flush <= 3600:
            raise RecordError(f"flush is {flush!r}; give seconds, from 0.01 to 3600")
        self._seconds = float(flush)
        self._closes_itself = False
        self._closed = False
        self._tracks: list[Track] = []
        self._names: set[str] = set()
        self._disk = threading.Lock()  # held while the file is written
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._session: int | None = None
        self._identity: tuple[int, int] | None = None  # of the file that is open
        self._failures, self._retry_at, self._warned = 0, 0.0, False
        self._started, self._key = time.time(), os.urandom(8).hex()
        _refuse_impossible(self.path)
        with self._disk:
            try:
                self._open()
            except (sqlite3.OperationalError, OSError) as error:  # a disk that fails now may not later
                self._trouble(error)
            except sqlite3.DatabaseError as error:
                raise RecordFormatError(f"{self.path!r} is damaged ({error}): move it away, or give another path") from error
        _register(self)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if error is not None:
            self._note_exception(error)
        self.close()

    def __repr__(self) -> str:
        return f"Recorder({self.path!r}{', closed' if self._closed else ''})"

    def track(self, about: Mapping[str, Any], name: str | None = None) -> Track:
        """A track for one optimizer.

        Args:
            about: Plain data: ``tensors`` (each with its ``name``, and whatever else is known: shape, dtype, elements, group), ``measures``
                (each with ``name`` and ``reduction``), and whatever else describes the optimizer, under any keys.
            name: Else ``about["optimizer"]``. If there is such a track, a number is added.
        """
        wished = to_text(name if name is not None else about.get("optimizer", "optimizer"))
        with _guard:
            if self._closed:
                raise RecordError(f"the recording {self.path!r} is closed: make a new Recorder, which adds a session to the file")
            unique, number = wished, 1
            while unique in self._names:
                number += 1
                unique = f"{wished} {number}"
            made = Track(self, unique, about)
            self._names.add(unique)
            self._tracks.append(made)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="openadam-record", daemon=True)
                self._thread.start()
        return made

    def flush(self) -> bool:
        """Write now what was told so far; whether it is on disk. Never raises."""
        with self._disk:
            if self._closed:
                return False
            self._retry_at = 0.0
            return self._flush()

    def close(self) -> None:
        """Write what is left and end the session. Tracks take no more."""
        with _guard:
            if self._closed:
                return
            self._closed = True
        self._finish()

    def _finish(self) -> None:
        self._wake.set()
        for each in self._tracks:
            each.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(EXIT_SECONDS)
        if not self._disk.acquire(timeout=EXIT_SECONDS):
            logger.warning("the recording %r could not be finished: its disk does not answer", self.path)
            return
        try:
            self._retry_at = 0.0
            if not self._flush() or self._connection is None:
                return
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("UPDATE sessions SET ended = ? WHERE id = ?", (time.time(), self._session))
                # A file at rest needs no second one beside it, so that it can be copied, and read from a folder that cannot be written.
                # It keeps its log if somebody else has it open.
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            self._disconnect()
            self._disk.release()
            with _guard:
                _recorders.discard(self)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._wake.wait(self._seconds):
            with self._disk:
                self._flush()
            with _guard:
                finished = self._closes_itself and not self._tracks and not self._closed
                self._closed |= finished
            if finished:
                self._finish()

    def _flush(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        batches: list[tuple[Track, _Batch]] = []
        closed = [each for each in self._tracks if each._closed]
        try:
            self._look_for_file()
            if self._connection is None:
                self._open()
            for each in list(self._tracks):
                batch = each._collect()
                if batch is not None:
                    batches.append((each, batch))
            if batches:
                self._write(batches)
        except Exception as error:  # of any kind: a recording must not end because of one bad moment, nor a training because of a recording
            for each, batch in batches:
                each._restore(batch)
            self._trouble(error)
            return False
        if self._failures:
            logger.info("the recording %r is written again", self.path)
            self._failures = 0
        with _guard:
            self._tracks = [each for each in self._tracks if each not in closed]
        return True

    def _write(self, batches: Sequence[tuple[Track, _Batch]]) -> None:
        connection, session = self._connection, self._session
        assert connection is not None
        assert session is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            for each, batch in batches:
                each._write(connection, session, batch)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        for each, _ in batches:
            each._id = each._written_as

    def _trouble(self, error: Exception) -> None:
        self._failures += 1
        self._retry_at = time.monotonic() + min(self._seconds * 2 ** min(self._failures, 16), LONGEST_PAUSE)
        if "locked" not in str(error):
            self._disconnect()
        if not self._warned:
            self._warned = True
            logger.warning(
                "the recording %r cannot be written (%s: %s); training goes on, and what is missing will be written once that is possible",
                self.path,
                type(error).__name__,
                error,
            )

    # --- the file --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        identify(self.path)  # again: what is there may have changed
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            if not connection.execute("PRAGMA application_id").fetchone()[0]:
                _create(connection)
            with contextlib.suppress(sqlite3.OperationalError):  # where files cannot be shared, it works without
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {4 << 20}")
            row = (self._key, self._started, to_json(_surroundings()))
            found = connection.execute("SELECT id FROM sessions WHERE key = ?", (self._key,)).fetchone()
            if found is None:
                found = (connection.execute("INSERT INTO sessions(key, started, about) VALUES(?,?,?)", row).lastrowid,)
                for each in self._tracks:
                    each._begin_anew()
        except BaseException:
            connection.close()
            raise
        self._connection, self._session = connection, found[0]
        self._identity = _identity(self.path)

    def _look_for_file(self) -> None:
        """A file that was removed could still be written to, to no use."""
        if self._connection is not None and _identity(self.path) != self._identity:
            self._disconnect()
            logger.warning("the recording %r was moved or removed; it begins anew from what is in memory", self.path)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # --- the process -----------------------------------------------------------------------------------------------

    def _note_exception(self, error: BaseException) -> None:
        """An exception that nothing will handle: keep the ring of each track."""
        for each in list(self._tracks):
            each._fail(each._recent[-1][0] if each._recent else 0, error, always=True)

    def _abandon(self) -> None:
        """In a forked child: do nothing any more, and never touch the connection, which is the parent's."""
        self._closed = True
        for each in self._tracks:
            each._closed = True
            each._lock = threading.RLock()
        self._disk, self._thread = threading.Lock(), None
        if self._connection is not None:
            # Closing it here could take the log away from the parent, so not even the garbage collector may.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None
        self._tracks = []


def track(record: str | os.PathLike[str] | Recorder, about: Mapping[str, Any], name: str | None = None) -> Track:
    """A track of a recorder, or of the recording at a path; optimizers that are given the same path share one.

    A recording that was begun by its path ends with its last track.
    """
    if isinstance(record, Recorder):
        return record.track(about, name)
    path = _absolute(record)
    with _guard:
        shared = next((each for each in _recorders if each._closes_itself and not each._closed and each.path == path), None)
        if shared is None:
            shared = Recorder(path)
        made = shared.track(about, name)
        shared._closes_itself = True  # only now that it has a track
    return made


# --- paths and files -----------------------------------------------------------------------------------------------------


def _absolute(path: Any) -> str:
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise RecordError(f"record is {path!r:.80}; give a path or an openadam.record.Recorder") from None
    if not name or "\0" in name:
        raise RecordError(f"{name!r} is no path of a file to record to")
    return os.path.realpath(name)  # the working directory may change, and one file have several names


def _refuse_impossible(path: str) -> None:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise RecordError(f"{path!r} cannot be recorded to: there is no directory {directory!r}; make it first")
    try:
        there = identify(path) or os.path.exists(path)
    except OSError as error:
        raise RecordError(f"{path!r} cannot be recorded to: {error.strerror or error}") from error
    if not os.access(path if there else directory, os.W_OK) or not os.access(directory, os.W_OK):
        raise RecordError(f"{path!r} cannot be recorded to: {'it' if there else directory!r} may not be written; give another path")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create(connection: sqlite3.Connection) -> None:
    # Before the log is switched on: what tells a recording from other files is in the database itself from the start.
    connection.execute("BEGIN EXCLUSIVE")
    try:
        if not connection.execute("PRAGMA application_id").fetchone()[0]:  # another process may have been faster
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _surroundings() -> dict[str, Any]:
    """What ran where."""
    from .._version import __version__

    versions = {"openadam": __version__, "python": platform.python_version(), "numpy": np.__version__}
    torch = sys.modules.get("torch")
    if torch is not None:
        versions["torch"] = str(getattr(torch, "__version__", "unknown"))
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    return {**versions, "platform": platform.platform(), "host": platform.node(), "process": os.getpid(), "program": program}


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise RecordError(f"{name} is {value!r}; give a whole number from {least}")
    return number


# --- the process: forks, exceptions, its end -----------------------------------------------------------------------------

_guard = threading.RLock()  # of the list of recorders, and of their lists of tracks
_recorders: set[Recorder] = set()
_hooked = False
_noted: BaseException | None = None
_held = threading.local()  # the locks that a thread holds while it forks


def _register(recorder: Recorder) -> None:
    global _hooked
    with _guard:
        _recorders.add(recorder)
        if not _hooked:
            _hooked = True
            atexit.register(_at_exit)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
            _hook_exceptions()
    _hook_multiprocessing()


def _hook_exceptions() -> None:
    before, before_in_thread = sys.excepthook, threading.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        _note_unhandled(error)
        before(kind, error, traceback)

    def hook_in_thread(found: threading.ExceptHookArgs, /) -> None:
        if found.exc_value is not None and not isinstance(found.exc_value, SystemExit):
            _note_unhandled(found.exc_value)
        before_in_thread(found)

    sys.excepthook, threading.excepthook = hook, hook_in_thread


def _hook_multiprocessing() -> None:
    """Children of multiprocessing end without `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing import util

        util.Finalize(None, _at_exit, exitpriority=0)


def _note_unhandled(error: BaseException) -> None:
    global _noted
    with contextlib.suppress(Exception):  # whatever goes wrong here, the exception itself must be shown
        _noted = error
        for each in list(_recorders):
            each._note_exception(error)
            if each._disk.acquire(timeout=EXIT_SECONDS):
                try:
                    each._flush()
                finally:
                    each._disk.release()


def _at_exit() -> None:
    # If somebody else took the hook over, Python itself remembers what ended the program.
    error = getattr(sys, "last_value", None)
    if error is not None and error is not _noted and not hasattr(sys, "ps1"):
        _note_unhandled(error)
    for each in list(_recorders):
        with contextlib.suppress(Exception):
            each.close()


def _before_fork() -> None:
    # SQLite's own locks must not be held in the child, which may use it for something else.
    _held.locks = [each._disk for each in list(_recorders) if each._disk.acquire(timeout=FORK_SECONDS)]


def _after_fork() -> None:
    for each in _held.locks:
        each.release()


def _in_child() -> None:
    global _guard
    _guard = threading.RLock()
    for each in _recorders:
        each._abandon()
    _recorders.clear()
