"""The rule that `show` and `trace` are given, and the variant of it: by the family's names, or as ``module:attribute``."""

from __future__ import annotations

import argparse
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..arrays.optimizer import Optimizer
from ..family import MEMBERS
from ..hyperparameters import HYPERPARAMETERS
from ..language.rule import Rule
from .arguments import UsageError, named_object, near, one_of, setting

__all__ = ["add_variant_arguments", "as_usage", "chosen_options", "find_rule"]


def add_variant_arguments(parser: argparse.ArgumentParser) -> None:
    """``--coupling`` and ``--option``."""
    parser.add_argument("--coupling", metavar="C", type=one_of("coupling", ["coupled", "decoupled"]), help="of weight decay: coupled or decoupled")
    parser.add_argument(
        "--option", metavar="NAME=VALUE", dest="options", type=setting, action="append", default=[], help="an option of the rule, as epsilon=hat"
    )


def find_rule(name: str) -> Any:
    """The name of a member, or the rule or optimizer class that ``module:attribute`` names."""
    if ":" not in name:
        if name.lower() not in MEMBERS:
            raise UsageError(f"there is no rule {name!r}; {near(name, MEMBERS)}")
        return name.lower()
    found = named_object(name)
    if not isinstance(found, Rule) and not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UsageError(f"{name} is of type {type(found).__name__}, not a function decorated with @openadam.rule")
    return found


@contextlib.contextmanager
def as_usage() -> Iterator[None]:
    """What the library refuses about a rule's settings is a matter of the command line here."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def chosen_options(given: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """What ``--option`` gives, without what the function calls by the same names."""
    for name, _ in given.options:
        if name in inspect.signature(function).parameters and name not in HYPERPARAMETERS:
            raise UsageError(f"--option {name}: no rule has an option of this name")
    return dict(given.options)
