"""Recordings: histories that lose no spike, files that survive what befalls them, and training that none of it stops."""

from __future__ import annotations

import contextlib
import copy
import csv
import gc
import io
import json
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support import python

from openadam import cli, record
from openadam.errors import RecordError, RecordFormatError
from openadam.record import layout, recorder
from openadam.record.history import History

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")

ABOUT = {
    "optimizer": "Adam",
    "rule": "adam",
    "groups": [{"lr": 1e-3, "betas": (np.float32(0.5), float("inf"))}],
    "tensors": [{"name": "w", "shape": (2, 3), "dtype": "float32"}, {"name": "b", "shape": (3,), "dtype": "float32"}],
    "measures": [{"name": "grad_sum_squares", "reduction": "sum"}, {"name": "grad_max_abs", "reduction": "max"}],
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run.oadam")


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    yield
    for each in list(recorder._recorders):
        each.close()
    recorder._noted = None


def values(step: int) -> np.ndarray[Any, Any]:
    return np.array([[step, step + 0.25], [-step, step + 0.5]], float)


def write(path: str, steps: int = 30, **options: Any) -> None:
    with record.Recorder(path, **options) as each:
        track = each.track(ABOUT)
        for step in range(1, steps + 1):
            track.observe(step, values(step), {"loss": 1.0 / step, "grad_norm": step})
        track.event(3, "target sync")
        track.skipped(4, "a gradient is not finite")
        track.alarm(5, "w", "exploding", {"ratio": 12.5, "limit": float("inf")})
        track.histogram(5, "w", "update", np.array([1, 0, 300]), np.array([0.0, 0.5, 1.0, 2.0]))


# --- the history ---------------------------------------------------------------------------------------------------------


def fill(history: History, table: np.ndarray[Any, Any], measured: np.ndarray[Any, Any], cuts: list[int]) -> None:
    steps = np.arange(len(table))
    for start, stop in zip([0, *cuts], [*cuts, len(table)], strict=True):
        history.add(steps[start:stop], steps[start:stop] / 2.0, table[start:stop], measured[start:stop])


@given(st.data(), st.integers(0, 400), st.sampled_from([2, 4, 6, 16]), st.integers(1, 3))
@settings(max_examples=60)
def test_a_history_keeps_least_mean_greatest_and_counts_exactly(data: st.DataObject, length: int, buckets: int, columns: int) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    table = np.ldexp(random.standard_normal((length, columns)), random.integers(-40, 40, (length, columns)))
    table[random.random(table.shape) < 0.1] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0]))
    measured = random.random(table.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=8)))
    history = History(buckets)
    history.widen(columns)
    fill(history, table, measured, cuts)

    assert history.size <= buckets
    assert (length == 0) == (history.size == 0)
    covered = 0
    for at in range(history.size):
        bucket = history.bucket(at)
        assert bucket.observations == history.per_bucket or at == history.size - 1
        rows = slice(covered, covered + bucket.observations)
        assert (bucket.first, bucket.last, bucket.time) == (covered, rows.stop - 1, (rows.stop - 1) / 2.0)
        for column in range(columns):
            seen = table[rows, column][measured[rows, column]]
            finite = seen[np.isfinite(seen)]
            assert (bucket.finite[column], bucket.nonfinite[column]) == (len(finite), len(seen) - len(finite))
            if len(finite):
                assert (bucket.minimum[column], bucket.maximum[column]) == (finite.min(), finite.max())
                assert abs(bucket.mean[column] - finite.mean()) <= 1e-12 * np.abs(finite).max()
                assert bucket.minimum[column] <= bucket.mean[column] <= bucket.maximum[column]
            else:
                assert np.isnan([bucket.minimum[column], bucket.mean[column], bucket.maximum[column]]).all()
        covered = rows.stop
    assert covered == length


def test_a_history_is_the_same_however_it_is_cut() -> None:
    table = np.random.default_rng(0).standard_normal((1000, 2))
    seen = np.ones(table.shape, bool)
    one, other = History(8), History(8)
    for each in (one, other):
        each.widen(2)
    fill(one, table, seen, [])
    fill(other, table, seen, list(range(1, 1000)))
    assert one.size == other.size == 8
    for at in range(8):
        left, right = one.bucket(at), other.bucket(at)
        assert left[:4] == right[:4]
        np.testing.assert_array_equal(left.minimum, right.minimum)
        np.testing.assert_allclose(left.mean, right.mean, rtol=1e-13)


def test_the_mean_of_numbers_whose_sum_leaves_the_range_is_among_them() -> None:
    for column in ([1.7e308] * 4, [-1.7e308] * 4, [1.7e308, 1.7e308, -1.7e308, -1.7e308]):
        history = History(2)
        history.widen(1)
        fill(history, np.array(column * 2)[:, None], np.ones((8, 1), bool), [])
        bucket = history.bucket(0)
        assert bucket.minimum[0] <= bucket.mean[0] <= bucket.maximum[0]


def test_series_that_come_later_have_no_past() -> None:
    history = History(4)
    history.widen(1)
    fill(history, np.ones((3, 1)), np.ones((3, 1), bool), [])
    history.widen(2)
    fill(history, np.full((6, 2), 2.0), np.ones((6, 2), bool), [])
    assert [history.bucket(at).finite.tolist() for at in range(history.size)] == [[4, 1], [4, 4], [1, 1]]


