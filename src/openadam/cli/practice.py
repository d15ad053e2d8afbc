"""``openadam practice``: questions about Adam, hints from real traces, and answers judged by computation."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from typing import Any

from .arguments import Parser, UsageError
from .output import print_columns, print_json, printable

__all__ = ["add_arguments", "run"]

LARGEST_SEED = 2**63


def seed(text: str) -> int:
    """The type of a seed: a whole number, also a student's."""
    if not text.isdecimal() or int(text[:20]) >= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def add_arguments(parser: Parser) -> None:
    parser.epilog = "Exit codes of an answer: 0 right, 1 wrong, 2 not understood. OPENADAM_PRACTICE_FILE says where progress is kept."
    parser.add_argument("name", metavar="NAME", nargs="?", help="a practice; without it they are listed")
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="which numbers: give every student another (%(default)s)")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--answer", metavar="ANSWER", help="check an answer: numbers and letters, joined by commas")
    actions.add_argument("--file", metavar="FILE", help="check a program in a file, in a process of its own")
    actions.add_argument("--hint", action="store_true", help="print a hint, from a real trace")
    actions.add_argument("--solution", action="store_true", help="print the answer and why")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    from .. import practice

    asked = given.answer is not None or given.file is not None
    if given.name is None:
        if asked or given.hint or given.solution or given.seed:
            raise UsageError("name the practice; openadam practice lists them")
        return _list(given.json)
    try:
        found = practice.find(given.name)
        question = found.question(given.seed)
        program = question.asks.kind == "a program"
        if asked and program != (given.file is not None):
            raise UsageError(f"{found.name} asks for {question.asks.how}; give it with {'--file' if program else '--answer'}")
        if asked:
            return _check(practice.check(found.name, given.file if program else given.answer, given.seed, keep=True), found.name, given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if given.json:
        facts = {"name": found.name, "seed": given.seed, "title": found.title, "section": found.section, "sentence": found.sentence}
        more: dict[str, Any] = {"hint": question.hint} if given.hint else {}
        if given.solution:
            more = {"answer": question.asks.answer, "solution": question.solution}
        print_json({**facts, "problem": found.problem, "text": str(question), "kind": question.asks.kind, **question.asks.as_json(), **more})
    elif given.hint:
        _print(question.hint)
    elif given.solution:
        _print(practice.solution(found.name, given.seed))
    else:
        _ask(found, question, given.seed, program)
    return 0


def _list(as_json: bool) -> int:
    from .. import practice
    from ..practice import progress

    done = progress.answered()
    rows = [(each, done.get(each.name, [])) for each in practice.list()]
    if as_json:
        print_json(
            [{"name": each.name, "title": each.title, "section": each.section, "problem": each.problem, "answered": seeds} for each, seeds in rows]
        )
        return 0
    print_columns([("", "NAME", "ABOUT"), *(("done" if seeds else "", each.name, each.title) for each, seeds in rows)])
    print(f"\n{sum(bool(seeds) for *_, seeds in rows)} of {len(rows)} done. openadam practice NAME asks the question.")
    return 0


def _ask(found: Any, question: Any, seed: int, program: bool) -> None:
    command = f"openadam practice {found.name}{f' --seed {seed}' if seed else ''}"
    _print(f"{found.title}\n\n{found.source}\n\n{question}\n\n")
    rows = [("check it:", f"{command} {'--file my_adam.py' if program else '--answer …'}"), ("a hint:", f"{command} --hint")]
    print_columns([*rows, ("the solution:", f"{command} --solution")])


def _check(verdict: Any, name: str, given: argparse.Namespace) -> int:
    if given.json:
        print_json({"name": name, "seed": given.seed, **dataclasses.asdict(verdict)})
    else:
        _print(str(verdict))
    return 0 if verdict.right else 1


def _print(text: str) -> None:
    """Prose within the terminal, if it is narrow; control characters, which a program may have printed, as escapes."""
    from ..practice.model import reflowed

    width = min(88, shutil.get_terminal_size().columns) if sys.stdout is not None and sys.stdout.isatty() else 88
    print("\n".join(map(printable, reflowed(text, width).split("\n"))))
