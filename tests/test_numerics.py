"""Numbers at the edges: too large, too small, cancelling, at the ends of counters and of hyperparameters; and what AMSGrad is for.

Labels such as N5 are the case numbers of docs/faults.md. N1 and the like for every number are in test_properties.py, N2 in test_oracle.py,
and agreement with torch (N19) also in test_witnesses.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
from family import DTYPES, ENGINES, PLAIN, VARIANTS, Variant, same, spread, uphill, variant, wrong
from oracle import deviations, exact, predict

import openadam

every_variant = pytest.mark.parametrize("subject", VARIANTS, ids=str)
every_member = pytest.mark.parametrize("subject", PLAIN, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_engine = pytest.mark.parametrize("engine", ENGINES)


def load(optimizer: openadam.Optimizer, step: int, **states: Any) -> None:
    """Put the only parameter's step number and states, by their public names, where a test wants them."""
    loaded = optimizer.state_dict()
    loaded["steps"] = loaded["state"]["0"]["step"] = step
    loaded["state"]["0"] |= states
    optimizer.load_state_dict(loaded)


def within_bounds(subject: Variant, optimizer: openadam.Optimizer, g: Any) -> bool:
    """Take one step and ask the oracle."""
    prediction = predict(subject, optimizer, {"0": g})
    optimizer.step(g)
    return max(deviations(subject, prediction, optimizer).values()) <= 1


# --- too large, too small ----------------------------------------------------------------------------------------------

SQUARING = [each for each in PLAIN if {"v", "sum"} & set(each.traced.states)]


@every_engine
@pytest.mark.parametrize(("dtype", "huge"), [(np.float32, 1e25), (np.float64, 1e200)])
@pytest.mark.parametrize("subject", SQUARING, ids=str)
def test_n5_gradient_whose_square_overflows(subject: Variant, dtype: Any, huge: float, engine: str) -> None:
    """The second moment would be infinite for ever and the parameter frozen: refused, unless it is clipped or wanted."""
    g = np.array([1.0, huge, 1.0], dtype)
    optimizer = subject.make(np.ones(3, dtype), engine=engine)
    optimizer.step(np.ones(3, dtype))
    before = optimizer.params["0"].copy(), optimizer.state_dict()["state"]
    with pytest.raises(openadam.NonFiniteStateError, match=r"'0' is so large \(1e\+\d+ at element 1\) that its state '.*' would not be finite"):
        optimizer.step(g)
    assert same(optimizer.params["0"], before[0])
    assert same(optimizer.state, before[1])
    for settings in ({"clip_norm": 1.0}, {"clip_value": 1.0}):
        clipped = subject.make(np.ones(3, dtype), engine=engine, **settings)
        clipped.step(g)
        assert all(np.isfinite(value).all() for value in [clipped.params["0"], *clipped.state["0"].values()])
    through = subject.make(np.ones(3, dtype), engine=engine, nonfinite="propagate")
    through.step(g)
    assert np.isinf(through.state["0"][subject.public("sum" if "sum" in subject.traced.states else "v")][1])


@every_engine
@pytest.mark.parametrize(("dtype", "huge"), [(np.float32, 3e38), (np.float64, 1e308)])
@pytest.mark.parametrize("member", [openadam.SGD, openadam.Momentum])
def test_n5_parameter_that_would_overflow(member: Any, dtype: Any, huge: float, engine: str) -> None:
    p = np.ones(3, dtype)
    optimizer = member(p, lr=100.0, engine=engine)
    with pytest.raises(openadam.NonFiniteStateError, match="it would not be finite"):
        optimizer.step(np.array([1, -huge, 1], dtype))
    assert same(p, np.ones(3, dtype))
    assert optimizer.steps == 0


