"""Parameters and gradients as the caller gives them: their structure and names, and which gradients are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import GradientDtypeError, GradientError, GradientShapeError, SparseGradientError
from ..row_sparse import Indices, Rows, by_row, refuse_places
from .rows import Row

__all__ = ["Group", "Structure", "as_gradient", "as_named", "describe", "read_group", "read_structure"]

Array = npt.NDArray[Any]


# --- structure ---------------------------------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """What a value is, for messages."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


Named = list[tuple[str, Any]]


@dataclass(frozen=True)
class Structure:
    """How arrays were given: one (``single``), or a ``sequence`` or ``mapping`` of arrays and structures; gradients come in the same."""

    kind: str
    keys: tuple[str, ...] = ()  # of a mapping; of a sequence, the names that its places have
    parts: tuple[Structure, ...] | None = None  # None: all are arrays

    def flatten(self, grads: Any, at: str = "") -> list[Any]:
        """The gradients in the order of the parameters; refuses another structure by the name of the place where it differs."""
        if self.kind == "single":
            return [grads]
        given = f"the parameters {f'in {at!r} ' if at else ''}were given"
        if self.kind == "mapping":
            if not isinstance(grads, Mapping):
                raise GradientError(f"{given} by name: give a mapping of the same names, not {describe(grads)}")
            if len(grads) != len(self.keys) or any(name not in grads for name in self.keys):
                missing, unexpected = [n for n in self.keys if n not in grads], [n for n in grads if n not in set(self.keys)]
                where = f" in {at!r}" if at else ""
                raise GradientError(
                    f"the gradients' names{where} are not the parameters': missing {missing}, unexpected {unexpected} (None stands for no gradient)"
                )
            values = [grads[name] for name in self.keys]
        else:
            if hasattr(grads, "dtype") or isinstance(grads, (Mapping, set, frozenset, str, bytes)) or not isinstance(grads, Iterable):
                raise GradientError(f"{given} as a sequence: give a list of {len(self.keys)} gradients, not {describe(grads)}")
            values = list(grads)
            if len(values) != len(self.keys):
                where = f" in {at!r}" if at else ""
                raise GradientError(f"{len(values)} gradients for {len(self.keys)} parameters{where} (None stands for no gradient)")
        if self.parts is None:
            return values
        return [
            gradient
            for key, part, value in zip(self.keys, self.parts, values, strict=True)
            for gradient in part.flatten(value, f"{at}.{key}" if at else key)
        ]

    def build(self, arrays: Iterator[Any]) -> Any:
        """The parameters again as they were given, from all of them in their order."""
        if self.kind == "single":
            return next(arrays)
        values = [part.build(arrays) for part in self.parts] if self.parts is not None else list(itertools.islice(arrays, len(self.keys)))
        return dict(zip(self.keys, values, strict=True)) if self.kind == "mapping" else values


class Group(NamedTuple):
    """A group as it was given."""

    named: Named
    settings: dict[str, Any]
    structure: Structure


def read_structure(params: Any) -> tuple[bool, list[Group]]:
    """Whether params are groups; and the groups."""
    try:
        return _read_structure(params)
    except RecursionError:
        raise TypeError("params are nested too deep, or hold themselves") from None


def _read_structure(params: Any) -> tuple[bool, list[Group]]:
    if isinstance(params, Mapping) and "params" in params and not hasattr(params["params"], "dtype"):
        params = [params]
    if not isinstance(params, Mapping) and not hasattr(params, "dtype"):
        params = _sequence(params)
        if any(isinstance(part, Mapping) and "params" in part for part in params):
            groups: list[Group] = []
            for part in params:
                if not isinstance(part, Mapping):
                    raise TypeError("give either arrays or groups, not both")
                groups.append(read_group(part, sum(len(group.named) for group in groups)))
            return True, groups
        if any(isinstance(part, Mapping) and any(isinstance(value, (int, float, str)) for value in part.values()) for part in params):
            raise TypeError("a group is a mapping with the key 'params'")  # it has settings, so it was to be one
    named, structure = _name_all(params, 0)
    return False, [Group(named, {}, structure)]


