"""What holds of every step whatever the numbers: symmetries, independence, and how far a step can go.

Lengths run from 1 to 67, so that vectors of every width have every remainder. Where nothing else is said, agreement is in every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, PLAIN, VARIANTS, Variant, place, same, spread, stale, uncorrected, uphill, variant, wrong
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import openadam

every_variant = pytest.mark.parametrize("subject", VARIANTS, ids=str)
every_member = pytest.mark.parametrize("subject", PLAIN, ids=str)


@dataclass(frozen=True)
class Draw:
    """What one example consists of; the numbers come from the seed."""

    size: int
    dtype: Any
    engine: str
    seed: int

    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def array(self, random: np.random.Generator) -> Any:
        """Magnitudes over six decades, and zeros of either sign."""
        values = spread(random, self.size, self.dtype)
        return np.where(random.random(self.size) < 0.1, np.copysign(self.dtype(0), values), values)

    def gradients(self, random: np.random.Generator, steps: int = 3) -> list[Any]:
        return [self.array(random) for _ in range(steps)]


draws = st.builds(Draw, size=st.integers(1, 67), dtype=st.sampled_from(DTYPES), engine=st.sampled_from(ENGINES), seed=st.integers(0, 2**32 - 1))


def examples(count: int) -> Callable[[Any], Any]:
    """So many examples per subject; they are not shrunk, since a smaller seed is no simpler."""

    def decorate(test: Any) -> Any:
        return settings(max_examples=count, phases=(Phase.explicit, Phase.generate))(given(draw=draws)(test))

    return decorate


def trajectory(optimizer: openadam.Optimizer, gradients: Any, name: str = "0") -> Iterator[Any]:
    """The parameter and its state after each step, copied."""
    for g in gradients:
        optimizer.step(g)
        yield {"p": optimizer.params[name].copy(), **{key: np.array(value) for key, value in optimizer.state[name].items()}}


def equal(a: Any, b: Any) -> bool:
    """Agreement in value: zeros of either sign are one."""
    return all(np.array_equal(a[key], b[key]) for key in a)


# --- symmetries --------------------------------------------------------------------------------------------------------


@every_variant
@examples(4)
def test_sign_symmetry(subject: Variant, draw: Draw) -> None:
    """Mirrored gradients and parameters give the mirrored run."""
    random = draw.random()
    p, gradients = draw.array(random), draw.gradients(random)
    runs = [trajectory(subject.make(sign * p, weight_decay=0.1, engine=draw.engine), [sign * g for g in gradients]) for sign in draw.dtype([1, -1])]
    odd = {"p", "exp_avg", "momentum_buffer", "grad_avg"}
    for up, down in zip(*runs, strict=True):
        assert equal(up, {key: -value if key in odd else value for key, value in down.items()})


@every_variant
@examples(3)
def test_maximize_is_the_negated_gradient(subject: Variant, draw: Draw) -> None:
    random = draw.random()
    p, gradients = draw.array(random), draw.gradients(random)
    up = subject.make(p.copy(), weight_decay=0.1, maximize=True, engine=draw.engine)
    down = subject.make(p.copy(), weight_decay=0.1, engine=draw.engine)
    for a, b in zip(trajectory(up, gradients), trajectory(down, [-g for g in gradients]), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("member", [openadam.AdamW, openadam.NAdamW, openadam.RAdamW])
@examples(8)
def test_without_decay_the_coupling_does_not_matter(member: Any, draw: Draw) -> None:
    for subject in (each for each in VARIANTS if each.member is member):
        random = draw.random()
        p, gradients = draw.array(random), draw.gradients(random)
        runs = [trajectory(Variant(cls, subject.options).make(p.copy(), engine=draw.engine), gradients) for cls in (member, member.__base__)]
        for a, b in zip(*runs, strict=True):
            assert same(a, b)


COUPLED = [each for each in PLAIN if each.member.coupling == "coupled"]


@pytest.mark.parametrize("subject", COUPLED, ids=str)
@examples(6)
def test_coupled_decay_joins_the_gradient(subject: Variant, draw: Draw) -> None:
    """Within 1 ulp is asked; since the gradient is prepared by an operation of its own, it is every bit."""
    random = draw.random()
    p, gradients = draw.array(random), draw.gradients(random)
    decayed = subject.make(p.copy(), weight_decay=0.1, engine=draw.engine)
    plain = subject.make(p.copy(), engine=draw.engine)
    for g in gradients:
        plain.step(g + draw.dtype(0.1) * plain.params["0"])
        decayed.step(g)
        assert same(plain.params, decayed.params)


HOMOGENEOUS = [
    each
    for each in VARIANTS
    if each.member in (openadam.Adagrad, openadam.RMSProp, openadam.Adam, openadam.AdamW, openadam.AMSGrad, openadam.AdaMax, openadam.NAdam)
]
POWER = {"exp_avg": 1, "grad_avg": 1, "exp_inf": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2}


@pytest.mark.parametrize("subject", HOMOGENEOUS, ids=str)
@examples(3)
@example(draw=Draw(67, np.float32, ENGINES[0], 1)).via("a full vector and a remainder")
def test_scale_of_the_gradient_does_not_matter(subject: Variant, draw: Draw) -> None:
    """Without eps, gradients times 2**k give the same parameters; moments are multiplied by the same power, or its square."""
    random = draw.random()
    p, gradients = draw.array(random), draw.gradients(random)
    exponent = int(random.integers(-20, 21))
    settings_ = {"eps": 0.0, "initial_accumulator_value": 0.0, "engine": draw.engine}
    runs = [trajectory(subject.make(p.copy(), **settings_), [np.ldexp(g, k) for g in gradients]) for k in (0, exponent)]
    for plain, scaled in zip(*runs, strict=True):
        assert same(scaled, {key: np.ldexp(value, POWER[key] * exponent) if key in POWER else value for key, value in plain.items()})


# --- independence ------------------------------------------------------------------------------------------------------


@every_variant
@examples(3)
def test_permutation(subject: Variant, draw: Draw) -> None:
    """Elements do not know their place."""
    random = draw.random()
    p, gradients, order = draw.array(random), draw.gradients(random), random.permutation(draw.size)
    straight = trajectory(subject.make(p.copy(), weight_decay=0.1, engine=draw.engine), gradients)
    shuffled = trajectory(subject.make(p[order], weight_decay=0.1, engine=draw.engine), [g[order] for g in gradients])
    for a, b in zip(straight, shuffled, strict=True):
        assert same({key: value[order] if value.ndim else value for key, value in a.items()}, b)


@every_variant
@examples(3)
def test_cutting_into_tensors(subject: Variant, draw: Draw) -> None:
    """One tensor, or the same elements in several, some of them empty."""
    random = draw.random()
    p, gradients = draw.array(random), draw.gradients(random)
    cuts = np.sort(random.integers(0, draw.size + 1, 4))
    whole = subject.make(p.copy(), weight_decay=0.1, engine=draw.engine)
    parts = subject.make([part.copy() for part in np.split(p, cuts)], weight_decay=0.1, engine=draw.engine)
    for g in gradients:
        whole.step(g)
        parts.step([part.copy() for part in np.split(g, cuts)])
    joined = {"p": np.concatenate(list(parts.params.values()))}
    expected = {"p": whole.params["0"]}
    for key, value in whole.state["0"].items():
        expected[key] = value
        pieces = [state[key] for state in parts.state.values()]
        joined[key] = np.concatenate(pieces) if isinstance(value, np.ndarray) else pieces[0]
        assert isinstance(value, np.ndarray) or pieces == [value] * 5
    assert same(joined, expected)


@every_member
@examples(4)
def test_groups_are_independent(subject: Variant, draw: Draw) -> None:
    random = draw.random()
    (a, b), gradients = (draw.array(random), draw.array(random)), [(draw.array(random), draw.array(random)) for _ in range(3)]
    together = subject.make([{"params": a.copy(), "lr": 0.5}, {"params": b.copy(), "weight_decay": 0.2}], engine=draw.engine)
    alone = [subject.make(a.copy(), lr=0.5, engine=draw.engine), subject.make(b.copy(), weight_decay=0.2, engine=draw.engine)]
    for pair in gradients:
        together.step(list(pair))
        for optimizer, g in zip(alone, pair, strict=True):
            optimizer.step(g)
    assert same(together.params, {"0": alone[0].params["0"], "1": alone[1].params["0"]})


@every_variant
@examples(3)
def test_resuming_is_going_on(subject: Variant, draw: Draw) -> None:
    random = draw.random()
    p, gradients = draw.array(random), draw.gradients(random, 8)
    straight = list(trajectory(subject.make(p.copy(), weight_decay=0.1, engine=draw.engine), gradients))
    stop = int(random.integers(0, 9))
    first = subject.make(p.copy(), weight_decay=0.1, engine=draw.engine)
    list(trajectory(first, gradients[:stop]))
    second = subject.make(first.params["0"].copy(), weight_decay=0.1, engine=draw.engine)
    second.load_state_dict(first.state_dict())
    for a, b in zip(straight[stop:], trajectory(second, gradients[stop:]), strict=True):
        assert same(a, b)


@every_member
def test_number_of_threads(subject: Variant) -> None:
    """Long enough to be shared out: the bits, and the norms, are those of one thread."""
    random = np.random.default_rng(0)
    values = [spread(random, size, np.float32) for size in (400_003, 70_001, 5)]
    gradients = [spread(random, value.size, np.float32) for value in values]
    runs = []
    for threads in (1, 2, 7):
        optimizer = subject.make([value.copy() for value in values], weight_decay=0.1, threads=threads, clip_norm=10.0, engine=ENGINES[0])
        reports = [optimizer.step(gradients, measure=True) for _ in range(2)]
        runs.append((reports, optimizer.params, optimizer.state))
    for reports, params, state in runs[1:]:
        assert reports == runs[0][0]
        assert same(params, runs[0][1])
        assert same(state, runs[0][2])


# --- how far a step can go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [each for each in VARIANTS if each.member is openadam.AMSGrad], ids=str)
@examples(10)
def test_largest_second_moment_never_falls(subject: Variant, draw: Draw) -> None:
    random = draw.random()
    gradients = [g * draw.dtype(0.5**k) for k, g in enumerate(draw.gradients(random, 6))]
    before = np.zeros(draw.size, draw.dtype)
    for state in trajectory(subject.make(draw.array(random), engine=draw.engine), gradients):
        assert (state["max_exp_avg_sq"] >= before).all()
        before = state["max_exp_avg_sq"]
        if subject.options["maximum_of"] != "corrected":
            assert (before >= state["exp_avg_sq"]).all()


@every_variant
@examples(3)
def test_nothing_comes_of_nothing(subject: Variant, draw: Draw) -> None:
    """Zero gradients from the start leave every parameter as it is, in every bit, with and without eps."""
    p = draw.array(draw.random())
    for eps in (1e-8, 0.0):
        optimizer = subject.make(p.copy(), eps=eps, initial_accumulator_value=0.0, engine=draw.engine)
        for _ in range(3):
            optimizer.step(np.zeros_like(p))
        assert same(optimizer.params["0"], p)
        assert all(np.isfinite(value).all() for value in optimizer.state["0"].values())


def first_step_in_ulps(optimizer: openadam.Optimizer, g: Any) -> float:
    """How far the first step from p = 0 is from -lr * sign(g), in units of the last place of lr."""
    optimizer.step(g)
    lr = g.dtype.type(optimizer.groups[0]["lr"])
    return float(np.max(np.abs(optimizer.params["0"] + lr * np.sign(g)), initial=0) / np.spacing(lr))


# The square of a gradient must neither overflow nor, times 1 - beta2, leave the normal numbers.
RANGE = {np.float32: (-15, 17), np.float64: (-150, 150)}
SIGNED = [variant(member, epsilon=eps) for member in (openadam.Adam, openadam.AdamW) for eps in openadam.rules.EPSILON]


@pytest.mark.parametrize("subject", SIGNED, ids=str)
@examples(20)
def test_first_step_is_the_sign(subject: Variant, draw: Draw) -> None:
    g = spread(draw.random(), draw.size, draw.dtype, *RANGE[draw.dtype])
    assert first_step_in_ulps(subject.make(np.zeros_like(g), eps=0.0, beta2=0.999, engine=draw.engine), g) <= 4


def largest_step(optimizer: openadam.Optimizer, gradients: Any) -> float:
    """The largest ratio of a step to the bound of Cauchy and Schwarz.

    Let r = beta1**2 / beta2 < 1. By Cauchy and Schwarz, m**2 = ((1 - beta1) sum beta1**(t-i) g_i)**2 is at most
    (1 - beta1)**2 / (1 - beta2) * (1 - r**t) / (1 - r) * v, and |step| = lr |m_hat| / (sqrt(v_hat) + eps). The bound of the
    paper, lr (1 - beta1) / sqrt(1 - beta2), is no bound: gradients that grow by beta2 / beta1 at every step exceed it.
    """
    h = optimizer.groups[0]
    b1, b2, p = h["beta1"], h["beta2"], optimizer.params["0"]
    r, worst = b1**2 / b2, 0.0
    for g in gradients:
        p[...] = 0  # so that the parameter is the step
        optimizer.step(g)
        t = optimizer.state["0"]["step"]
        bound = h["lr"] * (1 - b1) / math.sqrt(1 - b2) * math.sqrt((1 - r**t) / (1 - r)) * math.sqrt(1 - b2**t) / (1 - b1**t)
        worst = max(worst, float(np.max(np.abs(p))) / bound)
    return worst


BETAS = [(0.9, 0.999), (0.9, 0.99), (0.95, 0.98), (0.9, 0.95), (0.0, 0.5)]
BOUNDED = [variant(openadam.Adam), variant(openadam.AdamW), variant(openadam.AMSGrad), variant(openadam.AMSGrad, maximum_of="corrected")]


@pytest.mark.parametrize("subject", BOUNDED, ids=str)
@pytest.mark.parametrize("betas", BETAS, ids=str)
@examples(6)
def test_step_is_bounded(subject: Variant, betas: tuple[float, float], draw: Draw) -> None:
    random = draw.random()
    growth = random.uniform(0.5, 1.5)
    gradients = [g * draw.dtype(growth**k) for k, g in enumerate(draw.gradients(random, 12))]
    optimizer = subject.make(np.zeros(draw.size, draw.dtype), beta1=betas[0], beta2=betas[1], eps=0.0, engine=draw.engine)
    assert largest_step(optimizer, gradients) <= 1 + 10 * np.finfo(draw.dtype).eps


GROWING = {(0.9, 0.999): 7.270, (0.9, 0.99): 2.345, (0.95, 0.98): 1.257, (0.9, 0.95): 1.165}
"""How many times lr the step becomes, by betas; the paper's bound would be 3.162, 1, 1 and 1."""


