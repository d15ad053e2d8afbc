"""What a practice is: a question with numbers drawn for it, what is asked, the mistakes that are known, and its answer.

A practice is one object. With a seed it gives a `Question`, which knows everything: its text, a hint, the worked solution, and
what it asks for (`Parts`, or a program, which is a `Task` of `programs`). Answers are judged by computation with a tolerance.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

__all__ = [
    "AnswerError", "Choice", "Draw", "Mistake", "Number", "Option", "Parts", "Practice", "Question", "Verdict", "practice", "reflowed", "whole_seed",
]  # fmt: skip

T = TypeVar("T")


class AnswerError(ValueError):
    """An answer that cannot be understood: it is neither right nor wrong."""


def whole_seed(seed: Any) -> int:
    """A seed as a plain whole number, whatever type of whole number it is.

    Raises:
        ValueError: It is none, or below 0.
    """
    try:
        number = int(operator.index(seed))
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"a seed is a whole number, 0 or more, and not {seed!r:.60}")
    return number


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
    printed: bool = False
    """Whether it may stand in the question's text, as where a step is lr; otherwise no number that stands there is accepted."""

    @property
    def expects(self) -> str:
        if self.whole:
            return "a whole number"
        near = [f"{100 * self.relative:g} %"] if self.relative else []
        return f"a number, to {' or '.join([*near, *([_plain(self.absolute)] if self.absolute else [])])}"

    @property
    def answer(self) -> str:
        return f"{self.value:.0f}" if self.whole else f"{self.value:.7g}"

    def read(self, given: Any) -> float:
        """A number, also as a fraction, in percent, or with a comma for its point: what separates parts is gone already."""
        text = _tidied(str(given))
        if text.count(",") == 1 and "." not in text:
            text = text.replace(",", ".")
        numerator, slash, denominator = text.removesuffix("%").partition("/")
        try:
            number = float(numerator) / (float(denominator) if slash else 1.0) / (100.0 if text.endswith("%") else 1.0)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise AnswerError(f"{self.name}: {text!r:.60} is not a number") from None
        if not math.isfinite(number):
            raise AnswerError(f"{self.name}: {text!r:.60} is not a finite number")
        if self.whole and abs(number - round(number)) <= 1e-6 * max(1.0, abs(number)):
            return float(round(number))  # computed in floats, and meant as whole
        return number

    def meets(self, given: Any, value: Any) -> bool:
        """Whether what was given is this value, as nearly as is asked."""
        return bool(abs(given - value) <= max(0.0 if self.whole else self.relative * abs(value), self.absolute))

    def comment(self, given: float) -> str:
        """What can be said of a wrong number that is no known mistake."""
        if self.meets(-given, self.value):
            return "the size is right and the sign is not"
        if self.whole and given != round(given):
            return "it must be a whole number"
        if self.whole and abs(given - self.value) <= 1:
            return "it is near; read once more what is counted, and from where"
        tolerance = max(self.relative * abs(self.value), self.absolute)
        if not self.whole and abs(given - self.value) <= min(5 * tolerance, 0.05 * abs(self.value)):
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
        """A letter, or words with which only one option begins, or which only one has."""
        said = _words(str(given))
        if len(said) == 1 and said in self.letters:
            return said
        texts = [_words(option.text) for option in self.options]
        word = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)")
        fitting = [text for text in texts if text == said] or [
            text for text in texts if len(said) > 1 and (text.startswith(said) or word.search(text))
        ]
        if len(fitting) != 1:
            several = f" nor the words of one option: {len(fitting)} have them" if fitting else ""
            raise AnswerError(f"{self.name}: {str(given).strip()!r:.60} is not {self.expects}{several}")
        return self.letters[texts.index(fitting[0])]

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
        names = [part.name for part in self.parts]
        advice = ""
        if isinstance(answer, str):
            if re.search(r"\d,\d", answer):
                advice = "; write decimals with a point, or separate the parts by ;"
            answer = self._pieces(answer)
        elif hasattr(answer, "tolist"):
            answer = answer.tolist()
        if isinstance(answer, Mapping):
            named = {str(name).strip().casefold(): value for name, value in answer.items()}
            if set(named) != {name.casefold() for name in names} or len(named) != len(answer):
                raise AnswerError(f"there must be {', '.join(names)}, not {', '.join(map(str, answer))}")
            answer = [named[name.casefold()] for name in names]
        elif isinstance(answer, str) or not isinstance(answer, Sequence):
            answer = [answer]
        answer = _flat(answer)
        if len(answer) != len(names):
            raise AnswerError(f"{len(names)} {'is' if len(names) == 1 else 'are'} asked for, {', '.join(names)}, and {len(answer)} given{advice}")
        return [part.read(piece) for part, piece in zip(self.parts, answer, strict=True)]

    def _pieces(self, text: str) -> Any:
        """What stands between separators: the first kind of them that makes as many pieces as there are parts, or all kinds."""
        text = _tidied(re.sub(r"[()\[\]{}]", " ", text))
        if len(self.parts) == 1 and re.fullmatch(r"(\w+[=:])?[-+]?\d+,\d+%?", text):
            return self._named([text])  # a single number, so its comma is a point
        pieces: list[str] = []
        for separators in (*([";"] if ";" in text else []), ",|;", r"[,;\s]+"):
            pieces = [piece.strip() for piece in re.split(separators, text) if piece.strip()]
            if len(pieces) == len(self.parts):
                break
        if len(pieces) == 1 and len(pieces[0]) == len(self.parts) and all(isinstance(part, Choice) for part in self.parts):
            return [*pieces[0]]  # letters, run together
        return self._named(pieces)

    def _named(self, pieces: list[str]) -> Any:
        pairs = [re.fullmatch(r"['\"]?(\w+)['\"]?[=:](.*)", piece, flags=re.DOTALL) for piece in pieces]
        if not any(pairs):
            return pieces
        named = {pair[1].casefold(): pair[2] for pair in pairs if pair}
        if len(named) < len(pairs):
            raise AnswerError(f"write every part with its name, each once, or none: {', '.join(f'{part.name}=…' for part in self.parts)}")
        return named

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

    def accepts(self, number: float) -> bool:
        """Whether a number is accepted for a part that should not stand in the question's text; whole ones are too few to be avoided."""
        numbers = (part for part in self.parts if isinstance(part, Number) and not part.whole and not part.printed)
        return any(part.meets(number, part.value) for part in numbers)

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


