"""The language of update rules: what is refused and on which line, what a rule of one's own can do, and the rewrites of the graph."""

from __future__ import annotations

import copy
import itertools
import linecache
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, VARIANTS, Variant, same, spread
from mpmath import mp
from support import refuses

import openadam
from openadam import RuleError, Step, rule, rules
from openadam import engine as engines
from openadam.language import cpp
from openadam.language.arrays import compile_scalars, evaluate, run
from openadam.language.expression import Expression, Namespace, node, postorder, symbol
from openadam.language.program import Program, lower

ROOT = Path(__file__).resolve().parent.parent
Array = np.ndarray[Any, Any]


# --- tracing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", VARIANTS, ids=str)
def test_every_variant_traces(subject: Variant) -> None:
    traced = subject.traced
    assert set(traced.states) <= set(traced.named)
    assert set(traced.initial) == set(traced.states)
    assert set(subject.rule.nonnegative) & set(traced.states) <= set(traced.named)
    assert "t" not in traced.hyperparameters
    program = rules.update_program(traced)
    assert set(program.outputs) == {*traced.element_states, "p"}
    assert {"p"} <= set(program.inputs) <= {"g", "p", *traced.element_states}
    assert traced.name.isidentifier()


def test_variants_have_names_and_programs_of_their_own() -> None:
    traced = [each.trace(**choice) for each in rules.FAMILY for choice in each.variants()]
    assert len({each.name for each in traced}) == len(traced)
    programs = [rules.update_program(each) for each in traced]
    assert len({(program.digest, repr(program.scalars)) for program in programs}) > 0.85 * len(programs)  # SGD-like cases may coincide