@pytest.mark.parametrize("number", [1e-300, 1e300, 1e-40, 3.5e38])
def test_numbers_outside_float32_keep_their_magnitude(path: str, number: float) -> None:
    with record.Recorder(path) as each:
        track = each.track({"tensors": [{"name": "w"}], "measures": [{"name": "x"}]})
        track.observe(1, np.array([[number]]))
        track.observe(2, np.array([[1.0]]))
    assert record.load(path).tracks["optimizer"].measure("w", "x")["max"].tolist() == [number, 1.0]


# --- what was told comes back -------------------------------------------------------------------------------------------------


def test_what_was_told_comes_back(path: str) -> None:
    write(path)
    session = record.load(path)
    assert session.ended is not None
    assert session.started <= session.ended
    assert session.about["process"] == os.getpid()
    assert session.about["numpy"] == np.__version__
    track = session.tracks["Adam"]
    assert (track.steps, track.observed, track.last_step) == (30, 30, 30)
    assert track.about == {"optimizer": "Adam", "rule": "adam", "groups": [{"lr": 1e-3, "betas": [0.5, "inf"]}]}
    assert track.tensors["b"] == {"name": "b", "shape": [3], "dtype": "float32"}
    assert track.measures == {"grad_sum_squares": "sum", "grad_max_abs": "max"}
    assert track.scalars == ("loss", "grad_norm")
    loss = track.scalar("loss")
    assert loss["first"].tolist() == loss["last"].tolist() == list(range(1, 31))
    np.testing.assert_allclose(loss["mean"], 1 / np.arange(1, 31), rtol=1e-7)
    assert (np.diff(loss["time"]) >= 0).all()
    assert track.measure("b", "grad_sum_squares")["min"].tolist() == [-float(step) for step in range(1, 31)]
    assert [(each.step, each.kind, each.text) for each in track.events] == [(3, "event", "target sync"), (4, "skipped", "a gradient is not finite")]
    (alarm,) = track.alarms
    assert (alarm.step, alarm.tensor, alarm.what, alarm.evidence) == (5, "w", "exploding", {"ratio": 12.5, "limit": "inf"})
    (histogram,) = track.histograms
    assert (histogram.tensor, histogram.name, histogram.counts.tolist(), histogram.edges.tolist()) == ("w", "update", [1, 0, 300], [0, 0.5, 1, 2])
    (ring,) = track.rings
    assert (ring.reason, ring.tensors, ring.measures) == ("alarm: exploding", ("w", "b"), ("grad_sum_squares", "grad_max_abs"))
    np.testing.assert_array_equal(ring.values, [values(step) for step in range(1, 31)])
    assert ring.scalar_steps.tolist() == ring.steps.tolist() == list(range(1, 31))
    assert ring.scalars["grad_norm"].tolist() == list(range(1, 31))
    table = track.table()
    assert len(table) == 30 * (2 + 4)
    assert set(table["tensor"]) == {"", "w", "b"}
    assert len(session.table()) == len(table)
    with pytest.raises(RecordError, match="no tensor 'x' in this track; there are 'w', 'b'"):
        track.measure("x", "grad_max_abs")


def test_a_finished_recording_is_one_file(path: str) -> None:
    write(path)
    assert os.listdir(os.path.dirname(path)) == ["run.oadam"]
    record.load(path)
    assert os.listdir(os.path.dirname(path)) == ["run.oadam"]


def test_what_is_not_finite_is_counted_apart_from_what_was_not_measured(path: str) -> None:
    with record.Recorder(path, buckets=2) as each:
        track = each.track(ABOUT)
        for step in range(1, 5):
            bad = values(step)
            bad[0, 0] = np.nan if step == 2 else np.inf if step == 3 else bad[0, 0]
            track.observe(step, bad, {"loss": np.nan if step == 1 else 2.0, "lr": None}, measured=np.array([[True], [step > 2]]))
        track.observe(5, np.array([[np.nan, 1.0], [1.0, 1.0]]))
    track_data = record.load(path).tracks["Adam"]
    (first,) = track_data.measure("w", "grad_sum_squares")
    assert (first["count"], first["nonfinite"], first["min"], first["mean"], first["max"]) == (2, 2, 1, 2.5, 4)
    assert track_data.measure("b", "grad_max_abs")["count"].tolist() == [2, 1]
    assert track_data.scalars == ("loss",)
    assert track_data.scalar("loss")[["count", "nonfinite"]].tolist() == [(1, 1), (2, 0)]


def test_tensors_may_come_and_go(path: str) -> None:
    with record.Recorder(path, buckets=4) as each:
        track = each.track(ABOUT)
        track.observe(1, values(1))
        track.alarm(1, None, "early")
        each.flush()
        track.tensors([{"name": "new"}, {"name": "b"}])
        for step in range(2, 9):
            track.observe(step, np.array([[step, 0], [step + 0.5, 0]], float))
        with pytest.raises(ValueError, match="for 2 tensors and 2 measures"):
            track.observe(9, np.zeros((3, 2)))
        with pytest.raises(RecordError, match="2 tensors have 1 different names"):
            track.tensors([{"name": "new"}, {"name": "new"}])
    track_data = record.load(path).tracks["Adam"]
    assert list(track_data.tensors) == ["w", "b", "new"]
    assert track_data.measure("w", "grad_sum_squares")[["first", "count", "max"]].tolist() == [(1, 1, 1.0)]
    assert track_data.measure("new", "grad_sum_squares")["count"].sum() == 7
    assert track_data.measure("b", "grad_sum_squares")["max"].max() == 8.5
    assert track_data.rings[0].values.shape == (1, 2, 2)


