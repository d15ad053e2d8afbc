"""Rules of one's own: what a definition may say, names that are taken, numbers that are not finite, copies, and files."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam
from openadam import Step
from openadam.errors import CheckpointCorruptError, CheckpointMismatchError, HyperparameterError, NonFiniteStateError, RuleError


@openadam.rule
def adam(g: Any, s: Any, h: Any) -> Step:
    """Not the family's, though it is called so."""
    m = h.beta1 * s.m + (1 - h.beta1) * g
    return Step(m, m=m)


def plain(g: Any, s: Any, h: Any) -> Step:
    return Step(h.beta1 * s.m + g, m=h.beta1 * s.m + g)


def with_form(g: Any, s: Any, h: Any, *, form: str) -> Step:
    return Step(g if form == "a" else -g)


@pytest.mark.parametrize("name", ["t", "lr", "beta1", "weight_decay", "gradient_scale", "decoupled_decay", "clip_value", "step", "g"])
def test_a_state_cannot_take_the_place_of_something_else(name: str) -> None:
    def takes(g: Any, s: Any, h: Any) -> Step:
        return Step(g * h.t * h.beta1, **{name: getattr(s, name) + 10})

    with pytest.raises(RuleError, match=f"named `{name}`: that name is taken"):
        openadam.rule(lr=1.0)(takes)


@pytest.mark.parametrize("name", ["g", "p", "t"])
def test_an_intermediate_cannot_be_called_as_a_tensor_is(name: str) -> None:
    with pytest.raises(RuleError, match="that name is taken"):
        openadam.rule(lambda g, s, h: Step(g, **{name: 2 * g}))


DEFINITIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "options as a string": (lambda: openadam.rule(options={"form": "ab"})(with_form), "tuple of different strings"),
    "no choices": (lambda: openadam.rule(options={"form": ()})(with_form), "tuple of different strings"),
    "choices that are not strings": (lambda: openadam.rule(options={"form": (True, False)})(with_form), "tuple of different strings"),  # type: ignore[dict-item]
    "an option that is no parameter": (lambda: openadam.rule(options={"from": ("a", "b")})(plain), "no keyword-only parameter"),
    "a parameter that is no option": (lambda: openadam.rule(with_form), "not among `options`"),
    "four arguments": (lambda: openadam.rule(lambda g, s, h, p: Step(g)), r"function of \(g, s, h\)"),
    "nonnegative as a string": (lambda: openadam.rule(nonnegative="vmax")(plain), r"write nonnegative=\('vmax',\)"),  # type: ignore[arg-type]
    "nonnegative of no state": (lambda: openadam.rule(nonnegative=("v",))(plain), "`nonnegative` names the state 'v'"),
    "initial of no state": (lambda: openadam.rule(initial={"mm": 1.0})(plain), "did you mean 'm'"),
    "initial None": (lambda: openadam.rule(initial={"m": None})(plain), "start at None"),  # type: ignore[dict-item]
    "initial NaN": (lambda: openadam.rule(initial={"m": float("nan")})(plain), "start at nan"),
    "initial array": (lambda: openadam.rule(initial={"m": np.ones(3)})(plain), "give a finite number"),  # type: ignore[dict-item]
    "an unused default": (lambda: openadam.rule(bata1=0.9)(plain), "did you mean 'beta1'"),
    "the parameter": (lambda: openadam.rule(lambda g, s, h: Step(g + s.p)), "does not see the parameter"),
    "np.sqrt": (lambda: openadam.rule(lambda g, s, h: Step(np.sqrt(g))), r"write openadam\.sqrt"),
    "np.tanh": (lambda: openadam.rule(lambda g, s, h: Step(np.tanh(g))), "it has operators and sqrt"),
    "np.square": (lambda: openadam.rule(lambda g, s, h: Step(np.square(g))), r"write x\*\*2"),
    "&": (lambda: openadam.rule(lambda g, s, h: Step(openadam.where((g < 1) & (g > 0), g, 0))), "nest them"),
    "an index": (lambda: openadam.rule(lambda g, s, h: Step(g + s["m"])), r"write s\.m"),
    "an array": (lambda: openadam.rule(lambda g, s, h: Step(np.ones(3) * g)), "cannot stand in a rule"),
    "options that are no choices": (lambda: openadam.rule(options={"form": None})(with_form), "tuple of different strings"),  # type: ignore[dict-item]
    "an option that is no name": (lambda: openadam.rule(options={3: ("a",)})(with_form), "the option 3 is not a name"),  # type: ignore[dict-item]
    "initial as a string": (lambda: openadam.rule(initial="m")(plain), "initial='m' is not a mapping"),  # type: ignore[arg-type]
    "initial below what is nonnegative": (lambda: openadam.rule(initial={"m": -1.0}, nonnegative=("m",))(plain), "never below 0"),
    "at_most of elements": (lambda: openadam.rule(at_most={"m": 1.0})(plain), "for scalar states"),
    "at_most that is no number": (lambda: openadam.rule(at_most={"n": "x"})(lambda g, s, h: Step(g, n=s.n + 1)), "give a finite number"),  # type: ignore[dict-item]
    "initial as the step": (lambda: openadam.rule(initial={"m": "t"})(plain), "that name is taken"),
    "a hyperparameter called as a setting": (lambda: openadam.rule(lambda g, s, h: Step(g * h.max_skips)), "named `max_skips`"),
    "an option called as a setting": (
        lambda: openadam.rule(options={"clip_norm": ("a", "b")})(lambda g, s, h, *, clip_norm: Step(g)),
        "an option cannot be named `clip_norm`: every optimizer of this rule has a setting",
    ),
    "an option called as a hyperparameter": (
        lambda: openadam.rule(options={"beta1": ("a", "b")})(lambda g, s, h, *, beta1: Step(h.beta1 * g)),
        "an option cannot be named `beta1`: every optimizer of this rule has a hyperparameter",
    ),
    "the learning rate as an option": (lambda: openadam.rule(options={"lr": ("a", "b")})(lambda g, s, h, *, lr: Step(g)), "named `lr`"),
    "an option with a default": (
        lambda: openadam.rule(options={"form": ("a", "b")}, form="b")(with_form),  # type: ignore[arg-type]
        r"form='b': the default of an option is the first of its choices, \('a', 'b'\); put it there",
    ),
    "another default in the function": (
        lambda: openadam.rule(options={"form": ("a", "b")})(lambda g, s, h, *, form="b": Step(g)),
        r"default form='b' is not the first of the choices \('a', 'b'\)",
    ),
    "ranges of nothing": (lambda: openadam.rule(ranges={"beta9": "beta1"})(plain), "`ranges` has 'beta9'.* did you mean 'beta1'"),
    "ranges of every rule": (lambda: openadam.rule(ranges={"lr": (0, 1)})(plain), "`ranges` has 'lr'"),
    "a range as nothing that is known": (lambda: openadam.rule(ranges={"beta1": "betas"})(plain), "two numbers, the least and the greatest"),
    "a range that is empty": (lambda: openadam.rule(ranges={"beta1": (1, 0)})(plain), "two numbers"),
    "a range that is no pair": (lambda: openadam.rule(ranges={"beta1": 1.0})(plain), "two numbers"),  # type: ignore[dict-item]
    "ranges as a list": (lambda: openadam.rule(ranges=[("beta1", (0, 1))])(plain), "is not a mapping"),  # type: ignore[arg-type]
    "a hyperparameter called as the gradient": (lambda: openadam.rule(lambda g, s, h: Step(g * h.gradient)), "cannot be named `gradient`"),
    "an intermediate called as a hyperparameter": (lambda: openadam.rule(lambda g, s, h: Step(g * h.beta, beta=2 * g)), "named `beta`"),
}


@pytest.mark.parametrize("which", DEFINITIONS)
def test_nonsense_is_refused_where_it_is_defined(which: str) -> None:
    define, says = DEFINITIONS[which]
    with pytest.raises(RuleError, match=says):
        define()


def test_numbers_of_numpy_and_a_plus_sign_are_plain_arithmetic() -> None:
    made = openadam.rule(lambda g, s, h: Step(np.float64(0.5) * +g / np.int64(2)))
    w = np.zeros(1)
    openadam.Optimizer(w, rule=made, lr=1.0).step(np.ones(1))
    assert w == [-0.25]


def test_any_number_of_states() -> None:
    @openadam.rule(lr=0.1)
    def six(g: Any, s: Any, h: Any) -> Step:
        return Step(s.f, a=g, b=s.a, c=s.b, d=s.c, e=s.d, f=s.e)

    w = np.zeros(2)
    optimizer = openadam.Optimizer(w, rule=six)
    for k in range(7):
        optimizer.step(np.full(2, float(k == 0)))
        assert w.tolist() == ([0.0] * 2 if k < 6 else [-0.1] * 2)


