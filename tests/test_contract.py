"""What every optimizer owes its user, whatever its rule: one body of tests over all members, dtypes and engines."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, PLAIN, VALUES, Variant, same, swapped, uphill, wrong

import openadam
from openadam.measures import sampled_elements

Make = Callable[..., openadam.Optimizer]


@pytest.fixture(params=PLAIN, ids=str)
def subject(request: Any) -> Variant:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request: Any) -> Any:
    return request.param


@pytest.fixture(params=ENGINES)
def engine(request: Any) -> str:
    return request.param


@pytest.fixture
def make(subject: Variant, engine: str) -> Make:
    return lambda params, **settings: subject.make(params, **{"engine": engine, **settings})


@pytest.fixture
def draw(dtype: Any) -> Callable[..., Any]:
    """Random numbers of the dtype."""
    random = np.random.default_rng(0)
    return lambda *shape: np.asarray(random.normal(size=shape), dtype)


def snapshot(optimizer: openadam.Optimizer) -> bytes:
    """Everything that a refused step must leave alone."""
    return pickle.dumps((optimizer.state_dict(), {name: p.tobytes() for name, p in optimizer.params.items()}, optimizer.skipped))


# --- it optimizes ------------------------------------------------------------------------------------------------------

STEPS = 300
CONVERGES = {
    "SGD": (0.13, 0.0066, 0.14), "Momentum": (0.01, 0.0045, 1e-4), "Adagrad": (1.0, 0.14, 0.14), "RMSProp": (0.1, 0.0097, 0.11),
    "Adam": (0.3, 0.1, 4e-4), "AdamW": (0.3, 0.1, 4e-4), "AMSGrad": (0.3, 0.1, 5e-4), "AdaMax": (0.2, 0.14, 3e-3),
    "NAdam": (0.2, 0.03, 0.06), "NAdamW": (0.2, 0.03, 0.06), "RAdam": (0.2, 0.03, 0.06), "RAdamW": (0.2, 0.03, 0.06),
}  # fmt: skip
"""Learning rate on the parabola, learning rate on Rosenbrock's valley, and the height above its floor that must be reached."""


def parabola(x: Any) -> tuple[float, Any]:
    off = x - np.array([-1, 2], x.dtype)
    slope = np.array([1, 10], x.dtype) * off
    return float(off @ slope) / 2, slope


def rosenbrock(x: Any) -> tuple[float, Any]:
    a, b = x
    return float((1 - a) ** 2 + 100 * (b - a * a) ** 2), np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)], x.dtype)


def heights_reached(member: Any, dtype: Any, engine: str, on_parabola: float, in_valley: float) -> list[float]:
    """The values of both functions after so many steps from 0 with learning rates that fall to 0, otherwise by the defaults."""
    functions, points = (parabola, rosenbrock), [np.zeros(2, dtype), np.zeros(2, dtype)]
    rates = [openadam.Linear(lr, 0.0, STEPS) for lr in (on_parabola, in_valley)]
    optimizer = member([{"params": x, "lr": lr} for x, lr in zip(points, rates, strict=True)], weight_decay=0.0, engine=engine)
    for _ in range(STEPS):
        optimizer.step([function(x)[1] for function, x in zip(functions, points, strict=True)])
    return [function(x)[0] for function, x in zip(functions, points, strict=True)]


def test_converges(subject: Variant, dtype: Any, engine: str) -> None:
    *rates, bar = CONVERGES[str(subject)]
    on_parabola, in_valley = heights_reached(subject.member, dtype, engine, *rates)
    assert on_parabola < 1e-4
    assert in_valley < bar


@pytest.mark.parametrize("rule", [uphill, swapped], ids=lambda rule: rule.name)
def test_wrong_rules_do_not_converge(rule: Any) -> None:
    *rates, bar = CONVERGES["Adam"]
    on_parabola, in_valley = heights_reached(wrong(rule), np.float64, "reference", *rates)
    assert on_parabola > 1e-4
    assert in_valley > bar


