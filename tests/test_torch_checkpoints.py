"""State dicts of openadam.torch: to torch.optim and back, from other libraries, resumed, and refused if they cannot be right.

Labels such as S5 and T13 are the case numbers of docs/faults.md.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import python
from torchfamily import (
    PLAIN,
    STATEFUL,
    Subject,
    begun,
    close,
    copies,
    each_with_state,
    equal,
    every,
    give,
    leaves,
    params_of,
    raw,
    refuses,
    same,
    states,
)

import openadam.torch
from openadam import CheckpointCorruptError, CheckpointError, CheckpointMismatchError

SHAPES = ((5,), (3, 4), (), (0,))


def running(subject: Subject, steps: int = 3, dtype: torch.dtype = torch.float32, make: Any = None, **settings: Any) -> Any:
    """An optimizer in the middle of a run."""
    return begun(make or subject.make, SHAPES, steps, dtype, **settings)


def saved(state_dict: Any) -> Any:
    """Through a file, as it is loaded where nobody is trusted."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# --- to torch and back -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_from_torch_and_to_torch(subject: Subject, dtype: torch.dtype) -> None:
    """A run that goes on in the other library takes the step that it would have taken where it was."""
    for first, second in [(subject.theirs, subject.make), (subject.make, subject.theirs)]:
        begun = running(subject, 4, dtype, first)
        moved = second(copies(params_of(begun)))
        moved.load_state_dict(saved(begun.state_dict()))
        for p, q in zip(params_of(begun), params_of(moved), strict=True):
            assert {key for key, value in begun.state.get(p, {}).items() if value is not None} == {
                key for key, value in moved.state.get(q, {}).items() if value is not None
            }
        old = [p.detach().clone() for p in params_of(begun)]
        give(params_of(begun), 9, params_of(moved))
        begun.step()
        moved.step()
        gap = 1e9 if subject.name == "NAdam" and dtype is torch.float64 else 40  # torch keeps the product in float32
        for p, q, before in zip(params_of(begun), params_of(moved), old, strict=True):
            close(q, p, str(subject), relative=4, units=gap, of=[p - before] if p.numel() else [])


@every
def test_s1_resumed_is_uninterrupted(subject: Subject) -> None:
    """At every step, and through a file: bit for bit."""
    straight = running(subject, 6)
    for k in range(6):
        begun = running(subject, k)
        resumed = subject.make(copies(params_of(begun)))
        resumed.load_state_dict(saved(begun.state_dict()))
        for later in range(k, 6):
            give(params_of(resumed), later)
            resumed.step()
        assert equal(resumed, straight), k


def test_s1_in_a_new_process(tmp_path: Path) -> None:
    script = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from torchfamily import STATEFUL, give, copies
for number, subject in enumerate(STATEFUL):
    params, state, expected = torch.load(f"{sys.argv[2]}/{number}", weights_only=True)
    params = copies(params)
    optimizer = subject.make(params)
    optimizer.load_state_dict(state)
    for k in (3, 4):
        give(params, k)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, expected, strict=True)), subject
