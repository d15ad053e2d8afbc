"""Hands recordings on to other tools: tables in files, and the trackers of experiments, each through its own library."""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from ..errors import RecordError
from ..extras import module
from .layout import to_json
from .session import TABLE, Session, TrackData

__all__ = ["FORMATS", "export"]

Array = npt.NDArray[Any]

COLUMNS = ("track", "tensor", "measure", *(TABLE.names or ()))
MLFLOW_BATCH, MLFLOW_TAG = 1000, 5000  # metrics in one call, and characters of a tag, at most


class Point(NamedTuple):
    """One number for a tracker."""

    name: str
    step: int
    time: float
    value: float


def export(session: Session, format: str, destination: str | os.PathLike[str] | TextIO, *, track: str | None = None) -> None:
    """Write a recording for another tool.

    Tables (``csv``, ``parquet``) have a row for each bucket of each series. ``jsonl`` holds all that the recording does, one object a line.
    Trackers get the mean of each bucket at its last step as ``adam/TENSOR/MEASURE`` (``adam/TRACK/TENSOR/MEASURE`` if there are several
    tracks) and, where buckets hold several values, their least and greatest under the same name with ``.min`` and ``.max``.

    Args:
        session: What `load` returned.
        format: A name in `FORMATS`.
        destination: A file for ``csv``, ``jsonl`` and ``parquet``, which is replaced (for the first two also one that is open as text); a folder
            for ``tensorboard`` and ``wandb``; an SQLite file or a tracking URI for ``mlflow``;
            the project's name for ``trackio``, which keeps it in a folder of its own.
        track: Only this one.

    Raises:
        RecordError: There is no such format or track.
        ImportError: The library is missing; the message names the extra.
        OSError: The destination cannot be written.
    """
    if format not in FORMATS:
        raise RecordError(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    if track is not None and track not in session.tracks:
        raise RecordError(f"there is no track {track!r}; there are {', '.join(map(repr, session.tracks)) or 'none'}")
    tracks = [each for name, each in session.tracks.items() if track in (None, name)]
    if not isinstance(destination, (str, os.PathLike)):
        if format not in TEXTS:
            raise RecordError(f"{format} is no text: name a destination")
        return TEXTS[format](session, tracks, destination)
    target = os.fspath(destination)
    if os.path.realpath(target) == os.path.realpath(session.path):
        raise RecordError(f"{target!r} is the recording itself: name another destination")
    if format in TEXTS:
        with open(target, "w", newline="", encoding="utf-8") as file:
            return TEXTS[format](session, tracks, file)
    return OTHERS[format](session, tracks, target)


# --- tables ------------------------------------------------------------------------------------------------------------


def _table(tracks: list[TrackData]) -> dict[str, Array]:
    tables = [(track.name, track.table()) for track in tracks]
    joined = {name: np.concatenate([table[name] for _, table in tables]) if tables else np.array([]) for name in COLUMNS[1:]}
    return {"track": np.repeat(np.array([name for name, _ in tables], object), [len(table) for _, table in tables]), **joined}


def _csv(session: Session, tracks: list[TrackData], file: TextIO) -> None:
    table = _table(tracks)
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in zip(*(table[name].tolist() for name in COLUMNS), strict=True):
        writer.writerow(["" if value != value else value for value in row])


def _parquet(session: Session, tracks: list[TrackData], target: str) -> None:
    arrow, parquet = module("pyarrow", "parquet"), module("pyarrow.parquet", "parquet")
    table = _table(tracks)
    texts = {name: arrow.array(table[name].tolist(), arrow.string()) for name in COLUMNS[:3]}
    numbers = {name: arrow.array(table[name].astype(TABLE[name])) for name in COLUMNS[3:]}
    parquet.write_table(arrow.table({**texts, **numbers}), target)


def _jsonl(session: Session, tracks: list[TrackData], file: TextIO) -> None:
    for line in _lines(session, tracks):
        file.write(json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n")


def _lines(session: Session, tracks: list[TrackData]) -> Iterator[dict[str, Any]]:
    """All of a recording as objects that JSON can hold; a number that is not finite is null."""
    yield {"kind": "session", "started": session.started, "ended": session.ended, "about": session.about}
    for track in tracks:
        own = {"track": track.name}
        yield {"kind": "track", **own, "about": track.about, "tensors": track.tensors, "measures": track.measures, "scalars": list(track.scalars)}
        table = track.table()
        for row in zip(*(table[name].tolist() for name in COLUMNS[1:]), strict=True):
            yield {"kind": "bucket", **own, **{name: _finite(value) for name, value in zip(COLUMNS[1:], row, strict=True)}}
        for event in track.events:
            yield {**event._asdict(), **own, "kind": event.kind}
        for alarm in track.alarms:
            yield {"kind": "alarm", **own, **alarm._asdict()}
        for kind, rows in (("ring", track.rings), ("histogram", track.histograms)):
            for each in rows:
                yield {"kind": kind, **own, **{name: _finite(value) for name, value in each._asdict().items()}}


def _finite(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- trackers ----------------------------------------------------------------------------------------------------------


def _points(session: Session, tracks: list[TrackData]) -> list[Point]:
    """What a tracker gets, in the order of time."""
    points: list[Point] = []
    for track in tracks:
        prefix = "adam" if len(session.tracks) == 1 else f"adam/{track.name}"
        series = {name: track.scalar(name) for name in track.scalars}
        series |= {f"{tensor}/{name}": track.measure(tensor, name) for tensor in track.tensors for name in track.measures}
        for name, table in series.items():
            table = table[table["count"] > 0]
            columns = [("mean", ""), ("min", ".min"), ("max", ".max")] if (table["count"] > 1).any() else [("mean", "")]
            for column, ending in columns:
                numbers = zip(table["last"].tolist(), table["time"].tolist(), table[column].tolist(), strict=True)
                points += [Point(f"{prefix}/{name}{ending}", *each) for each in numbers]
    return sorted(points, key=lambda point: point.time)


def _by_step(session: Session, tracks: list[TrackData]) -> Iterator[tuple[int, dict[str, float]]]:
    """What belongs to one step together, for trackers that take it so."""
    step = 0
    values: dict[str, float] = {}
    for point in _points(session, tracks):
        if values and (point.step != step or point.name in values):
            yield step, values
            values = {}
        step = point.step
        values[point.name] = point.value
    if values:
        yield step, values


def _settings(session: Session, tracks: list[TrackData]) -> dict[str, Any]:
    """What a tracker shows as the configuration of a run."""
    plain: dict[str, Any] = json.loads(to_json({**session.about, "tracks": {track.name: track.about for track in tracks}}))
    return plain


def _tensorboard(session: Session, tracks: list[TrackData], target: str) -> None:
    with module("tensorboardX", "tensorboard").SummaryWriter(target) as writer:
        for point in _points(session, tracks):
            writer.add_scalar(point.name, point.value, point.step, point.time)
        for track in tracks:
            for event in track.events:
                writer.add_text(f"adam/{track.name}/{event.kind}", event.text, event.step, event.time)
            for alarm in track.alarms:
                writer.add_text(f"adam/{track.name}/alarm", f"{alarm.what} {alarm.tensor or ''} {alarm.evidence or ''}", alarm.step, alarm.time)


def _wandb(session: Session, tracks: list[TrackData], target: str) -> None:
    wandb = module("wandb", "wandb")
    os.makedirs(target, exist_ok=True)
    name = pathlib.Path(session.path).stem
    with wandb.init(mode="offline", dir=target, project="openadam", name=name, config=_settings(session, tracks), reinit="create_new") as run:
        # Its own steps only ever grow; a run that loaded an earlier state goes back.
        run.define_metric("adam/step")
        run.define_metric("adam/*", step_metric="adam/step")
        for step, values in _by_step(session, tracks):
            run.log({"adam/step": step, **values})


def _mlflow(session: Session, tracks: list[TrackData], target: str) -> None:
    mlflow = module("mlflow", "mlflow")
    if "://" not in target:
        target = f"sqlite:///{pathlib.Path(target).absolute()}"
    client = mlflow.MlflowClient(tracking_uri=target)
    experiment = client.get_experiment_by_name("openadam")
    number = experiment.experiment_id if experiment is not None else client.create_experiment("openadam")
    run = client.create_run(number, run_name=pathlib.Path(session.path).stem, start_time=int(session.started * 1000)).info.run_id
    metric = mlflow.entities.Metric
    points = [
        metric(re.sub(r"[^\w\-. /]", "_", point.name, flags=re.ASCII), point.value, int(point.time * 1000), point.step)
        for point in _points(session, tracks)
    ]
    for start in range(0, len(points), MLFLOW_BATCH):
        client.log_batch(run, metrics=points[start : start + MLFLOW_BATCH])
    client.set_tag(run, "openadam", to_json(_settings(session, tracks))[:MLFLOW_TAG])
    client.set_terminated(run)


def _trackio(session: Session, tracks: list[TrackData], target: str) -> None:
    trackio = module("trackio", "trackio")
    name = pathlib.Path(session.path).stem
    trackio.init(project=target, name=name, config=_settings(session, tracks), embed=False, auto_log_gpu=False, auto_log_cpu=False)
    for step, values in _by_step(session, tracks):
        trackio.log(values, step=step)
    trackio.finish()


TEXTS: dict[str, Callable[[Session, list[TrackData], TextIO], None]] = {"csv": _csv, "jsonl": _jsonl}
OTHERS: dict[str, Callable[[Session, list[TrackData], str], None]] = {
    "parquet": _parquet,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
FORMATS = (*TEXTS, *OTHERS)
"""The formats of `export`; all but the first two need the extra of their name."""