@every_engine
@pytest.mark.parametrize("settings", [{"lr": 1e39}, {"weight_decay": 1e39}, {"eps": 1e39}], ids=str)
def test_n5_settings_that_overflow(settings: dict[str, float], engine: str) -> None:
    """Numbers that float32 cannot hold are refused, here or at construction, not used as infinite."""
    p, g = np.array([1e25, 1], np.float32), np.array([1, 0], np.float32)
    with pytest.raises((openadam.NonFiniteStateError, openadam.HyperparameterError)):
        openadam.Adam(p, engine=engine, **settings).step(g)
    assert same(p, np.array([1e25, 1], np.float32))


@every_engine
@every_variant
def test_n6_gradient_whose_square_underflows(subject: Variant, engine: str) -> None:
    """With eps the direction is m / eps, as the oracle says; without, 0 or less than infinity, but never NaN."""
    random = np.random.default_rng(0)
    for eps in (1e-8, 0.0):
        optimizer = subject.make(np.zeros(9, np.float32), eps=eps, initial_accumulator_value=0.0, engine=engine)
        for _ in range(3):
            g = spread(random, 9, np.float32, -25, -24)
            assert within_bounds(subject, optimizer, g) or eps == 0
            assert all(np.isfinite(value).all() for value in [optimizer.params["0"], *optimizer.state["0"].values()])


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """This thread's arithmetic as a program with -ffast-math leaves it: subnormal numbers count as 0."""
    torch = pytest.importorskip("torch")
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def subnormals_live() -> bool:
    return bool(np.array([5e-324]) * 1.0 > 0)


@every_dtype
@every_member
def test_n7_subnormal_numbers(subject: Variant, dtype: Any) -> None:
    """Engines agree in every bit and with the oracle; a state that would be subnormal is 0; the caller's mode is the caller's."""
    random = np.random.default_rng(0)
    least = math.log10(float(np.finfo(dtype).smallest_subnormal))
    p, g = (spread(random, 40, dtype, least, least + 10) for _ in range(2))
    states = {name: spread(random, 40, dtype, least, least + 10) for name in subject.traced.states if name != "mu_product"}
    public = {subject.public(name): abs(value) if name in subject.rule.nonnegative else value for name, value in states.items()}

    def stepped(engine: str) -> openadam.Optimizer:
        optimizer = subject.make(p.copy(), weight_decay=0.1, engine=engine)
        load(optimizer, 3, **public)
        optimizer.step(g)
        return optimizer

    first = subject.make(p.copy(), weight_decay=0.1, engine=ENGINES[0])
    load(first, 3, **public)
    assert within_bounds(subject, first, g)
    for name in public:
        magnitudes = np.abs(first.state["0"][name])
        assert ((magnitudes == 0) | (magnitudes >= np.finfo(dtype).smallest_normal)).all()
    results = [stepped(engine) for engine in ENGINES]
    assert subnormals_live()
    if "native" in ENGINES:
        with subnormals_flushed():
            results.append(stepped("native"))
            assert not subnormals_live()
    assert all(same(result.params, first.params) and same(result.state, first.state) for result in results)


# --- counters and corrections ------------------------------------------------------------------------------------------


@every_engine
@every_member
def test_n9_counters(subject: Variant, engine: str) -> None:
    """A float32 counter sticks at 2**24, an int32 one wraps at 2**31; this one counts to the last whole number of a float64."""
    for count in (2**24, 2**31, 2**53 - 2):
        optimizer = subject.make(np.ones(2), engine=engine)
        load(optimizer, count)
        assert optimizer.step(np.ones(2)).step == count + 1
        assert optimizer.state["0"]["step"] == optimizer.steps == count + 1
        assert optimizer.state_dict()["state"]["0"]["step"] == count + 1
        assert np.isfinite(optimizer.params["0"]).all()
    before = optimizer.params["0"].copy()
    with pytest.raises(openadam.HyperparameterError, match="more than can be counted exactly"):
        optimizer.step(np.ones(2))
    assert same(optimizer.params["0"], before)
    assert optimizer.steps == 2**53 - 1


@openadam.rule
def corrected(g: Any, s: Any, h: Any) -> openadam.Step:
    """The bias correction itself, for gradients of 1."""
    return openadam.Step(g * (1 - h.beta2**h.t))


