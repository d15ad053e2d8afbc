"""An algorithm worked through, as plain data: its steps, their lines, and what each line says in text and in LaTeX."""

from __future__ import annotations

from dataclasses import dataclass

from ..language.notation import LATEX, TEXT

__all__ = ["Line", "Trace", "TracedStep", "Value", "Written"]

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
    symbol: Written
    """The name at this step: ``m1``."""
    notes: tuple[Written, ...] = ()
    """Which branch was taken and why; divisions by zero."""

    @property
    def results(self) -> Written:
        """The numbers and what comes out: ``0.5*0 + 20 = 20``; once, if they are the same."""
        text, latex = TEXT.value(self.value).text, LATEX.value(self.value).text
        return Written(
            text if self.numbers.text == text else f"{self.numbers.text} = {text}",
            latex if self.numbers.latex == latex else f"{self.numbers.latex} = {latex}",
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


@dataclass(frozen=True)
class Trace:
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
        settings = ", ".join(f"{name}={value if isinstance(value, (str, bool)) else TEXT.value(value).text}" for name, value in self.settings.items())
        return f"{self.rule}: {settings}; p0 = {TEXT.value(self.params).text}"

    def __str__(self) -> str:
        parts = [self.title]
        for step in self.steps:
            rows = [f"step {step.t}"]
            for line in step.lines:
                width = len(line.symbol.text)
                rows += [f"  {line.left.text:{width}} = {line.formula.text}", f"  {line.symbol.text} = {line.results.text}"]
                rows += [f"  {'':{width}}   ({note.text})" for note in line.notes]
            parts.append("\n".join(rows))
        return "\n\n".join(parts)
