"""The command line: ``openadam compare | trace | show | list | inspect | info``.

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. What a
command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import functools
import importlib
import inspect
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import NativeMissingWarning, OpenAdamError, UnknownHyperparameterError
from .hyperparameters import HYPERPARAMETERS, checked

__all__ = ["main"]

COMMANDS = ("compare", "trace", "show", "list", "inspect", "info")
DEFAULT_PICTURE = "openadam-digits.png"


class UsageError(Exception):
    """The command line is not as it must be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # closed, or replaced by something simpler
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an old terminal may lack ± and µ
    with warnings.catch_warnings():
        warn = functools.cache(_complain)  # once is enough
        warnings.showwarning = lambda message, *_, **__: warn(f"warning: {message}")
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            _complain("interrupted")
            return 130
        except UsageError as error:
            _complain(f"error: {error}")
            return 2
        except BrokenPipeError:
            _discard_output()
            return 1
        except OSError as error:
            _discard_output()  # it may be what cannot be written
            _complain(f"error: {error.filename}: {error.strerror}" if error.filename is not None else f"error: {error.strerror or error}")
            return 1
        except (OpenAdamError, ImportError) as error:
            _complain(f"error: {error}")
            return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        command = next((argument for argument in arguments if not argument.startswith("-")), COMMANDS[0])
        if command not in COMMANDS:
            raise UsageError(f"there is no command {command!r}; {_near(command, COMMANDS)} (see openadam --help)")
        parser = _parser()
        given = parser.parse_args(_normalized(arguments))
        if "run" not in given:
            parser.error(f"a command is missing; there are {', '.join(COMMANDS)}")
        code = int(given.run(given))
    except SystemExit as done:  # after --help or --version
        code = int(done.code or 0)
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def printable(text: object) -> str:
    """The text on one line, with the control characters that a file name or a message may hold as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def _complain(message: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"openadam: {printable(message)}", file=sys.stderr)


def _discard_output() -> None:
    """Nobody can read what is still buffered, and Python would complain about that at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- arguments ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Complains in one line, and suggests what may have been meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(given, "parser", self)
            name = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(name, [option for action in parser._actions for option in action.option_strings], 1)
            parser.error(f"there is no option {name!r}; did you mean {near[0]!r}?" if near else f"{name!r} is one too many")
        return given

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _normalized(arguments: Iterable[str]) -> list[str]:
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


def _near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean {near[0]!r}?" if near else f"there {'is' if len(known) == 1 else 'are'} {', '.join(known)}"