@openadam.rule
def cancelling(g: Any, s: Any, h: Any) -> openadam.Step:
    """The same, written so that it is computed as it stands."""
    return openadam.Step(g * -(h.beta2**h.t - 1))


def correction_in_ulps(rule: Any, beta: float, t: int) -> float:
    """How far 1 - beta**t is off in float64."""
    p = np.zeros(1)
    optimizer = openadam.Optimizer(p, rule=rule, lr=1.0, beta2=beta, engine="reference")
    load(optimizer, t - 1)
    optimizer.step(-np.ones(1))
    return float(abs(exact.mpf(p[0]) - (1 - exact.mpf(beta) ** t))) / float(np.spacing(p[0]))


DECAYS = [0.0, 0.5, 0.9, 0.999, 0.9999, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53]


@pytest.mark.parametrize("beta", DECAYS)
def test_n10_n11_bias_correction(beta: float) -> None:
    """Within 2 ulp from the first step to the billionth; as it stands it would be off by thousands."""
    for t in (1, 2, 3, 4, 5, 17, 1000, 10**6, 10**9, 2**53 - 1):
        assert correction_in_ulps(corrected, beta, t) <= 2, t


def test_n11_bound_sees_cancellation() -> None:
    assert correction_in_ulps(cancelling, 0.999, 3) > 2
    assert correction_in_ulps(cancelling, 1 - 1e-6, 3) > 1e4


@every_engine
@every_dtype
@every_variant
def test_n10_billionth_step(subject: Variant, dtype: Any, engine: str) -> None:
    optimizer = subject.make(np.ones(3, dtype), beta2=0.999999, engine=engine)
    load(optimizer, 10**9 - 1, **({"mu_product": 0.0} if "mu_product" in subject.traced.states else {}))
    assert within_bounds(subject, optimizer, np.array([1e-3, 1, -30], dtype))


@every_engine
@every_dtype
def test_n12_cancelling_moment(dtype: Any, engine: str) -> None:
    """The sum is off by thousands of its own ulps, and by no more than 3u of the terms."""
    for subject in (each for each in PLAIN if each.public("m") == "exp_avg" and "m" in each.traced.states):
        g = np.full(1, -9 * (1 + 2**-20), dtype)
        optimizer = subject.make(np.ones(1, dtype), beta1=0.9, engine=engine)
        load(optimizer, 9, exp_avg=np.ones(1, dtype))
        assert within_bounds(subject, optimizer, g)
        true = exact.mpf(0.9) + (1 - exact.mpf(0.9)) * exact.mpf(float(g[0]))
        off = abs(exact.mpf(float(optimizer.state["0"]["exp_avg"][0])) - true)
        assert off <= 3 * np.finfo(dtype).eps / 2 * 1.8
        assert off > 10 * np.finfo(dtype).eps * abs(true), "the example must cancel"


# --- members -----------------------------------------------------------------------------------------------------------


@every_engine
@every_dtype
@pytest.mark.parametrize("maximum_of", openadam.rules.amsgrad.options["maximum_of"])
def test_n13_largest_second_moment(maximum_of: str, dtype: Any, engine: str) -> None:
    """It never falls, through shrinking gradients and skipped steps, and is the maximum of what the variant says."""
    subject = variant(openadam.AMSGrad, maximum_of=maximum_of)
    optimizer = subject.make(np.zeros(4, dtype), engine=engine, nonfinite="skip")
    largest, beta2 = np.zeros(4), subject.hyperparameters["beta2"]
    for k in range(12):
        g = np.array([8, -4, 1e-3, 0], dtype) * dtype(0.5**k)
        g[0] = np.nan if k % 4 == 3 else g[0]
        before = optimizer.state["0"]["max_exp_avg_sq"].copy()
        if optimizer.step(g).skipped:
            assert same(optimizer.state["0"]["max_exp_avg_sq"], before)
            continue
        state = optimizer.state["0"]
        seen = state["exp_avg_sq"] / (1 - beta2 ** state["step"]) if maximum_of == "corrected" else state["exp_avg_sq"]
        largest = np.maximum(largest, seen)
        assert (state["max_exp_avg_sq"] >= before).all()
        np.testing.assert_allclose(state["max_exp_avg_sq"], largest, rtol=8 * float(np.finfo(dtype).eps))
    assert optimizer.skipped == 3


