"""Steps worked through, as plain data: their lines, what each says in text and in LaTeX, and how the whole is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..language.notation import TEXT

__all__ = ["Explanation", "Line", "Trace", "TracedStep", "Value", "Worked", "Written", "shown"]

Value = float | tuple[float, ...]


@dataclass(frozen=True)
class Written:
    """The same in two notations."""

    text: str
    latex: str


@dataclass(frozen=True)
class Line:
    """One line of the algorithm at one step: ``m = beta1*m[t-1] + (1 - beta1)*g``, with numbers, and what comes out."""

    name: str
    left: Written
    """The name at any step: ``m``."""
    formula: Written
    numbers: Written
    value: Value
    """What comes out, exactly."""
    result: Written
    """The same as it is written: rounded to ten digits, or to as many as tell one float32 from another."""
    symbol: Written
    """The name at this step: ``m1``."""
    notes: tuple[Written, ...] = ()
    """Which branch was taken and why; divisions by zero; what storing made of the result."""

    @property
    def results(self) -> Written:
        """The numbers and what comes out: ``0.5*0 + 20 = 20``; once, if they are the same."""
        numbers, result = self.numbers, self.result
        return Written(
            result.text if numbers.text == result.text else f"{numbers.text} = {result.text}",
            result.latex if numbers.latex == result.latex else f"{numbers.latex} = {result.latex}",
        )


@dataclass(frozen=True)
class TracedStep:
    """One step: its lines in the order in which they are computed, from the gradient to the parameter."""

    t: int
    lines: tuple[Line, ...]

    @property
    def values(self) -> dict[str, Value]:
        """The results by name."""
        return {line.name: line.value for line in self.lines}

    def __str__(self) -> str:
        rows = [f"step {self.t}"]
        for line in self.lines:
            width = len(line.symbol.text)
            rows += [f"  {line.left.text:{width}} = {line.formula.text}", f"  {line.symbol.text} = {line.results.text}"]
            rows += [f"  {'':{width}}   ({note.text})" for note in line.notes]
        return "\n".join(rows)

    @property
    def latex(self) -> str:
        """The lines as one aligned block."""
        rows = []
        for line in self.lines:
            rows += [f"{line.left.latex} &= {line.formula.latex}", f"{line.symbol.latex} &= {line.results.latex}"]
            rows += [rf"&\quad {note.latex}" for note in line.notes]
        return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


class Worked:
    """What has a title and steps, and can be drawn."""

    steps: tuple[TracedStep, ...]

    @property
    def title(self) -> str:
        """What it is of, on one line."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join([self.title, *map(str, self.steps)])

    def as_dict(self) -> dict[str, Any]:
        """Everything as dicts, tuples, numbers and strings."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def render(self, as_: str = "text") -> str:
        """As ``text`` (what ``print`` shows), ``latex`` (one aligned block per step) or ``json``.

        >>> import openadam
        >>> print(openadam.trace("sgd", grads=[4], lr=0.5).render("latex"))
        % sgd: lr=0.5; p0 = 0
        \\begin{aligned}
        g_t &= \\nabla f(\\theta_{t-1}) \\\\
        g_1 &= 4 \\\\
        \\theta_t &= \\theta_{t-1} - \\alpha g_t \\\\
        \\theta_1 &= 0 - 0.5 \\cdot 4 = -2
        \\end{aligned}
        """
        if as_ not in RENDERERS:
            raise ValueError(f"it cannot be shown as {as_!r}, only as {', '.join(RENDERERS)}")
        return RENDERERS[as_](self)


@dataclass(frozen=True)
class Trace(Worked):
    """An algorithm worked through: what it was given, and its steps."""

    rule: str
    coupling: str
    settings: dict[str, float | str | bool]
    """Hyperparameters, and whatever else is not the default."""
    params: Value
    """Where it started."""
    steps: tuple[TracedStep, ...]

    @property
    def title(self) -> str:
        """What it was given, on one line."""
        return f"{self.rule}: {_listed(self.settings)}; p0 = {TEXT.value(self.params).text}"


@dataclass(frozen=True)
class Explanation(Worked):
    """The last step of one coordinate of an optimizer, every intermediate value with its formula and its numbers.

    The numbers are those of the step, in its arithmetic. What is one number for the whole tensor (a hyperparameter, a bias correction) is
    computed in float64 and rounded once where it meets an element; such lines show the float64.
    """

    parameter: str
    index: tuple[int, ...]
    step: int
    """The number of the step, as the optimizer counts."""
    rule: str
    coupling: str
    settings: dict[str, float | str | bool]
    """What was in force in this step, of what was not switched off."""
    dtype: str
    """Of the parameter."""
    arithmetic: str
    """What is computed in: float32 for whatever is narrower than float64."""
    before: float
    """The parameter before the step."""
    after: float
    """And after it, as it was stored."""
    states: dict[str, float]
    """The states after the step, as they were stored, by the names that the lines have."""
    steps: tuple[TracedStep, ...]

    @property
    def t(self) -> int:
        """The number of the step, as the parameter counts; its lines are over this one."""
        return self.steps[0].t

    @property
    def lines(self) -> tuple[Line, ...]:
        """In the order in which they are computed, from the gradient as given to the parameter."""
        return self.steps[0].lines

    @property
    def values(self) -> dict[str, Value]:
        """The results by name, exactly: ``g``, states, whatever the rule names, ``direction``, ``p``."""
        return self.steps[0].values

    @property
    def update(self) -> float:
        """The change of the parameter."""
        return self.after - self.before

    @property
    def place(self) -> str:
        """Which coordinate it is: ``W[0, 1]``."""
        return f"{self.parameter}[{', '.join(map(str, self.index))}]" if self.index else self.parameter

    @property
    def title(self) -> str:
        """Which coordinate, which step, and what was in force, on one line."""
        dtype = self.dtype if self.dtype == self.arithmetic else f"{self.dtype} computed in {self.arithmetic}"
        return f"{self.place} in step {self.step}: {self.rule}, {dtype}; {_listed(self.settings)}"

    def __str__(self) -> str:
        before, after = (TEXT.value(shown(x, self.arithmetic)).text for x in (self.before, self.after))
        change = f", a change of {TEXT.value(self.update).text}" if self.update else ", unchanged" if self.before == self.after else ""
        return f"{super().__str__()}\n\n{self.place}: {before} -> {after}{change}"


def _listed(settings: dict[str, float | str | bool]) -> str:
    return ", ".join(f"{name}={value if isinstance(value, (str, bool)) else TEXT.value(value).text}" for name, value in settings.items())


def shown(value: float, dtype: str) -> float:
    """The number with the fewest digits that means this one in a dtype."""
    return float(str(np.dtype(dtype).type(value)))


def _as_latex(worked: Worked) -> str:
    return "\n".join([f"% {worked.title}", *(step.latex for step in worked.steps)])


def _as_json(worked: Worked) -> str:
    def finite(value: Any) -> Any:  # JSON has no infinity and no NaN
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(worked.as_dict()), indent=2, allow_nan=False)


RENDERERS: dict[str, Callable[[Worked], str]] = {"text": str, "latex": _as_latex, "json": _as_json}