"""
    for number, subject in enumerate(STATEFUL):
        begun = running(subject)
        before = [p.detach().clone() for p in params_of(begun)], copy.deepcopy(begun.state_dict())
        for k in (3, 4):
            give(params_of(begun), k)
            begun.step()
        torch.save((*before, [p.detach() for p in params_of(begun)]), tmp_path / str(number))
    python(script, str(Path(__file__).parent), str(tmp_path), warnings="default")


@each_with_state
def test_t13_nothing_is_shared_in_either_direction(subject: Subject) -> None:
    source = running(subject)
    state = source.state_dict()
    loaded = subject.make(copies(params_of(source)))
    loaded.load_state_dict(state)
    before = [(name, raw(value)) for name, value in states(loaded)]
    give(params_of(source), 7)
    source.step()
    for each in state["state"].values():
        for value in each.values():
            value.add_(1)
    state["param_groups"][0]["lr"] = 99.0
    assert [(name, raw(value)) for name, value in states(loaded)] == before
    assert loaded.param_groups[0]["lr"] != 99.0
    before = [(name, raw(value)) for name, value in states(source)]
    for _, value in states(loaded):
        value.add_(1)
    assert [(name, raw(value)) for name, value in states(source)] == before


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "load"])
@each_with_state
def test_s14_copies_go_their_own_way(subject: Subject, way: str) -> None:
    source = running(subject, clip_norm=2.0)
    if way == "deepcopy":
        other = copy.deepcopy(source)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(source))
    else:
        other = subject.make(copies(params_of(source)), clip_norm=2.0)
        other.load_state_dict(source.state_dict())
    assert equal(other, source)
    before = [raw(p) for p in params_of(source)], [(name, raw(value)) for name, value in states(source)]
    give(params_of(other), 5)
    other.step()
    assert ([raw(p) for p in params_of(source)], [(name, raw(value)) for name, value in states(source)]) == before
    give(params_of(source), 5)
    source.step()
    assert equal(other, source)
    assert other.last_step.grad_norm == source.last_step.grad_norm


# --- what others write -------------------------------------------------------------------------------------------------


def adam(steps: int = 3, **settings: Any) -> Any:
    return running(PLAIN[1], steps, make=openadam.torch.Adam, lr=0.01, **settings)


def goes_on_like(other: Any, source: Any) -> None:
    give(params_of(source), 5, params_of(other))
    source.step()
    other.step()
    assert equal(other, source)


def fresh(source: Any) -> Any:
    return openadam.torch.Adam(copies(params_of(source)), lr=0.01)


@pytest.mark.parametrize("kind", [int, float, lambda x: torch.tensor(int(x)), lambda x: torch.tensor([float(x)]), lambda x: x.double()], ids=range(5))
def test_steps_of_every_kind(kind: Callable[[Any], Any]) -> None:
    """Plain numbers as of old torch and of DeepSpeed, and tensors of several dtypes."""
    source = adam()
    state = copy.deepcopy(source.state_dict())
    for each in state["state"].values():
        each["step"] = kind(each["step"])
    other = fresh(source)
    other.load_state_dict(state)
    goes_on_like(other, source)


def test_the_step_of_a_group_as_apex_writes_it() -> None:
    source = adam()
    state = copy.deepcopy(source.state_dict())
    for each in state["state"].values():
        del each["step"]
    state["param_groups"][0]["step"] = 3
    other = fresh(source)
    other.load_state_dict(state)
    assert "step" not in other.param_groups[0]
    goes_on_like(other, source)


def test_the_states_of_bitsandbytes() -> None:
    source = adam()
    state = copy.deepcopy(source.state_dict())
    for key, each in state["state"].items():
        state["state"][key] = {"step": 3, "state1": each["exp_avg"], "state2": each["exp_avg_sq"]}
    other = fresh(source)
    other.load_state_dict(state)
    goes_on_like(other, source)


def test_s6_names_decide_where_both_have_them() -> None:
    """Two layers of one shape that have changed places."""
    a, b = leaves([(4,), (4,)], torch.float32)
    source = openadam.torch.Adam([("a", a), ("b", b)], lr=0.01)
    give([a, b], 0)
    source.step()
    swapped = openadam.torch.Adam([("b", b), ("a", a)], lr=0.01)
    swapped.load_state_dict(source.state_dict())
    assert swapped.param_groups[0]["param_names"] == ["b", "a"]
    for p in (a, b):
        assert same(swapped.state[p]["exp_avg"], source.state[p]["exp_avg"])
    nameless = openadam.torch.Adam([b, a], lr=0.01)
    nameless.load_state_dict(source.state_dict())
    assert same(nameless.state[b]["exp_avg"], source.state[a]["exp_avg"])
    strangers = openadam.torch.Adam([("b", b), ("c", a)], lr=0.01)
    refuses(strangers, lambda: strangers.load_state_dict(source.state_dict()), CheckpointMismatchError, "'a'", "'c'")


def test_s3_dtypes_stay_what_they_were() -> None:
    """No state is narrowed to the dtype of its parameter, as torch does it."""
    narrow = running(PLAIN[1], dtype=torch.bfloat16, make=openadam.torch.AdamW)
    other = openadam.torch.AdamW(copies(params_of(narrow)))
    other.load_state_dict(saved(narrow.state_dict()))
    assert {value.dtype for _, value in states(other)} == {torch.float32}
    goes_on_like(other, narrow)
    wide = running(PLAIN[1], dtype=torch.float64, make=openadam.torch.AdamW)
    loaded = openadam.torch.AdamW(leaves(SHAPES, torch.float32))
    loaded.load_state_dict(wide.state_dict())
    assert all(value.dtype is torch.float64 for name, value in states(loaded) if "exp" in name)
    give(params_of(loaded), 1)
    before = [raw(p) for p in params_of(loaded)]
    loaded.step()
    assert all(value.dtype is torch.float64 for name, value in states(loaded) if "exp" in name)
    assert [raw(p) for p in params_of(loaded)] != before


@each_with_state
def test_s7_older_and_newer_groups(subject: Subject) -> None:
    """Keys that came later get their defaults; those that nobody knows yet are kept."""
    source = running(subject)
    state = copy.deepcopy(source.state_dict())
    for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        state["param_groups"][0].pop(key, None)
    state["param_groups"][0]["of_the_future"] = {"x": 1}
    state["param_groups"][0]["initial_lr"] = 0.5
    other = subject.make(copies(params_of(source)))
    other.load_state_dict(state)
    assert other.param_groups[0]["of_the_future"] == {"x": 1}
    assert other.param_groups[0]["initial_lr"] == 0.5
    assert other.param_groups[0]["maximize"] is subject.settings.get("maximize", False)
    goes_on_like(other, source)


def test_what_hooks_put_into_the_state() -> None:
    source = adam()
    source.state["seen"] = 12
    source.state[params_of(source)[0]]["mine"] = "kept"
    other = fresh(source)
    other.load_state_dict(saved(source.state_dict()))
    assert other.state["seen"] == 12
    assert other.state[params_of(other)[0]]["mine"] == "kept"
    give(params_of(other), 3)
    other.step()
    assert other.state["seen"] == 12


def test_amsgrad_is_loaded_with_its_maximum_and_not_without() -> None:
    with_maximum = adam(amsgrad=True)
    other = fresh(with_maximum)
    other.load_state_dict(with_maximum.state_dict())
    assert other.param_groups[0]["amsgrad"] is True
    goes_on_like(other, with_maximum)
    lacking = copy.deepcopy(with_maximum.state_dict())
    del lacking["state"][1]["max_exp_avg_sq"]
    refuses(other, lambda: other.load_state_dict(lacking), CheckpointMismatchError, "max_exp_avg_sq")


def test_layouts_of_states_follow_the_parameter() -> None:
    """A state that was saved in another order of elements still belongs to the same elements."""
    p = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    source = openadam.torch.Adam([p], lr=0.01)
    give([p], 0)
    source.step()
    plain = openadam.torch.Adam([p.detach().contiguous().requires_grad_()], lr=0.01)
    plain.load_state_dict(source.state_dict())
    goes_on_like(plain, source)
    back = openadam.torch.Adam(copies(params_of(source)), lr=0.01)
    back.load_state_dict(plain.state_dict())
    goes_on_like(back, source)


# --- counters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2**24 - 1, 2**24, 2**24 + 1, 2**31, 2**53 - 4])
def test_t7_counters_beyond_float32(count: int) -> None:
    """N9: each step counts by one, and what is saved is resumed at the same number."""
    (p,) = leaves([(3,)], torch.float32)
    optimizer = openadam.torch.Adam([p], lr=0.01, betas=(0.9, 1 - 1e-9))
    give([p], 0)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["step"] = count
    optimizer.load_state_dict(state)
    for k in range(1, 3):
        optimizer.step()
        assert int(optimizer.state[p]["step"]) == count + k
        other = openadam.torch.Adam(copies([p]), lr=0.01, betas=(0.9, 1 - 1e-9))
        other.load_state_dict(saved(optimizer.state_dict()))
        assert int(other.state[params_of(other)[0]]["step"]) == count + k
    give([p], 1, params_of(other))
    optimizer.step()
    other.step()
    assert equal(optimizer, other)


def test_n9_the_last_step_is_an_error_by_name() -> None:
    (p,) = leaves([(3,)], torch.float32)
    optimizer = openadam.torch.Adam([p], lr=0.01)
    give([p], 0)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["step"] = 2**53 - 1
    optimizer.load_state_dict(state)
    refuses(optimizer, optimizer.step, openadam.HyperparameterError, "steps")


# --- refused -----------------------------------------------------------------------------------------------------------


def _each(key: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def damage(state: Any) -> None:
        state["state"][1][key] = change(state["state"][1][key])

    return damage


def _with_first(value: float) -> Callable[[Any], Any]:
    def change(tensor: Any) -> Any:
        tensor.reshape(-1)[0] = value
        return tensor

    return change


def _group(**values: Any) -> Callable[[Any], None]:
    return lambda state: state["param_groups"][0].update(values)


DAMAGES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "step NaN": (_each("step", lambda x: math.nan), CheckpointCorruptError, "step"),
    "step inf": (_each("step", lambda x: torch.tensor(math.inf)), CheckpointCorruptError, "step"),
    "step negative": (_each("step", lambda x: -1), CheckpointCorruptError, "step"),
    "step fraction": (_each("step", lambda x: 3.5), CheckpointCorruptError, "step"),
    "step too large": (_each("step", lambda x: 2**60), CheckpointCorruptError, "step"),
    "step true": (_each("step", lambda x: True), CheckpointCorruptError, "step"),
    "step text": (_each("step", lambda x: "3"), CheckpointCorruptError, "step"),
    "step two": (_each("step", lambda x: torch.ones(2)), CheckpointCorruptError, "step"),
    "v negative": (_each("exp_avg_sq", _with_first(-1e-30)), CheckpointCorruptError, "exp_avg_sq"),
    "v NaN": (_each("exp_avg_sq", _with_first(math.nan)), CheckpointCorruptError, "exp_avg_sq"),
    "m inf": (_each("exp_avg", _with_first(math.inf)), CheckpointCorruptError, "exp_avg"),
    "m NaN": (_each("exp_avg", _with_first(math.nan)), CheckpointCorruptError, "exp_avg"),
    "m missing": (lambda state: state["state"][1].pop("exp_avg"), CheckpointMismatchError, "exp_avg"),
    "step missing": (lambda state: state["state"][1].pop("step"), CheckpointMismatchError, "step"),
    "m smaller": (_each("exp_avg", lambda x: x[:1]), CheckpointMismatchError, "shape"),
    "m transposed": (_each("exp_avg", lambda x: x.T), CheckpointMismatchError, "shape"),
    "m flat": (_each("exp_avg", lambda x: x.reshape(-1)), CheckpointMismatchError, "shape"),
    "m scalar": (_each("exp_avg", lambda x: x.sum()), CheckpointMismatchError, "shape"),
    "m list": (_each("exp_avg", lambda x: x.tolist()), CheckpointMismatchError, "list"),
    "m complex": (_each("exp_avg", lambda x: x.to(torch.complex64)), CheckpointMismatchError, "complex64"),
    "m integer": (_each("exp_avg", lambda x: x.long()), CheckpointMismatchError, "int64"),
    "m sparse": (_each("exp_avg", lambda x: x.to_sparse()), CheckpointMismatchError, "sparse"),
    "state of one a list": (lambda state: state["state"].update({1: [1, 2]}), CheckpointCorruptError, "list"),
    "state of a stranger": (lambda state: state["state"].update({77: state["state"][0]}), CheckpointMismatchError, "77"),
    "state missing": (lambda state: state.pop("state"), CheckpointMismatchError, "state"),
    "groups missing": (lambda state: state.pop("param_groups"), CheckpointMismatchError, "param_groups"),
    "group too many": (lambda state: state["param_groups"].append(copy.deepcopy(state["param_groups"][0])), CheckpointMismatchError, "group"),
    "parameter too many": (lambda state: state["param_groups"][0]["params"].append(9), CheckpointMismatchError, "size"),
    "group a list": (lambda state: state["param_groups"].__setitem__(0, [1]), CheckpointMismatchError, "group 0"),
    "betas": (_group(betas=(2, 2)), CheckpointCorruptError, "beta"),
    "betas one": (_group(betas=(0.9,)), CheckpointCorruptError, "betas"),
    "lr text": (_group(lr="x"), CheckpointCorruptError, "lr"),
    "lr NaN": (_group(lr=math.nan), CheckpointCorruptError, "lr"),
    "lr negative": (_group(lr=-1.0), CheckpointCorruptError, "lr"),
    "eps inf": (_group(eps=math.inf), CheckpointCorruptError, "eps"),
    "maximize": (_group(maximize="yes"), CheckpointCorruptError, "maximize"),
    "weight_decay None": (_group(weight_decay=None), CheckpointCorruptError, "weight_decay"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_t4_t14_s5_what_cannot_be_right_is_refused(name: str) -> None:
    """What torch loads, and then crashes over or computes NaN with."""
    damage, error, text = DAMAGES[name]
    optimizer = adam()
    state = copy.deepcopy(optimizer.state_dict())
    damage(state)
    refused = refuses(optimizer, lambda: optimizer.load_state_dict(state), error, text)
    assert isinstance(refused, CheckpointError)
    assert isinstance(refused, ValueError)
    new = fresh(optimizer)
    refuses(new, lambda: new.load_state_dict(state), error, text)
    assert not new.state
    goes_on_like(copy.deepcopy(optimizer), optimizer)


@pytest.mark.parametrize(
    "given", [None, 3, [], "state", {}, {"state": {}}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": 3}], ids=repr
)
def test_what_is_no_state_dict(given: Any) -> None:
    optimizer = adam()
    refuses(optimizer, lambda: optimizer.load_state_dict(given), CheckpointMismatchError)


@each_with_state
def test_the_states_of_another_class(subject: Subject) -> None:
    """Something is missing, or there is what this class never has."""
    own = running(subject)
    for other in STATEFUL:
        given = running(other)
        theirs, mine = ({key for each in o.state.values() for key in each} for o in (given, own))
        missing = mine - theirs and subject.name != "SGD"  # torch's SGD has no state before its first gradient, so that none can be missing
        if missing or (theirs - mine and given.member is not own.member):
            refuses(own, lambda state=given.state_dict(): own.load_state_dict(state), CheckpointError)


def test_a_moment_that_is_not_finite_under_propagate() -> None:
    """Who lets NaN through must be able to resume."""
    source = adam(nonfinite="propagate")
    params_of(source)[0].grad = torch.full((5,), math.nan)
    source.step()
    other = openadam.torch.Adam(copies(params_of(source)), lr=0.01, nonfinite="propagate")
    other.load_state_dict(saved(source.state_dict()))
    goes_on_like(other, source)


# --- torch.distributed.checkpoint --------------------------------------------------------------------------------------


@each_with_state
@pytest.mark.parametrize("flat", [False, True])
def test_s11_t18_states_before_the_first_step(subject: Subject, flat: bool) -> None:
    """torch takes a step at lr = 0 over zero gradients to have states; that one must not count."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

    torch.manual_seed(0)
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    a, b = subject.make(model.parameters(), weight_decay=0.1), subject.make(twin.parameters(), weight_decay=0.1)
    before = [raw(p) for p in model.parameters()]
    got = get_optimizer_state_dict(model, a, options=options)
    assert [raw(p) for p in model.parameters()] == before
    for name, value in states(a):
        if name.endswith("mu_product"):
            assert float(value) == 1
        elif not name.endswith("sum"):
            assert not value.any(), name
    for k in range(3):
        give(list(model.parameters()), k, list(twin.parameters()))
        a.step()
        b.step()
    assert equal(a, b)
    assert got is not None
    after = get_optimizer_state_dict(model, a, options=options)
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    c = subject.make(other.parameters(), weight_decay=0.1)
    set_optimizer_state_dict(other, c, after, options=options)
    give(list(model.parameters()), 8, list(other.parameters()))
    a.step()
    c.step()
    assert equal(a, c)
