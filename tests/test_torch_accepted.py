"""What openadam.torch must take as torch does: numbers of every kind, containers, schedules, parameters that are new or not there yet.

Goes further in kinds that `test_torch_users` begins; torch's for-loop, or ours over plain values, is the oracle.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchfamily import CLASSES, STATEFUL, Subject, each_class, each_with_state, give, leaves, params_of, refuses
from torchpairs import KINDS, Pair, kinds_of

import openadam
import openadam.errors
import openadam.torch
from openadam import HyperparameterError

ENGINES = (None, "graph")
NADAM = STATEFUL[CLASSES.index("NAdam")]
each_engine = pytest.mark.parametrize("engine", ENGINES)


def loads_again(optimizer: Any) -> Any:
    """Its state dict, through a file that is not trusted."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run(optimizer: Any, steps: int = 3) -> Any:
    for k in range(steps):
        give(params_of(optimizer), k)
        optimizer.step()
    return optimizer


# --- numbers -----------------------------------------------------------------------------------------------------------

NUMBERS: dict[str, dict[str, float]] = {
    "Adam": {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125}, "AdamW": {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125},
    "NAdam": {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125, "momentum_decay": 0.25}, "RAdam": {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125},
    "Adamax": {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125},
    "RMSprop": {"lr": 0.5, "alpha": 0.75, "eps": 0.25, "weight_decay": 0.125, "momentum": 0.5},
    "Adagrad": {"lr": 0.5, "lr_decay": 0.25, "eps": 0.25, "weight_decay": 0.125, "initial_accumulator_value": 0.5},
    "SGD": {"lr": 0.5, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125},
}  # fmt: skip
FLAGS = {
    "Adam": ("amsgrad", "maximize", "decoupled_weight_decay"), "AdamW": ("amsgrad", "maximize"), "NAdam": ("decoupled_weight_decay", "maximize"),
    "RAdam": ("decoupled_weight_decay", "maximize"), "Adamax": ("maximize",), "RMSprop": ("centered", "maximize"), "Adagrad": ("maximize",),
    "SGD": ("nesterov", "maximize"),
}  # fmt: skip
NUMPY = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "array": np.array, "array of one": lambda x: np.array([x]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("name", CLASSES)
def test_numbers_of_numpy(name: str, kind: str) -> None:
    """In the constructor, in a group, and set later: the same bits as Python's, stored as Python's."""
    make = getattr(openadam.torch, name)
    plain = NUMBERS[name]
    theirs = {key: NUMPY[kind](value) for key, value in plain.items()}
    calm = run(make(leaves([(4,), (3, 2)], torch.float64), **plain))
    by_keyword = run(make(leaves([(4,), (3, 2)], torch.float64), **theirs))
    in_groups = run(make([{"params": [p], **theirs} for p in leaves([(4,), (3, 2)], torch.float64)], **plain))
    by_adding = make(leaves([(4,)], torch.float64), **plain)
    by_adding.add_param_group({"params": leaves([(4,), (3, 2)], torch.float64)[1:], **theirs})
    later = make(leaves([(4,), (3, 2)], torch.float64), **plain)
    later.param_groups[0].update(theirs)
    for each in (by_keyword, in_groups, run(by_adding), run(later)):
        assert [p.tolist() for p in params_of(each)] == [p.tolist() for p in params_of(calm)]
        for group in loads_again(each)["param_groups"]:
            for key, value in plain.items():
                assert group[key] == value
                assert type(group[key]) is float


@pytest.mark.parametrize("value", [1, 0, np.bool_(True), np.bool_(False), torch.tensor(True)], ids=str)
@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags])
def test_flags_that_are_true_or_false_in_another_way(name: str, flag: str, value: Any) -> None:
    """In the constructor and, but for those that torch looks at there alone, later."""
    make, settings = getattr(openadam.torch, name), {key: value for key, value in NUMBERS[name].items() if key != "dampening"}
    calm = run(make(leaves([(4,)], torch.float64), **settings, **{flag: bool(value)}))
    optimizer = run(make(leaves([(4,)], torch.float64), **settings, **{flag: value}))
    assert [p.tolist() for p in params_of(optimizer)] == [p.tolist() for p in params_of(calm)]
    if flag not in ("amsgrad", "centered"):
        optimizer = make(leaves([(4,)], torch.float64), **settings)
        optimizer.param_groups[0][flag] = value
        assert [p.tolist() for p in params_of(run(optimizer))] == [p.tolist() for p in params_of(calm)]


