"""State dicts: written from an optimizer, and read strictly: everything is checked before anything is taken over."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..engine import compiled
from ..errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointVersionError, HyperparameterError
from ..hyperparameters import checked, kinds_of
from ..language.rule import Rule, Traced
from ..rules import FAMILY
from ..step import MAX_STEP
from .parameters import describe
from .rows import Row

__all__ = ["FORMAT", "Contents", "Loaded", "Parameters", "ReadOnly", "read", "write"]

FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """What of an optimizer is written, and what a state dict must fit."""

    rule: Rule
    traced: Traced
    coupling: str
    public: Callable[[str], str]  # the name under which a state of the rule is shown
    rows: Sequence[Row]
    groups: Sequence[dict[str, Any]]
    counts: tuple[int, int, int]  # steps taken, steps skipped, of these in a row since the last that was taken
    finite: bool  # whether states that are not finite are refused
    check: Callable[[list[dict[str, Any]]], None]  # refuses groups whose values are out of range

    @property
    def program(self) -> str:
        """What tells a rule from another of the same name: what it computes; of a member of the family, which may be improved, that it is one."""
        return "openadam" if self.rule in FAMILY else compiled(self.traced)[0].digest

    def state(self, row: Row) -> dict[str, Any]:
        """The state of a parameter by public name: ``step``, then views of what the rule remembers."""
        names = [name for name in self.traced.states if name in self.traced.element_states]
        arrays = {self.public(name): row.as_given(array) for name, array in zip(names, row.states, strict=True)}
        numbers = {self.public(name): float(number) for name, number in zip(self.traced.scalar_states, row.numbers[1:], strict=True)}
        return {"step": row.steps, **arrays, **numbers}


@dataclass
class Loaded:
    """A state dict that fits an optimizer, in the form that the optimizer holds: per row its states and its numbers."""

    arrays: list[list[npt.NDArray[Any]]]
    numbers: list[npt.NDArray[np.float64]]
    counts: tuple[int, int, int]
    groups: list[dict[str, Any]]


def write(contents: Contents) -> dict[str, Any]:
    """Copies of everything but the parameters."""

    def setting(value: Any) -> Any:
        return {"schedule": repr(value)} if callable(value) else list(value) if isinstance(value, list) else value

    steps, skipped, in_a_row = contents.counts
    return {
        "format": FORMAT,
        "rule": contents.traced.name,
        "program": contents.program,
        "coupling": contents.coupling,
        "steps": steps,
        "skipped": skipped,
        "skips_in_a_row": in_a_row,
        "groups": [{name: setting(value) for name, value in group.items()} for group in contents.groups],
        "state": {
            row.name: {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in contents.state(row).items()}
            for row in contents.rows
        },
    }


def read(contents: Contents, given: Mapping[str, Any]) -> Loaded:
    """Check a state dict against the optimizer that is to take it over."""
    _check_header(contents, given)
    states, groups = given["state"], given["groups"]
    if not isinstance(states, Mapping) or not isinstance(groups, (list, tuple)):
        raise CheckpointCorruptError("`state` must be a mapping of names and `groups` a list")
    mine = [row.name for row in contents.rows]
    if set(states) != set(mine):
        missing, unexpected = sorted(set(mine) - set(states)), sorted(map(str, set(states) - set(mine)))
        raise CheckpointMismatchError(f"the parameters differ: the state lacks {missing}, and has {unexpected} that this optimizer does not")
    if len(groups) != len(contents.groups):
        raise CheckpointMismatchError(f"the state has {len(groups)} groups, this optimizer {len(contents.groups)}")
    arrays: list[list[npt.NDArray[Any]]] = []
    numbers: list[npt.NDArray[np.float64]] = []
    for row in contents.rows:
        state = states[row.name]
        expected = {"step", *map(contents.public, contents.traced.states)}
        if not isinstance(state, Mapping) or set(state) != expected:
            found = sorted(map(str, state)) if isinstance(state, Mapping) else describe(state)
            raise CheckpointMismatchError(f"the state of parameter {row.name!r} must hold {sorted(expected)}, found {found}")
        steps = _counter(state["step"], f"step of parameter {row.name!r}")
        numbers.append(np.array([steps, *(_scalar(contents, row, name, state) for name in contents.traced.scalar_states)], np.float64))
        names = [name for name in contents.traced.states if name in contents.traced.element_states]
        arrays.append([_array(contents, row, name, state, own) for name, own in zip(names, row.states, strict=True)])
    skipped = _counter(given.get("skipped", 0), "skipped")
    counts = _counter(given["steps"], "steps"), skipped, _counter(given.get("skips_in_a_row", 0), "skips_in_a_row")
    if counts[2] > skipped:
        raise CheckpointCorruptError(f"skips_in_a_row is {counts[2]}, more than all that were skipped, {skipped}")
    latest = max((int(each[0]) for each in numbers), default=0)
    if latest > counts[0]:
        raise CheckpointCorruptError(f"the optimizer has taken {counts[0]} steps, and one of its parameters {latest}")
    settings = [_settings(contents, index, group) for index, group in enumerate(groups)]
    try:
        contents.check(settings)
    except HyperparameterError as error:
        raise CheckpointMismatchError(str(error)) from error
    return Loaded(arrays=arrays, numbers=numbers, counts=counts, groups=settings)


def _check_header(contents: Contents, given: Mapping[str, Any]) -> None:
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
    for key, own in (("rule", contents.traced.name), ("coupling", contents.coupling)):
        if not isinstance(given[key], str) or given[key] != own:
            raise CheckpointMismatchError(f"the state is of {key} {given[key]!r}, this optimizer's is {own!r}")
    if given.get("program", contents.program) != contents.program:  # files of the first versions do not say
        raise CheckpointMismatchError(f"the state is of another rule that is called {given['rule']!r}, too: it computes something else")


def _array(contents: Contents, row: Row, name: str, state: Mapping[str, Any], own: npt.NDArray[Any]) -> npt.NDArray[Any]:
    value = state[contents.public(name)]
    where = f"{contents.public(name)!r} of parameter {row.name!r}"
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise CheckpointMismatchError(f"{where} is {describe(value)}, not a plain array")
    if value.dtype != own.dtype or value.shape != row.shape:
        raise CheckpointMismatchError(f"{where} is {value.dtype} {value.shape}, this optimizer's is {own.dtype} {row.shape}")
    if contents.finite and not np.isfinite(value).all():
        raise CheckpointCorruptError(f"{where} holds values that are not finite")
    if name in contents.rule.nonnegative and (value < 0).any():
        raise CheckpointCorruptError(f"{where} holds negative values, which it cannot have")
    return row.canonical(np.array(value))


def _scalar(contents: Contents, row: Row, name: str, state: Mapping[str, Any]) -> float:
    public = contents.public(name)
    value: Any = state[public]
    lowest = 0.0 if name in contents.rule.nonnegative else -sys.float_info.max
    largest = contents.rule.at_most.get(name, sys.float_info.max)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not lowest <= value <= largest:  # type: ignore[operator]
        kind = "number that is not negative" if lowest == 0 else "finite number"
        kind += f" of at most {largest:g}" if name in contents.rule.at_most else ""
        raise CheckpointCorruptError(f"{public!r} of parameter {row.name!r} is {value!r:.80}, not a {kind}")
    return float(value)


def _settings(contents: Contents, index: int, group: Any) -> dict[str, Any]:
    if not isinstance(group, Mapping):
        raise CheckpointCorruptError(f"group {index} is {describe(group)}, not a mapping")
    own = contents.groups[index]
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
            if not isinstance(value, (bool, np.bool_)):
                raise CheckpointCorruptError(f"maximize={value!r} in group {index} is neither True nor False")
            result[name] = bool(value)
        elif callable(own[name]):
            here = f"{own[name]!r} here; load into an optimizer with a number for it, and then set opt.groups[{index}][{name!r}] to the schedule"
            raise CheckpointMismatchError(f"{name} in group {index} is {value!r} in the state, and follows the schedule {here}")
        else:
            try:
                result[name] = checked(
                    name, value, where=f" in group {index}", advice="a state dict holds numbers", kinds=kinds_of(contents.rule.ranges)
                )
            except HyperparameterError as error:
                raise CheckpointCorruptError(str(error)) from error
    return result


def _counter(value: Any, what: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= MAX_STEP:
        raise CheckpointCorruptError(f"{what} is {value!r}, not a whole number from 0 to {MAX_STEP}")
    return int(value)


class ReadOnly(dict[str, Any]):
    """A dict to look at, made anew each time it is asked for: what is written into it would be lost, so it is refused. Copies are plain dicts."""

    def __missing__(self, name: object) -> Any:
        raise KeyError(f"there is no {name!r} among {', '.join(self)}")

    advice = "an optimizer's state is to look at; to change it, edit opt.state_dict() and give it to opt.load_state_dict(…)"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(self.advice)

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Parameters(ReadOnly):
    """The parameters by name."""

    advice = "an optimizer keeps the arrays that it was given; to change one, write into it: opt.params['w'][...] = new"
