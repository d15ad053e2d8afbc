"""What a practice is: a question with numbers drawn for it, what is asked, the mistakes that are known, and its answer.

A practice is one object. With a seed it gives a `Question`, which knows everything: its text, a hint, the worked solution, and
what it asks for (`Parts`, or a program, which is a `Task` of `programs`). Answers are judged by computation with a tolerance.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

__all__ = ["AnswerError", "Choice", "Draw", "Mistake", "Number", "Option", "Parts", "Practice", "Question", "Verdict", "practice", "reflowed"]

T = TypeVar("T")


class AnswerError(ValueError):
    """An answer that cannot be understood: it is neither right nor wrong."""


class Draw:
    """The numbers of a question, drawn from a seed: the same on every machine and version of Python."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random  # the one method whose sequence Python promises to keep

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def number(self, low: float, high: float, digits: int = 1) -> float:
        """A number with few digits, which is pleasant to work with."""
        return round(low + self._random() * (high - low), digits)

    def of(self, *values: T) -> T:
        """One of several."""
        return values[self.whole(0, len(values) - 1)]

    def sign(self) -> int:
        """1 or -1."""
        return self.of(1, -1)

    def shuffled(self, values: Iterable[T]) -> list[T]:
        """All of them, in another order."""
        pool = list(values)
        return [pool.pop(self.whole(0, len(pool) - 1)) for _ in range(len(pool))]


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what is to be said about it.

    >>> from openadam import practice
    >>> verdict = practice.check("half-life", "1, 1")
    >>> verdict.right, verdict.parts
    (False, (False, False))
    """

    right: bool
    message: str
    mistake: str | None = None
    """The known mistake by its name, if it is one."""
    parts: tuple[bool, ...] = ()
    """Which of the asked numbers are right."""

    def __str__(self) -> str:
        return self.message

    def __bool__(self) -> bool:
        return self.right


class Asked(Protocol):
    """What a question asks for."""

    @property
    def kind(self) -> str:
        """In a word or two: ``2 numbers``."""

    @property
    def how(self) -> str:
        """How to answer."""

    @property
    def answer(self) -> str:
        """The right answer, as it may be given."""

    def check(self, answer: Any) -> Verdict:
        """Judge an answer; raises AnswerError if it cannot be understood."""

    def is_telling(self) -> bool:
        """Whether the numbers tell every known mistake from the right answer, and from the other mistakes."""

    def as_json(self) -> dict[str, Any]:
        """What is asked, without the answer."""


@dataclass(frozen=True)
class Number:
    """A number that is asked for, and how near it must be given."""

    name: str
    value: float
    relative: float = 1e-3
    absolute: float = 0.0
    whole: bool = False

    @property
    def expects(self) -> str:
        if self.whole:
            return "a whole number"
        near = [f"{100 * self.relative:g} %"] if self.relative else []
        return f"a number, to {' or '.join([*near, *([f'{self.absolute:g}'] if self.absolute else [])])}"

    @property
    def answer(self) -> str:
        return f"{self.value:.0f}" if self.whole else f"{self.value:.7g}"

    def read(self, given: Any) -> float:
        """A number, also as a fraction or in percent."""
        text = str(given).strip().replace("\N{MINUS SIGN}", "-")
        numerator, slash, denominator = text.removesuffix("%").partition("/")
        try:
            number = float(numerator) / (float(denominator) if slash else 1.0) / (100.0 if text.endswith("%") else 1.0)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise AnswerError(f"{self.name}: {text!r:.60} is not a number") from None
        if not math.isfinite(number):
            raise AnswerError(f"{self.name}: {text!r:.60} is not a finite number")
        return number

    def meets(self, given: Any, value: Any) -> bool:
        """Whether what was given is this value, as nearly as is asked."""
        return bool(abs(given - value) <= max(0.0 if self.whole else self.relative * abs(value), self.absolute))

    def comment(self, given: float) -> str:
        """What can be said of a wrong number that is no known mistake."""
        if self.meets(-given, self.value):
            return "the size is right and the sign is not"
        if self.whole and abs(given - self.value) <= 1:
            return "it is near; count the steps once more, from t = 1"
        if not self.whole and abs(given - self.value) <= max(30 * self.relative * abs(self.value), 30 * self.absolute):
            return f"it is near, but not within the tolerance ({self.expects}); round only at the end"
        if self.value and given and self.meets(given * 10.0 ** round(math.log10(abs(self.value / given))), self.value):
            return "the digits are right and the point is not where it should be"
        return "work it through once more"


@dataclass(frozen=True)
class Option:
    """One of the answers to choose from; a wrong one says why it is wrong."""

    text: str
    why: str = ""
    right: bool = False


@dataclass(frozen=True)
class Choice:
    """A letter that is asked for."""

    name: str
    options: tuple[Option, ...]
    listed: bool = True
    """Whether the question lists the options here; several choices from the same options list them once."""

    @property
    def letters(self) -> str:
        return "abcdefghijklmnopqrstuvwxyz"[: len(self.options)]

    @property
    def expects(self) -> str:
        return f"a letter, a to {self.letters[-1]}"

    @property
    def value(self) -> str:
        return next(letter for letter, option in zip(self.letters, self.options, strict=True) if option.right)

    @property
    def answer(self) -> str:
        return self.value

    def read(self, given: Any) -> str:
        letter = str(given).strip().strip("'\"().").lower()
        if len(letter) != 1 or letter not in self.letters:
            raise AnswerError(f"{self.name}: {str(given).strip()!r:.60} is not {self.expects}")
        return letter

    def meets(self, given: Any, value: Any) -> bool:
        return bool(given == value)

    def comment(self, given: str) -> str:
        return self.options[self.letters.index(given)].why


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that tells how it came about: what each part then is; None where it is right all the same."""

    name: str
    why: str
    values: tuple[float | str | None, ...]