# Each is the body of a rule; what is wrong stands on its first line. The text is a part of the message.
WRONG: dict[str, tuple[str, str]] = {
    "if": ("if s.m > 0: pass", "branch on a value"),
    "if on a symbol": ("if g: pass", "branch on a value"),
    "conditional expression": ("m = g if h.t > 1 else s.m", "branch on a value"),
    "while": ("while g < 1: g = g * 2", "branch on a value"),
    "and": ("m = openadam.where(g > 0 and g < 1, g, 0)", "branch on a value"),
    "or": ("m = g or s.m", "branch on a value"),
    "not": ("m = not g", "branch on a value"),
    "chained comparison": ("m = openadam.where(0 < g < 1, g, 0)", "branch on a value"),
    "max": ("m = max(s.m, g)", "maximum"),
    "min": ("m = min(s.m, g)", "minimum"),
    "in": ("m = g in (1, 2)", "branch on a value"),
    "not equal": ("m = openadam.where(g != 0, g, 1)", "`!=` is not in the language"),
    "math.sqrt": ("m = math.sqrt(h.t)", "math"),
    "float": ("m = float(h.t)", "float"),
    "int": ("m = int(h.t)", "float"),
    "complex": ("m = complex(g)", "float"),
    "range": ("for _ in range(h.t): pass", "float"),
    "np.sqrt": ("m = np.sqrt(g)", "write openadam.sqrt(…)"),
    "np.maximum": ("m = np.maximum(g, s.m)", "write openadam.maximum(…)"),
    "np.where": ("m = np.where(g > 0, g, 0)", "write openadam.where(…)"),
    "array": ("m = np.ones(3) * g", "cannot stand in a rule"),
    "array on the right": ("m = g + np.ones(3)", "cannot stand in a rule"),
    "NumPy bool": ("m = g * np.bool_(True)", "cannot stand in a rule"),
    "index": ("m = g[0]", "no items"),
    "slice": ("m = g[1:]", "no items"),
    "iteration": ("for each in g: pass", "no items"),
    "unpacking": ("a, b = g", "no items"),
    "len": ("m = len(g)", "TypeError"),
    "attribute": ("m = g.shape", "no attribute or method `shape`"),
    "method": ("m = g.sum()", "no attribute or method `sum`"),
    "assignment to a state": ("s.m = g", "`m` cannot be assigned"),
    "assignment to a hyperparameter": ("h.lr = 1", "`lr` cannot be assigned"),
    "private name": ("m = s._m", "_m"),
    "matrix product": ("m = g @ s.m", "matrix product"),
    "remainder": ("m = g % 2", "TypeError"),
    "floor division": ("m = g // 2", "TypeError"),
    "shift": ("m = g << 2", "TypeError"),
    "round": ("m = round(g)", "TypeError"),
    "hash": ("m = {g: 1}", "TypeError"),
    "infinite constant": ("m = g * float('inf')", "not finite"),
    "NaN constant": ("m = openadam.maximum(g, math.nan)", "not finite"),
    "constant too large": ("m = g * 10**400", "too large"),
    "string": ("m = g * '2'", "cannot stand in a rule"),
    "bool": ("m = g * True", "cannot stand in a rule"),
    "None": ("m = g + None", "cannot stand in a rule"),
    "equal to None": ("m = openadam.where(g == None, g, 0)", "cannot stand in a rule"),
    "complex constant": ("m = g * 1j", "cannot stand in a rule"),
    "list": ("m = [g, g] * g", "cannot stand in a rule"),
    "comparison as a number": ("m = (g > 0) * g", "first argument of where"),
    "comparison of comparisons": ("m = openadam.where((g > 0) == (s.m > 0), g, 0)", "first argument of where"),
    "number as a condition": ("m = openadam.where(g, g, 0)", "must be a comparison"),
    "tensor to a fraction": ("return Step(g ** 1.5)", "not to 1.5"),
    "tensor to the third root": ("return Step(g ** (1 / 3))", "not to 0.33"),
    "tensor to 0": ("return Step(g ** 0)", "not to 0"),
    "tensor to a negative power": ("return Step(g ** -1)", "not to -1"),
    "tensor to 17": ("return Step(g ** 17)", "not to 17"),
    "tensor to a symbol": ("return Step(g ** h.k)", "raised to 0.5 or to a whole number from 1 to 16, not to k"),
    "number to a tensor": ("return Step(2 ** g)", "raised to 0.5"),
    "state to a symbol": ("return Step(g, m=s.m ** h.k + g)", "raised to 0.5"),
    "exp of a tensor": ("return Step(openadam.exp(g))", "exp of a tensor"),
    "log of a state": ("return Step(g, m=openadam.log(s.m) + g)", "log of a tensor"),
    "exp of a state that a tensor flows into": ("return Step(g, m=s.n, n=s.n + openadam.exp(s.m) + g)", "exp of a tensor"),
    "state not returned": ("return Step(g * s.m)", "reads the state `m` but does not return it"),
    "state named g": ("return Step(g, g=s.g + g)", "that name is taken"),
    "state named p": ("return Step(g, p=s.p + g)", "does not see the parameter"),
    "comparison returned": ("return Step(g > 0)", "the direction is a comparison"),
    "comparison as a state": ("return Step(g, m=s.m > g)", "m is a comparison"),
    "string returned": ("return Step('g')", "cannot stand in a rule"),
    "nothing returned": ("m = g", "must return Step"),
    "expression returned": ("return g", "must return Step"),
    "tuple returned": ("return g, s.m", "must return Step"),
    "generator": ("yield Step(g)", "must return Step"),
    "division by zero": ("m = g * (1 / 0)", "ZeroDivisionError"),
    "unknown name": ("m = nothing", "NameError"),
}


def define(body: str, path: Path) -> Any:
    """A rule of this body, in a file of its own."""
    source = f"import math\nimport numpy as np\nimport openadam\nfrom openadam import Step\n\n\n@openadam.rule\ndef mine(g, s, h):\n    {body}\n"
    return execute(path, source)["mine"]


WHOLE = ("must return", "reads the state", "name is taken")
"""Complaints about a rule as a whole, which name its first line."""


