"""Which tensors share memory: exact for any strides, near-linear in the number of their runs of neighbouring elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Piece", "first_shared", "meet"]

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


def meet(a: Piece, b: Piece) -> bool:
    """Whether two pieces share a byte; either may overlap itself."""
    (a_low, a_high), (b_low, b_high) = a.extent(), b.extent()
    if a_high <= b_low or b_high <= a_low or 0 in a.shape or 0 in b.shape:
        return False
    starts, length = a.runs()
    others, other_length = b.runs()
    starts = np.unique(starts)
    before = np.searchsorted(starts, others + other_length) - 1  # the last run of a that starts before each of b ends
    return bool(((before >= 0) & (starts[before] + length > others)).any())
