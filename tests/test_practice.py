"""The practices: right answers are right, wrong ones wrong, known mistakes are named; programs, progress, notebooks, the command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import python

import openadam
from openadam import cli, practice, rules
from openadam.practice import notebooks, programs, progress, runs
from openadam.practice.model import Choice, Draw, Number, Option, Parts, reflowed
from openadam.practice.programs import Task
from openadam.practice.wrong import WRONG, adam_but

ROOT = Path(__file__).resolve().parent.parent
NAMES = [each.name for each in practice.list()]
SEEDS = (0, 1, 20150507)
ARTICLE = {"2152288", "2152284", "2152271", "2152278", "2152272", "2152248", "3095785", "2152280", "2152236", "2152259"}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Progress goes to a file of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENADAM_PRACTICE_FILE", str(tmp_path / "kept" / "practice.json"))
    return tmp_path / "kept" / "practice.json"


@pytest.fixture
def run(capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        code = cli.main(arguments)
        return (code, *capsys.readouterr())

    return run


QUESTIONS: dict[tuple[str, int], Any] = {}


def asked(name: str, seed: int) -> Any:
    """The question, posed once."""
    if (name, seed) not in QUESTIONS:
        QUESTIONS[name, seed] = practice.question(name, seed)
    return QUESTIONS[name, seed]


def answer_of(question: Any) -> Any:
    """The right answer as a student would give it: a program's, as a function, so that it needs no process."""
    return compiled(question.asks.answer) if isinstance(question.asks, Task) else question.asks.answer


