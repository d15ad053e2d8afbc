"""What a step can leave is foreseen from what goes into it: soundly, for rules of any kind, so that only the others are tried out."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from family import ENGINES
from hypothesis import given, settings

import openadam
from openadam import Step, engine, maximum, minimum, sqrt, where
from openadam.errors import NonFiniteStateError, RuleError
from openadam.language.expression import Expression
from openadam.language.intervals import ANYTHING, evaluate_on_intervals
from openadam.language.program import lower
from openadam.ranges import Ranges, limits_of

pytestmark = pytest.mark.skipif("interpreter" not in ENGINES, reason="no native code here")

NAMES = ("g", "a", "b", "p")
BOUNDS = (0.0, -1.0, 1.0, 1e-45, 1e-30, -2e-38, 0.3, 7.0, -1e4, 1e19, 1e30, -3e38)


def symbol(name: str) -> Expression:
    return Expression("symbol", value=("tensor", name))


def grow(inner: Any) -> Any:
    one = st.builds(lambda f, x: f(x), st.sampled_from([abs, sqrt, lambda x: -x, lambda x: x**2, lambda x: x**3]), inner)
    two = st.builds(
        lambda f, x, y: f(x, y),
        st.sampled_from([lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, maximum, minimum]),
        inner,
        inner,
    )
    compare = st.sampled_from([lambda x, y: x < y, lambda x, y: x <= y, lambda x, y: x > y])
    three = st.builds(lambda f, x, y, a, b: where(f(x, y), a, b), compare, inner, inner, inner, inner)
    picked = st.builds(lambda f, x, y: where(f(x, y), x, y), compare, inner, inner)
    return one | two | three | picked


bounds = st.sampled_from(BOUNDS).map(lambda x: float(np.float32(x)))
intervals = st.tuples(bounds, bounds).map(lambda pair: (min(pair), max(pair)))
constants = st.sampled_from([0.5, 2.0, -1.0, 1e-8, 1e20]).map(lambda x: symbol("g") * 0 + x)
expressions = st.recursive(st.sampled_from(NAMES).map(symbol) | constants, grow, max_leaves=12)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_every_result_lies_within_its_interval(data: Any) -> None:
    expression = data.draw(expressions)
    inputs = {name: data.draw(intervals) for name in NAMES}
    program = lower("any", {"out": expression, "p": symbol("p") - expression}, states=("out",))
    found = evaluate_on_intervals(program, inputs, [], limits_of(np.dtype(np.float32)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = {}
    for name, (low, high) in inputs.items():
        inside = np.concatenate([[low, high, max(low, min(high, 0.0))], low + random.random(300) * (high - low), random.choice([low, high], 50)])
        spread = np.sign(inside) * np.exp(np.log(np.maximum(abs(inside), 1e-45)) * random.random(inside.size))
        inside = np.concatenate([inside, np.clip(spread, low, high)]).astype(np.float32)
        arrays[name] = random.permutation(inside)
    with np.errstate(all="ignore"):
        values = engine.run(program, arrays, [], np)
    for name, (low, high) in found.items():
        if (low, high) != ANYTHING:
            result = np.broadcast_to(values[name], arrays["g"].shape).astype(np.float64)
            assert np.isfinite(result).all()
            assert (low <= result).all()
            assert (result <= high).all()


# --- rules -----------------------------------------------------------------------------------------------------------------


def adabelief(g: Any, s: Any, h: Any) -> Step:
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * (g - m) ** 2 + h.eps
    return Step(m / (1 - h.beta1**h.t) / (sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)


def towards(g: Any, s: Any, h: Any) -> Step:
    """An average as a step towards the gradient, of which intervals know too little to bound it for ever."""
    m = s.m + (1 - h.beta1) * (g - s.m)
    return Step(m / (abs(m) + h.eps), m=m)


def lion(g: Any, s: Any, h: Any) -> Step:
    blend = h.beta1 * s.m + (1 - h.beta1) * g
    return Step(openadam.sign(blend), m=h.beta2 * s.m + (1 - h.beta2) * g)


def without_eps(g: Any, s: Any, h: Any) -> Step:
    v = h.beta2 * s.v + (1 - h.beta2) * g**2
    return Step(g / sqrt(v), v=v)


class Counted:
    """How often a step was tried out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.measured = 0
        outcome, measured = engine.outcome, Ranges._measured

        def tried(*arguments: Any) -> Any:
            self.count += 1
            return outcome(*arguments)

        def looked(*arguments: Any) -> Any:
            self.measured += 1
            return measured(*arguments)

        monkeypatch.setattr(engine, "outcome", tried)
        monkeypatch.setattr(Ranges, "_measured", looked)


