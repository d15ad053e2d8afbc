"""The article on Adam, number by number: every worked number and every claim, in the article's order.

Where the article is exact, a test repeats its number with the optimizers of this package. Where it is loose, the test
states what is true, and docs/article.md says it in words. Expected values are plain arithmetic; none of the algorithm is
written a second time here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import openadam

Array = npt.NDArray[np.float64]
EXACT = 1e-12  # a few roundings of float64


def walk(
    optimizer: Callable[..., openadam.Optimizer], gradients: Iterable[Any], start: Any = 0.0, **settings: Any
) -> tuple[Array, openadam.Optimizer]:
    """Where the parameter is before the first step and after each, and the optimizer that moved it."""
    x = np.array(start, np.float64)
    opt = optimizer({"x": x}, **settings)
    places = [x.copy()]
    for g in gradients:
        opt.step({"x": np.array(g, np.float64)})
        places.append(x.copy())
    return np.array(places), opt


def descend(optimizer: Callable[..., openadam.Optimizer], slope: Callable[[Array], Any], start: Any, steps: int, **settings: Any) -> Array:
    """Where the parameter is before the first step and after each, when the gradient depends on where it is."""
    x = np.array(start, np.float64)
    opt = optimizer({"x": x}, **settings)
    places = [x.copy()]
    for _ in range(steps):
        opt.step({"x": np.array(slope(x), np.float64)})
        places.append(x.copy())
    return np.array(places)


def updates(optimizer: Callable[..., openadam.Optimizer], gradients: Iterable[Any], **settings: Any) -> Array:
    """How far each step moves the parameter, downhill being positive."""
    places, _ = walk(optimizer, gradients, **settings)
    return -np.diff(places, axis=0)


def moments(gradients: Iterable[float], **settings: Any) -> list[dict[str, Any]]:
    """The values of every line of Adam, step by step."""
    return [step.values for step in openadam.trace("adam", list(gradients), **settings).steps]


def settled(m: float, v: float, **settings: Any) -> tuple[Array, openadam.Optimizer]:
    """A parameter at 0 with an Adam that has run for so long that bias correction is over, and has these moments."""
    x = np.zeros(1)
    opt = openadam.Adam({"x": x}, lr=1.0, **settings)
    state = opt.state_dict()
    state["steps"] = state["state"]["x"]["step"] = 10**7
    state["state"]["x"] |= {"exp_avg": np.full(1, m), "exp_avg_sq": np.full(1, v)}
    opt.load_state_dict(state)
    return x, opt


def alternating(size: float, steps: int) -> list[float]:
    return [size * (-1) ** i for i in range(steps)]


# --- Introduction ------------------------------------------------------------------------------------------------------


def test_a_ravine_along_the_axes_does_not_exist_for_adam() -> None:
    """Adam overcomes ravines. True, and exactly so, of a ravine along the axes: with eps = 0 the walk along a coordinate
    is the same, bit for bit, however much steeper that coordinate is. A simpler algorithm must take its learning rate from
    the steep coordinate, and crawls along the flat one."""
    steep = 2.0**20
    both = descend(openadam.Adam, lambda x: x * [1.0, steep], [1.0, 1.0], 300, lr=0.05, eps=0.0)
    np.testing.assert_array_equal(both[:, 0], both[:, 1])
    assert abs(both[-1]).max() < 1e-3
    plain = descend(openadam.SGD, lambda x: x * [1.0, steep], [1.0, 1.0], 300, lr=1.0 / steep)
    assert plain[-1, 0] > 0.999


def test_a_ravine_across_the_axes_does_exist_for_adam() -> None:
    """The claim is loose: Adam rescales coordinates one by one, so the same ravine turned by 45 degrees does slow it down."""
    steep = 2.0**20
    turn = np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    hessian = turn @ np.diag([1.0, steep]) @ turn
    turned = descend(openadam.Adam, lambda x: hessian @ x, turn @ [1.0, 1.0], 300, lr=0.05, eps=0.0) @ turn
    assert abs(turned[-1, 0]) > 0.3


def test_noise_is_averaged_out() -> None:
    """Adam copes with noisy gradients: the first moment of independent noise has (1 - beta1)/(1 + beta1) = 1/19 of its
    variance, the sum of the squares of its weights."""
    opt = openadam.Adam({"x": np.zeros(1)}, beta1=0.9)
    weights = []
    for t in range(150):
        opt.step({"x": np.full(1, float(t == 0))})
        weights.append(opt.state["x"]["exp_avg"][0])
    assert sum(w * w for w in weights) == pytest.approx(1 / 19, rel=1e-10)


# --- The core idea -----------------------------------------------------------------------------------------------------


def test_momentum_accelerates_along_and_dampens_across() -> None:
    """Momentum accelerates in consistent directions and dampens oscillations: with 0.9 its steps grow to 10 times those of
    gradient descent while gradients agree, and shrink to 10/19 of them while they alternate."""
    along = updates(openadam.Momentum, [1.0] * 400, lr=1.0, momentum=0.9)
    across = updates(openadam.Momentum, alternating(1.0, 400), lr=1.0, momentum=0.9)
    assert along[0] == across[0] == 1.0
    assert along[-1] == pytest.approx(10.0, rel=EXACT)
    assert abs(across[-1]) == pytest.approx(10 / 19, rel=EXACT)


def test_momentum_is_faster_in_a_ravine_but_not_everywhere() -> None:
    """Momentum leads to faster convergence: in a ravine of condition 100, yes, each method at the best settings that are
    known for it; on a round bowl, where gradient descent needs one step, no."""
    ravine = {"slope": lambda x: x * [1.0, 100.0], "start": [1.0, 1.0], "steps": 200}
    plain = descend(openadam.SGD, **ravine, lr=2 / 101)
    heavy = descend(openadam.Momentum, **ravine, lr=4 / 121, momentum=(9 / 11) ** 2)
    assert abs(plain[-1]).max() > 0.01
    assert abs(heavy[-1]).max() < 1e-14
    bowl = {"slope": lambda x: x, "start": 1.0, "steps": 20, "lr": 1.0}
    assert descend(openadam.SGD, **bowl)[1] == 0.0
    assert abs(descend(openadam.Momentum, **bowl, momentum=0.9)[10:]).max() > 0.1


def test_adagrad_keeps_larger_steps_for_rare_gradients() -> None:
    """Per-parameter learning rates help where gradients are sparse: after 100 steps Adagrad divides a coordinate that always
    had a gradient of 1 by 10, and one that had it every tenth step by the square root of 10."""
    gradients = [[1.0, float(t % 10 == 0)] for t in range(1, 101)]
    last = updates(openadam.Adagrad, gradients, start=[0.0, 0.0], lr=1.0, eps=0.0)[-1]
    assert last == pytest.approx([0.1, math.sqrt(0.1)], rel=EXACT)


@pytest.mark.parametrize("member", [openadam.Adagrad, openadam.RMSProp, openadam.Adam])
def test_the_learning_rate_adapts_so_that_the_step_does_not(member: type[openadam.Optimizer]) -> None:
    """Updates are scaled inversely to the size of past gradients. The multiplier of the gradient is; the step, their product,
    is therefore the same for a coordinate whose gradients are 10,000 times larger."""
    taken = updates(member, [[100.0, 0.01]] * 50, start=[0.0, 0.0], lr=1.0, eps=0.0)
    np.testing.assert_allclose(taken[:, 0], taken[:, 1], rtol=1e-10)
    multiplier = taken / [100.0, 0.01]
    np.testing.assert_allclose(multiplier[:, 1] / multiplier[:, 0], 1e4, rtol=1e-10)


def test_adam_without_its_first_moment_is_rmsprop() -> None:
    """Adam integrates the two concepts: with beta1 = 0 and no bias correction it is RMSProp to the last bit. (Momentum, the
    other half, is `test_momentum_equivalence_at_constant_v`.)"""
    gradients = [3.0, -0.5, 0.25, 1e-3, -7.0] * 5
    half, _ = walk(openadam.Adam, gradients, lr=0.1, beta1=0.0, beta2=0.99, bias_correction="off")
    np.testing.assert_array_equal(half, walk(openadam.RMSProp, gradients, lr=0.1, rho=0.99)[0])


# --- The first moment --------------------------------------------------------------------------------------------------


def test_typical_hyperparameters_are_the_defaults() -> None:
    """beta1 is typically 0.9, beta2 0.999, epsilon 1e-8; all moments start at zero."""
    opt = openadam.Adam({"x": np.ones(2)})
    assert {name: opt.groups[0][name] for name in ("beta1", "beta2", "eps")} == {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    assert opt.state["x"]["exp_avg"].tolist() == opt.state["x"]["exp_avg_sq"].tolist() == [0.0, 0.0]


def test_first_moment_of_a_vector() -> None:
    """m1 = 0.9 m0 + (1 - 0.9) g1 = (0.2, -0.4) for g1 = (2, -4). In float64 the first is 0.19999999999999996."""
    (step,) = openadam.trace("adam", [(2.0, -4.0)], beta1=0.9).steps
    line = next(line for line in step.lines if line.name == "m")
    assert line.formula.text == "beta1*m[t-1] + (1 - beta1)*g"
    assert line.numbers.text == "0.9*(0, 0) + (1 - 0.9)*(2, -4)"
    assert line.value == pytest.approx((0.2, -0.4), rel=EXACT)
    assert line.value[0] == (1 - 0.9) * 2.0 == 0.19999999999999996


def test_first_moment_over_three_steps() -> None:
    """m = 4, then 3.2 - 1 = 2.2, then 1.76 + 1.6 = 3.36 for the gradients 20, -5, 8 and beta1 = 0.8."""
    values = moments([20.0, -5.0, 8.0], beta1=0.8)
    assert [v["m"] for v in values] == pytest.approx([4.0, 2.2, 3.36], rel=EXACT)
    assert [0.8 * v["m"] for v in values[:2]] == pytest.approx([3.2, 1.76], rel=EXACT)


def test_the_second_of_the_three_steps_goes_uphill() -> None:
    """m is a memory, not the current gradient. Not said there: after g2 = -5 the moment is still +2.2, so this step moves
    against what the gradient asks for."""
    assert np.sign(updates(openadam.Adam, [20.0, -5.0, 8.0], beta1=0.8)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("beta1", "steps"), [(0.5, 1), (0.9, 7), (0.99, 69), (0.999, 693)])
def test_a_beta1_close_to_one_remembers_for_longer(beta1: float, steps: int) -> None:
    """A value close to 1 means persistent influence of past gradients: so many steps until a gradient counts half."""
    _, opt = settled(1.0, 1.0, beta1=beta1)
    count = 0
    while opt.state["x"]["exp_avg"][0] > 0.5:
        opt.step({"x": np.zeros(1)})
        count += 1
    assert count == steps


# --- The second moment -------------------------------------------------------------------------------------------------


def test_second_moment_of_a_vector() -> None:
    """g1 squared is (4, 16) element by element, and v1 = 0.001 (4, 16) = (0.004, 0.016)."""
    (step,) = openadam.trace("adam", [(2.0, -4.0)]).steps
    line = next(line for line in step.lines if line.name == "v")
    assert line.numbers.text == "0.999*(0, 0) + (1 - 0.999)*(2, -4)**2"
    assert line.value == pytest.approx((0.004, 0.016), rel=EXACT)
    assert step.values["v_hat"] == pytest.approx((4.0, 16.0), rel=EXACT)


def test_second_moment_over_three_steps() -> None:
    """v = 0.0125, 0.016375, 0.04755625 for the gradients 0.5, -0.3, 0.8 and beta2 = 0.95; their squares 0.25, 0.09, 0.64."""
    values = moments([0.5, -0.3, 0.8], beta2=0.95)
    assert [v["v"] for v in values] == pytest.approx([0.0125, 0.016375, 0.04755625], rel=EXACT)
    assert [g * g for g in (0.5, -0.3, 0.8)] == pytest.approx([0.25, 0.09, 0.64], rel=EXACT)


def test_the_second_moment_is_not_the_variance() -> None:
    """The heading says variance, the text "raw moment". It is the raw one: gradients that never vary have variance 0 and a second
    moment of 9; the variance would be the second moment less the square of the first."""
    last = moments([3.0] * 20)[-1]
    assert last["v_hat"] == pytest.approx(9.0, rel=EXACT)
    assert last["v_hat"] - last["m_hat"] ** 2 == pytest.approx(0.0, abs=1e-12)


def test_large_gradients_do_not_make_small_steps() -> None:
    """A large v is said to reduce the size of the update step, a small one to make updates aggressive. It changes the
    multiplier; the step is the learning rate for a constant gradient of 100 and for one of 0.01."""
    for size in (100.0, 0.01):
        assert updates(openadam.Adam, [size] * 50, lr=1.0) == pytest.approx(np.ones(50), rel=2e-6)


def test_gradients_that_disagree_make_small_steps() -> None:
    """What does shrink a step is disagreement: gradients of alternating sign move by 1/19 of the learning rate."""
    last = updates(openadam.Adam, alternating(100.0, 400), lr=1.0)[-1]
    assert abs(last) == pytest.approx((1 - 0.9) / (1 + 0.9), rel=1e-9)


def test_a_gradient_larger_than_usual_does_make_a_larger_step() -> None:
    """So v promotes caution only in hindsight: a gradient 100 times the usual size moves the parameter 3.3 times as far."""
    x, opt = settled(1.0, 1.0)
    opt.step({"x": np.array([100.0])})
    assert -x[0] == pytest.approx((0.9 + 0.1 * 100) / math.sqrt(0.999 + 0.001 * 1e4), rel=1e-8)
    assert 3.2 < -x[0] < 3.3


# --- The update rule: unification and scale invariance ------------------------------------------------------------------


def test_the_update_rule_is_the_article_s() -> None:
    """theta_t = theta_{t-1} - alpha m_hat / (sqrt(v_hat) + eps), with epsilon outside the root. An earlier sentence divides by
    sqrt(v_t), without hat and epsilon; and Algorithm 1 of the paper has the same indices as the article."""
    (step,) = openadam.trace("adam", [1.0]).steps
    formulas = {line.name: line.formula for line in step.lines}
    assert formulas["p"].text == "p[t-1] - lr*direction"
    assert formulas["direction"].text == "m_hat/(sqrt(v_hat) + eps)"
    assert r"\theta_t &= \theta_{t-1} - \alpha \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \epsilon}" in openadam.show("adam", "latex")


NOISE = np.random.default_rng(20150507).normal(size=(200, 3))


def scaled_walk(factor: float, **settings: Any) -> Array:
    return walk(openadam.Adam, factor * NOISE, start=np.zeros(3), lr=0.01, **settings)[0]


@pytest.mark.parametrize("factor", [2.0**20, 2.0**-40])
def test_scale_invariance_is_exact_without_epsilon(factor: float) -> None:
    """If the loss is rescaled, the update remains unchanged: with eps = 0 and a power of two, which rounds nothing, to the bit."""
    np.testing.assert_array_equal(scaled_walk(factor, eps=0.0), scaled_walk(1.0, eps=0.0))


@pytest.mark.parametrize("factor", [3.0, 1e5, 1e-7])
def test_scale_invariance_by_other_factors_is_as_exact_as_the_arithmetic(factor: float) -> None:
    """Other factors round the gradients differently; the walk is then the same to rounding."""
    np.testing.assert_allclose(scaled_walk(factor, eps=0.0), scaled_walk(1.0, eps=0.0), rtol=0, atol=1e-12)


def test_scale_invariance_ends_where_gradients_are_as_small_as_epsilon() -> None:
    """With epsilon it is an approximation that ends where gradients come near it: at 1e-8 of the
    scale, the first step is |g|/(|g| + 1) of what it was, less than half where |g| < 1."""
    usual = scaled_walk(1.0)
    assert abs(scaled_walk(1e-2) - usual).max() < 1e-6
    size = abs(NOISE[0])
    np.testing.assert_allclose(scaled_walk(1e-8)[1] / usual[1], size / (size + 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("beta2", "first", "peak", "at"),
    [(0.999, 1.8124, 5.2017, 17), (0.95, 0.7789, 1.1104, 18), (0.9, 0.5755, 1.0, None)],
)
def test_scale_invariance_needs_the_whole_history_rescaled(beta2: float, first: float, peak: float, at: int | None) -> None:
    """ "All gradients" includes the past ones. Gradients that become 10 times larger during the run make steps up to 5.2 times
    larger, because m learns of it sooner than v; with beta2 = 0.95 1.1 times, with beta1 = beta2 never larger."""
    x, opt = settled(1.0, 1.0, beta2=beta2, eps=0.0)
    places = [0.0]
    for _ in range(200):
        opt.step({"x": np.array([10.0])})
        places.append(-x[0])
    taken = np.diff(places)
    assert taken[0] == pytest.approx(first, abs=1e-4)
    assert taken.max() == pytest.approx(peak, abs=1e-4)
    if at is None:
        assert taken.max() <= 1.0
    else:
        assert taken.argmax() + 1 == at


def test_gradients_that_become_smaller_are_underestimated_for_thousands_of_steps() -> None:
    """And gradients that become 10 times smaller make steps of 0.104 of the usual, which need 6,043 steps to reach 0.9 again."""
    x, opt = settled(1.0, 1.0, eps=0.0)
    taken = []
    for _ in range(6100):
        before = x[0]
        opt.step({"x": np.array([0.1])})
        taken.append(before - x[0])
    lowest = int(np.argmin(taken))
    assert (lowest + 1, round(taken[lowest], 3)) == (72, 0.104)
    assert next(t for t in range(lowest, 6100) if taken[t] > 0.9) + 1 == 6043


@openadam.rule(lr=1.0, beta1=0.9, beta2=0.999, eps=0.0)
def adam_without_root(g: Any, s: Any, h: Any) -> openadam.Step:
    """Adam that forgets the square root."""
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * g**2
    return openadam.Step(m / (1 - h.beta1**h.t) / (v / (1 - h.beta2**h.t) + h.eps), m=m, v=v)


def test_without_the_root_the_ratio_has_a_dimension() -> None:
    """The square root is what makes the ratio dimensionless: without it, gradients 4 times larger make steps 4 times smaller."""
    usual, larger = (walk(openadam.Optimizer, factor * NOISE, start=np.zeros(3), rule=adam_without_root)[0] for factor in (1.0, 4.0))
    np.testing.assert_array_equal(larger, usual / 4)


def test_the_learning_rate_has_the_dimension_of_the_parameter() -> None:
    """Not said there: the ratio has no unit, so alpha has the parameter's. Measured in units 1,000 times finer, the same
    parameter still moves by alpha, which now is 1,000 times less."""
    for unit in (1.0, 1000.0):
        assert descend(openadam.Adam, lambda x, unit=unit: x / unit**2, unit, 1, lr=0.1, eps=0.0)[1] == pytest.approx(unit - 0.1, rel=EXACT)


# --- Epsilon in a flat region -------------------------------------------------------------------------------------------


def test_in_a_flat_region_the_second_moment_decays_and_the_denominator_approaches_epsilon() -> None:
    """Where gradients stay zero, v_hat decays towards zero and D = sqrt(v_hat) + eps approaches eps. It takes its time: each
    step multiplies v by 0.999, so sqrt(v) needs 36,823 steps from 1 to 1e-8."""
    x, opt = settled(0.0, 1.0)
    opt.step({"x": np.zeros(1)})
    assert opt.state["x"]["exp_avg_sq"][0] == 0.999
    assert 0.999**36822 > 1e-16 > 0.999**36823
    for v in (1e-12, 1e-16, 1e-20, 1e-30):
        x, opt = settled(1e-9, v)
        opt.step({"x": np.zeros(1)})
        assert 0.9 * 1e-9 / -x[0] == pytest.approx(math.sqrt(0.999 * v) + 1e-8, rel=1e-9)  # D, from the step it makes
    assert 0.9 * 1e-9 / -x[0] == pytest.approx(1e-8, rel=1e-6)


def test_in_a_flat_region_nothing_blows_up_without_epsilon() -> None:
    """The update is said to become infinitely large without epsilon. It vanishes: m decays faster than sqrt(v), their ratio by
    beta1/sqrt(beta2) = 0.90045 a step, so that 1,000 steps later it is 2.9e-46."""
    x, opt = settled(1.0, 1.0, eps=0.0)
    ratios = [1.0]
    for _ in range(1000):
        opt.step({"x": np.zeros(1)})
        ratios.append(opt.state["x"]["exp_avg"][0] / math.sqrt(opt.state["x"]["exp_avg_sq"][0]))
    assert ratios[1] == pytest.approx(0.90045, abs=1e-5)
    assert ratios[-1] == pytest.approx(2.9e-46, rel=0.01)
    assert -x[0] == pytest.approx(sum(ratios[1:]), rel=EXACT)


def test_in_a_flat_region_the_parameter_coasts_to_a_stop() -> None:
    """After 100 steps with a gradient of 1 and then none, it coasts 9.46 learning rates further, after very many 9.05; momentum alone, 9."""
    for steps, further in ((100, 9.456), (20_000, 9.045)):
        places, _ = walk(openadam.Adam, [1.0] * steps + [0.0] * 400, lr=1.0, eps=0.0)
        assert places[steps] - places[-1] == pytest.approx(further, abs=1e-3)


def test_in_float32_the_second_moment_becomes_zero_here() -> None:
    """In float32 a plain loop never gets v to zero: it sticks at 7e-43, among the subnormal numbers. Here what is below the
    smallest normal number is stored as 0, and 0/0 counts as 0: the parameter stays where it is, even without epsilon."""
    v = np.float32(2e-38)
    while (smaller := np.float32(v * np.float32(0.999))) != v:
        v = smaller
    assert 0 < v < 1e-42
    x = np.ones(1, np.float32)
    opt = openadam.Adam({"x": x}, lr=1.0, eps=0.0)
    state = opt.state_dict()
    state["steps"] = state["state"]["x"]["step"] = 80000
    state["state"]["x"]["exp_avg_sq"] = np.full(1, 2e-38, np.float32)
    opt.load_state_dict(state)
    steps = 0
    while opt.state["x"]["exp_avg_sq"][0] > 0:
        opt.step({"x": np.zeros(1, np.float32)})
        steps += 1
    assert 500 < steps < 600
    opt.step({"x": np.zeros(1, np.float32)})
    assert x.tolist() == [1.0]


def test_where_epsilon_is_needed() -> None:
    """What epsilon is for: gradients that were never anything but zero (0/0, which here counts as 0), and a floor under
    sqrt(v_hat), so that gradients near 1e-8, which may be noise, do not make full steps."""
    assert updates(openadam.Adam, [0.0] * 3, lr=1.0, eps=0.0).tolist() == [0.0, 0.0, 0.0]
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.float64(0.0) / np.float64(0.0))  # what a plain loop would add to the parameter
    noise = alternating(1e-12, 100)
    assert abs(updates(openadam.Adam, noise, lr=1.0, eps=0.0)).max() > 0.05
    assert abs(updates(openadam.Adam, noise, lr=1.0)).max() < 2e-4


def test_a_square_may_vanish_where_the_gradient_does_not() -> None:
    """In float32 the square of 1e-30 is zero: the first step is then 0/0 or, for a plain loop, x/0; here it counts as 0."""
    x = np.ones(1, np.float32)
    openadam.Adam({"x": x}, lr=1.0, eps=0.0).step({"x": np.full(1, 1e-30, np.float32)})
    assert x.tolist() == [1.0]


def test_epsilon_is_a_bound_only_where_the_format_has_it() -> None:
    """The denominator is bounded below by a small positive value: not in half precision, where 1e-8 is zero. An epsilon that
    the parameter's format rounds to zero is refused."""
    assert np.float16(1e-8) == 0.0
    with pytest.raises(openadam.HyperparameterError, match=r"eps=1e-46 .* is 0 in float32"):
        openadam.Adam({"x": np.ones(1, np.float32)}, eps=1e-46)


