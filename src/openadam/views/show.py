"""Showing an algorithm: as the Python it is written in, as LaTeX, or as the C++ that is compiled."""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from ..arrays.optimizer import Optimizer
from ..language import cpp
from ..language.notation import LATEX
from ..language.rule import Rule, Traced
from ..rules import update_program
from .equations import equations, surroundings
from .trace import find_member

__all__ = ["show"]


def show(
    rule: str | Rule | type[Optimizer], as_: str = "python", *, coupling: str | None = None, weight_decay: float | None = None, **options: str
) -> str:
    r"""An update rule, printed.

    Args:
        rule: A member of the family by name or class, or a function decorated with ``@openadam.rule``.
        as_: ``python``, the source of the rule and of what it calls; ``latex``, the whole step as aligned equations; ``c++``, the
            function template from which the native kernels are compiled.
        coupling, weight_decay: What ``latex`` shows of weight decay; default that of the member.
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
    if as_ == "python":
        return _source(chosen.function)
    if as_ == "c++":
        return cpp.update(update_program(traced))
    strength = member.defaults.get("weight_decay", 0.0) if weight_decay is None else weight_decay
    return _aligned(traced, coupling or member.coupling, strength)


def _source(function: Callable[..., Any]) -> str:
    """The function, after those of its own module that it calls, as they stand in the file."""
    found: dict[str, Callable[..., Any]] = {}
    pending = [function]
    while pending:
        code = pending.pop()
        if code.__qualname__ not in found:
            found[code.__qualname__] = code
            called = (code.__globals__.get(name) for name in code.__code__.co_names)
            pending += [other for other in called if isinstance(other, types.FunctionType) and other.__module__ == function.__module__]
    try:
        parts = [textwrap.dedent(inspect.getsource(part)) for part in sorted(found.values(), key=lambda part: part.__code__.co_firstlineno)]
    except (OSError, TypeError):
        raise ValueError(f"the source of the rule {function.__name__!r} cannot be found; was it typed in?") from None
    return "\n\n".join(parts).rstrip()


def _aligned(traced: Traced, coupling: str, weight_decay: float) -> str:
    """The step as equations, after the states that it starts from."""
    starts = []
    for state, start in traced.initial.items():
        value = LATEX.name(start, "") if isinstance(start, str) else LATEX.value(start, 17).text
        starts.append((LATEX.name(state, "0"), value))
    lines = [
        rf"{LATEX.name(equation.name, 't')} &= {LATEX.write(equation.expression)}"
        for equation in equations(traced, surroundings(coupling, weight_decay), direction=False)
    ]
    if starts:
        lines.insert(0, r", \quad ".join(f"{name} {'=' if place else '&='} {value}" for place, (name, value) in enumerate(starts)))
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"
