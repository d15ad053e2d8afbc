"""The history of many series in a bounded number of buckets: each keeps least, mean and greatest value, so that no spike is averaged away.

A bucket holds a number of observations that follow each other as they arrived. Once all buckets are full they are joined in pairs, and a
bucket holds twice as many from then on. A value that is not finite is counted and otherwise left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Bucket", "History"]

Array = npt.NDArray[Any]


class Bucket(NamedTuple):
    """One bucket of all series."""

    first: int  # step
    last: int
    observations: int
    time: float  # of the last observation, in seconds since 1970
    minimum: Array  # of each series; NaN where it has no finite value
    mean: Array
    maximum: Array
    finite: Array  # values of each series that are finite
    nonfinite: Array


class History:
    """Buckets of series that are observed together, in memory, and which of them have changed since they were last written."""

    def __init__(self, buckets: int) -> None:
        self.buckets, self.columns = buckets, 0
        self.per_bucket = 1
        self.size = 0  # buckets begun; all but the last are full
        self.first, self.last, self.observations = (np.zeros(buckets, np.int64) for _ in range(3))
        self.times = np.zeros(buckets)
        self._allocate(0)
        self.dirty = 0  # the first bucket that is not on disk as it is here
        self.stale = False  # the buckets on disk are those before they were joined

    def _allocate(self, columns: int) -> None:
        # Not filled: a bucket is when it begins, so that memory that is never used is never touched.
        self.minimum, self.maximum, self.total = (np.empty((self.buckets, columns)) for _ in range(3))
        self.finite, self.nonfinite = (np.empty((self.buckets, columns), np.uint32) for _ in range(2))

    @property
    def _tables(self) -> list[tuple[Array, float]]:
        return [(self.minimum, np.inf), (self.maximum, -np.inf), (self.total, 0), (self.finite, 0), (self.nonfinite, 0)]

    def widen(self, columns: int) -> None:
        """Make room for further series, of which nothing was seen so far."""
        before, known = self._tables, self.columns
        if columns <= known:
            return
        self._allocate(columns)
        self.columns = columns
        for (old, _), (new, nothing) in zip(before, self._tables, strict=True):
            new[: self.size, :known] = old[: self.size]
            new[: self.size, known:] = nothing

    def add(self, steps: Array, times: Array, values: Array, measured: Array) -> None:
        """Observations as rows, series as columns; what was not measured does not count."""
        start = 0
        while start < len(steps):
            if self.size == 0 or self.observations[self.size - 1] == self.per_bucket:
                self._begin(steps[start])
            at = self.size - 1
            stop = min(len(steps), start + self.per_bucket - int(self.observations[at]))
            self._fold(at, values[start:stop], measured[start:stop])
            self.observations[at] += stop - start
            self.last[at], self.times[at] = steps[stop - 1], times[stop - 1]
            self.dirty = min(self.dirty, at)
            start = stop

    def _begin(self, step: int) -> None:
        if self.size == self.buckets:
            self._join()
        for table, nothing in self._tables:
            table[self.size] = nothing
        self.first[self.size], self.observations[self.size] = step, 0
        self.size += 1

    def _join(self) -> None:
        half = self.size // 2
        left, right = slice(0, self.size, 2), slice(1, self.size, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            self.minimum[:half] = np.minimum(self.minimum[left], self.minimum[right])
            self.maximum[:half] = np.maximum(self.maximum[left], self.maximum[right])
            for table in (self.total, self.finite, self.nonfinite, self.observations):
                table[:half] = table[left] + table[right]
        self.first[:half] = self.first[left]
        self.last[:half] = self.last[right]
        self.times[:half] = self.times[right]
        self.size, self.per_bucket = half, 2 * self.per_bucket
        self.dirty, self.stale = 0, True

    def _fold(self, at: int, values: Array, measured: Array) -> None:
        finite = measured & np.isfinite(values)
        np.minimum(self.minimum[at], np.where(finite, values, np.inf).min(axis=0), out=self.minimum[at])
        np.maximum(self.maximum[at], np.where(finite, values, -np.inf).max(axis=0), out=self.maximum[at])
        with np.errstate(over="ignore", invalid="ignore"):
            self.total[at] += np.where(finite, values, 0.0).sum(axis=0)
        self.finite[at] += finite.sum(axis=0, dtype=np.uint32)
        self.nonfinite[at] += (measured & ~finite).sum(axis=0, dtype=np.uint32)

    def bucket(self, at: int) -> Bucket:
        """A copy of one bucket."""
        finite = self.finite[at].copy()
        none = finite == 0
        low, high = (np.where(none, np.nan, table[at]) for table in (self.minimum, self.maximum))
        with np.errstate(invalid="ignore"):
            mean = np.where(none, np.nan, self.total[at]) / np.maximum(finite, 1)
        # A sum that left the range of a float64 still has a mean within that of its terms.
        mean = np.clip(np.where(np.isnan(mean), low / 2 + high / 2, mean), low, high)
        first, last, observations = int(self.first[at]), int(self.last[at]), int(self.observations[at])
        return Bucket(first, last, observations, float(self.times[at]), low, mean, high, finite, self.nonfinite[at].copy())

    def changed(self) -> Iterator[tuple[int, Bucket]]:
        """What is not on disk as it is here."""
        return ((at, self.bucket(at)) for at in range(self.dirty, self.size))