def test_epsilon_has_three_places() -> None:
    """Not said there: epsilon outside the root (as here), inside it, or Kingma's eps-hat, which acts as if it were 31.6 times
    larger at first. For a first gradient of 1e-8 the step is 1/2, or next to nothing, or 0.03 of the learning rate."""
    first = {place: float(updates(openadam.Adam, [1e-8], lr=1.0, epsilon=place)[0]) for place in ("outside", "inside", "hat")}
    assert first == pytest.approx({"outside": 1 / 2, "inside": 1e-8 / math.sqrt(1e-16 + 1e-8), "hat": 1 / (1 + math.sqrt(1000))}, rel=1e-9)


# --- Initialization bias and its correction -----------------------------------------------------------------------------


def test_the_first_moment_expanded() -> None:
    """m_t = (1 - beta1) sum of beta1^(t-i) g_i, here in exact fractions."""
    gradients = [20, -5, 8, 3, -11]
    expected = sum(Fraction(1, 10) * Fraction(9, 10) ** (5 - i) * g for i, g in enumerate(gradients, 1))
    assert moments(map(float, gradients), beta1=0.9)[-1]["m"] == pytest.approx(float(expected), rel=EXACT)


def test_the_weights_sum_to_less_than_one() -> None:
    """The sum of the weights is 1 - beta1^t, less than 1: 0.40951 at t = 5."""
    m = [values["m"] for values in moments([1.0] * 20, beta1=0.9)]
    assert m[4] == pytest.approx(0.40951, rel=EXACT)
    assert m == pytest.approx([float(1 - Fraction(9, 10) ** t) for t in range(1, 21)], rel=EXACT)
    assert max(m) < 1


