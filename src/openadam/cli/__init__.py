"""The command line, ``openadam COMMAND``: each command is a line of `COMMANDS` and the file of its name.

The file has ``add_arguments(parser)``, for its operands and options, and ``run(given)``, which returns the exit code. It is
imported when its command is named, and may import at its top what ``import openadam`` imports anyway; whatever else it needs
is imported in ``run``. What commands share stands in `arguments` (the parser, types), `output` (printing) and `variant`
(which rule is meant).

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Sequence

from .._version import __version__
from ..errors import OpenAdamError
from .arguments import Parser, UsageError, near, normalized
from .output import complain, discard_output

__all__ = ["main"]

COMMANDS = {
    "compare": "train the same network with several optimizers on real data",
    "study": "run an experiment with claims on real data: digits, gan, rl, nlp",
    "trace": "work an optimizer through by hand, every line with its numbers",
    "practice": "ask questions about Adam, give hints from real traces, and judge answers",
    "show": "print an update rule as it is written, as LaTeX, or as the C++ that is compiled",
    "check": "tell what a rule does with gradients of all kinds, before it is trusted",
    "list": "list the members of the family with their defaults",
    "inspect": "tell what a checkpoint file holds",
    "report": "draw a recording as one HTML page that needs no network",
    "watch": "follow a training run in the terminal while it is recorded",
    "doctor": "tell what is wrong with a recorded run, with evidence and remedies",
    "export": "hand a recording on: CSV, JSON lines, Parquet, TensorBoard, W&B, MLflow, trackio",
    "info": "tell what this installation runs on",
}
# Once a command's file is imported, its name means that module here: `list` is not Python's.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # closed, or replaced by something simpler
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an old terminal may lack ± and µ
    with warnings.catch_warnings():
        warn = functools.cache(complain)  # once is enough
        warnings.showwarning = lambda message, *_, **__: warn(f"warning: {message}")
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except UsageError as error:
            complain(f"error: {error}")
            return 2
        except BrokenPipeError:
            discard_output()
            return 1
        except OSError as error:
            discard_output()  # it may be what cannot be written
            complain(f"error: {error.filename}: {error.strerror}" if error.filename is not None else f"error: {error.strerror or error}")
            return 1
        except (OpenAdamError, ImportError) as error:
            complain(f"error: {error}")
            return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        if command is not None and command not in COMMANDS:
            raise UsageError(f"there is no command {command!r}; {near(command, COMMANDS)} (see openadam --help)")
        parser = _parser(command)
        given = parser.parse_args(normalized(arguments))
        if "run" not in given:
            parser.error(f"a command is missing; there are {', '.join(COMMANDS)}")
    except SystemExit as done:  # after --help or --version
        code = int(done.code or 0)
    else:
        try:
            code = int(given.run(given))
        except SystemExit:  # by which a printer of tables takes its leave from a closed pipe
            raise BrokenPipeError from None
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _parser(command: str | None) -> Parser:
    """The parser of a command line with this command; the others are there by name only, so that their files need no import."""
    parser = Parser(prog="openadam", description="The Adam optimizer family: compare it, watch it work, read it.")
    parser.add_argument("--version", action="version", version=f"openadam {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            module = importlib.import_module(f".{name}", __name__)
            module.add_arguments(own)
            own.set_defaults(run=module.run, parser=own)
    return parser
