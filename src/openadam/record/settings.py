"""What optimizers told a recording of their settings, read with care: whoever recorded may have told anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["betas_of", "group_of", "groups_of", "number"]


def number(value: Any) -> float:
    """A setting; NaN where there is none, or one that changes."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def groups_of(about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of the groups of a track that this was told about."""
    told = about.get("groups")
    return [group if isinstance(group, dict) else {} for group in told] if isinstance(told, list) else []


def group_of(groups: list[Mapping[str, Any]], tensor: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """The number and the settings of a tensor's group; the first where none was told.

    >>> group_of([{"lr": 0.1}, {"lr": 0.2}], {"name": "w", "group": 1}), group_of([{"lr": 0.1}], {"name": "w", "group": 5})
    ((1, {'lr': 0.2}), (5, {}))
    """
    told = tensor.get("group")
    place = told if isinstance(told, int) else 0
    return place, groups[place] if 0 <= place < len(groups) else {}


def betas_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Of torch's groups and of ours; NaN for what there is not."""
    betas = group.get("betas")
    if isinstance(betas, (list, tuple)) and len(betas) == 2:
        return number(betas[0]), number(betas[1])
    return number(group.get("beta1")), number(group.get("beta2"))
