"""Which tensors share memory: exact for any strides, near-linear in the number of their runs of neighbouring elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Piece", "first_meeting", "first_shared"]

Integers = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """The memory of one tensor; strides in bytes.

    >>> import numpy as np
    >>> from openadam.memory import Piece, first_shared
    >>> columns = np.zeros((4, 3)).T
    >>> pieces = [Piece.of_array(column) for column in columns]
    >>> first_shared(pieces) is None  # interleaved, and apart
    True
    >>> first_shared([*pieces, Piece.of_array(columns[1, 2:])])
    (1, 3)
    """

    address: int
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of_array(cls, array: npt.NDArray[np.generic]) -> Piece:
        """That of a NumPy array."""
        return cls(int(array.__array_interface__["data"][0]), array.itemsize, array.shape, array.strides)

    def extent(self) -> tuple[int, int]:
        """The first byte and the one after the last."""
        if 0 in self.shape:
            return self.address, self.address
        reach = [stride * (n - 1) for n, stride in zip(self.shape, self.strides, strict=True)]
        return self.address + sum(r for r in reach if r < 0), self.address + sum(r for r in reach if r > 0) + self.itemsize

    def runs(self) -> tuple[Integers, int]:
        """Where runs of neighbouring bytes start, in any order, and how long they all are."""
        start, length = self.extent()[0], self.itemsize
        if 0 in self.shape:
            return np.zeros(0, np.int64), length
        rest = sorted((abs(stride), n) for n, stride in zip(self.shape, self.strides, strict=True) if n > 1)
        while rest and rest[0][0] == length:
            length *= rest.pop(0)[1]
        starts = np.array([start], np.int64)
        for stride, n in rest:
            starts = (starts[:, None] + stride * np.arange(n)).reshape(-1)
        return starts, length


def first_shared(pieces: Sequence[Piece]) -> tuple[int, int] | None:
    """The places of two pieces that share a byte, the smaller first; the same place twice for one that overlaps itself; None if there are none."""
    extents = sorted((*piece.extent(), i) for i, piece in enumerate(pieces))
    cluster: list[int] = []
    end = 0
    for low, high, i in [*extents, (0, 0, -1)]:
        if i >= 0 and (low < end or not cluster):
            cluster.append(i)
            end = max(end, high)
            continue
        found = _within(pieces, cluster)
        if found is not None:
            return found
        cluster, end = [i], high
    return None


def _within(pieces: Sequence[Piece], cluster: Sequence[int]) -> tuple[int, int] | None:
    """As `first_shared`, for pieces whose extents overlap."""
    found = [pieces[i].runs() for i in cluster]
    starts = np.concatenate([starts for starts, _ in found]) if found else np.zeros(0, np.int64)
    if starts.size < 2:
        return None
    ends = np.concatenate([starts + length for starts, length in found])
    owners = np.repeat(np.array(cluster), [starts.size for starts, _ in found])
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    reach = np.maximum.accumulate(ends)
    bad = np.flatnonzero(starts[1:] < reach[:-1])
    if not bad.size:
        return None
    second = int(bad[0]) + 1
    first = int(np.argmax(ends[:second]))
    a, b = sorted((int(owners[first]), int(owners[second])))
    return a, b


def first_meeting(pieces: Sequence[Piece], others: Sequence[Piece]) -> tuple[int, int] | None:
    """The place of the first piece that shares a byte with one of the others, and the place of that one; None if there is none.

    The others share nothing among themselves; the pieces may.
    """
    extents = [piece.extent() for piece in pieces]
    lows = np.sort(np.array([low for low, _ in extents], np.int64))
    highs = np.sort(np.array([high for _, high in extents], np.int64))
    near = []  # others that a piece may reach: more have begun before their end than have ended before their beginning
    for k, other in enumerate(others):
        low, high = other.extent()
        if 0 not in other.shape and np.searchsorted(lows, high) > np.searchsorted(highs, low, "right"):
            near.append(k)
    if not near:
        return None
    found = [others[k].runs() for k in near]
    starts = np.concatenate([starts for starts, _ in found])
    ends = np.concatenate([starts + length for starts, length in found])
    owners = np.repeat(np.array(near), [starts.size for starts, _ in found])
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    for i, piece in enumerate(pieces):
        own, length = piece.runs()
        last = np.searchsorted(starts, own + length) - 1  # the last of the others' runs that starts before each of these ends
        hit = (last >= 0) & (ends[last] > own)
        if hit.any():
            return i, int(owners[last[hit][0]])
    return None
