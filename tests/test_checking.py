"""What `check` says of rules: of members what is known of them, of rules with a fault the fault."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import openadam
from openadam import Step, checking, cli, rules, sqrt
from openadam.errors import HyperparameterError

pytest.importorskip("mpmath")

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def test_what_is_known_of_adam() -> None:
    found = openadam.check(rules.adam, **ADAM)
    assert found.is_fine
    assert {row.name: row.verdict for row in found.rows} == dict.fromkeys(
        ("scale of gradients", "direction", "first step", "no gradient yet", "eps", "huge gradients", "largest step", "after the last gradient",
         "state m", "state v", "float32", "foreseen"), "fine"
    )  # fmt: skip
    assert found["largest step"].value == 7.27
    assert found["first step"].value == pytest.approx(1)
    assert found["eps"].value == pytest.approx(1e-8)
    assert found["huge gradients"].value == pytest.approx(1e20)
    assert (found["state m"].value, found["state v"].value) == (math.ceil(math.log(0.5) / math.log(0.9)), 693)
    assert (found["float32"].value or 99) < 10
    lines = str(found).splitlines()
    assert lines[0] == "adam(beta1=0.9, beta2=0.999, eps=1e-08)"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("eps", "counts"), [(1e-3, 1e-3), (1e-15, 1e-15)])
def test_an_author_learns_what_an_epsilon_is_for(eps: float, counts: float) -> None:
    assert openadam.check(rules.adam, **{**ADAM, "eps": eps})["eps"].value == pytest.approx(counts, rel=3)
    tiny = openadam.check(rules.adam, **{**ADAM, "eps": 1e-30})
    assert tiny["eps"].verdict == "alarm"
    assert "their squares underflow, and eps is too small" in tiny["eps"].found
    assert not tiny.is_fine


def body(direction: Any, **states: Any) -> Any:
    """A rule that moves by this, and remembers these."""
    return openadam.rule(lambda g, s, h: Step(direction(g, s, h), **{name: each(g, s, h) for name, each in states.items()}))


FAULTS: dict[str, tuple[Any, str, str, str]] = {
    "the sign forgotten": (body(lambda g, s, h: -g), "direction", "alarm", "uphill"),
    "it moves by itself": (body(lambda g, s, h: g + 0.25), "no gradient yet", "alarm", "moves all the same, by 0.25"),
    "a root of less than 0": (body(lambda g, s, h: g * sqrt(s.m - 1), m=lambda g, s, h: s.m + 0 * g), "no gradient yet", "alarm", "not finite"),
    "no correction of the bias": (
        body(lambda g, s, h: g / (sqrt(0.999 * s.v + 0.001 * g**2) + 1e-8), v=lambda g, s, h: 0.999 * s.v + 0.001 * g**2),
        "first step", "look", "31.6 learning rates",
    ),
    "terms that cancel": (body(lambda g, s, h: (g + 1e5) - 1e5), "float32", "alarm", "units in the last place"),
    "one that never forgets": (body(lambda g, s, h: g / (sqrt(s.v + g**2) + 1e-8), v=lambda g, s, h: s.v + g**2), "state v", "look", "never forgets"),
    "momentum that stays": (body(lambda g, s, h: s.m + g, m=lambda g, s, h: s.m + g), "after the last gradient", "look", "more than 20000"),
    "no bound": (body(lambda g, s, h: g * abs(g)), "largest step", "look", "100 times as large; clip"),
    "another where it is turned": (body(lambda g, s, h: openadam.maximum(g, 0) + 0.5 * openadam.minimum(g, 0)), "direction", "look", "turned"),
    "a scale that matters": (body(lambda g, s, h: g / (abs(g) + 1)), "scale of gradients", "look", "no simple way"),
    "no eps": (
        body(lambda g, s, h: s.m / sqrt(0.99 * s.v + 0.01 * g**2), m=lambda g, s, h: 0.9 * s.m + 0.1 * g, v=lambda g, s, h: 0.99 * s.v + 0.01 * g**2),
        "foreseen", "look", "tried out",
    ),
    "large numbers": (body(lambda g, s, h: g * 1e-20, m=lambda g, s, h: 1e25 * g), "huge gradients", "fine", "refused"),
}  # fmt: skip


@pytest.mark.parametrize("which", FAULTS)
def test_a_fault_is_told(which: str) -> None:
    rule, name, verdict, says = FAULTS[which]
    found = openadam.check(rule)
    assert (found[name].verdict, says in found[name].found) == (verdict, True), str(found)
    assert found.is_fine == all(row.verdict != "alarm" for row in found.rows)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "rmsprop", "amsgrad", "adamax", "nadam", "radam"])
def test_no_member_is_an_alarm(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", name]) == 0
    assert "alarm" not in capsys.readouterr().out


def test_without_mpmath_all_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any) -> Any:
        raise ImportError

    monkeypatch.setattr(checking, "module", missing)
    assert "openadam[check]" in openadam.check(rules.sgd)["float32"].found


def test_scalar_states_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = openadam.check(rules.adam, epsilon="inside", **ADAM)
    assert found.settings["epsilon"] == "inside"
    assert found["eps"].value == pytest.approx(1e-4, rel=3), "inside the root it counts by its own root"
    with pytest.raises(HyperparameterError, match="needs beta2"):
        openadam.check(rules.adam, beta1=0.9, eps=1e-8)
    with pytest.raises(TypeError, match="check takes a rule"):
        openadam.check(openadam.Adam)  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import openadam\nfrom openadam import Step\n\n\n@openadam.rule\ndef wrong(g, s, h):\n    return Step(-h.rate * g)\n\n\nnothing = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "mine:wrong", "rate=0.5"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("wrong(rate=0.5)\n\n")
    assert "alarm  direction" in out
    assert cli.main(["check", "mine:wrong", "rate=0.5", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["rule"], told["settings"]) == ("wrong", {"rate": 0.5})
    assert {"name", "verdict", "found", "value"} == set(told["rows"][0])
    for wrong in (["mine:wrong"], ["mine:nothing"], ["nobody"], ["mine:wrong", "rate"], ["adam", "beta1=2"], ["adam", "beta9=2"], []):
        assert cli.main(["check", *wrong]) == 2
    assert "needs rate=" in capsys.readouterr().err
