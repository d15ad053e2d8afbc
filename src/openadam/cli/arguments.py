"""Arguments that commands have in common: the parser, and the types of option-arguments."""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from ..errors import OpenAdamError
from ..family import MEMBERS
from ..hyperparameters import HYPERPARAMETERS, SYNONYMS, checked
from ..rules import FAMILY

__all__ = [
    "Parser", "UsageError", "add_recording", "hyperparameter", "members", "named_object", "near", "normalized", "one_of",
    "refuse_no_track", "setting", "whole",
]  # fmt: skip


class UsageError(Exception):
    """The command line is not as it must be."""


class Parser(argparse.ArgumentParser):
    """Complains in one line, and suggests what may have been meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given: Sequence[str] = args or ()
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(given, "parser", self)
            parser._refuse_unknown()
            parser.error(f"{unknown[0]!r} is one too many")
        return given

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            self._refuse_unknown()  # perhaps they are there, but misspelt
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _refuse_unknown(self) -> None:
        """Complain of the first option that does not exist, if there is one."""
        known = [option for action in self._actions for option in action.option_strings]
        for argument in self._given:
            name = argument.partition("=")[0]
            if argument == "--" or not argument.startswith("-") or name in known or re.match(r"-[.\d]", name):
                continue
            hint = self._meant(name, known)
            raise UsageError(f"there is no option {name!r}{f'; {hint}' if hint else ''} (see {self.prog} --help)")

    @staticmethod
    def _meant(name: str, known: Sequence[str]) -> str:
        bare = name.lstrip("-").replace("-", "_")
        synonyms = [option for option in (f"--{other.replace('_', '-')}" for other in SYNONYMS.get(bare, ())) if option in known]
        choices = [(option, values) for rule in FAMILY for option, values in rule.options.items()] if "--option" in known else []
        if any(option == bare for option, _ in choices):
            return f"it is an option of rules, --option {bare}=…"
        if holders := [option for option, values in choices if bare in values]:
            return f"it is a choice that rules have, --option {holders[0]}={bare}"
        if synonyms:
            return f"write {' or '.join(synonyms)}"
        close = difflib.get_close_matches(name, [option for option in known if option != "--help"], 1, 0.7)
        return f"did you mean {close[0]!r}?" if close else ""


def normalized(arguments: Iterable[str]) -> list[str]:
    """Options may be spelt with underscores, as hyperparameters are, and a negative number may follow them."""
    result: list[str] = []
    for argument in arguments:
        if "--" in result:
            pass  # what follows are no options
        elif argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        elif re.match(r"-\.?\d", argument) and result and re.fullmatch(r"--[a-z0-9-]+", result[-1]):
            argument = f"{result.pop()}={argument}"
        result.append(argument)
    return result


def named_object(name: str) -> Any:
    """What ``module:attribute`` names, of a module in the current directory too."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: people try out files of the directory they are in
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except SystemExit as left:
        raise UsageError(f"{name}: the module ended the program, sys.exit({left.code!r})") from left
    except Exception as error:  # whatever the module's own code raises
        raise UsageError(f"{name}: {error if isinstance(error, (OpenAdamError, ImportError)) else f'{type(error).__name__}: {error}'}") from error
    return found


def near(name: str, known: Iterable[str], separator: str = ", ") -> str:
    """What a wrong name may have been meant to be, or all that there is."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"there {'is' if len(known) == 1 else 'are'} {separator.join(known)}"


def one_of(what: str, words: Sequence[str]) -> Callable[[str], str]:
    """The type of an argument that is one of a few words."""

    def convert(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"there is no {what} {text!r}; {near(text, words)}")
        return text

    return convert


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of a whole number within bounds."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text[:20]) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return convert


def session_number(text: str) -> int:
    """The type of the number of a session in a recording, which may count from the end."""
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def add_recording(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which recording, and what of it."""
    parser.add_argument("file", metavar="FILE", help="a recording")
    parser.add_argument("--track", metavar="NAME", help="only this optimizer")
    parser.add_argument("--session", type=session_number, default=-1, metavar="N", help="from 0 as they were started; -1, the default, is the last")


def refuse_no_track(session: Any, name: str | None) -> None:
    """Refuse the name of an optimizer that is not in a recording.

    Raises:
        UsageError: There is none of this name.
    """
    if name is not None and name not in session.tracks:
        raise UsageError(f"there is no track {name!r} in it; {near(name, session.tracks) if session.tracks else 'there is none'}")


def hyperparameter(name: str) -> Callable[[str], float]:
    """The type of a hyperparameter's value, within its range."""

    def convert(text: str) -> float:
        try:
            return checked(name, float(text))
        except OpenAdamError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None

    return convert


def setting(text: str) -> tuple[str, str | float]:
    """The type of ``NAME=VALUE``: a hyperparameter, or an option of a rule."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if name in HYPERPARAMETERS:
        return name, hyperparameter(name)(value)
    try:
        return name, float(value)
    except ValueError:
        return name, value


def members(text: str) -> list[str]:
    """The type of names of the family joined by commas, each once."""
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in MEMBERS:
            raise argparse.ArgumentTypeError(f"there is no optimizer {name!r}; {near(name, MEMBERS)}")
    return list(dict.fromkeys(names))
