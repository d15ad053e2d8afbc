"""Clipping each element, and what a step sees on its way: the same as over NumPy arrays, and nothing is changed by looking."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torchfamily import CLASSES, PLAIN, Subject, each_class, equal, give, leaves, params_of, refuses

import openadam
import openadam.errors
import openadam.torch
from openadam import HyperparameterError

ENGINES = (None, "graph")
ADAM = PLAIN[CLASSES.index("Adam")]
each_engine = pytest.mark.parametrize("engine", ENGINES)


OVER_ARRAYS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "Adam": (openadam.Adam, {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1}, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    "AdamW": (openadam.AdamW, {"beta1": 0.8, "weight_decay": 0.1}, {"betas": (0.8, 0.999), "weight_decay": 0.1}),
    "NAdam": (openadam.NAdam, {"momentum_decay": 0.1}, {"momentum_decay": 0.1}), "RAdam": (openadam.RAdam, {}, {}),
    "Adamax": (openadam.AdaMax, {}, {}), "Adagrad": (openadam.Adagrad, {"lr_decay": 0.1}, {"lr_decay": 0.1}),
    "RMSprop": (openadam.RMSProp, {"rho": 0.9, "variance": "centered"}, {"alpha": 0.9, "centered": True}), "SGD": (openadam.SGD, {}, {}),
}  # fmt: skip


@each_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_clipping_and_measures_are_those_over_arrays(name: str, dtype: torch.dtype, engine: str | None) -> None:
    """Every class; with and without a global norm; measures per name, in the order of the parameters, before and after clipping."""
    over_arrays, own, theirs = OVER_ARRAYS[name]
    tolerance = 1e-13 if dtype is torch.float64 and name != "NAdam" else 1e-6  # whose product of momenta torch keeps in float32
    for options in ({"clip_value": 0.05}, {"clip_value": 0.05, "clip_norm": 0.3}, {"clip_norm": 0.3, "clip_value": 100.0}, {}):
        params = {f"layer.{k}": p for k, p in enumerate(leaves([(7,), (3, 5), (), (0,), (1500,)], dtype))}
        arrays = over_arrays({key: p.detach().numpy().copy() for key, p in params.items()}, lr=0.01, **own, **options)
        optimizer = getattr(openadam.torch, name)(params.items(), lr=0.01, **theirs, **options, engine=engine)
        for k in range(4):
            give(list(params.values()), k)
            report = arrays.step({key: p.grad.numpy().copy() for key, p in params.items()}, measure=True)  # type: ignore[union-attr]
            optimizer.step(measure=True)
            assert list(optimizer.last_step.measures) == list(params)
            for key, measures in report.measures.items():
                assert optimizer.last_step.measures[key] == pytest.approx(measures, rel=100 * tolerance, nan_ok=True), (key, k)
            assert optimizer.last_step.grad_norm == pytest.approx(report.grad_norm, rel=100 * tolerance)
            assert optimizer.last_step.clip_factor == pytest.approx(report.clip_factor, rel=100 * tolerance)
            for key, p in params.items():
                torch.testing.assert_close(p.detach(), torch.from_numpy(arrays.params[key]), rtol=10 * tolerance, atol=tolerance)


@each_engine
@each_class
def test_measuring_changes_nothing(subject: Subject, engine: str | None) -> None:
    """Not one bit; without it there are no measures."""
    measured, calm = (subject.make(leaves([(40,), (3, 5)], torch.float32), engine=engine, clip_value=0.3, clip_norm=4.0) for _ in range(2))
    for k in range(4):
        give(params_of(measured), k, params_of(calm))
        assert measured.step(lambda: 3.5, measure=True) == 3.5
        calm.step(loss=3.5)
        assert measured.last_step.loss == 3.5
        assert set(measured.last_step.measures) == {"0", "1"}
        assert calm.last_step.measures is None
        assert measured.last_step._replace(measures=None) == calm.last_step
    assert equal(measured, calm)


@each_engine
@pytest.mark.parametrize("steps", [0, 2])
def test_a_measure_that_cannot_be_taken_leaves_nothing_half_applied(steps: int, engine: str | None) -> None:
    """Neither of the tensors that the native loop reaches, nor of those that run on torch operations: no parameter, no state, no counter."""
    params = [*leaves([(40,), (3, 5)], torch.float32), *leaves([(7,)], torch.bfloat16)]
    optimizer = openadam.torch.Adam(params, engine=engine)
    for k in range(steps):
        give(params, k)
        optimizer.step()
    give(params, steps)
    before = copy.deepcopy((params, optimizer.state_dict(), [p._version for p in params], optimizer.steps_taken))
    with pytest.raises(HyperparameterError, match="the measure 'own' cannot be taken of 'adam': ZeroDivisionError"):
        optimizer.step(measure=[openadam.Measure("own", "sum", lambda x: 1 / 0)])
    assert repr((params, optimizer.state_dict(), [p._version for p in params], optimizer.steps_taken)) == repr(before)
    assert optimizer.step() is None
    assert optimizer.steps_taken == steps + 1


@each_engine
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_clipping_each_element_of_other_dtypes(dtype: torch.dtype, engine: str | None) -> None:
    """The same as a gradient that is clipped before the step; complex elements are clipped part by part, as torch sees them."""
    clipped, calm = (ADAM.make(leaves([(9,), (2, 3)], dtype), engine=engine, **own) for own in ({"clip_value": 0.25}, {}))
    for k in range(3):
        give(params_of(clipped), k, params_of(calm))
        for p in params_of(calm):
            assert p.grad is not None
            parts = torch.view_as_real(p.grad) if p.is_complex() else p.grad
            parts.clamp_(-0.25, 0.25)
        clipped.step()
        calm.step()
    assert equal(clipped, calm)


@each_engine
def test_clipping_each_element_sees_unscaled_gradients(engine: str | None) -> None:
    scaled, calm = (ADAM.make(leaves([(9,)], torch.float32), engine=engine, clip_value=0.25) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in range(3):
        for optimizer, scale in ((scaled, scaler.scale), (calm, lambda x: x)):
            optimizer.zero_grad()
            scale(params_of(optimizer)[0].sin().sum()).backward()
        scaler.step(scaled)
        scaler.update()
        calm.step()
        assert scaled.last_step == calm.last_step
    assert equal(scaled, calm)


@each_engine
def test_measures_see_unscaled_gradients(engine: str | None) -> None:
    """As the norm does that is reported beside them."""
    scaled, calm = (ADAM.make(leaves([(9,), (3,)], torch.float32), engine=engine) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in range(3):
        for optimizer, scale in ((scaled, scaler.scale), (calm, lambda x: x)):
            optimizer.zero_grad()
            scale(sum(p.sin().sum() for p in params_of(optimizer))).backward()
        scaler.step(scaled, measure=True)
        scaler.update()
        calm.step(measure=True)
        assert scaled.last_step == calm.last_step


def test_the_limit_of_each_element_is_chosen_when_the_optimizer_is_made() -> None:
    optimizer = ADAM.make(leaves([(3,)], torch.float32), clip_value=0.5)
    assert optimizer.clip_value == 0.5
    with pytest.raises(AttributeError, match="clip_value"):
        optimizer.clip_value = 1.0
    give(params_of(optimizer), 0)
    optimizer.param_groups[0]["clip_value"] = 2.0
    refuses(optimizer, optimizer.step, HyperparameterError, "clip_value")
    for wrong in (-1.0, math.inf, math.nan, "x", True):
        with pytest.raises(HyperparameterError, match="clip_value"):
            ADAM.make(leaves([(3,)], torch.float32), clip_value=wrong)
    with pytest.raises(HyperparameterError, match="clip_value"):
        ADAM.make([{"params": leaves([(3,)], torch.float32), "clip_value": 1.0}])
    assert copy.deepcopy(ADAM.make(leaves([(3,)], torch.float32), clip_value=0.5)).clip_value == 0.5