def late(g: Any, s: Any, h: Any) -> Step:
    m = h.beta1 * s.m + g
    return Step(m / (1 - h.beta1 ** (h.t - 1)), m=m)


NOT_FINITE: dict[str, Callable[..., Step]] = {
    "a scalar divided by 0": late,
    "the root of a negative number": lambda g, s, h: Step(openadam.sqrt(-abs(g) - h.beta1)),
    "a state": lambda g, s, h: Step(g, m=s.m + openadam.sqrt(-abs(g) - h.beta1)),
    "a scalar state": lambda g, s, h: Step(g, c=s.c + h.beta1 / (h.t - 1)),
    "a number beyond float32": lambda g, s, h: Step(1e300 * g + h.beta1),
}


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
@pytest.mark.parametrize("which", NOT_FINITE)
def test_what_finite_gradients_make_infinite_is_treated_as_gradients_are(which: str, nonfinite: str) -> None:
    first, second = np.zeros(2, np.float32), np.ones(3, np.float32)
    made = openadam.rule(lr=0.1, beta1=0.9)(NOT_FINITE[which])
    optimizer = openadam.Optimizer({"a": first, "b": second}, rule=made, nonfinite=nonfinite)
    before = optimizer.state_dict()
    gradients = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
    if nonfinite == "propagate":
        optimizer.step(gradients)
        assert optimizer.steps == 1
        return
    if nonfinite == "raise":
        with pytest.raises(NonFiniteStateError, match="parameter 'a' would not be finite"):
            optimizer.step(gradients)
    else:
        assert optimizer.step(gradients).skipped
        assert optimizer.skipped == 1
    assert first.tolist() == [0.0] * 2
    assert second.tolist() == [1.0] * 3
    assert optimizer.steps == 0
    for name, state in before["state"].items():
        for key, value in state.items():
            assert np.array_equal(optimizer.state[name][key], value)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_velocity_that_grows_without_bound_is_noticed(engine: str) -> None:
    if engine == "native" and not openadam.engine.native_isas():
        pytest.skip("there is no native code here")
    w = np.ones(1, np.float32)
    optimizer = openadam.Momentum({"w": w}, momentum=1.9, engine=engine)

    def run() -> None:
        for _ in range(200):
            optimizer.step({"w": np.ones(1, np.float32)})

    with pytest.raises(NonFiniteStateError, match="parameter 'w' would not be finite"):
        run()
    assert np.isfinite(w).all()
    assert np.isfinite(optimizer.state["w"]["momentum_buffer"]).all()


def test_what_could_not_be_loaded_replaces_no_file(tmp_path: Path) -> None:
    w = np.ones(1, np.float32)
    optimizer = openadam.Momentum({"w": w}, momentum=1.9)
    path = tmp_path / "run.safetensors"
    optimizer.save(path)
    good = path.read_bytes()
    optimizer._rows[0].states[0][...] = np.inf
    with pytest.raises(openadam.errors.CheckpointError, match="'momentum_buffer' of parameter 'w'"):
        optimizer.save(path)
    assert path.read_bytes() == good


def test_a_copy_goes_on_with_its_own_rule() -> None:
    w = np.array([1.0, 2.0])
    one = openadam.Adam([w], rule=adam, lr=0.1)
    for two in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        v = two.params["0"]
        assert two._rule is adam
        two.step([np.array([1.0, 3.0])])
        assert v.tolist() == pytest.approx([0.99, 1.97])
    family = openadam.Adam([np.array([1.0, 2.0])], lr=0.1)
    mine = openadam.Optimizer([np.array([1.0, 2.0])], rule=openadam.rule(beta1=0.5)(two_moments), lr=0.1)
    mine_state = {**mine.state_dict(), "rule": "adam"}
    with pytest.raises(CheckpointMismatchError, match="another rule that is called 'adam'"):
        family.load_state_dict(mine_state)
    old = family.state_dict()
    del old["program"]  # as the first versions wrote it
    family.load_state_dict(old)


def two_moments(g: Any, s: Any, h: Any) -> Step:
    m, v = h.beta1 * s.m + g, h.beta1 * s.v + g * g
    return Step(m, m=m, v=v)