def _one_of(what: str, words: Sequence[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"there is no {what} {text!r}; {_near(text, words)}")
        return text

    return convert


def _whole(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text[:20]) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return convert


def _hyperparameter(name: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            return checked(name, float(text))
        except OpenAdamError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None

    return convert


def _option(text: str) -> tuple[str, str | float]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if name in HYPERPARAMETERS:
        return name, _hyperparameter(name)(value)
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _members(text: str) -> list[str]:
    from .family import MEMBERS

    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in MEMBERS:
            raise argparse.ArgumentTypeError(f"there is no optimizer {name!r}; {_near(name, MEMBERS)}")
    return list(dict.fromkeys(names))


def _parser() -> _Parser:
    parser = _Parser(prog="openadam", description="The Adam optimizer family: compare it, watch it work, read it.")
    parser.add_argument("--version", action="version", version=f"openadam {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, **settings: Any) -> _Parser:
        own: _Parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", **settings)
        own.set_defaults(run=run, parser=own)
        return own

    compare = command(
        "compare", _compare, "train the same network with several optimizers on real data",
        epilog="Interrupting it (Ctrl-C) keeps what is done.",
    )  # fmt: skip
    compare.add_argument("study", metavar="STUDY", type=_one_of("study", ["digits"]), help="digits: handwritten digits, from scikit-learn")
    compare.add_argument("--optimizers", metavar="NAMES", type=_members, help="members of the family, joined by commas (see openadam list)")
    compare.add_argument("--seeds", metavar="N", type=_whole(1, 1000), help="how many times each optimizer is run")
    compare.add_argument("--epochs", metavar="N", type=_whole(1, 10_000), help="how often each image is seen in a run")
    rates = compare.add_mutually_exclusive_group()
    rates.add_argument("--lr", metavar="X", type=_hyperparameter("lr"), help="one learning rate for all; not a fair comparison")
    rates.add_argument("--sweep", action="store_true", help="choose each optimizer's learning rate anew first")
    compare.add_argument("--output", metavar="FILE", default=DEFAULT_PICTURE, help="the picture of the curves: .png, .pdf or .svg (%(default)s)")
    compare.add_argument("--json", action="store_true", help="print the results as JSON")

    trace = command("trace", _trace, "work an optimizer through by hand, every line with its numbers")
    trace.add_argument("--rule", metavar="NAME", default="adam", help="a member of the family, or module:attribute (%(default)s)")
    trace.add_argument("--grads", metavar="G", required=True, help="gradients: ';' between steps, ',' between coordinates, as in '2,-4;1,3'")
    trace.add_argument("--params", metavar="P", default="0", help="where the parameter starts (%(default)s)")
    trace.add_argument(
        "--as", dest="as_", metavar="FORM", type=_one_of("form", ["text", "latex", "json"]), default="text", help="text, latex or json"
    )
    trace.add_argument("--maximize", action="store_true", help="ascend instead of descend")
    _add_variant(trace)
    hyperparameters = trace.add_argument_group("hyperparameters, of those rules that have them")
    for name, known in HYPERPARAMETERS.items():
        hyperparameters.add_argument(f"--{name.replace('_', '-')}", metavar="X", type=_hyperparameter(name), help=known.meaning)

    show = command("show", _show, "print an update rule as it is written, as LaTeX, or as the C++ that is compiled")
    show.add_argument("name", metavar="NAME", help="a member of the family, or module:attribute for a rule of your own")
    show.add_argument(
        "--as", dest="as_", metavar="LANGUAGE", type=_one_of("language", ["python", "latex", "c++"]), default="python", help="python, latex or c++"
    )
    _add_variant(show)

    command("list", _list, "list the members of the family with their defaults").add_argument("--json", action="store_true", help="print JSON")

    look = command("inspect", _inspect, "tell what a checkpoint file holds")
    look.add_argument("file", metavar="FILE")
    look.add_argument("--verify", action="store_true", help="also read all tensors and verify their checksums")
    look.add_argument("--json", action="store_true", help="print JSON")

    command("info", _info, "tell what this installation runs on").add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_variant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--coupling", metavar="C", type=_one_of("coupling", ["coupled", "decoupled"]), help="of weight decay: coupled or decoupled")
    parser.add_argument(
        "--option", metavar="NAME=VALUE", dest="options", type=_option, action="append", default=[], help="an option of the rule, as epsilon=hat"
    )


# --- commands ----------------------------------------------------------------------------------------------------------


def _print_json(value: Any, *, indent: int | None = 2) -> None:
    print(json.dumps(value, indent=indent, allow_nan=False))


def _print_columns(rows: Iterable[Sequence[object]]) -> None:
    """Left-aligned, two spaces apart."""
    lines = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _settings(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())


def _info(given: argparse.Namespace) -> int:
    import numpy as np

    from . import engine as engines
    from .family import MEMBERS
    from .rules import update_program

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NativeMissingWarning)  # this command says it in its own words
        chosen = {name: engines.choose_engine(update_program(member.rule.trace())) for name, member in MEMBERS.items() if member.rule is not None}
    isas = engines.native_isas()
    others = [name for name, engine in chosen.items() if engine.name == "reference"]
    if os.environ.get("OPENADAM_ENGINE") == "reference":
        reason = "OPENADAM_ENGINE=reference is set"
    elif not isas:
        try:
            from . import _native  # noqa: F401

            reason = "the native part has no kernels for this processor"
        except ImportError as error:
            reason = f"the native part cannot be imported: {error}"
    elif others:
        reason = f"no kernels for the present rules of {', '.join(others)}; reinstall to rebuild them"
    else:
        reason = "there are kernels for every member of the family"
    used = next((engine for engine in chosen.values() if engine.name == "native"), chosen["adam"])
    facts = {
        "version": __version__,
        "engine": used.name,
        "reason": reason,
        "isa": used.isa,
        "isas": isas,
        "threads": engines.resolve_threads(None),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if given.json:
        _print_json(facts)
        return 0
    available = f"this processor runs {', '.join(isas)}" if isas else "none available"
    shown = {
        "openadam": __version__,
        "engine": f"{used.name} ({reason})",
        "isa": f"{used.isa} ({available})",
        **{name: facts[name] for name in ("threads", "numpy", "python")},
    }
    _print_columns(shown.items())
    return 0


def _list(given: argparse.Namespace) -> int:
    from .family import MEMBERS

    members = [(name, member.rule.name, member.coupling, member.defaults) for name, member in MEMBERS.items() if member.rule is not None]
    if given.json:
        _print_json([{"name": name, "rule": rule, "coupling": coupling, "defaults": defaults} for name, rule, coupling, defaults in members])
    else:
        rows = [(name, rule, coupling, _settings(defaults)) for name, rule, coupling, defaults in members]
        _print_columns([("NAME", "RULE", "WEIGHT DECAY", "DEFAULTS"), *rows])
    return 0


def _find_rule(name: str) -> Any:
    """The name of a member, or the rule or optimizer class that ``module:attribute`` names."""
    from .family import MEMBERS
    from .language.expression import Rule
    from .arrays.optimizer import Optimizer

    if ":" not in name:
        if name.lower() not in MEMBERS:
            raise UsageError(f"there is no rule {name!r}; {_near(name, MEMBERS)}")
        return name.lower()
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: people try out files of the directory they are in
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module's own code raises
        raise UsageError(f"{name}: {error if isinstance(error, (OpenAdamError, ImportError)) else f'{type(error).__name__}: {error}'}") from error
    if not isinstance(found, Rule) and not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UsageError(f"{name} is of type {type(found).__name__}, not a function decorated with @openadam.rule")
    return found


@contextlib.contextmanager
def _as_usage() -> Iterator[None]:
    """What the library refuses about a rule's settings is a matter of the command line here."""
    try:
        yield
    except (ValueError, UnknownHyperparameterError) as error:
        raise UsageError(str(error)) from error


def _chosen(given: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """What ``--option`` gives, without what the function calls by the same names."""
    for name, _ in given.options:
        if name in inspect.signature(function).parameters and name not in HYPERPARAMETERS:
            raise UsageError(f"--option {name}: no rule has an option of this name")
    return dict(given.options)


def _show(given: argparse.Namespace) -> int:
    from .views.show import show

    rule = _find_rule(given.name)
    with _as_usage():
        text = show(rule, given.as_, coupling=given.coupling, **_chosen(given, show))
    print(text)
    return 0


def _trace(given: argparse.Namespace) -> int:
    from .views.rendering import render
    from .views.trace import parse_grads, trace

    rule = _find_rule(given.rule)
    settings = {name: getattr(given, name) for name in HYPERPARAMETERS if getattr(given, name) is not None}
    with _as_usage():
        params = parse_grads(given.params)
        if len(params) > 1:
            raise UsageError(f"--params {given.params!r}: the parameter has one start; ',' goes between its coordinates")
        settings |= _chosen(given, trace)
        traced = trace(rule, parse_grads(given.grads), params[0], coupling=given.coupling, maximize=given.maximize, **settings)
    print(render(traced, given.as_))
    return 0


def _inspect(given: argparse.Namespace) -> int:
    from . import checkpoint

    found = checkpoint.inspect(given.file, verify=given.verify)
    if given.json:
        _print_json(found)
        return 0
    rows = [
        ("file", given.file),
        ("format", f"{found['format']}, {found['bytes']} bytes"),
        ("checksums", "all verified" if found["verified"] else "of the header verified; --verify checks the tensors too"),
        ("rule", f"{found['rule']}, {found['coupling']} weight decay"),
        ("steps", f"{found['steps']}, and {found['skipped']} skipped"),
    ]
    for index, group in enumerate(found["groups"]):
        settings = {name: value for name, value in group.items() if name != "params"}
        rows.append((f"group {index}", f"{len(group['params'])} parameters, {_settings(settings)}"))
    _print_columns(rows)
    print()
    _print_columns(
        [
            ("TENSOR", "DTYPE", "SHAPE", "BYTES"),
            *((tensor["name"], tensor["dtype"], " x ".join(map(str, tensor["shape"])) or "scalar", tensor["bytes"]) for tensor in found["tensors"]),
        ]
    )
    return 0


# --- compare -----------------------------------------------------------------------------------------------------------


def _check_output(path: Path) -> None:
    """Refuse now what could not be written after the runs."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a picture", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(path))


def _compare(given: argparse.Namespace) -> int:
    from .studies import demo_module, digits
    from .views import compare as view

    for module in ("rich", "sklearn", "matplotlib"):
        demo_module(module)
    output = Path(given.output)
    try:
        view.check_picture_format(output.suffix)
    except ValueError as error:
        raise UsageError(f"--output {given.output}: {error}") from error
    _check_output(output)
    comparison = digits.Comparison(
        given.optimizers or digits.OPTIMIZERS, given.seeds or digits.SEEDS, given.epochs or digits.EPOCHS, given.lr, given.sweep
    )
    unknown = [name for name in comparison.optimizers if name not in digits.RATES]
    if unknown and given.lr is None and not given.sweep:
        raise UsageError(f"no learning rate was chosen for {', '.join(unknown)} yet; give --sweep, or one rate for all with --lr")
    interrupted = False
    try:
        data = digits.load_data()
        with view.Progress(comparison) as progress:
            comparison.run(data, progress.doing)
    except KeyboardInterrupt:
        interrupted = True
        _complain("interrupted; what is done follows" if comparison.runs or comparison.sweeps else "interrupted before the first run was done")
    if comparison.sweeps and not given.json:
        view.print_sweep(comparison)
    if comparison.runs and not given.json:
        view.print_table(comparison, interrupted=interrupted)
        sys.stdout.flush()
    failure: OSError | None = None
    if comparison.runs:
        try:
            output.write_bytes(view.picture(comparison, output.suffix))
        except OSError as error:  # the results are worth printing all the same
            failure = error
    if given.json:
        written = str(output) if comparison.runs and failure is None else None
        _print_json(view.as_json(comparison, written, interrupted=interrupted), indent=None)
    elif comparison.runs and failure is None:
        print(f"\nCurves: {printable(output)}")
    if failure is not None:
        raise failure
    return 130 if interrupted else 0
