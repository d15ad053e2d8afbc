"""What theory says of the steps of Adam: what gradients of pure noise make of them, and what no gradients can exceed, by the settings of a group.

Functions take numbers or arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

__all__ = [
    "Settings", "agreement_alone", "betas_of", "decay_equilibrium", "largest_ratio", "largest_step", "momentum_span", "noise_rms", "number",
    "rotation_equilibrium", "uncorrected_peak",
]  # fmt: skip


def noise_rms(beta1: Any) -> Any:
    """The root mean square of the direction for gradients that are noise: 0.229 at 0.9; 1 if their signs never change."""
    return np.sqrt((1 - beta1) / (1 + beta1))


def agreement_alone(beta1: Any) -> Any:
    """How often noise disagrees with its own first moment: 0.356 at 0.9."""
    return 0.5 - np.arcsin(np.sqrt(1 - np.square(beta1))) / math.pi


def largest_step(beta1: Any, beta2: Any) -> Any:
    """The largest direction that any gradients can make: 7.27 at (0.9, 0.999). Infinite where there is no bound."""
    bounded = (np.square(beta1) < beta2) & (beta2 < 1)
    with np.errstate(all="ignore"):
        bound = (1 - beta1) / np.sqrt((1 - beta2) * (1 - np.square(beta1) / beta2))
    return np.where(np.isnan(beta1) | np.isnan(beta2), np.nan, np.where(bounded, bound, np.inf))


def largest_ratio(beta2: Any) -> Any:
    """The largest ratio of a gradient to the root of a second moment that holds it: 31.6 at 0.999."""
    with np.errstate(all="ignore"):
        return 1 / np.sqrt(1 - np.minimum(beta2, 1.0))


def uncorrected_peak(beta1: float, beta2: float) -> float:
    """How many times larger than corrected steps those without bias correction get: 6.57 at (0.9, 0.999)."""
    if not (0 <= beta1 < 1 and 0 < beta2 < 1):
        return math.nan
    steps = (round(1.3**k) for k in range(1, 60))
    near = max(steps, key=lambda t: (1 - beta1**t) / math.sqrt(1 - beta2**t))
    return max((1 - beta1**t) / math.sqrt(1 - beta2**t) for t in range(max(1, near - 100), near + 100))


def momentum_span(beta1: Any) -> Any:
    """How many steps uphill in a row are no mere overshoot, which takes as long as the first moment remembers.

    >>> int(momentum_span(0.9)), int(momentum_span(0.95)), int(momentum_span(float("nan")))
    (20, 40, 8)
    """
    known = (np.asarray(beta1) >= 0) & (np.asarray(beta1) < 1)
    with np.errstate(all="ignore"):
        return np.where(known, np.maximum(8, np.ceil(2 / (1 - np.asarray(beta1)) - 1e-6)), 8)


def decay_equilibrium(lr: float, weight_decay: float) -> tuple[float, float]:
    """Where decoupled decay brings the root mean square of a parameter that noise alone moves, and over how many steps (Kosson et al., 2023).

    >>> decay_equilibrium(0.001, 0.1)
    (0.07071067811865475, 10000.0)
    """
    return math.sqrt(lr / (2 * weight_decay)), 1 / (lr * weight_decay)


def rotation_equilibrium(lr: float, weight_decay: float, beta1: float) -> float:
    """By how much a step turns a parameter where `decay_equilibrium` holds, in radians (Kosson et al., 2023).

    >>> round(rotation_equilibrium(0.001, 0.1, 0.9), 6)
    0.003244
    """
    return math.sqrt(2 * lr * weight_decay) * float(noise_rms(beta1))


# --- the settings of a group --------------------------------------------------------------------------------------


class Settings:
    """Of a group, or of the groups of many tensors as arrays. NaN is what a rule lacks, or what is not known.

    Args:
        beta1, beta2, eps: As the papers name them.
        weight_decay: Of decay that is decoupled.
        corrected: Whether moments are corrected for their bias.
        bounded: Whether the rule's direction keeps to the bound of `largest_step`.
    """

    def __init__(self, beta1: Any, beta2: Any, eps: Any, weight_decay: Any = math.nan, corrected: Any = True, bounded: Any = True) -> None:
        self.beta1, self.beta2, self.eps, self.weight_decay, self.corrected, self.bounded = beta1, beta2, eps, weight_decay, corrected, bounded

    @classmethod
    def of(cls, rule: str, coupling: str, values: Mapping[str, Any]) -> Settings:
        """Those of a group.

        Args:
            rule: The traced rule's name, which tells its options.
            coupling: How weight decay joins the gradient.
            values: By the names of the family, or of torch.

        >>> Settings.of("adam", "decoupled", {"betas": (0.9, 0.99), "eps": 1e-8}).beta2
        0.99
        """
        words = rule.split("_")
        corrected = "off" not in words
        decay = number(values.get("weight_decay")) if coupling == "decoupled" else math.nan
        return cls(*betas_of(values), number(values.get("eps")), decay, corrected, corrected and words[0] in ("adam", "amsgrad"))

    @classmethod
    def together(cls, groups: Sequence[Settings], places: Sequence[int]) -> Settings:
        """Those of tensors, as arrays: of each the place of its group."""
        which = np.asarray(places, int)
        return cls(*(np.array(values)[which] for values in zip(*(each._values for each in groups), strict=True)))

    @property
    def _values(self) -> tuple[Any, ...]:
        return self.beta1, self.beta2, self.eps, self.weight_decay, self.corrected, self.bounded

    @cached_property
    def noise(self) -> Any:
        return noise_rms(self.beta1)

    @cached_property
    def agreement(self) -> Any:
        return agreement_alone(self.beta1)

    @cached_property
    def bound(self) -> Any:
        return largest_step(self.beta1, self.beta2)

    @cached_property
    def cap(self) -> Any:
        return largest_ratio(self.beta2)

    def bound_by(self, steps: Any) -> Any:
        """The largest direction of the first so many steps."""
        return self.bound * np.sqrt(1 - self.beta2**steps)

    def cap_by(self, steps: Any) -> Any:
        """The largest ratio of a gradient to the root of a corrected second moment, in the first so many steps."""
        return self.cap * np.sqrt(1 - self.beta2**steps)


def number(value: Any) -> float:
    """A setting; NaN where there is none, or one that changes."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def betas_of(values: Mapping[str, Any]) -> tuple[float, float]:
    """Of torch's groups and of ours; NaN for what there is not."""
    betas = values.get("betas")
    pair = betas if isinstance(betas, (list, tuple)) and len(betas) == 2 else (values.get("beta1"), values.get("beta2"))
    return number(pair[0]), number(pair[1])