@pytest.mark.parametrize("betas", GROWING, ids=str)
def test_growing_gradients_reach_the_bound(betas: tuple[float, float]) -> None:
    b1, b2 = betas
    optimizer = openadam.Adam(np.zeros(1), lr=1.0, beta1=b1, beta2=b2, eps=0.0, engine=ENGINES[0])
    loaded = optimizer.state_dict()
    loaded["state"]["0"]["step"] = loaded["steps"] = 10**6  # long after bias correction, with nothing remembered
    optimizer.load_state_dict(loaded)
    count = math.ceil(40 / -math.log(b1**2 / b2))
    assert largest_step(optimizer, (np.array([(b2 / b1) ** k]) for k in range(count))) == pytest.approx(1, rel=1e-12)
    assert abs(optimizer.params["0"][0]) == pytest.approx(GROWING[betas], abs=5e-4)


# --- negative controls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [uncorrected, stale, uphill], ids=lambda rule: rule.name)
def test_first_step_sees_mistakes(rule: Any) -> None:
    g = spread(np.random.default_rng(0), 67, np.float32, *RANGE[np.float32])
    assert first_step_in_ulps(wrong(rule)(np.zeros_like(g), eps=0.0, engine="reference"), g) > 4


def test_bound_of_the_step_sees_mistakes() -> None:
    """Adam that forgets its correction oversteps the bound at once."""
    gradients = np.random.default_rng(0).normal(size=(5, 10))
    assert largest_step(wrong(uncorrected)(np.zeros(10), eps=0.0, engine="reference"), gradients) > 2


def test_states_are_placed() -> None:
    """The states that the tests start from are where they should be: beside 0, and never after 0 steps."""
    for subject in VARIANTS:
        optimizer = subject.make({"a": np.zeros(3), "b": np.zeros(3)}, engine=ENGINES[0])
        first = optimizer.state["a"]
        place(subject, optimizer, np.random.default_rng(0), {"a": 0, "b": 7})
        assert same(optimizer.state["a"], first)
        assert optimizer.state["b"]["step"] == 7
        assert all(np.all(value) for value in optimizer.state["b"].values())