@pytest.mark.parametrize(("body", "tried", "measured"), [(adabelief, 0, 1), (lion, 0, 1), (towards, 0, 3), (without_eps, None, None)])
def test_what_is_foreseen_is_not_tried_out(body: Any, tried: int | None, measured: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    rule = openadam.rule(body)
    chosen = {name: value for name, value in {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}.items() if name in rule.hyperparameters}
    params = [{"w": np.ones((20, 10), np.float32)} for _ in range(2)]
    engines = "interpreter", "reference"
    optimizer, plain = (openadam.Optimizer(p, rule=rule, engine=name, lr=1e-3, **chosen) for p, name in zip(params, engines, strict=True))
    steps = 1500
    for t in range(steps):
        grads = {"w": np.random.default_rng(t).normal(0, 1, (20, 10)).astype(np.float32)}
        optimizer.step(grads)
        before = counted.count
        plain.step(grads)
        counted.count = before
    assert params[0]["w"].tobytes() == params[1]["w"].tobytes()
    if tried is not None:
        assert counted.count == tried
        assert counted.measured <= measured + 1
    else:
        assert counted.count == steps
        assert counted.measured < 20, "what was in vain is tried ever more seldom"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_gradient_is_refused_as_before(dtype: Any) -> None:
    rule = openadam.rule(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8)(adabelief)
    large = 1e25 if dtype == np.float32 else 1e200
    messages = []
    for name in ("interpreter", "reference"):
        w = np.ones(50, dtype)
        optimizer = openadam.Optimizer({"w": w}, rule=rule, engine=name)
        for _ in range(3):
            optimizer.step({"w": np.ones(50, dtype)})
        before = optimizer.state_dict(), w.copy()
        grads = np.ones(50, dtype)
        grads[7] = large
        with pytest.raises(NonFiniteStateError) as found:
            optimizer.step({"w": grads})
        messages.append(str(found.value))
        after = optimizer.state_dict(), w
        assert str(before) == str(after)
        optimizer.step({"w": np.ones(50, dtype)})
        assert np.isfinite(w).all()
    assert messages[0] == messages[1]


def test_what_is_known_is_forgotten_with_the_states() -> None:
    """States that were loaded, or parameters that were added, are looked at before the next step."""
    rule = openadam.rule(lr=1.0, decay=0.5)(lambda g, s, h: Step(s.m * 1e20 + g, m=h.decay * s.m + g))
    optimizer = openadam.Optimizer({"w": np.zeros(5, np.float32)}, rule=rule)
    optimizer.step({"w": np.full(5, 1e-3, np.float32)})
    state = optimizer.state_dict()
    state["state"]["w"]["m"] = np.full(5, 1e30, np.float32)
    optimizer.load_state_dict(state)
    with pytest.raises(NonFiniteStateError, match="parameter 'w' would not be finite"):
        optimizer.step({"w": np.zeros(5, np.float32)})
    optimizer.reset()
    optimizer.step({"w": np.zeros(5, np.float32)})
    optimizer.add_group({"params": {"v": np.zeros(3, np.float32)}})
    optimizer.step([{"w": np.zeros(5, np.float32)}, {"v": np.zeros(3, np.float32)}])


def test_tensors_that_have_taken_other_steps_are_foreseen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    late = openadam.rule(lr=1.0)(lambda g, s, h: Step(g / where(h.t == 3, 0.0, 1.0)))
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
    optimizer = openadam.Optimizer(params, rule=late)
    one = np.ones(2, np.float32)
    optimizer.step({"a": one, "b": None})
    optimizer.step({"a": one, "b": one})
    assert counted.count == 0
    with pytest.raises(NonFiniteStateError, match="'a'"):
        optimizer.step({"a": one, "b": one})
    optimizer.step({"a": None, "b": one})
    with pytest.raises(NonFiniteStateError, match="'b'"):
        optimizer.step({"a": None, "b": one})
    assert optimizer.state["b"]["step"] == 2


def test_a_word_that_is_kept_in_all_that_can_come_needs_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    keeps = openadam.rule(lr=0.1, nonnegative=("v", "c"), at_most={"c": 1.0})(lambda g, s, h: Step(g, v=s.v + g**2, c=(s.c + 1) / 2))
    breaks = openadam.rule(lr=0.1, nonnegative=("v",))(lambda g, s, h: Step(g, v=s.v + g))
    for nonfinite in ("raise", "propagate"):
        openadam.Optimizer(np.zeros(3), rule=keeps, nonfinite=nonfinite).step(-np.ones(3))
        assert counted.count == 0
        with pytest.raises(RuleError, match="`nonnegative` has 'v'"):
            openadam.Optimizer(np.zeros(3), rule=breaks, nonfinite=nonfinite).step(-np.ones(3))
        counted.count = 0


def test_an_unknown_value_that_is_not_asked_for_does_no_harm() -> None:
    a = symbol("a")
    program = lower("any", {"out": where(a < 5, a, sqrt(a))})
    limits = limits_of(np.dtype(np.float64))
    (low, high) = evaluate_on_intervals(program, {"a": (-1.0, 2.0)}, [], limits)["out"]
    assert (low, high) == (-1.0, 2.0)
    assert evaluate_on_intervals(program, {"a": (-1.0, 9.0)}, [], limits)["out"] == ANYTHING
    assert math.isinf(evaluate_on_intervals(lower("any", {"out": abs(sqrt(a))}), {"a": (-1.0, 9.0)}, [], limits)["out"][1])
