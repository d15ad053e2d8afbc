"""The native reader of torch's tensors: what it is given is checked, and what it reports is true."""

from typing import Any

import numpy as np
import pytest
import torch

import openadam.torch
from openadam import engine

reader = engine.tensor_reader()
if reader is None:  # pragma: no cover - a build without a compiler
    pytest.skip("there is no native code here", allow_module_level=True)
CAPSULE: Any = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]


def given(count: int = 3) -> tuple[openadam.torch.AdamW, dict[str, Any]]:
    """An optimizer that has taken a step, and the arguments with which its next one is read."""
    params = [torch.full((k + 1, 2), 1.0, requires_grad=True) for k in range(count)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = openadam.torch.AdamW(params)
    optimizer.step()
    s = optimizer._stepper
    assert s is not None
    arguments = {
        "capsule": CAPSULE, "tensor_type": torch.Tensor, "parameters": s.params, "dicts": s.dicts, "names": s.keys, "held": s.held,
        "scalar_names": s.scalar_names, "scalars": s.shown, "table": s.table.rows, "places": s._places, "geometry": s._geometry,
        "starts": s._protected[0], "ends": s._protected[1], "traces": s._traces, "recheck": False,
    }  # fmt: skip
    return optimizer, arguments


def test_it_speaks_to_torch() -> None:
    assert reader.speaks(CAPSULE)
    with pytest.raises(ValueError, match="PyCapsule"):
        reader.speaks(object())


def test_a_plain_step_needs_no_closer_look() -> None:
    _, arguments = given()
    assert reader.read_tensors(**arguments) == ([], [], [], [])


WRONG: dict[str, Any] = {
    "parameters": [],
    "dicts": [{}],
    "names": [()],
    "held": [],
    "scalars": [],
    "places": np.zeros(1, np.int64),
    "table": np.zeros((3, 5), np.int64),
    "starts": np.zeros(7, np.int64),
    "traces": np.zeros((3, 1), np.int64),
}


@pytest.mark.parametrize("name", WRONG)
def test_lengths_are_checked(name: str) -> None:
    _, arguments = given()
    with pytest.raises(ValueError, match="differ in length"):
        reader.read_tensors(**arguments | {name: WRONG[name]})


@pytest.mark.parametrize("name", ["table", "places", "geometry", "starts", "ends", "traces"])
def test_arrays_are_not_converted(name: str) -> None:
    _, arguments = given()
    with pytest.raises(TypeError):
        reader.read_tensors(**arguments | {name: arguments[name].astype(np.int32)})


def changed(what: str, optimizer: openadam.torch.AdamW) -> tuple[list[int], list[int], list[int], list[int]]:
    """Change one thing of the second parameter; returns what the reader should report."""
    p = optimizer.param_groups[0]["params"][1]
    state = optimizer.state[p]
    if what == "gradient gone":
        p.grad = None
        return [], [], [], [1]
    if what == "gradient transposed":
        p.grad = torch.ones(2, 2).t().contiguous().t()
    if what == "gradient of another dtype":
        p.grad = None
        p.grad_dtype = torch.float64
        p.grad = torch.ones(2, 2, dtype=torch.float64)
    if what == "gradient negated lazily":
        p.grad = torch._neg_view(torch.ones(2, 2))  # dense: nothing else tells it from a plain one
    if what == "gradient a subclass":
        p.grad = torch.nn.Parameter(torch.ones(2, 2))
    if what.startswith("gradient"):
        return [1], [], [], []
    if what == "parameter elsewhere":
        p.data = p.data.clone()
    if what == "state replaced":
        state["exp_avg"] = state["exp_avg"].clone()
    if what == "state elsewhere":
        state["exp_avg_sq"].data = state["exp_avg_sq"].clone()
    if what == "state removed":
        del state["exp_avg"]
    if what == "step replaced":
        state["step"] = torch.tensor(7.0)
    return [], [], [1], []


CHANGES = (
    "gradient gone", "gradient transposed", "gradient of another dtype", "gradient negated lazily", "gradient a subclass",
    "parameter elsewhere", "state replaced", "state elsewhere", "state removed", "step replaced",
)  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_seen(what: str) -> None:
    optimizer, arguments = given()
    expected = changed(what, optimizer)
    assert reader.read_tensors(**arguments) == expected


def test_gradients_that_reach_into_what_a_step_writes_are_reported() -> None:
    optimizer, arguments = given()
    p, q, _ = optimizer.param_groups[0]["params"]
    q.grad = optimizer.state[q]["exp_avg"]
    p.grad = p.detach()
    assert reader.read_tensors(**arguments) == ([], [0, 1], [], [])


def test_objects_are_compared_one_by_one() -> None:
    a, b = object(), object()
    assert reader.same_items([a, b], [a, b])
    assert not reader.same_items([a, b], [b, a])
    assert not reader.same_items([a], [a, b])
    own = [{}, {}]
    assert reader.same_values({"x": own[0], "mark": 1, "y": own[1]}, own)
    assert not reader.same_values({"x": own[0], "y": {}}, own)
    assert not reader.same_values({"y": own[1], "x": own[0]}, own)
