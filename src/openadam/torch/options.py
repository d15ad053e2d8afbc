"""What a constructor's keywords and a group's settings may be: torch's, ours, and the errors for what is neither."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypeVar, get_args, overload

import numpy as np
import torch
from torch import Tensor

from .. import engine as engines
from ..errors import HyperparameterError, ParameterError
from ..hyperparameters import limit, limit_of_skips, nearest, suggest
from ..no_decay import predicate, read_no_decay, refuse_strangers
from .members import Member, as_pair
from .memory import arithmetic_of

__all__ = [
    "Chosen",
    "Engine",
    "NoDecay",
    "NonFinite",
    "Predicate",
    "accepted",
    "as_python_numbers",
    "as_recorded",
    "check_kinds",
    "check_names",
    "chosen_parameters",
    "first_narrow",
    "read_options",
    "refuse_modes",
    "refuse_unknown",
    "torch_class",
]

ELSEWHERE = {
    "amsgrad": "openadam.torch.Adam or AdamW, which have it",
    "momentum": "openadam.torch.SGD or RMSprop, which have it",
    "nesterov": "openadam.torch.SGD(…, momentum=…, nesterov=True), or NAdam",
}
"""Which class has what this one lacks."""
T = TypeVar("T")
Engine: TypeAlias = Literal["native", "interpreter", "graph", "compiled"]
NonFinite: TypeAlias = Literal["raise", "skip", "propagate"]
Predicate: TypeAlias = Callable[[str, Tensor], bool]
NoDecay: TypeAlias = str | Tensor | Iterable[str | Tensor] | Predicate


def read_options(
    *, clip_norm: Any, clip_value: Any, nonfinite: Any, max_skips: Any, no_decay: Any, threads: Any, sharded: Any, engine: Any
) -> dict[str, Any]:
    """The keywords that come on top of torch's, checked."""
    for name, value, known in (("nonfinite", nonfinite, get_args(NonFinite)), ("engine", engine, (None, *get_args(Engine)))):
        if value not in known:
            raise HyperparameterError(f"{name}={value!r} is none of {', '.join(map(repr, known))}")
    if engine in ("native", "interpreter") and engines.native_engine() is None:
        raise HyperparameterError(f"engine={engine!r}: there is no native code here; leave it out to run on torch operations")
    return {
        "clip_norm": limit("clip_norm", clip_norm),
        "clip_value": limit("clip_value", clip_value),
        "nonfinite": nonfinite,
        "max_skips": limit_of_skips(max_skips),
        "no_decay": read_no_decay(no_decay),
        "threads": None if threads is None else engines.resolve_threads(threads),
        "sharded": bool(sharded),
        "engine": engine,
    }


def torch_class(cls: type) -> Any:
    """The class of torch.optim whose constructor, groups and hooks these are."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("torch.optim"))


def accepted(cls: type) -> list[str]:
    """The keywords of torch's constructor."""
    return [name for name in inspect.signature(torch_class(cls).__init__).parameters if name not in ("self", "params")]


def refuse_unknown(whose: str, known: Sequence[str], settings: Iterable[str], own: Sequence[str]) -> None:
    """Refuse keywords that neither torch nor we know, with the nearest one that exists."""
    own = [name for name in own if name != "no_decay" or "weight_decay" in known]
    for name in settings:
        if name not in known:
            raise suggest(whose, name, [*known, *own], ELSEWHERE)


def check_kinds(names: Sequence[str], member: Member, arguments: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Any, ...]:
    """Refuse what is no number where torch would fail over comparing it; returns the arguments with pairs as tuples of floats."""
    as_python_numbers(settings)
    arguments = tuple(value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value for value in arguments)
    given = {**dict(zip(names, arguments, strict=False)), **settings}
    if "betas" in given:
        pair = as_pair(given["betas"])
        if pair is None:
            raise HyperparameterError(f"Invalid betas: {given['betas']!r} is not a pair of numbers")
        if "betas" in settings:
            settings["betas"] = pair
        else:
            arguments = tuple(pair if name == "betas" else value for name, value in zip(names, arguments, strict=False))
    for name in ("lr", "weight_decay", *(key for key, place in member.numbers.values() if place is None)):
        value = given.get(name, 0.0)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Tensor, numbers.Real, np.ndarray)):
            raise HyperparameterError(f"Invalid {name}: {value!r} ({type(value).__name__}) is not a number")
    return arguments


