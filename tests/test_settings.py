"""Settings over arrays: what names nothing, freezes silently or was moved is refused, and messages name what was meant."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam
from openadam.errors import (
    AliasError,
    CheckpointCorruptError,
    CheckpointMismatchError,
    GradientError,
    HyperparameterError,
    HyperparameterWarning,
    OpenAdamError,
    ParameterDtypeError,
    ParameterError,
    TooManySkipsError,
    UnknownHyperparameterError,
)


@pytest.mark.parametrize(
    ("no_decay", "says"),
    [
        (["bais"], "no_decay names 'bais', and no parameter is called so; did you mean 'bias'"),
        (["scale"], "they are called 'W', 'bias'"),
        ([0.5], "neither a name nor an? array"),
        ([None], "neither a name nor an? array"),
        ([np.ones(2)], r"of shape \(2,\) .*\(a copy, a view"),
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


# --- schedules ----------------------------------------------------------------------------------------------------------


def test_schedules_take_numbers_of_numpy_and_keep_pythons() -> None:
    schedule = openadam.Cosine(np.float32(0.5), np.float64(0), steps=np.int64(100))  # type: ignore[arg-type]
    assert repr(schedule) == "Cosine(start=0.5, end=0.0, steps=100)"
    assert schedule == openadam.Cosine(0.5, 0.0, steps=100)


class Rate:
    def __call__(self, t: int) -> float:
        return 0.1


NO_SCHEDULES: dict[str, tuple[Callable[[], Any], str]] = {
    "text": (lambda: openadam.Cosine("a", 0, steps=1), "start='a'.*is not a number"),  # type: ignore[arg-type]
    "None": (lambda: openadam.Linear(1, None, steps=1), "end=None"),  # type: ignore[arg-type]
    "not finite": (lambda: openadam.Linear(np.inf, 0, steps=1), "start=inf of Linear is not finite"),
    "half a step": (lambda: openadam.Linear(1, 0, steps=2.5), "steps=2.5"),  # type: ignore[arg-type]
    "a class after a warm-up": (lambda: openadam.WarmUp(openadam.Cosine, steps=2), r"then=Cosine of WarmUp is the class; .* Cosine\(…\)"),  # type: ignore[arg-type]
    "text after a warm-up": (lambda: openadam.WarmUp("x", steps=2), "then='x'"),  # type: ignore[arg-type]
    "a class": (lambda: openadam.Adam(np.ones(1), lr=Rate), r"lr=Rate is the class; give an instance, as Rate\(…\)"),
    "a function of nothing": (lambda: openadam.Adam(np.ones(1), lr=lambda: 1), "cannot be called with the step number t alone"),
    "a function of two": (lambda: openadam.Adam([{"params": [np.ones(1)], "lr": lambda t, x: 1}]), "in group 0 cannot be called with"),
    "a function that returns text": (lambda: openadam.Adam(np.ones(1), lr=lambda t: "x").step(np.ones(1)), r"lr='x' .*schedule at t=1\)"),
}


@pytest.mark.parametrize("case", NO_SCHEDULES)
def test_what_is_no_schedule_is_refused_at_once(case: str) -> None:
    make, says = NO_SCHEDULES[case]
    with pytest.raises(HyperparameterError, match=says):
        make()


def test_a_schedule_that_is_asked_is_told_to_every_step() -> None:
    w = np.zeros(1)
    optimizer = openadam.SGD(w, lr=lambda t: float(t))
    for _ in range(3):
        optimizer.step(np.ones(1))
    assert w.tolist() == [-6.0]


@pytest.mark.parametrize(("saved", "here"), [(0.1, openadam.Linear(1, 0, steps=5)), (openadam.Linear(1, 0, steps=5), 0.1)])
def test_a_schedule_does_not_give_way_to_a_number_nor_the_other_way_round(saved: Any, here: Any) -> None:
    state = openadam.SGD({"w": np.zeros(1)}, lr=saved).state_dict()
    optimizer = openadam.SGD({"w": np.zeros(1)}, lr=here)
    with pytest.raises(CheckpointMismatchError, match=r"lr in group 0 .*schedule"):
        optimizer.load_state_dict(state)
    assert optimizer.groups[0]["lr"] == here


# --- no_decay as a function ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["arrays", "torch"])
@pytest.mark.parametrize(("function", "says"), [(lambda name: True, "cannot be called with"), (lambda name, p: np.ones(2), "neither true nor false")])
def test_functions_that_cannot_tell_what_decays_are_refused_at_once(host: str, function: Any, says: str) -> None:
    if host == "arrays":
        cls: Any = openadam.AdamW
        params: Any = {"w": np.ones(2)}
    else:
        torch = pytest.importorskip("torch")
        cls, params = pytest.importorskip("openadam.torch").AdamW, [("w", torch.nn.Parameter(torch.ones(2)))]
    with pytest.raises(HyperparameterError, match=says):
        cls(params, no_decay=function)


# --- steps skipped one after another ------------------------------------------------------------------------------------

BAD, GOOD = np.array([np.nan, 1.0]), np.ones(2)


@pytest.mark.parametrize("engine", [None, "reference"])
def test_skipping_gives_up(engine: str | None) -> None:
    w = np.ones(2)
    optimizer = openadam.Adam({"w": w}, nonfinite="skip", max_skips=2, engine=engine)
    for _ in range(3):  # a good step in between starts anew
        assert not optimizer.step({"w": GOOD}).skipped
        assert [optimizer.step({"w": BAD}).skipped for _ in range(2)] == [True, True]
    before = w.copy()
    says = "step 4 has been skipped 2 times in a row, max_skips is 2, .*parameter 'w' is not finite"
    with pytest.raises(TooManySkipsError, match=says) as caught:
        optimizer.step({"w": BAD})
    assert (caught.value.step, caught.value.count, optimizer.skipped, optimizer.steps) == (4, 2, 6, 3)
    assert (w == before).all()
    assert [optimizer.step({"w": BAD}).skipped for _ in range(2)] == [True, True]  # giving up starts anew, too


def test_skips_in_a_row_are_in_the_state(tmp_path: Path) -> None:
    def make() -> openadam.Optimizer:
        return openadam.Adam({"w": np.ones(2)}, nonfinite="skip", max_skips=2)

    optimizer = make()
    optimizer.step({"w": GOOD})
    for _ in range(2):
        optimizer.step({"w": BAD})
    optimizer.save(tmp_path / "run.safetensors")
    loaded = make()
    loaded.load(tmp_path / "run.safetensors")
    for same in (copy.deepcopy(optimizer), loaded):
        with pytest.raises(TooManySkipsError):
            same.step({"w": BAD})
    for wrong in (-1, 1.5, 3):
        with pytest.raises(CheckpointCorruptError, match="skips_in_a_row"):
            optimizer.load_state_dict({**optimizer.state_dict(), "skips_in_a_row": wrong})
    old = optimizer.state_dict()
    del old["skips_in_a_row"]  # files of older versions
    loaded.load_state_dict(old)
    assert loaded.step({"w": BAD}).skipped


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3"])
def test_limits_of_skips_are_whole_numbers(wrong: Any) -> None:
    with pytest.raises(HyperparameterError, match="max_skips"):
        openadam.Adam(np.ones(1), nonfinite="skip", max_skips=wrong)
    with pytest.raises(HyperparameterError, match="nonfinite is 'raise'"):
        openadam.Adam(np.ones(1), max_skips=3)


def test_skipping_gives_up_over_torch() -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("openadam.torch")
    p = torch.nn.Parameter(torch.ones(2))

    def make() -> Any:
        return module.AdamW([("p", p)], nonfinite="skip", max_skips=2)

    optimizer = make()
    for bad in (False, True, True):
        p.grad = torch.tensor([np.nan if bad else 1.0, 1.0])
        optimizer.step()
    assert (optimizer.skipped, optimizer.state_dict()["skips_in_a_row"]) == (2, 2)
    loaded = make()
    loaded.load_state_dict(optimizer.state_dict())
    for same in (optimizer, loaded, pickle.loads(pickle.dumps(optimizer))):
        for group in same.param_groups:
            group["params"][0].grad = p.grad
        with pytest.raises(TooManySkipsError, match="parameter 'p' is not finite"):
            same.step()
        same.step()
        assert same.last_step.skipped
    theirs = torch.optim.AdamW([("p", p)])
    theirs.load_state_dict(optimizer.state_dict())
    assert "skips_in_a_row" not in module.AdamW([p]).state_dict()
    scaled = module.AdamW([p], max_skips=1)
    scaled.grad_scale, scaled.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    scaled.step()
    scaled.grad_scale, scaled.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    with pytest.raises(TooManySkipsError, match="a scaler"):
        scaled.step()


# --- nested parameters --------------------------------------------------------------------------------------------------


def nested() -> dict[str, Any]:
    return {"layers": [{"W": np.ones((2, 2)), "b": np.ones(2)}, {"W": np.ones((2, 1)), "b": np.ones(1)}], "scale": np.ones(()), "none": {}}


def is_bias(name: str, array: Any) -> bool:
    return name.endswith(".b")


def test_nested_parameters_have_names_with_dots(tmp_path: Path) -> None:
    params = nested()
    optimizer = openadam.AdamW(params, lr=0.5, weight_decay=0.5, no_decay=is_bias)
    names = ["layers.0.W", "layers.0.b", "layers.1.W", "layers.1.b", "scale"]
    assert list(optimizer.params) == list(optimizer.state) == optimizer.groups[0]["params"] == names
    assert optimizer.params["layers.1.W"] is params["layers"][1]["W"]
    gradients = nested()
    gradients["layers"][1]["W"] = None
    optimizer.step(gradients)
    flat = {name: np.ones_like(array) for name, array in optimizer.params.items()}
    twin = openadam.AdamW(flat, lr=0.5, weight_decay=0.5, no_decay=["layers.0.b", "layers.1.b"])
    twin.step({name: None if name == "layers.1.W" else np.ones_like(array) for name, array in flat.items()})
    for name, array in optimizer.params.items():
        assert (array == flat[name]).all()
    optimizer.save(tmp_path / "run.safetensors")
    twin.load(tmp_path / "run.safetensors")
    again = pickle.loads(pickle.dumps(optimizer))
    again.step(nested())
    optimizer.step(nested())
    assert all((array == optimizer.params[name]).all() for name, array in again.params.items())
    openadam.SGD([[np.ones(1), (np.ones(1),)], {"a": np.ones(1)}]).step([[np.ones(1), [None]], {"a": np.ones(1)}])


NESTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list is missing": (lambda g: g | {"layers": None}, "parameters in 'layers' were given as a sequence: give a list of 2 .*NoneType"),
    "a list is short": (lambda g: g | {"layers": g["layers"][:1]}, "1 gradients for 2 parameters in 'layers'"),
    "a name is missing": (lambda g: g | {"layers": [g["layers"][0], {"W": None}]}, r"names in 'layers\.1' are not .*missing \['b'\]"),
    "an array for a mapping": (lambda g: g | {"layers": [g["layers"][0], np.ones(2)]}, r"parameters in 'layers\.1' were given by name.*shape \(2,\)"),
    "another shape": (lambda g: g | {"layers": [g["layers"][0], {"W": np.ones(2), "b": None}]}, r"'layers\.1\.W' has shape"),
    "something in what is empty": (lambda g: g | {"none": {"x": np.ones(1)}}, "names in 'none' are not .*unexpected"),
}


@pytest.mark.parametrize("case", NESTINGS)
def test_gradients_in_another_nesting_are_refused_by_place(case: str) -> None:
    change, says = NESTINGS[case]
    params = nested()
    with pytest.raises(GradientError, match=says):
        openadam.Adam(params).step(change(nested()))
    assert (params["layers"][0]["W"] == 1).all()


def test_nested_names_that_meet_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"two parameters are named 'a\.b'"):
        openadam.Adam({"a.b": np.ones(1), "a": {"b": np.ones(1)}})
    with pytest.raises(TypeError, match="must be a string, not 3 in 'a'"):
        openadam.Adam({"a": {3: np.ones(1)}})
    with pytest.raises(TypeError, match="a group is a mapping with the key 'params'"):
        openadam.Adam([{"param": np.ones(1), "lr": 0.1}])
    with pytest.raises(ParameterDtypeError, match=r"parameter 'a' is \[1\.0, 2\.0\] \(list\)"):
        openadam.Adam({"a": [1.0, 2.0]})


# --- groups -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "says"), [("clip_norm", "same for all groups"), ("epsilon", "same for all groups"), ("beta3", "did you mean")])
def test_settings_of_the_whole_optimizer_are_not_a_groups(name: str, says: str) -> None:
    with pytest.raises(UnknownHyperparameterError, match=says):
        openadam.Adam([{"params": [np.ones(1)], name: 1.0}])
    optimizer = openadam.Adam(np.ones(1))
    optimizer.groups[0][name] = 1.0
    with pytest.raises(UnknownHyperparameterError, match=says):
        optimizer.step(np.ones(1))


def test_groups_of_torch_are_there_and_flags_are_flags() -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("openadam.torch")
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    for wrong in (float("nan"), -1, 2, torch.ones(2)):
        optimizer = module.AdamW([p])
        optimizer.param_groups[0]["maximize"] = wrong
        with pytest.raises(HyperparameterError, match="neither True nor False"):
            optimizer.step()
    for nothing in ([], None):
        optimizer = module.AdamW([p])
        optimizer.param_groups = nothing
        with pytest.raises(ParameterError, match="param_groups"):
            optimizer.step()


# --- subclasses and assignments -----------------------------------------------------------------------------------------


def derived(**members: Any) -> Any:
    return type("Derived", (openadam.Adam,), members)


SUBCLASSES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "another coupling": (lambda: derived(coupling="Coupled")(np.ones(1)), HyperparameterError, "coupling='Coupled' is neither"),
    "a misspelt default": (lambda: derived(defaults={**openadam.Adam.defaults, "bta1": 0.5})(np.ones(1)), UnknownHyperparameterError, "mean 'beta1'"),
    "a setting as a default": (lambda: derived(defaults={"clip_norm": 1.0}), TypeError, "Derived.defaults must be a mapping of hyperparameters"),
    "no defaults": (lambda: derived(defaults=None), TypeError, "Derived.defaults must be a mapping"),
    "a rate as an attribute": (lambda: derived(lr=0.5), TypeError, r"Derived\.lr would do nothing: write defaults = \{\*\*Adam\.defaults, 'lr'"),
    "a state under another's name": (lambda: derived(state_names={"m": "v"})(np.ones(1)), TypeError, "gives two states one name"),
    "a rate by position": (lambda: openadam.Adam(np.ones(1), 0.1), TypeError, r"give hyperparameters by name: lr=0\.1"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", SUBCLASSES)
def test_subclasses_that_would_be_something_else_are_refused(case: str) -> None:
    make, error, says = SUBCLASSES[case]
    with pytest.raises(error, match=says):
        make()


class Noted(openadam.Adam):
    def __init__(self, params: Any) -> None:
        self.before = ["mine"]
        super().__init__(params)
        self.after = ["mine"]


def test_attributes_of_a_subclass_are_copied_wherever_they_were_set() -> None:
    for twin in (copy.deepcopy(Noted(np.ones(1))), pickle.loads(pickle.dumps(Noted(np.ones(1))))):
        assert twin.before == twin.after == ["mine"]


def test_assignments_that_would_do_nothing_are_refused() -> None:
    optimizer = openadam.Adam({"w": np.ones(1)})
    for name in ("lr", "betas", "learning_rate", "clip_norm", "max_skips"):
        with pytest.raises(AttributeError, match=r"groups|make another"):
            setattr(optimizer, name, 1.0)
    with pytest.raises(TypeError, match="write into it"):
        optimizer.params["w"] = np.zeros(1)
    for wrong in ([np.ones(1)], None, 3):
        broken = openadam.Adam({"w": np.ones(1)})
        broken.groups[0]["params"] = wrong
        with pytest.raises(ParameterError, match="group 0 now lists"):
            broken.step({"w": np.ones(1)})
    optimizer.groups.clear()
    with pytest.raises(ParameterError, match="0 groups where 1"):
        copy.deepcopy(optimizer)


def test_a_warm_up_asks_a_function_of_the_step_from_1() -> None:
    asked: list[int] = []

    def table(t: int) -> float:
        asked.append(t)
        return [0.4, 0.2, 0.1][t - 1]

    assert [openadam.WarmUp(table, 2)(t) for t in range(1, 6)] == [0.2, 0.4, 0.4, 0.2, 0.1]
    assert min(asked) == 1


def test_a_mapping_for_no_decay_and_a_flax_tree_are_told_what_they_are() -> None:
    with pytest.raises(HyperparameterError, match="no_decay is a mapping; give the names"):
        openadam.AdamW({"w": np.ones(1)}, no_decay={"w": True})
    optimizer = openadam.Adam({"params": {"dense": {"kernel": np.ones(1)}}})
    with pytest.raises(GradientError, match="a mapping with the key 'params' is one"):
        optimizer.step({"params": {"dense": {"kernel": np.ones(1)}}})
    optimizer.step([{"dense": {"kernel": np.ones(1)}}])


def test_a_torch_optimizer_knows_its_step_after_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("openadam.torch")
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer, loaded = module.AdamW([p]), module.AdamW([p])
    for _ in range(5):
        optimizer.step()
    loaded.load_state_dict(optimizer.state_dict())
    p.grad = torch.tensor([1.0, np.nan])
    with pytest.raises(GradientError, match="at step 6"):
        loaded.step()
    monkeypatch.setenv("OPENADAM_ENGINE", "Reference")
    with pytest.raises(HyperparameterError, match="OPENADAM_ENGINE='Reference'"):
        module.AdamW([p])
