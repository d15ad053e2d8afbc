"""The subjects of the tests: every member with every choice of its options, and rules that are wrong on purpose.

Adding a member to the package adds it here; a new hyperparameter needs a value in `VALUES`. The wrong rules are negative
controls: each is a mistake that people make, and every tolerance of the tests must be tight enough to see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import openadam
from openadam.engine import native_isas
from openadam.language.expression import Expression, Namespace
from openadam.rules import first_moment, second_moment

Array = npt.NDArray[Any]

DTYPES = (np.float32, np.float64)
ENGINES = ("native", "interpreter", "reference") if native_isas() else ("reference",)

# No power of two and nothing too small to matter: a mistake in any of them must show.
VALUES = {
    "lr": 0.013, "momentum": 0.87, "dampening": 0.3, "eps": 1e-3, "lr_decay": 0.07, "initial_accumulator_value": 0.11,
    "rho": 0.93, "beta1": 0.9, "beta2": 0.97, "momentum_decay": 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A member of the family with one choice of its options, and hyperparameters to test it with."""

    member: type[openadam.Optimizer]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def rule(self) -> Any:
        return self.member.rule

    @property
    def traced(self) -> Any:
        return self.rule.trace(**self.options)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Test values of what this variant reads, without weight decay."""
        initial = (value for value in self.traced.initial.values() if isinstance(value, str))
        return {name: VALUES[name] for name in ("lr", *self.traced.hyperparameters, *initial)}

    def make(self, params: Any, **changes: Any) -> openadam.Optimizer:
        """The optimizer, without weight decay unless told; changes to hyperparameters it does not have are left out."""
        own = self.hyperparameters
        changes = {name: value for name, value in changes.items() if name in own or name not in VALUES}
        return self.member(params, **{"weight_decay": 0.0, **own, **self.options, **changes})

    def public(self, state: str) -> str:
        """The name under which optimizers show a state of the rule."""
        return self.member.state_names.get(state, state)

    def private(self, public: str) -> str:
        """The rule's name of a state that optimizers show as ``public``."""
        return next((own for own, shown in self.member.state_names.items() if shown == public), public)

    def __str__(self) -> str:
        choices = [choice for option, choice in self.options.items() if choice != self.rule.options[option][0]]
        return "-".join([self.member.__name__, *choices])


def _variants() -> Iterator[Variant]:
    for member in openadam.MEMBERS.values():
        for options in member.rule.variants():
            yield Variant(member, options)


VARIANTS = tuple(_variants())
"""Every member with every combination of its options."""
PLAIN = tuple(Variant(member, next(member.rule.variants())) for member in openadam.MEMBERS.values())
"""Every member with the options it has by default."""


def variant(member: type[openadam.Optimizer], **options: str) -> Variant:
    """The variant of a member with these options, the rest as by default."""
    return Variant(member, {**next(member.rule.variants()), **options})


# --- data --------------------------------------------------------------------------------------------------------------


def spread(random: np.random.Generator, shape: Any, dtype: Any, low: float = -4, high: float = 2) -> Array:
    """Random numbers of either sign whose magnitudes spread evenly over the decades from 10**low to 10**high."""
    return (random.choice([-1.0, 1.0], shape) * 10.0 ** random.uniform(low, high, shape)).astype(dtype)


def place(subject: Variant, optimizer: openadam.Optimizer, random: np.random.Generator, steps: Mapping[str, int]) -> None:
    """Put an optimizer into the middle of a run: each parameter by name after so many steps, with states to match.

    After 0 steps the states are what they start from. The second moments and the like lie within two decades of the first.
    """
    loaded = optimizer.state_dict()
    loaded["steps"] = max(steps.values())
    for name, count in steps.items():
        p = optimizer.params[name]
        size = spread(random, p.shape, p.dtype, -6, 2)
        state = loaded["state"][name]
        state["step"] = count
        for own in subject.traced.states if count else ():
            if own == "mu_product":  # the only scalar state
                state["mu_product"] = 0.5**count
                continue
            value = size * spread(random, p.shape, p.dtype, -2, 2)
            if own in subject.rule.nonnegative:
                value = np.abs(value) if own == "u_max" else value**2
            if own == "g_mean":  # no mean square is below the square of the mean
                value = np.sqrt(state[subject.public("v")]) * random.uniform(-1, 1, p.shape).astype(p.dtype)
            state[subject.public(own)] = np.asarray(value, p.dtype)
    optimizer.load_state_dict(loaded)


def same(a: Any, b: Any) -> bool:
    """Whether two arrays, or mappings of them, agree in every bit; the sign of zero counts."""
    if isinstance(a, Mapping):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- wrong rules -------------------------------------------------------------------------------------------------------


@openadam.rule(nonnegative=("v",))
def uncorrected(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam that forgets bias correction."""
    m, v = first_moment(g, s, h), second_moment(g, s, h)
    return openadam.Step(m / (openadam.sqrt(v) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("v",))
def corrected_late(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam whose bias correction is one step behind, but for the first."""
    m, v = first_moment(g, s, h), second_moment(g, s, h)
    t = openadam.maximum(h.t - 1, 1)
    return openadam.Step(m / (1 - h.beta1**t) / (openadam.sqrt(v / (1 - h.beta2**t)) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("v",))
def cancelled(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam that computes 1 - b**t as it stands, which cancels while t is small."""
    m, v = first_moment(g, s, h), second_moment(g, s, h)
    correction = -(h.beta2**h.t - 1)  # written so that the rewrite of 1 - b**t does not see it
    return openadam.Step(m / (1 - h.beta1**h.t) / (openadam.sqrt(v / correction) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("v",))
def swapped(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam with beta1 and beta2 exchanged."""
    m, v = h.beta2 * s.m + (1 - h.beta2) * g, h.beta1 * s.v + (1 - h.beta1) * g**2
    return openadam.Step(m / (1 - h.beta2**h.t) / (openadam.sqrt(v / (1 - h.beta1**h.t)) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("v",))
def rooted(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam with eps inside the root."""
    m, v = first_moment(g, s, h), second_moment(g, s, h)
    return openadam.Step(m / (1 - h.beta1**h.t) / openadam.sqrt(v / (1 - h.beta2**h.t) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("v",))
def stale(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam that moves by the moments of the step before."""
    m, v = first_moment(g, s, h), second_moment(g, s, h)
    m_hat, v_hat = s.m / (1 - h.beta1**h.t), s.v / (1 - h.beta2**h.t)
    return openadam.Step(m_hat / (openadam.sqrt(v_hat) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("v",))
def uphill(g: Expression, s: Namespace, h: Namespace) -> openadam.Step:
    """Adam with the wrong sign."""
    m, v = first_moment(g, s, h), second_moment(g, s, h)
    return openadam.Step(-m / (1 - h.beta1**h.t) / (openadam.sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)


WRONG = (uncorrected, corrected_late, cancelled, swapped, rooted, stale, uphill)
"""Adam with one mistake each; states and hyperparameters are Adam's."""


class WrongAdam(openadam.Adam):
    """Adam's options and state names around a wrong rule; subclasses bring the rule."""

    defaults = {name: value for name, value in openadam.Adam.defaults.items() if name not in openadam.rules.adam.options}


def wrong(rule: Any) -> type[openadam.Optimizer]:
    """An optimizer that looks like Adam, but steps by a wrong rule, on the reference engine."""
    return type("WrongAdam", (WrongAdam,), {"rule": rule})