def test_the_correction_at_the_first_step_is_exact() -> None:
    """At t = 1, m_hat = g and v_hat = g^2."""
    (first,) = moments([-3.7])
    assert first["m"] == pytest.approx((1 - 0.9) * -3.7, rel=EXACT)
    assert first["v"] == pytest.approx((1 - 0.999) * 3.7**2, rel=EXACT)
    assert (first["m_hat"], first["v_hat"]) == pytest.approx((-3.7, 3.7**2), rel=EXACT)


@pytest.mark.parametrize(("decay", "steps"), [("m", 44), ("v", 4613)])
def test_the_correction_becomes_negligible(decay: str, steps: int) -> None:
    """As t grows the correction, 1/(1 - beta**t), becomes negligible: within 1 % of 1 from t = 44 for m, from t = 4,613 for v."""
    opt = openadam.Adam({"x": np.zeros(1)})
    for t in range(1, steps + 1):
        if t == steps:
            assert 1 / opt.state["x"]["exp_avg" if decay == "m" else "exp_avg_sq"][0] > 1.01
        opt.step({"x": np.ones(1)})
    assert 1 / opt.state["x"]["exp_avg" if decay == "m" else "exp_avg_sq"][0] <= 1.01


@pytest.mark.parametrize("g", [100.0, 1.0, -1.0, 1e-6, -1e-8])
def test_the_first_step_is_the_learning_rate(g: float) -> None:
    """|update| = alpha at t = 1 as eps goes to 0. With eps = 1e-8 it is alpha |g|/(|g| + eps): 0.990 alpha for 1e-6, half for 1e-8."""
    assert updates(openadam.Adam, [g], lr=0.5, eps=0.0)[0] == pytest.approx(math.copysign(0.5, g), rel=EXACT)
    assert updates(openadam.Adam, [g], lr=0.5)[0] == pytest.approx(0.5 * g / (abs(g) + 1e-8), rel=1e-9)


