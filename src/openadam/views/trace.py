"""Tracing: every step of an algorithm with its formula, the numbers filled in and the result, as one does by hand.

A trace is plain data (`openadam.worked.data`), drawn as text, LaTeX or JSON. It watches a real optimizer, so its numbers are
those of a run in float64; the formulas are read off the same graph from which the kernels are printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rules
from ..arrays.optimizer import Optimizer
from ..engine import Update
from ..family import MEMBERS
from ..hyperparameters import suggest
from ..language.rule import Rule
from ..worked.data import Line, Trace, TracedStep, Written
from ..worked.working import Surroundings, plain, work_out

__all__ = ["Line", "Trace", "TracedStep", "Written", "find_member", "parse_grads", "trace"]

Array = npt.NDArray[np.float64]


def parse_grads(given: str, what: str = "gradients") -> list[list[float]]:
    """Gradients as the command line takes them: ``;`` between steps, ``,`` between coordinates.

    Raises:
        ValueError: A piece is missing or is not a finite number.

    >>> parse_grads("2,-4")
    [[2.0, -4.0]]
    >>> parse_grads("20; -5; 8")
    [[20.0], [-5.0], [8.0]]
    """
    return [
        [_number(piece, f"step {t} of the {what} {given!r}" if what == "gradients" else f"{what} {given!r}") for piece in step.split(",")]
        for t, step in enumerate(given.split(";"), 1)
    ]


def _number(piece: str, where: str) -> float:
    if not piece.strip():
        raise ValueError(f"{where}: a number is missing; write ',' between coordinates and ';' between steps, as in '2,-4;1,3'")
    try:
        return float(piece)
    except ValueError:
        raise ValueError(f"{where}: {piece.strip()!r} is not a number") from None


def _vector(given: Any, what: str) -> Array:
    """Coordinates as a vector of float64; one number is a vector of one."""
    try:
        vector = np.array(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {given!r} is neither a number nor a sequence of numbers") from None
    vector = vector.reshape(1) if vector.ndim == 0 else vector
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"{what}: {given!r} is neither a number nor a sequence of numbers")
    if not np.isfinite(vector).all():
        raise ValueError(f"{what}: {given!r} holds a number that is not finite")
    return vector


def _gradients(grads: Any) -> list[Array]:
    """One vector per step, all of one length."""
    if isinstance(grads, str):
        grads = parse_grads(grads)
    try:
        steps = [] if isinstance(grads, (Mapping, set, frozenset)) else list(grads)
    except TypeError:
        steps = []
    if not steps:
        raise ValueError(f"grads={grads!r}: give one entry per step, each a number or a sequence of coordinates, or text such as '2,-4;1,3'")
    vectors = [_vector(step, f"the gradient of step {t}") for t, step in enumerate(steps, 1)]
    for t, vector in enumerate(vectors, 1):
        if vector.size != vectors[0].size:
            raise ValueError(f"the gradient of step {t} has {vector.size} coordinates, that of step 1 has {vectors[0].size}")
    return vectors


def find_member(rule: str | Rule | type[Optimizer]) -> tuple[type[Optimizer], Rule]:
    """The optimizer class and the rule that are meant: a member by name or class, or a rule of one's own.

    Raises:
        ValueError: There is no member of this name.
    """
    if isinstance(rule, Rule):
        return Optimizer, rule
    if isinstance(rule, str):
        member = MEMBERS.get(rule.lower())
        if member is None:
            raise ValueError(f"there is no rule {rule!r}; there are {', '.join(MEMBERS)}")
        rule = member
    if not (isinstance(rule, type) and issubclass(rule, Optimizer) and rule.rule is not None):
        raise ValueError(f"rule={rule!r} is neither a member's name or class nor a function decorated with @openadam.rule")
    return rule, rule.rule


def trace(
    rule: str | Rule | type[Optimizer] = "adam",
    grads: Any = (),
    params: Any = 0.0,
    *,
    coupling: str | None = None,
    maximize: bool = False,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    **hyperparameters: Any,
) -> Trace:
    """Work an optimizer through by hand: every line with its formula, the numbers filled in, and the result.

    Args:
        rule: A member of the family by name or class, or a function decorated with ``@openadam.rule``.
        grads: One entry per step: a number, or the coordinates of a vector; or text such as ``"2,-4;1,3"``.
        params: Where the parameter starts: a number for all coordinates, or one for each.
        coupling, maximize, clip_norm, clip_value: As for `openadam.Optimizer`.
        **hyperparameters: Those of the rule, its options, ``lr`` and ``weight_decay``; numbers or functions of t.

    Returns:
        A `Trace`: plain data, of which ``print`` shows the text and ``render`` also gives LaTeX and JSON.

    Raises:
        ValueError: The rule, the gradients or the parameters cannot be what they are.
        HyperparameterError, UnknownHyperparameterError: As for `openadam.Optimizer`.
        NonFiniteStateError: A gradient is so large that a state overflows.

    >>> import openadam
    >>> print(openadam.trace("momentum", grads=[20, -5], momentum=0.5, lr=0.1))
    momentum: lr=0.1, momentum=0.5, dampening=0; p0 = 0
    <BLANKLINE>
    step 1
      g  = gradient
      g1 = 20
      m  = momentum*m[t-1] + g
      m1 = 0.5*0 + 20 = 20
           (t == 1 holds: 1 == 1)
      p  = p[t-1] - lr*m
      p1 = 0 - 0.1*20 = -2
    <BLANKLINE>
    step 2
      g  = gradient
      g2 = -5
      m  = momentum*m[t-1] + (1 - dampening)*g
      m2 = 0.5*20 + (1 - 0)*(-5) = 5
           (t == 1 does not hold: 2 == 1)
      p  = p[t-1] - lr*m
      p2 = -2 - 0.1*5 = -2.5
    >>> openadam.trace("adam", grads=[(2, -4)], beta1=0.9).steps[0].values["m_hat"]
    (2.0, -4.0)
    """
    cls, chosen = find_member(rule)
    known = [*chosen.hyperparameters, *chosen.options]
    for name in hyperparameters:
        if name not in known:
            raise suggest(f"the trace of {chosen.name}", name, [*known, "coupling", "maximize", "clip_norm", "clip_value"])
    gradients = _gradients(grads)
    p = _vector(params, "params")
    if p.size == 1:
        p = np.full(gradients[0].size, p[0])
    if p.size != gradients[0].size:
        raise ValueError(f"params has {p.size} coordinates, the gradients have {gradients[0].size}")
    watching = "raise" if chosen in rules.FAMILY else "propagate"  # of a rule under work one wants to see where it divides by zero
    optimizer = cls(
        {"p": p}, rule=chosen, coupling=coupling, maximize=maximize, clip_norm=clip_norm, clip_value=clip_value, nonfinite=watching,
        engine="reference", **hyperparameters,
    )  # fmt: skip
    start = plain(p)
    steps = tuple(_watch(optimizer, p, gradient) for gradient in gradients)
    name = next((name for name, member in MEMBERS.items() if member is cls), chosen.name)
    return Trace(name, optimizer._coupling, _settings(optimizer), start, steps)


def _settings(optimizer: Optimizer) -> dict[str, float | str | bool]:
    """What the trace was made with, without what is switched off and options that are the default."""
    numbers = {name: value for name, value in optimizer.groups[0].items() if name not in ("params", "weight_decay", "maximize")}
    around = {name: optimizer.groups[0][name] for name in ("weight_decay", "maximize")}
    around |= {"clip_norm": optimizer._stepper.clip_norm, "clip_value": optimizer._stepper.clip_value}
    settings = {**numbers, **{name: value for name, value in around.items() if value not in (None, False, 0.0)}}
    choices = optimizer._rule.options
    options = {name: value for name, value in optimizer._options.items() if value != choices[name][0]}
    return {**{name: repr(value) if callable(value) else value for name, value in settings.items()}, **options}


def _watch(optimizer: Optimizer, p: Array, gradient: Array) -> TracedStep:
    """Let the optimizer take one step, and write down what happens in it."""
    t, traced = optimizer.steps + 1, optimizer._traced
    remembered = optimizer.state["p"]
    states = {name: _copy(remembered[optimizer._public(name)]) for name in traced.states}
    before = p.copy()
    report = optimizer.step({"p": gradient})
    group = {name: value(t) if callable(value) else value for name, value in optimizer.groups[0].items() if name != "params"}
    stepper = optimizer._stepper
    around = Surroundings(stepper.clip_norm, report.grad_norm, report.clip_factor, stepper.clip_value)
    return work_out(Update(traced, optimizer._coupling, values=group), t, gradient, before, states, around)


def _copy(value: Any) -> Any:
    return np.array(value) if isinstance(value, np.ndarray) else float(value)