def test_steps_may_go_back(path: str) -> None:
    with record.Recorder(path) as each:
        track = each.track({})
        for step in (5, 6, 7, 3, 4):
            track.step(step, {"loss": step})
    assert record.load(path).tracks["optimizer"].scalar("loss")["first"].tolist() == [5, 6, 7, 3, 4]


def test_the_schedule(path: str) -> None:
    with record.Recorder(path, dense=3, every=10) as each:
        track = each.track(ABOUT)
        assert [step for step in range(1, 41) if track.wants(step)] == [1, 2, 3, 10, 20, 30, 40]
        track.event(43, "mark")
        assert [step for step in range(41, 81) if track.wants(step)] == [*range(43, 64), 70, 80]
        track.alarm(81, None, "x")
        assert track.wants(82)
        assert [step for step in range(30) if track.wants(step)] == [0, 1, 2, 10, 20], "an earlier state was loaded"
    assert not track.wants(10)


def test_odd_texts(path: str) -> None:
    with record.Recorder(path) as each:
        track = each.track({"optimizer": "Ad\ud800am \0", "tensors": [{"name": "w\ud800"}]})
        track.event(np.int64(1), "half \udc00 \0 ' \" \n")  # type: ignore[arg-type]
        track.alarm(1, "w\ud800", "x", {"a": {1, 2}, "b": np.arange(2), "c": np.float32("nan")})
        assert each.flush()
    track_data = record.load(path).tracks["Ad?am \0"]
    assert track_data.events[0].text == "half ? \0 ' \" \n"
    assert track_data.alarms[0].evidence == {"a": "{1, 2}", "b": [0, 1], "c": "nan"}


# --- bounds --------------------------------------------------------------------------------------------------------------


def test_the_file_is_bounded(path: str) -> None:
    """50 tensors x 16 measures x 200,000 observations: the history is told in one go, the file is what a run would leave."""
    about = {"tensors": [{"name": f"layer.{i}"} for i in range(50)], "measures": [{"name": f"m{i}"} for i in range(16)]}
    with record.Recorder(path, flush=3600) as each:  # what follows goes around the track's lock
        track = each.track(about)
        history = track._history["measures"]
        block = np.random.default_rng(0).standard_normal((2000, 800))
        seen = np.ones(block.shape, bool)
        spike = 123_456
        for start in range(0, 200_000, 2000):
            steps = np.arange(start, start + 2000)
            block[spike - start if start <= spike < start + 2000 else 0, 7] = 1e6 if start <= spike < start + 2000 else 0
            history.add(steps, steps / 1.0, block, seen)
            block[:, 7] = 0
            if start % 20_000 == 0:
                each.flush()
        assert history.size <= 512
    assert os.path.getsize(path) < 6_500_000
    table = record.load(path).tracks["optimizer"].measure("layer.0", "m7")
    assert table["max"].max() == 1e6
    assert table["count"].sum() == 200_000
    assert 256 <= len(table) <= 512


def test_events_histograms_rings_and_names_are_bounded(path: str) -> None:
    with record.Recorder(path, ring=2, flush=3600) as each:
        track = each.track(ABOUT)
        for step in range(10_000):
            track.step(step, {f"loss {step}": step} if step % 10 == 0 else {})
            track.alarm(step, None, "again")
            track.histogram(step, "w", "g", np.array([step]), np.array([0.0, 1.0]))
            if step % 700 == 0:
                assert each.flush()
    data = record.load(path).tracks["Adam"]
    assert [each.step for each in data.alarms] == [*range(500), *range(9500, 10_000)]
    assert len(data.rings) <= 20 + 9
    kept = [each.step for each in data.histograms]
    assert 16 <= len(kept) <= 32
    assert len(set(np.diff(kept))) == 1
    assert [each.counts.tolist() for each in data.histograms] == [[step] for step in kept]
    assert len(data.scalars) == 256


# --- several optimizers, several runs -----------------------------------------------------------------------------------------


def test_optimizers_share_a_recording_by_path_or_recorder(path: str) -> None:
    one, two = record.track(path, ABOUT), record.track(Path(path), ABOUT)
    named = record.track(one.recorder, ABOUT, "discriminator")
    assert one.recorder is two.recorder
    for number, each in enumerate((one, two, named)):
        each.step(1, {"loss": number})
    one.recorder.close()
    session = record.load(path)
    assert [each["tracks"] for each in record.sessions(path)] == [["Adam", "Adam 2", "discriminator"]]
    assert [each.scalar("loss")["mean"].tolist() for each in session.tracks.values()] == [[0], [1], [2]]


def test_a_run_that_is_started_again_adds_a_session(path: str) -> None:
    for length in (3, 5):
        write(path, length)
    assert [record.load(path, number).tracks["Adam"].steps for number in (0, 1, -1)] == [3, 5, 5]
    assert [each["tracks"] for each in record.sessions(path)] == [["Adam"], ["Adam"]]
    with pytest.raises(RecordError, match="holds 2 sessions; there is none with number 2"):
        record.load(path, 2)


def test_a_recording_by_path_ends_with_its_last_track(path: str) -> None:
    track = record.track(path, ABOUT)
    track.recorder._seconds = 0.01
    track.step(1, {"loss": 1})
    track.close()
    track.step(2, {"loss": 1})
    wait(lambda: track.recorder._closed and not os.path.exists(path + "-wal"))
    session = record.load(path)
    assert session.ended is not None
    assert session.tracks["Adam"].steps == 1
    another = record.track(path, ABOUT)
    assert another.recorder is not track.recorder
    with pytest.raises(RecordError, match="is closed"):
        track.recorder.track(ABOUT)