def test_options_with_the_same_choices_are_different_variants() -> None:
    @openadam.rule(options={"clip": ("off", "on"), "bias": ("off", "on")}, lr=0.1)
    def r(g: Any, s: Any, h: Any, *, clip: str, bias: str) -> Step:
        return Step(g if clip == "off" else 2 * g, m=s.m + g)

    a, b = openadam.Optimizer([np.zeros(1)], rule=r, clip="on"), openadam.Optimizer([np.zeros(1)], rule=r, bias="on")
    with pytest.raises(CheckpointMismatchError):
        b.load_state_dict(a.state_dict())


def test_a_rule_that_cannot_be_found_again_is_not_pickled() -> None:
    local = openadam.rule(lambda g, s, h: Step(g))
    optimizer = openadam.Optimizer(np.zeros(1), rule=local, lr=0.1)
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"<lambda>|local object"):
        pickle.dumps(optimizer)
    assert copy.deepcopy(optimizer)._rule is local


class Named(openadam.Adam):
    """A subclass with a constructor and attributes of its own."""

    def __init__(self, params: Any, rate: float) -> None:
        super().__init__(params, lr=rate)
        self.note = ["mine"]


def test_a_subclass_is_copied_whole() -> None:
    one = Named(np.zeros(1), 0.1)
    one.step(np.ones(1))
    for two in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(two) is Named
        assert two.note == ["mine"]
        assert two.groups[0]["lr"] == 0.1
        assert two.steps == 1
    assert copy.deepcopy(one).note is not one.note


def test_states_may_be_called_as_words_of_cpp_are() -> None:
    """Every name that a printed kernel declares is its own, and none is a word of the language."""

    @openadam.rule(lr=0.1)
    def words(g: Any, s: Any, h: Any) -> Step:
        new, i, n, x0, T = s.new + g, s.i + g, s.n * h.a, s.x0 + s.c0, s.T + g
        return Step(new + i + n + x0 + T, new=new, i=i, n=n + g, x0=x0 + g, c0=s.c0 + g, T=T)

    printed = openadam.show(words, as_="c++").split("\n\n")[0]
    declared = re.findall(r"(?:const T|bool|T\* RESTRICT|std::int64_t) (\w+)(?: =|;)", printed)
    assert len(set(declared)) == len(declared) > 12
    assert not {"new", "i", "n", "T"} & set(declared) - {"i"}
    assert declared.count("i") == 1  # the loop's own


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
def test_a_state_that_breaks_the_rules_word_is_refused(nonfinite: str) -> None:
    def falls(g: Any, s: Any, h: Any) -> Step:
        return Step(g, m=s.m - g, n=s.n + 1)

    w = np.ones(2)
    optimizer = openadam.Optimizer(w, rule=openadam.rule(lr=0.1, nonnegative=("m",))(falls), nonfinite=nonfinite)
    with pytest.raises(RuleError, match="`nonnegative` has 'm', and the state of parameter '0' would be -1 at flat index 1, at step 1"):
        optimizer.step(np.array([0.0, 1.0]))
    bounded = openadam.Optimizer(w, rule=openadam.rule(lr=0.1, at_most={"n": 1})(falls), nonfinite=nonfinite)
    bounded.step(np.zeros(2))
    with pytest.raises(RuleError, match=r"`at_most` has 'n' at 1, .* would be 2"):
        bounded.step(np.zeros(2))
    assert w.tolist() == [1.0, 1.0]
    with pytest.raises(openadam.HyperparameterError, match="state 'a' of parameter '0' would start at 1e\\+300, which is infinite in float32"):
        openadam.Optimizer(np.ones(1, np.float32), rule=openadam.rule(initial={"a": 1e300}, lr=0.1)(lambda g, s, h: Step(g, a=s.a + g)))


def test_a_local_rule_gets_the_advice_though_cloudpickle_is_there() -> None:
    pytest.importorskip("cloudpickle")
    local = openadam.rule(lr=0.1)(lambda g, s, h: Step(g))
    with pytest.raises(pickle.PicklingError, match="pickle with cloudpickle"):
        pickle.dumps(openadam.Optimizer(np.ones(1), rule=local))


# --- what hyperparameters may be -----------------------------------------------------------------------------------------


