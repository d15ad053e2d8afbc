"""What can be seen inside a step: each measure is a name, a reduction and an element expression in the rules' language.

Expressions are over ``g`` (the gradient as given), ``p`` (the parameter before the step) and ``u`` (its update, the change
that really happened). A measure rides in the same pass as the update, in float64, in a fixed order, so that it comes
out the same for every thread count and instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from .language import cpp
from .language.expression import Expression, symbol, where
from .language.program import Program, lower

__all__ = ["GRAD_SUM_SQUARES", "MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """A named reduction (``sum`` or ``max``) of an element expression over one tensor."""

    name: str
    reduction: str
    expression: Callable[[Expression, Expression, Expression], Expression]
    degree: int = 0  # the power of a factor of the gradient that it grows with

    @cached_property
    def program(self) -> Program:
        p = symbol("tensor", "p")
        value = self.expression(symbol("tensor", "g"), p, symbol("tensor", "p_after") - p)
        return lower(self.name, {"value": value})

    @property
    def reads_parameter(self) -> bool:
        """Whether it needs the parameter, before or after; otherwise the gradient is enough."""
        return self.program.inputs != ("g",)

    @property
    def digest(self) -> str:
        return self.program.digest

    def cpp(self) -> str:
        """The measure as a C++ function template."""
        return cpp.reduction(self.program, "sum" if self.reduction == "sum" else "largest")


GRAD_SUM_SQUARES = Measure("grad_sum_squares", "sum", lambda g, p, u: g**2, degree=2)
"""The one that every step takes: the global norm comes from it, and it is not finite where a gradient is not."""

MEASURES: tuple[Measure, ...] = (
    GRAD_SUM_SQUARES,
    Measure("param_sum_squares", "sum", lambda g, p, u: p**2),
    Measure("update_sum_squares", "sum", lambda g, p, u: u**2),
    Measure("grad_max_abs", "max", lambda g, p, u: abs(g), degree=1),
    Measure("grad_nonfinite", "sum", lambda g, p, u: where(g - g == 0, 0, 1)),
    Measure("uphill", "sum", lambda g, p, u: where(g * u > 0, 1, 0)),
    Measure("update_sum_abs", "sum", lambda g, p, u: abs(u)),
    Measure("update_sum_abs_without_grad", "sum", lambda g, p, u: where(g == 0, abs(u), 0)),
)
"""In the order of the native table and of a tally's columns. ``uphill`` counts the elements that move up their gradient: without weight
decay, those in which momentum and gradient disagree. The last says how much of the motion (of the one before it) had no gradient."""