def refuse_modes(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse the flags of torch that a step of ours cannot honour."""
    for flag, why in (("differentiable", "its step is no part of the autograd graph"), ("capturable", "its step cannot be captured in a CUDA graph")):
        if settings.get(flag):
            raise HyperparameterError(f"{flag}=True is not supported by openadam: {why}; use torch.optim.{name} for it")


def as_python_numbers(group: dict[str, Any]) -> None:
    """NumPy's numbers and other libraries' pairs would not load again from a file under ``weights_only``."""
    for key, value in group.items():
        if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
            group[key] = value.item()
        elif key == "betas":
            pair = as_pair(value)
            if pair is not None and type(value) is list:  # it stays, to be edited in place
                value[:] = pair
            elif pair is not None:
                group[key] = pair


def first_narrow(group: Mapping[str, Any]) -> str | None:
    """The name of a group's first parameter that is worked on in float32."""
    for k, p in enumerate(group["params"]):
        if arithmetic_of(p.dtype) is torch.float32:
            return str(group["param_names"][k]) if "param_names" in group else str(k)
    return None


def check_names(no_decay: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what ``no_decay`` names or holds and what is no parameter, and a function that does not answer for them."""
    named = all("param_names" in group for group in groups)
    every = [p for group in groups for p in group["params"]]
    parameters = dict(zip((n for group in groups for n in group["param_names"]) if named else map(str, range(len(every))), every, strict=False))
    if callable(no_decay):
        asked = predicate(no_decay)
        for name, p in parameters.items():
            asked(name, p)
    refuse_strangers(no_decay, parameters, "a tensor", None if named else "give model.named_parameters()")


def chosen_parameters(params: Any, groups: Sequence[Mapping[str, Any]], what: str = "reset") -> list[tuple[Mapping[str, Any], str, Any]]:
    """The group, the name and the tensor of each parameter that is meant: all, or those of these names and tensors.

    Args:
        params: Names or tensors, one or several; None for all.
        groups: Those of the optimizer.
        what: The method that asks, for messages.

    Raises:
        ParameterError: A name or a tensor is that of no parameter.
    """
    every: list[tuple[Mapping[str, Any], str, Any]] = []
    for group in groups:
        for k, p in enumerate(group["params"]):
            every.append((group, str(group["param_names"][k]) if "param_names" in group else str(len(every)), p))
    if params is None:
        return every
    by_name, by_tensor = {each[1]: each for each in every}, {id(each[2]): each for each in every}
    found: dict[int, tuple[Mapping[str, Any], str, Any]] = {}
    if not isinstance(params, (str, Tensor, Iterable)):
        raise ParameterError(f"{what}: {params!r:.80} ({type(params).__name__}) is neither a parameter or its name nor a list of these")
    for item in [params] if isinstance(params, (str, Tensor)) else params:
        each = by_name.get(item) if isinstance(item, str) else by_tensor.get(id(item))
        if each is None:
            found_none = f"no parameter is called {item!r}; {nearest(item, by_name)}" if isinstance(item, str) else None
            raise ParameterError(f"{what}: {found_none or f'{type(item).__name__} is no parameter'}")
        found[id(each[2])] = each
    return list(found.values())


def as_recorded(groups: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The settings of the groups, and what describes each parameter, as a recording is told of them."""
    numbers = {id(group): g for g, group in enumerate(groups)}
    settings = [{name: value for name, value in group.items() if name not in ("params", "param_names")} for group in groups]
    return settings, [
        {"name": name, "shape": list(p.shape), "dtype": str(p.dtype).removeprefix("torch."), "elements": p.numel(), "group": numbers[id(group)]}
        for group, name, p in chosen_parameters(None, groups)
    ]


class Chosen(Generic[T]):
    """An option that is chosen when the optimizer is made: to be read; setting it would do nothing, so that is refused."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Chosen[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance._options[self._name]

    def __set__(self, instance: object, value: NoReturn) -> None:
        raise AttributeError(f"{self._name} is chosen when the optimizer is made; make another and give it this one's state_dict()")
