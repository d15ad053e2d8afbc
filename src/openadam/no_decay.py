"""What weight decay leaves alone: a function of (name, tensor), or a list of names and tensors; the same for every host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from .errors import HyperparameterError
from .hyperparameters import nearest

__all__ = ["NoDecay", "predicate", "read_no_decay", "refuse_strangers"]

NoDecay: TypeAlias = "Callable[[str, Any], Any] | list[Any]"


def read_no_decay(given: Any) -> NoDecay:
    """As it is when the optimizer is made.

    Raises:
        HyperparameterError: It is none of what it may be, or a function that does not take two arguments.
    """
    if isinstance(given, str) or hasattr(given, "dtype"):
        return [given]
    if isinstance(given, Mapping):
        raise HyperparameterError("no_decay is a mapping; give the names whose weight decay is to be left out, or a function of (name, parameter)")
    if isinstance(given, type):
        raise HyperparameterError(f"no_decay={given.__name__} is a class; give names, parameters, or a function of (name, parameter)")
    if callable(given):
        try:
            inspect.signature(given).bind("name", None)
        except ValueError:  # some functions in C do not tell
            pass
        except TypeError as error:
            raise HyperparameterError(f"no_decay is a function that cannot be called with (name, parameter): {error}") from None
        return given  # type: ignore[no-any-return]
    if not isinstance(given, Iterable):
        raise HyperparameterError(f"no_decay={given!r} is neither names, nor parameters, nor a function of (name, parameter)")
    return list(given)


def predicate(no_decay: NoDecay) -> Callable[[str, Any], bool]:
    """The function of (name, tensor) that says whether weight decay leaves a parameter alone.

    It raises HyperparameterError where the caller's own returns what is neither true nor false.
    """
    if not callable(no_decay):
        names = {item for item in no_decay if isinstance(item, str)}
        own = {id(item) for item in no_decay}
        return lambda name, tensor: name in names or id(tensor) in own

    def asked(name: str, tensor: Any) -> bool:
        try:
            result = no_decay(name, tensor)
        except TypeError as error:
            raise HyperparameterError(f"no_decay could not be asked about parameter {name!r}, as function(name, parameter): {error}") from error
        try:
            return bool(result)
        except Exception as error:
            raise HyperparameterError(f"no_decay returned {result!r:.80} for parameter {name!r}: neither true nor false ({error})") from error

    return asked


def refuse_strangers(no_decay: NoDecay, parameters: Mapping[str, Any], kind: str, unnamed: str | None = None) -> None:
    """Refuse a list that names or holds what is no parameter: what it was meant for would decay.

    Args:
        no_decay: As read.
        parameters: All there are, by name.
        kind: What the host calls a tensor: "an array", "a tensor".
        unnamed: Where the parameters were given without names: what to do about it.
    """
    if callable(no_decay):
        return
    own = {id(tensor) for tensor in parameters.values()}
    for item in no_decay:
        if isinstance(item, str):
            if unnamed is not None:
                raise HyperparameterError(f"no_decay names {item!r}, and the parameters have no names; {unnamed}")
            if item not in parameters:
                raise HyperparameterError(
                    f"no_decay names {item!r}, and no parameter is called so; {nearest(item, parameters)} Names are whole, as in 'layer.bias'; "
                    f"a function says it for many: no_decay=lambda name, p: p.ndim < 2"
                )
        elif not hasattr(item, "dtype"):
            raise HyperparameterError(f"no_decay holds {item!r:.80}, which is neither a name nor {kind}")
        elif id(item) not in own:
            what = f"of shape {tuple(item.shape)} that is none of the parameters (a copy, a view, detached?)"
            raise HyperparameterError(f"no_decay holds {kind} {what}; give the parameters themselves, or names")
