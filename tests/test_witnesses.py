"""Independent witnesses: torch's own loops for every optimizer it shares, its gradient clipping, and scikit-learn's Adam.

A hundred steps each, parameters and states compared at every one; after each step the witness takes over our values, so that
differences do not pile up and the tolerance is that of a single step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, WrongAdam, corrected_late, rooted, stale, swapped, uncorrected, uphill, wrong

import openadam

torch = pytest.importorskip("torch")
scikit_learn = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")

STEPS, SIZE = 100, 12
LR = 0.5  # so large that the update shows in the parameter
# What one step may differ by, relative to the largest element. Both sides round at every operation, in another order; in float64 torch
# also computes 1 - b**t as it stands, which at b = 0.999 costs up to 66 ulp and in float32 nothing that shows.
TOLERANCE = {np.float32: 5e-7, np.float64: 2e-14}

BETAS, TORCH_BETAS = {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3}, {"betas": (0.8, 0.99), "eps": 1e-3}
MOMENTUM, DAMPENED = {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3}
START = {"lr_decay": 0.1, "initial_accumulator_value": 0.1}
DECOUPLED = {"decoupled_weight_decay": True}
PAIRS: dict[str, tuple[Any, dict[str, Any], Any, dict[str, Any]]] = {
    "sgd": (openadam.SGD, {}, torch.optim.SGD, {}),
    "momentum": (openadam.Momentum, MOMENTUM, torch.optim.SGD, MOMENTUM),
    "momentum dampened": (openadam.Momentum, DAMPENED, torch.optim.SGD, DAMPENED),
    "momentum nesterov": (openadam.Momentum, MOMENTUM | {"form": "nesterov"}, torch.optim.SGD, MOMENTUM | {"nesterov": True}),
    "adagrad": (openadam.Adagrad, {}, torch.optim.Adagrad, {}),
    "adagrad started": (openadam.Adagrad, START, torch.optim.Adagrad, START),
    "rmsprop": (openadam.RMSProp, {"rho": 0.9}, torch.optim.RMSprop, {"alpha": 0.9}),
    "rmsprop centered": (openadam.RMSProp, {"variance": "centered"}, torch.optim.RMSprop, {"centered": True}),
    "rmsprop momentum": (openadam.RMSProp, MOMENTUM | {"buffer": "momentum"}, torch.optim.RMSprop, MOMENTUM),
    "rmsprop both": (
        openadam.RMSProp, MOMENTUM | {"buffer": "momentum", "variance": "centered"}, torch.optim.RMSprop, MOMENTUM | {"centered": True},
    ),
    "adam": (openadam.Adam, {}, torch.optim.Adam, {}),
    "adam betas": (openadam.Adam, BETAS, torch.optim.Adam, TORCH_BETAS),
    "adamw": (openadam.AdamW, {}, torch.optim.AdamW, {}),
    "amsgrad": (openadam.AMSGrad, {}, torch.optim.Adam, {"amsgrad": True}),
    "amsgrad betas": (openadam.AMSGrad, BETAS, torch.optim.Adam, TORCH_BETAS | {"amsgrad": True}),
    "adamax": (openadam.AdaMax, {}, torch.optim.Adamax, {}),
    "adamax betas": (openadam.AdaMax, BETAS, torch.optim.Adamax, TORCH_BETAS),
    "nadam": (openadam.NAdam, {}, torch.optim.NAdam, {}),
    "nadam betas": (openadam.NAdam, BETAS | {"momentum_decay": 0.1}, torch.optim.NAdam, TORCH_BETAS | {"momentum_decay": 0.1}),
    "nadamw": (openadam.NAdamW, {}, torch.optim.NAdam, DECOUPLED),
    "radam": (openadam.RAdam, {}, torch.optim.RAdam, {}),
    "radam betas": (openadam.RAdam, BETAS, torch.optim.RAdam, TORCH_BETAS),
    "radamw": (openadam.RAdamW, {}, torch.optim.RAdam, DECOUPLED),
}  # fmt: skip
"""Our optimizer and its settings, torch's and its settings; what is not set has the same default in both."""


@contextlib.contextmanager
def scalars_in(dtype: Any) -> Iterator[None]:
    """Torch keeps NAdam's product of momenta in its default dtype: give it the precision of the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == np.float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest element."""
    largest = float(np.max(np.abs(theirs)))
    return float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)))) / (largest or 1.0)