def test_steps_in_place_and_reports(make: Make, draw: Any) -> None:
    a, b = draw(5), draw(2, 3)
    optimizer = make({"a": a, "b": b})
    before, grads = (a.copy(), b.copy()), {"a": draw(5), "b": draw(2, 3)}
    given = copy.deepcopy(grads)
    report = optimizer.step(grads)
    assert optimizer.params["a"] is a
    assert optimizer.params["b"] is b
    assert not np.any(a == before[0])
    assert not np.any(b == before[1])
    assert same(grads, given)
    assert isinstance(report, openadam.StepReport)
    norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads.values()))
    assert report == (1, pytest.approx(norm, rel=1e-12), 1.0, False, None, None, None)
    assert optimizer.step(grads).step == optimizer.steps == 2


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda x: x,
    "fortran": np.asfortranarray,
    "gaps": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "column": lambda x: np.stack([x, x], axis=-1)[..., 1],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.transpose()).transpose(),
}


def test_any_layout_gives_the_same_bits(make: Make, draw: Any) -> None:
    """Of the parameter, the gradient, or both; empty arrays included."""
    shapes = [(0,), (7,), (4, 6), (3, 1, 5)]
    values, grads = [draw(*shape) for shape in shapes], [[draw(*shape) for shape in shapes] for _ in range(3)]
    plain = make([value.copy() for value in values], weight_decay=0.1)
    for each in grads:
        plain.step(each)
    pairs = [(p, g) for p in LAYOUTS for g in LAYOUTS if p == "plain" or g in ("plain", p)]
    cases = {f"{k} {p} {g}": (k, LAYOUTS[p], LAYOUTS[g]) for k in range(len(shapes)) for p, g in pairs}
    params = {name: lay(values[k].copy()) for name, (k, lay, _) in cases.items()}
    optimizer = make(params, weight_decay=0.1)
    for each in grads:
        optimizer.step({name: lay(each[k].copy()) for name, (k, _, lay) in cases.items()})
    for name, (k, _, _) in cases.items():
        assert params[name].shape == shapes[k]
        assert same(params[name], plain.params[str(k)]), name
        assert same(optimizer.state[name], plain.state[str(k)]), name


def test_single_number(make: Make, draw: Any) -> None:
    """A 0-d array is an array of one element, wherever it stands; it stays 0-d."""
    line, many, grads = draw(1), draw(3), [draw(1) for _ in range(3)]
    many[1] = line[0]
    optimizers = [make(line.copy()), make(line.reshape(()).copy()), make(many[1:2].reshape(()))]
    for g in grads:
        optimizers[0].step(g)
        for optimizer in optimizers[1:]:
            optimizer.step(g.reshape(()))
    expected = optimizers[0].params["0"][0]
    for optimizer in optimizers[1:]:
        assert optimizer.params["0"].shape == ()
        assert same(optimizer.params["0"], expected)
        assert all(np.shape(value) == () for value in optimizer.state["0"].values())
    assert same(many[1], expected)


def test_none_leaves_a_parameter_alone(make: Make, draw: Any) -> None:
    optimizer = make([draw(4), draw(4)])
    optimizer.step([draw(4), draw(4)])
    before = optimizer.params["1"].copy(), copy.deepcopy(optimizer.state["1"])
    optimizer.step([draw(4), None])
    assert same(optimizer.params["1"], before[0])
    assert same(optimizer.state["1"], before[1])
    assert [state["step"] for state in optimizer.state.values()] == [2, 1]
    whole = snapshot(optimizer)
    assert optimizer.step([None, None]).step == 2
    assert snapshot(optimizer) == whole


# --- groups and settings -----------------------------------------------------------------------------------------------


def test_groups_have_their_own_hyperparameters(subject: Variant, make: Make, draw: Any) -> None:
    settings = [{}, {"weight_decay": 0.2, "maximize": True}]
    settings[1] |= {name: value * 0.9 for name, value in VALUES.items() if name in subject.hyperparameters}
    values, grads = [draw(5), draw(6)], [[draw(5), draw(6)] for _ in range(3)]
    together = make([{"params": value.copy(), **own} for value, own in zip(values, settings, strict=True)])
    alone = [make(value.copy(), **own) for value, own in zip(values, settings, strict=True)]
    for pair in grads:
        together.step(pair)
        for optimizer, g in zip(alone, pair, strict=True):
            optimizer.step(g)
    for index, optimizer in enumerate(alone):
        assert same(together.params[str(index)], optimizer.params["0"])
        assert same(together.state[str(index)], optimizer.state["0"])