def compiled(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["step"]


# --- every practice ----------------------------------------------------------------------------------------------------


def test_the_chapter():
    """What the practices cover, in an order in which each builds on the last: the article's problems, and its sections."""
    assert len(NAMES) == len(set(NAMES)) >= 16
    problems = {number for each in practice.list() for number in re.findall(r"\d+", each.problem)}
    assert problems == ARTICLE
    page = (ROOT / "docs" / "article.md").read_text(encoding="utf-8")
    headings = {*re.findall(r"^### (.*)$", page, flags=re.MULTILINE), "Introduction", "The Core Idea: Combining Momentum and Adaptive Learning Rates"}
    for each in practice.list():
        assert each.section in headings, each.name
        assert len(each.sentence) > 20
    assert sum(name.startswith("find-") for name in NAMES) >= 3
    assert sum(isinstance(asked(name, 0).asks, Task) for name in NAMES) >= 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_its_own_solution_is_right(name, seed):
    question = asked(name, seed)
    verdict = question.check(answer_of(question))
    assert verdict.right
    assert verdict
    assert verdict.mistake is None
    assert question.lesson in str(verdict)
    for text in (question.text, question.hint, question.solution):
        assert text.strip()
        assert not re.search(r"\bnan\b", text)
        assert "{" not in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_known_mistake_is_named(name, seed):
    question = asked(name, seed)
    if isinstance(question.asks, Task):
        for mistake, says, _ in question.asks.mistakes:
            if mistake in WRONG:
                wrong = runs.source(WRONG[mistake].rule, ", ".join(question.asks.arguments), question.asks.results)
                verdict = question.check(compiled(wrong))
                assert (verdict.right, verdict.mistake) == (False, mistake)
                assert says in str(verdict)
        assert len(question.asks.mistakes) >= 3
    else:
        for mistake in question.asks.mistakes:
            verdict = question.check(question.asks.of_mistake(mistake))
            assert (verdict.right, verdict.mistake) == (False, mistake.name)
            assert mistake.why in str(verdict)
        for part in question.asks.parts:
            if isinstance(part, Choice):
                for letter, option in zip(part.letters, part.options, strict=True):
                    assert bool(option.why) != option.right
                    verdict = question.check({**dict(zip(names_of(question), question.asks.answer.split(", "), strict=True)), part.name: letter})
                    assert verdict.right == option.right
                    assert option.right or option.why in str(verdict)


def names_of(question: Any) -> list[str]:
    return [part.name for part in question.asks.parts]


CHANGES = [
    ("beta1*m", "beta2*m"), ("(1 - beta1)*g", "(1 + beta1)*g"), ("g**2", "g**3"), ("return ", "return -"), ("beta2*v", "beta1*v"),
    ("+ (1 - beta2)", "- (1 - beta2)"), ("(1 - beta1)*g", "beta1*g"), ("beta1*m", "1.0001*beta1*m"), ("g**2", "abs(g)"), ("beta1*m + ", ""),
]  # fmt: skip
"""What makes a right program wrong."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_ten_wrong_answers_are_wrong(name, seed):
    question = asked(name, seed)
    if isinstance(question.asks, Task):
        for old, new in CHANGES:
            assert old in question.asks.answer
            assert not question.check(compiled(question.asks.answer.replace(old, new))).right, (old, new)
        return
    values, draw = [part.value for part in question.asks.parts], Draw(f"{name} {seed}")
    for turn in range(10):
        given = list(values)
        place = turn % len(values)
        part = question.asks.parts[place]
        if isinstance(part, Choice):
            given[place] = next(x for x in draw.shuffled(part.letters) if x != part.value)
        elif part.whole:
            given[place] += draw.of(1, 2, 3) * draw.sign()
        else:
            given[place] += draw.sign() * (3 * max(part.relative * abs(part.value), part.absolute) + draw.number(0, 1, 6) * abs(part.value))
        verdict = question.check(given)
        assert not verdict.right
        assert str(verdict).startswith("Wrong. ")
        assert verdict.parts == tuple(i != place for i in range(len(values)))


@pytest.mark.parametrize("name", NAMES)
def test_seeds_draw_other_numbers_and_the_same_ones_again(name):
    assert str(practice.question(name, 1)) == str(asked(name, 1))
    drawn = {str(asked(name, seed)) + str(asked(name, seed).asks) for seed in SEEDS}
    assert len(drawn) == len(SEEDS)


@pytest.mark.parametrize("seed", [3.0, "2", None, -1, np.int64(-1), np.float64(2), [1], np.True_], ids=repr)
@pytest.mark.parametrize("ask", [practice.question, practice.hint, lambda name, seed: practice.attempt(name, "3, 7", seed)])
def test_a_seed_that_is_no_whole_number_is_refused(ask, seed, kept):
    with pytest.raises(ValueError, match="a seed is a whole number, 0 or more, and not "):
        ask("half-life", seed)
    assert not kept.exists()


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_any_type_of_whole_number_is_a_seed(seed, kept):
    assert practice.question("one-step", seed).text == asked("one-step", 3).text
    assert practice.attempt("one-step", asked("one-step", 3).asks.answer, seed).startswith("Right.")
    assert progress.answered() == {"one-step": [3]}
    assert practice.question("one-step", True).text == practice.question("one-step", 1).text


PRINTED = {
    ("adaptivity", "a"), ("adaptivity", "b"), ("scale", "a"), ("half-precision", "eps"), ("non-convergence", "adam"), ("non-convergence", "amsgrad"),
    ("reset", "all"),
}  # fmt: skip
"""Answers that are numbers of the question, as where a step is lr."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("write-moments", "write-adam", "repair", "report")])
def test_no_number_that_the_question_prints_is_an_answer(name):
    """Such as the place before the step, where the place after it is asked for; whole numbers are too few for that."""
    for seed in range(25):
        question = asked(name, seed)
        numbers = {float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", question.text)}
        for part in question.asks.parts:
            if isinstance(part, Number) and not part.whole and (name, part.name) not in PRINTED:
                assert not [number for number in numbers if part.meets(number, part.value)], (seed, part)
            assert getattr(part, "printed", False) == ((name, part.name) in PRINTED)


@pytest.mark.parametrize("name", ["one-step", "find-correction", "find-memory", "find-last-line"])
def test_tolerance_is_a_share_of_the_step(name):
    """The place before the step, a step the other way, and one that is a twentieth too long are refused, whatever the seed."""
    for seed in range(40):
        question = asked(name, seed)
        (part,) = (part for part in question.asks.parts if isinstance(part, Number))
        (before,) = (mistake for mistake in question.asks.mistakes if mistake.name == "before")
        before, right = before.values[-1], part.value
        assert f"{before:.6g}" in question.text
        step = right - before
        for wrong in (before, before - step, before + 0.95 * step, before + 1.05 * step):
            verdict = question.check(f"{'a,' if len(question.asks.parts) > 1 else ''}{wrong!r}")
            assert not verdict.parts[-1], (seed, wrong)
        assert 0.9e-3 <= part.absolute / abs(step) <= 1.1e-2
        assert part.relative == 0


def test_what_was_once_accepted_is_refused():
    """The place before the step, of an earlier draw of this question; and an angle of turning, taken for a lag."""
    assert not practice.check("find-memory", "a, 2.30742").right
    for seed in range(60):
        question = asked("phase-lag", seed)
        degrees = re.search(r"turns by ([\d.]+) degrees", " ".join(question.text.split()))[1]
        assert not question.check(f"{degrees}, {question.asks.parts[1].answer}").right


@pytest.mark.parametrize(
    "name",
    ["first-step", "flat-region", "find-correction", "find-memory", "find-last-line", "find-counter", "cure", "game", "absent-rows", "report"],
)
def test_what_is_right_depends_on_the_seed(name):
    """No choice has the same option right, or at the same letter, for every student."""
    for place, part in enumerate(asked(name, 0).asks.parts):
        if isinstance(part, Choice):
            chosen = [asked(name, seed).asks.parts[place] for seed in range(25)]
            texts = [next(option.text for option in choice.options if option.right) for choice in chosen]
            assert max(map(texts.count, texts)) <= 20
            assert len({choice.value for choice in chosen}) > 1


def test_no_title_names_a_mistake():
    for each in practice.list():
        if each.name.startswith("find-"):
            rights = {next(option.text for option in asked(each.name, seed).asks.parts[0].options if option.right) for seed in range(25)}
            assert len(rights) >= 3


def test_all_settings_are_said():
    for name, settings in {
        "game": ("lr", "beta2", "eps"), "absent-rows": ("lr", "beta1", "beta2", "eps"), "non-convergence": ("lr", "beta1", "beta2", "eps"),
        "cure": ("lr", "beta1", "beta2", "eps"), "find-counter": ("lr", "beta1", "beta2", "eps"),
    }.items():  # fmt: skip
        for setting in settings:
            assert f"{setting} = " in " ".join(asked(name, 0).text.split()), (name, setting)


def test_numbers_are_the_same_on_every_machine():
    """Golden values: what a seed draws must not change with Python or with the machine."""
    draw = Draw("golden")
    assert [draw.whole(1, 6) for _ in range(5)] == [5, 3, 2, 1, 3]
    assert "".join(draw.shuffled("abcde")) == "eabdc"
    assert asked("half-life", 1).asks.answer == "3, 16"


def test_the_article_s_numbers_are_what_hints_show():
    assert "m3 = 0.8*2.2 + (1 - 0.8)*8 = 3.36" in practice.hint("memory")
    assert "= 0.04755625" in practice.hint("squares")
    assert "= 3.162277" in practice.hint("first-step")
    assert "m2 = 0.9*10 + (1 - 0.9)*(-1) = 8.9" in practice.hint("stale")


def test_answers_agree_with_the_article_where_its_numbers_are_drawn():
    """The answers of practices whose truth the tests of the article have in closed form."""
    for seed in range(4):
        ratio = asked("first-step", seed)
        beta1, beta2 = map(float, re.findall(r"beta\d = ([\d.]+\d)", ratio.text))
        assert ratio.asks.parts[0].value == pytest.approx((1 - beta1) / (1 - beta2) ** 0.5, rel=1e-9)
        flat = asked("flat-region", seed)
        beta1, beta2 = map(float, re.findall(r"beta\d = ([\d.]+\d)", flat.text))
        assert flat.asks.parts[0].value == pytest.approx(beta1 / beta2**0.5, rel=1e-9)
        steady, _, swinging = (part.value for part in asked("adaptivity", seed).asks.parts)
        beta1 = float(re.search(r"beta1 = ([\d.]+\d)", asked("adaptivity", seed).text)[1])
        assert swinging / steady == pytest.approx((1 - beta1) / (1 + beta1), rel=1e-4)


# --- the wrong optimizers ----------------------------------------------------------------------------------------------


def test_without_a_mistake_it_is_adam():
    """The same graph, so that what a wrong optimizer does otherwise is the mistake and nothing else."""
    assert rules.update_program(adam_but().trace()).digest == rules.update_program(rules.adam.trace()).digest
    digests = [rules.update_program(wrong.rule.trace()).digest for wrong in WRONG.values()]
    assert len({*digests, rules.update_program(rules.adam.trace()).digest}) == len(WRONG) + 1


def test_they_are_marked_as_wrong():
    from openadam.practice import wrong

    assert wrong.__doc__.startswith("WRONG")
    assert adam_but.__doc__.startswith("WRONG")
    assert not set(WRONG) & set(openadam.MEMBERS)


# --- reading answers ---------------------------------------------------------------------------------------------------

PARTS = Parts((Number("a", 0.25), Number("b", -3.0), Choice("c", (Option("no, it is not", "it is not"), Option("yes, it is right", right=True)))))


@pytest.mark.parametrize(
    "answer",
    [
        "0.25, -3, b", "1/4; -3.0; B", "25% -3 b", "(0.25, -3, b)", "b=-3, a=0.25, c=b", "a = 1 / 4, b = -3, c = (b)", "2.5e-1,\N{MINUS SIGN}3,'b'",
        "25 %, - 3, b", "25 % -3 b", "0,25; -3; b", "a = 0,25; b: - 3; C: b", "A=0.25, B=-3, C=B", "c: yes, a: 0.25, b: -3.0", "0.25 -3 YES",
        "0.25, -3, ye",
        "{'a': 0.25, 'b': -3, 'c': 'b'}", "0.25; -3; it is right", [[0.25, -3], ["b"]], ((0.25,), [-3, "yes"]),
        ["0,25", "- 3", "b"], [np.array([0.25, -3.0]), "b"], {"A": 0.25, "B": -3, "C": "B"},
        (0.25, -3, "b"), [np.float64(0.25), np.int64(-3), "b"], {"c": "b", "b": -3, "a": "0.25"},
    ],
    ids=str,
)  # fmt: skip
def test_answers_may_be_written_in_many_ways(answer):
    assert PARTS.check(answer).right


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (..., "no answer yet"), (None, "no answer yet"), ("  ", "no answer yet"),
        ("0.25, -3", "3 are asked for, a, b, c, and 2 given"), ("1,2,3,4", "4 given"), (0.25, "1 given"),
        ("x, -3, b", "a: 'x' is not a number"), ("nan, -3, b", "not a finite number"), ("1e999, -3, b", "not a finite number"),
        ("1/0, -3, b", "not a number"), ("0.25, -3, z", "c: 'z' is not a letter, a to b"), ("0.25, -3, ab", "is not a letter"),
        ("0.25; -3; is", "nor the words of one option"), ("0.25, -3, no, b", "4 given"), ("0,25, -3, b", "4 given; write decimals with a point"),
        ("1 2, -3, b", "'1 2' is not a number"), ({"a": 1, "A": 2, "b": 3, "c": "b"}, "there must be a, b, c"), ("3 - 1 b", "and 4 given"),
        ([[[[[0.25]]]], -3, "b"], "is not a number"),
        ("a=1, b=2, x=b", "there must be a, b, c"), ("a=1, a=2, c=b", "each once"), ("a=1, 2, b", "with its name"),
        ({"a": 1}, "there must be a, b, c"), ([None, None, None], "is not a number"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_answer_is_said_so(answer, message):
    with pytest.raises(practice.AnswerError, match=re.escape(message)):
        PARTS.check(answer)


def test_a_single_number_may_have_a_decimal_comma():
    one = Parts((Number("p3", -1.431),))
    for answer in (
        "-1,431",
        "- 1,431",
        "p3: -1,431",
        "P3 = \N{MINUS SIGN}1.431",
        "-143.1 %",
        "-143,1%",
        "-1431/1000",
        "(-1.431)",
        -1.431,
        [[-1.431]],
    ):
        assert one.check(answer).right, answer
    with pytest.raises(practice.AnswerError, match="2 given"):
        one.check("-1, 431")


def test_letters_may_be_run_together():
    question = asked("report", 0)
    letters = "".join(part.value for part in question.asks.parts)
    assert question.check(letters).right
    assert question.check(" ".join(letters)).right
    assert question.check(f"A={letters[0]},b={letters[1]};C: {letters[2].upper()}").right
    with pytest.raises(practice.AnswerError):
        question.check(f"{letters}a")


def test_an_option_may_be_told_by_its_words():
    choice = asked("first-step", 0).asks.parts[1]
    assert [choice.read(text) for text in ("larger", "Smaller", "as large", "as", "small", "b", " (B). ")] == ["a", "b", "c", "c", "b", "b", "b"]
    for several in ("large", "a or b", "", "x", "the"):
        with pytest.raises(practice.AnswerError):
            choice.read(several)
    for name in NAMES:
        for part in getattr(asked(name, 1).asks, "parts", ()):
            if isinstance(part, Choice):
                assert [part.read(option.text) for option in part.options] == [*part.letters]


def test_part_names_differ_without_their_capitals():
    for name in NAMES:
        names = [part.name.casefold() for part in getattr(asked(name, 0).asks, "parts", ())]
        assert len(set(names)) == len(names)


ANYTHING = st.one_of(
    st.text(max_size=40),
    st.text("0123456789.,;/%=abc ()-e", max_size=30),
    st.lists(st.none() | st.floats() | st.text(max_size=5), max_size=4),
)


@given(ANYTHING)
def test_whatever_is_given_is_judged_or_not_understood(answer):
    with contextlib.suppress(practice.AnswerError):
        assert str(PARTS.check(answer)).startswith(("Right.", "Wrong."))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("-0.25, -3, b", "a = -0.25 is wrong: the size is right and the sign is not"),
        ("0.2505, -3, b", "it is near, but not within the tolerance (a number, to 0.1 %)"),
        ("0.2515, -3, b", "a = 0.2515 is wrong: work it through once more"),
        ("2.5, -3, b", "the point is not where it should be"),
        ("0.25, 7, a", "b = 7 is wrong: work it through once more. c = a is wrong: it is not."),
    ],
)
def test_what_is_wrong_is_said(answer, message):
    assert message in str(PARTS.check(answer))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_far_is_not_called_near(name):
    for part in getattr(asked(name, 0).asks, "parts", ()):
        if isinstance(part, Number) and not part.whole:
            for share in (0.06, 0.2, 0.4, 0.6):
                assert "near" not in part.comment(part.value * (1 + share))
                assert "near" not in part.comment(part.value * (1 - share))


@pytest.mark.parametrize("given", [3 * (1 - 1e-16), 2.9999999, 3.0000001, "8.9999999/3", np.float64(3), np.nextafter(3, 4)])
def test_a_whole_number_may_be_computed_in_floats(given):
    assert Parts((Number("n", 3.0, whole=True),)).check(given).right


def test_a_whole_number_must_be_whole():
    assert str(practice.check("half-life", "2.79, 3", 1)) == (
        "Wrong. short = 2.79 is wrong: it must be a whole number. long = 3 is wrong: work it through once more."
    )
    near = str(practice.check("half-life", "2, 16", 1))
    assert "it is near; read once more what is counted" in near
    assert "t = 1" not in near


def test_half_precision():
    """Four digits are enough, as long as the number as written is not accepted; and half the smallest subnormal is rounded up."""
    for seed in range(25):
        question = asked("half-precision", seed)
        eps, beta1, beta2, g = (part.value for part in question.asks.parts)
        assert question.check([eps, round(beta1, 4), round(beta2, 4), g]).right
        written = {setting: float(re.search(rf"{setting} = ([\d.]+\d)", question.text)[1]) for setting in ("beta1", "beta2")}
        assert question.check([eps, written["beta1"], written["beta2"], g]).parts[1:3] == (False, False)
        assert question.check([eps, beta1, beta2, g * 2**0.5]).mistake == "smallest subnormal"


def test_tolerance_is_what_is_stated():
    assert Number("a", 1.0, 0.0, 5e-5).expects == "a number, to 0.00005"
    number = Number("a", 2.0, 1e-3)
    assert number.meets(2.0019, 2.0)
    assert not number.meets(2.0021, 2.0)
    assert Number("a", 3.0, whole=True).meets(3.0, 3.0)
    assert not Number("a", 3.0, whole=True).meets(3.0001, 3.0)
    assert Number("a", 0.0, 0.0, 1e-6).meets(-9e-7, 0.0)


def test_text_is_filled_and_what_is_indented_stays():
    text = "word " * 30 + "\nmore\n\n  a   table   of   some   columns   that   is   long\n"
    assert max(map(len, reflowed(text, 40).splitlines()[:5])) <= 40
    assert "\n  a   table   of   some   columns   that   is   long" in reflowed(text, 40)


# --- programs ----------------------------------------------------------------------------------------------------------

RIGHT = practice.question("write-moments").asks.answer
SIGNATURE = "def step(g, m, v, beta1, beta2):\n"


def judged(tmp_path, source, name="write-moments"):
    path = tmp_path / "mine.py"
    path.write_text(source)
    return practice.check(name, path)


@pytest.mark.parametrize("name", ["write-moments", "write-adam", "repair"])
def test_the_printed_program_is_right_in_a_process(tmp_path, name):
    assert judged(tmp_path, practice.question(name).asks.answer, name).right


@pytest.mark.parametrize(
    ("source", "right", "message"),
    [
        (RIGHT + "print('hello')\nprint('\\x1b[31mred')\n", True, "It printed:\n    hello"),
        ("import numpy as np\n" + RIGHT.replace("return m, v", "return np.array([m, v])"), True, "Right"),
        (RIGHT.replace("return m, v", "return v, m"), False, "should be"),
        (RIGHT.replace("g**2", "abs(g)"), False, WRONG["square"].says),
        (SIGNATURE + "    while True: pass\n", False, "did not end within"),
        ("while True: print('x' * 10000)\n", False, "did not end within"),
        (SIGNATURE + "    return 1/0, 2\n", False, "raised ZeroDivisionError: division by zero in line 2"),
        (SIGNATURE + "    raise SystemExit(0)\n", False, "raised SystemExit: 0 in line 2"),
        (SIGNATURE + "    raise SystemExit\n", False, "raised SystemExit in line 2"),
        ("import os\n" + SIGNATURE + "    os._exit(0)\n", False, "ended before it returned anything"),
        ("import openadam\n" + SIGNATURE + "    return 1, 2\n", False, "the practice is to write it yourself in line 1"),
        (SIGNATURE + "    from openadam.practice import solution\n    return 1, 2\n", False, "write it yourself in line 2"),
        (SIGNATURE + "    return m\n", False, "it must return m, v, each a number"),
        (SIGNATURE + "    return 'm', 'v'\n", False, "it must return m, v"),
        (SIGNATURE + "    return float('nan'), float('inf')\n", False, "and is nan"),
        ("def step(g):\n    return 1, 2\n", False, "raised TypeError"),
        (SIGNATURE + "    return input(), 2\n", False, "raised EOFError"),
        ("import sys\nsys.setrecursionlimit(10**6)\n" + SIGNATURE + "    return step(g, m, v, beta1, beta2)\n", False, "Wrong. The program"),
    ],
    ids=lambda value: ascii(value)[-40:] if isinstance(value, str) else "",
)  # fmt: skip
def test_programs(tmp_path, monkeypatch, source, right, message):
    monkeypatch.setattr(programs, "SECONDS", 3.0 if "while" in source else 20.0)
    verdict = judged(tmp_path, source)
    assert verdict.right == right
    assert message in str(verdict)


@pytest.mark.parametrize(
    ("source", "message"),
    [("def step(g:\n", "no Python that can be run"), ("x = 1\n", "no function `step`"), ("step = 3\n", "no function `step`"), ("\0", "no Python")],
    ids=ascii,
)
def test_files_that_are_no_program_are_not_understood(tmp_path, source, message):
    with pytest.raises(practice.AnswerError, match=message):
        judged(tmp_path, source)


def test_a_program_leaves_nothing_behind(tmp_path, monkeypatch):
    """What it starts ends with it, and it may import a file that lies beside it."""
    monkeypatch.setattr(programs, "SECONDS", 3.0)
    (tmp_path / "helper.py").write_text("WEIGHT = 1\n")
    child = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60); open(\"late\", \"w\")'])\n"
    begin = time.monotonic()
    assert judged(tmp_path, f"import helper\n{child}{RIGHT}").right
    assert time.monotonic() - begin < 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper.py", "mine.py"]


def test_functions_and_source_are_answers_too():
    assert practice.check("write-moments", compiled(RIGHT)).right
    assert practice.check("write-moments", RIGHT).right
    assert "raised TypeError" in str(practice.check("write-moments", lambda g: 0))
    for nothing in (..., None, "", "missing.py", 7):
        with pytest.raises(practice.AnswerError):
            practice.check("write-moments", nothing)
    with pytest.raises(practice.AnswerError, match="it is a directory, not a file"):
        practice.check("write-moments", os.curdir)


def test_a_function_that_ends_the_process_ends_only_itself():
    verdict = practice.check("write-adam", lambda *_: sys.exit())
    assert (verdict.right, str(verdict)) == (False, "Wrong. The function raised SystemExit.")
    assert "raised SystemExit." in practice.attempt("write-adam", lambda *_: sys.exit(None))

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        practice.check("write-adam", interrupted)


@pytest.mark.parametrize("name", ["write-moments", "write-adam", "repair"])
@pytest.mark.parametrize("seed", range(4))
def test_float32_is_named(name, seed):
    """A right program in float32 is told what it is, and one with a mistake its mistake."""
    task = practice.question(name, seed).asks

    def in_single(source):
        step = compiled(source)
        return lambda *given: step(*map(np.float32, given))

    verdict = task.check(in_single(task.answer.replace("from math import sqrt", "from numpy import sqrt")))
    assert (verdict.right, verdict.mistake) == (False, "float32")
    assert "it seems to be computed in float32" in str(verdict)
    wrong = runs.source(WRONG["betas"].rule, ", ".join(task.arguments), task.results).replace("from math import sqrt", "from numpy import sqrt")
    assert task.check(in_single(wrong)).mistake == ("betas" if name != "repair" else task.check(compiled(wrong)).mistake)


def test_numbers_that_differ_are_shown_so():
    task = practice.question("write-moments").asks
    verdict = task.check(compiled(task.answer.replace("beta1*m", "1.00002*beta1*m")))
    expected, found = re.search(r"should be (\S+), and is (\S+)\.$", str(verdict)).groups()
    assert verdict.mistake is None
    assert expected != found


def test_what_a_program_printed_is_shown_as_it_is(run, tmp_path):
    (tmp_path / "mine.py").write_text(RIGHT + "print('one  two\\nthree\\n\\n  four')\n")
    out = run("practice", "write-moments", "--file", "mine.py")[1]
    assert out.endswith("It printed:\n    one  two\n    three\n\n      four\n")
    assert out.startswith("Right: on 17 steps, to 1e-9. This is half of Adam.")


def test_the_child_knows_no_answers():
    """The work that is sent to the process holds the gradients, not the results; and the file that runs there imports nothing of ours."""
    task = practice.question("write-adam").asks
    assert set(task._work()) == {"function", "arguments", "results", "cases"}
    source = Path(programs.child.__file__).read_text()
    assert re.findall(r"^(?:import|from) (\S+)", source, flags=re.MULTILINE) == [
        "__future__",
        "io",
        "json",
        "os",
        "sys",
        "traceback",
        "collections.abc",
        "typing",
    ]


# --- progress ----------------------------------------------------------------------------------------------------------


def right(name="half-life", seed=0):
    return practice.question(name, seed).asks.answer


def test_progress_is_kept(run, kept):
    assert "0 of 28 done" in run("practice")[1]
    assert run("practice", "half-life", "--answer", "1, 1")[0] == 1
    assert not kept.exists()
    assert run("practice", "half-life", "--answer", right())[0] == 0
    assert run("practice", "half-life", "--seed", "7", "--answer", right(seed=7))[0] == 0
    assert run("practice", "half-life", "--seed", "7", "--answer", right(seed=7))[0] == 0
    assert progress.answered() == {"half-life": [0, 7]}
    out = run("practice")[1]
    assert "1 of 28 done" in out
    assert re.search(r"^done  half-life", out, flags=re.MULTILINE)
    assert [path.name for path in kept.parent.iterdir()] == ["practice.json"]


def test_python_keeps_only_when_asked(kept):
    practice.check("half-life", right())
    assert not kept.exists()
    practice.check("half-life", right(), keep=True)
    assert kept.exists()
    assert practice.attempt("half-life", right(seed=3), 3).startswith("Right.")
    assert progress.answered() == {"half-life": [0, 3]}


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '{"format": "other"}',
        '{"format": "openadam practice, format 1", "answered": {"a": ["x"]}}',
        '{"format": "openadam practice, format 2", "name": "a", "seed": 3.0}',
        '{"format": "openadam practice, format 2", "name": "a"',
        "[" * 100000,
        "\x00\xff",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_a_damaged_file_breaks_nothing_and_is_left_as_it_is(run, kept, content):
    kept.parent.mkdir()
    kept.write_bytes(content.encode("latin-1"))
    code, out, err = run("practice", "half-life", "--answer", right())
    assert (code, out.startswith("Right.")) == (0, True)
    assert err.startswith("openadam: warning: progress is not kept: ")
    assert err.count("\n") == 1
    code, out, err = run("practice")
    assert code == 0
    assert "0 of 28 done" in out
    assert kept.read_bytes() == content.encode("latin-1")


@pytest.mark.filterwarnings("always")
def test_where_nothing_can_be_kept(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPENADAM_PRACTICE_FILE", str(tmp_path / "file" / "below.json"))
    code, out, err = run("practice", "half-life", "--answer", right())
    assert (code, out.startswith("Right."), err.count("\n")) == (0, True, 1)
    monkeypatch.setenv("OPENADAM_PRACTICE_FILE", "")
    assert progress.progress_file() is None
    assert run("practice", "half-life", "--answer", right())[2] == ""


def test_the_platform_s_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENADAM_PRACTICE_FILE")
    for name in ("HOME", "USERPROFILE", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path))
    for platform, folder in (("linux", ".local/share"), ("darwin", "Library/Application Support"), ("win32", "AppData/Local")):
        monkeypatch.setattr(sys, "platform", platform)
        assert progress.progress_file() == tmp_path / folder / "openadam" / "practice.json"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert progress.progress_file() == tmp_path / "data" / "openadam" / "practice.json"
    monkeypatch.delenv("XDG_DATA_HOME")

    def nobody(cls):
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    assert progress.progress_file() is None


@pytest.mark.parametrize("short", [False, True])
def test_a_write_that_fails_leaves_the_old_file(kept, monkeypatch, short):
    progress.keep("half-life", 0)
    before, write = kept.read_bytes(), os.write

    def full(descriptor, line):
        if short:
            return write(descriptor, line[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.warns(UserWarning, match="No space left"):
        progress.keep("half-life", 1)
    assert kept.read_bytes() == before
    assert [path.name for path in kept.parent.iterdir()] == ["practice.json"]


def test_answers_that_are_kept_at_once_are_all_kept(kept):
    """Four processes, as when a teacher checks in parallel; each begins with no file."""
    keep = "import sys; from openadam.practice import progress; [progress.keep('half-life', 4 * i + int(sys.argv[1])) for i in range(25)]"
    running = [subprocess.Popen([sys.executable, "-c", keep, str(place)]) for place in range(4)]
    assert [process.wait(120) for process in running] == [0] * 4
    assert progress.answered() == {"half-life": [*range(100)]}


def test_a_file_of_before_is_read_and_gone_on_with(kept):
    kept.parent.mkdir()
    kept.write_text(json.dumps({"format": "openadam practice, format 1", "answered": {"half-life": [0, 7], "moments": [2]}}, indent=1))
    assert progress.answered() == {"half-life": [0, 7], "moments": [2]}
    for name, seed in (("half-life", 3), ("half-life", 7), ("scale", 0)):
        progress.keep(name, seed)
    assert progress.answered() == {"half-life": [0, 3, 7], "moments": [2], "scale": [0]}
    assert kept.read_text().count("format 2") == 2


def test_the_file_s_path_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("OPENADAM_PRACTICE_FILE", "~/pp.json")
    assert progress.progress_file() == tmp_path / "pp.json"
    progress.keep("scale", 1)
    assert (tmp_path / "pp.json").is_file()
    assert progress.answered() == {"scale": [1]}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /dev/null")
def test_progress_may_go_to_dev_null(run, monkeypatch):
    monkeypatch.setenv("OPENADAM_PRACTICE_FILE", os.devnull)
    assert run("practice", "half-life", "--answer", right())[::2] == (0, "")


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_list(run):
    code, out, err = run("practice")
    listed = json.loads(run("practice", "--json")[1])
    assert (code, err) == (0, "")
    assert [each["name"] for each in listed] == NAMES == [line.split()[0] for line in out.splitlines()[1:-2]]
    assert listed[0]["answered"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_question_its_hint_and_its_solution(run, name):
    code, out, err = run("practice", name, "--seed", "1")
    assert (code, err) == (0, "")
    assert practice.find(name).title in out
    assert f"openadam practice {name} --seed 1 --hint" in out
    assert "step" in run("practice", name, "--seed", "1", "--hint")[1]
    assert run("practice", name, "--seed", "1", "--solution")[0] == 0


def test_exit_codes(run, tmp_path):
    (tmp_path / "mine.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(RIGHT.replace("beta1*m", "0.5*m"))
    (tmp_path / "broken.py").write_text("def step(")
    for arguments, expected in [
        (("half-life", "--answer", right()), 0), (("half-life", "--answer", "1,1"), 1), (("half-life", "--answer", "one"), 2),
        (("write-moments", "--file", "mine.py"), 0), (("write-moments", "--file", "wrong.py"), 1), (("write-moments", "--file", "broken.py"), 2),
        (("write-moments", "--file", "missing.py"), 2), (("write-moments", "--answer", "1"), 2), (("half-life", "--file", "mine.py"), 2),
        (("half-lif",), 2), (("half-life", "--hint", "--solution"), 2), (("half-life", "--seed", "-1"), 2), (("half-life", "--seed", "x"), 2),
        (("--answer", "1"), 2), (("--seed", "3"), 2), (("half-life", "more"), 2), (("half-life", "--seed", "9" * 30), 2),
    ]:  # fmt: skip
        code, out, err = run("practice", *arguments)
        assert code == expected, arguments
        assert (err.count("\n"), out) == (1, "") if expected == 2 else err == ""


def test_negative_numbers_may_follow_the_option(run):
    (part,) = asked("one-step", 0).asks.parts
    assert part.value < 0
    assert run("practice", "one-step", "--answer", f"{part.value:.6g}")[0] == 0


def test_a_wrong_name_is_answered(run):
    assert "did you mean 'half-life'?" in run("practice", "halflife")[2]
    assert "there are moments, memory" in run("practice", "xyzzy")[2]


def test_json(run):
    plain = json.loads(run("practice", "first-step", "--json")[1])
    assert list(plain) == ["name", "seed", "title", "section", "sentence", "problem", "text", "kind", "parts"]
    assert "solution" not in plain
    assert plain["parts"][1]["options"] == {"a": "larger", "b": "smaller", "c": "as large"}
    assert json.loads(run("practice", "first-step", "--json", "--hint")[1])["hint"]
    assert json.loads(run("practice", "first-step", "--json", "--solution")[1])["answer"] == asked("first-step", 0).asks.answer
    code, out, _ = run("practice", "first-step", "--json", "--answer", asked("first-step", 0).asks.answer)
    assert (code, json.loads(out)["right"], json.loads(out)["parts"]) == (0, True, [True, True])
    mistake = asked("first-step", 0).asks.mistakes[1]
    code, out, _ = run("practice", "first-step", "--json", "--answer", ",".join(map(str, asked("first-step", 0).asks.of_mistake(mistake))))
    assert (code, json.loads(out)["mistake"]) == (1, mistake.name)
    assert json.loads(run("practice", "write-adam", "--json")[1])["arguments"][0] == "p"


def test_what_a_program_printed_cannot_reach_the_terminal(run, tmp_path):
    (tmp_path / "mine.py").write_text(RIGHT + "print('\\x1b[31mred')\n")
    out = run("practice", "write-moments", "--file", "mine.py")[1]
    assert "\x1b" not in out
    assert r"\x1b[31mred" in out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_teacher_checks_forty_answers(tmp_path, kept):
    """The loop of the page: ten students with seeds of their own, numbers and programs, right, wrong and not understood."""
    (loop,) = (block for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL) if "while " in block)
    lines, expected = [], []
    for student in range(1, 11):
        for number, name in enumerate(("moments", "half-life", "first-step", "write-moments")):
            verdict = ("right", "wrong", "not understood")[(student + number) % 3]
            task = practice.question(name, student).asks
            if isinstance(task, Task):
                answer = f"{student}.py"
                source = {"right": task.answer, "wrong": task.answer.replace("g**2", "abs(g)"), "not understood": "def step(:\n"}[verdict]
                (tmp_path / answer).write_text(source)
            else:
                mistaken = ", ".join(map(str, task.of_mistake(task.mistakes[0])))
                answer = {"right": task.answer, "wrong": mistaken, "not understood": "I do not know" if student % 2 else ""}[verdict]
            lines.append(f"{name}\t{student}\t{answer}")
            expected.append((str(student), name, verdict))
    (tmp_path / "answers.tsv").write_text("\n".join(lines[:20]) + "\n" + "\r\n".join(lines[20:]))  # the last line has no end
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "openadam"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m openadam "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-eu", "-c", loop], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=240, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    found = [line.split("\t") for line in (tmp_path / "verdicts.tsv").read_text().splitlines()]
    assert [tuple(row[:3]) for row in found] == expected
    for _, _, verdict, said in found:
        assert said.startswith({"right": "Right", "wrong": "Wrong", "not understood": "openadam: "}[verdict])
    assert any("there is no answer yet" in said for *_, said in found)
    assert not kept.exists()


def test_it_is_imported_only_when_it_is_used():
    loaded = "import sys, openadam; print([name for name in sys.modules if name.startswith('openadam.practice')])"
    assert python(loaded) == "[]\n"
    heavy = (
        "import sys; from openadam import practice; practice.list(); print([n for n in ('torch', 'rich', 'nbformat', 'scipy') if n in sys.modules])"
    )
    assert python(heavy) == "[]\n"
    assert python("from openadam.practice import *; print(list(range(3)), question.__name__)") == "[0, 1, 2] question\n"


# --- notebooks ---------------------------------------------------------------------------------------------------------


def test_the_notebooks_are_what_the_command_makes(tmp_path, capsys):
    assert notebooks.main([str(tmp_path / "made")]) == 0
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == sorted(path.name for path in (ROOT / "docs" / "practice").iterdir())
    for name in names:
        assert (tmp_path / "made" / name).read_bytes() == (ROOT / "docs" / "practice" / name).read_bytes(), f"{name}: run make notebooks"
    assert {each.name for _, practices in notebooks.NOTEBOOKS.values() for each in practices} == set(NAMES)


def test_the_notebooks_are_valid():
    nbformat = pytest.importorskip("nbformat")
    for path in (ROOT / "docs" / "practice").glob("*.ipynb"):
        nbformat.validate(nbformat.read(path, as_version=4))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook, and return what its cells print by their ids."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, folder in (
        ("JUPYTER_DATA_DIR", "data"),
        ("JUPYTER_CONFIG_DIR", "config"),
        ("IPYTHONDIR", "ipython"),
        ("JUPYTER_RUNTIME_DIR", "runtime"),
    ):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")

    def execute(content):
        book = nbformat.reads(json.dumps(content), as_version=4)
        nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
        return {cell.id: "".join(output.get("text", "") for output in cell.outputs) for cell in book.cells if cell.cell_type == "code"}

    return execute


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs_as_it_is_and_with_answers(execute, kept):
    """The last of them, some of its answers put in."""
    title, practices = notebooks.NOTEBOOKS["3-applications"]
    made = notebooks.notebook(title, [*practices[:2], practice.find("write-moments"), practice.find("one-step")])
    for cell in made["cells"]:
        name, _, what = cell["id"].rpartition("-")
        source = "".join(cell["source"])
        if what == "answer" and name == "write-moments":
            cell["source"] = f"{RIGHT}\n{source.replace('answer = ...', 'answer = step')}"
        elif what == "answer" and name != practices[1].name:
            cell["source"] = source.replace("answer = ...", f"answer = {asked(name, 0).asks.answer!r}")
        elif what == "help":
            cell["source"] = source.replace("# ", "")
    printed = execute(made)
    assert printed["phase-lag-answer"].startswith("Right.")
    assert printed["write-moments-answer"].startswith("Right: ")
    assert printed["one-step-answer"].startswith("Right.")
    assert printed[f"{practices[1].name}-answer"].startswith("There is no answer yet")
    assert "Answer: " in printed["phase-lag-help"]
    assert progress.answered() == {"one-step": [0], "phase-lag": [0], "write-moments": [0]}


# --- the page ----------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "practice.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "session", re.findall(r"^```console\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL), ids=lambda text: text.splitlines()[0]
)
def test_the_sessions_of_the_page_are_true_to_the_letter(run, session):
    command, _, expected = session.partition("\n")
    code, out, err = run(*shlex.split(command.removeprefix("$ openadam ")))
    assert (out.strip(), err) == (expected.strip(), "")
    assert code == out.startswith("Wrong.")


def test_the_page_lists_every_practice():
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \| (.*?) \| (.*?) \|", PAGE, flags=re.MULTILINE)
    expected = [(str(place), each.name, each.title, asked(each.name, 0).asks.kind) for place, each in enumerate(practice.list(), 1)]
    assert rows == expected


def test_exercises_are_named_as_what_they_are(run):
    assert "(the exercise that the article numbers 2152288)" in run("practice", "moments")[1]
    assert "(the exercises that the article numbers 2152280 and 3095785)" in run("practice", "first-step")[1]
    for each in practice.list():
        row = next(line for line in PAGE.splitlines() if f" `{each.name}` |" in line)
        assert re.findall(r"\d{7}", row) == re.findall(r"\d{7}", each.problem)


def test_near_an_end_is_near_enough():
    """Where the question asks for 1 or -1, these are right, whatever the seed."""
    for seed in range(12):
        question = practice.question("non-convergence", seed)
        slope, adam, amsgrad = (part.value for part in question.asks.parts)
        assert question.check([slope, round(adam), round(amsgrad)]).right
        assert round(adam) == -round(amsgrad) == np.sign(slope)
