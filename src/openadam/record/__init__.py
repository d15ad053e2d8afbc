"""Recordings of training runs: `recorder` writes them, `session` reads them, `doctor` judges them, `exporters` hand them on.

`layout` is the file, `history` the buckets in it. What a host of tensors needs is `track`.
"""

from __future__ import annotations

from .doctor import Finding, by_disease, diagnose
from .exporters import FORMATS, export
from .recorder import Recorder, track
from .session import TABLE, Session, TrackData, load, sessions
from .track import Track

__all__ = [
    "FORMATS",
    "TABLE",
    "Finding",
    "Recorder",
    "Session",
    "Track",
    "TrackData",
    "by_disease",
    "diagnose",
    "export",
    "load",
    "sessions",
    "track",
]