def test_a_copy_of_a_track_records_nothing(path: str) -> None:
    track = record.track(path, ABOUT)
    assert copy.deepcopy({"record": track}) == {"record": None}
    assert pickle.loads(pickle.dumps(track)) is None


def test_threads_lose_nothing(path: str) -> None:
    with record.Recorder(path, ring=8, flush=0.01) as each:
        track = each.track(ABOUT)

        def work() -> None:
            for step in range(500):
                track.observe(step, values(step), {"loss": step})
                track.event(step, "x") if step % 50 == 0 else None

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    data = record.load(path).tracks["Adam"]
    assert data.scalar("loss")["count"].sum() == data.measure("w", "grad_max_abs")["count"].sum() == 2000
    assert len(data.events) == 40
    assert abs((data.scalar("loss")["mean"] * data.scalar("loss")["count"]).sum() - 4 * sum(range(500))) < 1


# --- paths that cannot be -------------------------------------------------------------------------------------------------------


def test_a_step_waits_for_no_disk(path: str) -> None:
    with record.Recorder(path) as each:
        track = each.track(ABOUT)
        with each._disk:  # as if a flush took for ever; this lock would not be had twice
            for step in range(5000):
                track.observe(step, values(step), {"loss": step})
            track.event(5000, "x")
            track.skipped(5000, "x")
            track.alarm(5000, "w", "x")
            track.failed(5000, ValueError("x"))
            track.histogram(5000, "w", "x", np.array([1]), np.array([0.0, 1.0]))
            track.tensors(ABOUT["tensors"])
            track.close()
    assert record.load(path).tracks["Adam"].observed == 5000


def test_impossible_paths_and_options_are_refused_at_once(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, not a recording\n" * 10)
    short = tmp_path / "short"
    short.write_bytes(layout.MAGIC + b"\0" * 20)
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE mine(a)")
    future = tmp_path / "future.oadam"
    write(str(future))
    with contextlib.closing(sqlite3.connect(future)) as connection:
        connection.execute("PRAGMA user_version = 2")
    refused: list[tuple[Any, type[Exception], str]] = [
        (tmp_path / "none" / "run.oadam", RecordError, "there is no directory"),
        (tmp_path, RecordFormatError, "is a directory"),
        (text, RecordFormatError, "is not a recording: it begins with b'these are my not'"),
        (short, RecordFormatError, "is damaged: it ends after 36 bytes"),
        (foreign, RecordFormatError, "another program"),
        (future, RecordFormatError, "has format 2; this version of openadam reads up to 1"),
        (7, RecordError, "give a path"),
        ("", RecordError, "is no path"),
        ("a\0b", RecordError, "is no path"),
    ]
    for where, error, message in refused:
        before = Path(where).read_bytes() if isinstance(where, Path) and where.is_file() else None
        with pytest.raises(error, match=message):
            record.Recorder(where)
        with pytest.raises(error, match=message):
            record.track(where, ABOUT)
        if before is not None:
            assert where.read_bytes() == before
        if where not in (7, "", "a\0b") and error is RecordFormatError:
            with pytest.raises(error, match=message):
                record.load(where)
    with pytest.raises(FileNotFoundError):
        record.load(tmp_path / "nothing")
    (tmp_path / "empty").touch()
    with pytest.raises(RecordFormatError, match="is empty"):
        record.load(tmp_path / "empty")
    record.Recorder(tmp_path / "empty").close()
    for options in ({"every": 0}, {"dense": -1}, {"ring": 0}, {"buckets": 3}, {"buckets": 0}, {"flush": 0}, {"every": 2.5}, {"ring": True}):
        with pytest.raises(RecordError, match=next(iter(options))):
            record.Recorder(tmp_path / "run.oadam", **options)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "foreign.db", "future.oadam", "notes.txt", "short"]


@posix
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordFormatError, match="not a regular file"):
        record.load(tmp_path / "pipe")


# --- damage --------------------------------------------------------------------------------------------------------------