@dataclass(frozen=True)
class Parts:
    """Several numbers and choices, in an order, and the mistakes that are known."""

    parts: tuple[Number | Choice, ...]
    mistakes: tuple[Mistake, ...] = ()

    @property
    def kind(self) -> str:
        numbers, choices = ([part for part in self.parts if isinstance(part, kind)] for kind in (Number, Choice))
        named = [(len(numbers), "number"), (len(choices), "choice")]
        return ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in named if count)

    @property
    def how(self) -> str:
        order = ", ".join(part.name for part in self.parts)
        expected = list(dict.fromkeys(part.expects for part in self.parts))
        if len(expected) == 1:
            return f"{order} ({'each ' if len(self.parts) > 1 else ''}{expected[0]})"
        return f"{order} ({'; '.join(f'{part.name}: {part.expects}' for part in self.parts)})"

    @property
    def answer(self) -> str:
        return ", ".join(part.answer for part in self.parts)

    @property
    def options(self) -> str:
        """The options of the choices, each on a line."""
        listed = [choice for choice in self.parts if isinstance(choice, Choice) and choice.listed]
        pairs = [pair for choice in listed for pair in zip(choice.letters, choice.options, strict=True)]
        return "\n".join(textwrap.fill(option.text, 88, initial_indent=f"  {letter}  ", subsequent_indent="     ") for letter, option in pairs)

    def read(self, answer: Any) -> list[Any]:
        """The parts of an answer in their order: from text, a sequence, a mapping of names, or a single value."""
        if answer is None or answer is ... or (isinstance(answer, str) and not answer.strip()):
            raise AnswerError(f"there is no answer yet; it has the form {self.how}")
        if isinstance(answer, str):
            answer = self._pieces(answer)
        elif hasattr(answer, "tolist"):
            answer = answer.tolist()
        names = [part.name for part in self.parts]
        if isinstance(answer, Mapping):
            if set(answer) != set(names):
                raise AnswerError(f"there must be {', '.join(names)}, not {', '.join(map(str, answer))}")
            answer = [answer[name] for name in names]
        elif isinstance(answer, str) or not isinstance(answer, Sequence):
            answer = [answer]
        if len(answer) != len(names):
            raise AnswerError(f"{len(names)} {'is' if len(names) == 1 else 'are'} asked for, {', '.join(names)}, and {len(answer)} given")
        return [part.read(piece) for part, piece in zip(self.parts, answer, strict=True)]

    def _pieces(self, text: str) -> Any:
        text = re.sub(r"\s*([=/])\s*", r"\1", re.sub(r"[()\[\]{}]", " ", text))
        pieces = [piece for piece in re.split(r"[,;\s]+", text) if piece]
        if not any("=" in piece for piece in pieces):
            return pieces
        pairs = [piece.partition("=") for piece in pieces]
        if not all(equals for _, equals, _ in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
            raise AnswerError(f"write every part with its name, each once, or none: {', '.join(f'{part.name}=…' for part in self.parts)}")
        return {name: value for name, _, value in pairs}

    def check(self, answer: Any) -> Verdict:
        given = self.read(answer)
        right = tuple(part.meets(value, part.value) for part, value in zip(self.parts, given, strict=True))
        if all(right):
            return Verdict(True, "Right.", parts=right)
        wrong = [place for place, good in enumerate(right) if not good]
        found = [(mistake, self._explained(mistake, given, wrong)) for mistake in self.mistakes]
        best, explained = max(found, key=lambda pair: len(pair[1]), default=(None, []))  # of equals, the first
        said = []
        if best is not None and explained:
            values = ", ".join(f"{self.parts[place].name} = {_shown(given[place])}" for place in explained)
            said.append(f"{values}: {best.why}")
        for place in wrong:
            if place not in explained:
                comment = self.parts[place].comment(given[place])
                said.append(f"{self.parts[place].name} = {_shown(given[place])} is wrong{f': {comment}' if comment else ''}")
        return Verdict(False, f"Wrong. {'. '.join(said)}.", best.name if best is not None and explained else None, right)

    def _explained(self, mistake: Mistake, given: Sequence[Any], wrong: Sequence[int]) -> list[int]:
        """Which of the wrong parts a mistake explains; none if it gave another part than the one that is right."""
        return [
            place
            for place in wrong
            if (value := mistake.values[place]) is not None and self.parts[place].meets(given[place], value) and self._counts(mistake, place)
        ]

    def _counts(self, mistake: Mistake, place: int) -> bool:
        """Whether a mistake makes a difference at a place."""
        return not self.parts[place].meets(mistake.values[place], self.parts[place].value)

    def of_mistake(self, mistake: Mistake) -> list[Any]:
        """The answer of someone who makes this mistake."""
        return [part.value if value is None else value for part, value in zip(self.parts, mistake.values, strict=True)]

    def is_telling(self) -> bool:
        if any(sum(option.right for option in part.options) != 1 for part in self.parts if isinstance(part, Choice)):
            return False
        finite = all(isinstance(value, str) or value is None or math.isfinite(value) for mistake in self.mistakes for value in mistake.values)
        return finite and all(self.check(self.of_mistake(mistake)).mistake == mistake.name for mistake in self.mistakes)

    def as_json(self) -> dict[str, Any]:
        return {
            "parts": [
                {"name": part.name, "kind": "choice", "options": {x: option.text for x, option in zip(part.letters, part.options, strict=True)}}
                if isinstance(part, Choice)
                else {"name": part.name, "kind": "whole" if part.whole else "number", "relative": part.relative, "absolute": part.absolute}
                for part in self.parts
            ]
        }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.7g}"


