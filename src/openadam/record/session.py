"""Reads recordings, also while they are written, as plain data: NumPy tables, tuples and dicts.

A file is opened for reading only, for one transaction each time. Where that is not enough, because the process that wrote it was killed
and the folder may not be written, a copy is opened instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sqlite3
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..errors import RecordError, RecordFormatError
from ..extras import module
from .layout import STREAMS, from_bytes, identify

if TYPE_CHECKING:
    from .doctor import Finding

__all__ = ["TABLE", "Alarm", "Event", "Histogram", "Ring", "Session", "Together", "TrackData", "load", "sessions"]

Array = npt.NDArray[Any]

BUSY_SECONDS = 5.0

TABLE = np.dtype(
    [("first", "i8"), ("last", "i8"), ("count", "i8"), ("nonfinite", "i8"), ("min", "f8"), ("mean", "f8"), ("max", "f8"), ("time", "f8")]
)
"""A series: of each bucket the first and last step, how many values are finite and not, the least, mean and greatest of the finite ones,
and when the last was observed, in seconds since 1970."""

LONG = np.dtype([("tensor", "O"), ("measure", "O"), *((name, TABLE[name]) for name in TABLE.names or ())])


class Event(NamedTuple):
    """Something that happened: ``event`` (marked by the user), ``skipped`` or ``failed``."""

    step: int
    time: float
    kind: str
    tensor: str | None
    text: str

    @property
    def is_refusal(self) -> bool:
        """Whether it is a step that this package refused, not an error of the program around it."""
        return self.kind == "failed" and self.text.partition(":")[0] in errors.__all__


class Alarm(NamedTuple):
    step: int
    time: float
    tensor: str | None
    what: str
    evidence: dict[str, Any]


class Ring(NamedTuple):
    """What the flight recorder held: the last observed steps, and the scalars of the last steps, in full."""

    reason: str
    step: int
    time: float
    steps: Array
    times: Array
    values: Array
    """Steps x tensors x measures; NaN where nothing was measured."""
    tensors: tuple[str, ...]
    measures: tuple[str, ...]
    scalar_steps: Array
    scalar_times: Array
    scalars: dict[str, Array]


class Histogram(NamedTuple):
    step: int
    time: float
    tensor: str
    name: str
    counts: Array
    edges: Array


class Together(NamedTuple):
    """All measures of one tensor in the buckets in which any was seen."""

    first: Array
    last: Array
    observations: Array
    minimum: Array  # of each measure, by name in the order of the track's, as buckets x measures; NaN where there is none
    mean: Array
    maximum: Array
    nonfinite: Array


class _Row(NamedTuple):
    first: int
    last: int
    observations: int
    time: float
    summary: Array  # min, mean, max x columns
    finite: Array
    nonfinite: Array


class TrackData:
    """What one optimizer told.

    Attributes:
        name: Its name in the recording.
        about: What was known of the optimizer: plain data.
        tensors: What was known of each tensor, by name.
        measures: The measures, and how each is reduced over a tensor.
        scalars: Names of the numbers of whole steps.
        steps: Steps told of.
        observed: Steps in which tensors were measured.
        events, alarms, rings, histograms: As they came.
    """

    def __init__(self, number: int, name: str) -> None:
        self.name = name
        self.about: dict[str, Any] = {}
        self.tensors: dict[str, dict[str, Any]] = {}
        self.measures: dict[str, str | None] = {}
        self.scalars: tuple[str, ...] = ()
        self.steps = self.observed = 0
        self.events: list[Event] = []
        self.alarms: list[Alarm] = []
        self.rings: list[Ring] = []
        self.histograms: list[Histogram] = []
        self._number = number
        self._revision = -1
        self._per_bucket = dict.fromkeys(STREAMS, 0)
        self._buckets: dict[str, list[_Row]] = {stream: [] for stream in STREAMS}
        self._histogram_ids: dict[int, Histogram] = {}
        self._last_ring = -1

    def __repr__(self) -> str:
        return f"<track {self.name!r}: {self.steps} steps, {self.observed} observed, {len(self.tensors)} tensors x {len(self.measures)} measures>"

    @property
    def last_step(self) -> int | None:
        """The latest step that was told of."""
        latest = max((rows[-1] for rows in self._buckets.values() if rows), key=lambda row: row.time, default=None)
        return None if latest is None else latest.last

    def scalar(self, name: str) -> Array:
        """The history of a number of whole steps, as a `TABLE`."""
        return self._series("scalars", _index(self.scalars, name, "scalar"))

    def measure(self, tensor: str, name: str) -> Array:
        """The history of a measure of a tensor, as a `TABLE`."""
        row, column = _index(tuple(self.tensors), tensor, "tensor"), _index(tuple(self.measures), name, "measure")
        return self._series("measures", row * len(self.measures) + column)

    def together(self, tensor: str) -> Together:
        """The histories of all measures of a tensor, bucket by bucket."""
        start = _index(tuple(self.tensors), tensor, "tensor") * len(self.measures)
        own = slice(start, start + len(self.measures))
        rows = [row for row in self._buckets["measures"] if own.stop <= len(row.finite) and (row.finite[own] + row.nonfinite[own]).any()]
        summary = np.array([row.summary[:, own] for row in rows]).reshape(len(rows), 3, len(self.measures))
        nonfinite = np.array([row.nonfinite[own] for row in rows], np.int64).reshape(len(rows), len(self.measures))
        steps = np.array([row[:3] for row in rows], np.int64).reshape(len(rows), 3)
        least, mean, greatest = summary.transpose(1, 0, 2)
        return Together(steps[:, 0], steps[:, 1], steps[:, 2], least, mean, greatest, nonfinite)

    def table(self) -> Array:
        """All series in one long table, with the columns ``tensor`` (empty for scalars) and ``measure`` before those of `TABLE`."""
        names = [("", name) for name in self.scalars] + [(tensor, name) for tensor in self.tensors for name in self.measures]
        series = [self.measure(*each) if each[0] else self.scalar(each[1]) for each in names]
        long = np.zeros(sum(map(len, series)), LONG)
        for column in TABLE.names or ():
            long[column] = np.concatenate([each[column] for each in series]) if series else []
        lengths = [len(each) for each in series]
        for column, texts in zip(("tensor", "measure"), zip(*names, strict=True), strict=False):
            long[column] = np.repeat(np.array(texts, object), lengths)
        return long

    def block(self, tensors: Sequence[str], measures: Sequence[str], latest: int | None = None) -> tuple[Array, Array, Array]:
        """Many series at once, for views: first and last step of each bucket, and least, mean, greatest x buckets x tensors x measures.

        NaN is where nothing was measured, or nothing that is finite. ``latest`` asks for so many of the last buckets only.
        """
        names, width = tuple(self.tensors), len(self.measures)
        rows = self._buckets["measures"][-latest if latest else None :]
        numbers, places = {name: at for at, name in enumerate(names)}, {name: at for at, name in enumerate(self.measures)}
        wanted = np.array([[numbers[t] * width + places[m] if m in places else -1 for m in measures] for t in tensors], np.int64)
        wanted = wanted.reshape(len(tensors), len(measures))
        result = np.full((3, len(rows), *wanted.shape), np.nan)
        for at, row in enumerate(rows):
            there = (wanted >= 0) & (wanted < row.summary.shape[1])
            result[:, at][:, there] = row.summary[:, wanted[there]]
        return np.array([row.first for row in rows], np.int64), np.array([row.last for row in rows], np.int64), result

    def to_pandas(self) -> Any:
        """`table` as a pandas DataFrame."""
        pandas = module("pandas", "pandas")
        table = self.table()
        return pandas.DataFrame({name: table[name] for name in LONG.names or ()}).astype({"tensor": "category", "measure": "category"})

    def _series(self, stream: str, column: int) -> Array:
        rows = [row for row in self._buckets[stream] if column < len(row.finite)]
        result = np.zeros(len(rows), TABLE)
        for name, at in (("first", 0), ("last", 1), ("time", 3)):
            result[name] = [row[at] for row in rows]
        result["count"], result["nonfinite"] = [row.finite[column] for row in rows], [row.nonfinite[column] for row in rows]
        for at, name in enumerate(("min", "mean", "max")):
            result[name] = [row.summary[at, column] for row in rows]
        seen: Array = result[result["count"] + result["nonfinite"] > 0]
        return seen

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, connection: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
        """Take over what is new in the file; whether anything is."""
        about, measures, scalars, revision, steps, observed, *per_bucket = row
        if revision == self._revision:
            return False
        self.about = _expect(dict, json.loads(about))
        self.measures = {_expect(str, each["name"]): each.get("reduction") for each in json.loads(measures)}
        self.scalars = tuple(_expect(str, each) for each in _expect(list, json.loads(scalars)))
        tensors = connection.execute("SELECT number, name, about FROM tensors WHERE track = ? ORDER BY number", (self._number,)).fetchall()
        if [number for number, *_ in tensors] != list(range(len(tensors))):
            raise ValueError("tensors are missing")
        self.tensors = {_expect(str, name): _expect(dict, json.loads(text)) for _, name, text in tensors}
        for stream, width in zip(STREAMS, per_bucket, strict=True):
            rows = self._buckets[stream]
            # Buckets before the last do not change unless they are joined.
            known = max(0, len(rows) - 1) if width == self._per_bucket[stream] else 0
            columns = "number, first, last, observations, time, columns, summary, counts"
            found = connection.execute(
                f"SELECT {columns} FROM buckets WHERE track = ? AND stream = ? AND number >= ? ORDER BY number", (self._number, stream, known)
            ).fetchall()
            if [each[0] for each in found] != list(range(known, known + len(found))):
                raise ValueError("buckets are missing")
            rows[known:] = [_bucket(each) for each in found]
            self._per_bucket[stream] = width
        self._read_events(connection)
        self._read_histograms(connection)
        self._read_rings(connection)
        self.steps, self.observed = _expect(int, steps), _expect(int, observed)
        self._revision = revision
        return True

    def _read_events(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(
            "SELECT step, time, kind, tensor, text, evidence FROM events WHERE track = ? ORDER BY id", (self._number,)
        ).fetchall()
        self.events, self.alarms = [], []
        for step, when, kind, tensor, text, evidence in rows:
            step, when, text = _expect(int, step), float(when), _expect(str, text)
            if kind == "alarm":
                self.alarms.append(Alarm(step, when, tensor, text, _expect(dict, json.loads(evidence or "{}"))))
            else:
                self.events.append(Event(step, when, _expect(str, kind), tensor, text))

    def _read_histograms(self, connection: sqlite3.Connection) -> None:
        there = [each for (each,) in connection.execute("SELECT id FROM histograms WHERE track = ? ORDER BY id", (self._number,))]
        columns = "histograms.id, step, time, tensor, name, counts, data"
        new = connection.execute(
            f"SELECT {columns} FROM histograms JOIN edges ON edges.id = histograms.edges WHERE track = ? AND histograms.id > ?",
            (self._number, max(self._histogram_ids, default=-1)),
        ).fetchall()
        for number, step, when, tensor, name, counts, data in new:
            edges = np.frombuffer(data, "<f8")
            bins = len(edges) - 1
            counted = np.frombuffer(counts, f"<u{len(counts) // bins}" if bins > 0 else "u1").astype(np.int64)
            if len(counted) != max(bins, 0):
                raise ValueError("a histogram has not as many counts as bins")
            self._histogram_ids[number] = Histogram(_expect(int, step), float(when), _expect(str, tensor), _expect(str, name), counted, edges)
        self._histogram_ids = {number: self._histogram_ids[number] for number in there}
        self.histograms = list(self._histogram_ids.values())

    def _read_rings(self, connection: sqlite3.Connection) -> None:
        columns = "id, step, time, reason, steps, times, columns, data, scalar_steps, scalar_times, scalars, scalar_data"
        new = connection.execute(f"SELECT {columns} FROM rings WHERE track = ? AND id > ? ORDER BY id", (self._number, self._last_ring)).fetchall()
        for number, step, when, reason, steps, times, width, data, scalar_steps, scalar_times, scalars, scalar_data in new:
            observed, told = np.frombuffer(steps, "<i8"), np.frombuffer(scalar_steps, "<i8")
            names = _expect(list, json.loads(scalars))
            values = from_bytes(data, len(observed), width)
            held = width // max(1, len(self.measures))  # tensors that came later are not in it
            values = values.reshape(len(observed), held, len(self.measures))
            table = np.frombuffer(scalar_data, "<f8").reshape(len(told), len(names))
            taken = np.frombuffer(times, "<f8"), np.frombuffer(scalar_times, "<f8")
            if len(taken[0]) != len(observed) or len(taken[1]) != len(told) or held > len(self.tensors):
                raise ValueError("a ring is not of one length")
            own = (tuple(self.tensors)[:held], tuple(self.measures))
            by_name = {_expect(str, name): table[:, at] for at, name in enumerate(names)}
            self.rings.append(Ring(_expect(str, reason), _expect(int, step), float(when), observed, taken[0], values, *own, told, taken[1], by_name))
            self._last_ring = number


class Session:
    """One recording: the tracks of one run.

    Attributes:
        path: The file.
        started, ended: When, in seconds since 1970; ``ended`` is None while it is written, and for ever if the process was killed: see `state`.
        about: What ran where: versions, platform, process.
        tracks: By name.
    """

    def __init__(self, path: str, key: str) -> None:
        self.path = path
        self.started = 0.0
        self.ended: float | None = None
        self.about: dict[str, Any] = {}
        self.tracks: dict[str, TrackData] = {}
        self._key = key

    def __repr__(self) -> str:
        return f"<recording {self.path!r}: {', '.join(map(repr, self.tracks)) or 'no tracks'}>"

    @property
    def state(self) -> str:
        """``ended``, ``running``, ``killed`` if it has not ended and its process is gone, or ``open`` if that cannot be told from here."""
        if self.ended is not None:
            return "ended"
        process = self.about.get("process")
        if os.name != "posix" or self.about.get("host") != platform.node() or not isinstance(process, int) or process < 1:
            return "open"
        try:
            os.kill(process, 0)  # which only asks
        except ProcessLookupError:
            return "killed"
        except OSError:  # it is somebody else's
            pass
        return "running"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("ended", "killed")

    def refresh(self) -> bool:
        """Read what was written since; whether anything was. Cheap: only what changed is read.

        Raises:
            RecordFormatError: The file is damaged, or no longer a recording. What was read before stays as it was, or is newer.
            RecordError: The session is no longer in the file.
            OSError: The file cannot be read.
        """
        with _reading(self.path) as connection:
            return self._read(connection)

    def follow(self, seconds: float = 1.0) -> Iterator[Session]:
        """The session, again each time that there is something new, until it has ended or its process is gone."""
        yield self
        while not self.is_over:
            time.sleep(seconds)
            if self.refresh() or self.is_over:
                yield self

    def diagnose(self, track: str | None = None) -> list[Finding]:
        """What `openadam doctor` finds in it, the most urgent first."""
        from .doctor import diagnose

        return diagnose(self, track)

    def table(self) -> Array:
        """The long tables of all tracks as one, with the column ``track`` before the others."""
        long = [(name, track.table()) for name, track in self.tracks.items()]
        result = np.zeros(sum(len(table) for _, table in long), [("track", "O"), *((name, LONG[name]) for name in LONG.names or ())])
        start = 0
        for name, table in long:
            rows = slice(start, start + len(table))
            result["track"][rows] = name
            for column in LONG.names or ():
                result[column][rows] = table[column]
            start += len(table)
        return result

    def _read(self, connection: sqlite3.Connection) -> bool:
        row = connection.execute("SELECT id, started, ended, about FROM sessions WHERE key = ?", (self._key,)).fetchone()
        if row is None:
            raise RecordError(f"{self.path!r} no longer holds this session: another file is in its place; load it again")
        number, started, ended, about = row
        changed: bool = ended != self.ended
        self.started, self.ended = float(started), None if ended is None else float(ended)
        self.about = _expect(dict, json.loads(about))
        columns = "id, name, about, measures, scalars, revision, steps, observed, scalars_per_bucket, measures_per_bucket"
        tracks = dict(self.tracks)
        for track, name, *rest in connection.execute(f"SELECT {columns} FROM tracks WHERE session = ? ORDER BY id", (number,)).fetchall():
            known = tracks.get(_expect(str, name))
            if known is None or known._number != track:
                known = tracks[name] = TrackData(track, name)
            changed |= known._read(connection, tuple(rest))
        self.tracks = tracks
        return changed


def load(path: str | os.PathLike[str], session: int = -1) -> Session:
    """A recording as plain data.

    Args:
        path: The file. It may be written at the same time.
        session: Which of its sessions: they count from 0 as they were started, -1 is the last.

    Raises:
        RecordFormatError: The file is no recording, is damaged, or is of a newer version.
        RecordError: There is no such session, or the file cannot be opened now.
        OSError: The file is not there or cannot be read.
    """
    name = os.path.abspath(os.fsdecode(path))
    with _reading(name) as connection:
        _check(connection)
        keys = [_expect(str, key) for (key,) in connection.execute("SELECT key FROM sessions ORDER BY id")]
        if not -len(keys) <= session < len(keys):
            raise RecordError(f"{name!r} holds {len(keys)} session{'s' if len(keys) != 1 else ''}; there is none with number {session}")
        result = Session(name, keys[session])
        result._read(connection)
    return result


def sessions(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The sessions of a file as they were started: plain data, with the names of their tracks."""
    with _reading(os.path.abspath(os.fsdecode(path))) as connection:
        _check(connection)
        found = []
        for number, started, ended, about in connection.execute("SELECT id, started, ended, about FROM sessions ORDER BY id").fetchall():
            tracks = [_expect(str, name) for (name,) in connection.execute("SELECT name FROM tracks WHERE session = ? ORDER BY id", (number,))]
            about = _expect(dict, json.loads(about))
            found.append({"started": float(started), "ended": None if ended is None else float(ended), "about": about, "tracks": tracks})
        return found


