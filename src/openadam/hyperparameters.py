"""Hyperparameters: their names, meanings and ranges, and how a given value is checked."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from .errors import HyperparameterError, UnknownHyperparameterError

__all__ = [
    "HYPERPARAMETERS",
    "Hyperparameter",
    "checked",
    "checked_or_schedule",
    "kinds_of",
    "limit",
    "limit_of_skips",
    "nearest",
    "number",
    "refuse_no_reset",
    "refuse_no_schedule",
    "suggest",
]


@dataclass(frozen=True)
class Hyperparameter:
    """A name of the papers, what it means, and where it may lie: from ``low`` up to ``high``."""

    meaning: str
    low: float = 0.0
    high: float = math.inf
    high_allowed: bool = False

    def describe_range(self) -> str:
        """The range as people write it: ``0 <= x < 1``."""
        if self.high == math.inf:
            return "a finite number" if self.low == -math.inf else f"at least {self.low:g} and finite"
        return f"from {self.low:g} {'to' if self.high_allowed else 'up to, but not,'} {self.high:g}"


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    "lr": Hyperparameter("learning rate, alpha in the paper; the parameter moves by -lr * direction"),
    "beta1": Hyperparameter("decay rate of the first moment", high=1.0),
    "beta2": Hyperparameter("decay rate of the second moment", high=1.0),
    "eps": Hyperparameter("keeps the denominator away from zero, in the units of the gradient"),
    "momentum": Hyperparameter("decay rate of the velocity"),
    "dampening": Hyperparameter("how much of a new gradient is held back from the velocity", high=1.0, high_allowed=True),
    "rho": Hyperparameter("decay rate of the squared gradients (torch's alpha)", high=1.0),
    "lr_decay": Hyperparameter("the direction is divided by 1 + (t - 1) * lr_decay"),
    "initial_accumulator_value": Hyperparameter("where the sum of squared gradients starts"),
    "momentum_decay": Hyperparameter("how fast Dozat's momentum schedule rises (psi)"),
    "weight_decay": Hyperparameter(
        "strength of weight decay, lambda; coupled it joins the gradient, decoupled it shrinks the parameter by lr * weight_decay"
    ),
    "clip_norm": Hyperparameter("largest global norm of the gradients; they are scaled down to it"),
    "clip_value": Hyperparameter("largest magnitude of a gradient's element; applied after clip_norm"),
}
ADVICE = "give an int or float, or a function of the step number t"
_ANY = Hyperparameter("of a rule of your own", low=-math.inf)


def number(name: str, value: Any, *, where: str = "", advice: str = ADVICE) -> float:
    """The value as a Python float; refuses what is not one real number."""
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()  # a NumPy scalar, or an array of one element
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        shown = f"{value!r} ({type(value).__name__})"
        raise HyperparameterError(f"{name}={shown}{where} is not a number; {advice}")
    try:
        return float(value)
    except OverflowError:
        raise HyperparameterError(f"{name}={value!r}{where} is too large for a float") from None


def kinds_of(ranges: Mapping[str, str | tuple[float, float]]) -> dict[str, Hyperparameter]:
    """The hyperparameters of which a rule says what they may be: as others are, or from a number to another."""
    return {
        name: HYPERPARAMETERS[kind] if isinstance(kind, str) else replace(_ANY, low=float(kind[0]), high=float(kind[1]), high_allowed=True)
        for name, kind in ranges.items()
    }


Kinds = Mapping[str, Hyperparameter]


def checked(name: str, value: Any, *, where: str = "", advice: str = ADVICE, kinds: Kinds = MappingProxyType({})) -> float:
    """The value as a float within its range; -0.0 is 0.0.

    Args:
        name: Of the hyperparameter.
        value: What was given.
        where: Is added to the message.
        advice: What to give instead of what is no number.
        kinds: Of hyperparameters that a rule knows better.

    Raises:
        HyperparameterError: It is not one real number, not finite, or out of range.
    """
    result = number(name, value, where=where, advice=advice)
    known = kinds.get(name) or HYPERPARAMETERS.get(name, _ANY)
    within = known.low <= result < known.high or (known.high_allowed and result == known.high)
    if not within or not math.isfinite(result):
        raise HyperparameterError(f"{name}={value!r}{where} is out of range: it must be {known.describe_range()}")
    return result + 0.0


def checked_or_schedule(name: str, value: Any, *, where: str = "", kinds: Kinds = MappingProxyType({})) -> float | Callable[[int], float]:
    """As `checked`, but a function of t is let through: its values are checked at every step."""
    if not callable(value):
        return checked(name, value, where=where, kinds=kinds)
    refuse_no_schedule(name, value, where=where)
    return value  # type: ignore[no-any-return]


def refuse_no_schedule(name: str, value: Callable[..., Any], *, where: str = "") -> None:
    """Refuse what can be called, but not with the number of the step: a class instead of a schedule, a function of nothing."""
    if isinstance(value, type):
        raise HyperparameterError(f"{name}={value.__name__}{where} is the class; give an instance, as {value.__name__}(…)")
    try:
        inspect.signature(value).bind(1)
    except ValueError:  # some functions in C do not tell theirs
        return
    except TypeError as error:
        what = getattr(value, "__qualname__", repr(value))
        raise HyperparameterError(f"{name}={what}{where} cannot be called with the step number t alone ({error}); {ADVICE}") from None


def limit(name: str, value: Any) -> float | None:
    """A bound on the gradients, or None for no bound; 0, which would freeze training without a word, is refused."""
    if value is None:
        return None
    if callable(value):
        raise HyperparameterError(f"{name} is one number for the whole run, not a function of the step, as lr can be")
    bound = checked(name, value, advice="give an int or float")
    if bound == 0:
        raise HyperparameterError(f"{name}=0 would make every gradient zero: leave it out (or give None) for no limit; to stand still, use lr=0")
    return bound


def limit_of_skips(value: Any) -> int | None:
    """How many steps in a row may be skipped, or None for any number."""
    if value is None:
        return None
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if count < 1:
        raise HyperparameterError(
            f"max_skips={value!r} is not a whole number of at least 1; give None for no limit, nonfinite='raise' to skip nothing"
        )
    return count


def nearest(name: str, known: Iterable[str]) -> str:
    """What a wrong name may have been meant to be, or the first of those that there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1) or [each for each in known if name in each][:1]
    return f"did you mean {near[0]!r}?" if near else f"they are called {', '.join(map(repr, sorted(known)[:8]))}."


