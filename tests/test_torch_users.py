"""What people do with torch's optimizers that needs no special word: other containers, odd settings, new data, devices, subclasses.

torch.optim is the oracle: the same is done to one of its optimizers in the same process. Labels such as M6 are those of docs/faults.md.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections import OrderedDict, UserDict, UserList, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torchfamily import CLASSES, params_of

import openadam
import openadam.torch
from openadam import HyperparameterError, OpenAdamError

MODULES = (torch.optim, openadam.torch)


def weights(count: int = 2, shape: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for _ in range(count)]


def go(optimizer: Any, steps: int = 1) -> None:
    for k in range(steps):
        for n, p in enumerate(params_of(optimizer)):
            p.grad = torch.full(p.shape, 1.0 + n + k, dtype=p.dtype, device="cpu")
        optimizer.step()


def alike(outcomes: list[Any]) -> Any:
    """torch's and ours, which agree but for rounding."""
    theirs, ours = outcomes
    if isinstance(theirs, (list, tuple)):
        assert len(theirs) == len(ours)
        return [alike([a, b]) for a, b in zip(theirs, ours, strict=True)]
    assert ours == pytest.approx(theirs, rel=2e-6, abs=1e-7) if isinstance(theirs, float) else ours == theirs
    return ours


# --- M6: what torch takes ----------------------------------------------------------------------------------------------


class ListConfig(UserList):  # type: ignore[type-arg]
    """A configuration's own kind of list."""


PAIRS = {
    "list": [0.8, 0.99], "array": np.array([0.8, 0.99]), "UserList": ListConfig([0.8, 0.99]), "tensor": torch.tensor([0.8, 0.99]),
    "NumPy's numbers": (np.float64(0.8), np.float64(0.99)),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_m6_betas_as_any_pair(kind: str) -> None:
    optimizer = openadam.torch.AdamW(weights(), lr=0.1, betas=PAIRS[kind])
    plain = openadam.torch.AdamW(weights(), lr=0.1, betas=(0.8, 0.99))
    stored = optimizer.param_groups[0]["betas"]
    assert stored == pytest.approx((0.8, 0.99))
    assert (type(stored), type(stored[0]), type(stored[1])) == (tuple, float, float)
    go(optimizer, 3)
    go(plain, 3)
    assert [p.tolist() for p in params_of(optimizer)] == [pytest.approx(p.tolist()) for p in params_of(plain)]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)
    later = openadam.torch.AdamW(weights(), lr=0.1)
    later.param_groups[0]["betas"] = PAIRS[kind]
    go(later)
    assert later.state[params_of(later)[0]]["exp_avg"].tolist() == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), "ab", {0.9: 1, 0.99: 2}, 0.9, None, ("a", "b"), (True, 0.99), np.zeros((2, 2))])
