"""Settings over arrays: what names nothing, freezes silently or was moved is refused, and messages name what was meant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam
from openadam.errors import (
    AliasError,
    CheckpointCorruptError,
    GradientError,
    HyperparameterError,
    HyperparameterWarning,
    OpenAdamError,
    ParameterDtypeError,
    ParameterError,
    UnknownHyperparameterError,
)


@pytest.mark.parametrize(
    ("no_decay", "says"),
    [
        (["bais"], "no_decay names 'bais', and no parameter is called so; did you mean 'bias'"),
        (["scale"], "they are called 'W', 'bias'"),
        ([0.5], "neither a name nor a parameter's array"),
        ([None], "neither a name nor a parameter's array"),
        ([np.ones(2)], "a copy or a view"),
        (None, "neither names"),
    ],
)
def test_what_names_no_parameter_is_refused(no_decay: Any, says: str) -> None:
    with pytest.raises(HyperparameterError, match=says):
        openadam.AdamW({"W": np.ones(2), "bias": np.ones(2)}, no_decay=no_decay)


def test_a_generator_of_names_is_read_once() -> None:
    a, b = np.ones(1), np.ones(1)
    optimizer = openadam.AdamW({"a": a}, no_decay=(array for array in [a]), weight_decay=0.5, lr=0.1)
    optimizer.add_group({"params": {"b": b}})
    optimizer.step([{"a": np.zeros(1)}, {"b": np.zeros(1)}])
    assert (a.tolist(), b.tolist()) == ([1.0], [0.95])


@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_a_limit_of_zero_or_a_function_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(HyperparameterError, match=r"leave it out .* lr=0"):
        openadam.Adam(np.ones(1), **{name: 0})
    with pytest.raises(HyperparameterError, match="not a function"):
        openadam.Adam(np.ones(1), **{name: lambda t: 1.0})


HINTS = {
    ("Adam", "alpha"): "write lr=",
    ("RMSProp", "alpha"): "write rho=",
    ("SGD", "betas"): r"'betas'\. It takes",
    ("Momentum", "betas"): "write momentum=",
    ("Adam", "betas"): "write beta1=…, beta2=",
    ("Adam", "clip_nrom"): "did you mean 'clip_norm'",
    ("Adam", "no_deacy"): "did you mean 'no_decay'",
    ("Adam", "maximise"): "did you mean 'maximize'",
    ("Adam", "learning_rate"): "write lr=",
    ("Adam", "max_grad_norm"): "write clip_norm=",
    ("SGD", "momentum"): r"use openadam\.Momentum",
    ("Adam", "momentum"): "write beta1=",
    ("Momentum", "nesterov"): "form='nesterov'",
}


@pytest.mark.parametrize(("cls", "name"), HINTS)
def test_an_unknown_keyword_is_told_the_nearest_that_this_class_has(cls: str, name: str) -> None:
    with pytest.raises(UnknownHyperparameterError, match=HINTS[cls, name]):
        getattr(openadam, cls)(np.zeros(1), **{name: 1})


def test_groups_keep_their_place() -> None:
    a, b = np.zeros(1), np.zeros(1)
    optimizer = openadam.SGD([{"params": {"a": a}, "lr": 1.0}, {"params": {"b": b}, "lr": 10.0}])
    gradients = [{"a": np.ones(1)}, {"b": np.ones(1)}]
    optimizer.step(gradients)
    optimizer.groups.reverse()
    with pytest.raises(ParameterError, match=r"group 0 now lists .*'b'.*groups keep their order"):
        optimizer.step(gradients)
    optimizer.groups.reverse()
    optimizer.step(gradients)
    assert (a.tolist(), b.tolist()) == ([-2.0], [-20.0])
    optimizer.groups.append({"params": []})
    with pytest.raises(ParameterError, match="add_group"):
        optimizer.step(gradients)
    optimizer.groups.pop()
    with pytest.raises(UnknownHyperparameterError, match="structure"):
        optimizer.add_group({"params": {"c": np.zeros(1)}, "structure": "mapping"})


def test_a_schedule_that_overshoots_is_told() -> None:
    optimizer = openadam.AdamW(np.ones(1), lr=lambda t: 200.0 if t > 1 else 0.1, weight_decay=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(np.ones(1))
    with pytest.warns(HyperparameterWarning, match="overshoots"):
        optimizer.step(np.ones(1))


def test_a_file_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    a, b = np.zeros(2), np.zeros(2)
    optimizer = openadam.Adam({"a": a, "b": b})
    optimizer.step({"a": np.ones(2), "b": np.ones(2)})
    optimizer.save(tmp_path / "run.safetensors")
    a[:], b[:] = 5, 5
    b.flags.writeable = False
    with pytest.raises(ParameterError, match="'b' is not writeable"):
        optimizer.load(tmp_path / "run.safetensors")
    assert a.tolist() == [5.0, 5.0]
    for engine in ("native", "reference") if openadam.engine.native_isas() else ("reference",):
        b.flags.writeable = True
        other = openadam.Adam({"a": a, "b": b}, engine=engine)
        b.flags.writeable = False
        with pytest.raises(ParameterError, match="'b' is not writeable"):
            other.step({"a": np.ones(2), "b": np.ones(2)})
        assert a.tolist() == b.tolist() == [5.0, 5.0]


def test_states_that_cannot_be_are_refused() -> None:
    optimizer = openadam.NAdam({"w": np.zeros(1)})
    optimizer.step({"w": np.ones(1)})
    for change in ({"mu_product": 2.0**53}, {"mu_product": 1.0000001}, {"step": 3}):
        given = optimizer.state_dict()
        given["state"]["w"] |= change
        with pytest.raises(CheckpointCorruptError):
            optimizer.load_state_dict(given)
    assert optimizer.steps == 1


def test_a_state_is_to_look_at() -> None:
    optimizer = openadam.Adam({"w": np.zeros(1)})
    optimizer.step({"w": np.ones(1)})
    with pytest.raises(TypeError):
        optimizer.state["w"]["exp_avg"] = np.ones(1)  # type: ignore[index]
    with pytest.raises(TypeError):
        optimizer.state["v"] = {}  # type: ignore[index]
    with pytest.raises(KeyError, match="exp_avg, exp_avg_sq"):
        optimizer.state["w"]["m"]


def test_what_belongs_elsewhere_is_said() -> None:
    optimizer = openadam.Adam(np.zeros(1))
    for name, says in (("zero_grad", "nothing to clear"), ("param_groups", r"opt\.groups")):
        with pytest.raises(AttributeError, match=says):
            getattr(optimizer, name)
    with pytest.raises(AttributeError, match=r"openadam\.RMSProp"):
        openadam.RMSprop


def test_tensors_of_torch_are_sent_to_its_classes() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ParameterDtypeError, match=r"openadam\.torch"):
        openadam.AdamW([torch.ones(2)])


def test_numbers_with_a_unit_are_refused() -> None:
    class Quantity(np.ndarray[Any, Any]):
        unit = "km"

        def to_value(self) -> Any:
            return np.asarray(self)

    with pytest.raises(GradientError, match=r"has a unit \(km\)"):
        openadam.SGD({"w": np.zeros(2)}).step({"w": np.ones(2).view(Quantity)})


def test_gradients_that_interleave_with_parameters() -> None:
    buffer = np.zeros((10, 600))
    parameters, gradients = [buffer[:, 2 * i] for i in range(300)], [buffer[:, 2 * i + 1] for i in range(300)]
    optimizer = openadam.SGD(parameters, lr=1.0)
    buffer[:, 1::2] = 1
    optimizer.step(gradients)
    assert (buffer[:, ::2] == -1).all()
    gradients[7] = buffer[:, 8]
    with pytest.raises(AliasError, match="gradient of parameter '7' shares memory with the parameter '4'"):
        optimizer.step(gradients)
    assert issubclass(AliasError, OpenAdamError)


@pytest.mark.parametrize("engine", [None, "reference"])
def test_a_parameter_that_was_resized_is_refused(engine: str | None) -> None:
    for size in (2, 4, 2_000_000):
        w = np.ones(1_000_000)
        optimizer = openadam.AdamW({"w": w}, engine=engine)
        w.resize((size,), refcheck=False)
        for length in (size, 1_000_000):
            with pytest.raises(ParameterError, match="'w' was resized"):
                optimizer.step({"w": np.ones(length)})
        assert (w[: min(size, 1_000_000)] == 1).all()


@pytest.mark.parametrize("engine", [None, "reference"])
def test_groups_that_were_emptied_are_missed(engine: str | None) -> None:
    w = np.ones(2)
    optimizer = openadam.AdamW(w, engine=engine)
    optimizer.groups.clear()
    with pytest.raises(ParameterError, match="0 groups where 1"):
        optimizer.step(np.ones(2))
    assert w.tolist() == [1.0, 1.0]


def test_states_have_names_of_their_own() -> None:
    class Same(openadam.AdamW):
        state_names = {"m": "a", "v": "a"}

    class Taken(openadam.AdamW):
        state_names = {"m": "step"}

    for cls in (Same, Taken):
        with pytest.raises(TypeError, match="state_names"):
            cls(np.ones(1))


def test_tensors_that_are_no_parameters_are_refused_over_torch() -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("openadam.torch")
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(HyperparameterError, match="none of the parameters"):
        module.AdamW([p], no_decay=[p.detach()])
    with pytest.raises(HyperparameterError, match=r"is not a number; give an int or float$"):
        module.AdamW([p], clip_norm=True)


@pytest.mark.parametrize("entry", [None, 3, [], "x"])
def test_a_loaded_state_that_is_no_dict_is_refused_over_torch(entry: Any) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("openadam.torch")
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = module.AdamW([p])
    optimizer.step()
    given = optimizer.state_dict()
    given["state"][0] = entry
    with pytest.raises(CheckpointCorruptError, match="not a dict"):
        optimizer.load_state_dict(given)
    assert float(optimizer.state[p]["step"]) == 1
