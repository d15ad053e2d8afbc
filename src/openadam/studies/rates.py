"""How learning rates are chosen: the least score on a grid of half decades, which goes on where the best is at an end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

__all__ = ["GRID", "LIMITS", "best", "rate", "search"]

GRID = range(-8, 0)  # in half decades, see `rate`: 0.0001 to 0.3
LIMITS = range(-16, 9)  # no further than 0.00000001 to 10000


def rate(half_decade: int) -> float:
    """The rates 1 and 3 times the powers of ten, in order: ..., -3: 0.03, -2: 0.1, -1: 0.3, 0: 1, ..."""
    return float(f"{(1, 3)[half_decade % 2]}e{half_decade // 2}")


def best(scores: Mapping[float, float]) -> float:
    """The rate with the least score, the smaller of two that tie."""
    return min(scores, key=lambda lr: (scores[lr], lr))


def search(score: Callable[[float], float], grid: Iterable[int] = GRID) -> dict[float, float]:
    """The scores of the grid's rates, widened half a decade at a time until the best is not at an end; NaN counts as infinite."""
    scores: dict[float, float] = {}
    pending = sorted(grid)
    low, high = pending[0], pending[-1]
    while pending:
        for half_decade in pending:
            value = score(rate(half_decade))
            scores[rate(half_decade)] = math.inf if math.isnan(value) else value
        low, high = min(low, *pending), max(high, *pending)
        chosen = best(scores)
        pending = [low - 1] if chosen == rate(low) else [high + 1] if chosen == rate(high) else []
        pending = [half_decade for half_decade in pending if half_decade in LIMITS]
    return dict(sorted(scores.items()))