@dataclass(frozen=True)
class Question:
    """A practice with its numbers: what it asks, a hint, the answer and why.

    >>> from openadam import practice
    >>> question = practice.question("first-step", seed=3)
    >>> question.check(question.asks.answer).right
    True
    """

    text: str
    asks: Asked
    hint: str
    solution: str
    lesson: str
    """What one knows who has answered it."""

    def check(self, answer: Any) -> Verdict:
        """Judge an answer.

        Raises:
            AnswerError: It cannot be understood.
        """
        verdict = self.asks.check(answer)
        return Verdict(True, f"{verdict.message} {self.lesson}", None, verdict.parts) if verdict.right else verdict

    def __str__(self) -> str:
        options = self.asks.options if isinstance(self.asks, Parts) else ""
        return reflowed("\n\n".join(part for part in (self.text, options, f"Answer: {self.asks.how}") if part))


def reflowed(text: str, width: int = 88) -> str:
    """Prose filled to a width; what is indented (formulas, tables, programs) is left as it is.

    >>> print(reflowed("one two three\\nfour\\n  m = 1", 12))
    one two
    three four
      m = 1
    """
    lines: list[str] = []
    for prose, group in itertools.groupby(text.splitlines(), lambda line: bool(line) and not line.startswith("  ")):
        paragraph = [*group]
        lines += textwrap.wrap(" ".join(paragraph), width, break_long_words=False, break_on_hyphens=False) if prose else paragraph
    return "\n".join(lines)


@dataclass(frozen=True)
class Practice:
    """One practice: its place in the article, and the function that poses it."""

    name: str
    title: str
    section: str
    sentence: str
    problem: str
    """The article's number of it, where it has one."""
    pose: Callable[[Draw], Question]

    def question(self, seed: int = 0) -> Question:
        """The question with the numbers of this seed: the first that tell all known mistakes apart."""
        for attempt in range(200):
            question = self.pose(Draw(f"{self.name} {seed} {attempt}"))
            if question.asks.is_telling():
                return question
        raise AssertionError(f"the numbers of {self.name!r} never tell its mistakes apart")

    @property
    def source(self) -> str:
        """The sentence with its place."""
        return f"“{self.sentence}”\n  ({self.section}{f', problem {self.problem}' if self.problem else ''})"


def practice(title: str, *, section: str, sentence: str, problem: str = "") -> Callable[[Callable[[Draw], Question]], Practice]:
    """Turn a function that poses a question into a practice of its name."""

    def decorate(pose: Callable[[Draw], Question]) -> Practice:
        return Practice(pose.__name__.replace("_", "-"), title, section, sentence, problem, pose)

    return decorate
