"""``openadam show``: an update rule as it is written, as LaTeX, or as C++."""

from __future__ import annotations

import argparse

from ..views.show import show
from .arguments import one_of
from .variant import add_variant_arguments, as_usage, chosen_options, find_rule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a member of the family, or module:attribute for a rule of your own")
    parser.add_argument(
        "--as", dest="as_", metavar="LANGUAGE", type=one_of("language", ["python", "latex", "c++"]), default="python", help="python, latex or c++"
    )
    add_variant_arguments(parser)


def run(given: argparse.Namespace) -> int:
    rule = find_rule(given.name)
    with as_usage():
        text = show(rule, given.as_, coupling=given.coupling, **chosen_options(given, show))
    print(text)
    return 0