def ratio_without_correction(steps: int, beta2: float = 0.999) -> Array:
    """How much larger the steps are without bias correction, for a constant gradient."""
    without, corrected = (
        updates(openadam.Adam, [1.0] * steps, lr=1.0, beta1=0.9, beta2=beta2, eps=0.0, bias_correction=choice) for choice in ("off", "on")
    )
    return without / corrected


def test_the_first_step_without_correction() -> None:
    """Without correction the first step is (1 - beta1)/sqrt(1 - beta2) = 0.1/sqrt(0.001), about 3.16 times as large; exactly
    the root of 10."""
    assert ratio_without_correction(1)[0] == pytest.approx(math.sqrt(10), rel=EXACT)
    assert round(math.sqrt(10), 2) == 3.16


def test_without_correction_the_second_step_is_worse_and_the_twelfth_the_worst() -> None:
    """ "More than three times" is true and too kind: 4.25 at t = 2, 5.80 at t = 5, 6.5685 at t = 12; twice as large until
    t = 287, 1 % larger until t = 3,924."""
    ratio = ratio_without_correction(3925)
    expected = {1: 3.1623, 2: 4.2496, 5: 5.7971, 12: 6.5685, 100: 3.2408, 287: 2.0016, 1000: 1.2576, 3924: 1.01001, 3925: 1.01000}
    assert {t: ratio[t - 1] for t in expected} == pytest.approx(expected, abs=1e-4)
    assert ratio.argmax() + 1 == 12
    assert np.flatnonzero(ratio >= 2).max() + 1 == 287
    assert np.flatnonzero(ratio >= 1.01).max() + 1 == 3924