def test_a_group_added_later_starts_at_its_first_step(make: Make, draw: Any) -> None:
    optimizer = make({"a": draw(3)})
    for _ in range(4):
        optimizer.step({"a": draw(3)})
    value, g = draw(5), draw(5)
    optimizer.add_group({"params": {"b": value.copy()}, "lr": 0.4})
    report = optimizer.step([{"a": draw(3)}, {"b": g}])
    fresh = make({"b": value.copy()}, lr=0.4)
    fresh.step({"b": g})
    assert report.step == 5
    assert optimizer.state["b"]["step"] == 1
    assert same(optimizer.params["b"], fresh.params["b"])
    assert same(optimizer.state["b"], fresh.state["b"])


def test_hyperparameters_may_change_between_steps(make: Make, draw: Any) -> None:
    """A schedule is the same as setting the value by hand, counted from 1."""
    schedule = openadam.WarmUp(openadam.Cosine(0.3, 0.01, steps=4), steps=2)
    value, grads = draw(5), [draw(5) for _ in range(7)]
    scheduled, by_hand = make(value.copy(), lr=schedule), make(value.copy())
    for t, g in enumerate(grads, 1):
        by_hand.groups[0]["lr"] = schedule(t)
        assert scheduled.step(g) == by_hand.step(g)
        assert same(scheduled.params, by_hand.params)


def test_clip_norm_is_scaling_by_hand(make: Make, draw: Any, dtype: Any) -> None:
    """All tensors together, by the formula of torch: min(1, limit / (norm + 1e-6))."""
    values = [draw(5), draw(2, 4)]
    clipped, by_hand = make([value.copy() for value in values], clip_norm=1.5), make([value.copy() for value in values])
    for size in (0.01, 1.0, 100.0):
        grads = [dtype(size) * draw(5), dtype(size) * draw(2, 4)]
        report = clipped.step(grads)
        norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads))
        assert report.grad_norm == pytest.approx(norm, rel=1e-12)
        assert report.clip_factor == pytest.approx(min(1.0, 1.5 / (norm + 1e-6)), rel=1e-12)
        assert (report.clip_factor < 1) == (size > 0.1)
        by_hand.step([dtype(report.clip_factor) * g for g in grads])
        assert same(clipped.params, by_hand.params)


def test_clip_value_bounds_each_element(make: Make, draw: Any, dtype: Any) -> None:
    value, grads = draw(9), [draw(9) for _ in range(3)]
    clipped, by_hand = make(value.copy(), clip_value=0.3), make(value.copy())
    for g in grads:
        clipped.step(g)
        by_hand.step(np.clip(g, -dtype(0.3), dtype(0.3)))
        assert same(clipped.params, by_hand.params)


def test_no_decay(make: Make, draw: Any) -> None:
    """By name, by array, or by predicate."""
    values, g = {"weight": draw(4), "bias": draw(4)}, draw(4)
    expected = {}
    for name, decay in (("weight", 0.3), ("bias", 0.0)):
        alone = make({name: values[name].copy()}, weight_decay=decay)
        alone.step({name: g})
        expected[name] = alone.params[name]
    for choose in (lambda p: "bias", lambda p: ["bias"], lambda p: p["bias"], lambda p: [p["bias"]], lambda p: lambda name, array: name == "bias"):
        params = copy.deepcopy(values)
        optimizer = make(params, weight_decay=0.3, no_decay=choose(params))
        optimizer.step({"weight": g, "bias": g})
        assert same(params, expected)
    assert not same(expected["weight"], expected["bias"])


# --- gradients that are not finite -------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(draw: Any) -> list[Any]:
    """Gradients of two parameters; three elements of the second are not finite, the first of them at flat index 2."""
    grads = [draw(5), draw(2, 3)]
    grads[1].reshape(-1)[2:5] = np.nan, np.inf, -np.inf
    return grads