@every_engine
def test_n14_product_of_momenta(engine: str) -> None:
    """It follows the true product down to where a float64 ends, and a run goes on from any place and after that end."""
    subject = Variant(openadam.NAdam)
    optimizer = openadam.NAdam(np.zeros(1), engine=engine)
    beta1, psi = (exact.mpf(optimizer.groups[0][name]) for name in ("beta1", "momentum_decay"))
    true, shrinking, factor = exact.mpf(1), exact.mpf(0.5), exact.mpf(0.96) ** psi
    g = np.ones(1)
    while true > 1e-300:
        shrinking *= factor
        true *= beta1 * (1 - shrinking)
        optimizer.step(g)
        assert abs(optimizer.state["0"]["mu_product"] / true - 1) <= optimizer.steps * 2**-51
    assert optimizer.steps > 900
    resumed = openadam.NAdam(optimizer.params["0"].copy(), engine=engine)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        each.step(g)
    assert same(optimizer.params, resumed.params)
    for count, product in ((1_000, 5e-324), (100_000, 0.0)):
        load(resumed, count, mu_product=product)
        assert within_bounds(subject, resumed, g)
        assert resumed.state["0"]["mu_product"] <= product


@every_engine
@every_dtype
@pytest.mark.parametrize("beta2", [0.999, 0.99, 0.9, 0.67, 0.6, 0.5, 0.0])
def test_n15_rectification_begins(beta2: float, dtype: Any, engine: str) -> None:
    """Ten steps by the oracle around rho = 5; where rho never exceeds it (beta2 up to 2/3), a negative root is never taken."""
    for subject in (each for each in VARIANTS if each.member is openadam.RAdam):
        optimizer = subject.make(np.ones(2, dtype), beta2=beta2, engine=engine)
        for t in range(1, 11):
            p = optimizer.params["0"].copy()
            assert within_bounds(subject, optimizer, np.array([0.3, -40], dtype))
            rho_max = 2 / (1 - beta2) - 1
            rho = rho_max - 2 * t * beta2**t / (1 - beta2**t)
            plain = p - optimizer.groups[0]["lr"] * optimizer.state["0"]["exp_avg"] / (1 - 0.9**t)
            assert np.allclose(optimizer.params["0"], plain, rtol=1e-5) == (rho <= 5)


@every_engine
@every_dtype
@pytest.mark.parametrize("epsilon", openadam.rules.adamax.options["epsilon"])
def test_n16_no_gradient_yet(epsilon: str, dtype: Any, engine: str) -> None:
    """0/0 counts as 0: a coordinate that never had a gradient stays, beside one that has."""
    p = np.array([1, 2], dtype)
    optimizer = openadam.AdaMax(p, lr=0.5, eps=0.0, epsilon=epsilon, engine=engine)
    optimizer.step(np.array([0, 3], dtype))
    assert same(p, np.array([1, 1.5], dtype))


# --- weight decay ------------------------------------------------------------------------------------------------------

DECOUPLED = [each for each in PLAIN if each.member.coupling == "decoupled"]


@every_engine
@every_dtype
@pytest.mark.parametrize("subject", DECOUPLED, ids=str)
def test_n17_strength_of_decoupled_decay(subject: Variant, dtype: Any, engine: str) -> None:
    """By the formula at any strength; at 1 the parameter is gone before it moves, beyond 1 there is a warning."""
    p, g = np.array([3, -0.7, 0], dtype), np.array([1, -2, 3], dtype)
    moved = subject.make(np.zeros(3, dtype), lr=0.5, engine=engine)
    moved.step(g)
    for decay in (2.0, 2e-20, 0.3):
        resting = subject.make(p.copy(), lr=0.5, weight_decay=decay, engine=engine)
        resting.step(np.zeros(3, dtype))
        assert same(resting.params["0"], p - dtype(0.5 * decay) * p)
        assert same(resting.params["0"], p) == (decay < 1e-19)
        optimizer = subject.make(p.copy(), lr=0.5, weight_decay=decay, engine=engine)
        assert within_bounds(subject, optimizer, g)
        if decay == 2.0:
            assert same(optimizer.params["0"], moved.params["0"])
    with pytest.warns(openadam.HyperparameterWarning, match=r"lr \* weight_decay = 1.5"):
        assert within_bounds(subject, subject.make(p.copy(), lr=0.5, weight_decay=3.0, engine=engine), g)


