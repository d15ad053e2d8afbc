"""State dicts: written from an optimizer, and read strictly: everything is checked before anything is taken over."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointVersionError, HyperparameterError
from .hyperparameters import checked
from .parameters import Entry, describe
from .step import MAX_STEP

if TYPE_CHECKING:
    from .optimizer import Optimizer

__all__ = ["FORMAT", "Loaded", "read", "write"]

FORMAT = 1


@dataclass
class Loaded:
    """A state dict that fits an optimizer, in the form that the optimizer holds."""

    arrays: list[list[npt.NDArray[Any]]]
    counters: npt.NDArray[np.int64]
    memory: npt.NDArray[np.float64]
    groups: list[dict[str, Any]]


def write(optimizer: Optimizer) -> dict[str, Any]:
    """Copies of everything but the parameters."""

    def setting(value: Any) -> Any:
        return {"schedule": repr(value)} if callable(value) else list(value) if isinstance(value, list) else value

    return {
        "format": FORMAT,
        "rule": optimizer._traced.name,
        "coupling": optimizer._coupling,
        "steps": optimizer.steps,
        "skipped": optimizer.skipped,
        "groups": [{name: setting(value) for name, value in group.items()} for group in optimizer.groups],
        "state": {
            name: {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
            for name, state in optimizer.state.items()
        },
    }


def read(optimizer: Optimizer, given: Mapping[str, Any]) -> Loaded:
    """Check a state dict against the optimizer that is to take it over."""
    _check_header(optimizer, given)
    states, groups = given["state"], given["groups"]
    if not isinstance(states, Mapping) or not isinstance(groups, (list, tuple)):
        raise CheckpointCorruptError("`state` must be a mapping of names and `groups` a list")
    mine = [entry.name for entry in optimizer._entries]
    if set(states) != set(mine):
        missing, unexpected = sorted(set(mine) - set(states)), sorted(map(str, set(states) - set(mine)))
        raise CheckpointMismatchError(f"the parameters differ: the state lacks {missing}, and has {unexpected} that this optimizer does not")
    if len(groups) != len(optimizer.groups):
        raise CheckpointMismatchError(f"the state has {len(groups)} groups, this optimizer {len(optimizer.groups)}")
    arrays: list[list[npt.NDArray[Any]]] = []
    counters: list[int] = []
    memory: list[float] = []
    for i, entry in enumerate(optimizer._entries):
        state = states[entry.name]
        expected = {"step", *map(optimizer._public, optimizer._traced.states)}
        if not isinstance(state, Mapping) or set(state) != expected:
            found = sorted(map(str, state)) if isinstance(state, Mapping) else describe(state)
            raise CheckpointMismatchError(f"the state of parameter {entry.name!r} must hold {sorted(expected)}, found {found}")
        counters.append(_counter(state["step"], f"step of parameter {entry.name!r}"))
        memory += [_scalar(optimizer, entry, name, state) for name in optimizer._traced.scalar_states]
        names = optimizer._update.program.states
        arrays.append([_array(optimizer, entry, name, state, own) for name, own in zip(names, optimizer._table.states[i], strict=True)])
    counters.append(_counter(given["steps"], "steps"))
    counters.append(_counter(given.get("skipped", 0), "skipped"))
    settings = [_settings(optimizer, index, group) for index, group in enumerate(groups)]
    try:
        optimizer._check_groups(settings, optimizer._entries)
    except HyperparameterError as error:
        raise CheckpointMismatchError(str(error)) from error
    return Loaded(
        arrays=arrays,
        counters=np.array(counters, np.int64),
        memory=np.array(memory, np.float64),
        groups=settings,
    )


def _check_header(optimizer: Optimizer, given: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping) or "format" not in given:
        raise CheckpointMismatchError(f"not a state_dict of openadam: {describe(given)}")
    version = given["format"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CheckpointCorruptError(f"format={version!r} is not a version number")
    if version > FORMAT:
        raise CheckpointVersionError(f"the state has format {version}; this version of openadam reads up to {FORMAT}: upgrade openadam")
    for key in ("rule", "coupling", "steps", "groups", "state"):
        if key not in given:
            raise CheckpointCorruptError(f"the state lacks {key!r}")
    for key, own in (("rule", optimizer._traced.name), ("coupling", optimizer._coupling)):
        if not isinstance(given[key], str) or given[key] != own:
            raise CheckpointMismatchError(f"the state is of {key} {given[key]!r}, this optimizer's is {own!r}")


def _array(optimizer: Optimizer, entry: Entry, name: str, state: Mapping[str, Any], own: npt.NDArray[Any]) -> npt.NDArray[Any]:
    value = state[optimizer._public(name)]
    where = f"{optimizer._public(name)!r} of parameter {entry.name!r}"
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise CheckpointMismatchError(f"{where} is {describe(value)}, not a plain array")
    if value.dtype != own.dtype or value.shape != entry.shape:
        raise CheckpointMismatchError(f"{where} is {value.dtype} {value.shape}, this optimizer's is {own.dtype} {entry.shape}")
    if optimizer._nonfinite != "propagate" and not np.isfinite(value).all():
        raise CheckpointCorruptError(f"{where} holds values that are not finite")
    if name in optimizer._rule.nonnegative and (value < 0).any():
        raise CheckpointCorruptError(f"{where} holds negative values, which it cannot have")
    return entry.canonical(np.array(value))


def _scalar(optimizer: Optimizer, entry: Entry, name: str, state: Mapping[str, Any]) -> float:
    public = optimizer._public(name)
    value = state[public]
    lowest = 0.0 if name in optimizer._rule.nonnegative else -sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= sys.float_info.max:
        kind = "number that is not negative" if lowest == 0 else "finite number"
        raise CheckpointCorruptError(f"{public!r} of parameter {entry.name!r} is {value!r:.80}, not a {kind}")
    return float(value)


def _settings(optimizer: Optimizer, index: int, group: Any) -> dict[str, Any]:
    if not isinstance(group, Mapping):
        raise CheckpointCorruptError(f"group {index} is {describe(group)}, not a mapping")
    own = optimizer.groups[index]
    names = group.get("params", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names) or sorted(names) != sorted(own["params"]):
        raise CheckpointMismatchError(f"group {index} of the state holds {names}, this optimizer's {own['params']}")
    result = dict(own)
    for name, value in group.items():
        if name == "params":
            continue
        if name not in own:
            raise CheckpointMismatchError(f"group {index} of the state has {name!r}, which this optimizer does not")
        if isinstance(value, Mapping) and "schedule" in value:
            if not callable(own[name]):
                raise CheckpointMismatchError(f"{name} in group {index} followed the schedule {value['schedule']}; give this optimizer one too")
        elif name == "maximize":
            if not isinstance(value, bool):
                raise CheckpointCorruptError(f"maximize={value!r} in group {index} is neither True nor False")
            result[name] = value
        else:
            try:
                result[name] = checked(name, value, where=f" in group {index}")
            except HyperparameterError as error:
                raise CheckpointCorruptError(str(error)) from error
    return result


def _counter(value: Any, what: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= MAX_STEP:
        raise CheckpointCorruptError(f"{what} is {value!r}, not a whole number from 0 to {MAX_STEP}")
    return int(value)
