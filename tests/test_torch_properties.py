"""The properties that torch tests of its own optimizers, over its own table of them (`optim_db`), with our classes in their place."""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import itertools
import pickle
import sys
import types
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torchfamily import CLASSES, equal, same, states

import openadam.torch

if importlib.util.find_spec("expecttest") is None:  # torch's table needs nothing of it but the name of a class
    sys.modules["expecttest"] = types.ModuleType("expecttest")
    sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]

from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

INFOS = [info for info in optim_db if info.name in CLASSES]
REALS = (torch.float32, torch.float64)
each_class = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)


def ours(info: Any) -> Any:
    return getattr(openadam.torch, info.name)


def inputs(info: Any, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """The settings that torch tries out for a class; each anew, for tensors among them may be changed."""
    return [copy.deepcopy(given.kwargs) for given in info.optim_inputs_func(device="cpu", dtype=dtype)]


each_input = pytest.mark.parametrize(
    ("info", "which"),
    [pytest.param(info, k, id=f"{info.name}-{given.desc}") for info in INFOS for k, given in enumerate(info.optim_inputs_func("cpu"))],
)


def settings_of(info: Any, which: int) -> dict[str, Any]:
    return inputs(info)[which]


def model_and_loss(dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[torch.nn.Module, Any]:
    """The small network of torch's tests, with a parameter without axes among its own."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()).to(dtype)
    model.register_parameter("scalar", torch.nn.Parameter(torch.rand((), dtype=dtype)))
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).reshape(3, 2)
    return model, lambda: (model(x) * model.scalar).sum()


def test_every_class_is_in_torchs_table() -> None:
    assert {info.name for info in INFOS} == set(CLASSES)


@pytest.mark.parametrize("dtype", REALS, ids=str)
@each_class
def test_errors(info: Any, dtype: torch.dtype) -> None:
    """The same built-in type, the same words."""
    count = 0
    for error_input in info.optim_error_inputs_func(device="cpu", dtype=dtype):
        given = error_input.optimizer_error_input
        params = given.params if given.params is not None else [torch.nn.Parameter(torch.randn(2, 3, dtype=dtype))]
        assert error_input.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        expected = pytest.warns if issubclass(error_input.error_type, Warning) else pytest.raises
        with expected(error_input.error_type, match=error_input.error_regex):
            ours(info)(params, **given.kwargs)
        count += 1
    assert count >= 7


@pytest.mark.parametrize("contiguous", [True, False])
@each_class
def test_goes_in_the_right_direction(info: Any, contiguous: bool) -> None:
    """20 steps, with every combination of schedulers that torch tries, over dense and strided parameters."""
    for given, schedulers in itertools.product(inputs(info), [(), *info.scheduler_inputs]):
        torch.manual_seed(0)
        settings = copy.deepcopy(given)  # schedulers change a tensor in place
        weight, bias = (torch.randn(10, 5), torch.randn(10)) if contiguous else (torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0])
        weight, bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        assert weight.is_contiguous() is contiguous
        x = torch.randn(5)
        optimizer = ours(info)([weight, bias], **settings)
        made = [make(optimizer) for make in schedulers]

        def closure(optimizer: Any = optimizer, weight: Any = weight, bias: Any = bias, x: Any = x) -> Tensor:
            optimizer.zero_grad()
            loss = (weight.mv(x) + bias).pow(2).sum()
            loss.backward()
            return loss.detach()

        first = float(closure())
        for _ in range(20):
            loss = optimizer.step(closure)
            for scheduler in made:
                scheduler.step(loss) if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else scheduler.step()
        last = float(closure())
        assert last > first if settings.get("maximize") else last < first, (settings, schedulers)


@each_class
def test_groups_with_schedulers_go_in_the_right_direction(info: Any) -> None:
    for schedulers in info.scheduler_inputs:
        torch.manual_seed(0)
        weight, bias = torch.nn.Parameter(torch.randn(10, 5)), torch.nn.Parameter(torch.randn(10))
        x = torch.randn(5)
        optimizer = ours(info)([{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=0.001)
        made = [make(optimizer) for make in schedulers]
        rates = [group["lr"] for group in optimizer.param_groups]
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (weight.mv(x) + bias).pow(2).sum()
            loss.backward()
            losses.append(float(loss.detach()))
            optimizer.step()
            for scheduler in made:
                scheduler.step(losses[-1]) if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else scheduler.step()
        assert losses[-1] < losses[0]
        assert rates == [0.001, 0.01] or max(rates) < 0.01


@each_input
def test_a_tensor_as_learning_rate(info: Any, which: int) -> None:
    runs = []
    for as_tensor in (False, True):
        torch.manual_seed(0)
        settings = settings_of(info, which)
        rate = float(settings.pop("lr", 0.001))
        params = [torch.nn.Parameter(torch.randn(10, 5)), torch.nn.Parameter(torch.randn(10))]
        optimizer = ours(info)(params, lr=torch.tensor(rate, dtype=torch.float64) if as_tensor else rate, **settings)
        for k in range(5):
            for p in params:
                p.grad = torch.full_like(p, 0.1 * (k + 1))
            optimizer.step()
            if as_tensor:  # in place, as schedulers change it
                optimizer.param_groups[0]["lr"].mul_(0.5)
            else:
                optimizer.param_groups[0]["lr"] *= 0.5
        runs.append(optimizer)
    assert equal(*runs)
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)


@each_input
@pytest.mark.parametrize("shape", [(), (10, 5)], ids=str)
def test_complex_is_two_reals(info: Any, which: int, shape: tuple[int, ...]) -> None:
    """Bit for bit, the parameters and every state."""
    torch.manual_seed(0)
    p = torch.randn(shape, dtype=torch.complex64, requires_grad=True)
    q = torch.view_as_real(p).detach().clone().requires_grad_()
    a, b = ours(info)([p], **settings_of(info, which)), ours(info)([q], **settings_of(info, which))
    for _ in range(4):
        g = torch.randn(shape, dtype=torch.complex64)
        p.grad, q.grad = g, torch.view_as_real(g).clone()
        a.step()
        b.step()
        assert same(torch.view_as_real(p.detach()), q.detach())
        for (name, value), (other, real) in zip(states(a), states(b), strict=True):
            assert name == other
            assert same(torch.view_as_real(value) if value.is_complex() else value, real)


@each_input
@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_matches_the_for_loop(info: Any, which: int, dtype: torch.dtype) -> None:
    """Seven steps (RAdam rectifies from the sixth), without gradients in one, with a frozen layer in two; put on one level after each."""
    pair = []
    for cls, extra in ((ours(info), {}), (info.optim_cls, {"foreach": False})):
        model, loss = model_and_loss(dtype)
        pair.append((model, loss, cls(model.parameters(), **settings_of(info, which), **extra)))
    bound = {"rtol": 1.3e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-7, "atol": 1e-9}
    for k in range(7):
        for model, loss, optimizer in pair:
            optimizer.zero_grad()
            if k == 3:
                model[2].requires_grad_(False)
            if k == 5:
                model[2].requires_grad_(True)
            loss().backward()
            if k == 2:
                optimizer.zero_grad(set_to_none=True)
            optimizer.step()
        for p, q in zip(pair[0][0].parameters(), pair[1][0].parameters(), strict=True):
            torch.testing.assert_close(p, q, **bound)
            mine, theirs = pair[0][2].state.get(p, {}), pair[1][2].state.get(q, {})
            assert {key for key, value in theirs.items() if value is not None} == set(mine)
            for key, value in mine.items():
                torch.testing.assert_close(value.to(theirs[key].dtype), theirs[key], **bound)
                if value.ndim == theirs[key].ndim:
                    value.copy_(theirs[key])
            with torch.no_grad():
                p.copy_(q)


@each_class
def test_meta_parameters(info: Any) -> None:
    """Refused by name while there is nothing to step, stepped once there is."""
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    optimizer = ours(info)(model.parameters(), lr=0.1)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = ours(info)(model.parameters(), lr=0.1) if info.name == "Adagrad" else optimizer  # whose states torch makes at once
    optimizer.param_groups[0]["params"] = list(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p < 1).all() for p in model.parameters())


@each_class
def test_groups_have_their_own_weight_decay_and_rate(info: Any) -> None:
    p, q, r = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = ours(info)([{"params": [p], "weight_decay": 0.5}, {"params": [q]}, {"params": [r], "lr": 1e-28}], lr=0.1, weight_decay=0.0)
    for each in (p, q, r):
        each.grad = torch.zeros(3)
    optimizer.step()
    assert (p < 1).all()
    assert (q == 1).all()
    for each in (p, q, r):
        each.grad = torch.ones(3)
    optimizer.step()
    assert (q < 1).all()
    assert (r == 1).all()


@each_input
def test_nothing_happens_without_gradients(info: Any, which: int) -> None:
    p = torch.nn.Parameter(torch.randn(2, 3))
    optimizer = ours(info)([p], **settings_of(info, which))
    before, had = p.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step()
    assert same(p.detach(), before)
    assert same(optimizer.state_dict()["state"], had)


@each_input
def test_zero_gradients_move_nothing_but_by_decay(info: Any, which: int) -> None:
    p = torch.nn.Parameter(torch.randn(5, 1))
    settings = settings_of(info, which)
    optimizer = ours(info)([p], **settings)
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert same(p.detach(), before) is not bool(optimizer.param_groups[0]["weight_decay"])
    assert optimizer.state or info.name == "SGD"


@each_input
def test_it_can_be_printed(info: Any, which: int) -> None:
    p = torch.nn.Parameter(torch.randn(1))
    shown = repr(ours(info)([p], **settings_of(info, which)))
    assert shown.startswith(f"{info.name} (")
    assert repr(info.optim_cls([p], **settings_of(info, which))) == shown


@pytest.mark.parametrize("named", [False, True])
@each_input
def test_state_dicts_are_deterministic(info: Any, which: int, named: bool) -> None:
    """Ten steps, loaded elsewhere, ten more side by side; and saved through a file that is not trusted."""

    def begin(model: torch.nn.Module) -> Any:
        return ours(info)(model.named_parameters() if named else model.parameters(), **settings_of(info, which))

    def run(loss: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    model, loss = model_and_loss(torch.float32)
    optimizer = begin(model)
    for _ in range(10):
        run(loss, optimizer)
    twin, twin_loss = model_and_loss(torch.float32)
    twin.load_state_dict(model.state_dict())
    other = begin(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    third, third_loss = model_and_loss(torch.float32)
    third.load_state_dict(model.state_dict())
    loaded = begin(third)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(10):
        for each, own in ((loss, optimizer), (twin_loss, other), (third_loss, loaded)):
            run(each, own)
        assert equal(optimizer, other)
        assert equal(optimizer, loaded)
    assert same(optimizer.state_dict(), other.state_dict())
    repeated = optimizer.state_dict()
    repeated["param_groups"].append(repeated["param_groups"][-1])
    assert ("param_names" in repeated["param_groups"][0]) is named


@each_input
def test_older_state_dicts(info: Any, which: int) -> None:
    """What a later version of torch added to the groups may be missing; `step` may be a plain number."""
    model, loss = model_and_loss(torch.float32)
    optimizer = ours(info)(model.parameters(), **settings_of(info, which))
    loss().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        for flag in info.not_og_supported_flags:
            group.pop(flag, None)
    for each in state["state"].values():
        if "step" in each:
            each["step"] = each["step"].item()
    other = ours(info)(model.parameters(), **settings_of(info, which))
    other.load_state_dict(state)
    assert {key: value for key, value in other.param_groups[0].items() if key != "params"} == {
        key: value for key, value in optimizer.param_groups[0].items() if key != "params"
    }
    assert all(isinstance(value, Tensor) for _, value in states(other))
    optimizer.step()
    assert not equal(optimizer, other) or info.name == "SGD"


@each_class
def test_named_state_dicts(info: Any) -> None:
    """Names stay with whoever has them."""
    model, _ = model_and_loss()
    names = [name for name, _ in model.named_parameters()]
    for from_names, to_names in itertools.product([False, True], repeat=2):
        source, target = (ours(info)(model.named_parameters() if n else model.parameters()) for n in (from_names, to_names))
        target.load_state_dict(source.state_dict())
        assert target.state_dict()["param_groups"][0].get("param_names") == (names if from_names or to_names else None)


@each_class
def test_hooks_of_steps_and_their_order(info: Any) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours(info)([p], lr=0.1)
    seen: list[int] = []

    def note(number: int) -> Any:
        return lambda *_: seen.append(number)

    handles = [
        register_optimizer_step_pre_hook(note(0)), optimizer.register_step_pre_hook(note(1)),
        optimizer.register_step_post_hook(note(2)), register_optimizer_step_post_hook(note(5)),
    ]  # fmt: skip
    try:
        p.grad = torch.ones(2)
        optimizer.step()
        optimizer.step(lambda: 1.0)
        assert seen == [0, 1, 2, 5] * 2
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert seen == [0, 1, 2, 5] * 2
    other = ours(info)([p], lr=0.1)
    changed = other.register_step_pre_hook(lambda opt, args, kwargs: ((args[0], lambda: 7.0), {}))
    assert other.step() == 7.0
    changed.remove()
    assert other.step() is None


@each_class
def test_hooks_of_state_dicts_and_their_order(info: Any) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours(info)([p], lr=0.1)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: (seen.append("pre"), opt.state.__setitem__("test", 1))[0])
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("first"), prepend=True)

    def after(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("post")
        return {**state, "added": 2}

    optimizer.register_state_dict_post_hook(after)
    state = optimizer.state_dict()
    assert seen == ["first", "pre", "post"]
    assert state["state"]["test"] == 1
    assert state["added"] == 2
    other = ours(info)([p], lr=0.5)
    given: list[Any] = []
    other.register_load_state_dict_pre_hook(
        lambda opt, loaded: (given.append(loaded), {**loaded, "param_groups": [{**loaded["param_groups"][0], "lr": 0.25}]})[1]
    )
    other.register_load_state_dict_pre_hook(lambda opt, loaded: given.append("first"), prepend=True)
    other.register_load_state_dict_post_hook(lambda opt: given.append(opt.param_groups[0]["lr"]))
    other.load_state_dict(state)
    assert given[0] == "first"
    assert given[1] == state
    assert given[2] == 0.25
    assert other.state["test"] == 1
    assert state["param_groups"][0]["lr"] == 0.1


@each_input
def test_deepcopy_keeps_public_attributes(info: Any, which: int) -> None:
    p = torch.nn.Parameter(torch.randn(3))
    optimizer = ours(info)([p], **settings_of(info, which))
    p.grad = torch.ones(3)
    optimizer.step()

    def public(each: Any) -> dict[str, Any]:
        return {name: getattr(each, name) for name in dir(each) if not name.startswith("_")}

    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        before, after = public(optimizer), public(other)
        assert set(before) == set(after)
        for name, value in before.items():
            if not callable(value) and name not in ("state", "param_groups"):
                assert same(after[name], value) or after[name] == value, name
        assert equal(other, optimizer)


@each_input
def test_states_are_not_empty(info: Any, which: int) -> None:
    model, loss = model_and_loss()
    settings = settings_of(info, which)
    optimizer = ours(info)(model.parameters(), **settings)
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    if info.name != "SGD" or settings.get("momentum"):
        assert all(optimizer.state[p] for p in model.parameters())


@each_class
def test_profiler_name(info: Any) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours(info)([p])
    p.grad = torch.ones(2)
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.name for event in profile.events()}
    assert f"Optimizer.step#{info.name}.step" in names
    assert f"Optimizer.zero_grad#{info.name}.zero_grad" in names


@functools.cache
def schedulers() -> tuple[tuple[str, Any], ...]:
    s = torch.optim.lr_scheduler

    def every() -> Iterator[tuple[str, Any]]:
        yield "LambdaLR", lambda o: s.LambdaLR(o, lambda k: 0.9**k)
        yield "MultiplicativeLR", lambda o: s.MultiplicativeLR(o, lambda k: 0.9)
        yield "StepLR", lambda o: s.StepLR(o, 2)
        yield "MultiStepLR", lambda o: s.MultiStepLR(o, [2, 4])
        yield "ConstantLR", lambda o: s.ConstantLR(o)
        yield "LinearLR", lambda o: s.LinearLR(o)
        yield "ExponentialLR", lambda o: s.ExponentialLR(o, 0.9)
        yield "PolynomialLR", lambda o: s.PolynomialLR(o)
        yield "CosineAnnealingLR", lambda o: s.CosineAnnealingLR(o, 5)
        yield "CosineAnnealingWarmRestarts", lambda o: s.CosineAnnealingWarmRestarts(o, 3)
        yield "CyclicLR", lambda o: s.CyclicLR(o, 0.001, 0.1, step_size_up=2, cycle_momentum=info_cycles(o))
        yield "OneCycleLR", lambda o: s.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=info_cycles(o))
        yield "ReduceLROnPlateau", lambda o: s.ReduceLROnPlateau(o, patience=0)
        yield "SequentialLR", lambda o: s.SequentialLR(o, [s.ConstantLR(o), s.ExponentialLR(o, 0.9)], [3])
        yield "ChainedScheduler", lambda o: s.ChainedScheduler([s.ConstantLR(o), s.ExponentialLR(o, 0.9)])
        yield "SWALR", lambda o: torch.optim.swa_utils.SWALR(o, 0.05)

    return tuple(every())


def info_cycles(optimizer: Any) -> bool:
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


@pytest.mark.parametrize("scheduler", [name for name, _ in schedulers()])
@each_class
def test_every_scheduler(info: Any, scheduler: str) -> None:
    """Beside torch's for-loop under the same schedule, which may change betas as well."""
    make = dict(schedulers())[scheduler]
    pair = []
    for cls, extra in ((ours(info), {}), (info.optim_cls, {"foreach": False})):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64))
        settings = {"momentum": 0.9} if info.name in ("SGD", "RMSprop") else {}
        optimizer = cls([p], lr=0.05, **settings, **extra)
        pair.append((p, optimizer, make(optimizer)))
    for k in range(8):
        for p, optimizer, schedule in pair:
            p.grad = torch.sin(torch.arange(9, dtype=torch.float64) + k)
            optimizer.step()
            schedule.step(1.0) if scheduler == "ReduceLROnPlateau" else schedule.step()
    assert pair[0][1].param_groups[0]["lr"] == pair[1][1].param_groups[0]["lr"]
    assert type(pair[0][1].param_groups[0]["lr"]) is type(pair[1][1].param_groups[0]["lr"])
    torch.testing.assert_close(pair[0][0], pair[1][0], rtol=1e-7, atol=1e-7)
