"""Parameters and gradients as the caller gives them: their structure and names, and which gradients are refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import GradientDtypeError, GradientError, GradientShapeError, HyperparameterError, SparseGradientError
from .rows import Row

__all__ = ["Group", "as_gradient", "describe", "excluded", "first_singles", "flatten", "read_group", "read_no_decay", "read_structure", "structured"]

Array = npt.NDArray[Any]


# --- structure ---------------------------------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """What a value is, for messages."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


Named = list[tuple[str, Any]]


class Group(NamedTuple):
    """A group as it was given."""

    named: Named
    settings: dict[str, Any]
    structure: str  # single, sequence or mapping


def read_structure(params: Any) -> tuple[str, list[Group]]:
    """Whether params is single, sequence, mapping or groups; and the groups."""
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
                count += len(groups[-1].named)
            return "groups", groups
    structure, named = _name_all(params, 0)
    return structure, [Group(named, {}, structure)]


def read_group(group: Mapping[str, Any], first: int) -> Group:
    """A group with names for its parameters; those without are numbered from ``first``."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise TypeError("a group is a mapping with the key 'params'")
    structure, named = _name_all(group["params"], first)
    return Group(named, {name: value for name, value in group.items() if name != "params"}, structure)


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


def as_gradient(row: Row, value: Any) -> Array:
    """The gradient as an array in the row's axis order and dtype; refuses by name what cannot be used."""
    name, own = row.name, row.view.dtype
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise GradientError(f"the gradient of parameter {name!r} is a masked array with masked elements; fill it first (.filled(0))")
    if not isinstance(value, np.ndarray):
        if getattr(value, "is_sparse", False) or "sparse" in str(getattr(value, "layout", "")) or hasattr(value, "tocsr"):
            raise SparseGradientError(f"the gradient of parameter {name!r} is sparse ({type(value).__name__}); give a dense array")
        if not hasattr(value, "__array__") and not (type(value) is float and row.shape == ()):
            raise GradientDtypeError(f"the gradient of parameter {name!r} is {value!r:.80} ({type(value).__name__}), not an array of {own}")
    if hasattr(value, "unit") and hasattr(value, "to_value"):
        raise GradientError(f"the gradient of parameter {name!r} has a unit ({value.unit}), which a step would drop; give its numbers (.value)")
    array = np.asarray(value)
    if array.shape != row.shape:
        raise GradientShapeError(
            f"the gradient of parameter {name!r} has shape {array.shape}, the parameter {row.shape}; gradients are never broadcast"
        )
    if array.dtype != own:  # byte order counts
        if not (array.dtype == np.float32 and own == np.float64):
            raise GradientDtypeError(
                f"the gradient of parameter {name!r} is {array.dtype.str} ({array.dtype}), the parameter {own}; convert it with .astype({own})"
            )
        array = array.astype(own)
    return row.canonical(array)


# --- what weight decay leaves alone -------------------------------------------------------------------------------------


def read_no_decay(no_decay: Any) -> Any:
    """What weight decay leaves alone, as it was when the optimizer was made: a function, or a list."""
    if callable(no_decay):
        return no_decay
    if isinstance(no_decay, str) or hasattr(no_decay, "dtype"):
        return [no_decay]
    if not isinstance(no_decay, Iterable):
        raise HyperparameterError(f"no_decay={no_decay!r} is neither names, nor arrays, nor a function of (name, array)")
    return list(no_decay)


def excluded(no_decay: Any, added: Sequence[Row], every: Sequence[Row]) -> list[bool]:
    """For each parameter that is added whether weight decay leaves it alone; refuses what names none of all parameters."""
    if callable(no_decay):
        return [bool(no_decay(row.name, row.array)) for row in added]
    known = {row.name for row in every}
    arrays = {id(row.array): row for row in every}
    for item in no_decay:
        if isinstance(item, str):
            if item not in known:
                near = difflib.get_close_matches(item, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"they are called {', '.join(map(repr, sorted(known)[:8]))}"
                raise HyperparameterError(f"no_decay names {item!r}, and no parameter is called so; {hint}")
        elif not isinstance(item, np.ndarray):
            raise HyperparameterError(f"no_decay holds {item!r:.80}, which is neither a name nor a parameter's array")
        elif id(item) not in arrays:
            raise HyperparameterError(f"no_decay holds an array of shape {item.shape} that is none of the parameters (a copy or a view?); give names")
    names = {item for item in no_decay if isinstance(item, str)}
    objects = {id(item) for item in no_decay if not isinstance(item, str)}
    return [row.name in names or id(row.array) in objects for row in added]


def first_singles(rows: Sequence[Row]) -> dict[int, str]:
    """Of each group that has one, the name of its first float32 parameter."""
    singles: dict[int, str] = {}
    for row in rows:
        if row.view.dtype == np.float32:
            singles.setdefault(row.group, row.name)
    return singles