@pytest.mark.parametrize("case", WRONG)
def test_what_the_language_lacks_fails_at_definition_and_names_the_line(case: str, tmp_path: Path) -> None:
    body, text = WRONG[case]
    path = tmp_path / "mine.py"
    with pytest.raises(RuleError) as caught:
        define(body, path)
    message = str(caught.value)
    assert text in message
    line, quoted = (7, "@openadam.rule") if any(complaint in message for complaint in WHOLE) else (9, body)
    assert message.startswith(f"rule 'mine', {path}:{line}: `{quoted}`: ")
    assert isinstance(caught.value, TypeError)


def execute(path: Path, source: str) -> dict[str, Any]:
    """What a file of this source defines; messages quote its lines."""
    path.write_text(source)
    linecache.checkcache(str(path))
    namespace: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace


def test_the_line_may_be_that_of_a_function_that_the_rule_calls(tmp_path: Path) -> None:
    called = "import math, openadam\ndef root(x):\n    return math.sqrt(x)\n@openadam.rule\ndef mine(g, s, h):\n    return openadam.Step(root(g))\n"
    with pytest.raises(RuleError, match=r"mine\.py:3: `return math\.sqrt\(x\)`"):
        execute(tmp_path / "mine.py", called)


def test_a_fault_in_one_variant_shows_at_definition(tmp_path: Path) -> None:
    bad = (
        "import openadam\n@openadam.rule(options={'form': ('fine', 'bad')})\ndef mine(g, s, h, *, form):\n"
        "    if form == 'fine':\n        return openadam.Step(g)\n    return openadam.Step(g[0])\n"
    )
    with pytest.raises(RuleError, match=r"mine\.py:6: `return openadam\.Step\(g\[0\]\)`"):
        execute(tmp_path / "mine.py", bad)


@pytest.mark.parametrize("thing", [None, 3, "adam", print, RuleError])
def test_only_functions_are_rules(thing: Any) -> None:
    with pytest.raises(TypeError, match="decorates a function"):
        rule(lr=0.1)(thing)


def test_the_arguments_of_the_decorator_are_checked() -> None:
    with pytest.raises(RuleError, match="`initial` names the state 'n'"):
        rule(initial={"n": 1.0})(lambda g, s, h: Step(g, m=s.m + g))
    with pytest.raises(TypeError, match="no option 'form'; it has epsilon, bias_correction"):
        rules.adam.trace(form="nesterov")
    with pytest.raises(ValueError, match="epsilon='root' is none of 'outside', 'inside', 'hat'"):
        rules.adam.trace(epsilon="root")


@pytest.mark.parametrize("body", ["return Step(g * h.gradient_scale)", "return Step(g * h.clip_norm)", "return Step(g, step=s.step + g)"])
def test_names_that_mean_something_else_are_refused(body: str, tmp_path: Path) -> None:
    with pytest.raises(RuleError):
        define(body, tmp_path / "mine.py")


# --- what the language has ---------------------------------------------------------------------------------------------


@rule(initial={"count": 2.0, "peak": "floor"}, nonnegative=("peak",), options={"form": ("plain", "signed")}, lr=0.1, beta=0.9, floor=0.25)
def everything(g: Any, s: Any, h: Any, *, form: str) -> Step:
    """Every operation there is, a scalar state and element states."""
    count = s.count + openadam.exp(-h.t) * openadam.minimum(h.beta, 0.5)
    m = h.beta * s.m + (1 - h.beta) * g
    peak = openadam.maximum(s.peak * h.beta, abs(g))
    warm = openadam.where(h.t <= 2, openadam.sqrt(h.t), openadam.log(h.t + 1) + 2.0**-h.t)
    direction = -(-m / (peak + openadam.sqrt(peak) ** 3)) * warm / count
    if form == "signed":
        direction = openadam.where(abs(direction) < 0.1, direction, openadam.sign(direction) + 1 - 1)
    return Step(direction + 0 * openadam.minimum(g, m) + peak**0.5 * 0, m=m, peak=peak, count=count)


