"""The process in which a student's program runs: `python child.py`, with the work as JSON on stdin and the results on stdout.

It imports the standard library only, before anything of the student's, and knows no answers: those stay with the parent.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

MOST_PRINTED = 4000  # characters of what the program prints that are passed on
MOST_MEMORY = 8 << 30


class UnusableError(Exception):
    """The file is no program with the function that is asked for."""


class Printed(io.TextIOBase):
    """What a program prints: the beginning is kept."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text[: MOST_PRINTED - len(self.text)]
        return len(text)


class NoAnswers:
    """Refuses to import what would give the answer."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "openadam":
            raise ImportError("openadam cannot be imported here: the practice is to write it yourself")


def play(function: Callable[..., Any], work: dict[str, Any]) -> list[list[list[float]]]:
    """Call the function step by step, each with what the step before returned; the results of every step of every case."""
    played = []
    for case in work["cases"]:
        known: dict[str, Any] = dict(case["start"])
        results: list[list[float]] = []
        for gradient in case["gradients"]:
            known["g"] = gradient
            known["t"] = len(results) + 1
            found = numbers(function(*(known[name] for name in work["arguments"])), work["results"])
            known.update(zip(work["results"], found, strict=True))
            results.append(found)
        played.append(results)
    return played


def numbers(returned: Any, names: Sequence[str]) -> list[float]:
    """What the function returned, as numbers."""
    given = [returned] if len(names) == 1 and not isinstance(returned, (tuple, list)) else returned
    try:
        found = [float(value) for value in given]
    except (TypeError, ValueError):
        found = []
    if len(found) != len(names):
        raise TypeError(f"it must return {', '.join(names)}, each a number, and it returned {returned!r:.80}")
    return found


def load(path: str, name: str) -> Callable[..., Any]:
    """The function of this name in a file, which is run."""
    with open(path, "rb") as file:
        source = file.read()
    try:
        code = compile(source, path, "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UnusableError(f"it is no Python that can be run: {getattr(error, 'msg', error)}{f' (line {line})' if line else ''}") from None
    names: dict[str, Any] = {"__name__": "__student__", "__file__": path}
    exec(code, names)
    if not callable(names.get(name)):
        raise UnusableError(f"there is no function `{name}` in it")
    return names[name]  # type: ignore[no-any-return]


def named(error: BaseException) -> str:
    """An error in a line: its kind, and what it says, if it says anything."""
    said = "" if isinstance(error, SystemExit) and error.code is None else str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def line_of(error: BaseException, path: str) -> int | None:
    """The last line of the student's file that an error went through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else None


def limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # there is no such limit on this system


def main() -> None:
    """Read the work, do it, and write one line that begins with the token of the work."""
    work = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    printed = Printed()
    sys.stdin, sys.stdout, sys.stderr = open(os.devnull, encoding="utf-8"), printed, printed  # noqa: SIM115
    sys.path[0] = os.path.dirname(work["path"])  # not ours: a student's file may import another
    sys.meta_path.insert(0, NoAnswers())
    sys.dont_write_bytecode = True
    limit_memory()
    report: dict[str, Any] = {}
    try:
        report["played"] = play(load(work["path"], work["function"]), work)
    except UnusableError as error:
        report["unusable"] = str(error)
    except BaseException as error:  # whatever it raises, also to end the program
        report["raised"] = named(error)[:400]
        report["line"] = line_of(error, work["path"])
    report["printed"] = printed.text
    answers.write(f"\n{work['token']}{json.dumps(report)}\n")
    answers.flush()
    os._exit(0)  # threads and exit handlers of the program wait for nobody


if __name__ == "__main__":
    main()
