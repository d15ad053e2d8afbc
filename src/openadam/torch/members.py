"""What torch calls the family: which rule a parameter group stands for, and where torch keeps its hyperparameters and states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from .. import family, rules
from ..engine import compiled
from ..errors import HyperparameterError
from ..hyperparameters import Hyperparameter, checked, kinds_of
from ..language.rule import Rule, Traced

__all__ = ["ADAGRAD", "ADAM", "ADAMAX", "MEMBERS", "NADAM", "RADAM", "RMSPROP", "SGD", "SPARSE_ADAM", "Member", "as_pair", "member_of"]

Group = Mapping[str, Any]
Sparse: TypeAlias = Literal["refused", "taken", "required"]
BETAS: dict[str, tuple[str, int | None]] = {"beta1": ("betas", 0), "beta2": ("betas", 1)}


@dataclass(frozen=True)
class Member:
    """A class of ``torch.optim``, told in the words of the family."""

    name: str
    rule: Callable[[Group], tuple[Rule, dict[str, str]]]
    numbers: Mapping[str, tuple[str, int | None]]  # the family's name -> torch's key, and the place in it
    states: Mapping[str, str]  # the rule's name -> torch's
    rules: tuple[Rule, ...]  # all that its groups may stand for
    counts: bool = True  # whether torch keeps a `step` for each parameter
    counts_in_ints: bool = False  # whether its state dicts hold that as an int
    decays: bool = True  # whether it has weight decay
    sparse: Sparse = "refused"  # gradients
    made_at_once: bool = False  # whether torch makes the states with the optimizer, not in the first step
    own_coupling: str | None = None  # of a rule of one's own: how weight decay joins the gradient, since no group says so
    kinds: Mapping[str, Hyperparameter] = field(default_factory=dict)  # of a rule of one's own: hyperparameters that it knows better
    program: str | None = None  # of a rule of one's own: what it computes, to tell it from others of its name

    @cached_property
    def state_keys(self) -> frozenset[str]:
        """What torch may keep for a parameter, whatever the flags."""
        traces = [rule.trace(**choice) for rule in self.rules for choice in rule.variants()]
        return frozenset(self.states.get(name, name) for traced in traces for name in traced.states) | ({"step"} if self.counts else set())

    def word(self, state: str) -> tuple[float, float]:
        """The range that a scalar state keeps to."""
        return next((rule.words[state] for rule in self.rules if state in rule.words), (-math.inf, math.inf))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """What of a group says how its parameters move."""
        flags = ("amsgrad", "nesterov", "centered", "maximize", "decoupled_weight_decay", "differentiable", "capturable")
        return tuple(dict.fromkeys([*self.required, *flags]))

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The numbers that a group must have."""
        return tuple(dict.fromkeys(key for key, _ in self.places.values()))

    @cached_property
    def places(self) -> Mapping[str, tuple[str, int | None]]:
        """Where a group has each number that moves its parameters."""
        return {name: (name, None) for name in (["lr", "weight_decay"] if self.decays else ["lr"])} | dict(self.numbers)

    def traced(self, group: Group) -> Traced:
        """The rule of a group, with its options."""
        rule, options = self.rule(group)
        return rule.trace(**options)

    def first_values(self, group: Group, *, moments: bool, steps: bool) -> Iterator[tuple[str, float]]:
        """What torch calls the states of a group's parameters, and what each starts from: those of elements, those that are one number."""
        traced = self.traced(group)
        for name, first in traced.initial.items():
            if moments if name in traced.element_states else steps:
                yield self.states.get(name, name), float(group[self.numbers[first][0]] if isinstance(first, str) else first)
        if steps and self.counts:
            yield "step", 0.0

    def coupling(self, group: Group) -> str:
        return self.own_coupling or ("decoupled" if group.get("decoupled_weight_decay") else "coupled")

    def settings(self, index: int, group: Group) -> dict[str, Any]:
        """A group's hyperparameters as checked numbers under the family's names, and ``maximize``.

        Raises:
            HyperparameterError: One is missing, no number, or out of range.
        """
        found: dict[str, Any] = {} if self.decays else {"weight_decay": 0.0}
        for name, (key, place) in self.places.items():
            if key not in group:
                raise HyperparameterError(f"group {index} has lost its {key!r}")
            value = group[key]
            if place is not None:
                pair = as_pair(value)
                if pair is None:
                    raise HyperparameterError(f"{key}={value!r} in group {index} is not a pair of numbers")
                value = pair[place]
            if isinstance(value, torch.Tensor):
                if value.numel() != 1:
                    raise HyperparameterError(f"{key} in group {index} is a tensor of {value.numel()} elements: Tensor {key} must be 1-element")
                value = value.item()
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise HyperparameterError(f"{key}={value!r} ({type(value).__name__}) in group {index} is not a number")
            if name == "lr" and _is_rounding(value, group.get("initial_lr", 0.0)):
                found[name] = float(value)  # as torch: it moves nothing
                continue
            where = f" ({key} of group {index})" if name != key else f" in group {index}"
            found[name] = checked(name, value, where=where, kinds=self.kinds)
        ascends = group.get("maximize", False)
        one = isinstance(ascends, (int, float, np.bool_)) or (isinstance(ascends, torch.Tensor) and ascends.numel() == 1)
        if not one or float(ascends) not in (0.0, 1.0):
            raise HyperparameterError(f"maximize={ascends!r} in group {index} is neither True nor False")
        return found | {"maximize": bool(group.get("maximize", False))}