def test_nonfinite_is_refused(make: Make, draw: Any, poisoned: list[Any]) -> None:
    optimizer = make([draw(5), draw(2, 3)])
    optimizer.step([draw(5), draw(2, 3)])
    before = snapshot(optimizer)
    with pytest.raises(openadam.NonFiniteGradientError, match="parameter '1' is not finite at step 2: nan at flat index 2, 3 non-finite") as caught:
        optimizer.step(poisoned)
    assert (caught.value.parameter, caught.value.index, caught.value.count, caught.value.step) == ("1", 2, 3, 2)
    assert snapshot(optimizer) == before
    assert optimizer.step([draw(5), draw(2, 3)]).step == 2


def test_nonfinite_is_skipped(make: Make, draw: Any, poisoned: list[Any]) -> None:
    optimizer = make([draw(5), draw(2, 3)], nonfinite="skip")
    optimizer.step([draw(5), draw(2, 3)])
    before = copy.deepcopy(optimizer.params), optimizer.state_dict()["state"]
    report = optimizer.step(poisoned)
    assert (report.step, report.skipped, optimizer.skipped, optimizer.steps) == (1, True, 1, 1)
    assert same(optimizer.params, before[0])
    assert same(optimizer.state, before[1])
    assert not optimizer.step([draw(5), draw(2, 3)]).skipped


def test_nonfinite_is_let_through(make: Make, draw: Any, poisoned: list[Any], dtype: Any) -> None:
    """It reaches its own elements and no others."""
    values = [draw(5), draw(2, 3)]
    through, clean = make([v.copy() for v in values], nonfinite="propagate"), make([v.copy() for v in values])
    report = through.step(poisoned)
    finite = np.isfinite(poisoned[1])
    clean.step([poisoned[0], np.where(finite, poisoned[1], dtype(0))])
    assert math.isnan(report.grad_norm)
    assert same(through.params["0"], clean.params["0"])
    assert same(through.params["1"][finite], clean.params["1"][finite])
    assert np.isnan(through.params["1"].reshape(-1)[2])


# --- state and copies --------------------------------------------------------------------------------------------------

STATES = {
    "SGD": (), "Momentum": ("momentum_buffer",), "Adagrad": ("sum",), "RMSProp": ("square_avg",), "AdaMax": ("exp_avg", "exp_inf"),
    "AMSGrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), "NAdam": ("exp_avg", "exp_avg_sq", "mu_product"),
    "NAdamW": ("exp_avg", "exp_avg_sq", "mu_product"),
}  # fmt: skip
"""Torch's names; where none are given, ``exp_avg`` and ``exp_avg_sq``."""


def test_state_is_readable_by_name(subject: Variant, make: Make, draw: Any, dtype: Any) -> None:
    optimizer = make({"w": draw(2, 3)})
    optimizer.step({"w": draw(2, 3)})
    state = optimizer.state["w"]
    assert set(state) == {"step", *STATES.get(str(subject), ("exp_avg", "exp_avg_sq"))}
    assert state["step"] == 1
    for name, value in state.items():
        if name == "step":
            continue
        if name == "mu_product":
            assert isinstance(value, float)
            continue
        assert (value.dtype, value.shape) == (dtype, (2, 3))
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0


def test_state_dict_round_trip(make: Make, draw: Any) -> None:
    """A copy goes out and a copy goes in: neither optimizer sees what the other does afterwards."""
    value, g = draw(3, 2), draw(3, 2)
    first = make({"w": value.copy()}, weight_decay=0.1)
    for _ in range(3):
        first.step({"w": g})
    taken = first.state_dict()
    frozen = pickle.dumps(taken)
    second = make({"w": first.params["w"].copy()}, lr=0.9)
    second.load_state_dict(taken)
    assert pickle.dumps(second.state_dict()) == frozen
    first.step({"w": g})
    assert pickle.dumps(taken) == frozen
    assert pickle.dumps(second.state_dict()) == frozen
    second.step({"w": g})
    assert pickle.dumps(taken) == frozen
    assert same(first.params, second.params)
    assert same(first.state, second.state)