@pytest.mark.parametrize(
    ("beta2", "first", "peak", "at"),
    [(0.95, 0.4472, 1.0967, 20), (0.98, 0.7071, 1.5538, 14), (0.99, 1.0, 2.1311, 13), (0.9999, 10.0, 20.7202, 12)],
)
def test_without_correction_other_betas(beta2: float, first: float, peak: float, at: int) -> None:
    """Whether the first step is larger at all depends on the betas: with beta2 = 0.95 it is less than half as large."""
    ratio = ratio_without_correction(200, beta2)
    assert (ratio[0], ratio.max()) == pytest.approx((first, peak), abs=1e-4)
    assert ratio.argmax() + 1 == at


def test_the_correction_boosts_both_moments_and_shrinks_the_step() -> None:
    """The correction "significantly boosts" the estimates and prevents steps that are too large; both are true, because v is
    boosted more: m by 10, sqrt(v) by 31.6, so the step is multiplied by 0.316 at t = 1, by 0.152 at t = 12, by 1 in the end."""
    values = moments([2.0] * 12)
    assert values[0]["m_hat"] / values[0]["m"] == pytest.approx(10, rel=EXACT)
    assert math.sqrt(values[0]["v_hat"] / values[0]["v"]) == pytest.approx(31.6228, abs=1e-4)
    net = [v["m_hat"] / v["m"] / math.sqrt(v["v_hat"] / v["v"]) for v in values]
    assert (net[0], net[11]) == pytest.approx((0.3162, 0.1522), abs=1e-4)


