"""Showing an algorithm: as the Python it is written in, as LaTeX, or as the C++ that is compiled."""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from .. import rules
from ..arrays.optimizer import Optimizer
from ..errors import HyperparameterError
from ..hyperparameters import checked
from ..language import cpp
from ..language.notation import LATEX, names_in
from ..language.rule import Rule, Traced
from ..rules import update_program
from ..worked.equations import equations, surroundings
from .trace import find_member

__all__ = ["show"]


def show(
    rule: str | Rule | type[Optimizer], as_: str = "python", *, coupling: str | None = None, weight_decay: float | None = None, **options: str
) -> str:
    r"""An update rule, printed.

    Args:
        rule: A member of the family by name or class, or a function decorated with ``@openadam.rule``.
        as_: ``python``, the source of the rule, of what it calls and of what surrounds it; ``latex``, the whole step as aligned
            equations; ``c++``, the function templates from which the native kernels are compiled, and the scalars they need.
        coupling: How weight decay joins in; default that of the member.
        weight_decay: Its strength, as ``latex`` shows it; default that of the member.
        **options: The options of the rule, such as ``epsilon="hat"``.

    Raises:
        ValueError: There is no such rule, option or language, or the source cannot be found.

    >>> import openadam
    >>> print(openadam.show("adamw", "latex"))
    \begin{aligned}
    m_0 &= 0, \quad v_0 = 0 \\
    g_t &= \nabla f(\theta_{t-1}) \\
    m_t &= \beta_1 m_{t-1} + \left( 1 - \beta_1 \right) g_t \\
    v_t &= \beta_2 v_{t-1} + \left( 1 - \beta_2 \right) g_t^{2} \\
    \hat{m}_t &= \frac{m_t}{1 - \beta_1^{t}} \\
    \hat{v}_t &= \frac{v_t}{1 - \beta_2^{t}} \\
    \theta_t &= \theta_{t-1} - \alpha \lambda \theta_{t-1} - \alpha \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \epsilon}
    \end{aligned}
    """
    member, chosen = find_member(rule)
    if as_ not in ("python", "latex", "c++"):
        raise ValueError(f"a rule cannot be shown as {as_!r}, only as python, latex, c++")
    for name in options:
        if name not in chosen.options:
            raise ValueError(f"{chosen.name} has no option {name!r}; it has {', '.join(chosen.options) or 'none'}")
    traced = chosen.trace(**{**{name: value for name, value in member.defaults.items() if name in chosen.options}, **options})
    coupling = coupling if coupling is not None else member.coupling
    if coupling not in ("coupled", "decoupled"):
        raise HyperparameterError(f"coupling={coupling!r} is neither 'coupled' nor 'decoupled'")
    joins = f"weight decay is {coupling} here: `{coupling}_decay` is weight_decay, `{'de' if coupling == 'coupled' else ''}coupled_decay` is 0"
    if as_ == "python":
        return f"{_source(chosen.function)}\n\n\n# What surrounds every rule; {joins}.\n\n{_source(rules.prepare, rules.apply)}"
    if as_ == "c++":
        programs = [update_program(traced), rules.PREPARE]
        kernels = [f"{cpp.update(program)}\n\n{cpp.scalars(program)}" for program in programs]
        return f"\n\n// The gradient before that, where it is clipped by value or decay is coupled; {joins}.\n\n".join(kernels)
    strength = checked("weight_decay", member.defaults.get("weight_decay", 0.0) if weight_decay is None else weight_decay)
    return _aligned(traced, coupling, strength)


def _source(*functions: Callable[..., Any]) -> str:
    """The functions, after those of their own module that they call, as they stand in the file."""
    found: dict[str, Callable[..., Any]] = {}
    pending = [*functions]
    while pending:
        code = pending.pop()
        if code.__qualname__ not in found:
            found[code.__qualname__] = code
            called = (code.__globals__.get(name) for name in code.__code__.co_names)
            pending += [other for other in called if isinstance(other, types.FunctionType) and other.__module__ == code.__module__]
    try:
        parts = [textwrap.dedent(inspect.getsource(part)) for part in sorted(found.values(), key=lambda part: part.__code__.co_firstlineno)]
    except (OSError, TypeError):
        raise ValueError(f"the source of the rule {functions[0].__name__!r} cannot be found; was it typed in?") from None
    return "\n\n\n".join(part.rstrip() for part in parts)


def _aligned(traced: Traced, coupling: str, weight_decay: float) -> str:
    """The step as equations, after the states that it starts from."""
    written = equations(traced, surroundings(coupling, weight_decay), direction=False)
    names = names_in(equation.expression for equation in written) | {equation.name for equation in written}
    notation = LATEX.telling_apart(names | {start for start in traced.initial.values() if isinstance(start, str)})
    starts = []
    for state, start in traced.initial.items():
        value = notation.name(start, "") if isinstance(start, str) else notation.value(start, 17).text
        starts.append((notation.name(state, "0"), value))
    lines = [rf"{notation.name(equation.name, 't')} &= {notation.write(equation.expression)}" for equation in written]
    if starts:
        lines.insert(0, r", \quad ".join(f"{name} {'=' if place else '&='} {value}" for place, (name, value) in enumerate(starts)))
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"