def textbook(g: Array, p: Array, t: int, s: dict[str, Any], form: str) -> Array:
    """The same rule, by hand."""
    s["count"] = s["count"] + math.exp(-t) * 0.5
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["peak"] = np.maximum(s["peak"] * 0.9, np.abs(g))
    warm = math.sqrt(t) if t <= 2 else math.log(t + 1) + 2.0**-t
    direction = s["m"] / (s["peak"] + np.sqrt(s["peak"]) ** 3) * warm / s["count"]
    if form == "signed":
        direction = np.where(np.abs(direction) < 0.1, direction, np.sign(direction))
    return p - 0.1 * direction


@pytest.mark.parametrize("form", ["plain", "signed"])
def test_a_rule_of_ones_own_computes_what_it_says(form: str) -> None:
    random = np.random.default_rng(0)
    p = random.normal(size=20)
    optimizer = openadam.Optimizer({"w": p.copy()}, rule=everything, form=form)
    s: dict[str, Any] = {"count": 2.0, "m": np.zeros(20), "peak": np.full(20, 0.25)}
    for t in range(1, 6):
        g = random.normal(size=20)
        p = textbook(g, p, t, s, form)
        optimizer.step({"w": g})
        assert np.allclose(optimizer.params["w"], p, rtol=1e-13)
        for name, value in s.items():
            assert np.allclose(optimizer.state["w"][name], value, rtol=1e-13)


def grouped(**settings: Any) -> openadam.Optimizer:
    """A rule of one's own over two groups, with a schedule; both dtypes."""
    groups = [{"params": {"a": np.ones(3)}}, {"params": {"b": np.ones((2, 2), np.float32)}, "lr": openadam.Linear(0.5, 0.1, steps=4), "beta": 0.5}]
    return openadam.Optimizer(groups, rule=everything, weight_decay=0.1, coupling="decoupled", clip_norm=2.0, **settings)


def take_steps(optimizer: openadam.Optimizer, count: int) -> None:
    for _ in range(count):
        random = np.random.default_rng(optimizer.steps)
        optimizer.step([{name: random.normal(size=optimizer.params[name].shape).astype(optimizer.params[name].dtype)} for name in "ab"])