@every_engine
@every_dtype
def test_n18_decay_without_gradient(dtype: Any, engine: str) -> None:
    """Decoupled, the parameter shrinks by lr * weight_decay of itself; coupled, only where the first step is linear in the gradient."""
    linear = (openadam.SGD, openadam.Momentum, openadam.RAdam)
    p, still = np.array([3, -0.7, 1e-3], dtype), np.zeros(3, dtype)
    for subject in PLAIN:
        optimizer = subject.make(p.copy(), weight_decay=0.1, engine=engine)
        assert within_bounds(subject, optimizer, still)
        h = optimizer.groups[0]
        shrunk = p.astype(np.float64) * (1 - h["lr"] * 0.1)
        near = np.abs(optimizer.params["0"] - shrunk) <= np.spacing(np.abs(p))
        assert near.all() == (subject in DECOUPLED or subject.member in linear), subject
        optimizer = subject.make(p.copy(), engine=engine)
        optimizer.step(still)
        assert same(optimizer.params["0"], p)


@every_engine
@every_dtype
def test_n19_maximize_and_decay(dtype: Any, engine: str) -> None:
    """The gradient changes sign, decay does not: it pulls to 0 whether one climbs or descends."""
    p, g, lr, decay = np.array([3.0, -0.7], dtype), np.array([1.0, 2.0], dtype), 0.5, 0.25
    up = openadam.SGD(p.copy(), lr=lr, weight_decay=decay, maximize=True, engine=engine)
    up.step(g)
    np.testing.assert_allclose(up.params["0"], p - lr * (-g + decay * p), rtol=1e-6)
    decoupled = openadam.Optimizer(p.copy(), rule=openadam.rules.sgd, coupling="decoupled", lr=lr, weight_decay=decay, maximize=True, engine=engine)
    decoupled.step(g)
    np.testing.assert_allclose(decoupled.params["0"], p * (1 - lr * decay) + lr * g, rtol=1e-6)


# --- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("native" not in ENGINES, reason="the reference has no threads")
def test_n26_threads() -> None:
    """More threads than cores, and one core only: the same bits."""
    random = np.random.default_rng(0)
    values, gradients = ([spread(random, size, np.float32) for size in (300_007, 70_001, 5)] for _ in range(2))

    def stepped(threads: int) -> list[Any]:
        optimizer = openadam.AdamW([value.copy() for value in values], threads=threads, clip_norm=1.0)
        reports = [optimizer.step(gradients, measure=True) for _ in range(2)]
        return [reports, optimizer.params, optimizer.state]

    first = stepped(1)
    results = [stepped(threads) for threads in (2, 3, 7, 64)]
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            results.append(stepped(7))
        finally:
            os.sched_setaffinity(0, allowed)
    for reports, params, state in results:
        assert reports == first[0]
        assert same(params, first[1])
        assert same(state, first[2])


# --- where they end up -------------------------------------------------------------------------------------------------


def end_of_the_counterexample(member: Any, **settings: Any) -> float:
    """Where Reddi, Kale and Kumar's example ends: f_t(x) = 3x every third step, else -x, on [-1, 1]; the best x is -1."""
    x = np.zeros(1)
    optimizer = member(x, lr=lambda t: 0.1 / math.sqrt(t), beta1=0.0, beta2=1 / (1 + 3**2), engine=ENGINES[0], **settings)
    for t in range(1, 1500):
        optimizer.step(np.array([3.0 if t % 3 == 1 else -1.0]))
        np.clip(x, -1, 1, out=x)
    return float(x[0])


