"""Programs as answers: a function in a file, run in a process of its own with a time limit, and compared on hidden numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import child
from .model import AnswerError, Verdict

__all__ = ["SECONDS", "Case", "Task"]

SECONDS = 10.0
"""How long a program may run."""

NEAR = 1e-9  # far more than the roundings of any reasonable order of operations in float64
SINGLE = 1e-5  # the same for float32, of the largest such result, since differences of rounded numbers are as far off as these

Played = list[list[list[float]]]  # by case, step and result


@dataclass(frozen=True)
class Case:
    """Numbers that a program is tried with: what it starts from, and the gradients of its steps."""

    start: dict[str, float]
    gradients: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """A function that is asked for, ``step(…)``, called step by step with what it returned before."""

    arguments: tuple[str, ...]
    results: tuple[str, ...]
    cases: tuple[Case, ...]
    expected: Played
    mistakes: tuple[tuple[str, str, Played], ...]
    """The known ones: name, what to say, and what they make of the cases."""
    answer: str
    """A program that is right."""
    kind: str = "a program"

    @property
    def signature(self) -> str:
        return f"def step({', '.join(self.arguments)})"

    @property
    def how(self) -> str:
        return f"a file with {self.signature}, which returns {', '.join(self.results)} (compared on hidden numbers, to 1e-9)"

    def as_json(self) -> dict[str, Any]:
        return {"function": "step", "arguments": [*self.arguments], "results": [*self.results], "relative": NEAR, "seconds": SECONDS}

    def is_telling(self) -> bool:
        return all(self._judge(played, "").mistake == name for name, _, played in self.mistakes)

    def check(self, answer: Any) -> Verdict:
        """Judge a file by its path, source text (of several lines), or a function, which is called in this process."""
        if answer is None or answer is ... or answer == "":
            raise AnswerError(f"there is no program yet; it is {self.how}")
        if callable(answer):
            return self._called(answer)
        if isinstance(answer, str) and "\n" in answer:
            with tempfile.TemporaryDirectory(prefix="openadam-") as directory:
                path = Path(directory, "answer.py")
                path.write_text(answer, encoding="utf-8")
                return self._run(path)
        if not isinstance(answer, (str, os.PathLike)):
            raise AnswerError(f"{answer!r:.60} is neither a file nor a function")
        return self._run(Path(answer))

    def _work(self) -> dict[str, Any]:
        cases = [{"start": case.start, "gradients": case.gradients} for case in self.cases]
        return {"function": "step", "arguments": self.arguments, "results": self.results, "cases": cases}

    def _called(self, function: Callable[..., Any]) -> Verdict:
        try:
            return self._judge(child.play(function, self._work()), "")
        except (Exception, SystemExit) as error:  # the student's function may raise anything; Ctrl-C is not its own
            return Verdict(False, f"Wrong. The function raised {child.named(error)}.", "raises")

    def _run(self, path: Path) -> Verdict:
        if not path.is_file():
            raise AnswerError(f"{path}: {'it is a directory, not a file' if path.is_dir() else 'there is no such file'}")
        report = _in_a_process({**self._work(), "path": str(path.resolve())}, SECONDS)
        lines = [f"    {line.expandtabs()}".rstrip() for line in report.get("printed", "").rstrip().splitlines()]
        printed = "\n".join(["\nIt printed:", *lines]) if lines else ""
        if "unusable" in report:
            raise AnswerError(f"{path}: {report['unusable']}; asked for is {self.how}")
        if "late" in report:
            return Verdict(False, f"Wrong. The program did not end within {SECONDS:g} seconds.", "does not end")
        if "raised" in report:
            where = f" in line {report['line']}" if report.get("line") else ""
            return Verdict(False, f"Wrong. The program raised {report['raised']}{where}.{printed}", "raises")
        if "played" not in report:
            return Verdict(False, "Wrong. The program ended before it returned anything.", "raises")
        return self._judge(report["played"], printed)

    def _judge(self, played: Played, printed: str) -> Verdict:
        wrong = _first_difference(played, self.expected)
        if wrong is None:
            return Verdict(True, f"Right: on {sum(len(case.gradients) for case in self.cases)} steps, to 1e-9.{printed}")
        for near in (NEAR, SINGLE):
            if near == SINGLE and _first_difference(played, self.expected, near) is None:
                what = "it agrees to five digits and not to 1e-9: it seems to be computed in float32, or rounded on the way, and float64 is asked for"
                return Verdict(False, f"Wrong: {what} (Python's own floats, np.float64).{printed}", "float32")
            for name, says, theirs in self.mistakes:
                if _first_difference(played, theirs, near) is None:
                    return Verdict(False, f"Wrong: {says}.{printed}", name)
        case, step, result = wrong
        expected, found = self.expected[case][step][result], played[case][step][result]
        start = ", ".join(f"{name} = {value:g}" for name, value in self.cases[case].start.items())
        grads = ", ".join(f"{g:g}" for g in self.cases[case].gradients[: step + 1])
        digits = next((digits for digits in range(7, 17) if f"{expected:.{digits}g}" != f"{found:.{digits}g}"), 17)
        numbers = f"should be {expected:.{digits}g}, and is {found:.{digits}g}"
        what = f"after the gradients {grads}, from {start}, {self.results[result]} {numbers}"
        return Verdict(False, f"Wrong: {what}.{printed}")


def _first_difference(played: Sequence[Any], expected: Sequence[Any], near: float = NEAR) -> tuple[int, int, int] | None:
    for case, steps in enumerate(expected):
        largest = [max(map(abs, column)) if near > NEAR else 0.0 for column in zip(*steps, strict=True)]
        for step, results in enumerate(steps):
            for result, value in enumerate(results):
                if not math.isclose(played[case][step][result], value, rel_tol=near, abs_tol=max(1e-12, near * largest[result])):
                    return case, step, result
    return None


def _in_a_process(work: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a child process reports of its work, or that it was late."""
    token = secrets.token_hex(16)  # what the program itself writes to stdout is no report
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, child.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(json.dumps({**work, "token": token}).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"late": True}
    finally:
        _end(process)
    for line in out.decode(errors="replace").splitlines():
        if line.startswith(token):
            found: dict[str, Any] = json.loads(line.removeprefix(token))
            return found
    return {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing that the program started stays behind."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()