def test_the_corrected_first_step_is_by_sign_only() -> None:
    """A stable and controlled start: every coordinate that has a gradient moves by the whole learning rate at once, however
    small its gradient, so one that is at its goal is thrown off it. Warm-up is still needed, and cures this."""
    slope = {"slope": lambda x: x * [1e-3, 1.0, 1e6], "start": [1e-4, 1e-4, 1e-4]}
    thrown = descend(openadam.Adam, **slope, steps=1, lr=0.1, eps=0.0)[1]
    assert thrown == pytest.approx([1e-4 - 0.1] * 3, rel=EXACT)
    warm = descend(openadam.Adam, **slope, steps=1, lr=openadam.WarmUp(0.1, steps=1000), eps=0.0)[1]
    assert abs(warm).max() < 1.01e-4


def test_large_first_steps_can_be_what_one_wants() -> None:
    """Large early steps can cause overshooting and instability, but far from the optimum they arrive sooner: on |x| from 100,
    a hundred steps of 0.1 lead to 90 with correction and to 53.4 without."""
    last = {choice: descend(openadam.Adam, np.sign, 100.0, 100, lr=0.1, bias_correction=choice)[-1] for choice in ("on", "off")}
    assert last == pytest.approx({"on": 90.0, "off": 53.4325}, abs=1e-4)


# --- The complete algorithm ---------------------------------------------------------------------------------------------


def test_the_six_steps_in_their_order() -> None:
    """The gradient, both moments, both corrections, the update; here with the direction on a line of its own."""
    (step,) = openadam.trace("adam", [1.0]).steps
    assert [(line.name, line.formula.text) for line in step.lines] == [
        ("g", "gradient"),
        ("m", "beta1*m[t-1] + (1 - beta1)*g"),
        ("v", "beta2*v[t-1] + (1 - beta2)*g**2"),
        ("m_hat", "m/(1 - beta1**t)"),
        ("v_hat", "v/(1 - beta2**t)"),
        ("direction", "m_hat/(sqrt(v_hat) + eps)"),
        ("p", "p[t-1] - lr*direction"),
    ]


@openadam.rule(lr=1.0, beta1=0.9, eps=1e-8, bias_correction=0.0)
def adam_at_constant_v(g: Any, s: Any, h: Any) -> openadam.Step:
    """Adam whose second moment is a number, V; its first moment corrected if bias_correction is 1."""
    m = h.beta1 * s.m + (1 - h.beta1) * g
    m_hat = m / openadam.where(h.bias_correction == 0, 1, 1 - h.beta1**h.t)
    return openadam.Step(m_hat / (openadam.sqrt(h.V) + h.eps), m=m)


def test_momentum_equivalence_of_the_recursions() -> None:
    """With gamma = beta1, a_t = gamma a_{t-1} + g_t has the dynamics of m: for 20, -5, 8 and 0.8 it is 16.8, and 0.2 times that
    is m3 = 3.36. They are the same up to this factor, not the same."""
    _, opt = walk(openadam.Momentum, [20.0, -5.0, 8.0], momentum=0.8)
    a = opt.state["x"]["momentum_buffer"]
    assert a == pytest.approx(16.8, rel=EXACT)
    assert (1 - 0.8) * a == pytest.approx(moments([20.0, -5.0, 8.0], beta1=0.8)[-1]["m"], rel=EXACT)