def read_group(group: Mapping[str, Any], first: int) -> Group:
    """A group with names for its parameters; those without are numbered from ``first``."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError("a group is a mapping with the key 'params'")
    named, structure = _name_all(group["params"], first)
    return Group(named, {name: value for name, value in group.items() if name != "params"}, structure)


def _sequence(params: Any) -> list[Any]:
    if isinstance(params, (set, frozenset)):
        raise TypeError("parameters need an order that a set does not have: give an ordered collection, a list or a dict of names")
    if isinstance(params, (str, bytes)) or not isinstance(params, Iterable):
        raise TypeError(f"params must be an array, a sequence or mapping of arrays, or groups, not {type(params).__name__}")
    return list(params)


def _name_all(params: Any, first: int) -> tuple[Named, Structure]:
    """The parameters by name, those of sequences by their place, counted from ``first`` in the outermost one."""
    if hasattr(params, "dtype"):
        return [(str(first), params)], Structure("single")
    return _name_parts(params if isinstance(params, Mapping) else _sequence(params), first, "")


def _holds_more(value: Any) -> bool:
    """Whether a value is a structure again; a list of numbers was meant as an array, which will be said."""
    return isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and not any(isinstance(item, (int, float)) for item in value))


def _name_parts(params: Any, first: int, prefix: str) -> tuple[Named, Structure]:
    if isinstance(params, Mapping):
        for name in params:
            if not isinstance(name, str):
                where = f" in {prefix[:-1]!r}" if prefix else ""
                raise TypeError(f"the name of a parameter must be a string, not {name!r}{where}")
        kind, keys, values = "mapping", tuple(params), list(params.values())
    else:
        kind, keys, values = "sequence", tuple(str(first + i) for i in range(len(params))), list(params)
    nested = [_holds_more(value) for value in values]
    if not any(nested):
        return [(prefix + key, value) for key, value in zip(keys, values, strict=True)], Structure(kind, keys)
    named: Named = []
    parts = []
    for key, value, deeper in zip(keys, values, nested, strict=True):
        inner, part = _name_parts(value, 0, f"{prefix}{key}.") if deeper else ([(prefix + key, value)], Structure("single"))
        named += inner
        parts.append(part)
    return named, Structure(kind, keys, tuple(parts))


def as_gradient(row: Row, value: Any) -> Array:
    """The gradient as an array in the row's axis order and dtype; refuses by name what cannot be used."""
    array = _as_numbers(row, value)
    if array.shape != row.shape:
        raise GradientShapeError(
            f"the gradient of parameter {row.name!r} has shape {array.shape}, the parameter {row.shape}; gradients are never broadcast"
        )
    return row.canonical(_as_own_dtype(row, array))


def as_named(row: Row, value: Rows) -> tuple[Indices, Array]:
    """The rows that a gradient names, each once, and their values, contiguous, in the order of the parameter's axes; refuses as `as_gradient`."""
    name = row.name
    if not row.shape:
        raise GradientShapeError(f"the gradient of parameter {name!r} names rows, and the parameter is a single number; give a number")
    indices = _as_indices(row, value.indices)
    values = _as_numbers(row, value.values)
    if values.shape != (len(indices), *row.shape[1:]):
        raise GradientShapeError(
            f"the gradient of parameter {name!r} has values of shape {values.shape}; for {len(indices)} named rows of the parameter's "
            f"{row.shape} they must have {(len(indices), *row.shape[1:])}"
        )
    return by_row(indices, np.require(_as_own_dtype(row, values), requirements=("C", "A")))


def _as_indices(row: Row, value: Any) -> Indices:
    """The named rows as they were given, as numbers of rows that the parameter has."""
    name = row.name
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise GradientError(f"the gradient of parameter {name!r} names rows in a masked array with masked elements; leave these out (.compressed())")
    indices = np.asarray(value)
    if indices.shape == (0,) and (not isinstance(value, np.ndarray) or value.dtype == np.float64):  # what NumPy makes of an empty list
        indices = indices.astype(np.int64)
    if indices.ndim != 1:
        raise GradientShapeError(f"the gradient of parameter {name!r} names rows by an array of shape {indices.shape}; give one axis of indices")
    if indices.dtype.kind not in "iu":
        raise GradientDtypeError(f"the gradient of parameter {name!r} names rows by {indices.dtype}; indices are integers (.astype(np.int64))")
    if indices.size:
        refuse_places(name, "row", int(indices.min()), int(indices.max()), row.shape[0], "rows are numbered from 0")
    return np.ascontiguousarray(indices, np.int64)


def _as_numbers(row: Row, value: Any) -> Array:
    """What was given for a gradient as an array; refuses what is none."""
    name, own = row.name, row.view.dtype
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise GradientError(f"the gradient of parameter {name!r} is a masked array with masked elements; fill it first (.filled(0))")
    if not isinstance(value, np.ndarray):
        if getattr(value, "is_sparse", False) or "sparse" in str(getattr(value, "layout", "")) or hasattr(value, "tocsr"):
            raise SparseGradientError(f"the gradient of parameter {name!r} is sparse ({type(value).__name__}); give a dense array, or openadam.Rows")
        if not hasattr(value, "__array__") and not (type(value) is float and row.shape == ()):
            raise GradientDtypeError(f"the gradient of parameter {name!r} is {value!r:.80} ({type(value).__name__}), not an array of {own}")
    if hasattr(value, "unit") and hasattr(value, "to_value"):
        raise GradientError(f"the gradient of parameter {name!r} has a unit ({value.unit}), which a step would drop; give its numbers (.value)")
    return np.asarray(value)


def _as_own_dtype(row: Row, array: Array) -> Array:
    """The gradient in the parameter's dtype, if that holds every number of its own."""
    own = row.view.dtype
    if array.dtype != own:  # byte order counts
        if not (array.dtype == np.float32 and own == np.float64):
            raise GradientDtypeError(
                f"the gradient of parameter {row.name!r} is {array.dtype.str} ({array.dtype}), the parameter {own}; convert it with .astype({own})"
            )
        array = array.astype(own)
    return array
