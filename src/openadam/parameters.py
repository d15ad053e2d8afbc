"""Parameters and gradients as the caller gives them: their structure, names, memory layout, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import AliasError, GradientDtypeError, GradientError, GradientShapeError, ParameterDtypeError, ParameterError, SparseGradientError

__all__ = [
    "Entry",
    "as_gradient",
    "describe",
    "flatten",
    "overlaps",
    "protected_intervals",
    "read_entries",
    "read_group",
    "read_structure",
    "structured",
]

Array = npt.NDArray[Any]
SUPPORTED = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(eq=False)
class Entry:
    """One parameter. `view` shares its memory, in the axis order in which it is dense if there is one."""

    name: str
    array: Array
    group: int
    shape: tuple[int, ...]  # as given; the caller may reshape the array object later
    view: Array
    axes: tuple[int, ...] | None
    decayed: bool = True

    @property
    def is_dense(self) -> bool:
        return bool(self.view.flags.c_contiguous and self.view.flags.aligned)

    @property
    def is_plain(self) -> bool:
        """Dense in the order of its axes, so that a dense gradient needs no thought."""
        return self.is_dense and self.axes is None

    @property
    def address(self) -> int:
        return int(self.view.__array_interface__["data"][0])

    def canonical(self, array: Array) -> Array:
        """An array of the parameter's shape in the view's axis order."""
        return array if self.axes is None else array.transpose(self.axes)

    def as_given(self, array: Array) -> Array:
        """An array in the view's axis order in the order of the parameter's axes."""
        return array if self.axes is None else array.transpose(np.argsort(self.axes))

    def layout(self, gradient: Array) -> list[int] | None:
        """For the step's table: how to fetch elements where the parameter or the gradient is not dense; None where both are."""
        dense = bool(gradient.flags.c_contiguous and gradient.flags.aligned)
        if self.is_dense and dense:
            return None
        view = self.view
        return [view.ndim, int(not self.is_dense), int(not dense), *view.shape, *view.strides, *gradient.strides]


def read_entries(named: Sequence[tuple[str, Any]], group: int) -> list[Entry]:
    """The parameters of one group, checked one by one."""
    return [_entry(name, value, group) for name, value in named]


def _entry(name: str, value: Any, group: int) -> Entry:
    if not isinstance(value, np.ndarray):
        raise ParameterDtypeError(f"parameter {name!r} is {value!r:.80} ({type(value).__name__}), not a NumPy array that a step can change in place")
    if isinstance(value, np.ma.MaskedArray):
        raise ParameterDtypeError(f"parameter {name!r} is a masked array, whose mask a step would ignore; give its data (.filled(…))")
    if value.dtype not in SUPPORTED:
        raise ParameterDtypeError(
            f"parameter {name!r} has dtype {value.dtype.str} ({value.dtype}); supported are float32 and float64 in native byte order"
        )
    if not value.flags.writeable:
        raise ParameterError(f"parameter {name!r} is not writeable (a read-only array, a broadcast or a memory map opened for reading)")
    if _overlaps_itself(value):
        raise AliasError(
            f"parameter {name!r} of shape {value.shape} and strides {value.strides} overlaps itself: elements share memory; copy it first"
        )
    view = value.view(np.ndarray)
    axes = None
    if not view.flags.c_contiguous and view.ndim > 1:
        order = tuple(sorted(range(view.ndim), key=lambda d: -abs(view.strides[d])))
        if view.transpose(order).flags.c_contiguous:
            axes, view = order, view.transpose(order)
    return Entry(name, value, group, value.shape, view, axes)


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory: some axis steps less far than the axes within it reach."""
    if array.size <= 1:
        return False
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


def byte_bounds(array: Array) -> tuple[int, int]:
    """The first byte of an array and the one after its last."""
    low = high = int(array.__array_interface__["data"][0])
    if array.size == 0:
        return low, low
    for stride, length in zip(array.strides, array.shape, strict=True):
        if stride < 0:
            low += stride * (length - 1)
        else:
            high += stride * (length - 1)
    return low, high + array.itemsize


def overlaps(entries: Sequence[Entry]) -> None:
    """Refuse parameters that share memory, or the same name.

    Raises:
        ParameterError: One parameter was given twice.
        AliasError: Two parameters overlap.
    """
    names: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in names:
            raise ParameterError(f"two parameters are named {entry.name!r}; names must differ between groups")
        names[entry.name] = entry
    bounds = sorted(((*byte_bounds(entry.view), i) for i, entry in enumerate(entries) if entry.view.size), key=lambda b: (b[0], b[2]))
    open_ones: list[tuple[int, int]] = []  # (end, index) of those that reach past the current start
    for low, high, i in bounds:
        open_ones = [(end, j) for end, j in open_ones if end > low]
        for _, j in open_ones:
            first, second = entries[min(i, j)], entries[max(i, j)]
            if first.array is second.array or (first.address, first.view.shape, first.view.strides) == (
                second.address,
                second.view.shape,
                second.view.strides,
            ):
                raise ParameterError(f"parameters {first.name!r} and {second.name!r} are the same array; give it once")
            if np.shares_memory(first.view, second.view):
                raise AliasError(f"parameters {first.name!r} and {second.name!r} share memory; each step would move it twice")
        open_ones.append((high, i))


def protected_intervals(entries: Sequence[Entry], states: Sequence[tuple[Array, ...]]) -> tuple[Array, Array]:
    """Starts and ends of the memory that a step writes, merged and sorted: gradients must stay out of it."""
    bounds = [byte_bounds(entry.view) for entry in entries] + [byte_bounds(state) for own in states for state in own]
    merged: list[list[int]] = []
    for low, high in sorted(bound for bound in bounds if bound[1] > bound[0]):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    both = np.array(merged, np.int64).reshape(-1, 2)
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def touches(array: Array, protected: tuple[Array, Array]) -> bool:
    """Whether an array's memory may overlap the protected intervals; its gaps are not looked at."""
    low, high = byte_bounds(array)
    starts, ends = protected
    after = int(np.searchsorted(starts, high))
    return high > low and after > 0 and bool(ends[after - 1] > low)


