"""What torch calls the family: which rule a parameter group stands for, and where torch keeps its hyperparameters and states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .. import family, rules
from ..errors import HyperparameterError
from ..hyperparameters import checked
from ..language.expression import Rule, Traced

__all__ = ["ADAGRAD", "ADAM", "ADAMAX", "NADAM", "RADAM", "RMSPROP", "SGD", "Member"]

Group = Mapping[str, Any]
BETAS: dict[str, tuple[str, int | None]] = {"beta1": ("betas", 0), "beta2": ("betas", 1)}


@dataclass(frozen=True)
class Member:
    """A class of ``torch.optim``, told in the words of the family."""

    name: str
    rule: Callable[[Group], tuple[Rule, dict[str, str]]]
    numbers: Mapping[str, tuple[str, int | None]]  # the family's name -> torch's key, and the place in it
    states: Mapping[str, str]  # the rule's name -> torch's
    counts: bool = True  # whether torch keeps a `step` for each parameter

    def traced(self, group: Group) -> Traced:
        """The rule of a group, with its options."""
        rule, options = self.rule(group)
        return rule.trace(**options)

    def coupling(self, group: Group) -> str:
        return "decoupled" if group.get("decoupled_weight_decay") else "coupled"

    def settings(self, index: int, group: Group) -> dict[str, Any]:
        """A group's hyperparameters as checked numbers under the family's names, and ``maximize``.

        Raises:
            HyperparameterError: One is missing, no number, or out of range.
        """
        numbers: dict[str, Any] = {}
        for name, (key, place) in {"lr": ("lr", None), "weight_decay": ("weight_decay", None), **self.numbers}.items():
            if key not in group:
                raise HyperparameterError(f"group {index} has lost its {key!r}")
            value = group[key]
            if place is not None:
                if not isinstance(value, (tuple, list)) or len(value) != 2:
                    raise HyperparameterError(f"{key}={value!r} in group {index} is not a pair of numbers")
                value = value[place]
            if isinstance(value, torch.Tensor):
                if value.numel() != 1:
                    raise HyperparameterError(f"{key} in group {index} is a tensor of {value.numel()} elements: Tensor {key} must be 1-element")
                value = value.item()
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise HyperparameterError(f"{key}={value!r} ({type(value).__name__}) in group {index} is not a number")
            numbers[name] = checked(name, value, where=f" ({key} of group {index})" if name != key else f" in group {index}")
        if not isinstance(group.get("maximize", False), bool):
            raise HyperparameterError(f"maximize={group['maximize']!r} in group {index} is neither True nor False")
        return numbers | {"maximize": bool(group.get("maximize", False))}


def _adam(group: Group) -> tuple[Rule, dict[str, str]]:
    return rules.amsgrad if group.get("amsgrad") else rules.adam, {}


def _rmsprop(group: Group) -> tuple[Rule, dict[str, str]]:
    return rules.rmsprop, {"variance": "centered" if group.get("centered") else "raw", "buffer": "momentum" if group["momentum"] else "none"}


def _sgd(group: Group) -> tuple[Rule, dict[str, str]]:
    if not group["momentum"]:
        return rules.sgd, {}
    return rules.momentum, {"form": "nesterov" if group.get("nesterov") else "classical"}


ADAM = Member("Adam", _adam, {**BETAS, "eps": ("eps", None)}, family.AMSGrad.state_names)
NADAM = Member(
    "NAdam", lambda group: (rules.nadam, {}), {**BETAS, "eps": ("eps", None), "momentum_decay": ("momentum_decay", None)}, family.NAdam.state_names
)
RADAM = Member("RAdam", lambda group: (rules.radam, {}), {**BETAS, "eps": ("eps", None)}, family.RAdam.state_names)
ADAMAX = Member("Adamax", lambda group: (rules.adamax, {}), {**BETAS, "eps": ("eps", None)}, family.AdaMax.state_names)
RMSPROP = Member("RMSprop", _rmsprop, {"rho": ("alpha", None), "eps": ("eps", None), "momentum": ("momentum", None)}, family.RMSProp.state_names)
ADAGRAD = Member(
    "Adagrad", lambda group: (rules.adagrad, {}),
    {name: (name, None) for name in ("eps", "lr_decay", "initial_accumulator_value")}, family.Adagrad.state_names,
)  # fmt: skip
SGD = Member("SGD", _sgd, {"momentum": ("momentum", None), "dampening": ("dampening", None)}, family.Momentum.state_names, counts=False)