def _plain(number: float) -> str:
    """A small number without an exponent, unless it is very small."""
    return f"{number:.7f}".rstrip("0") if 1e-7 <= number < 1 else f"{number:g}"


def _tidied(text: str) -> str:
    """Without the spaces that people put around signs, =, /, and before %."""
    text = re.sub(r"\s*([=:/])\s*", r"\1", text.strip().replace("\N{MINUS SIGN}", "-"))
    return re.sub(r"(^|[,;=:])(\s*)([-+])\s+", r"\1\2\3", re.sub(r"\s+%", "%", text))


def _words(text: str) -> str:
    """For comparing what is said with an option: without brackets, quotes, capitals, and more than one space."""
    return " ".join(_tidied(re.sub(r"[()\[\]{}`'\".]", " ", text)).split()).casefold()


def _flat(values: Iterable[Any], depth: int = 3) -> list[Any]:
    """What stands in lists within lists, in its order."""
    flat: list[Any] = []
    for value in values:
        inner = value.tolist() if hasattr(value, "tolist") else value
        flat += _flat(inner, depth - 1) if depth and isinstance(inner, (list, tuple)) else [inner]
    return flat


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
        if not verdict.right:
            return verdict
        said, gap, printed = verdict.message.partition("\n")
        return Verdict(True, f"{said} {self.lesson}{gap}{printed}", None, verdict.parts)

    def is_telling(self) -> bool:
        """Whether the numbers tell all known mistakes apart, and none that stands in the text is the answer or near it."""
        written = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", self.text)
        return self.asks.is_telling() and not (isinstance(self.asks, Parts) and any(self.asks.accepts(float(number)) for number in written))

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
    """The number of the exercise that the article names for it, if it names one; of several, joined by commas."""
    pose: Callable[[Draw], Question]

    def question(self, seed: int = 0) -> Question:
        """The question with the numbers of this seed: the first that tell all known mistakes apart."""
        seed = whole_seed(seed)
        for attempt in range(200):
            question = self.pose(Draw(f"{self.name} {seed} {attempt}"))
            if question.is_telling():
                return question
        raise AssertionError(f"the numbers of {self.name!r} never tell its mistakes apart")

    @property
    def source(self) -> str:
        """The sentence with its place."""
        several = "," in self.problem
        named = f"\n  (the exercise{'s' * several} that the article numbers {self.problem.replace(', ', ' and ')})" if self.problem else ""
        return f"“{self.sentence}”\n  ({self.section}){named}"


def practice(title: str, *, section: str, sentence: str, problem: str = "") -> Callable[[Callable[[Draw], Question]], Practice]:
    """Turn a function that poses a question into a practice of its name."""

    def decorate(pose: Callable[[Draw], Question]) -> Practice:
        return Practice(pose.__name__.replace("_", "-"), title, section, sentence, problem, pose)

    return decorate