def test_momentum_equivalence_at_constant_v() -> None:
    """With v held at V, Adam is momentum with gamma = beta1 and the learning rate alpha (1 - beta1)/(sqrt(V) + eps)."""
    big = 6.25
    still, _ = walk(openadam.Optimizer, NOISE, start=np.zeros(3), rule=adam_at_constant_v, lr=0.1, V=big)
    heavy, _ = walk(openadam.Momentum, NOISE, start=np.zeros(3), lr=0.1 * (1 - 0.9) / (math.sqrt(big) + 1e-8), momentum=0.9)
    np.testing.assert_allclose(still, heavy, rtol=0, atol=1e-13)


def test_momentum_equivalence_ignores_bias_correction() -> None:
    """The equivalence leaves out the correction of m, which is part of Adam: it makes the first step 10 times larger, and the
    steps differ by more than 1 % until t = 43."""
    corrected, plain = (updates(openadam.Optimizer, [1.0] * 60, rule=adam_at_constant_v, V=1.0, bias_correction=choice) for choice in (1.0, 0.0))
    assert corrected[0] / plain[0] == pytest.approx(10.0, rel=EXACT)
    assert np.flatnonzero(plain / corrected < 0.99).max() + 1 == 43


# --- Pitfalls: stale momentum -------------------------------------------------------------------------------------------


def stale_slope(x: Array) -> float:
    """The slope of a convex function with its minimum at 0: gentle on the left, steep on the right, as the article supposes."""
    return -1.0 if x < -0.5 else 2.0 * float(x) if x < 0 else 250.0 * float(x)


def stale(optimizer: Callable[..., openadam.Optimizer] = openadam.Adam, steps: int = 200, **settings: Any) -> Array:
    return descend(optimizer, stale_slope, 0.4, steps, **{"lr": 1.0, **settings})


def wrong_way(places: Array) -> int:
    """Steps from t = 2 on that move away from the minimum, until the first that does not."""
    count = 0
    while places[count + 2] < places[count + 1] < -0.5:
        count += 1
    return count


def returned(places: Array) -> int:
    """The step after which the parameter is first back above -0.5."""
    return next(t for t in range(2, len(places)) if places[t] >= -0.5)


def test_stale_momentum_the_first_step_tells_the_learning_rate() -> None:
    """x1 = 0.4 and g1 = 100 lead to x2 = -0.6. The first step is alpha, so alpha is 1, which the article does not say (or
    0.316 without bias correction)."""
    assert stale_slope(np.float64(0.4)) == 100.0
    assert stale(steps=1)[1] == pytest.approx(-0.6, rel=1e-9)
    assert stale(steps=1, lr=math.sqrt(0.1), bias_correction="off")[1] == pytest.approx(-0.6, rel=1e-8)


def test_stale_momentum_the_moment_in_closed_form() -> None:
    """With g = 100 and then -1, m stays positive for many steps: m_t = 11 * 0.9^(t-1) - 1, which is 8.9 at t = 2, 0.083 at t = 23
    and negative from t = 24 on."""
    m = [values["m"] for values in moments([100.0] + [-1.0] * 29, beta1=0.9)]
    assert m == pytest.approx([float(11 * Fraction(9, 10) ** (t - 1) - 1) for t in range(1, 31)], rel=1e-9)
    assert (m[1], m[22], m[23]) == pytest.approx((8.9, 0.0832, -0.0251), abs=1e-4)
    assert [x > 0 for x in m] == [True] * 23 + [False] * 7


def test_stale_momentum_the_second_step() -> None:
    """At t = 2: m_hat = 46.8421 and sqrt(v_hat) = 70.697, so the parameter moves by 0.6626 the wrong way."""
    values = moments([100.0, -1.0], params=0.4, lr=1.0)[1]
    assert (values["m_hat"], math.sqrt(values["v_hat"])) == pytest.approx((46.8421, 70.697), abs=1e-3)
    assert values["p"] == pytest.approx(-1.2626, abs=1e-4)


GOLDEN = {
    0: 0.4, 1: -0.6, 2: -1.2626, 3: -1.7683, 4: -2.1768, 5: -2.5165, 6: -2.8041, 7: -3.0501, 8: -3.2621, 9: -3.4453, 10: -3.6039,
    15: -4.1235, 20: -4.3369, 22: -4.3650, 23: -4.3694, 24: -4.3680,
}  # fmt: skip


def test_stale_momentum_the_walk() -> None:
    """The parameter moves further away from the minimum: from -0.6 to -4.3694 in 22 wrong steps, t = 2 to 23 ("dozens" is about
    two). The sign flips at t = 24, and -0.5 is passed at t = 84."""
    places = stale()
    assert {t: places[t] for t in GOLDEN} == pytest.approx(GOLDEN, abs=6e-5)
    assert wrong_way(places) == 22
    assert places.argmin() == 23
    assert returned(places) == 84


def test_stale_momentum_the_second_moment_is_stale_for_longer() -> None:
    """The blame is put on beta1 alone; v is stale 100 times longer. At the flip, t = 24, sqrt(v_hat) is 20.3 where gradients are
    1, so the way back, 60 steps, starts with 0.0013 and gets no faster than 0.093 of the learning rate."""
    values = moments([100.0] + [-1.0] * 23, params=0.4, lr=1.0)
    assert math.sqrt(values[23]["v_hat"]) == pytest.approx(20.32, abs=0.01)
    back = np.diff(stale())[23:83]
    assert back[0] == pytest.approx(0.00134, abs=1e-5)
    assert len(back) == 60
    assert back.max() == pytest.approx(0.0924, abs=1e-4)
    assert returned(stale()) - 24 == 60


