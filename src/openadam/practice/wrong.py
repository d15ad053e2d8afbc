"""WRONG on purpose: Adam with the mistakes that people and public implementations have made, for practices to be recognised in.

Nothing here is an optimizer to be used. A mistake is a word for what is done otherwise than in `rules.adam`; without any, `adam_but`
is `rules.adam` (a test compares their graphs), so what differs is the mistake alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .. import rules
from ..language.expression import Expression, Namespace, sqrt
from ..language.rule import Rule, Step, rule

__all__ = ["WRONG", "Wrong", "adam_but"]


@dataclass(frozen=True)
class Wrong:
    """A mistake: a name, what to say to someone who makes it, and the words of `adam_but` that make it."""

    name: str
    says: str
    words: tuple[str, ...] = ()
    made_by: str = ""
    """Where it was made in public, as far as is known."""
    rule: Rule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", adam_but(*(self.words or (self.name,))))


def adam_but(*words: str) -> Rule:
    """WRONG: Adam, but for these mistakes."""

    def adam(g: Expression, s: Namespace, h: Namespace) -> Step:
        m = rules.first_moment(g, s, h)
        v = rules.second_moment(g, s, h)
        if "weights" in words:
            m = (1 - h.beta1) * s.m + h.beta1 * g
            v = (1 - h.beta2) * s.v + h.beta2 * g**2
        if "betas" in words:
            m = h.beta2 * s.m + (1 - h.beta2) * g
            v = h.beta1 * s.v + (1 - h.beta1) * g**2
        if "square" in words:
            v = h.beta2 * s.v + (1 - h.beta2) * abs(g)
        t = h.t
        if "zero" in words:
            t = h.t - 1
        if "counter" in words:
            t = (h.t - 1) * h.tensors + h.place
        if "stopped" in words:
            t = h.t * 0 + 1
        if "double" in words:
            t = h.t * 2
        if "ahead" in words:
            t = h.t + 1
        first, second = 1 - h.beta1**t, 1 - h.beta2**t
        m_hat, v_hat = m / first, v / second
        if "multiplied" in words:
            m_hat, v_hat = m * first, v * second
        kept = {"m": m, "v": v}
        if "place" in words:
            kept = {"m": m_hat, "v": v_hat}
        if "uncorrected" in words:
            m_hat, v_hat = m, v
        if "twice" in words:
            m_hat, v_hat = m_hat / first, v_hat / second
        shown = {"m_hat": m_hat, "v_hat": v_hat} if "place" not in words and "uncorrected" not in words else {}
        if "m" in words:
            kept, shown = {**kept, "m": s.m}, {"m_new": m, **shown}
        if "v" in words:
            kept, shown = {**kept, "v": s.v}, {"v_new": v, **shown}
        below = rules.denominator(v_hat, h.eps, "inside" if "inside" in words else "outside")
        if "root" in words:
            below = v_hat + h.eps
        direction = m_hat / below
        if "precedence" in words:
            direction = m_hat / sqrt(v_hat) - h.eps / h.lr
        if "rate" in words:
            direction = direction / h.lr
        if "sign" in words:
            direction = -direction
        return Step(direction, **kept, **shown)

    return rule(nonnegative=("v",))(adam)


def _all(*mistakes: Wrong) -> Mapping[str, Wrong]:
    return MappingProxyType({mistake.name: mistake for mistake in mistakes})


WRONG = _all(
    Wrong("weights", "the old moment is to be weighted by beta and the new gradient by 1 - beta, and here it is the other way round"),
    Wrong("betas", "beta1 belongs to the first moment and beta2 to the second, and here they have changed places"),
    Wrong("square", "the second moment averages the squares of the gradients, and here it is their magnitudes"),
    Wrong("uncorrected", "the bias correction is missing", made_by="BERTAdam"),
    Wrong("twice", "the correction is applied twice", made_by="PennyLane's documentation"),
    Wrong("place", "the corrected moments are stored in place of the moments, so that the next step corrects them again, and so on"),
    Wrong("multiplied", "the correction multiplies where it should divide", made_by="ConvNetJS"),
    Wrong("zero", "the steps are counted from 0; the first step has t = 1"),
    Wrong("m", "the first moment is computed and never stored, so that every step starts from 0"),
    Wrong("v", "the second moment is computed and never stored, so that every step starts from 0"),
    Wrong("counter", "one counter t serves all parameters and is advanced once for each, so that t is too large", made_by="DiffSharp"),
    Wrong("stopped", "the counter is never advanced, so that every step has t = 1"),
    Wrong("double", "the counter is advanced twice in every step"),
    Wrong("ahead", "the counter begins at 1 and is advanced before the first step, which so has t = 2"),
    Wrong("root", "the step is divided by the second moment, and should be by its square root"),
    Wrong("inside", "eps stands inside the root, and should stand outside"),
    Wrong("precedence", "`p - lr*m_hat / sqrt(v_hat) + eps` adds eps to the parameter: brackets are missing", made_by="a listing of d2l.ai"),
    Wrong("rate", "the learning rate is left out"),
    Wrong("sign", "the parameter moves up the gradient, and should move down"),
)
"""WRONG: the known mistakes by their names."""
