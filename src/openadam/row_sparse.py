"""Gradients that name their rows, as those of an embedding do, of which a batch uses few: only these rows are stepped.

A step over named rows is *lazy*: parameter, states and weight decay of the other rows stay as they are, whereas a dense gradient of zeros
would let their moments decay and the parameter move on. The number of the step counts for the whole parameter, as in torch's SparseAdam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import engine as engines
from .errors import GradientError

__all__ = ["NAMED", "Rows", "by_row", "layout", "refuse_places"]

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
NAMED = -1  # the number of dimensions of a layout that names rows, as native/loop.hpp has it


@dataclass(frozen=True, eq=False)
class Rows:
    """A gradient that names the rows of its parameter (along the first axis) which it is for; `Optimizer.step` takes it like an array.

    Only these rows of the parameter and of its states are read and written, and only these decay; the number of the step counts for the
    whole parameter. This is the meaning of torch's SparseAdam, for every rule. A row that is named twice has the sum of its values, added in
    the order given; norm, clip, the check for what is not finite, and measures see the sums. No rows at all are a step that moves nothing.

    Args:
        indices: One axis of integers from 0 to the parameter's number of rows, in any order.
        values: The gradient of each named row: of shape ``(len(indices), *parameter.shape[1:])`` and the parameter's dtype (float32 of a
            float64 parameter is converted).

    What is wrong with them is said by the step, before anything has changed: `GradientShapeError`, `GradientDtypeError`, or
    `GradientError` where an index is out of range.

    >>> import numpy as np, openadam
    >>> table = np.ones((1000, 2), np.float32)
    >>> opt = openadam.Adam(table, lr=0.5)
    >>> report = opt.step(openadam.Rows([7, 3, 7], np.array([[1, 2], [4, 0], [1, 2]], np.float32)))
    >>> table[[3, 7, 8]].round(4)
    array([[0.5, 1. ],
           [0.5, 0.5],
           [1. , 1. ]], dtype=float32)
    >>> round(report.grad_norm, 4)  # of 4, 0 and the sums 2, 4
    6.0
    """

    indices: Any
    values: Any


def refuse_places(name: str, what: str, low: int, high: int, count: int, advice: str) -> None:
    """Refuse indices of which the least and the largest are not all rows of the parameter."""
    if low < 0 or high >= count:
        bad = low if low < 0 else high
        raise GradientError(f"the gradient of parameter {name!r} names {what} {bad}, and there are {count}: {advice}")


def by_row(indices: Indices, values: Array) -> tuple[Indices, Array]:
    """The rows that are named, each once and in ascending order, and the sums of their values, added in the order given.

    Args:
        indices: Of one axis, contiguous, checked.
        values: One for each index along the first axis, contiguous; returned as they are where there is nothing to do.
    """
    native = engines.native()
    if bool(np.all(indices[1:] > indices[:-1])):
        return indices.copy(), values
    if native is not None:
        rows, sums = native.sum_rows(indices, values.reshape(len(indices), -1))
        return rows, sums.reshape(len(rows), *values.shape[1:])
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    sums = values[order[first]]
    with np.errstate(all="ignore"):
        np.add.at(sums, (np.cumsum(first) - 1)[~first], values[order[~first]])  # in this order, one after the other
    return ordered[first], sums


def layout(rows: Indices, width: int, count: int, strided: Sequence[Sequence[int]] = ()) -> list[int]:
    """How the native table finds the elements of named rows.

    Args:
        rows: As `by_row` returns them; to be kept alive until the step is over.
        width: Elements of a row.
        count: Rows of the parameter.
        strided: The shape of a row, then the strides in bytes of the parameter and those of its states, the first axis included; nothing
            where both are contiguous.
    """
    found = [NAMED, int(rows.__array_interface__["data"][0]), len(rows), width, count, len(strided[0]) if strided else NAMED]
    return found + [int(number) for part in strided for number in part]
