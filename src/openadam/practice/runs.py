"""Where the numbers of the practices come from: traces and runs of the package's own rules, never literals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rules
from ..arrays.optimizer import Optimizer
from ..errors import NativeMissingWarning
from ..language.rule import Rule
from ..row_sparse import Rows
from ..views.trace import find_member, trace
from .model import Mistake, Number
from .wrong import WRONG

__all__ = [
    "Array",
    "Run",
    "after_step",
    "columns",
    "differences",
    "listing",
    "mistake_of",
    "source",
    "spoken",
    "step_from",
    "values",
    "whole",
    "worked",
]

Array = npt.NDArray[np.float64]
Kind = str | Rule | type[Optimizer]


class Run:
    """An optimizer on one array, remembering where it was.

    Args:
        rule: A member of the family by name, or a rule.
        start: Where the parameter starts.
        **settings: As for `openadam.Optimizer`.
    """

    def __init__(self, rule: Kind, start: Any = 0.0, **settings: Any) -> None:
        member, chosen = find_member(rule)
        self.p = np.array(start, np.float64).reshape(-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NativeMissingWarning)  # without native code these few steps are fast enough, and have the same bits
            self.optimizer = member({"p": self.p}, rule=chosen, **settings)
        self.places = [self.p.copy()]
        self._names: dict[str, str] = {name: self.optimizer._public(name) for name in ("m", "v") if name in self.optimizer._traced.states}

    def step(self, gradient: Any) -> Run:
        self.optimizer.step({"p": gradient if isinstance(gradient, Rows) else np.array(gradient, np.float64).reshape(-1)})
        self.places.append(self.p.copy())
        return self

    def steps(self, gradients: Iterable[Any]) -> Run:
        for gradient in gradients:
            self.step(gradient)
        return self

    def descend(self, slope: Callable[[float], float], steps: int) -> Run:
        """Steps on a function of one variable, given its slope."""
        for _ in range(steps):
            self.step(slope(float(self.p[0])))
        return self

    def state(self, name: str) -> Array:
        """A moment by the rule's name of it, as it is now."""
        return np.array(self.optimizer.state["p"][self._names[name]], np.float64).reshape(-1)

    def restart(self, t: int, m: Any = None, v: Any = None) -> Run:
        """Let it believe that it has taken so many steps, and has these moments; by default those that it has."""
        state = self.optimizer.state_dict()
        state["steps"] = state["state"]["p"]["step"] = t
        for name, value in (("m", m), ("v", v)):
            if value is not None:
                state["state"]["p"][self._names[name]] = np.full(self.p.shape, value, np.float64)
        self.optimizer.load_state_dict(state)
        return self

    @property
    def moved(self) -> Array:
        """How far each step moved down the gradient: what is subtracted, in its order."""
        return -np.diff(np.array(self.places), axis=0)


def values(rule: Kind, grads: Any, **settings: Any) -> list[dict[str, Any]]:
    """The results of every line, step by step."""
    return [step.values for step in trace(rule, grads, **settings).steps]


def step_from(rule: Kind, *, p: float, g: float, m: float, v: float, t: int, **settings: Any) -> float:
    """Where the step t leads from these moments."""
    return float(Run(rule, p, **settings).restart(t - 1, m, v).step(g).p[0])


def worked(rule: Kind, grads: Any, names: Sequence[str] = (), last: int = 0, **settings: Any) -> str:
    """A trace as text: the named lines only, of the last steps only, if any are given."""
    traced = trace(rule, grads, **settings)
    steps = [replace(step, lines=tuple(line for line in step.lines if not names or line.name in names)) for step in traced.steps[-last:]]
    return str(replace(traced, steps=tuple(steps)))


def source(rule: Kind, arguments: str, results: Sequence[str], **options: Any) -> str:
    """A rule's step as a Python function, printed from its graph."""
    member, chosen = find_member(rule)
    settings: dict[str, Any] = {name: 0.5 for traced in [chosen.trace(**options)] for name in ("lr", *traced.hyperparameters)}
    (step,) = trace(chosen, [1.0], coupling=member.coupling, **settings, **options).steps
    taken = arguments.split(", ")
    lines, needed = [], set(results)
    for line in reversed(step.lines):
        if line.name in needed and line.name != "g":
            text = line.formula.text
            needed |= {name for name in ("m", "v", "m_hat", "v_hat", "m_new", "v_new", "direction") if name in text}
            lines.append(f"    {line.name} = {text.replace('[t-1]', '')}")
    body = [line for line in reversed(lines) if line != f"    {line.split()[0]} = {line.split()[0]}"]
    begin = ["from math import sqrt", "", ""] if any("sqrt" in line for line in body) else []
    return "\n".join([*begin, f"def step({', '.join(taken)}):", *body, f"    return {', '.join(results)}", ""])


def listing(text: str) -> str:
    """Code within a question."""
    return "\n".join(f"    {line}".rstrip() for line in text.strip().splitlines())


def differences(wrong: Rule, right: Rule = rules.adam, **settings: Any) -> str:
    """The lines in which two rules differ."""
    both = [{line.name: line.formula.text for line in trace(rule, [1.0], **settings).steps[0].lines} for rule in (right, wrong)]
    rows = []
    for name in dict.fromkeys([*both[0], *both[1]]):
        one, other = (lines.get(name, "(there is no such line)") for lines in both)
        if one != other:
            rows.append(f"  {name}\n    right  {one}\n    wrong  {other}")
    return "\n".join(rows)


def columns(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table, right-aligned."""
    lines = [list(head), *([cell if isinstance(cell, str) else f"{cell:.6g}" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def spoken(numbers: Iterable[float]) -> str:
    """Numbers in words: ``2, -4 and 8``."""
    *first, last = (f"{number:g}" for number in numbers)
    return f"{', '.join(first)} and {last}" if first else last


def mistake_of(name: str, *given: float | str | None) -> Mistake:
    """A known mistake, and what it makes of the answer."""
    return Mistake(name, WRONG[name].says, given)


def after_step(name: str, value: float, before: float) -> Number:
    """Where a step leads: to between 0.1 % and 1 % of the step, since a share of the place would let a wrong step pass."""
    step = abs(value - before)
    return Number(name, value, 0.0, float(f"1e{math.floor(math.log10(step / 100))}") if step else 0.0)


def whole(name: str, value: float) -> Number:
    """A whole number that is asked for."""
    return Number(name, float(value), 0.0, 0.0, whole=True)
