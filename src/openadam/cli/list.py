"""``openadam list``: the members of the family with their defaults."""

from __future__ import annotations

import argparse

from ..family import MEMBERS
from .output import assignments, print_columns, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    members = [(name, member.rule.name, member.coupling, member.defaults) for name, member in MEMBERS.items() if member.rule is not None]
    if given.json:
        print_json([{"name": name, "rule": rule, "coupling": coupling, "defaults": defaults} for name, rule, coupling, defaults in members])
    else:
        rows = [(name, rule, coupling, assignments(defaults)) for name, rule, coupling, defaults in members]
        print_columns([("NAME", "RULE", "DECAY", "DEFAULTS"), *rows])
    return 0