@pytest.mark.parametrize(("beta1", "wrong", "back"), [(0.0, 0, 7), (0.5, 5, 31), (0.9, 22, 84), (0.95, 34, 114), (0.99, 68, 196)])
def test_stale_momentum_a_longer_memory_is_wrong_for_longer(beta1: float, wrong: int, back: int) -> None:
    """The long memory of momentum overwhelms the current gradient: the longer the memory, the more wrong steps."""
    places = stale(beta1=beta1)
    assert (wrong_way(places), returned(places)) == (wrong, back)


def test_stale_momentum_is_not_cured_by_amsgrad() -> None:
    """Variants like AMSGrad and AdamW are said to address such issues; neither addresses this one. AMSGrad takes 22 wrong steps
    to -4.36 and is back a step later than Adam: it remembers the large second moment for ever."""
    places = stale(openadam.AMSGrad)
    assert wrong_way(places) == 22
    assert places.min() == pytest.approx(-4.3596, abs=1e-4)
    assert returned(places) == 85


def test_stale_momentum_is_not_cured_by_adamw() -> None:
    """AdamW's direction is wrong for the same 22 steps. Its decay pulls towards zero, where this minimum happens to lie, so
    that the parameter turns after 17 of them, at -3.79; around any other point decay would pull elsewhere."""
    places = stale(openadam.AdamW, weight_decay=0.01)
    assert wrong_way(places) == 17
    assert places.min() == pytest.approx(-3.7884, abs=1e-4)
    assert returned(places) == 65
    gradients = [stale_slope(x) for x in places[:60]]
    steps = openadam.trace("adamw", gradients[:30], 0.4, lr=1.0, weight_decay=0.01).steps
    assert [step.t for step in steps if step.values["direction"] > 0 and step.t > 1] == list(range(2, 24))
    moved = descend(openadam.AdamW, lambda x: stale_slope(x - 100.0), 100.4, 200, lr=1.0, weight_decay=0.01) - 100.0
    assert moved.min() < -20


@openadam.rule(lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8)
def cautious_adam(g: Any, s: Any, h: Any) -> openadam.Step:
    """Adam that does not move where its moment and the gradient disagree."""
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * g**2
    direction = m / (1 - h.beta1**h.t) / (openadam.sqrt(v / (1 - h.beta2**h.t)) + h.eps)
    return openadam.Step(openadam.where(m * g > 0, direction, 0), m=m, v=v)


@pytest.mark.parametrize(
    ("settings", "wrong", "lowest", "back"),
    [
        ({"clip_norm": 1.0}, 0, -0.6, 3),
        ({"optimizer": openadam.Optimizer, "rule": cautious_adam}, 0, -0.6, 30),
        ({"beta1": 0.5}, 5, -1.4748, 31),
        ({"beta2": 0.9}, 22, -5.0964, 51),
    ],
    ids=["clip", "cautious", "beta1", "beta2"],
)
def test_stale_momentum_what_does_cure_it(settings: dict[str, Any], wrong: int, lowest: float, back: int) -> None:
    """Clipping the gradient's norm at 1 leaves no wrong step; not moving against the gradient leaves none; a smaller beta1 leaves
    fewer. A smaller beta2 is no cure: it comes back sooner but goes further away."""
    places = stale(**settings)
    assert (wrong_way(places), returned(places)) == (wrong, back)
    assert places.min() == pytest.approx(lowest, abs=1e-4)


def test_stale_momentum_with_a_smaller_learning_rate() -> None:
    """With a tenth of the learning rate the same momentum carries the parameter over the minimum, but only to -0.5925."""
    places = stale(lr=0.1)
    assert (places.min(), places.argmin()) == (pytest.approx(-0.5925, abs=1e-4), 33)


# --- Pitfalls: the convergence that AMSGrad is about --------------------------------------------------------------------


def online(optimizer: type[openadam.Optimizer], steps: int, beta2: float) -> float:
    """Where x ends in an online problem of Reddi et al.: the slope is 3 at every third step, else -1; x stays in -1 to 1.

    The best x is -1. Learning rate 0.1/sqrt(t), no momentum.
    """
    x = np.zeros(1)
    opt = optimizer({"x": x}, lr=lambda t: 0.1 / math.sqrt(t), beta1=0.0, beta2=beta2)
    for t in range(1, steps + 1):
        opt.step({"x": np.array([3.0 if t % 3 == 1 else -1.0])})
        np.clip(x, -1.0, 1.0, out=x)
    return float(x[0])


def test_what_amsgrad_does_cure() -> None:
    """What AMSGrad was made for is another failure: with beta2 = 1/(1 + 3^2), rare large gradients are forgotten before they
    count, and Adam goes to the worst point, x = 1; AMSGrad goes to the best, x = -1. So does Adam with beta2 = 0.999."""
    assert online(openadam.Adam, 2000, 0.1) > 0.95
    assert online(openadam.AMSGrad, 2000, 0.1) < -0.95
    assert online(openadam.Adam, 2000, 0.999) < -0.95


def test_what_adamw_does_cure() -> None:
    """And AdamW was made for weight decay: coupled decay is divided by sqrt(v_hat) like a gradient, so that large gradients undo
    it; decoupled decay shrinks every parameter by lr times weight_decay, 0.999 a step here."""
    remaining = {}
    for member in (openadam.Adam, openadam.AdamW):
        ends = [walk(member, alternating(1000.0, 100), start=start, lr=0.01, weight_decay=0.1)[0][-1] for start in (0.0, 10.0)]
        remaining[member.__name__] = (ends[1] - ends[0]) / 10.0
    assert remaining["AdamW"] == pytest.approx(0.999**100, rel=1e-9)
    assert remaining["Adam"] > 0.999


# --- The page -----------------------------------------------------------------------------------------------------------


def test_the_page_names_every_test_and_no_other() -> None:
    """docs/article.md is the table of these tests."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "article.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    tests = {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_every_test_and_no_other"}
    assert named == tests
