"""The native reader of torch's tensors: what it is given is checked, and what it reports is true."""

from typing import Any

import numpy as np
import pytest
import torch

import openadam.torch
from openadam import engine
from openadam.torch.memory import FRAMEWORK

native = engine.native()
if native is None or FRAMEWORK is None:  # pragma: no cover - a build without a compiler
    pytest.skip("there is no native code here", allow_module_level=True)
CAPSULE: Any = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
TYPES = [torch.Tensor, torch.nn.Parameter]


def given(count: int = 3) -> tuple[openadam.torch.AdamW, Any]:
    """An optimizer that has taken a step, and its table."""
    params = [torch.full((k + 1, 2), 1.0, requires_grad=True) for k in range(count)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = openadam.torch.AdamW(params)
    optimizer.step()
    assert optimizer._stepper is not None
    return optimizer, optimizer._stepper.table


def read(optimizer: openadam.torch.AdamW, table: Any, framework: Any = FRAMEWORK) -> Any:
    return native.read_tensors(framework, table, optimizer.param_groups, optimizer.state, 1)


def test_only_what_speaks_to_it_is_read() -> None:
    with pytest.raises(ValueError, match="PyCapsule"):
        native.Framework(object(), TYPES, [])
    with pytest.raises(ValueError, match="anatomy"):
        native.Framework(CAPSULE, TYPES, [1])


def test_a_plain_step_needs_no_closer_look() -> None:
    optimizer, table = given()
    assert read(optimizer, table) == []
    assert (len(table), table.active_count) == (3, 3)
    assert [table.t(i) for i in range(3)] == [2.0] * 3
    assert table.settle() == (False, [])


def test_other_parameters_are_another_table() -> None:
    optimizer, table = given()
    params = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["params"] = params[::-1]
    assert read(optimizer, table) is None
    optimizer.param_groups[0]["params"] = params[:2]
    assert read(optimizer, table) is None
    optimizer.param_groups[0]["params"] = [*params, torch.zeros(1)]
    assert read(optimizer, table) is None
    optimizer.param_groups[0]["params"] = [params[0], torch.nn.Parameter(params[1].detach()), params[2]]
    assert read(optimizer, table) is None


def test_a_parameter_that_has_moved_to_another_group_is_in_another_row() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(2)
    optimizer = openadam.torch.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 1.0}], lr=0.1)
    optimizer.step()
    optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = [], params
    optimizer.step()
    assert [p.tolist() for p in params] == [pytest.approx([-0.1] * 2), pytest.approx([-1.0] * 2)]


def changed(what: str, optimizer: openadam.torch.AdamW) -> None:
    """Change one thing of the second parameter."""
    p = optimizer.param_groups[0]["params"][1]
    state = optimizer.state[p]
    match what:
        case "gradient gone":
            p.grad = None
        case "gradient transposed":
            p.grad = torch.ones(2, 2).t()
        case "gradient of another dtype":
            p.grad = None
            p.grad_dtype = torch.float64
            p.grad = torch.ones(2, 2, dtype=torch.float64)
        case "gradient negated lazily":
            p.grad = torch._neg_view(p.grad)  # dense, and in the same place: nothing else tells it from a plain one
        case "gradient a subclass":
            p.grad = torch.ones(2, 2).as_subclass(type("Own", (torch.Tensor,), {}))
        case "parameter elsewhere":
            p.data = p.data.clone()
        case "parameter of another shape":
            p.data = torch.ones(3, 2)
        case "parameter negated lazily":
            p.data = torch._neg_view(p.data)
        case "state replaced":
            state["exp_avg"] = state["exp_avg"].clone()
        case "state elsewhere":
            state["exp_avg_sq"].data = state["exp_avg_sq"].clone()
        case "state removed":
            del state["exp_avg"]
        case "state of another dtype":
            state["exp_avg"] = state["exp_avg"].double()
        case "state transposed":
            state["exp_avg"] = state["exp_avg"].t().contiguous().t()
        case "step replaced":
            state["step"] = torch.tensor(7.0)
        case "step in float64":
            state["step"] = torch.tensor(2.0**40, dtype=torch.float64)
        case "step whole":
            state["step"] = torch.tensor(2)
        case "step with an axis":
            state["step"] = torch.tensor([3.0])
        case "step of 32 bits":
            state["step"] = torch.tensor(2, dtype=torch.int32)
        case "step halved":
            state["step"] = torch.tensor(2.5)
        case "step below zero":
            state["step"] = torch.tensor(-1.0)
        case "step not a number":
            state["step"] = torch.tensor(float("nan"))
        case "step a float":
            state["step"] = 2.0
        case "step at the end of float32":
            state["step"] = torch.tensor(2.0**24)
        case "step at the end of float64":
            state["step"] = torch.tensor(2.0**53 - 1, dtype=torch.float64)
        case "state a list":
            optimizer.state[p] = list(state.items())  # type: ignore[assignment]
        case "state gone":
            del optimizer.state[p]