def test_m6_what_is_no_pair(betas: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        openadam.torch.Adam(weights(), betas=betas)
    optimizer = openadam.torch.Adam(weights())
    optimizer.param_groups[0]["betas"] = betas
    with pytest.raises(HyperparameterError, match="beta"):
        go(optimizer)


@pytest.mark.parametrize(("start", "steps"), [(1.0, 10), (1 / 3, 10), (0.8, 1000)])
def test_m6_a_rate_that_rounding_leaves_below_zero(start: float, steps: int) -> None:
    outcomes = []
    for module in MODULES:
        optimizer = module.AdamW(weights(1), lr=1e-3)
        scheduler = LinearLR(optimizer, start_factor=start, end_factor=0.0, total_iters=steps)
        for _ in range(steps + 2):
            go(optimizer)
            scheduler.step()
        assert abs(optimizer.param_groups[0]["lr"]) < 1e-18
        outcomes.append(params_of(optimizer)[0].tolist())
    assert outcomes[1] == pytest.approx(outcomes[0], rel=1e-4)


@pytest.mark.parametrize("rate", [-1e-3, -1e-9, -1.0])
def test_m6_a_rate_that_is_negative_is_refused(rate: float) -> None:
    optimizer = openadam.torch.AdamW(weights(), lr=1e-3)
    optimizer.param_groups[0] |= {"lr": rate, "initial_lr": 1e-3}
    with pytest.raises(HyperparameterError, match="lr"):
        go(optimizer)


@pytest.mark.parametrize("value", [1, 0, np.True_, True, torch.tensor(True)])
def test_m6_maximize_is_a_truth(value: Any) -> None:
    outcomes = []
    for module in MODULES:
        optimizer = module.SGD(weights(1), lr=0.1)
        optimizer.param_groups[0]["maximize"] = value
        go(optimizer)
        outcomes.append(params_of(optimizer)[0].tolist())
    alike(outcomes)


def in_lambda_dict(optimizer: Any) -> None:
    kept = dict(optimizer.state)
    optimizer.state = defaultdict(dict)
    optimizer.state.update(kept)


CONTAINERS = {
    "tuple": lambda o: o.param_groups[0].update(params=tuple(params_of(o))),
    "ParameterList": lambda o: o.param_groups[0].update(params=torch.nn.ParameterList(params_of(o))),
    "values of a dict": lambda o: o.param_groups[0].update(params=dict(enumerate(params_of(o))).values()),
    "tuple of groups": lambda o: setattr(o, "param_groups", tuple(o.param_groups)),
    "dict": lambda o: setattr(o, "state", dict(o.state)),
    "OrderedDict": lambda o: setattr(o, "state", OrderedDict(o.state)),
    "UserDict": lambda o: setattr(o, "state", UserDict(o.state)),
    "lambda's dict": in_lambda_dict,
    "inner OrderedDict": lambda o: [o.state.update({p: OrderedDict(o.state[p])}) for p in params_of(o)],
    "inner UserDict": lambda o: [o.state.update({p: UserDict(o.state[p])}) for p in params_of(o)],
    "another order": lambda o: setattr(o, "state", defaultdict(dict, reversed(o.state.items()))),
    "strings beside": lambda o: o.state.update({"note": 1}),
}


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_m6_groups_and_states_in_other_containers(container: str, name: str) -> None:
    outcomes = []
    for module in MODULES:
        optimizer = getattr(module, name)(weights(), lr=0.1)
        go(optimizer)
        CONTAINERS[container](optimizer)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for _ in range(2):
            for p in params:
                p.grad = torch.ones(3)
            optimizer.step()
        outcomes.append([[p[0].item(), float(optimizer.state[p]["step"])] for p in params])
    alike(outcomes)


@pytest.mark.parametrize("name", CLASSES)
def test_m6_new_data_with_fitting_states(name: str) -> None:
    """The same Parameter grows, shrinks and changes its dtype, and its states with it, as when points are added to a scene and removed."""
    outcomes = []
    for module in MODULES:
        optimizer = getattr(module, name)(weights(2, (4, 3)), lr=0.1)
        go(optimizer, 2)
        p, _ = params_of(optimizer)
        for change in (
            lambda t: t[torch.tensor([True, False, True, True])],
            lambda t: torch.cat([t, torch.ones(2, 3)]),
            lambda t: t.double(),
        ):
            p.data, p.grad = change(p.data), None
            own = optimizer.state[p]
            for key, value in list(own.items()):
                if isinstance(value, Tensor) and value.dim():
                    own[key] = change(value)
            go(optimizer, 2)
        outcomes.append([p.detach().flatten().tolist(), str(p.dtype)])
    alike(outcomes)


def test_m6_new_data_without_fitting_states() -> None:
    optimizer = openadam.torch.Adam(weights(2, (4, 3)), lr=0.1)
    go(optimizer)
    p, q = params_of(optimizer)
    p.data, p.grad = torch.zeros(5, 3), None
    before = q.detach().clone()
    with pytest.raises(openadam.ParameterError, match=r"state 'exp_avg' of parameter '0' is float32 \(4, 3\), the parameter float32 \(5, 3\)"):
        go(optimizer)
    assert torch.equal(q, before)


def test_m6_lazy_parameters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lazy modules are new
        model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1))
    optimizer = openadam.torch.Adam(model.parameters(), lr=0.1)
    optimizer.step()  # nothing has a gradient, nor a shape
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (3, 5)