def worst_difference(member: Any, own: Mapping[str, Any], witness: Any, settings: Mapping[str, Any], dtype: Any, **surroundings: Any) -> float:
    """Over all steps, parameters and states; infinite if the states' names or the step numbers differ."""
    random = np.random.default_rng(0)
    p = random.normal(size=SIZE).astype(dtype)
    # Over three decades, but none near zero: a difference that cancels would only say how each of the two rounds.
    grads = (random.choice([-1.0, 1.0], (STEPS, SIZE)) * 10.0 ** random.uniform(-2, 1, (STEPS, SIZE))).astype(dtype)
    theirs = torch.from_numpy(p.copy()).requires_grad_()
    engine = "reference" if issubclass(member, WrongAdam) else ENGINES[0]
    ours = member(p, lr=LR, engine=engine, **own, **surroundings)
    worst = 0.0
    with scalars_in(dtype):
        other = witness([theirs], lr=LR, foreach=False, **settings, **surroundings)
        for g in grads:
            theirs.grad = torch.from_numpy(g)
            other.step()
            ours.step(g)
            worst = max(worst, relative(p, theirs.detach().numpy()))
            mine, state = dict(ours.state["0"]), other.state[theirs]
            if set(mine) - {"step"} != set(state) - {"step"} or int(state.get("step", mine["step"])) != mine.pop("step"):  # torch's SGD has no step
                return float("inf")
            for name, value in mine.items():
                worst = max(worst, relative(value, state[name].numpy()))
                state[name].copy_(torch.as_tensor(np.array(value)))
            theirs.data.copy_(torch.from_numpy(p))
    return worst


SURROUNDINGS = {"plain": {"weight_decay": 0.0}, "decay": {"weight_decay": 0.1}, "maximize": {"weight_decay": 0.1, "maximize": True}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_torch(pair: Any, surroundings: Any, dtype: Any) -> None:
    assert worst_difference(*pair, dtype, **surroundings) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [uncorrected, corrected_late, rooted, swapped, stale, uphill], ids=lambda rule: rule.name)
def test_torch_sees_mistakes(rule: Any, dtype: Any) -> None:
    found = worst_difference(wrong(rule), BETAS, torch.optim.Adam, TORCH_BETAS, dtype, weight_decay=0.0)
    assert 1000 * TOLERANCE[dtype] < found < float("inf")


def difference_from_scikit_learn(member: Any, dtype: Any, **settings: Any) -> float:
    """The worst over a hundred steps of two parameters; scikit-learn's own trajectory."""
    random = np.random.default_rng(0)
    values = [random.normal(size=shape).astype(dtype) for shape in ((3, 4), (4,))]
    ours = member([value.copy() for value in values], lr=0.013, **settings)
    theirs = scikit_learn.AdamOptimizer(values, learning_rate_init=0.013, beta_1=0.9, beta_2=0.999, epsilon=settings.get("eps", 1e-8))
    worst = 0.0
    for _ in range(STEPS):
        grads = [random.normal(size=value.shape).astype(dtype) for value in values]
        ours.step(grads)
        theirs.update_params(values, grads)
        worst = max(worst, *(relative(p, value) for p, value in zip(ours.params.values(), values, strict=True)))
    return worst


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scikit_learn(dtype: Any, engine: str) -> None:
    """Its Adam is Kingma's eps-hat form; an eps that matters tells it from the others."""
    tolerance = STEPS * TOLERANCE[dtype]  # nothing is taken over here
    assert difference_from_scikit_learn(openadam.Adam, dtype, eps=1e-2, epsilon="hat", engine=engine) <= tolerance
    assert difference_from_scikit_learn(openadam.Adam, dtype, eps=1e-2, epsilon="outside", engine=engine) > 10 * tolerance
    assert difference_from_scikit_learn(wrong(uncorrected), dtype, engine="reference") > 10 * tolerance


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_grad_norm(dtype: Any, engine: str) -> None:
    """Gradient descent at lr 1 from 0 shows the clipped gradients themselves."""
    random = np.random.default_rng(0)
    for limit in (1e-3, 1.0, 1e3):
        grads = [np.asarray(random.normal(size=shape), dtype) for shape in ((5,), (3, 4), ())]
        params = [np.zeros_like(g) for g in grads]
        report = openadam.SGD(params, lr=1.0, clip_norm=limit, engine=engine).step(grads)
        tensors = [torch.from_numpy(np.zeros_like(g)).requires_grad_() for g in grads]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(tensors, limit)
        assert report.grad_norm == pytest.approx(float(norm), rel=TOLERANCE[dtype])
        assert (report.clip_factor == 1.0) == (float(norm) < limit)
        for p, tensor in zip(params, tensors, strict=True):
            assert relative(-p, tensor.grad.numpy()) <= TOLERANCE[dtype]