PLAIN = {
    "gradient transposed": 2, "parameter elsewhere": 2, "state replaced": 2, "state elsewhere": 2,
    "step replaced": 8, "step in float64": 2**40 + 1, "step whole": 3, "step with an axis": 4,
}  # fmt: skip
CLOSER = (
    "gradient of another dtype", "gradient negated lazily", "gradient a subclass", "parameter of another shape", "parameter negated lazily",
    "state removed", "state of another dtype", "state transposed", "step of 32 bits", "step halved", "step below zero", "step not a number",
    "step a float", "step at the end of float32", "step at the end of float64", "state a list", "state gone",
)  # fmt: skip


@pytest.mark.parametrize("anatomy", ["found", "asked"])
@pytest.mark.parametrize("what", CLOSER)
def test_what_is_not_plain_is_left_to_a_closer_look(what: str, anatomy: str) -> None:
    optimizer, table = given()
    changed(what, optimizer)
    framework = FRAMEWORK if anatomy == "found" else native.Framework(CAPSULE, TYPES, [])
    assert read(optimizer, table, framework) == [1]
    assert [table.is_active(i) for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("what", PLAIN)
def test_what_is_plain_is_read_as_it_is_now(what: str) -> None:
    optimizer, table = given()
    changed(what, optimizer)
    assert read(optimizer, table) == []
    assert [table.t(i) for i in range(3)] == [2, PLAIN[what], 2]
    p, state = optimizer.param_groups[0]["params"][1], optimizer.state[optimizer.param_groups[0]["params"][1]]
    expected = [p, p.grad, state["exp_avg"], state["exp_avg_sq"]]
    assert [address for row, _, address, *_ in table.pieces() if row == 1] == [tensor.data_ptr() for tensor in expected]


def test_a_row_without_gradient_takes_no_part() -> None:
    optimizer, table = given()
    changed("gradient gone", optimizer)
    assert read(optimizer, table) == []
    assert [table.is_active(i) for i in range(3)] == [True, False, True]


def test_gradients_that_reach_into_what_a_step_writes_are_reported() -> None:
    optimizer, table = given()
    p, q, _ = optimizer.param_groups[0]["params"]
    q.grad = optimizer.state[q]["exp_avg"]
    p.grad = p.detach()
    assert read(optimizer, table) == []
    assert table.settle() == (False, [0, 1])
    assert table.settle() == (False, [0, 1]), "what was suspected must not be trusted the next time"


def test_what_was_written_before_and_is_not_now_does_not_count() -> None:
    """Memory that a parameter has given back may be a gradient's now."""
    optimizer, table = given()
    p, q, _ = optimizer.param_groups[0]["params"]
    old = p.data
    p.data, p.grad = torch.zeros(1, 2), None
    q.grad = None
    q.data = torch.zeros(1, 2)
    optimizer.state[q] = {key: value[:1].clone() if value.dim() else value for key, value in optimizer.state[q].items()}
    q.grad = old
    assert read(optimizer, table) == []
    assert table.settle() == (False, [])


def test_parameters_that_overlap_are_doubted_until_they_are_trusted() -> None:
    buffer = torch.zeros(4, 2)
    params = [buffer[:, k].requires_grad_() for k in range(2)]
    for p in params:
        p.grad = torch.ones(4)
    optimizer = openadam.torch.SGD(params)
    optimizer.step()  # looked at exactly, and found to interleave
    table = optimizer._stepper.table  # type: ignore[union-attr]
    assert read(optimizer, table) == []
    assert table.settle() == (False, [])
    for p in params:
        p.grad = torch.ones(4)
    params[0].data = torch.zeros(5, 2)[:4, 0]
    params[1].data = torch.zeros(5, 2)[:4, 1]
    assert read(optimizer, table) == []
    assert table.settle()[0] is False
    shared = torch.zeros(5)
    params[0].data, params[1].data = shared[:4], shared[1:]
    assert read(optimizer, table) == []
    assert table.settle()[0] is True
    assert table.settle()[0] is True


def test_tensors_live_no_longer_than_the_step() -> None:
    optimizer, table = given()
    import weakref

    gradient = weakref.ref(optimizer.param_groups[0]["params"][0].grad)
    read(optimizer, table)
    optimizer.zero_grad()
    assert gradient() is not None, "a step under way holds what it reads"
    table.forget()
    assert gradient() is None


def test_rows_are_placed_by_what_fits() -> None:
    optimizer, table = given()
    read(optimizer, table)
    p, state = optimizer.param_groups[0]["params"][0], optimizer.state[optimizer.param_groups[0]["params"][0]]
    states = [state["exp_avg"], state["exp_avg_sq"]]
    place = native.place_tensors
    assert place(FRAMEWORK, table, 0, p, p.grad, states, state["step"], 1, [])
    assert not place(FRAMEWORK, table, 0, p, p.grad, states[:1], state["step"], 1, [])
    assert not place(FRAMEWORK, table, 0, p, torch.ones(2, 1), states, state["step"], 1, [])
    assert not place(FRAMEWORK, table, 0, p, p.grad, states, torch.ones(2), 1, [])
    assert not place(FRAMEWORK, table, 0, p, p.grad, states, state["step"], 1, [torch.ones(())])
    with pytest.raises(ValueError, match="no such row"):
        place(FRAMEWORK, table, 3, p, p.grad, states, state["step"], 1, [])
    assert np.isfinite(table.measure(1)).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_rows_are_read_on_any_number_of_threads(threads: int) -> None:
    """Such among them as need asking, a closer look, or no step at all; new at every step."""

    def parameters() -> list[torch.Tensor]:
        found = []
        for k in range(2_000):
            p = torch.full((4, 3), float(k)).requires_grad_()
            if k % 97 == 1:
                p = torch.full((3, 4), float(k)).t().requires_grad_()  # dense in another order than its gradient
            if k % 89 == 2:
                p = p.detach().to(torch.bfloat16).requires_grad_()
            p.grad = None if k % 83 == 3 else torch.full(p.shape, 1.0 + k % 5, dtype=p.dtype)
            found.append(p)
        return found

    own, peers = parameters(), parameters()
    ours, theirs = openadam.torch.AdamW(own, threads=threads), torch.optim.AdamW(peers, foreach=False)
    for step in range(4):
        versions = [p._version for p in own]
        ours.step()
        theirs.step()
        assert [p._version - before for p, before in zip(own, versions, strict=True)] == [int(p.grad is not None) for p in own]
        for k in range(step, len(own), 61):
            for optimizer, params in ((ours, own), (theirs, peers)):
                params[k].data = params[k].detach().clone()
                if params[k].grad is not None:
                    optimizer.state[params[k]]["exp_avg"] = optimizer.state[params[k]]["exp_avg"].clone()
    for p, q in zip(own, peers, strict=True):
        torch.testing.assert_close(p, q)
    assert {float(ours.state[p]["step"]) for p in own if p.grad is not None} == {4.0}