def test_amsgrad_converges_where_adam_does_not() -> None:
    for bias_correction in openadam.rules.adam.options["bias_correction"]:
        assert end_of_the_counterexample(openadam.Adam, bias_correction=bias_correction) > 0.9
    for maximum_of in openadam.rules.amsgrad.options["maximum_of"]:
        assert end_of_the_counterexample(openadam.AMSGrad, maximum_of=maximum_of) < -0.9


class Regression:
    """L2-regularized logistic regression on scikit-learn's breast cancer data, all of it at once: convex, with a known optimum."""

    def __init__(self) -> None:
        from sklearn.datasets import load_breast_cancer
        from sklearn.preprocessing import StandardScaler

        data = load_breast_cancer()
        self.signed = StandardScaler().fit_transform(data.data) * np.where(data.target == 1, 1.0, -1.0)[:, None]
        self.optimum = self.newton()

    def loss(self, w: Any) -> float:
        return float(np.mean(np.logaddexp(0, -self.signed @ w)) + 0.005 * w @ w)

    def chances(self, w: Any) -> Any:
        """Of each example to be taken for the other class."""
        return 1 / (1 + np.exp(self.signed @ w))

    def gradient(self, w: Any) -> Any:
        return -self.signed.T @ self.chances(w) / len(self.signed) + 0.01 * w

    def newton(self) -> float:
        w = np.zeros(self.signed.shape[1])
        for _ in range(20):
            q = self.chances(w)
            hessian = (self.signed * (q * (1 - q))[:, None]).T @ self.signed / len(q) + 0.01 * np.eye(w.size)
            w -= np.linalg.solve(hessian, self.gradient(w))
        assert np.max(np.abs(self.gradient(w))) < 1e-14
        return self.loss(w)


@pytest.fixture(scope="module")
def regression() -> Regression:
    pytest.importorskip("sklearn")
    return Regression()


def excess(regression: Regression, member: Any, lr: float, engine: str, steps: int = 1000) -> float:
    """How far above the optimum a learning rate that falls to 0 leads."""
    w = np.zeros(regression.signed.shape[1])
    optimizer = member(w, lr=openadam.Cosine(lr, 0.0, steps), weight_decay=0.0, engine=engine)
    for _ in range(steps):
        optimizer.step(regression.gradient(w))
    return regression.loss(w) - regression.optimum


RATES = {"SGD": 1.0, "Momentum": 0.3, "Adagrad": 0.5, "AdaMax": 0.3}


@every_member
def test_logistic_regression(subject: Variant, regression: Regression) -> None:
    assert abs(excess(regression, subject.member, RATES.get(str(subject), 0.1), ENGINES[0])) < 1e-6


def test_logistic_regression_sees_mistakes(regression: Regression) -> None:
    assert excess(regression, wrong(uphill), 0.1, "reference", steps=100) > 1e-6
    assert excess(regression, openadam.Adam, 1e-4, ENGINES[0]) > 1e-6, "the bound must not be met by standing still"


@pytest.mark.parametrize("beta2", [0.0, 0.1, 0.55, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1 - 2.0**-53])
def test_n15_the_length_of_an_average_keeps_its_digits(beta2: float) -> None:
    """Its two parts, of about 2/(1 - beta2) each, cancel in the form in which the paper writes it."""
    from openadam.language.arrays import compile_scalars
    from openadam.language.program import Rewriter

    rho = compile_scalars((Rewriter(frozenset())(openadam.rules.radam.trace().named["rho"]),))
    with mpmath.workdps(60):
        for n in (1, 2, 3, 5, 6, 7, 10, 30, 100, 600, 1_000, 10**5, 10**7, 10**9):
            b = mpmath.mpf(beta2)
            exact = 2 / (1 - b) - 1 - 2 * n * b**n / (1 - b**n)
            (computed,) = rho({"beta2": beta2, "t": float(n)})
            assert abs(computed - exact) <= 8e-16 * exact
