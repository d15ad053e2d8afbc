"""``openadam trace``: an optimizer worked through by hand, every line with its numbers."""

from __future__ import annotations

import argparse

from ..hyperparameters import HYPERPARAMETERS
from ..views.trace import parse_grads, trace
from .arguments import UsageError, hyperparameter, one_of
from .variant import add_variant_arguments, as_usage, chosen_options, find_rule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", metavar="NAME", default="adam", help="a member of the family, or module:attribute (%(default)s)")
    parser.add_argument("--grads", metavar="G", required=True, help="gradients: ';' between steps, ',' between coordinates, as in '2,-4;1,3'")
    parser.add_argument("--params", metavar="P", default="0", help="where the parameter starts (%(default)s)")
    parser.add_argument(
        "--as", dest="as_", metavar="FORM", type=one_of("form", ["text", "latex", "json"]), default="text", help="text, latex or json"
    )
    parser.add_argument("--maximize", action="store_true", help="ascend instead of descend")
    add_variant_arguments(parser)
    hyperparameters = parser.add_argument_group("hyperparameters, of those rules that have them")
    for name, known in HYPERPARAMETERS.items():
        hyperparameters.add_argument(f"--{name.replace('_', '-')}", metavar="X", type=hyperparameter(name), help=known.meaning)


def run(given: argparse.Namespace) -> int:
    rule = find_rule(given.rule)
    settings = {name: getattr(given, name) for name in HYPERPARAMETERS if getattr(given, name) is not None}
    with as_usage():
        params = parse_grads(given.params, "start --params")
        if len(params) > 1:
            raise UsageError(f"--params {given.params!r}: the parameter has one start; ',' goes between its coordinates")
        settings |= chosen_options(given, trace)
        traced = trace(rule, parse_grads(given.grads), params[0], coupling=given.coupling, maximize=given.maximize, **settings)
    print(traced.render(given.as_))
    return 0
