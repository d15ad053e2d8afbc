"""A row: one parameter of an optimizer over arrays, what is known of it and what its rule remembers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import engine as engines
from ..errors import AliasError, ParameterDtypeError, ParameterError
from ..memory import Piece, first_shared
from ..row_sparse import Indices
from ..row_sparse import layout as layout_of_named

__all__ = ["Row", "allocate", "read_rows", "refuse_shared"]

Array = npt.NDArray[Any]
SUPPORTED = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(eq=False)
class Row:
    """One parameter. `view` shares its memory, in the axis order in which it is dense if there is one; states have that order, too."""

    name: str
    array: Array
    group: int
    shape: tuple[int, ...]  # as given; the caller may reshape the array object later
    view: Array
    axes: tuple[int, ...] | None
    decayed: bool = True
    states: tuple[Array, ...] = ()
    numbers: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))  # steps taken, then the scalar states
    update: engines.Update | None = None
    gradient: Array | None = None  # of the step under way, in the view's axis order, or of the named rows, in the order of the axes as given
    named: Indices | None = None  # the rows that the gradient is for, in ascending order; None: all

    @property
    def is_dense(self) -> bool:
        return bool(self.view.flags.c_contiguous and self.view.flags.aligned)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self.numbers[0])

    @property
    def address(self) -> int:
        return int(self.view.__array_interface__["data"][0])

    def canonical(self, array: Array) -> Array:
        """An array of the parameter's shape in the view's axis order."""
        return array if self.axes is None else array.transpose(self.axes)

    def as_given(self, array: Array) -> Array:
        """An array in the view's axis order in the order of the parameter's axes."""
        return array if self.axes is None else array.transpose(np.argsort(self.axes))

    def touched(self, array: Array) -> Array:
        """What the step under way reads and writes of the view or of a state, flat: all, or a copy of the named rows."""
        return array.reshape(-1) if self.named is None else self.as_given(array)[self.named].reshape(-1)

    @property
    def width(self) -> int:
        """Elements of each row of the first axis."""
        return math.prod(self.shape[1:])

    def layout(self, gradient: Array) -> list[int]:
        """How to fetch elements where the parameter or the gradient is not dense, for the native table; empty where both are."""
        if self.named is not None:
            strided: list[Sequence[int]] = []
            if not self.is_dense or self.axes is not None:
                view, state = (self.as_given(array) for array in (self.view, (*self.states, self.view)[0]))
                strided = [self.shape[1:], view.strides, state.strides]
            return layout_of_named(self.named, self.width, self.shape[0], strided)
        dense = bool(gradient.flags.c_contiguous and gradient.flags.aligned)
        if self.is_dense and dense:
            return []
        view = self.view
        return [view.ndim, int(not self.is_dense), int(not dense), *view.shape, *view.strides, *gradient.strides]

    def refuse_unusable(self) -> None:
        """Refuse a parameter that may not be written, or no longer, or whose memory is another one than it was made for."""
        if self.array.size != self.view.size or (self.view.size and self.array.__array_interface__["data"][0] != self.address):
            was, now = f"{self.view.size} elements", f"{self.array.size} elements"
            raise ParameterError(f"parameter {self.name!r} was resized ({was}, now {now}) or moved; make a new optimizer for it")
        if not self.array.flags.writeable:
            raise ParameterError(f"parameter {self.name!r} is not writeable (a read-only array, a broadcast or a memory map opened for reading)")


def read_rows(named: Sequence[tuple[str, Any]], group: int) -> list[Row]:
    """The parameters of one group, checked one by one."""
    return [_row(name, value, group) for name, value in named]


def _row(name: str, value: Any, group: int) -> Row:
    if any((kind.__module__, kind.__name__) == ("torch", "Tensor") for kind in type(value).__mro__):
        raise ParameterDtypeError(f"parameter {name!r} is a tensor of torch; use the class of this name in openadam.torch, given model.parameters()")
    if not isinstance(value, np.ndarray):
        raise ParameterDtypeError(f"parameter {name!r} is {value!r:.80} ({type(value).__name__}), not a NumPy array that a step can change in place")
    if isinstance(value, np.ma.MaskedArray):
        raise ParameterDtypeError(f"parameter {name!r} is a masked array, whose mask a step would ignore; give its data (.filled(…))")
    if value.dtype not in SUPPORTED:
        raise ParameterDtypeError(
            f"parameter {name!r} has dtype {value.dtype.str} ({value.dtype}); supported are float32 and float64 in native byte order"
        )
    view = value.view(np.ndarray)
    axes = None
    if not view.flags.c_contiguous and view.ndim > 1:
        order = tuple(sorted(range(view.ndim), key=lambda d: -abs(view.strides[d])))
        if view.transpose(order).flags.c_contiguous:
            axes, view = order, view.transpose(order)
    row = Row(name, value, group, value.shape, view, axes)
    row.refuse_unusable()
    return row


def refuse_shared(rows: Sequence[Row]) -> None:
    """Refuse parameters that share memory, or the same name.

    Raises:
        ParameterError: One parameter was given twice.
        AliasError: Two parameters overlap, or one overlaps itself.
    """
    names: set[str] = set()
    for row in rows:
        if row.name in names:
            raise ParameterError(f"two parameters are named {row.name!r}; names must differ, those of groups and of what is nested included")
        names.add(row.name)
    shared = first_shared([Piece.of_array(row.view) for row in rows])
    if shared is None:
        return
    first, second = (rows[i] for i in shared)
    if first is second:
        lies = f"shape {first.array.shape} and strides {first.array.strides}"
        raise AliasError(f"parameter {first.name!r} of {lies} overlaps itself: elements share memory; copy it first")
    if Piece.of_array(first.view) == Piece.of_array(second.view):
        raise ParameterError(f"parameters {first.name!r} and {second.name!r} are the same array; give it once")
    raise AliasError(f"parameters {first.name!r} and {second.name!r} share memory; each step would move it twice")


def allocate(rows: Sequence[Row], first_values: Iterable[Sequence[float]]) -> None:
    """The states of new parameters, filled with their first values, in one piece of memory; each starts on a cache line."""
    values_of = list(first_values)
    kinds = max(map(len, values_of), default=0)
    places: dict[tuple[int, int], int] = {}
    total = 0
    for k in range(kinds):
        # Arrays at equal distances from a 4 KiB boundary get in each other's way in the cache; these start apart.
        total += -total % 4096 + 1088 * (k + 1)
        for i, row in enumerate(rows):
            if k < len(values_of[i]):
                places[i, k] = total
                total += row.view.nbytes + -row.view.nbytes % 64
    memory = engines.zeros(total)
    for i, (row, values) in enumerate(zip(rows, values_of, strict=True)):
        own = []
        for k, value in enumerate(values):
            at = places[i, k]
            array = memory[at : at + row.view.nbytes].view(row.view.dtype).reshape(row.view.shape)
            if value:
                array[...] = value
            own.append(array)
        row.states = tuple(own)
