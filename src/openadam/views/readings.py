"""Readings: what recorded measures mean, as plain functions over numbers, beside what gradients of pure noise would give.

Every reading is a measure divided by another, or by a number of elements, mostly under a root. So the least and the greatest value
of a bucket give bounds of the reading, and its mean a value in between; of a bucket of one step all three are the reading itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..record.readings import agreement_alone, noise_rms
from ..record.settings import betas_of

__all__ = [
    "MEASURES",
    "READINGS",
    "Reading",
    "decay_equilibrium",
    "level",
    "limits",
    "null",
    "shown",
    "trouble",
    "value",
]

Pick = Callable[[str], Any]


class Reading(NamedTuple):
    """A reading of a tensor: ``sqrt(measure / over)`` or ``measure / over``.

    ``over`` is a measure, ``elements`` (of the tensor) or ``nonzero`` (sampled elements with a gradient). From ``look`` and ``alarm`` on it
    deserves a look, or is an alarm; of ``disagreement`` they count from its null value.
    """

    name: str
    label: str
    meaning: str
    measure: str
    over: str
    root: bool = False
    share: bool = False
    null: float | None = None
    look: float = math.inf
    alarm: float = math.inf


READINGS = {
    each.name: each
    for each in (
        Reading("surprise", "RMS_t", "surprise: root of the mean of g²/v̂. 1 where v̂ expects the gradients as they come; peaks come before spikes of "
                "the loss", "surprise_sum", "sampled", root=True, null=1.0, look=1.5, alarm=2.3),
        Reading("direction", "rms(direction)", "root mean square of the direction, the update before the learning rate: from noise alone to 1, where "
                "all signs stay", "direction_sum_squares", "sampled", root=True, look=1.05, alarm=1.5),
        Reading("disagreement", "disagreement", "share of elements whose first moment points against the gradient, of those that have a gradient",
                "disagree", "nonzero", share=True, look=0.05, alarm=0.1),
        Reading("eps_share", "eps-dominated", "share of elements whose √v̂ is below eps: there Adam is SGD with the rate lr/eps", "eps_dominated",
                "sampled", share=True, null=0.0, look=0.01, alarm=0.1),
        Reading("grad_over_eps", "rms(g)/eps", "how far gradients, as the rule sees them, stand above eps; below 100 the eps-dominated share "
                "is about to rise", "seen_grad_sum_squares", "sampled", root=True),
        Reading("update_weight", "update/weight", "norm of the update over the norm of the parameter; a rule of thumb for matrices is 0.001",
                "update_sum_squares", "param_sum_squares", root=True, look=1e-2, alarm=1e-1),
        Reading("grad_rms", "rms(g)", "root mean square of the gradient as it was given", "grad_sum_squares", "elements", root=True),
        Reading("param_rms", "rms(parameter)", "root mean square of the parameter before the step", "param_sum_squares", "elements", root=True),
        Reading("spikes", "spikes", "share of elements whose gradient is more than 5 times what v̂ expected", "spikes", "sampled", share=True,
                null=0.0, look=1e-2, alarm=1e-1),
        Reading("swallowed", "swallowed", "share of elements that their update did not change, since it is below their precision", "swallowed",
                "sampled", share=True, null=0.0, look=1e-2, alarm=1e-1),
        Reading("zero_grad", "zero gradients", "share of elements whose gradient is zero", "zero_grad", "sampled", share=True),
    )
}  # fmt: skip

BELOW = {"elements": (), "nonzero": ("sampled", "zero_grad")}
MEASURES = tuple(dict.fromkeys(name for each in READINGS.values() for name in (each.measure, *BELOW.get(each.over, (each.over,)))))
"""The measures that readings are made of."""


def value(reading: Reading, pick: Pick, against: Pick | None = None, *, elements: Any = None, eps: Any = None) -> Any:
    """A reading of numbers or arrays; NaN where it cannot be told.

    Args:
        reading: One of `READINGS`.
        pick: The value of a measure.
        against: The value of a measure that is divided by, if another is meant: with the least values for ``pick`` and the greatest for
            ``against`` this is a lower bound.
        elements: Of the tensor.
        eps: The hyperparameter, for what is told in it.

    >>> float(value(READINGS["surprise"], {"surprise_sum": 36.0, "sampled": 4.0}.get))
    3.0
    """
    against = against or pick
    if reading.over == "elements":
        below = elements
    elif reading.over == "nonzero":
        below = np.subtract(against("sampled"), pick("zero_grad"))
    else:
        below = against(reading.over)
    top, below = np.asarray(pick(reading.measure), float), np.asarray(np.nan if below is None else below, float)
    with np.errstate(all="ignore"):
        result = top / np.where(below > 0, below, np.nan)
        if reading.root:
            result = np.sqrt(result)
        if reading.name == "grad_over_eps":
            result = result / np.where(np.asarray(eps if eps is not None else np.nan, float) > 0, eps, np.nan)
        return np.minimum(result, 1.0) if reading.share else result


def decay_equilibrium(lr: float, weight_decay: float) -> tuple[float, float]:
    """Where decoupled decay brings the root mean square of a parameter that noise alone moves, and over how many steps (Kosson et al., 2023).

    >>> decay_equilibrium(0.001, 0.1)
    (0.07071067811865475, 10000.0)
    """
    return math.sqrt(lr / (2 * weight_decay)), 1 / (lr * weight_decay)


def null(reading: Reading, about: Mapping[str, Any], group: Mapping[str, Any]) -> float | None:
    """What noise alone would give; None where that is not known."""
    if reading.name not in ("direction", "disagreement"):
        return reading.null
    beta1, _ = betas_of(group)
    if not 0 <= beta1 < 1:
        return None
    if reading.name == "direction":
        return noise_rms(beta1) if about.get("rule") == "adam" else None
    return agreement_alone(beta1)


def reach(reading: Reading, none: Any, seen: Any) -> Any:
    """How far noise alone reaches, by three standard errors, where so many elements were seen; of other readings, the null value.

    >>> reach(READINGS["disagreement"], 0.5, 900), float(reach(READINGS["surprise"], 1.0, 3).round(2))
    (0.55, 1.86)
    """
    with np.errstate(all="ignore"):
        if reading.name == "disagreement":
            return none + 3 * (none * (1 - none) / seen) ** 0.5
        if reading.name == "surprise":
            return np.sqrt(1 + 3 * np.sqrt(2 / np.asarray(seen, float)))
    return none


def limits(reading: Reading, none: float | None, seen: float = math.inf) -> tuple[float, float]:
    """From where on a reading deserves a look, and from where on it is an alarm; a few elements go further by chance."""
    if reading.name in ("disagreement", "direction") and none is None:
        return math.inf, math.inf
    far = reach(reading, none, seen)
    if reading.name == "disagreement":
        return float(far + reading.look), float(far + reading.alarm)
    if reading.name == "surprise":
        return float(math.sqrt(reading.look**2 + far**2 - 1)), float(math.sqrt(reading.alarm**2 + far**2 - 1))
    return reading.look, reading.alarm


def level(reading: Reading, number: float, none: float | None, seen: float = math.inf) -> str:
    """``alarm``, ``look``, ``fine``, or ``unknown`` where there is no number or nothing to hold it against."""
    look, alarm = limits(reading, none, seen)
    if math.isnan(number) or math.isinf(look):
        return "unknown"
    return "alarm" if number >= alarm else "look" if number >= look else "fine"


def trouble(readings: Mapping[str, Any], noise: Mapping[str, Any]) -> Any:
    """How much trouble tensors are in, to sort them by: what exceeds its limits, added up.

    Args:
        readings: Numbers or arrays by name.
        noise: How far noise alone reaches; NaN where that is not known.
    """
    with np.errstate(all="ignore"):
        parts = [
            np.log(readings["surprise"] / noise["surprise"]) / np.log(2.3),
            np.where(np.isnan(noise["direction"]), 0, readings["direction"] - 1),
            (readings["disagreement"] - noise["disagreement"]) / 0.1,
            readings["eps_share"] / 0.1,
            np.log10(readings["update_weight"]) + 2,
            readings["spikes"] / 0.1,
            readings["swallowed"] / 0.1,
        ]
        return sum(np.clip(np.nan_to_num(part, nan=0.0, posinf=3.0, neginf=0.0), 0, 3) for part in parts)


def shown(number: Any, share: bool = False) -> str:
    """A number in few characters.

    >>> shown(0.000123), shown(1234567), shown(0.25, share=True), shown(float("nan"))
    ('0.000123', '1.23e+06', '25%', '–')
    """
    if number is None or math.isnan(number):
        return "–"
    return f"{100 * number:.3g}%" if share else f"{number:.3g}"
