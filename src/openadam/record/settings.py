"""What optimizers told a recording of their settings, read with care: whoever recorded may have told anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..theory import Settings

__all__ = ["group_of", "groups_of", "settings_of"]


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


def settings_of(about: Mapping[str, Any], group: Mapping[str, Any]) -> Settings:
    """The settings of a group as readings take them.

    >>> settings_of({"rule": "adam", "coupling": "decoupled"}, {"beta1": 0.9, "beta2": "lambda t: 1 - 1 / t"}).beta2
    nan
    """
    return Settings.of(str(about.get("rule", "")), str(about.get("coupling", "")), group)