PAIRS = {
    "list": [0.8, 0.99], "array": np.array([0.8, 0.99]), "UserList": UserList([0.8, 0.99]), "tensor": torch.tensor([0.8, 0.99], dtype=torch.float64),
    "NumPy's numbers": [np.float64(0.8), np.float64(0.99)], "deque": deque([0.8, 0.99]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("name", [name for name in CLASSES if "betas" in STATEFUL[CLASSES.index(name)].settings])
def test_pairs_of_betas(name: str, kind: str) -> None:
    """By place, by keyword, in a group, in a group added, loaded."""
    make, pair = getattr(openadam.torch, name), PAIRS[kind]
    calm = run(make(leaves([(4,)], torch.float64), 0.1, (0.8, 0.99)))
    added = make(leaves([(2,)], torch.float64), 0.1)
    added.add_param_group({"params": leaves([(4,)], torch.float64), "betas": pair})
    del added.param_groups[0]
    loaded = make(leaves([(4,)], torch.float64), 0.1)
    saved = loaded.state_dict()
    saved["param_groups"][0]["betas"] = pair
    loaded.load_state_dict(saved)
    for optimizer in (
        make(leaves([(4,)], torch.float64), 0.1, pair), make(leaves([(4,)], torch.float64), betas=pair, lr=0.1),
        make([{"params": leaves([(4,)], torch.float64), "betas": pair}], lr=0.1), added, loaded,
    ):  # fmt: skip
        run(optimizer)
        assert params_of(optimizer)[0].tolist() == params_of(calm)[0].tolist()
        assert tuple(loads_again(optimizer)["param_groups"][0]["betas"]) == (0.8, 0.99)
        assert {type(beta) for beta in optimizer.param_groups[0]["betas"]} == {float}


@each_class
def test_schedules_that_end_at_nothing(subject: Subject) -> None:
    """Whose rates end a rounding error above or below zero, whatever they began at; as torch."""
    schedulers = torch.optim.lr_scheduler
    for rate in (1e-3, 0.1, 1.0, 30.0):
        for schedule in (
            lambda o: schedulers.LinearLR(o, start_factor=1 / 3, end_factor=0.0, total_iters=10),
            lambda o: schedulers.LinearLR(o, start_factor=0.8, end_factor=0.0, total_iters=12),
            lambda o: schedulers.PolynomialLR(o, total_iters=12, power=1.0),
            lambda o: schedulers.CosineAnnealingLR(o, T_max=12),
            lambda o: schedulers.SequentialLR(o, [schedulers.ConstantLR(o), schedulers.LinearLR(o, 0.7, 0.0, 7)], [5]),
        ):
            beside = Pair(subject, lambda: kinds_of("parameter", ((3,),)))
            for optimizer in beside.both:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            made = [schedule(optimizer) for optimizer in beside.both]
            for _ in range(14):
                beside.step()
                for each in made:
                    each.step()
            assert beside.ours.param_groups[0]["lr"] == beside.theirs.param_groups[0]["lr"]


@pytest.mark.parametrize("as_tensor", [False, True])
@each_class
def test_rates_that_are_negative_are_still_refused(subject: Subject, as_tensor: bool) -> None:
    optimizer = run(subject.make(leaves([(3,)], torch.float32)))
    give(params_of(optimizer), 5)
    for rate in (-1e-6, -0.1, -math.inf):
        optimizer.param_groups[0]["lr"] = torch.tensor(rate) if as_tensor else rate
        refuses(optimizer, optimizer.step, HyperparameterError, "lr")


# --- containers --------------------------------------------------------------------------------------------------------


def in_another_group(kind: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(optimizer: Any) -> None:
        optimizer.param_groups = [kind(group) for group in optimizer.param_groups]

    return change


def of_nothing(optimizer: Any) -> None:
    optimizer.state = defaultdict(lambda: {})  # noqa: PIE807 - as users write it


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "groups: OrderedDict": in_another_group(OrderedDict), "groups: UserDict": in_another_group(UserDict),
    "groups: deque": lambda o: setattr(o, "param_groups", deque(o.param_groups)),
    "groups: UserList": lambda o: setattr(o, "param_groups", UserList(o.param_groups)),
    "params: deque": lambda o: o.param_groups[0].update(params=deque(o.param_groups[0]["params"])),
    "params: UserList": lambda o: o.param_groups[0].update(params=UserList(o.param_groups[0]["params"])),
    "params: tuple": lambda o: o.param_groups[0].update(params=tuple(o.param_groups[0]["params"])),
    "params: keys of a dict": lambda o: o.param_groups[0].update(params=dict.fromkeys(o.param_groups[0]["params"]).keys()),
    "state: lambda": of_nothing, "state: UserDict": lambda o: setattr(o, "state", UserDict(o.state)),
    "state: dict": lambda o: setattr(o, "state", dict(o.state)),
    "inner: UserDict": lambda o: o.state.update({p: UserDict(own) for p, own in o.state.items()}),
    "inner: defaultdict": lambda o: o.state.update({p: defaultdict(float, own) for p, own in o.state.items()}),
}  # fmt: skip


@each_engine
@pytest.mark.parametrize("kind", ["parameter", "a Parameter of the user's", "complex"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(container: str, kind: str, engine: str | None) -> None:
    """Over parameters that are plain and others; two groups; what is saved then is what torch saves."""
    for subject in (NADAM, STATEFUL[CLASSES.index("SGD")]):
        beside = Pair(subject, lambda: [{"params": kinds_of(kind, ((3,), (2, 2)))}, {"params": kinds_of(kind, ((5,),)), "lr": 0.1}], engine=engine)
        beside.step(2)
        for optimizer in beside.both:
            CONTAINERS[container](optimizer)
        beside.step(3)
        for own in (beside.ours.state_dict()["state"], beside.theirs.state_dict()["state"]):
            assert sorted(own) == [0, 1, 2]


@each_engine
@each_with_state
def test_lazy_parameters(subject: Subject, engine: str | None) -> None:
    """A step before the first forward pass, when they have neither shape nor gradient, with everything that a step may look at."""
    outcomes = []
    for make in (lambda params: subject.make(params, engine=engine, nonfinite="raise"), subject.theirs):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that lazy modules are new
            model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1)).double()
        if subject.name == "Adagrad":  # makes its states in the constructor
            with pytest.raises(ValueError, match="uninitialized parameter"):
                make(model.parameters())
            continue
        optimizer = make(model.parameters())
        optimizer.step()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 5, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        outcomes.append([p.detach() for p in model.parameters()])
    if outcomes:
        torch.testing.assert_close(*outcomes, rtol=1e-6, atol=1e-9)


def test_lazy_parameters_beside_clipping_and_what_does_not_decay() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1))
    optimizer = openadam.torch.AdamW(model.named_parameters(), lr=0.1, clip_norm=1.0, clip_value=0.5, no_decay=["0.bias", "1.bias"])
    model[1].weight.grad = torch.ones(1, 3)
    optimizer.step(measure=True)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step(measure=True)
    assert set(optimizer.last_step.measures) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@each_engine
@pytest.mark.parametrize("kind", KINDS)
@each_with_state
def test_new_data_with_fitting_states(subject: Subject, kind: str, engine: str | None) -> None:
    """The same object: other rows, another dtype, another shape of the same elements; its states with it."""
    beside = Pair(subject, lambda: kinds_of(kind, ((4, 3), (2,))), engine=engine)
    beside.step(2)
    for change in (
        lambda t: t[[0, 2, 3]], lambda t: torch.cat([t, t[:1]]), lambda t: t.reshape(2, 6), lambda t: t.T.contiguous().T, lambda t: t[:0],
        lambda t: t.to(torch.complex64 if t.is_complex() else torch.float32), lambda t: t.new_full((3, 3), 0.5),
    ):  # fmt: skip
        for optimizer in beside.both:
            p = params_of(optimizer)[0]
            p.data, p.grad, own = change(p.data), None, optimizer.state[p]
            own.update({key: change(value) for key, value in own.items() if isinstance(value, Tensor) and value.ndim})
        beside.step(2)
