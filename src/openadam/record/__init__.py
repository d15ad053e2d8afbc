"""Recordings of training runs: `recorder` writes them, `session` reads them, `exporters` hand them on.

`layout` is the file, `history` the buckets in it. What a host of tensors needs is `track`.
"""

from __future__ import annotations

from .exporters import FORMATS, export
from .recorder import Recorder, track
from .session import TABLE, Session, TrackData, load, sessions
from .track import Track

__all__ = ["FORMATS", "TABLE", "Recorder", "Session", "Track", "TrackData", "export", "load", "sessions", "track"]
