"""Drawing a trace: as text, as LaTeX, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..language.notation import LATEX, TEXT

if TYPE_CHECKING:
    from .trace import Line, Trace

__all__ = ["render"]


def render(trace: Trace, as_: str = "text") -> str:
    """A trace as ``text``, ``latex`` (one aligned block per step) or ``json``.

    >>> import openadam
    >>> print(render(openadam.trace("sgd", grads=[4], lr=0.5), "latex"))
    % sgd: lr=0.5; p0 = 0
    \\begin{aligned}
    g_t &= \\nabla f(\\theta_{t-1}) \\\\
    g_1 &= 4 \\\\
    \\theta_t &= \\theta_{t-1} - \\alpha g_t \\\\
    \\theta_1 &= 0 - 0.5 \\cdot 4 = -2
    \\end{aligned}
    """
    if as_ not in RENDERERS:
        raise ValueError(f"a trace cannot be shown as {as_!r}, only as {', '.join(RENDERERS)}")
    return RENDERERS[as_](trace)


def _title(trace: Trace) -> str:
    settings = ", ".join(f"{name}={value if isinstance(value, (str, bool)) else TEXT.value(value).text}" for name, value in trace.settings.items())
    return f"{trace.rule}: {settings}; p0 = {TEXT.value(trace.params).text}"


def _results(line: Line) -> tuple[str, str]:
    """The numbers and what comes out, in both notations; once, if they are the same."""
    text, latex = TEXT.value(line.value).text, LATEX.value(line.value).text
    return (
        text if line.numbers.text == text else f"{line.numbers.text} = {text}",
        latex if line.numbers.latex == latex else f"{line.numbers.latex} = {latex}",
    )


def _as_text(trace: Trace) -> str:
    parts = [_title(trace)]
    for step in trace.steps:
        rows = [f"step {step.t}"]
        for line in step.lines:
            width = len(line.symbol.text)
            rows += [f"  {line.name:{width}} = {line.formula.text}", f"  {line.symbol.text} = {_results(line)[0]}"]
            rows += [f"  {'':{width}}   ({note.text})" for note in line.notes]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _as_latex(trace: Trace) -> str:
    parts = [f"% {_title(trace)}"]
    for step in trace.steps:
        rows = []
        for line in step.lines:
            rows += [f"{LATEX.name(line.name, 't')} &= {line.formula.latex}", f"{line.symbol.latex} &= {_results(line)[1]}"]
            rows += [rf"&\quad {note.latex}" for note in line.notes]
        parts.append("\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}")
    return "\n".join(parts)


def _as_json(trace: Trace) -> str:
    def finite(value: Any) -> Any:  # JSON has no infinity and no NaN
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(asdict(trace)), indent=2, allow_nan=False)


RENDERERS: dict[str, Callable[[Trace], str]] = {"text": _as_text, "latex": _as_latex, "json": _as_json}
