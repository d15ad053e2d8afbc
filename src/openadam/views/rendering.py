"""Drawing a trace: as text (what `str` gives), as LaTeX, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from .worked import Trace

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


def _as_latex(trace: Trace) -> str:
    parts = [f"% {trace.title}"]
    for step in trace.steps:
        rows = []
        for line in step.lines:
            rows += [f"{line.left.latex} &= {line.formula.latex}", f"{line.symbol.latex} &= {line.results.latex}"]
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


RENDERERS: dict[str, Callable[[Trace], str]] = {"text": str, "latex": _as_latex, "json": _as_json}