def read_all(path: str) -> None:
    """Either plain data, all of which can be looked at, or a named error."""
    try:
        session = record.load(path)
        record.sessions(path)
    except RecordError as refused:
        if path not in str(refused):
            raise
        return
    for track in session.tracks.values():
        track.table()
    session.table()
    repr((session, *session.tracks.values()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = str(tmp_path_factory.mktemp("whole") / "run.oadam")
    write(path, 300, buckets=16)
    return Path(path).read_bytes()


def test_truncated_files(whole: bytes, tmp_path: Path) -> None:
    path = str(tmp_path / "cut.oadam")
    lengths = {0, 1, 15, 16, 50, 99, 100, 101, *range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}
    for length in lengths:
        Path(path).write_bytes(whole[:length])
        with pytest.raises(RecordFormatError):
            record.load(path)
    Path(path).write_bytes(whole)
    record.load(path)


@given(st.data())
@settings(max_examples=150)
def test_flipped_bytes(whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = str(tmp_path_factory.getbasetemp() / "flipped.oadam")
    for ending in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ending)
    Path(path).write_bytes(damaged)
    read_all(path)


WRONG = [
    "UPDATE tracks SET scalars = '{'",
    "UPDATE tracks SET scalars = '[1]'",
    "UPDATE tracks SET about = '[]'",
    "UPDATE tracks SET measures = '[7]'",
    "UPDATE tracks SET measures = '{}'",
    "UPDATE tracks SET steps = 'many'",
    "UPDATE tracks SET name = x'ff'",
    "UPDATE tracks SET measures_per_bucket = 'x'",
    "UPDATE buckets SET columns = -1",
    "UPDATE buckets SET columns = 1000000000000",
    "UPDATE buckets SET columns = 'x'",
    "UPDATE buckets SET summary = x'00'",
    "UPDATE buckets SET counts = x'00'",
    "UPDATE buckets SET first = 'x'",
    "UPDATE buckets SET time = 'x'",
    "DELETE FROM buckets WHERE number = 1",
    "DELETE FROM tensors WHERE number = 0",
    "UPDATE events SET evidence = '[' WHERE kind = 'alarm'",
    "UPDATE events SET text = x'ff'",
    "UPDATE edges SET data = x'00'",
    "DELETE FROM edges",
    "UPDATE histograms SET counts = x''",
    "UPDATE histograms SET counts = x'00000000000000'",
    "UPDATE rings SET steps = x'00'",
    "UPDATE rings SET columns = 3",
    "UPDATE rings SET scalars = '7'",
    "UPDATE rings SET scalar_data = x'0000'",
    "UPDATE sessions SET about = '7'",
    "UPDATE sessions SET started = 'x'",
    "UPDATE sessions SET key = x'00'",
    "DROP TABLE rings",
    "DROP TABLE sessions",
]


@pytest.mark.parametrize("statement", WRONG)
def test_contents_of_other_kinds(whole: bytes, path: str, statement: str) -> None:
    Path(path).write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    read_all(path)


# --- reading while it is written ------------------------------------------------------------------------------------------


def wait(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


WRITER = """
import os, signal, sys, time
import numpy as np
from openadam import record

track = record.Recorder(sys.argv[1], flush=0.1, buckets=64).track(
    {"optimizer": "Adam", "tensors": [{"name": "w"}], "measures": [{"name": "x"}]})
end = time.time() + float(sys.argv[2])
step = 0
while time.time() < end:
    step += 1
    track.observe(step, np.array([[float(step)]]), {"loss": step})
    if step % 100 == 0:
        track.event(step, "hundred")
        print(step, flush=True)
    time.sleep(0.0002)
if "kill" in sys.argv:
    print(time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_session_can_be_followed_while_another_process_writes_it(path: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, path, "1"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait(lambda: record.sessions(path)[-1]["tracks"])
        seen = []
        for session in record.load(path).follow(0.05):
            if session.tracks:
                table = session.tracks["Adam"].scalar("loss")
                assert (table["last"][:-1] + 1 == table["first"][1:]).all()
                assert table["count"].sum() == session.tracks["Adam"].steps
                seen.append(session.tracks["Adam"].steps)
        assert process.wait() == 0
    assert session.ended is not None
    assert len(seen) > 3
    assert seen == sorted(seen)
    afresh = record.load(path)
    assert not session.refresh()
    for one, other in ((session, afresh), (afresh, session)):
        assert one.tracks["Adam"].table().tolist() == other.tracks["Adam"].table().tolist()
        assert one.tracks["Adam"].events == other.tracks["Adam"].events


@posix
def test_kill_9_loses_at_most_the_last_second(path: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, path, "0.8", "kill"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    *_, died = done.stdout.split()
    assert os.path.getsize(path + "-wal") > 0
    # In a folder that cannot be written, even its log is read: a copy of what is there, without the index that the writer left.
    shutil.copytree(tmp_path, tmp_path.parent / "read-only")
    copied = tmp_path.parent / "read-only"
    (copied / "run.oadam-shm").unlink()
    session = record.load(path)
    track = session.tracks["Adam"]
    assert session.ended is None
    assert float(died) - track.scalar("loss")["time"][-1] < 1.0
    assert track.steps == track.scalar("loss")["last"][-1]
    assert record.load(copied / "run.oadam").tracks["Adam"].steps == track.steps
    write(path)  # and the file takes another session
    assert [each["ended"] is None for each in record.sessions(path)] == [True, False]


def test_a_folder_that_cannot_be_written(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind everybody who runs tests, so what SQLite says of such a folder is said here."""
    write(path)
    connect = sqlite3.connect

    def refuse(name: str, **settings: Any) -> sqlite3.Connection:
        if "mode=ro" in name:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(name, **settings)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert record.load(path).tracks["Adam"].steps == 30
    assert os.listdir(os.path.dirname(path)) == ["run.oadam"]


def test_a_session_that_is_gone_says_so(path: str) -> None:
    write(path)
    session = record.load(path)
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        session.refresh()
    write(path)
    with pytest.raises(RecordError, match="no longer holds this session"):
        session.refresh()


# --- the disk ------------------------------------------------------------------------------------------------------------


class Failing:
    """A connection that fails in some way, as long as it is told to."""

    def __init__(self, connection: sqlite3.Connection, state: dict[str, Any]) -> None:
        self.connection, self.state = connection, state

    def _try(self) -> None:
        if self.state["error"] is not None:
            raise self.state["error"]

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement.startswith(("INSERT", "COMMIT")):
            self._try()
        return self.connection.execute(statement, *arguments)

    def executemany(self, *arguments: Any) -> Any:
        self._try()
        return self.connection.executemany(*arguments)

    def close(self) -> None:
        self.connection.close()


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.OperationalError("database is locked"),
        sqlite3.DatabaseError("database disk image is malformed"),
        MemoryError(),
    ],
)
def test_a_failing_disk_costs_one_warning_and_nothing_else(
    path: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state: dict[str, Any] = {"error": None}
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **settings: Failing(connect(*given, **settings), state))
    with caplog.at_level(logging.INFO, "openadam.record"), record.Recorder(path, buckets=16, ring=8, flush=3600) as each:
        track = each.track(ABOUT)
        for step in range(100):
            if step in (10, 40):
                assert each.flush()
                state["error"] = error
            if step in (30, 60):
                state["error"] = None
                assert each.flush()
            if step % 5 == 4 and state["error"]:
                assert not each.flush()
            track.observe(step, values(step), {"loss": step})
            if step % 10 == 0:
                track.event(step, "ten")
                track.alarm(step, "w", "spike")
                track.histogram(step, "w", "u", np.array([step]), np.array([0.0, 1.0]))
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO", "INFO"]
    assert "training goes on" in caplog.records[0].message
    monkeypatch.undo()
    data = record.load(path).tracks["Adam"]
    assert data.scalar("loss")["count"].sum() == data.measure("b", "grad_max_abs")["count"].sum() == 100
    assert len(data.scalar("loss")) <= 16
    assert (
        [each.step for each in data.events]
        == [each.step for each in data.alarms]
        == [each.step for each in data.histograms]
        == list(range(0, 100, 10))
    )
    assert len(data.rings) == 10


def test_a_disk_that_fails_from_the_start(path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    state: dict[str, Any] = {"error": sqlite3.OperationalError("database or disk is full")}
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **settings: Failing(connect(*given, **settings), state))
    each = record.Recorder(path, flush=3600)
    track = each.track(ABOUT)
    track.step(1, {"loss": 1})
    state["error"] = None
    assert each.flush()
    each.close()
    assert len(caplog.records) == 1
    assert record.load(path).tracks["Adam"].steps == 1


@posix
def test_a_file_that_was_removed_begins_anew_with_all_that_is_in_memory(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with record.Recorder(path, flush=3600) as each:
        track = each.track(ABOUT)
        for step in range(20):
            track.observe(step, values(step), {"loss": step})
            if step == 10:
                assert each.flush()
                os.unlink(path)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    data = record.load(path).tracks["Adam"]
    assert data.scalar("loss")["mean"].tolist() == data.measure("w", "grad_sum_squares")["mean"].tolist() == list(range(20))


@posix
def test_another_file_in_its_place_is_left_alone(path: str, caplog: pytest.LogCaptureFixture) -> None:
    each = record.Recorder(path, flush=3600)
    track = each.track(ABOUT)
    assert each.flush()
    for ending in ("", "-wal", "-shm"):
        os.unlink(path + ending)
    Path(path).write_text("mine " * 100)
    track.step(1, {"loss": 1})
    assert not each.flush()
    each.close()
    assert Path(path).read_text() == "mine " * 100


def test_what_could_not_be_written_to_the_end_is_said(path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    state: dict[str, Any] = {"error": None}
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **settings: Failing(connect(*given, **settings), state))
    with record.Recorder(path, flush=3600) as each:
        each.track(ABOUT).observe(1, values(1), {"loss": 1})
        state["error"] = sqlite3.OperationalError("database or disk is full")
    assert ["training goes on" in caplog.messages[0], "ends before its run does" in caplog.messages[1], len(caplog.messages)] == [True, True, 2]


def test_a_disk_that_is_really_full() -> None:
    """A limit on the size of files stands in for one: the same errors of the same calls."""
    pytest.importorskip("resource")
    script = """
import logging, os, resource, signal, sys, tempfile
import numpy as np
from openadam import record
logging.basicConfig(stream=sys.stdout, format="%(levelname)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "run.oadam")
    each = record.Recorder(path, flush=3600)
    track = each.track({"tensors": [{"name": str(i)} for i in range(50)], "measures": [{"name": str(i)} for i in range(16)]})
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for step in range(200):
        track.observe(step, np.full((50, 16), float(step)), {"loss": step})
        if step % 20 == 0:
            each.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    each.close()
    data = record.load(path).tracks["optimizer"]
    assert data.measure("7", "7")["mean"].tolist() == data.scalar("loss")["mean"].tolist() == list(range(200))
"""
    assert python(script) == "WARNING\n"


# --- the process ---------------------------------------------------------------------------------------------------------

BEGIN = """
import os, sys, threading, multiprocessing
import numpy as np
from openadam import record
path = sys.argv[1]
track = record.track(path, {"optimizer": "Adam", "tensors": [{"name": "w"}], "measures": [{"name": "x"}]})
for step in range(1, 6):
    track.observe(step, np.array([[float(step)]]), {"loss": step})
"""


def ended(script: str, path: str, code: int = 0) -> tuple[Any, str]:
    done = subprocess.run([sys.executable, "-W", "error", "-c", BEGIN + script, path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    return record.load(path), done.stderr


def test_a_program_that_ends_leaves_nothing_behind(path: str) -> None:
    session, said = ended("", path)
    assert said == ""
    assert session.ended is not None
    assert session.tracks["Adam"].steps == 5
    assert session.tracks["Adam"].rings == []
    assert os.listdir(os.path.dirname(path)) == ["run.oadam"]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise RuntimeError('boom')", 1),
        ("sys.excepthook = lambda *_: None\nraise RuntimeError('boom')", 1),
        ("sys.excepthook = sys.__excepthook__\nraise RuntimeError('boom')", 1),
        ("threading.Thread(target=lambda: [][0]).start()", 0),
        ("raise KeyboardInterrupt", -signal.SIGINT if os.name == "posix" else 1),
        ("with track.recorder:\n    raise RuntimeError('boom')", 1),
        ("error = RuntimeError('boom')\ntrack.failed(6, error)\nraise error", 1),
    ],
)
def test_an_exception_that_nobody_handles_writes_the_ring(path: str, script: str, code: int) -> None:
    session, said = ended(script, path, code)
    data = session.tracks["Adam"]
    (ring,) = data.rings
    (event,) = data.events
    assert ring.steps.tolist() == ring.scalar_steps.tolist() == [1, 2, 3, 4, 5]
    assert ring.values[:, 0, 0].tolist() == ring.scalars["loss"].tolist() == [1, 2, 3, 4, 5]
    assert event.kind == "failed"
    assert event.text == ring.reason
    assert ring.reason.startswith(("RuntimeError: boom", "IndexError: ", "KeyboardInterrupt: "))
    if "lambda *_" not in script and code == 1:
        assert said.rstrip().endswith("RuntimeError: boom"), "the exception is shown as ever"


def test_what_followed_an_alarm_is_kept_when_an_exception_follows(path: str) -> None:
    with contextlib.suppress(KeyError), record.Recorder(path) as each:
        track = each.track(ABOUT)
        for step in range(1, 6):
            track.step(step, {"loss": step})
            if step in (3, 4):
                track.alarm(step, "w", "spike")
        raise KeyError("x")
    rings = record.load(path).tracks["Adam"].rings
    assert [(ring.reason, ring.scalar_steps.tolist()) for ring in rings] == [("alarm: spike", [1, 2, 3]), ("KeyError: 'x'", [1, 2, 3, 4, 5])]


def test_failures_that_are_handled_are_told_too(path: str) -> None:
    with record.Recorder(path) as each:
        track = each.track(ABOUT)
        for step in range(1, 200):
            track.step(step, {"loss": step})
            track.failed(step, ValueError("bad"))
    data = record.load(path).tracks["Adam"]
    assert len(data.events) == 199
    assert 2 <= len(data.rings) <= 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="of systems with fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_records_nothing_unless_it_begins_its_own(path: str) -> None:
    script = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
track.recorder.flush()
for round in range(20):
    child = os.fork()
    if child == 0:
        track.step(100, {"loss": 100})
        assert not track.wants(100) and not track.recorder.flush()
        if round == 19:
            own = record.track(path, {"optimizer": "child"})
            own.step(1, {"loss": 1})
            assert own.recorder is not track.recorder
        sys.exit(0)
    track.step(6 + round, {"loss": 6})
    assert os.waitpid(child, 0)[1] == 0
"""
    ended(script, path)
    found = {name: session for session in range(2) for name in record.load(path, session).tracks}
    assert sorted(found) == ["Adam", "child"]
    assert record.load(path, found["Adam"]).tracks["Adam"].scalar("loss")["last"].tolist() == list(range(1, 26))
    assert record.load(path, found["child"]).tracks["child"].steps == 1
    assert all(each["ended"] is not None for each in record.sessions(path))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="of systems with fork")
def test_children_of_multiprocessing_finish_their_recordings(path: str) -> None:
    script = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
def work():
    record.track(path, {"optimizer": "child"}).step(1, {"loss": 1})
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
assert child.exitcode == 0
"""
    ended(script, path)
    assert [(each["tracks"], each["ended"] is not None) for each in record.sessions(path)] == [(["Adam"], True), (["child"], True)]


def test_several_processes_write_to_one_file(path: str) -> None:
    commands = [[sys.executable, "-c", BEGIN + "import time\ntime.sleep(0.1)", path] for _ in range(3)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 3
    assert [each["tracks"] for each in record.sessions(path)] == [["Adam"]] * 3
    assert [record.load(path, number).tracks["Adam"].steps for number in range(3)] == [5, 5, 5]


@posix
def test_a_signal_handler_may_mark_an_event(path: str) -> None:
    track = record.track(path, ABOUT)
    before = signal.signal(signal.SIGALRM, lambda *_: track.event(0, "alarm clock"))
    try:
        with track._lock:
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    track.recorder.close()
    assert [each.text for each in record.load(path).tracks["Adam"].events] == ["alarm clock"]


def test_a_track_holds_no_optimizer_and_lets_go_of_its_memory(path: str) -> None:
    import weakref

    with record.Recorder(path, flush=0.01) as each:
        track = each.track(ABOUT)
        track.step(1, {"loss": 1})
        gone = weakref.ref(track)
        track.close()
        wait(lambda: not each._tracks)
        del track
        gc.collect()
        assert gone() is None


# --- the format ----------------------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "record-format.md"


def test_the_format_is_described(path: str) -> None:
    text = DOCUMENT.read_text()
    assert str(layout.APPLICATION) in text
    assert f"Version {layout.VERSION}." in text
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(layout.SCHEMA)
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")]
        for table in tables:
            assert f"**`{table}`**" in text
            for _, column, *_ in connection.execute(f"PRAGMA table_info({table})"):
                assert column in ("id", "track", "session", "step", "time", "name") or f"`{column}`" in text, (table, column)


def test_what_the_format_shows_works(path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, 2)
    monkeypatch.chdir(os.path.dirname(path))
    (shown,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
    exec(compile(shown, str(DOCUMENT), "exec"), namespace := {})
    namespace["file"].close()
    assert capsys.readouterr().out == "1 1 1.0 1.0 1.0\n2 2 0.5 0.5 0.5\n"


# --- exporters -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(path: str) -> record.Session:
    write(path, 40, buckets=16)
    return record.load(path)


def test_text_can_be_written_to_what_is_open(session: record.Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for format in ("csv", "jsonl"):
        record.export(session, format, tmp_path / "there")
        record.export(session, format, text := io.StringIO())
        with open(tmp_path / "there", newline="") as file:
            assert (there := file.read()) == text.getvalue()
        assert cli.main(["export", session.path, "--as", format, "-o", "-"]) == 0
        assert capsys.readouterr().out == there
    with pytest.raises(RecordError, match="parquet is no text"):
        record.export(session, "parquet", io.StringIO())


def test_csv(session: record.Session, tmp_path: Path) -> None:
    record.export(session, "csv", tmp_path / "run.csv")
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = session.tracks["Adam"].table()
    assert len(rows) == len(table)
    for row, expected in zip(rows, table, strict=True):
        assert row["track"] == "Adam"
        for name in table.dtype.names or ():
            assert row[name] == str(expected[name].item() if hasattr(expected[name], "item") else expected[name])


def test_jsonl_holds_everything(session: record.Session, tmp_path: Path) -> None:
    record.export(session, "jsonl", tmp_path / "run.jsonl", track="Adam")
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    track = session.tracks["Adam"]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "session": 1,
        "track": 1,
        "bucket": len(track.table()),
        "event": 1,
        "skipped": 1,
        "alarm": 1,
        "ring": 1,
        "histogram": 1,
    }
    assert lines[kinds.index("alarm")]["evidence"] == {"ratio": 12.5, "limit": "inf"}
    assert lines[kinds.index("ring")]["values"][0] == values(1).tolist()
    assert lines[kinds.index("track")]["about"]["rule"] == "adam"


def test_exports_that_cannot_be(session: record.Session, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no format 'xml'; there are csv, jsonl"):
        record.export(session, "xml", tmp_path / "x")
    with pytest.raises(RecordError, match="no track 'SGD'; there are 'Adam'"):
        record.export(session, "csv", tmp_path / "x", track="SGD")
    with pytest.raises(RecordError, match="the recording itself"):
        record.export(session, "csv", session.path)


@pytest.mark.parametrize("name", [name for name in record.FORMATS if name not in ("csv", "jsonl")])
def test_a_missing_library_names_its_extra(session: record.Session, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("pyarrow", "tensorboardX", "wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"openadam\[{name}\]"):
        record.export(session, name, tmp_path / "x")


def test_the_command(session: record.Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openadam.cli import export

    assert tuple(record.FORMATS) == export.FORMATS
    assert cli.main(["export", session.path, "--as", "csv", "--output", str(tmp_path / "a.csv"), "--track", "Adam", "--session", "0"]) == 0
    assert (tmp_path / "a.csv").exists()
    assert capsys.readouterr() == ("", "")
    for arguments, code, said in (
        (["--as", "xml", "--output", "x"], 2, "there is no format 'xml'"),
        (["--as", "csv", "--output", str(tmp_path / "x" / "y")], 1, "No such file"),
        (["--as", "csv", "--output", "x", "--session", "3"], 1, "holds 1 session;"),
        (["--as", "csv", "--output", "x", "--track", "z"], 2, "no track 'z'"),
    ):
        assert cli.main(["export", session.path, *arguments]) == code
        assert said in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "none"), "--as", "csv", "--output", "x"]) == 1
    assert "there is no such recording" in capsys.readouterr().err


def test_pandas(session: record.Session) -> None:
    pytest.importorskip("pandas")
    frame = session.tracks["Adam"].to_pandas()
    assert len(frame) == len(session.tracks["Adam"].table())
    assert frame[(frame.tensor == "w") & (frame.measure == "grad_max_abs")]["max"].max() == 40.25


def test_parquet(session: record.Session, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    record.export(session, "parquet", tmp_path / "run.parquet")
    table = parquet.read_table(tmp_path / "run.parquet").to_pydict()
    expected = session.table()
    assert list(table) == list(expected.dtype.names or ())
    assert all(table[name] == expected[name].tolist() for name in table)


def test_tensorboard(session: record.Session, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record.export(session, "tensorboard", tmp_path / "board")
    read = accumulator.EventAccumulator(str(tmp_path / "board"))
    read.Reload()
    table = session.tracks["Adam"].measure("w", "grad_max_abs")
    points = read.Scalars("adam/w/grad_max_abs")
    assert [(each.step, each.value) for each in points] == list(zip(table["last"].tolist(), table["mean"].tolist(), strict=True))
    assert [each.value for each in read.Scalars("adam/w/grad_max_abs.max")] == table["max"].tolist()


def test_mlflow(session: record.Session, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    script = """
import json, sys
from mlflow import MlflowClient
from openadam import record
record.export(record.load(sys.argv[1]), "mlflow", sys.argv[2])
client = MlflowClient(f"sqlite:///{sys.argv[2]}")
(run,) = client.search_runs([client.get_experiment_by_name("openadam").experiment_id])
print(json.dumps([[each.step, each.value] for each in client.get_metric_history(run.info.run_id, "adam/loss")]))
"""
    table = session.tracks["Adam"].scalar("loss")
    seen = json.loads(python(script, session.path, str(tmp_path / "runs.db"), warnings="ignore").splitlines()[-1])
    assert seen == [list(each) for each in zip(table["last"].tolist(), table["mean"].tolist(), strict=True)]


def test_wandb(session: record.Session, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    record.export(session, "wandb", tmp_path / "wandb here")
    assert list((tmp_path / "wandb here").rglob("run-*.wandb"))


def test_trackio(session: record.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    script = """
import sys, trackio
from openadam import record
record.export(record.load(sys.argv[1]), "trackio", "tried")
runs = trackio.Api().runs("tried")
print(len(list(runs)))
"""
    assert python(script, session.path, warnings="default", TRACKIO_DIR=str(tmp_path / "trackio")).split()[-1] == "1"
