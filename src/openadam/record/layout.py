"""The layout of a recording's file, an SQLite database: its tables, and arrays as bytes. docs/record-format.md describes it for readers."""

from __future__ import annotations

import json
import math
import os
import stat
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RecordError, RecordFormatError

__all__ = ["APPLICATION", "SCHEMA", "STREAMS", "VERSION", "from_bytes", "identify", "to_bytes", "to_json", "to_text"]

Array = npt.NDArray[Any]

APPLICATION = 0x6F41646D  # "oAdm", in the header of the database
VERSION = 1
STREAMS = ("scalars", "measures")

SCHEMA = f"""
CREATE TABLE sessions(
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, started REAL NOT NULL, ended REAL, about TEXT NOT NULL);
CREATE TABLE tracks(
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions(id), name TEXT NOT NULL, about TEXT NOT NULL,
    measures TEXT NOT NULL, scalars TEXT NOT NULL, revision INTEGER NOT NULL, steps INTEGER NOT NULL, observed INTEGER NOT NULL,
    scalars_per_bucket INTEGER NOT NULL, measures_per_bucket INTEGER NOT NULL);
CREATE INDEX tracks_of_session ON tracks(session);
CREATE TABLE tensors(
    track INTEGER NOT NULL REFERENCES tracks(id), number INTEGER NOT NULL, name TEXT NOT NULL, about TEXT NOT NULL,
    PRIMARY KEY (track, number));
CREATE TABLE buckets(
    track INTEGER NOT NULL REFERENCES tracks(id), stream TEXT NOT NULL, number INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, observations INTEGER NOT NULL, time REAL NOT NULL,
    columns INTEGER NOT NULL, summary BLOB NOT NULL, counts BLOB,
    PRIMARY KEY (track, stream, number));
CREATE TABLE events(
    id INTEGER PRIMARY KEY, track INTEGER NOT NULL REFERENCES tracks(id), kind TEXT NOT NULL, number INTEGER NOT NULL,
    step INTEGER NOT NULL, time REAL NOT NULL, tensor TEXT, text TEXT NOT NULL, evidence TEXT);
CREATE INDEX events_of_track ON events(track, kind, number);
CREATE TABLE histograms(
    id INTEGER PRIMARY KEY, track INTEGER NOT NULL REFERENCES tracks(id), tensor TEXT NOT NULL, name TEXT NOT NULL,
    number INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, edges INTEGER NOT NULL REFERENCES edges(id), counts BLOB NOT NULL);
CREATE INDEX histograms_of_track ON histograms(track, tensor, name);
CREATE TABLE edges(id INTEGER PRIMARY KEY, data BLOB NOT NULL UNIQUE);
CREATE TABLE rings(
    id INTEGER PRIMARY KEY, track INTEGER NOT NULL REFERENCES tracks(id), step INTEGER NOT NULL, time REAL NOT NULL, reason TEXT NOT NULL,
    steps BLOB NOT NULL, times BLOB NOT NULL, columns INTEGER NOT NULL, data BLOB NOT NULL,
    scalar_steps BLOB NOT NULL, scalar_times BLOB NOT NULL, scalars TEXT NOT NULL, scalar_data BLOB NOT NULL);
CREATE INDEX rings_of_track ON rings(track);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""

MAGIC = b"SQLite format 3\x00"
HEADER_BYTES = 100


def identify(path: str) -> bool:
    """Whether a recording is at the path, rather than nothing or an empty file.

    Raises:
        RecordFormatError: Something else is there.
        OSError: It cannot be read.
    """
    try:
        # Opening must not wait, as it would for a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0))
    except FileNotFoundError:
        return False
    except PermissionError as error:
        if os.path.isdir(path):  # as Windows says it
            raise RecordFormatError(f"{path!r} is a directory, not a recording: name a file in it") from None
        raise RecordError(f"{path!r} may not be read ({error.strerror})") from None
    try:
        logged = _has_log(path)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise RecordFormatError(f"{path!r} is a directory, not a recording: name a file in it")
        if not stat.S_ISREG(mode):
            raise RecordFormatError(f"{path!r} is not a regular file, so it is no recording: give another path")
        header = os.read(descriptor, HEADER_BYTES)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if not header:
        return False
    if not header.startswith(MAGIC):
        raise RecordFormatError(f"{path!r} is not a recording: it begins with {header[:16]!r}, not as an SQLite database; it was left as it is")
    if len(header) < HEADER_BYTES:
        raise RecordFormatError(f"{path!r} is damaged: it ends after {len(header)} bytes")
    application, version = int.from_bytes(header[68:72], "big"), int.from_bytes(header[60:64], "big")
    if application != APPLICATION:
        raise RecordFormatError(
            f"{path!r} is not a recording: it is an SQLite database of another program (application_id {application:#x}, not {APPLICATION:#x}); "
            "it was left as it is"
        )
    if not 1 <= version <= VERSION:
        raise RecordFormatError(f"{path!r} has format {version}; this version of openadam reads up to {VERSION}: upgrade openadam")
    pages, page = int.from_bytes(header[28:32], "big"), int.from_bytes(header[16:18], "big")
    if size < pages * page and not logged and not _has_log(path):  # else the log may hold the rest
        raise RecordFormatError(
            f"{path!r} is damaged: it ends after {size} of {pages * page} bytes; copy it again, with its -wal file if there is one"
        )
    return True


def _has_log(path: str) -> bool:
    try:
        return os.path.getsize(path + "-wal") > 0
    except OSError:
        return False


def to_bytes(*rows: Array) -> bytes:
    """Rows of numbers as float32, little-endian, or as float64 where one of them would leave the range of float32."""
    values = np.asarray(rows, np.float64)
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    limits = np.finfo(np.float32)
    fits = not size.size or (size.min() >= limits.smallest_normal and size.max() <= limits.max)
    return values.astype("<f4" if fits else "<f8").tobytes()


def from_bytes(data: bytes, rows: int, columns: int) -> Array:
    """What `to_bytes` wrote, as float64."""
    if columns < 0 or rows < 0 or len(data) not in (4 * rows * columns, 8 * rows * columns):
        raise ValueError(f"{len(data)} bytes are not {rows} x {columns} numbers")
    return np.frombuffer(data, "<f4" if len(data) == 4 * rows * columns else "<f8").reshape(rows, columns).astype(np.float64)


def to_json(value: Any) -> str:
    """Plain data as strict JSON: numbers that are not finite and whatever JSON lacks become text."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode(errors="replace").decode()


def to_text(value: Any) -> str:
    """Text that a database takes: half a surrogate pair, as of an odd file name, becomes a question mark."""
    return str(value).encode(errors="replace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
