"""Which tensors share memory: against NumPy's own exact answer, for arrays of any strides."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from openadam.memory import Piece, first_meeting, first_shared

SIZE = 96
BUFFER = np.zeros(3 * SIZE, np.uint8)


@st.composite
def arrays(draw: Any) -> np.ndarray[Any, Any]:
    """An array over a small buffer, of any strides: gaps, windows, broadcasts, negative, of no elements."""
    itemsize = draw(st.sampled_from([1, 2, 4]))
    axes = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), max_size=3))
    start = SIZE + draw(st.integers(0, SIZE - 4))
    shape, strides = tuple(n for n, _ in axes), tuple(stride for _, stride in axes)
    return np.ndarray(shape, f"V{itemsize}", BUFFER, start, strides)


def overlaps_itself(array: np.ndarray[Any, Any]) -> bool:
    at = [sum(i * stride for i, stride in zip(index, array.strides, strict=True)) for index in np.ndindex(*array.shape)]
    touched = [place + byte for place in at for byte in range(array.itemsize)]
    return len(set(touched)) < len(touched)


@settings(max_examples=400, deadline=None)
@given(st.lists(arrays(), max_size=4), st.lists(arrays(), max_size=4))
def test_the_first_that_meets_one_of_others(given_arrays: list[np.ndarray[Any, Any]], others: list[np.ndarray[Any, Any]]) -> None:
    apart: list[np.ndarray[Any, Any]] = []
    for other in others:
        if not overlaps_itself(other) and not any(np.shares_memory(other, each) for each in apart):
            apart.append(other)
    pairs = [(i, k) for i, a in enumerate(given_arrays) for k, b in enumerate(apart) if np.shares_memory(a, b)]
    found = first_meeting([Piece.of_array(a) for a in given_arrays], [Piece.of_array(b) for b in apart])
    assert (found in pairs and found[0] == pairs[0][0]) if pairs else found is None  # type: ignore[index]


@settings(max_examples=400, deadline=None)
@given(st.lists(arrays(), max_size=5))
def test_the_first_that_share(given_arrays: list[np.ndarray[Any, Any]]) -> None:
    pairs = [(i, j) for j, b in enumerate(given_arrays) for i, a in enumerate(given_arrays[:j]) if np.shares_memory(a, b)]
    alone = [(i, i) for i, a in enumerate(given_arrays) if overlaps_itself(a)]
    found = first_shared([Piece.of_array(a) for a in given_arrays])
    assert (found in pairs + alone) if pairs or alone else found is None


def test_many_that_interleave() -> None:
    """Columns and blocks of one buffer: apart, until one of them reaches a byte into another."""
    whole = np.zeros((8, 2001), np.float32)
    columns = [Piece.of_array(whole[:, k]) for k in range(2000)]
    assert first_shared(columns) is None
    assert first_shared([*columns, Piece.of_array(whole[3:4, 700])]) == (700, 2000)
    blocks = [Piece.of_array(np.zeros(0)), *(Piece.of_array(whole[:, k : k + 3]) for k in range(0, 1998, 3))]
    assert first_shared(blocks) is None
    shifted = blocks[5]._replace(address=blocks[5].address + 4)
    assert first_shared([*blocks, shifted]) == (5, len(blocks))


def test_runs_are_joined_whatever_the_order_of_axes() -> None:
    block = np.zeros((4, 5, 6), np.float32)
    for array in (block, block.transpose(2, 0, 1), block[::-1, :, ::-1]):
        starts, length = Piece.of_array(array).runs()
        assert (starts.tolist(), length) == ([block.ctypes.data], block.nbytes)
    starts, length = Piece.of_array(block[:, :2]).runs()
    assert (len(starts), length) == (4, 48)
