"""The practices as notebooks: ``python -m openadam.practice.notebooks docs/practice`` writes them, from the same questions.

A notebook is written as plain JSON of format 4.5, always the same bytes for the same seed; ``--seed`` makes those of another student.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .applications import APPLICATIONS
from .model import Parts, Practice, reflowed
from .pitfalls import PITFALLS
from .principles import PRINCIPLES

__all__ = ["NOTEBOOKS", "main", "notebook"]

NOTEBOOKS: dict[str, tuple[str, tuple[Practice, ...]]] = {
    "1-principles": ("How Adam works", PRINCIPLES),
    "2-pitfalls": ("What goes wrong", PITFALLS),
    "3-applications": ("Games, switching targets, absent rows, reports", APPLICATIONS),
}
"""The notebooks by the names of their files: a title, and the practices."""

BEGIN = """{title}: hands-on practices with Adam. Put an answer in the place of `...` and run the cell; answers are judged by computation,
and right ones are remembered, as by the command `openadam practice`. The numbers are those of seed {seed}.

In the cells of hints and solutions, take the `#` away."""


def notebook(title: str, practices: Iterable[Practice], seed: int = 0) -> dict[str, Any]:
    """A notebook of some practices with the numbers of a seed.

    >>> from openadam import practice
    >>> from openadam.practice.notebooks import notebook
    >>> len(notebook("One of them", [practice.find("half-life")])["cells"])
    5
    """
    cells = [_markdown("begin", f"# {title}\n\n{BEGIN.format(title=title, seed=seed)}"), _code("import", "from openadam import practice")]
    for each in practices:
        cells += _cells(each, seed)
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cells(each: Practice, seed: int) -> list[dict[str, Any]]:
    question = each.question(seed)
    given = f'"{each.name}", {{}}, {seed}'
    what = question.asks.how if isinstance(question.asks, Parts) else "a function, or the path of a file"
    comment = "\n".join(f"# {line}" for line in reflowed(what, 100).splitlines())
    asked = f"## {each.title}\n\n> {each.sentence}\n\n*{each.section}*\n\n```text\n{reflowed(str(question))}\n```"
    return [
        _markdown(f"{each.name}-question", asked),
        _code(f"{each.name}-answer", f"{comment}\nanswer = ...\nprint(practice.attempt({given.format('answer')}))"),
        _code(f"{each.name}-help", f'# print(practice.hint("{each.name}", {seed}))\n# print(practice.solution("{each.name}", {seed}))'),
    ]


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def _code(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {}, "outputs": [], "source": text.splitlines(keepends=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the notebooks into a folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m openadam.practice.notebooks", description="Write the practices as notebooks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="which numbers (%(default)s)")
    given = parser.parse_args(arguments)
    if given.seed < 0:
        parser.error("a seed is a whole number, 0 or more")
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, (title, practices) in NOTEBOOKS.items():
        text = json.dumps(notebook(title, practices, given.seed), indent=1, ensure_ascii=False, sort_keys=True)
        path = given.folder / f"{name}.ipynb"
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
