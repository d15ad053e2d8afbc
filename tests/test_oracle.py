"""One step of every member, in every variant, against the oracle: from states of every size, and along a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, PLAIN, VARIANTS, WRONG, Variant, place, same, spread, variant, wrong
from oracle import deviation, deviations, exact, predict

import openadam

STEPS = {"first": 0, "second": 1, "sixth": 5, "tenth": 9, "hundredth": 99, "late": 99_999}
"""Steps taken before the one that is checked: rectification begins at the sixth, corrections end in the hundreds."""


def start(subject: Variant, dtype: Any, seed: int, size: int = 15, steps: Any = STEPS, member: Any = None, **settings: Any) -> Any:
    """One optimizer for each engine in the same state, and gradients for the next step."""
    random = np.random.default_rng(seed)
    values = {name: spread(random, size, dtype) * (random.random(size) > 0.2) for name in steps}
    values = {name: value.astype(dtype) for name, value in values.items()}
    make = subject.make if member is None else Variant(member).make
    engines = ENGINES if member is None else ("reference",)  # a wrong rule has no kernel
    optimizers = [make({name: value.copy() for name, value in values.items()}, engine=engine, **settings) for engine in engines]
    for optimizer in optimizers:
        place(subject, optimizer, np.random.default_rng(seed + 1), steps)
    return optimizers, {name: spread(random, size, dtype, -6, 2) for name in steps}


def worst(
    subject: Variant, dtype: Any, *, seed: int = 0, size: int = 15, steps: Any = STEPS, member: Any = None, **settings: Any
) -> dict[str, float]:
    """The worst deviation of one step over all engines; at most 1 if the optimizer is what it should be."""
    optimizers, grads = start(subject, dtype, seed, size, steps, member, **settings)
    surroundings = {"clip_value": settings["clip_value"]} if "clip_value" in settings else {}
    prediction = predict(subject, optimizers[0], grads, **surroundings)
    result: dict[str, float] = {}
    for optimizer in optimizers:
        optimizer.step(grads)
        for what, fraction in deviations(subject, prediction, optimizer).items():
            result[what] = max(result.get(what, 0.0), fraction)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subject", VARIANTS, ids=str)
def test_one_step(subject: Variant, dtype: Any) -> None:
    found = worst(subject, dtype)
    assert max(found.values()) <= 1, found
    assert found["p"] > 0.2, "a bound that is never approached says little"


SURROUNDINGS = {
    "decay": {"weight_decay": 0.3},
    "maximize": {"weight_decay": 0.3, "maximize": True},
    "clip_value": {"weight_decay": 0.3, "clip_value": 0.017},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SURROUNDINGS.values(), ids=SURROUNDINGS)
@pytest.mark.parametrize("subject", PLAIN, ids=str)
def test_one_step_in_surroundings(subject: Variant, settings: Any, dtype: Any) -> None:
    found = worst(subject, dtype, seed=2, size=9, **settings)
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subject", PLAIN, ids=str)
def test_clip_norm(subject: Variant, dtype: Any) -> None:
    """The factor is checked by itself; its sum of many squares has an error of its own, which the bound of a step leaves out."""
    (probe, *_), grads = start(subject, dtype, 3, size=9, clip_norm=0.5)
    first = probe.step(grads)
    norm = exact.sqrt(sum(exact.mpf(float(x)) ** 2 for g in grads.values() for x in g))
    assert abs(first.grad_norm / norm - 1) < 1e-14
    assert abs(first.clip_factor / (0.5 / (norm + exact.mpf(1e-6))) - 1) < 1e-14
    optimizers, _ = start(subject, dtype, 3, size=9, clip_norm=0.5)
    prediction = predict(subject, optimizers[0], grads, gradient_scale=first.clip_factor)
    for optimizer in optimizers:
        assert optimizer.step(grads) == first
        assert max(deviations(subject, prediction, optimizer).values()) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subject", PLAIN, ids=str)
def test_along_a_run(subject: Variant, dtype: Any) -> None:
    """Every step from the state that the optimizer itself arrived in."""
    (optimizer, *others), _ = start(subject, dtype, 4, size=4, steps={"w": 0}, weight_decay=0.01)
    random = np.random.default_rng(5)
    for _ in range(12):
        grads = {"w": random.normal(size=4).astype(dtype)}
        prediction = predict(subject, optimizer, grads)
        for each in (optimizer, *others):
            each.step(grads)
        found = deviations(subject, prediction, optimizer)
        assert max(found.values()) <= 1, (optimizer.steps, found)
        assert all(same(optimizer.params, other.params) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("member", [openadam.Adam, openadam.AdamW])
def test_closed_form_for_adam(member: Any, dtype: Any) -> None:
    """The bounds as they are published, not derived here: of v, m, the update D and p, relative to the condition."""
    subject = variant(member)
    (optimizer, *_), grads = start(subject, dtype, 6, size=60, weight_decay=0.3 if member is openadam.AdamW else 0.0)
    u = np.finfo(dtype).eps / 2
    before = {name: (p.copy(), optimizer.state[name]["exp_avg"].copy()) for name, p in optimizer.params.items()}
    prediction = predict(subject, optimizer, grads)
    optimizer.step(grads)
    h = optimizer.groups[0]
    for name, expected in prediction.items():
        p, m = before[name]
        g, t = grads[name].astype(np.float64), STEPS[name] + 1
        v_exact, p_exact = expected["v"].value, expected["p"].value
        shrunk = 1 - exact.mpf(h["lr"]) * exact.mpf(h["weight_decay"]) if member is openadam.AdamW else exact.mpf(1)
        update = np.array([exact.mpf(float(x)) * shrunk - y for x, y in zip(p, p_exact, strict=True)])
        root = np.sqrt((v_exact / (1 - exact.mpf(h["beta2"]) ** t)).astype(np.float64)) + h["eps"]
        m_bound = 3 * u * (np.abs(h["beta1"] * m) + np.abs((1 - h["beta1"]) * g))
        bounds = {
            "v": 4 * u * np.abs(v_exact).astype(np.float64),
            "m": m_bound,
            "p": np.spacing(np.abs(p_exact).astype(dtype)) / 2 * (1 + 2**-10)
            + h["lr"] * m_bound / (1 - h["beta1"] ** t) / root
            + 8 * u * np.abs(update).astype(np.float64),
        }
        if member is openadam.AdamW:
            bounds["p"] += u * np.abs(p) * (1 + 2 * h["lr"] * h["weight_decay"])
        for what, bound in bounds.items():
            actual = optimizer.params[name] if what == "p" else optimizer.state[name][subject.public(what)]
            off = np.abs(np.array([exact.mpf(float(x)) for x in actual]) - expected[what].value).astype(np.float64)
            assert (off <= bound).all(), (name, what, np.max(off / bound))
            # The bound derived from the graph is no wider for the states, and for p less than twice as wide (16u for 8u).
            assert (expected[what].error <= bound * (1.001 if what != "p" else 2)).all(), (name, what, np.max(expected[what].error / bound))


def test_drift() -> None:
    """A thousand steps in float32 stay near those in float64."""
    for subject in PLAIN:
        random = np.random.default_rng(7)
        begin = spread(random, 50, np.float32, -2, 0)
        single, double = begin.copy(), begin.astype(np.float64)
        optimizers = [subject.make(p, weight_decay=0.01, lr=1e-3, engine=ENGINES[0]) for p in (single, double)]
        path = np.zeros(50)
        for _ in range(1000):
            g, before = random.normal(size=50).astype(np.float32), double.copy()
            for optimizer in optimizers:
                optimizer.step(g)
            path += np.abs(double - before)
        # Rounding of p may go one way at every step while p moves little; of the update, it averages out.
        bound = 500 * np.spacing(np.abs(begin)) + 1e-4 * path
        assert (np.abs(single - double) <= bound).all(), subject
        assert (path > 100 * bound).all(), "the bound must be small beside the way that was gone"


# --- negative controls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.name)
def test_wrong_rule_is_seen(rule: Any) -> None:
    """Each mistake breaks the bounds; that of cancellation only where float64 does not round it away again."""
    settings = {"member": wrong(rule), "beta2": 0.999, "steps": {str(count): count for count in range(8)}}
    found = [max(worst(variant(openadam.Adam), dtype, **settings).values()) for dtype in DTYPES]
    assert found[1] > 1
    assert found[0] > 1 or rule.name == "cancelled"


def _mistakable() -> list[Any]:
    """Ordered pairs of variants of one rule with the same states and couplings; equal programs are not mistakes."""
    pairs = []
    for subject in VARIANTS:
        for other in VARIANTS:
            alike = subject.rule is other.rule and subject.member is other.member and set(subject.traced.states) == set(other.traced.states)
            if alike and set(subject.hyperparameters) == set(other.hyperparameters):
                programs = [openadam.rules.update_program(each.traced) for each in (subject, other)]
                if programs[0].digest != programs[1].digest or repr(programs[0].scalars) != repr(programs[1].scalars):
                    pairs.append(pytest.param(subject, other, id=f"{subject}-as-{other}"))
    return pairs


@pytest.mark.parametrize(("subject", "other"), _mistakable())
def test_variants_are_told_apart(subject: Variant, other: Variant) -> None:
    """The oracle of one variant refuses every other: no choice of eps, form or maximum is only a name."""
    optimizers, grads = start(other, np.float32, 8, size=8)
    prediction = predict(subject, optimizers[0], grads)
    optimizers[0].step(grads)
    assert max(deviations(subject, prediction, optimizers[0]).values()) > 1


@pytest.mark.parametrize("member", [openadam.AdamW, openadam.NAdamW, openadam.RAdamW])
def test_couplings_are_told_apart(member: Any) -> None:
    optimizers, grads = start(variant(member), np.float32, 9, size=8, weight_decay=0.1)
    coupled = variant(member.__base__)
    prediction = predict(coupled, optimizers[0], grads)
    optimizers[0].step(grads)
    assert max(deviations(coupled, prediction, optimizers[0]).values()) > 1


def test_deviation() -> None:
    """The measuring itself: the right value passes; more than the bound away does not, nor does a subnormal state or NaN."""
    subject = variant(openadam.Adam)
    optimizers, grads = start(subject, np.float32, 10, size=5, steps={"w": 3})
    bounded = predict(subject, optimizers[0], grads)["w"]["v"]
    right = bounded.value.astype(np.float32)
    assert deviation(bounded, right, is_state=True) <= 1
    off = (bounded.value.astype(np.float64) + 1.5 * bounded.error).astype(np.float32)
    assert deviation(bounded, off + np.spacing(off), is_state=True) > 1
    assert deviation(bounded, np.full(5, np.nan, np.float32), is_state=True) == np.inf
    assert deviation(bounded, np.full(5, 1e-40, np.float32), is_state=True) == np.inf
