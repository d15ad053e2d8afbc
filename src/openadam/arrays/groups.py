"""The groups of an optimizer over arrays: their settings, which may be changed between steps and are checked before each."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import HyperparameterError, HyperparameterWarning, ParameterError, UnknownHyperparameterError
from ..hyperparameters import Hyperparameter, checked, checked_or_schedule, suggest
from ..step import check_dtype
from .parameters import Structure
from .rows import Row

__all__ = ["Groups", "at"]

Settings = dict[str, Any]


class Groups:
    """What is known of each group of parameters; `settings` is what people see and edit.

    Args:
        names: The hyperparameters that every group has.
        coupling: How weight decay joins the gradient.
        chosen: What is one for all groups: what the constructor takes beside hyperparameters, and the options of the rule.
        kinds: The hyperparameters that the rule knows better.
    """

    def __init__(self, names: Sequence[str], coupling: str, chosen: Sequence[str], kinds: Mapping[str, Hyperparameter]) -> None:
        self._kinds = kinds
        self.names = tuple(names)
        self.settings: list[Settings] = []
        self.structures: list[Structure] = []
        self._coupling, self._chosen = coupling, frozenset(chosen)
        self._parameters: list[list[str]] = []  # names, of each group
        self._singles: dict[int, str] = {}  # of each group that has one, the first float32 parameter
        self._told: list[Any] = []  # the settings as they were when the stepper was told; empty: never
        self._scheduled = False

    def read(self, index: int, given: Mapping[str, Any], base: Settings) -> Settings:
        """The settings of a new group: its own, the others those of the optimizer."""
        values = dict(base)
        for name, value in given.items():
            self._refuse_unknown(index, name)
            values[name] = value if name == "maximize" else checked_or_schedule(name, value, where=f" in group {index}", kinds=self._kinds)
        maximize = values.pop("maximize")
        return {**values, "maximize": maximize}

    def add(self, settings: Sequence[Settings], structures: Sequence[Structure], rows: Sequence[Row]) -> None:
        """Take in groups that were read; ``rows`` are those of all groups, the old ones among them.

        Raises:
            HyperparameterError: A value is out of range; nothing was taken in.
        """
        every = [*self.settings, *settings]
        parameters: list[list[str]] = [[] for _ in every]
        singles: dict[int, str] = {}
        for row in rows:
            parameters[row.group].append(row.name)
            if row.view.dtype == np.float32:
                singles.setdefault(row.group, row.name)
        self._check(every, parameters, singles)
        self.settings += settings
        self.structures += structures
        self._parameters, self._singles, self._told = parameters, singles, []

    def check(self, settings: Sequence[Settings]) -> None:
        """Refuse settings that are out of range, or that the parameters' dtype cannot hold; keep numbers as Python floats."""
        self._check(settings, self._parameters, self._singles)

    def check_places(self) -> None:
        """Refuse groups that were added, taken away or reordered by hand."""
        self._check_places(self.settings, self._parameters)

    def tell(self, stepper: Any, t: int) -> None:
        """Tell the stepper the hyperparameters of step t, checked; schedules are asked for them."""
        now = self._now()
        changed = not self._told or len(now) != len(self._told) or not all(map(operator.is_, now, self._told))
        if not changed and not self._scheduled:
            return
        if changed:
            self.check(self.settings)
        self._told = []
        for index, group in enumerate(self.settings):
            numbers = {name: at(name, group[name], t, self._kinds) for name in self.names}
            check_dtype(index, numbers, self._singles.get(index))
            if callable(group["lr"]) or callable(group["weight_decay"]):
                self._warn_of_overshoot(index, numbers["lr"], numbers["weight_decay"])
            stepper.tell(index, numbers | {"maximize": bool(group["maximize"])})
        self._told = self._now()
        self._scheduled = any(map(callable, self._told))

    def _now(self) -> list[Any]:
        names = (*self.names, "maximize", "params")
        return [group.get(name) for group in self.settings for name in names] + [len(group) for group in self.settings]

    def _check(self, settings: Sequence[Settings], parameters: Sequence[list[str]], singles: Mapping[int, str]) -> None:
        self._check_places(settings, parameters)
        for index, group in enumerate(settings):
            for name in (*self.names, "maximize"):
                if name not in group:
                    raise HyperparameterError(f"group {index} has lost its {name!r}")
            for name in group:
                if name != "params":
                    self._refuse_unknown(index, name)
            where = f" in group {index}"
            numbers = {name: checked_or_schedule(name, group[name], where=where, kinds=self._kinds) for name in self.names}
            if not isinstance(group["maximize"], (bool, np.bool_)):
                raise HyperparameterError(f"maximize={group['maximize']!r} in group {index} is neither True nor False")
            check_dtype(index, numbers, singles.get(index))
            lr, decay = numbers["lr"], numbers["weight_decay"]
            if not callable(lr) and not callable(decay):
                self._warn_of_overshoot(index, lr, decay)
            group.update(numbers)

    def _refuse_unknown(self, index: int, name: str) -> None:
        if name in self.names or name == "maximize":
            return
        if name in self._chosen:
            raise UnknownHyperparameterError(f"{name} in group {index}: it is chosen when the optimizer is made, and is the same for all groups")
        raise suggest(f"group {index}", str(name), [*self.names, "maximize"])

    @staticmethod
    def _check_places(settings: Sequence[Settings], parameters: Sequence[list[str]]) -> None:
        if len(settings) != len(parameters):
            raise ParameterError(
                f"there are {len(settings)} groups where {len(parameters)} were added; add one with add_group(…), and take none away"
            )
        for index, (group, names) in enumerate(zip(settings, parameters, strict=True)):
            given: Any = group.get("params") if isinstance(group, Mapping) else group
            if not isinstance(given, (list, tuple)) or [name if isinstance(name, str) else None for name in given] != names:
                why = "groups keep their order and their parameters; change only their settings"
                raise ParameterError(f"group {index} now lists the parameters {given!r:.200}, but has {names!r:.200}: {why}")

    def _warn_of_overshoot(self, index: int, lr: float, decay: float) -> None:
        if self._coupling == "decoupled" and lr * decay > 1:
            warnings.warn(f"lr * weight_decay = {lr * decay:g} in group {index}: decay overshoots zero", HyperparameterWarning, stacklevel=6)


def at(name: str, value: Any, t: int, kinds: Mapping[str, Hyperparameter]) -> float:
    """The value of a hyperparameter at step t: a number as it is, a schedule asked and checked."""
    return checked(name, value(t), where=f" (from its schedule at t={t})", kinds=kinds) if callable(value) else float(value)
