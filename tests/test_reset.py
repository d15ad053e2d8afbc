"""`reset`: parameters that forget, over arrays and torch: all of it or nothing, by name, and as if begun anew."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import openadam
from openadam.errors import HyperparameterError, ParameterError

MEMBERS = list(openadam.MEMBERS.values())
G = np.array([0.5, -2.0, 1.0])


def made(member: Any) -> Any:
    return member({"a": np.ones(3), "b": np.ones(3)}, lr=0.1)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_a_whole_reset_is_a_new_optimizer(member: Any) -> None:
    optimizer, other = made(member), made(member)
    for _ in range(3):
        optimizer.step({"a": G, "b": -G})
    optimizer.reset("a")
    for name, array in other.params.items():
        array[...] = optimizer.params[name]
    optimizer.step({"a": G, "b": None})
    other.step({"a": G, "b": None})
    assert (optimizer.params["a"] == other.params["a"]).all()
    assert all(np.all(optimizer.state["a"][key] == value) for key, value in other.state["a"].items())
    assert optimizer.state["b"]["step"] == 3  # that one was not meant
    assert optimizer.steps == 4


def test_moments_or_steps_alone() -> None:
    optimizer = openadam.NAdam({"w": np.ones(3)})
    for _ in range(3):
        optimizer.step({"w": G})
    before = optimizer.state_dict()["state"]["w"]
    optimizer.reset(moments=False)
    state = optimizer.state["w"]
    assert (state["step"], state["mu_product"]) == (0, 1.0)
    assert (state["exp_avg"] == before["exp_avg"]).all()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {"w": before}})
    optimizer.reset(["w"], steps=False)
    state = optimizer.state["w"]
    assert (state["step"], state["mu_product"]) == (3, before["mu_product"])
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()


def test_states_start_from_their_groups_first_values() -> None:
    optimizer = openadam.Adagrad({"w": np.ones(3)}, initial_accumulator_value=0.5)
    optimizer.step({"w": G})
    optimizer.reset()
    assert optimizer.state["w"]["sum"].tolist() == [0.5] * 3


def test_names_of_no_parameter_change_nothing() -> None:
    optimizer = made(openadam.Adam)
    optimizer.step({"a": G, "b": G})
    with pytest.raises(ParameterError, match=r"reset: no parameter is called 'c'; they are called 'a', 'b'"):
        optimizer.reset(["a", "c"])
    assert optimizer.state["a"]["step"] == 1


# --- over torch ---------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
hosts = pytest.importorskip("openadam.torch")


@pytest.mark.parametrize("name", [name for name in hosts.__all__ if name != "Optimizer"])  # of which test_torch_own_rules.py knows
def test_a_whole_reset_over_torch_is_a_new_optimizer(name: str) -> None:
    settings: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    as_grad: Any = torch.Tensor.to_sparse if name == "SparseAdam" else torch.Tensor.clone
    p, q, twin = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = getattr(hosts, name)([("p", p), ("q", q)], lr=0.1, **settings)
    for _ in range(3):
        p.grad, q.grad = as_grad(torch.tensor(G, dtype=torch.float32)), as_grad(torch.ones(3))
        optimizer.step()
    optimizer.reset(["p"])
    twin.data.copy_(p.data)
    fresh = getattr(hosts, name)([twin], lr=0.1, **settings)
    twin.grad = p.grad.clone()
    q.grad = None
    optimizer.step()
    fresh.step()
    assert torch.equal(p, twin)
    for key, value in fresh.state[twin].items():
        assert torch.equal(optimizer.state[p][key], value)
    assert optimizer.state[q]


def test_steps_alone_over_torch() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = hosts.NAdam([p])
    p.grad = torch.tensor(G, dtype=torch.float32)
    for _ in range(3):
        optimizer.step()
    state = optimizer.state[p]
    average = state["exp_avg"].clone()
    optimizer.reset(p, moments=False)
    assert (float(state["step"]), float(state["mu_product"])) == (0.0, 1.0)
    assert torch.equal(state["exp_avg"], average)
    optimizer.reset(steps=False)
    assert not state["exp_avg"].any()
    optimizer.step()
    assert float(state["step"]) == 1


def test_what_cannot_be_reset_over_torch_is_refused_by_name() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = hosts.Adam([("w", p)])
    optimizer.step()
    with pytest.raises(ParameterError, match="no parameter is called 'v'"):
        optimizer.reset("v")
    with pytest.raises(ParameterError, match="is no parameter"):
        optimizer.reset([torch.ones(3)])
    optimizer.state[p]["exp_avg"] = 3.0
    with pytest.raises(ParameterError, match="state 'exp_avg' of parameter 'w' is no tensor"):
        optimizer.reset(steps=False)
    with pytest.raises(ParameterError, match=r"reset: 0 \(int\) is neither a parameter or its name"):
        optimizer.reset(0)
    with pytest.raises(HyperparameterError, match="reset: moments='no' is neither True nor False"):
        optimizer.reset(moments="no")
    with pytest.raises(HyperparameterError, match="leave nothing to begin anew"):
        optimizer.reset(moments=False, steps=False)
    with pytest.raises(HyperparameterError, match="counts no steps"):
        hosts.SGD([p], momentum=0.9).reset(moments=False)


def _expanded(state: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1).expand(state.shape)


def _emptied(state: torch.Tensor) -> torch.Tensor:
    state.untyped_storage().resize_(0)
    return state


def _of_inference(state: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros_like(state)


@pytest.mark.parametrize("spoil", [_expanded, _emptied, _of_inference, torch.Tensor.to_sparse])
def test_a_state_that_refuses_to_be_filled_leaves_the_others_as_they_were(spoil: Any) -> None:
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = hosts.Adam([("v", first), ("w", second)])
    first.grad, second.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[first].items()}
    optimizer.state[second]["exp_avg_sq"] = spoil(optimizer.state[second]["exp_avg_sq"])
    with pytest.raises(ParameterError, match="state 'exp_avg_sq' of parameter 'w' is no tensor that can be written; nothing was changed"):
        optimizer.reset(steps=False)
    assert all(torch.equal(before[key], value) for key, value in optimizer.state[first].items())
    assert optimizer.state[second]["exp_avg"].all()


def test_after_a_reset_torch_takes_the_state_dict() -> None:
    for name in sorted(cls.__name__ for cls in (hosts.Adam, hosts.Adagrad, hosts.SGD, hosts.NAdam)):
        p = torch.nn.Parameter(torch.ones(3))
        settings = {"initial_accumulator_value": 0.25} if name == "Adagrad" else {}
        optimizer = getattr(hosts, name)([p], lr=0.1, **settings)
        p.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
        optimizer.reset()
        theirs = getattr(torch.optim, name)([torch.nn.Parameter(p.detach().clone())], lr=0.1, **settings)
        theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share its tensors
        other = theirs.param_groups[0]["params"][0]
        other.grad = p.grad.clone()
        theirs.step()
        optimizer.step()
        assert torch.allclose(p, other, rtol=1e-6), name
    sums = hosts.Adagrad([p], initial_accumulator_value=0.25)
    sums.step()
    sums.reset()
    assert sums.state[p]["sum"].tolist() == [0.25] * 3
    sums.share_memory()


def test_over_arrays_reset_takes_the_arrays_themselves() -> None:
    a, b = np.ones(3), np.ones(3)
    optimizer = openadam.Adam({"a": a, "b": b})
    optimizer.step({"a": a.copy(), "b": b.copy()})
    optimizer.reset(a)
    assert (optimizer.state["a"]["step"], optimizer.state["b"]["step"]) == (0, 1)
    optimizer.reset([b, "a"])
    assert optimizer.state["b"]["step"] == 0
    with pytest.raises(ParameterError, match="of type ndarray is no parameter"):
        optimizer.reset(np.ones(3))
    with pytest.raises(ParameterError, match=r"reset: 3 \(int\) is neither"):
        optimizer.reset(3)  # type: ignore[arg-type]
    with pytest.raises(HyperparameterError, match="leave nothing"):
        optimizer.reset(moments=False, steps=False)