# What others call it, and what it may be called here: the first that the class has is meant.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "alpha": ("rho", "lr"),
    "clip": ("clip_norm",),
    "b1": ("beta1", "betas"),
    "b2": ("beta2", "betas"),
    "beta1": ("betas", "momentum"),
    "beta2": ("betas", "rho"),
    "betas": ("beta1", "momentum"),
    "clipnorm": ("clip_norm",),
    "clipvalue": ("clip_value",),
    "decay": ("weight_decay", "rho"),
    "epsilon": ("eps",),
    "foreach": ("engine",),
    "fused": ("engine",),
    "global_clipnorm": ("clip_norm",),
    "learning_rate": ("lr",),
    "max_grad_norm": ("clip_norm",),
    "momentum": ("beta1", "betas"),
    "rho": ("alpha", "beta2", "betas"),
    "max_norm": ("clip_norm",),
    "step_size": ("lr",),
    "wd": ("weight_decay",),
}


def refuse_no_reset(moments: Any, steps: Any) -> None:
    """Refuse what is no wish of a ``reset``."""
    for name, value in (("moments", moments), ("steps", steps)):
        if not isinstance(value, bool):
            raise HyperparameterError(f"reset: {name}={value!r} is neither True nor False")
    if not moments and not steps:
        raise HyperparameterError("reset: moments=False and steps=False leave nothing to begin anew")


def suggest(what: str, unknown: str, allowed: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> UnknownHyperparameterError:
    """The error for a keyword that nobody knows, with the nearest one that exists.

    Args:
        what: Who was given it.
        unknown: The keyword.
        allowed: Those that exist.
        elsewhere: What to write instead of some that others have.
    """
    allowed = sorted(allowed)
    meant = [name for name in SYNONYMS.get(unknown, ()) if name in allowed]
    near = meant or ([] if unknown in elsewhere else difflib.get_close_matches(unknown, allowed, 1))
    if unknown == "betas" and meant == ["beta1"]:
        hint = "; write beta1=…, beta2=…." if "beta2" in allowed else "; write beta1=…."
    elif meant:
        hint = f"; write {meant[0]}=(…, …)." if meant == ["betas"] else f"; write {meant[0]}=…."
    elif unknown in elsewhere:
        hint = f"; use {elsewhere[unknown]}."
    else:
        hint = f"; did you mean {near[0]!r}?" if near else "."
    return UnknownHyperparameterError(f"{what} has no hyperparameter or option {unknown!r}{hint} It takes {', '.join(allowed)}.")