# --- M7: other devices, fakes, subclasses ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [None, "graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_m7_another_default_device(name: str, dtype: torch.dtype, engine: str | None) -> None:
    inside, plain = (getattr(openadam.torch, name)(weights(1, (3,), dtype), lr=0.1, engine=engine) for _ in range(2))
    for _ in range(3):
        go(plain)
    with torch.device("meta"):
        go(inside)
    go(inside)
    with torch.device("meta"):
        inside.load_state_dict(copy.deepcopy(inside.state_dict()))
        go(inside)
    assert torch.equal(params_of(inside)[0], params_of(plain)[0])
    assert all(value.device.type == "cpu" for own in inside.state.values() for value in own.values() if isinstance(value, Tensor))


@pytest.mark.parametrize("name", CLASSES)
def test_m7_fake_tensors(name: str) -> None:
    """As tools run optimizers that estimate memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    kinds = []
    for module in MODULES:
        with FakeTensorMode():
            model = torch.nn.Linear(4, 3)
            optimizer = getattr(module, name)(model.parameters(), lr=0.1)
            for _ in range(2):
                model(torch.randn(2, 4)).sum().backward()
                optimizer.step()
            kinds.append({key: (type(value), value.shape, value.dtype) for key, value in optimizer.state[model.weight].items() if value is not None})
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", CLASSES)
def test_m7_a_subclass_that_answers_operations_itself(name: str) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    outcomes = []
    for module in MODULES:
        p = torch.nn.Parameter(TwoTensor(torch.zeros(3), torch.zeros(3)))
        optimizer = getattr(module, name)([p], lr=0.1, foreach=False)
        for k in range(3):
            p.grad = TwoTensor(torch.full((3,), 1.0 + k), torch.full((3,), 1.0 + k))
            optimizer.step()
        outcomes.append([p.detach().a.tolist(), p.detach().b.tolist()])
    alike(outcomes)


def test_m7_a_jagged_tensor_is_refused_by_name() -> None:
    values = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged, requires_grad=True)
    p = torch.nn.Parameter(values.detach())
    p.grad = torch.ones_like(p.detach())
    optimizer = openadam.torch.Adam([p], lr=0.1)
    with pytest.raises(OpenAdamError, match="'0'"):
        optimizer.step()


# --- what stands beside the step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [None, "graph"])
def test_clip_value_and_measures_are_those_over_arrays(engine: str | None) -> None:
    shapes = [(3, 4), (7,)]
    values = [np.linspace(-1, 1, int(np.prod(shape))).reshape(shape) for shape in shapes]
    gradients = [[np.sin(7 * v + k) * 10.0 ** (k - 1) for v in values] for k in range(3)]
    params = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    arrays = openadam.AdamW({"a": values[0].copy(), "b": values[1].copy()}, lr=0.1, clip_norm=2.0, clip_value=0.3)
    optimizer = openadam.torch.AdamW(zip("ab", params, strict=True), lr=0.1, clip_norm=2.0, clip_value=0.3, engine=engine)
    for k, given in enumerate(gradients):
        for p, g in zip(params, given, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step(measure=True)
        report = arrays.step(dict(zip("ab", given, strict=True)), measure=True)
        assert optimizer.last_step is not None
        assert report.measures is not None
        assert optimizer.last_step.measures is not None
        assert optimizer.last_step[:4] == pytest.approx(report[:4])
        for name in "ab":
            assert optimizer.last_step.measures[name] == pytest.approx(report.measures[name]), k
    for p, v in zip(params, arrays.params.values(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), v, rtol=1e-14)
    optimizer.step()
    assert optimizer.last_step is not None
    assert optimizer.last_step.measures is None
    with pytest.raises(HyperparameterError, match="clip_value"):
        openadam.torch.Adam(weights(), clip_value=-1.0)