# --- the file ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: str) -> Iterator[sqlite3.Connection]:
    """One transaction over the file. Whatever it finds damaged is a named error."""
    if not identify(path):
        if not os.path.exists(path):
            raise FileNotFoundError(2, "there is no such recording", path)
        raise RecordFormatError(f"{path!r} is empty: nothing was recorded, or it is no recording")
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(contextlib.closing(_connect(path, stack)))
            yield connection
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise RecordError(f"{path!r} is locked by another process: try again") from error
            raise _damaged(path, error) from error
        except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError, RecursionError) as error:
            if isinstance(error, RecordError):
                raise
            raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> RecordFormatError:
    return RecordFormatError(f"{path!r} is damaged, or of another kind than it says ({type(error).__name__}: {error}); nothing was changed")


def _connect(path: str, stack: contextlib.ExitStack) -> sqlite3.Connection:
    """A transaction over the file, or over a copy of it if its log cannot be read where it is."""
    try:
        return _connected(f"file:{urllib.parse.quote(path)}?mode=ro")
    except sqlite3.OperationalError as error:
        if not any(word in str(error) for word in ("unable to open", "readonly")):
            raise
    copy = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="openadam-")), "copy")
    for ending in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path + ending, copy + ending)
    return _connected(f"file:{urllib.parse.quote(copy)}")


def _connected(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sessions").fetchone()  # only now is the file looked at
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise ValueError(str(found))


def _bucket(row: tuple[Any, ...]) -> _Row:
    _, first, last, observations, when, columns, summary, counts = row
    values = from_bytes(summary, 3, columns)  # first: it refuses a number of columns that is none
    if counts is None:
        finite, nonfinite = np.full(columns, _expect(int, observations), np.int64), np.zeros(columns, np.int64)
    else:
        finite, nonfinite = np.frombuffer(counts, "<u4").astype(np.int64).reshape(2, columns)
    return _Row(_expect(int, first), _expect(int, last), _expect(int, observations), float(when), values, finite, nonfinite)


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} where {kind.__name__} is written")
    return value


def _index(names: tuple[str, ...], name: str, what: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        shown = ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
        raise RecordError(f"there is no {what} {name!r} in this track; there are {shown or 'none'}") from None