# --- structure ---------------------------------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """What a value is, for messages."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


Named = list[tuple[str, Any]]


def read_structure(params: Any) -> tuple[str, list[tuple[Named, dict[str, Any]]]]:
    """Whether params is single, sequence, mapping or groups; and per group its named parameters and its settings."""
    if isinstance(params, Mapping) and "params" in params and not hasattr(params["params"], "dtype"):
        params = [params]
    if not isinstance(params, Mapping) and not hasattr(params, "dtype"):
        params = _sequence(params)
        if any(isinstance(part, Mapping) for part in params):
            groups = []
            count = 0
            for part in params:
                if not isinstance(part, Mapping):
                    raise TypeError("give either arrays or groups, not both")
                groups.append(read_group(part, count))
                count += len(groups[-1][0])
            return "groups", groups
    structure, named = _name_all(params, 0)
    return structure, [(named, {"structure": structure})]


def read_group(group: Mapping[str, Any], first: int) -> tuple[Named, dict[str, Any]]:
    """The named parameters of a group and its settings; unnamed ones are numbered from ``first``."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError("a group is a mapping with the key 'params'")
    structure, named = _name_all(group["params"], first)
    return named, {**group, "structure": structure}


def _sequence(params: Any) -> list[Any]:
    if isinstance(params, (set, frozenset)):
        raise TypeError("parameters need an order that a set does not have: give an ordered collection, a list or a dict of names")
    if isinstance(params, (str, bytes)) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an array, a sequence or mapping of arrays, or groups, not {type(params).__name__}")
    return list(params)


def _name_all(params: Any, first: int) -> tuple[str, Named]:
    if isinstance(params, Mapping):
        for name in params:
            if not isinstance(name, str):
                raise TypeError(f"the name of a parameter must be a string, not {name!r}")
        return "mapping", list(params.items())
    if hasattr(params, "dtype"):
        return "single", [(str(first), params)]
    return "sequence", [(str(first + i), array) for i, array in enumerate(_sequence(params))]


def structured(structure: str, named: Named) -> Any:
    """The parameters of one group in the shape in which they were given."""
    if structure == "single":
        return named[0][1]
    return dict(named) if structure == "mapping" else [array for _, array in named]


def flatten(structure: str, names: Sequence[str], grads: Any) -> list[Any]:
    """The gradients of one group in the order of its parameters; refuses another structure."""
    if structure == "single":
        return [grads]
    if structure == "mapping":
        if not isinstance(grads, Mapping):
            raise GradientError(f"the parameters were given by name: give a mapping of the same names, not {describe(grads)}")
        if len(grads) != len(names) or any(name not in grads for name in names):
            missing, unexpected = [n for n in names if n not in grads], [n for n in grads if n not in set(names)]
            raise GradientError(
                f"the gradients' names are not the parameters': missing {missing}, unexpected {unexpected} (None stands for no gradient)"
            )
        return [grads[name] for name in names]
    if hasattr(grads, "dtype") or isinstance(grads, (Mapping, set, frozenset, str, bytes)) or not isinstance(grads, Iterable):
        raise GradientError(f"the parameters were given as a sequence: give a list of {len(names)} gradients, not {describe(grads)}")
    result = list(grads)
    if len(result) != len(names):
        raise GradientError(f"{len(result)} gradients for {len(names)} parameters (None stands for no gradient)")
    return result


def as_gradient(entry: Entry, value: Any) -> Array:
    """The gradient as an array in the entry's axis order and dtype; refuses by name what cannot be used."""
    name, own = entry.name, entry.view.dtype
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise GradientError(f"the gradient of parameter {name!r} is a masked array with masked elements; fill it first (.filled(0))")
    if not isinstance(value, np.ndarray):
        if getattr(value, "is_sparse", False) or "sparse" in str(getattr(value, "layout", "")) or hasattr(value, "tocsr"):
            raise SparseGradientError(f"the gradient of parameter {name!r} is sparse ({type(value).__name__}); give a dense array")
        if not hasattr(value, "__array__") and not (type(value) is float and entry.shape == ()):
            raise GradientDtypeError(f"the gradient of parameter {name!r} is {value!r:.80} ({type(value).__name__}), not an array of {own}")
    array = np.asarray(value)
    if array.shape != entry.shape:
        raise GradientShapeError(
            f"the gradient of parameter {name!r} has shape {array.shape}, the parameter {entry.shape}; gradients are never broadcast"
        )
    if array.dtype != own:  # byte order counts
        if not (array.dtype == np.float32 and own == np.float64):
            raise GradientDtypeError(
                f"the gradient of parameter {name!r} is {array.dtype.str} ({array.dtype}), the parameter {own}; convert it with .astype({own})"
            )
        array = array.astype(own)
    return entry.canonical(array)
