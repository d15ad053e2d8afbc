"""Traces: the formulas are the rule's, the numbers are the optimizer's, and the one gives the other."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam
from openadam.language.expression import Namespace
from openadam.language.notation import latex as latex_of
from openadam.views import trace as tracing
from openadam.views.trace import Line, Trace, parse_grads

MEMBERS = openadam.MEMBERS
GRADS = [(2.0, -4.0, 0.0), (-0.5, 3.0, 1e-3), (0.25, -4.0, 7.0), (1.0, 0.0, -2.0), (-3.0, 0.5, 0.1), (0.3, 2.0, -1.0), (0.7, 0.2, 0.0)]
START = (1.0, -2.0, 0.5)
AROUND = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "coupling": "decoupled", "maximize": True},
    {"weight_decay": 0.1, "coupling": "coupled", "clip_norm": 1, "clip_value": 2},
    {"maximize": True, "clip_norm": 2.0, "lr": openadam.Cosine(0.1, 0.0, steps=20)},
]
VARIANTS = [pytest.param(name, choice, id="-".join([name, *choice.values()])) for name, cls in MEMBERS.items() for choice in cls.rule.variants()]

# Every variant in one of the surroundings, and Adam in all of them.
PAIRS = [
    *(pytest.param(*variant.values, AROUND[place % len(AROUND)], id=f"{variant.id}-{place % len(AROUND)}") for place, variant in enumerate(VARIANTS)),
    *(pytest.param("adam", {}, around, id=f"adam-{around}") for around in AROUND),
]


def public(cls: type[openadam.Optimizer], state: str) -> str:
    return cls.state_names.get(state, state)


@pytest.mark.parametrize(("name", "options", "around"), PAIRS)
def test_the_numbers_are_those_of_the_optimizer(name: str, options: dict[str, str], around: dict[str, Any]) -> None:
    cls = MEMBERS[name]
    p = np.array(START)
    optimizer = cls(p, **options, **around)
    traced = openadam.trace(name, GRADS, START, **options, **around)
    for gradient, step in zip(GRADS, traced.steps, strict=True):
        optimizer.step(np.array(gradient))
        assert step.t == optimizer.steps
        state = optimizer.state["0"]
        for own in cls.rule.trace(**options).states:
            np.testing.assert_allclose(step.values[own], state[public(cls, own)], rtol=1e-12, atol=0)
        np.testing.assert_allclose(step.values["p"], p, rtol=1e-12, atol=0)


# --- the text, read as Python --------------------------------------------------------------------------------------------

FUNCTIONS = {
    "sqrt": np.sqrt, "abs": np.abs, "maximum": np.maximum, "minimum": np.minimum, "sign": np.sign, "where": np.where,
    "array": np.array,
}  # fmt: skip


class Vectors(ast.NodeTransformer):
    """Makes arrays of tuples, and of ``m[t-1]`` the name ``m_before``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return ast.copy_location(ast.Call(ast.Name("array", ast.Load()), [ast.List(node.elts, ast.Load())], []), node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        assert ast.unparse(node.slice) == "t - 1"
        return ast.Name(f"{ast.unparse(node.value)}_before", ast.Load())


def work_out(text: str, names: Mapping[str, Any]) -> Any:
    tree = ast.fix_missing_locations(Vectors().visit(ast.parse(text, mode="eval")))
    with np.errstate(all="ignore"):
        return eval(compile(tree, text, "eval"), {**FUNCTIONS, **names})


def with_zero_quotients(line: Line, computed: Any) -> Any:
    """A coordinate that is divided by zero counts as zero; the trace must say so."""
    if any("divided by 0" in note.text for note in line.notes):
        return np.nan_to_num(computed, nan=0.0, posinf=0.0, neginf=0.0)
    return computed


@pytest.mark.parametrize(("name", "options", "around"), PAIRS)
def test_every_line_read_as_python_gives_its_result(name: str, options: dict[str, str], around: dict[str, Any]) -> None:
    """The formula with the exact values of the names, and the filled-in numbers, which are rounded to ten digits."""
    cls = MEMBERS[name]
    traced = openadam.trace(name, GRADS, START, **options, **around)
    initial = cls.rule.trace(**options).initial
    before: dict[str, Any] = {"p": np.array(START)}
    before |= {state: cls.defaults[start] if isinstance(start, str) else start for state, start in initial.items()}
    settings = {key: value(1) if callable(value) else value for key, value in {**cls.defaults, **around}.items()}
    for gradient, step in zip(GRADS, traced.steps, strict=True):
        now = {**settings, "t": step.t, "gradient": np.array(gradient), "grad_norm": np.linalg.norm(gradient)}
        if callable(around.get("lr")):
            now["lr"] = around["lr"](step.t)
        for line in step.lines:
            names = {**now, **{f"{key}_before": value for key, value in before.items()}}
            exact = with_zero_quotients(line, work_out(line.formula.text, names))
            rtol = 1e-9 if line.formula.text.startswith("rho_max -") else 1e-11  # RAdam's rho is what two numbers near 2000 leave
            np.testing.assert_allclose(exact, line.value, rtol=rtol, atol=1e-300, err_msg=line.formula.text)
            shown = with_zero_quotients(line, work_out(line.numbers.text, {}))
            np.testing.assert_allclose(shown, line.value, rtol=1e-6, atol=1e-9, err_msg=line.numbers.text)
            now[line.name] = np.array(line.value)
        before = {key: now[key] for key in before}


# --- what is drawn ---------------------------------------------------------------------------------------------------------

ADAM = """\
adam: lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8; p0 = (0, 0)

step 1
  g  = gradient
  g1 = (2, -4)
  m  = beta1*m[t-1] + (1 - beta1)*g
  m1 = 0.9*(0, 0) + (1 - 0.9)*(2, -4) = (0.2, -0.4)
  v  = beta2*v[t-1] + (1 - beta2)*g**2
  v1 = 0.999*(0, 0) + (1 - 0.999)*(2, -4)**2 = (0.004, 0.016)
  m_hat  = m/(1 - beta1**t)
  m_hat1 = (0.2, -0.4)/(1 - 0.9**1) = (2, -4)
  v_hat  = v/(1 - beta2**t)
  v_hat1 = (0.004, 0.016)/(1 - 0.999**1) = (4, 16)
  direction  = m_hat/(sqrt(v_hat) + eps)
  direction1 = (2, -4)/(sqrt((4, 16)) + 1e-8) = (0.999999995, -0.9999999975)
  p  = p[t-1] - lr*direction
  p1 = (0, 0) - 0.1*(0.999999995, -0.9999999975) = (-0.0999999995, 0.09999999975)"""

ADAMW_LATEX = r"""
% adamw: lr=0.1, beta1=0.5, beta2=0.75, eps=0, weight_decay=0.01; p0 = 1
\begin{aligned}
g_t &= \nabla f(\theta_{t-1}) \\
g_1 &= 8 \\
m_t &= \beta_1 m_{t-1} + \left( 1 - \beta_1 \right) g_t \\
m_1 &= 0.5 \cdot 0 + \left( 1 - 0.5 \right) \cdot 8 = 4 \\
v_t &= \beta_2 v_{t-1} + \left( 1 - \beta_2 \right) g_t^{2} \\
v_1 &= 0.75 \cdot 0 + \left( 1 - 0.75 \right) \cdot 8^{2} = 16 \\
\hat{m}_t &= \frac{m_t}{1 - \beta_1^{t}} \\
\hat{m}_1 &= \frac{4}{1 - 0.5^{1}} = 8 \\
\hat{v}_t &= \frac{v_t}{1 - \beta_2^{t}} \\
\hat{v}_1 &= \frac{16}{1 - 0.75^{1}} = 64 \\
d_t &= \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \epsilon} \\
d_1 &= \frac{8}{\sqrt{64} + 0} = 1 \\
\theta_t &= \theta_{t-1} - \alpha \lambda \theta_{t-1} - \alpha d_t \\
\theta_1 &= 1 - 0.1 \cdot 0.01 \cdot 1 - 0.1 \cdot 1 = 0.899
\end{aligned}""".strip()


def test_adam_as_text() -> None:
    traced = openadam.trace("adam", "2,-4", lr=0.1, beta1=0.9)
    assert traced.render() == traced.render("text") == str(traced) == ADAM


def test_adamw_as_latex() -> None:
    assert openadam.trace("adamw", [8], 1, lr=0.1, beta1=0.5, beta2=0.75, eps=0).render("latex") == ADAMW_LATEX


def test_as_json() -> None:
    data = json.loads(openadam.trace("adam", "20;-5", lr=0.1, beta1=0.8).render("json"))
    assert data["rule"] == "adam"
    assert data["settings"] == {"lr": 0.1, "beta1": 0.8, "beta2": 0.999, "eps": 1e-8}
    assert [step["t"] for step in data["steps"]] == [1, 2]
    line = data["steps"][1]["lines"][1]
    assert line["name"] == "m"
    assert line["formula"] == {"text": "beta1*m[t-1] + (1 - beta1)*g", "latex": r"\beta_1 m_{t-1} + \left( 1 - \beta_1 \right) g_t"}
    assert line["numbers"]["text"] == "0.8*4 + (1 - 0.8)*(-5)"
    assert line["value"] == pytest.approx(2.2, rel=1e-15)


def test_json_has_words_for_what_it_has_no_numbers_for() -> None:
    @openadam.rule(lr=1.0)
    def inverse(g, s, h):
        return openadam.Step(1 / h.scale * g)

    traced = openadam.trace(inverse, [1.0], scale=0.0)
    assert json.loads(traced.render("json"))["steps"][0]["lines"][-1]["value"] == "-inf"


@pytest.mark.parametrize("as_", ["text", "latex", "json"])
@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_drawn_in_every_way(name: str, as_: str) -> None:
    drawn = openadam.trace(name, GRADS, START).render(as_)
    assert len(drawn.splitlines()) > 2 * len(GRADS)


def names_of(traced: Trace, step: int = 0) -> list[str]:
    return [line.name for line in traced.steps[step].lines]


def test_lines_are_in_the_order_of_the_algorithm() -> None:
    assert names_of(openadam.trace("amsgrad", [1.0])) == ["g", "m", "v", "v_max", "m_hat", "v_hat", "direction", "p"]
    assert names_of(openadam.trace("momentum", [1.0])) == ["g", "m", "p"]  # the direction is m, which has a line already
    assert names_of(openadam.trace("momentum", [1.0], form="nesterov")) == ["g", "m", "direction", "p"]
    assert names_of(openadam.trace("sgd", [1.0])) == ["g", "p"]


def formula(traced: Trace, name: str, step: int = 0) -> str:
    return next(line.formula.text for line in traced.steps[step].lines if line.name == name)


@pytest.mark.parametrize(
    ("settings", "g", "p"),
    [
        ({}, "gradient", "p[t-1] - lr*direction"),
        ({"maximize": True}, "-gradient", "p[t-1] - lr*direction"),
        ({"weight_decay": 0.1}, "gradient + weight_decay*p[t-1]", "p[t-1] - lr*direction"),
        ({"weight_decay": 0.1, "coupling": "decoupled"}, "gradient", "p[t-1] - lr*weight_decay*p[t-1] - lr*direction"),
        ({"weight_decay": 1.0, "lr": 1.0, "coupling": "decoupled"}, "gradient", "p[t-1] - lr*weight_decay*p[t-1] - lr*direction"),
        ({"clip_value": 3}, "minimum(maximum(gradient, -clip_value), clip_value)", "p[t-1] - lr*direction"),
        ({"clip_norm": 1.0}, "clip_factor*gradient", "p[t-1] - lr*direction"),
        ({"clip_norm": 100.0}, "gradient", "p[t-1] - lr*direction"),
        ({"maximize": True, "weight_decay": 0.1}, "-gradient + weight_decay*p[t-1]", "p[t-1] - lr*direction"),
    ],
    ids=str,
)
def test_what_surrounds_the_rule_is_shown_only_where_it_does_something(settings: dict[str, Any], g: str, p: str) -> None:
    traced = openadam.trace("adam", [(3.0, -4.0)], 1.0, **settings)
    assert formula(traced, "g") == g
    assert formula(traced, "p") == p


def test_settings_are_those_in_force() -> None:
    traced = openadam.trace("rmsprop", [1.0], variance="centered", clip_value=2, lr=openadam.Linear(1.0, 0.0, steps=4))
    assert traced.settings == {
        "lr": "Linear(start=1.0, end=0.0, steps=4)", "rho": 0.99, "eps": 1e-8, "clip_value": 2.0, "variance": "centered",
    }  # fmt: skip
    assert str(traced).startswith("rmsprop: lr=Linear(start=1.0, end=0.0, steps=4), rho=0.99, eps=1e-8, clip_value=2, variance=centered; p0 = 0\n")


def test_the_branch_taken_is_shown_with_its_reason() -> None:
    traced = openadam.trace("radam", [1.0] * 6, lr=0.1)
    first, last = (step.lines[-2] for step in (traced.steps[0], traced.steps[-1]))
    assert first.name == last.name == "direction"
    assert first.formula.text == "m_hat"
    assert re.search(r" does not hold: 5 < 1$", first.notes[0].text)
    assert last.formula.text.startswith("sqrt(")
    assert re.search(r" holds: 5 < 5\.99416375", last.notes[0].text)


def test_a_branch_within_a_branch_that_is_not_taken_is_not_spoken_of() -> None:
    @openadam.rule(lr=1.0)
    def nested(g, s, h):
        return openadam.Step(openadam.where(h.t < 2, g, openadam.where(h.t < 3, 2 * g, 3 * g)))

    lines = [step.lines[-1] for step in openadam.trace(nested, [5.0] * 3).steps]
    assert [line.value for line in lines] == [-5.0, -15.0, -30.0]
    notes = [[note.text for line in step.lines for note in line.notes] for step in openadam.trace(nested, [5.0] * 3).steps]
    assert notes == [
        ["t < 2 holds: 1 < 2"],
        ["t < 2 does not hold: 2 < 2", "t < 3 holds: 2 < 3"],
        ["t < 2 does not hold: 3 < 2", "t < 3 does not hold: 3 < 3"],
    ]


def test_a_division_by_zero_is_owned_up_to() -> None:
    line = openadam.trace("adam", [(2.0, 0.0)], eps=0.0).steps[0].lines[-2]
    assert line.value == (1.0, 0.0)
    assert line.numbers.text == "(2, 0)/(sqrt((4, 0)) + 0)"
    assert [note.text for note in line.notes] == ["a coordinate divided by 0 counts as 0"]
    assert not openadam.trace("adam", [(2.0, 1.0)], eps=0.0).steps[0].lines[-2].notes
    assert not openadam.trace("adam", [(2.0, 0.0)]).steps[0].lines[-2].notes


# --- rules of one's own --------------------------------------------------------------------------------------------------------


@openadam.rule(lr=0.5, keep=0.5, initial={"count": 1.0})
def own(g, s, h):
    """A rule that returns things in an order of its own, and one of them under two names."""
    count = s.count + h.keep
    m = h.keep * s.m + g
    return openadam.Step(m / count, scaled=m / count, again=m, m=m, count=count)


def test_a_rule_of_ones_own() -> None:
    traced = openadam.trace(own, "3;1", 10.0)
    assert traced.rule == "own"
    assert [(line.name, line.formula.text, line.value) for line in traced.steps[1].lines] == [
        ("g", "gradient", 1.0),
        ("again", "keep*m[t-1] + g", 2.5),
        ("m", "again", 2.5),
        ("count", "count[t-1] + keep", 2.0),
        ("scaled", "again/count", 1.25),
        ("p", "p[t-1] - lr*scaled", 10.0 - 1.0 - 0.625),
    ]
    assert traced.steps[1].lines[3].numbers.text == "1.5 + 0.5"


def test_the_gradient_keeps_its_name() -> None:
    """Even where a rule returns it under another."""

    @openadam.rule(lr=1.0)
    def watched(g, s, h):
        m = s.m + g
        return openadam.Step(m, seen=g, m=m)

    traced = openadam.trace(watched, [1.0])
    assert [formula(traced, name) for name in ("seen", "m")] == ["g", "m[t-1] + g"]


def test_branches_are_decided_as_the_optimizer_decides_them() -> None:
    """Which is on `-expm1(t*log(b))`, where the rule says `1 - b**t`; the two differ in the last digits."""

    @openadam.rule(lr=1.0)
    def picky(g, s, h):
        return openadam.Step(openadam.where(1 - h.b**h.t == h.c, 2 * g, g))

    plain, careful = 1 - 0.999**3, -math.expm1(3 * math.log(0.999))
    assert plain != careful
    for c, size in ((plain, 1.0), (careful, 2.0)):
        line = openadam.trace(picky, [1.0] * 3, b=0.999, c=c).steps[2].lines[-2]
        assert (line.value, line.formula.text) == (size, "2*g" if size == 2.0 else "g")


def test_a_state_is_what_is_stored() -> None:
    """What is below the smallest normal number is stored as 0."""
    (step,) = openadam.trace("momentum", [1e-309], 1.0).steps
    assert step.values["m"] == 0.0


def test_a_member_may_be_given_by_class() -> None:
    assert openadam.trace(openadam.AdamW, [1.0], 2.0) == openadam.trace("AdamW", [1.0], 2.0)


# --- what cannot be traced -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "steps"),
    [("2,-4", [[2.0, -4.0]]), ("20;-5;8", [[20.0], [-5.0], [8.0]]), (" 1e-3 , 2 ;3, 4", [[1e-3, 2.0], [3.0, 4.0]])],
)
def test_gradients_are_read_from_text(given: str, steps: list[list[float]]) -> None:
    assert parse_grads(given) == steps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "step 1 of the gradients '': a number is missing"),
        ("1;", "step 2 of the gradients '1;': a number is missing"),
        ("1,,2", "step 1 .* a number is missing"),
        ("1;2,x", "step 2 of the gradients '1;2,x': 'x' is not a number"),
    ],
)
def test_text_that_is_no_gradients_is_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grads(given)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        (("adamm", "1"), {}, ValueError, "there is no rule 'adamm'; there are sgd, momentum, .*"),
        ((3, "1"), {}, ValueError, "rule=3 is neither"),
        ((openadam.Optimizer, "1"), {}, ValueError, "is neither"),
        (("adam",), {}, ValueError, r"grads=\(\): give one entry per step"),
        (("adam", 5.0), {}, ValueError, "grads=5.0: give one entry per step"),
        (("adam", np.array(5.0)), {}, ValueError, "give one entry per step"),
        (("adam", [[]]), {}, ValueError, "the gradient of step 1: .* is neither a number nor a sequence"),
        (("adam", [[[1.0]]]), {}, ValueError, "the gradient of step 1: .* is neither a number nor a sequence"),
        (("adam", [1.0, "x"]), {}, ValueError, "the gradient of step 2: 'x' is neither"),
        (("adam", [1.0, (1.0, 2.0)]), {}, ValueError, "the gradient of step 2 has 2 coordinates, that of step 1 has 1"),
        (("adam", [1.0, float("nan")]), {}, ValueError, "the gradient of step 2: nan holds a number that is not finite"),
        (("adam", "1e999"), {}, ValueError, "not finite"),
        (("adam", [(1.0, 2.0)], (1.0, 2.0, 3.0)), {}, ValueError, "params has 3 coordinates, the gradients have 2"),
        (("adam", [1.0], "x"), {}, ValueError, "params: 'x' is neither"),
        (("adam", [1.0]), {"beta1": 1.0}, openadam.HyperparameterError, "beta1=1.0 is out of range"),
        (("adam", [1.0]), {"momentum": 0.9}, openadam.UnknownHyperparameterError, "the trace of adam has no hyperparameter or option 'momentum'"),
        (("adam", [1.0]), {"epsilon": "left"}, openadam.HyperparameterError, "epsilon='left' is none of"),
        (("adam", [1.0]), {"no_decay": ["p"]}, openadam.UnknownHyperparameterError, "the trace of adam has no hyperparameter or option 'no_decay'"),
        (("adam", [1e200]), {}, openadam.NonFiniteStateError, "gradient of parameter 'p' is so large"),
        ((own, [1.0]), {"scale": 1.0}, openadam.UnknownHyperparameterError, "has no hyperparameter or option 'scale'"),
    ],
)
def test_what_cannot_be_traced_is_refused(arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        openadam.trace(*arguments, **settings)


def test_a_trace_is_drawn_in_three_ways_only() -> None:
    with pytest.raises(ValueError, match="cannot be shown as 'html', only as text, latex, json"):
        openadam.trace("adam", "1").render("html")


def test_what_is_given_is_left_alone() -> None:
    p, g = np.array([1.0, 2.0]), np.array([[3.0, 4.0]])
    openadam.trace("adam", g, p, lr=0.5)
    assert p.tolist() == [1.0, 2.0]
    assert g.tolist() == [[3.0, 4.0]]


# --- show ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_show_as_latex_has_every_equation(name: str, options: dict[str, str]) -> None:
    shown = openadam.show(name, "latex", **options)
    rule = MEMBERS[name].rule.trace(**options)
    assert shown.startswith("\\begin{aligned}\n")
    assert shown.endswith("\n\\end{aligned}")
    lines = shown.splitlines()[1:-1]
    assert all(line.endswith(r" \\") for line in lines[:-1])
    assert not lines[-1].endswith("\\")
    assert lines[-1].startswith(r"\theta_t &= \theta_{t-1} - \alpha ")
    assert len(lines) == (1 if rule.states else 0) + 1 + len(rule.named) + 1
    assert (r"\lambda" in shown) == (MEMBERS[name].coupling == "decoupled")


def test_show_as_latex_puts_weight_decay_where_the_coupling_says() -> None:
    coupled = openadam.show("sgd", "latex", weight_decay=0.1)
    assert r"g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\" in coupled
    assert r"\theta_t &= \theta_{t-1} - \alpha g_t" in coupled
    decoupled = openadam.show("sgd", "latex", weight_decay=0.1, coupling="decoupled")
    assert r"g_t &= \nabla f(\theta_{t-1}) \\" in decoupled
    assert r"\theta_t &= \theta_{t-1} - \alpha \lambda \theta_{t-1} - \alpha g_t" in decoupled


def test_show_as_latex_says_where_states_start() -> None:
    assert r"G_0 &= \mathrm{initial\_accumulator\_value} \\" in openadam.show("adagrad", "latex")
    assert r"m_0 &= 0, \quad v_0 = 0, \quad \mu_{\mathrm{product},0} = 1 \\" in openadam.show("nadam", "latex")


def test_show_as_python_is_the_source_and_what_it_calls() -> None:
    shown = openadam.show("adam")
    assert shown == openadam.show("adam", "python")
    for part in (openadam.rules.first_moment, openadam.rules.second_moment, openadam.rules.denominator, openadam.rules.adam.function):
        assert inspect.getsource(part).rstrip() in shown
    assert "def amsgrad" not in shown
    for part in (openadam.rules.scale, openadam.rules.prepare, openadam.rules.apply):
        assert inspect.getsource(part).rstrip() in shown
    assert "weight decay is coupled here: `coupled_decay` is weight_decay, `decoupled_decay` is 0" in shown
    assert "weight decay is decoupled here: `decoupled_decay` is weight_decay, `coupled_decay` is 0" in openadam.show("adamw")
    assert openadam.show(own).startswith("@openadam.rule(lr=0.5, keep=0.5")


def test_show_as_python_needs_a_source() -> None:
    namespace: dict[str, Any] = {"openadam": openadam}
    exec("@openadam.rule(lr=1.0)\ndef typed_in(g, s, h):\n    return openadam.Step(g)\n", namespace)
    with pytest.raises(ValueError, match="the source of the rule 'typed_in' cannot be found"):
        openadam.show(namespace["typed_in"])
    assert openadam.show(namespace["typed_in"], "latex").count("\n") == 3


def test_show_as_cpp_is_what_is_compiled() -> None:
    path = Path(__file__).resolve().parent.parent / "native" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    kernels, scalars = generate.kernels(), generate.scalar_programs()
    for name, cls in MEMBERS.items():
        for options in cls.rule.variants():
            shown = openadam.show(name, "c++", **options)
            assert f"void {cls.rule.variant_name(**options)}(" in shown
            surrounded = re.split(r"\n\n(?:// The gradient before that.*\n\n)?", shown)
            assert len(surrounded) == 4
            for kernel, once in (surrounded[:2], surrounded[2:]):
                assert kernel in kernels
                assert once in scalars
            assert f"weight decay is {cls.coupling} here" in shown


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("adamm",), {}, "there is no rule 'adamm'"),
        (("adam", "fortran"), {}, "cannot be shown as 'fortran', only as python, latex, c\\+\\+"),
        (("adam",), {"form": "nesterov"}, "adam has no option 'form'; it has epsilon, bias_correction"),
        (("sgd",), {"form": "nesterov"}, "sgd has no option 'form'; it has none"),
        (("adam",), {"epsilon": "left"}, "epsilon='left' is none of"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: tuple[str, ...], options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        openadam.show(*arguments, **options)


def test_the_module_and_the_function_are_both_found() -> None:
    assert openadam.trace is tracing.trace


# --- names that would be taken for others -------------------------------------------------------------------------------------------


@openadam.rule(lr=0.1, alpha=0.5, sigma=0.25)
def twins(g: Any, s: Any, h: Any) -> openadam.Step:
    m = h.sigma * s.m + g
    m1 = h.alpha * s.m1 + (1 - h.alpha) * g
    m_1 = h.sigma * s.m_1 + m
    return openadam.Step(m1 + m_1, m=m, m1=m1, m_1=m_1, d=2 * g)


def test_names_that_would_be_taken_for_others_are_told_apart() -> None:
    latex = openadam.show(twins, "latex")
    assert r"\theta_t &= \theta_{t-1} - \mathrm{lr} \left( " in latex  # the learning rate, whose symbol is alpha, beside an alpha
    assert r"\alpha m_{1,t-1} + \left( 1 - \alpha \right) g_t" in latex
    assert r"\mathrm{m\_1}_t &= \sigma \mathrm{m\_1}_{t-1} + m_t" in latex  # and m_1 beside m1
    traced = openadam.trace(twins, "1;2")
    lines = {line.name: line for line in traced.steps[1].lines}
    assert [lines[name].symbol.text for name in ("g", "m", "m1", "m_1", "d", "p")] == ["g2", "m[2]", "m1[2]", "m_1[2]", "d2", "p2"]
    assert (lines["direction"].left.latex, lines["d"].left.latex) == (r"\mathrm{direction}_t", "d_t")
    assert "  m1    = alpha*m1[t-1] + (1 - alpha)*g\n  m1[2] = 0.5*0.5 + (1 - 0.5)*2 = 1.25\n" in str(traced)
    drawn = traced.render("latex")
    assert r"\theta_t &= \theta_{t-1} - \mathrm{lr} \mathrm{direction}_t" in drawn
    assert r"m_{1,2} &= 0.5 \cdot 0.5" in drawn
    assert latex_of(openadam.rules.apply(openadam.rules.P, openadam.rules.G, Namespace("scalar"))).count(r"\alpha") == 2


def test_what_stands_alone_keeps_its_symbol() -> None:
    assert r"- \alpha " in openadam.show("adam", "latex")
    assert str(openadam.trace("adam", "1")).count("m_hat1 =") == 1