def member_of(rule: Rule, options: Mapping[str, str], coupling: str) -> Member:
    """A rule as if it were a class of ``torch.optim``: hyperparameters and states have the names that the rule gives them."""
    traced = rule.trace(**options)
    starts = [start for start in traced.initial.values() if isinstance(start, str)]
    numbers = {name: (name, None) for name in dict.fromkeys([*traced.hyperparameters, *starts]) if name not in ("lr", "weight_decay")}
    program = compiled(traced)[0].digest
    kinds = kinds_of(rule.ranges)
    return Member(rule.name, lambda group: (rule, dict(options)), numbers, {}, (rule,), own_coupling=coupling, kinds=kinds, program=program)


def as_pair(value: Any) -> tuple[Any, Any] | None:
    """A pair of numbers as a tuple, of Python floats unless it holds tensors; None for what is no pair.

    Configurations bring lists of their own kinds, and arrays; what is kept must be readable from a checkpoint.
    """
    if isinstance(value, (str, bytes, Mapping)):
        return None
    try:
        pair = tuple(value.tolist() if isinstance(value, torch.Tensor) or hasattr(value, "dtype") else value)
    except TypeError:
        return None
    if len(pair) != 2:
        return None
    floats = tuple(float(x) if isinstance(x, (int, float, np.number)) and not isinstance(x, bool) else x for x in pair)
    return floats[0], floats[1]


def _is_rounding(value: float, initial: Any) -> bool:
    """Whether a learning rate below zero is what rounding leaves of one that a scheduler has brought to zero."""
    size = abs(float(initial)) if isinstance(initial, (int, float, torch.Tensor)) else 0.0
    return -max(1e-15, 1e-12 * size) <= value < 0


def _adam(group: Group) -> tuple[Rule, dict[str, str]]:
    return rules.amsgrad if group.get("amsgrad") else rules.adam, {}


def _rmsprop(group: Group) -> tuple[Rule, dict[str, str]]:
    return rules.rmsprop, {"variance": "centered" if group.get("centered") else "raw", "buffer": "momentum" if group["momentum"] else "none"}


def _sgd(group: Group) -> tuple[Rule, dict[str, str]]:
    if not group["momentum"]:
        return rules.sgd, {}
    return rules.momentum, {"form": "nesterov" if group.get("nesterov") else "classical"}


def _always(rule: Rule) -> Callable[[Group], tuple[Rule, dict[str, str]]]:
    return lambda group: (rule, {})


EPS: dict[str, tuple[str, int | None]] = {"eps": ("eps", None)}
ADAM = Member("Adam", _adam, {**BETAS, **EPS}, family.AMSGrad.state_names, (rules.adam, rules.amsgrad))
NADAM = Member("NAdam", _always(rules.nadam), {**BETAS, **EPS, "momentum_decay": ("momentum_decay", None)}, family.NAdam.state_names, (rules.nadam,))
RADAM = Member("RAdam", _always(rules.radam), {**BETAS, **EPS}, family.RAdam.state_names, (rules.radam,))
ADAMAX = Member("Adamax", _always(rules.adamax), {**BETAS, **EPS}, family.AdaMax.state_names, (rules.adamax,))
RMSPROP = Member("RMSprop", _rmsprop, {"rho": ("alpha", None), **EPS, "momentum": ("momentum", None)}, family.RMSProp.state_names, (rules.rmsprop,))
ADAGRAD = Member(
    "Adagrad",
    _always(rules.adagrad),
    {**EPS, "lr_decay": ("lr_decay", None), "initial_accumulator_value": ("initial_accumulator_value", None)},
    family.Adagrad.state_names,
    (rules.adagrad,),
    sparse="taken",
    made_at_once=True,
)
SPARSE_ADAM = Member(
    "SparseAdam",
    lambda group: (rules.adam, {"epsilon": "hat"}),
    {**BETAS, **EPS},
    family.Adam.state_names,
    (rules.adam,),
    counts_in_ints=True,
    decays=False,
    sparse="required",
)
SGD = Member(
    "SGD",
    _sgd,
    {"momentum": ("momentum", None), "dampening": ("dampening", None)},
    family.Momentum.state_names,
    (rules.sgd, rules.momentum),
    counts=False,
    sparse="taken",
)
MEMBERS = (ADAM, NADAM, RADAM, ADAMAX, RMSPROP, ADAGRAD, SGD, SPARSE_ADAM)