@openadam.rule(ranges={"beta3": "beta1", "mix": (0, 1)}, lr=0.1, beta3=0.5)
def mixed(g: Any, s: Any, h: Any) -> Step:
    m = h.beta3 * s.m + (1 - h.beta3) * g
    return Step(h.mix * g + (1 - h.mix) * m, m=m)


def test_a_rule_says_what_its_hyperparameters_may_be(tmp_path: Path) -> None:
    for wrong, says in (
        ({"mix": 1.5}, "mix=1.5 is out of range: it must be from 0 to 1"),
        ({"mix": -0.1}, "from 0 to 1"),
        ({"mix": 0.5, "beta3": 1.0}, "beta3=1.0 is out of range: it must be from 0 up to, but not, 1"),
    ):
        with pytest.raises(HyperparameterError, match=says):
            openadam.Optimizer(np.zeros(2), rule=mixed, **wrong)
    optimizer = openadam.Optimizer({"w": np.zeros(2)}, rule=mixed, mix=1.0)
    optimizer.step({"w": np.ones(2)})
    optimizer.groups[0]["mix"] = 2.0
    with pytest.raises(HyperparameterError, match=r"mix=2.0 in group 0 is out of range"):
        optimizer.step({"w": np.ones(2)})
    optimizer.groups[0]["mix"] = lambda t: 0.5 * t
    optimizer.step({"w": np.ones(2)})
    with pytest.raises(HyperparameterError, match=r"from its schedule at t=3"):
        optimizer.step({"w": np.ones(2)})
    with pytest.raises(HyperparameterError, match="in group 0"):
        openadam.Optimizer([{"params": np.zeros(2), "mix": 7.0}], rule=mixed, mix=0.5)
    optimizer.groups[0]["mix"] = 0.5
    state = optimizer.state_dict()
    state["groups"][0]["mix"] = 7.0
    with pytest.raises(CheckpointCorruptError, match="mix"):
        optimizer.load_state_dict(state)
    assert pickle.loads(pickle.dumps(mixed)) is mixed
    torch = pytest.importorskip("torch")
    from openadam.torch import Optimizer

    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(HyperparameterError, match=r"mix=1.5 is out of range"):
        Optimizer([p], rule=mixed, mix=1.5)
    made = Optimizer([p], rule=mixed, mix=0.5)
    made.param_groups[0]["beta3"] = 1.0
    p.grad = torch.ones(2)
    with pytest.raises(HyperparameterError, match=r"beta3=1.0 in group 0 is out of range"):
        made.step()


TYPED = """
import numpy as np
import openadam
from openadam import Expression, Namespace, Step, sqrt
from openadam.torch import Optimizer


@openadam.rule(nonnegative=("v",), ranges={"mix": (0.0, 1.0)}, beta2=0.99)
def typed(g: Expression, s: Namespace, h: Namespace) -> Step:
    v = h.beta2 * s.v + (1 - h.beta2) * g**2
    return Step(h.mix * g / (sqrt(v) + 1e-8), v=v)


openadam.Optimizer(np.zeros(2), rule=typed, lr=0.1, mix=0.5).step(np.ones(2))
made = openadam.compile(typed)
verdict: bool = openadam.check(made, mix=0.5).is_fine
"""


def test_a_typed_rule_passes_the_strict_checker(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "mine.py").write_text(TYPED)
    said, complaints, code = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "mine.py")])
    assert (code, complaints) == (0, ""), said


# --- the same answers everywhere, where they are not numbers -------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, -0.0, 2.0, -3.0, 1e300])
def test_scalars_have_the_answers_of_c(start: float) -> None:
    """Powers of 0 and of less, and what overflows: as the native scalars have them."""

    @openadam.rule(initial={"c": start, "d": start})
    def powers(g: Any, s: Any, h: Any) -> Step:
        return Step(g, c=s.c**-1 + s.d**-2, d=s.d**3)

    found = []
    for engine in ("interpreter", "reference"):
        if engine == "interpreter" and not openadam.engine.native_isas():
            pytest.skip("no native code here")
        optimizer = openadam.Optimizer(np.ones(3), rule=powers, lr=0.1, nonfinite="propagate", engine=engine)
        for _ in range(3):
            optimizer.step(np.ones(3))
        found.append([repr(optimizer.state["0"][name]) for name in ("c", "d")])
    assert found[0] == found[1]
