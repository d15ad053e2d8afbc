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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RecordError, RecordFormatError
from .layout import SCHEMA, identify, to_json, to_text
from .track import Batch, Track

__all__ = ["Recorder", "track"]

Array = npt.NDArray[Any]

BUSY_SECONDS = 2.0  # to wait for another process that writes to the same file
EXIT_SECONDS = 10.0  # to wait at exit for a flush in progress
FORK_SECONDS = 1.0  # and before a fork
LONGEST_PAUSE = 60.0  # seconds between attempts to write to a disk that fails

logger = logging.getLogger("openadam.record")


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
        if not wished:
            raise RecordError("the name that an optimizer is to have in its recording is empty; give it one, or leave it out")
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
                logger.warning("the recording %r ends before its run does: what came last could not be written", self.path)
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
        batches: list[tuple[Track, Batch]] = []
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

    def _write(self, batches: Sequence[tuple[Track, Batch]]) -> None:
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
        raise RecordError(f"{path!r} cannot be recorded to: {'it' if there else repr(directory)} may not be written; give another path")


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