COPIES: dict[str, Callable[[openadam.Optimizer], openadam.Optimizer]] = {
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", [*COPIES, "state_dict"])
def test_a_rule_of_ones_own_is_a_full_member(way: str) -> None:
    """Groups, schedules, decay, clipping, states by name, and going on from a copy in every bit."""
    first, straight = grouped(form="signed"), grouped(form="signed")
    take_steps(straight, 6)
    take_steps(first, 3)
    if way == "state_dict":
        second = grouped(form="signed")
        for name, p in second.params.items():
            p[...] = first.params[name]
        second.load_state_dict(first.state_dict())
    else:
        second = COPIES[way](first)
    take_steps(second, 3)
    assert same(second.params, straight.params)
    assert same(second.state, straight.state)
    assert second.groups[1]["lr"] == openadam.Linear(0.5, 0.1, steps=4)
    assert set(second.state["a"]) == {"step", "m", "peak", "count"}
    assert first.steps == 3
    assert "everything_signed" in repr(second)


def test_a_rule_of_ones_own_is_as_strict_as_any() -> None:
    optimizer = grouped()
    take_steps(optimizer, 1)
    gradients = [{"a": np.ones(3)}, {"b": np.full((2, 2), np.nan, np.float32)}]
    refuses(optimizer, lambda: optimizer.step(gradients), openadam.NonFiniteGradientError, "'b'")
    loaded = optimizer.state_dict()
    loaded["state"]["a"]["peak"][0] = -1
    refuses(optimizer, lambda: optimizer.load_state_dict(loaded), openadam.CheckpointCorruptError, "'peak'")
    with pytest.raises(openadam.UnknownHyperparameterError, match="did you mean 'beta'"):
        openadam.Optimizer(np.zeros(1), rule=everything, betta=0.1)
    with pytest.raises(openadam.HyperparameterError, match="form='round'"):
        openadam.Optimizer(np.zeros(1), rule=everything, form="round")
    with pytest.raises(openadam.HyperparameterError, match="beta=inf is out of range"):
        openadam.Optimizer(np.zeros(1), rule=everything, beta=math.inf)


def test_a_subclass_is_a_member_too() -> None:
    class Everything(openadam.Optimizer):
        """A member by the same means as the package's own."""

        rule = everything
        defaults = {"lr": 0.2, "weight_decay": 0.0, "form": "signed"}
        state_names = {"peak": "max_grad"}

    optimizer = Everything([np.ones(2)])
    optimizer.step([np.ones(2)])
    assert optimizer.groups[0]["lr"] == 0.2
    assert "max_grad" in optimizer.state["0"]


def test_a_copy_of_a_rule_of_the_package_gets_its_kernel() -> None:
    """Kernels belong to graphs, not to functions."""

    @rule(nonnegative=("v",))
    def adam(g: Any, s: Any, h: Any) -> Step:
        m = h.beta1 * s.m + (1 - h.beta1) * g
        v = h.beta2 * s.v + (1 - h.beta2) * g**2
        return Step(m / (1 - h.beta1**h.t) / (openadam.sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)

    own, given = rules.update_program(adam.trace()), rules.update_program(rules.adam.trace())
    assert own.digest == given.digest
    assert openadam.Optimizer(np.zeros(1), rule=adam, lr=0.1, beta1=0.9, beta2=0.99, eps=0.1)._engine.name == ENGINES[0]


def test_the_same_rule_under_another_name_has_no_kernel() -> None:
    assert openadam.Optimizer(np.zeros(1), rule=everything)._engine.name == ("interpreter" if len(ENGINES) > 1 else "reference")
    with pytest.raises(openadam.HyperparameterError, match=r"no kernel for 'everything'|no native code here"):
        openadam.Optimizer(np.zeros(1), rule=everything, engine="native")


# --- digests and stale kernels -----------------------------------------------------------------------------------------


def program(body: Callable[[Any, Any, Any], Step]) -> Program:
    return rules.update_program(rule(body).trace())


def test_digests_differ_where_graphs_differ() -> None:
    graphs: list[Callable[[Any, Any, Any], Step]] = [
        lambda g, s, h: Step(g),
        lambda g, s, h: Step(g * 2),
        lambda g, s, h: Step(g * 3),
        lambda g, s, h: Step(-g),
        lambda g, s, h: Step(g + g),
        lambda g, s, h: Step(g * g),
        lambda g, s, h: Step(g / (g + 1)),
        lambda g, s, h: Step((g + 1) / g),
        lambda g, s, h: Step(g - 1),
        lambda g, s, h: Step(1 - g),
        lambda g, s, h: Step(g * h.a),
        lambda g, s, h: Step(g * h.a * h.b),
        lambda g, s, h: Step(g * (h.a * g)),
        lambda g, s, h: Step(openadam.where(g < 0, g, 1)),
        lambda g, s, h: Step(openadam.where(g <= 0, g, 1)),
        lambda g, s, h: Step(openadam.where(g > 0, g, 1)),
        lambda g, s, h: Step(openadam.maximum(g, 1)),
        lambda g, s, h: Step(openadam.minimum(g, 1)),
        lambda g, s, h: Step(abs(g)),
        lambda g, s, h: Step(openadam.sign(g)),
        lambda g, s, h: Step(openadam.sqrt(g)),
        lambda g, s, h: Step(s.m, m=s.m + g),
        lambda g, s, h: Step(s.m, m=g + s.m),
        lambda g, s, h: Step(s.n, n=s.n + g),
        lambda g, s, h: Step(s.m, m=s.m + g, n=s.n + g),
        lambda g, s, h: Step(s.m, n=s.n + g, m=s.m + g),
    ]
    digests = [program(graph).digest for graph in graphs]
    assert [a for a, b in itertools.combinations(range(len(graphs)), 2) if digests[a] == digests[b]] == []
    assert digests == [program(graph).digest for graph in graphs], "and are the same from one time to the next"


def test_digests_are_the_same_in_every_process() -> None:
    script = "from openadam import rules; print([rules.update_program(r.trace()).digest for r in rules.FAMILY])"
    here = str([rules.update_program(each.trace()).digest for each in rules.FAMILY])
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == here


def forget_engines() -> None:
    """Engines are kept once they have been made."""
    for each in vars(engines).values():
        getattr(each, "cache_clear", int)()


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
@pytest.mark.parametrize("what", ["rule", "preparation", "measures"])
def test_stale_kernels_are_not_used(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the compiled code was printed from other graphs than these, steps run on the reference."""
    native = engines._native
    rows = native.updates(0)

    class Stale:
        """The native module, but for one thing that has changed since it was built."""

        def __getattr__(self, name: str) -> Any:
            return getattr(native, name)

        def updates(self, isa: int) -> Any:
            changed = {"rule": "adam", "preparation": rows[0][0]}.get(what)
            return [(name, "0" * 16 if name == changed else digest, *rest) for name, digest, *rest in rows]

        def measures(self, isa: int) -> Any:
            return native.measures(isa)[::-1] if what == "measures" else native.measures(isa)

    monkeypatch.setattr(engines, "_native", Stale())
    forget_engines()
    try:
        assert openadam.Adam(np.zeros(1))._engine.name == ("interpreter" if what == "rule" else "reference")
        assert openadam.SGD(np.zeros(1))._engine.name == ("native" if what == "rule" else "reference")
        with pytest.raises(openadam.HyperparameterError, match="no kernel for 'adam'"):
            openadam.Adam(np.zeros(1), engine="native")
        w = np.ones(3)
        openadam.Adam(w, lr=0.5).step(np.ones(3))
        assert np.allclose(w, 0.5)
    finally:
        monkeypatch.undo()
        forget_engines()


def test_the_build_prints_the_rules_that_are_here(tmp_path: Path) -> None:
    """The generator needs the standard library only, and what it prints says which graph it is."""
    generator = ROOT / "native" / "generate.py"
    if not generator.exists():
        pytest.skip("the sources are not here")
    subprocess.run([sys.executable, "-S", str(generator), str(tmp_path)], check=True)
    printed, once = ((tmp_path / f"generated_{what}.hpp").read_text() for what in ("kernels", "scalars"))
    for each in rules.FAMILY:
        for choice in each.variants():
            found = rules.update_program(each.trace(**choice))
            assert f'X("{found.name}", "{found.digest}", ' in printed
            assert cpp.update(found) in printed
            assert cpp.scalars(found) in once


# --- rewrites ----------------------------------------------------------------------------------------------------------


def scalar(expression: Expression, **values: float) -> float:
    """The value of a scalar as an optimizer computes it: lowered, then compiled."""
    lowered = lower("scalar", {"p": symbol("tensor", "p") * expression})
    (root,) = lowered.scalars
    (value,) = compile_scalars([root])(values)
    assert evaluate([root], {("scalar", name): number for name, number in values.items()}) == [value]
    return value


H = Namespace("scalar")
exact = mp.clone()
exact.prec = 400


@pytest.mark.parametrize("beta", [0.0, 1e-300, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1 - 2**-53], ids=str)
def test_one_minus_a_power(beta: float) -> None:
    """Within 2 ulp of the truth, where the plain form is wrong by up to all its digits."""
    for t in [*range(1, 30), 100, 1000, 12_345, 10**6, 10**9, 2**53 - 1]:
        value = scalar(1 - H.b**H.t, b=beta, t=float(t))
        truth = 1 - exact.mpf(beta) ** t
        assert abs(exact.mpf(value) - truth) <= 2 * math.ulp(float(truth)), t
        assert 0 < value <= 1


def test_one_minus_a_power_is_rewritten_only_where_it_is_that() -> None:
    operations = {each.operation for each in postorder(*lower("x", {"p": symbol("tensor", "p") * (1 - H.b**H.t)}).scalars)}
    assert "expm1" in operations
    for other in (2 - H.b**H.t, H.b**H.t - 1, 1 - H.b, 1 + H.b**H.t):
        operations = {each.operation for each in postorder(*lower("x", {"p": symbol("tensor", "p") * other}).scalars)}
        assert "expm1" not in operations


@pytest.mark.parametrize(("base", "exponent"), [(-0.5, 1.0), (-0.5, 2.0), (-2.0, 3.0), (0.0, 0.0)])
def test_one_minus_a_power_of_any_base(base: float, exponent: float) -> None:
    """A rule of one's own may have a negative base, or the exponent t - 1: the rewrite must not turn numbers into NaN."""
    assert scalar(1 - H.b**H.t, b=base, t=exponent) == 1 - base**exponent


def element(build: Callable[..., Expression], dtype: Any = np.float64, states: tuple[str, ...] = (), **arrays: Any) -> Array:
    """What an expression of g, p and h.c gives on arrays; ``c`` is the scalar."""
    c = arrays.pop("c", None)
    g, p = symbol("tensor", "g"), symbol("tensor", "p")
    lowered = lower("element", {"out": build(g, p) if c is None else build(g, p, H.c)}, states=states)
    given = {name: np.asarray(array, dtype) for name, array in arrays.items()}
    with np.errstate(all="ignore"):
        return run(lowered, given, compile_scalars(lowered.scalars)({} if c is None else {"c": c}), np)["out"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dividing_by_a_scalar_is_multiplying_by_its_reciprocal(dtype: Any) -> None:
    """Which is computed in float64 and rounded once."""
    g = spread(np.random.default_rng(0), 1000, dtype)
    for c in (3.0, 0.1, 1e-5, 7e10):
        assert same(element(lambda g, p, c: g / c, dtype, g=g, c=c), g * dtype(1 / c))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dividing_by_an_element_is_0_where_that_is_0(dtype: Any) -> None:
    above = [1, -1, 0, -0.0, np.inf, np.nan, 3]
    assert element(lambda g, p: g / p, dtype, g=above, p=np.zeros(7)).tolist() == [0] * 7
    assert element(lambda g, p: g / p, dtype, g=above, p=-np.zeros(7)).tolist() == [0] * 7
    assert same(element(lambda g, p: 1 / g, dtype, g=[2, 0, np.inf]), np.array([0.5, 0, 0], dtype))
    assert np.isnan(element(lambda g, p: g / p, dtype, g=[1, np.nan], p=[np.nan, 1])).all()
    least = np.finfo(dtype).smallest_subnormal
    assert element(lambda g, p: g / p, dtype, g=[least], p=[least]).tolist() == [1], "a subnormal divisor is not 0"


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_are_stored_without_subnormal_numbers(dtype: Any) -> None:
    tiny = np.finfo(dtype).smallest_normal
    below = np.nextafter(tiny, dtype(0))
    g = np.array([tiny, -tiny, below, -below, np.finfo(dtype).smallest_subnormal, 0, 1, np.inf, np.nan], dtype)
    kept = element(lambda g, p: g, dtype, states=("out",), g=g)
    assert same(kept[:8], np.array([tiny, -tiny, 0, 0, 0, 0, 1, np.inf], dtype))
    assert np.isnan(kept[8])
    assert same(element(lambda g, p: g, dtype, g=g), g), "what is no state is left alone"


SPECIAL = [0.0, -0.0, 1.0, -2.0, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("name", ["maximum", "minimum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum_and_minimum_keep_nan(name: str, dtype: Any) -> None:
    a, b = np.array(list(itertools.product(SPECIAL, SPECIAL)), dtype).T
    found = element(lambda g, p: getattr(openadam, name)(g, p), dtype, g=a, p=b)
    expected = getattr(np, name)(a, b)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isnan(found).sum() == 2 * len(SPECIAL) - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs(dtype: Any) -> None:
    found = element(lambda g, p: openadam.sign(g), dtype, g=SPECIAL)
    assert np.array_equal(found, np.sign(np.array(SPECIAL, dtype)), equal_nan=True)


@pytest.mark.parametrize("exponent", [1, 2, 3, 4, 5, 8, 15, 16])
def test_whole_powers_are_multiplied_out(exponent: int) -> None:
    g = spread(np.random.default_rng(0), 100, np.float64, -2, 2)
    found = element(lambda g, p: g**exponent, g=g)
    assert np.allclose(found, g**exponent, rtol=exponent * 1e-16)
    if exponent == 2:
        assert same(found, g * g)


def test_a_power_of_one_half_is_the_root() -> None:
    g = np.abs(spread(np.random.default_rng(0), 100, np.float64))
    assert same(element(lambda g, p: g**0.5, g=g), np.sqrt(g))


def test_zeros_of_either_sign_are_constants_of_their_own() -> None:
    found = element(lambda g, p: openadam.where(g < 0, node("add", -0.0, 0 * p - 0.0), openadam.where(g < 1, 0.0, -0.0)), g=[2.0, 0.5], p=[1.0, 1.0])
    assert np.signbit(found).tolist() == [True, False]


def test_what_is_shared_is_computed_once() -> None:
    g = symbol("tensor", "g")
    lowered = lower("shared", {"a": (g + 1) * (g + 1), "b": g + 1})
    assert [each.operation for each in lowered.instructions] == ["add", "multiply"]


def test_scalars_are_computed_once_a_step_and_elements_in_the_loop() -> None:
    lowered = rules.update_program(rules.adam.trace())
    assert all(each.operation not in ("power", "expm1", "log") for each in lowered.instructions)
    assert len(lowered.scalars) == len({repr(each) for each in lowered.scalars})


def test_scalar_functions_answer_like_ieee_arithmetic() -> None:
    """Where Python raises, a step goes on with NaN or infinity."""
    cases: list[tuple[Expression, dict[str, float], float]] = [
        (1 / H.a, {"a": 0.0}, math.inf),
        (-1 / H.a, {"a": 0.0}, -math.inf),
        (0 / H.a, {"a": 0.0}, math.nan),
        (H.a**H.b, {"a": 10.0, "b": 400.0}, math.inf),
        (H.a**H.b, {"a": -1.0, "b": 0.5}, math.nan),
        (openadam.exp(H.a), {"a": 1000.0}, math.inf),
        (openadam.exp(H.a), {"a": -1000.0}, 0.0),
        (openadam.log(H.a), {"a": 0.0}, -math.inf),
        (openadam.log(H.a), {"a": -1.0}, math.nan),
        (openadam.sqrt(H.a), {"a": -1.0}, math.nan),
        (H.a * H.a, {"a": 1e200}, math.inf),
        (openadam.maximum(H.a, 1), {"a": math.nan}, math.nan),
        (openadam.minimum(1, H.a), {"a": math.nan}, math.nan),
        (openadam.sign(H.a), {"a": -3.0}, -1.0),
        (openadam.where(H.a < 1, 2, 3), {"a": math.nan}, 3.0),
    ]
    for expression, values, expected in cases:
        (value,) = compile_scalars([expression])(values)
        assert value == expected or (math.isnan(value) and math.isnan(expected)), expression
        (again,) = evaluate([expression], {("scalar", name): number for name, number in values.items()})
        assert repr(again) == repr(value)


def test_repeated_symbols_do_not_grow_the_graph() -> None:
    """Fifty doublings are fifty nodes, not 2**50."""
    x: Any = symbol("tensor", "g")
    for _ in range(50):
        x = x + x
    assert len(lower("deep", {"out": x}).instructions) == 50
    assert len(repr(x)) < 10_000
