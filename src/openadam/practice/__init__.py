"""Hands-on practices: questions about Adam with numbers drawn for them, hints from real traces, and answers judged by computation.

What the command ``openadam practice`` does, from Python:

>>> from openadam import practice
>>> [each.name for each in practice.list()][:3]
['moments', 'memory', 'half-life']
>>> print(practice.question("half-life", seed=2))  # doctest: +ELLIPSIS
A gradient enters m with its full weight, 1 - beta1, and then fades. ...
>>> practice.check("half-life", "steps", seed=2)
Traceback (most recent call last):
openadam.practice.model.AnswerError: 2 are asked for, short, long, and 1 given
"""

from __future__ import annotations

import difflib
from typing import Any

from . import progress
from .applications import APPLICATIONS
from .model import AnswerError, Practice, Question, Verdict, reflowed, whole_seed
from .pitfalls import PITFALLS
from .principles import PRINCIPLES

__all__ = [
    "CHAPTER",
    "AnswerError",
    "Practice",
    "Question",
    "Verdict",
    "attempt",
    "check",
    "find",
    "hint",
    "question",
    "solution",
]  # not list, which is Python's

CHAPTER: tuple[Practice, ...] = (*PRINCIPLES, *PITFALLS, *APPLICATIONS)
"""All practices, each building on those before it."""


def list() -> tuple[Practice, ...]:
    """All practices in their order.

    >>> from openadam import practice
    >>> practice.list()[1].title
    'Momentum remembers, and may disagree'
    """
    return CHAPTER


def find(name: str) -> Practice:
    """A practice by its name.

    Raises:
        ValueError: There is none of this name.
    """
    known = {each.name: each for each in CHAPTER}
    found = known.get(str(name).lower().replace("_", "-"))
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), known, 1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"there is no practice {name!r}; {meant}")
    return found


def question(name: str, seed: int = 0) -> Question:
    """A question with its numbers; ``print`` shows it.

    Args:
        name: One of `list`.
        seed: Which numbers: a whole number, 0 or more; the same question for the same seed everywhere.

    Raises:
        ValueError: There is no such practice, or the seed is none.

    >>> from openadam import practice
    >>> practice.question("one-step", seed=7).asks.kind
    '1 number'
    """
    return find(name).question(seed)


def check(name: str, answer: Any, seed: int = 0, *, keep: bool = False) -> Verdict:
    """Judge an answer.

    Args:
        name: The practice.
        answer: Text, a number, a sequence, or a mapping of the names of the parts; where a program is asked for, the path of a file, or a
            function, which is called in this process.
        seed: That of the question.
        keep: Remember a right answer, as the command does (``OPENADAM_PRACTICE_FILE``).

    Raises:
        AnswerError: It cannot be understood.
        ValueError: There is no such practice, or the seed is none.

    >>> from openadam import practice
    >>> practice.check("half-life", {"short": 3, "long": 23}, seed=1).right
    False
    """
    verdict = question(name, seed).check(answer)
    if keep and verdict.right:
        progress.keep(find(name).name, whole_seed(seed))
    return verdict


def attempt(name: str, answer: Any, seed: int = 0) -> str:
    """What is to be said of an answer, for notebooks: as `check`, and an answer that cannot be understood is no error; right ones are kept.

    >>> from openadam import practice
    >>> print(practice.attempt("half-life", ...))
    There is no answer yet; it has the form short, long (each a whole number).
    """
    try:
        return str(check(name, answer, seed, keep=True))
    except AnswerError as error:
        said = str(error)
        return f"{said[0].upper()}{said[1:]}."


def hint(name: str, seed: int = 0) -> str:
    """A hint: part of a trace, mostly of another problem.

    >>> from openadam import practice
    >>> print(practice.hint("half-life"))  # doctest: +ELLIPSIS
    A gradient of 1 and then none; ...
    """
    return reflowed(question(name, seed).hint)


def solution(name: str, seed: int = 0) -> str:
    """The right answer and why it is right, worked through.

    >>> from openadam import practice
    >>> print(practice.solution("half-life"))  # doctest: +ELLIPSIS
    Answer: ...
    """
    found = question(name, seed)
    answer = found.asks.answer
    return reflowed(found.solution if "\n" in answer else f"Answer: {answer}\n\n{found.solution}")