def test_deepcopy_and_pickle(make: Make, draw: Any) -> None:
    def transported(optimizer: openadam.Optimizer) -> openadam.Optimizer:
        return pickle.loads(pickle.dumps(optimizer))

    for duplicate in (copy.deepcopy, transported):
        original = make({"w": draw(3, 2), "b": draw(2)}, weight_decay=0.1, no_decay="b", clip_norm=0.5)
        grads = {"w": draw(3, 2), "b": draw(2)}
        original.step(grads)
        other = duplicate(original)
        assert type(other) is type(original)
        assert other.params["w"] is not original.params["w"]
        before = snapshot(original)
        assert snapshot(other) == before
        report = other.step(grads)
        assert snapshot(original) == before
        assert original.step(grads) == report
        assert snapshot(other) == snapshot(original)


def test_a_copy_grows_as_the_original_does(subject: Variant, make: Make, draw: Any) -> None:
    """What was given for all groups holds for a group that is added later, to the original or to its copy."""
    value, still = draw(2), draw(2)
    original = make([{"params": {"w": draw(3)}, "lr": 0.5}], weight_decay=0.1, no_decay=lambda name, array: name == "b")
    grown = [original, copy.deepcopy(original)]
    for optimizer in grown:
        optimizer.add_group({"params": {"b": value.copy()}})
        optimizer.step([{"w": None}, {"b": still}])
    assert repr(grown[0]) == repr(grown[1])
    assert same(grown[0].params["b"], grown[1].params["b"])


# --- measures ----------------------------------------------------------------------------------------------------------


def tallies(p: Any, g: Any, after: Any) -> dict[str, float]:
    """The measures of one tensor by NumPy, in float64 as it comes."""
    p, g, after = (x.astype(np.float64) for x in (p, g, after))
    return {
        "grad_sum_squares": float(np.sum(g**2)),
        "param_sum_squares": float(np.sum(p**2)),
        "update_sum_squares": float(np.sum((after - p) ** 2)),
        "grad_max_abs": float(np.max(np.abs(g), initial=0)),
        "grad_nonfinite": float(np.sum(~np.isfinite(g))),
    }


def test_measures(subject: Variant, dtype: Any, draw: Any) -> None:
    """What a step saw on the way: NumPy's sums up to their order, the same bits by every engine, of what was given."""
    sizes = {"scalar": 1, "none": 0, "some": 67, "blocks": 2_500, "chunks": 66_000}
    values, grads = {name: draw(size) for name, size in sizes.items()}, {name: draw(size) for name, size in sizes.items()}
    grads["blocks"][::3] = 0
    reports = []
    for engine in ENGINES:
        params = copy.deepcopy(values)
        optimizer = subject.make(params, engine=engine, weight_decay=0.1, clip_norm=0.5, threads=2)
        reports.append(optimizer.step(grads, measure=True))
        assert reports[-1].measures is not None
        for name, seen in reports[-1].measures.items():
            expected = tallies(values[name], grads[name], params[name])
            assert {key: seen[key] for key in expected} == pytest.approx(expected, rel=1e-12 if dtype == np.float64 else 1e-5, abs=0)
            assert seen["grad_sum_squares"] == pytest.approx(expected["grad_sum_squares"], rel=1e-12, abs=0)
            assert seen["sampled"] == sampled_elements(sizes[name])
    assert all(report == reports[0] for report in reports)


def test_tolerance_of_measures_is_tight(draw: Any) -> None:
    """Neither sums in float32 nor squares of a clipped gradient would pass."""
    g = draw(2_500).astype(np.float32)
    true = tallies(g, g, g)["grad_sum_squares"]
    assert float(np.sum(g * g)) != pytest.approx(true, rel=1e-12, abs=0)
    assert float(np.sum((g * np.float32(0.999)).astype(np.float64) ** 2)) != pytest.approx(true, rel=1e-12, abs=0)


def test_measures_without_gradients(make: Make, draw: Any) -> None:
    optimizer = make([draw(3), draw(3)])
    assert set(optimizer.step([None, draw(3)], measure=True).measures or ()) == {"1"}
    assert optimizer.step([None, None], measure=True).measures == {}
