"""``openadam check``: what a rule does with gradients of all kinds, before it is trusted with a model."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from ..arrays.optimizer import Optimizer
from ..family import MEMBERS
from ..language.rule import Rule
from .arguments import UsageError, setting
from .output import print_json
from .variant import as_usage, find_rule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="module:attribute of a rule of your own, or a member of the family")
    parser.add_argument(
        "settings", metavar="NAME=VALUE", type=setting, nargs="*", default=[], help="hyperparameters and options of the rule, as beta1=0.9"
    )
    parser.add_argument("--json", action="store_true", help="what was found as JSON")


def run(given: argparse.Namespace) -> int:
    from ..checking import check

    rule, defaults = _rule_of(find_rule(given.name))
    with as_usage():
        found = check(rule, **{**defaults, **dict(given.settings)})
    if given.json:
        rows = [{**dataclasses.asdict(row), "value": row.value if row.value is None or math.isfinite(row.value) else None} for row in found.rows]
        print_json({"rule": found.rule, "settings": found.settings, "rows": rows})
    else:
        print(found)
    return int(not found.is_fine)


def _rule_of(found: Any) -> tuple[Rule, dict[str, Any]]:
    """The rule that is meant, and the defaults that its class has."""
    if isinstance(found, Rule):
        return found, {}
    member: type[Optimizer] = MEMBERS[found] if isinstance(found, str) else found
    rule = member.rule
    if rule is None:
        raise UsageError(f"{member.__name__} has no rule of its own")
    known = rule.trace(**{name: value for name, value in member.defaults.items() if name in rule.options})
    wanted = {*known.hyperparameters, *rule.options, *(start for start in known.initial.values() if isinstance(start, str))}
    return rule, {name: value for name, value in member.defaults.items() if name in wanted and name != "lr"}
