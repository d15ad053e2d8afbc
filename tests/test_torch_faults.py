"""What goes wrong in a training loop, and what openadam.torch does then: it refuses by name and leaves everything as it was.

Labels such as T5 and A1 are the case numbers of docs/faults.md.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchfamily
from support import python
from torch import Tensor
from torchfamily import (
    CLASSES,
    PLAIN,
    STATEFUL,
    Subject,
    copies,
    each_class,
    each_with_state,
    equal,
    fingerprint,
    give,
    leaves,
    params_of,
    raw,
    refuses,
    same,
    states,
)

import openadam.torch
from openadam import AliasError, GradientError, HyperparameterError, NonFiniteGradientError, NonFiniteStateError, ParameterError, SparseGradientError
from openadam.torch import Adam, AdamW

SHAPES = ((5,), (3, 4), (), (0,), (17,))
ENGINES = (None, "graph")
ADAM = PLAIN[CLASSES.index("Adam")]
each_engine = pytest.mark.parametrize("engine", ENGINES)


def begun(subject: Subject, steps: int = 2, shapes: Any = SHAPES, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    return torchfamily.begun(subject.make, shapes, steps, dtype, **settings)


# --- gradients that are not finite, or too large -----------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@each_with_state
def test_a1_the_last_of_fifty_gradients(subject: Subject, value: float, steps: int, engine: str | None) -> None:
    """Nothing moves, and on a first step no state appears."""
    params = leaves([(2, 3)] * 50, torch.float32)
    optimizer = subject.make([(f"layer{k}", p) for k, p in enumerate(params)], engine=engine)
    for k in range(steps):
        give(params, k)
        optimizer.step()
    give(params, 9)
    assert params[49].grad is not None
    params[49].grad[1, 0] = params[49].grad[1, 2] = value
    had = [name for name, _ in states(optimizer)]
    error = refuses(optimizer, optimizer.step, NonFiniteGradientError, "'layer49'", "flat index 3", str(value), f"step {steps + 1}")
    assert isinstance(error, NonFiniteGradientError)
    assert (error.parameter, error.index, error.count, error.step) == ("layer49", 3, 2, steps + 1)
    assert [name for name, _ in states(optimizer)] == had
    give(params, 9)
    optimizer.step()
    calm = copies(leaves([(2, 3)] * 50, torch.float32))
    other = subject.make([(f"layer{k}", p) for k, p in enumerate(calm)], engine=engine)
    for k in [*range(steps), 9]:
        give(calm, k)
        other.step()
    assert equal(optimizer, other)


@each_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_a1_in_every_dtype(dtype: torch.dtype, engine: str | None) -> None:
    optimizer = begun(ADAM, dtype=dtype, engine=engine)
    for k, p in enumerate(params_of(optimizer)):
        if p.numel():
            give(params_of(optimizer), 4)
            p.grad.view(-1)[-1] = math.nan  # type: ignore[union-attr]
            refuses(optimizer, optimizer.step, NonFiniteGradientError, f"'{k}'")


@each_engine
@each_with_state
def test_a4_skip(subject: Subject, engine: str | None) -> None:
    optimizer = begun(subject, nonfinite="skip", engine=engine)
    calm = begun(subject, nonfinite="skip", engine=engine)
    give(params_of(optimizer), 5)
    params_of(optimizer)[1].grad[0, 0] = math.inf  # type: ignore[index]
    before = fingerprint(optimizer)
    for _ in range(2):
        optimizer.step()
        assert optimizer.last_step.skipped
        assert optimizer.last_step.step == 2
        assert fingerprint(optimizer) == before
    for each in (optimizer, calm):
        give(params_of(each), 6)
        each.step()
        assert not each.last_step.skipped
        assert each.last_step.step == 3
    assert equal(optimizer, calm)


@each_engine
@each_with_state
def test_a5_propagate_as_torch(subject: Subject, engine: str | None) -> None:
    mine, theirs = leaves([(41,)], torch.float64), leaves([(41,)], torch.float64)
    a, b = subject.make(mine, nonfinite="propagate", engine=engine), subject.theirs(theirs)
    for k in range(3):
        give(mine, k, theirs)
        for each in (*mine, *theirs):
            each.grad[k::7] = [math.nan, math.inf, -math.inf][k]  # type: ignore[index]
        a.step()
        b.step()
        assert torch.equal(mine[0].isfinite(), theirs[0].isfinite())
        if subject.name != "RAdam":  # an average of infinity and a number is infinity; torch's lerp makes NaN of it
            assert torch.equal(mine[0].isnan(), theirs[0].isnan())
    assert 0 < int(mine[0].isnan().sum()) < 41


@each_engine
@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad"])
def test_n5_gradients_that_a_state_cannot_hold(name: str, engine: str | None) -> None:
    """Finite, but the square is not: torch then freezes the parameter for ever."""
    subject = PLAIN[CLASSES.index(name)]
    optimizer = begun(subject, engine=engine)
    give(params_of(optimizer), 3)
    params_of(optimizer)[1].grad[2, 3] = 1e25  # type: ignore[index]
    refuses(optimizer, optimizer.step, NonFiniteStateError, "'1'", "1e+25", "element 11")
    clipped = begun(subject, clip_norm=1.0, engine=engine)
    give(params_of(clipped), 3)
    params_of(clipped)[1].grad[2, 3] = 1e25  # type: ignore[index]
    clipped.step()
    assert all(torch.isfinite(p).all() for p in params_of(clipped))


# --- gradients that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [subject for subject in PLAIN if subject.name not in ("SGD", "Adagrad")], ids=str)  # these two take them
def test_t5_sparse_gradients(subject: Subject) -> None:
    """Torch's words, where torch has them; nothing of the first group is touched for one in the second."""
    p, q = leaves([(4, 3), (4, 3)], torch.float32)
    optimizer = subject.make([{"params": [p]}, {"params": [q]}])
    give([p, q], 0)
    optimizer.step()
    assert q.grad is not None
    for sparse in (q.grad.to_sparse(), torch.zeros(4, 3).to_sparse()):
        q.grad = sparse
        words = "consider SparseAdam" if subject.name in ("Adam", "AdamW") else "does not support sparse gradients"
        refuses(optimizer, optimizer.step, SparseGradientError, words, "'1'")
        assert isinstance(refuses(optimizer, optimizer.step, RuntimeError, "sparse"), GradientError)


def test_t5_an_embedding() -> None:
    layer = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = Adam(layer.parameters())
    layer(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(SparseGradientError, match="'0'"):
        optimizer.step()
    assert not optimizer.state


@each_engine
def test_a16_gradients_that_share_memory(engine: str | None) -> None:
    optimizer = begun(ADAM, engine=engine)
    p, q = params_of(optimizer)[:2]
    for alias in (p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]):
        give(params_of(optimizer), 3)
        p.grad = alias
        refuses(optimizer, optimizer.step, AliasError, "'0'")
    give(params_of(optimizer), 3)
    p.grad = q.detach().reshape(-1)[3:8]
    refuses(optimizer, optimizer.step, AliasError, "'0'", "'1'")
    fresh = Adam([x := torch.ones(4).requires_grad_()], engine=engine)
    x.grad = x.detach()
    refuses(fresh, fresh.step, AliasError)
    assert not fresh.state


@each_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a14_parameters_that_share_memory(dtype: torch.dtype, engine: str | None) -> None:
    """Two that overlap, and one that overlaps itself, are refused before anything moves; two that interleave are not."""
    store = torch.zeros(8, dtype=dtype)
    p, q, whole = (view.detach().requires_grad_() for view in (store[:5], store[4:], torch.ones(1, dtype=dtype).expand(4)))
    free = torch.ones(3, dtype=dtype, requires_grad=True)
    for tensors in ([free, p, q], [free, whole]):
        for x in tensors:
            x.grad = torch.ones_like(x)
        optimizer = openadam.torch.SGD(tensors, lr=1.0, engine=engine)
        refuses(optimizer, optimizer.step, (AliasError, ParameterError))
    even, odd = (view.detach().requires_grad_() for view in (store[::2], store[1::2]))
    even.grad, odd.grad = torch.ones_like(even), torch.ones_like(odd)
    openadam.torch.SGD([even, odd], lr=1.0, engine=engine).step()
    assert (store == -1).all()


@each_class
def test_gradients_are_never_modified(subject: Subject) -> None:
    settings: dict[str, Any] = {"weight_decay": 0.1, "maximize": True, "clip_norm": 0.01}
    for engine in ENGINES:
        optimizer = begun(subject, engine=engine, **settings)
        give(params_of(optimizer), 3)
        given = [p.grad for p in params_of(optimizer)]
        before = [(raw(g), g._version) for g in given if g is not None]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params_of(optimizer), given, strict=True))
        assert [(raw(g), g._version) for g in given if g is not None] == before


# --- the step ----------------------------------------------------------------------------------------------------------


@each_class
def test_closures(subject: Subject) -> None:
    (p,) = leaves([(3,)], torch.float32)
    optimizer = subject.make([p])
    called: list[bool] = []
    result = object()

    def closure() -> Any:
        called.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        (p**2).sum().backward()
        return result

    with torch.no_grad():
        assert optimizer.step(closure) is result
        assert optimizer.step(closure=closure) is result
        assert not torch.is_grad_enabled()
    assert called == [True, True]
    assert optimizer.last_step.step == 2
    assert optimizer.step() is None


@each_engine
@each_with_state
def test_a6_without_gradients(subject: Subject, engine: str | None) -> None:
    """None of some: these and their counters stay; frozen and thawed as gradients come and go."""
    mine, theirs = leaves(SHAPES, torch.float64), leaves(SHAPES, torch.float64)
    a, b = subject.make(mine, engine=engine), subject.theirs(theirs)
    for k in range(8):
        give(mine, k, theirs)
        for each in (mine, theirs):
            each[k % 3].grad = None
            each[4].requires_grad_(k % 4 != 1)
            if k % 4 == 1:
                each[4].grad = None
        a.step()
        b.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)
        if subject.name != "SGD":
            assert float(a.state[p]["step"]) == float(b.state[q]["step"])
    a.zero_grad()
    assert all(p.grad is None for p in mine)
    before = fingerprint(a)
    a.step()
    assert fingerprint(a) == before


def test_a17_tied_and_duplicate_parameters() -> None:
    """Torch warns and moves them twice; here they move once."""
    (p,) = leaves([(3,)], torch.float32)
    (q,) = leaves([(3,)], torch.float32)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twice = AdamW([p, p], lr=0.1)
    once = AdamW([q], lr=0.1)
    for k in range(3):
        give([p], k, [q])
        twice.step()
        once.step()
        assert same(p.detach(), q.detach())
        assert float(twice.state[p]["step"]) == k + 1
    tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    optimizer = AdamW(tied.parameters(), lr=0.1)
    tied(torch.ones(3)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 3


@each_class
def test_settings_edited_in_place(subject: Subject) -> None:
    """Whatever a loop writes into the groups counts from the next step on, or is refused there; T15."""
    mine, theirs = leaves(SHAPES, torch.float64), leaves(SHAPES, torch.float64)
    a, b = subject.make(mine), subject.theirs(theirs)
    edits: list[dict[str, Any]] = [{}, {"lr": 0.5}, {"lr": 0.0}, {"weight_decay": 0.2}, {"maximize": True}, {"lr": 0.01, "maximize": False}]
    if "betas" in a.defaults:
        edits += [{"betas": (0.5, 0.6)}, {"betas": [0.8, 0.9]}, {"eps": 1e-2}]
    if subject.name == "SGD":
        edits += [{"momentum": 0.5}, {"nesterov": True}]
    for k, edit in enumerate(edits):
        for optimizer in (a, b):
            optimizer.param_groups[0].update(edit)
        give(mine, k, theirs)
        a.step()
        b.step()
        for p, q in zip(mine, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-8)
    for name, value in [
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", "x"),
        ("lr", None),
        ("weight_decay", math.inf),
        ("lr", torch.ones(2)),
        ("maximize", "yes"),
    ]:
        old = a.param_groups[0][name]
        a.param_groups[0][name] = value
        refuses(a, a.step, HyperparameterError, name)
        a.param_groups[0][name] = old
    del a.param_groups[0]["lr"]
    with pytest.raises(HyperparameterError, match="lr"):
        a.step()


@each_with_state
def test_s12_groups_that_come_later(subject: Subject) -> None:
    """New parameters begin at their first step, whatever the others have taken."""
    optimizer = begun(subject, 5)
    (late,) = leaves([(6,)], torch.float32, 7)
    optimizer.add_param_group({"params": [late]})
    (alone,) = copies([late])
    other = subject.make([alone])
    for k in range(3):
        give([*params_of(optimizer)[:-1]], k)
        give([late], k, [alone])
        optimizer.step()
        other.step()
    assert same(late.detach(), alone.detach())
    assert same(optimizer.state[late], other.state[alone])
    count = len(optimizer.param_groups)
    for wrong in ({"params": [late]}, {"params": leaves([(2,)], torch.float32), "lr": -1.0}, {"params": leaves([(2,)], torch.float32), "lr": "x"}):
        refuses(optimizer, lambda wrong=wrong: optimizer.add_param_group(wrong), ValueError)
        assert len(optimizer.param_groups) == count


def test_s12_amsgrad_switched_on_later() -> None:
    """Torch: KeyError. Here the maximum begins where the second moment is."""
    optimizer = begun(ADAM, 3)
    optimizer.param_groups[0]["amsgrad"] = True
    give(params_of(optimizer), 4)
    optimizer.step()
    for p in params_of(optimizer):
        assert torch.equal(optimizer.state[p]["max_exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])
    optimizer.param_groups[0]["amsgrad"] = False
    optimizer.step()
    assert all(float(optimizer.state[p]["step"]) == 5 for p in params_of(optimizer))


@each_with_state
def test_s13_data_replaced(subject: Subject) -> None:
    """Memory of the same shape is taken over, as `p.data = …` means it."""
    optimizer, calm = begun(subject), begun(subject)
    for k in (3, 4):
        for p in params_of(optimizer):
            p.data = p.data.clone()
        give(params_of(optimizer), k, params_of(calm))
        optimizer.step()
        calm.step()
        assert equal(optimizer, calm)


@each_engine
@each_with_state
def test_s13_a_model_converted_after_its_steps(subject: Subject, engine: str | None) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = subject.make(model.named_parameters(), engine=engine)
    give(list(model.parameters()), 0)
    optimizer.step()
    model.double()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    refuses(optimizer, optimizer.step, ParameterError, "'weight'", "float32", "float64")
    model.float()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    model.weight.data = torch.zeros(4, 3)
    model.weight.grad = torch.zeros(4, 3)
    refuses(optimizer, optimizer.step, ParameterError, "'weight'", "(2, 3)", "(4, 3)")


def test_a_model_converted_before_its_first_step() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    model.double()
    give(list(model.parameters()), 0)
    optimizer.step()
    assert all(value.dtype is torch.float64 for name, value in states(optimizer) if "exp" in name)


@each_engine
@each_with_state
def test_states_edited_or_replaced_by_the_user(subject: Subject, engine: str | None) -> None:
    """Beside torch's for-loop, which sees the same edits."""
    mine, theirs = leaves(SHAPES, torch.float64), leaves(SHAPES, torch.float64)
    a, b = subject.make(mine, engine=engine), subject.theirs(theirs)
    for k in range(9):
        give(mine, k, theirs)
        a.step()
        b.step()
        for optimizer, params in ((a, mine), (b, theirs)):
            own = optimizer.state[params[1]]
            names = [name for name, value in own.items() if value is not None and name not in ("step", "mu_product")]
            if k == 1:
                for name in names:
                    own[name].mul_(0.5)
            if k == 2:
                for name in names:
                    own[name] = own[name] * 2
            if k == 3 and "step" in own:
                own["step"].fill_(50.0)
            if k == 4 and "step" in own:
                own["step"] = torch.tensor(7.0)
            if k == 5 and "step" in own:
                own["step"] += 3
            if k == 6:
                optimizer.state[params[1]] = {name: value.clone() if value is not None else None for name, value in own.items()}
            if k == 7 and subject.name != "Adagrad":  # whose torch makes states in the constructor alone
                del optimizer.state[params[1]]
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        for name, value in a.state[p].items():
            torch.testing.assert_close(value.double(), b.state[q][name].double(), rtol=1e-6, atol=1e-7)


def test_states_that_cannot_be() -> None:
    optimizer = begun(ADAM)
    p = params_of(optimizer)[0]
    give(params_of(optimizer), 4)
    for name, wrong, error in [
        ("exp_avg", torch.zeros(2), ParameterError), ("exp_avg", 3.0, ParameterError),
        ("step", torch.tensor(math.nan), openadam.CheckpointError), ("step", torch.tensor(-1.0), openadam.CheckpointError),
    ]:  # fmt: skip
        kept = optimizer.state[p][name]
        optimizer.state[p][name] = wrong
        refuses(optimizer, optimizer.step, error, name, "'0'")
        optimizer.state[p][name] = kept
    optimizer.step()


# --- GradScaler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unscale", [False, True])
@each_with_state
def test_scaled_is_unscaled(subject: Subject, unscale: bool) -> None:
    """By powers of two, bit for bit, whether the scaler or the step takes the scale out again."""
    scaled, plain = begun(subject, 0, ((5,), (3, 4))), begun(subject, 0, ((5,), (3, 4)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    for k in range(6):
        for optimizer, scale in ((scaled, scaler.scale), (plain, lambda x: x)):
            optimizer.zero_grad()
            scale(sum((p * (k + 1)).sin().sum() for p in params_of(optimizer))).backward()
        if unscale:
            scaler.unscale_(scaled)
            torch.nn.utils.clip_grad_norm_(params_of(scaled), 0.5)
            torch.nn.utils.clip_grad_norm_(params_of(plain), 0.5)
        scaler.step(scaled)
        scaler.update()
        plain.step()
        assert equal(scaled, plain), k
    assert scaler.get_scale() == 2.0**19


@each_with_state
def test_clipping_sees_the_unscaled_norm(subject: Subject) -> None:
    scaled, plain = begun(subject, 0, ((5,),), clip_norm=0.5), begun(subject, 0, ((5,),), clip_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(params_of(scaled)[0].sin().sum()).backward()
    params_of(plain)[0].sin().sum().backward()
    scaler.step(scaled)
    plain.step()
    assert equal(scaled, plain)
    assert scaled.last_step.grad_norm == pytest.approx(plain.last_step.grad_norm, rel=1e-12)


@pytest.mark.parametrize("unscale", [False, True])
@each_with_state
def test_an_overflow_skips(subject: Subject, unscale: bool) -> None:
    optimizer = begun(subject, 2, ((5,),))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    (p,) = params_of(optimizer)
    for value in (math.inf, math.nan):
        optimizer.zero_grad()
        scaler.scale((p * p).sum()).backward()
        assert p.grad is not None
        p.grad[3] = value
        if unscale:
            scaler.unscale_(optimizer)
        before = fingerprint(optimizer)
        scaler.step(optimizer)
        assert optimizer.last_step.skipped or unscale
        assert fingerprint(optimizer) == before
        scaler.update()
    assert scaler.get_scale() == 2.0**6
    optimizer.zero_grad()
    scaler.scale((p * p).sum()).backward()
    scaler.step(optimizer)
    assert not optimizer.last_step.skipped
    assert optimizer.last_step.step == 3 or subject.name == "SGD"


@pytest.mark.parametrize("found", [0.0, 1.0, 2.0, math.nan, 3])
def test_t6_found_inf_by_hand(found: float) -> None:
    """The sum over devices may be more than 1; torch's fused step then counts backwards."""
    optimizer = begun(ADAM)
    give(params_of(optimizer), 3)
    before = fingerprint(optimizer)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(found), torch.tensor(4.0)
    optimizer.step()
    assert (fingerprint(optimizer) == before) is bool(found)
    assert optimizer.last_step.skipped is bool(found)
    del optimizer.found_inf, optimizer.grad_scale
    optimizer.step()
    assert all(float(optimizer.state[p]["step"]) == (3 if found else 4) for p in params_of(optimizer))


def test_grad_scale_by_hand() -> None:
    optimizer, calm = begun(ADAM), begun(ADAM)
    give(params_of(optimizer), 3, params_of(calm))
    for p in params_of(optimizer):
        p.grad.mul_(1024)  # type: ignore[union-attr]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    optimizer.step()
    calm.step()
    assert equal(optimizer, calm)
    for wrong in (0.0, math.nan, math.inf):

        def step(wrong: float = wrong) -> None:
            optimizer.grad_scale = torch.tensor(wrong)
            optimizer.step()

        refuses(optimizer, step, HyperparameterError, "grad_scale")
        assert not hasattr(optimizer, "grad_scale"), "the next step would be divided by it"


# --- concurrency -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@each_with_state
def test_c1_t19_a_step_in_a_forked_child(subject: Subject) -> None:
    optimizer = begun(subject, 2, ((70_000,), (3,)), threads=2)
    give(params_of(optimizer), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about threads and fork
        child = os.fork()
    if not child:
        signal.alarm(20)
        code = 1
        try:
            optimizer.step()
            code = 0 if optimizer.last_step.step == 3 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    optimizer.step()
    assert optimizer.last_step.step == 3


FORKS = """
import os, sys, torch
late = sys.argv[1] == "late"
if not late:
    import openadam.torch
(torch.ones(3_000_000) * 2).sum()  # on several threads
p = torch.zeros(1_000_000, requires_grad=True)
p.grad = torch.ones_like(p)
if not late:
    optimizer = openadam.torch.AdamW([p])
    optimizer.step()
child = os.fork()
if not child:
    import openadam.torch
    if late:
        optimizer = openadam.torch.AdamW([p])
    optimizer.step()
    os._exit(0 if optimizer.last_step.step == 2 - late else 1)
assert os.waitpid(child, 0)[1] == 0
if not late:
    optimizer.step()
print("both went on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("when", ["early", "late"])
def test_c1_a_fork_leaves_the_threads_of_torch_behind(when: str) -> None:
    """A step borrows threads that torch has; a child has none of them, whether it knew this package before or not."""
    assert python(FORKS, when, timeout=60).strip() == "both went on"


def test_c3_two_threads_and_two_optimizers() -> None:
    alone = [begun(subject, 6, ((40_000,), (7,))) for subject in STATEFUL[:4]]
    together = [begun(subject, 0, ((40_000,), (7,)), threads=2) for subject in STATEFUL[:4]]
    failures: list[BaseException] = []

    def run(optimizer: Any) -> None:
        try:
            for k in range(6):
                give(params_of(optimizer), k)
                optimizer.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(optimizer,)) for optimizer in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(map(equal, alone, together))


def test_c7_errors_of_closures_and_hooks() -> None:
    optimizer = begun(ADAM)
    give(params_of(optimizer), 3)

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("mine")

    refuses(optimizer, lambda: optimizer.step(fails), ZeroDivisionError, "mine")
    handle = optimizer.register_step_pre_hook(fails)
    refuses(optimizer, optimizer.step, ZeroDivisionError, "mine")
    handle.remove()
    handle = optimizer.register_load_state_dict_pre_hook(fails)
    state = copy.deepcopy(optimizer.state_dict())
    refuses(optimizer, lambda: optimizer.load_state_dict(state), ZeroDivisionError, "mine")
    handle.remove()
    optimizer.step()
    assert optimizer.last_step.step == 3


def test_a_step_within_a_step_is_refused() -> None:
    """A predicate that steps the optimizer it was called by."""
    (p,) = leaves([(3,)], torch.float32)
    p.grad = torch.ones(3)
    made: list[Any] = []

    def predicate(name: str, tensor: Tensor) -> bool:
        if made:
            made[0].step()
        return False

    made.append(AdamW([p], lr=0.1, no_decay=predicate))
    before = raw(p)
    with pytest.raises(openadam.ConcurrentStepError):
        made[0].step()
    assert raw(p) == before


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step() -> None:
    """torch.compile leaves the step to us."""
    torch._dynamo.reset()
    a, b = begun(ADAM, 0), begun(ADAM, 0)
    compiled = torch.compile(a.step, backend="eager")
    for k in range(3):
        give(params_of(a), k, params_of(b))
        compiled()
        b.step()
    assert equal(a, b)
    assert a.param_groups[0]["capturable"] is False


def test_a_step_in_inference_and_without_grad_mode() -> None:
    optimizer, calm = begun(ADAM), begun(ADAM)
    give(params_of(optimizer), 3, params_of(calm))
    with torch.no_grad():
        optimizer.step()
    calm.step()
    assert equal(optimizer, calm)
    assert all(p.requires_grad and p.is_leaf for p in params_of(optimizer))


def test_inference_tensors() -> None:
    """A25: they keep no version, which is no reason to fail after a step has been taken."""
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        optimizer = Adam([p], lr=0.1)
        optimizer.step()
        assert (p < 1).all()
        assert optimizer.last_step.step == 1


def test_autograd_notices_a_parameter_that_moved() -> None:
    """A graph that needs the old value must not silently use the new one."""
    for engine in ENGINES:
        (p,) = leaves([(3,)], torch.float32)
        optimizer = Adam([p], lr=0.1, engine=engine)
        loss = (p**2).sum()
        loss.backward(retain_graph=True)
        version, still = p._version, leaves([(3,)], torch.float32)[0]
        optimizer.add_param_group({"params": [still]})
        optimizer.step()
        assert p._version > version, engine
        assert still._version == 0
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_without_native_code() -> None:
    """OPENADAM_ENGINE=reference: torch operations, with the same bits."""
    script = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import hashlib
from torchfamily import STATEFUL, SIZES, give, leaves, raw, states
digest = hashlib.sha256()
for subject in STATEFUL:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        params = leaves(SIZES, dtype)
        optimizer = subject.make(params)
        for k in range(3):
            give(params, k)
            optimizer.step()
        for p in params:
            digest.update(raw(p))
        for name, value in states(optimizer):
            digest.update(raw(value))
        params[1].grad = params[3].grad.new_full((0,), 1.0)
        params[3].grad[2] = float("nan")
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "'3'" in str(error), error
        else:
            raise AssertionError("not refused")
print(digest.hexdigest(), optimizer._stepper.engine_name)
"""
    here = str(Path(__file__).parent)
    reference, name = python(script, here, warnings="default", OPENADAM_ENGINE="reference").split()
    assert name == "graph"
    assert python(script, here, warnings="default").split() == [reference, "native"]


# --- what a newcomer gets wrong ----------------------------------------------------------------------------------------


def test_names_that_no_parameter_has() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    with pytest.raises(HyperparameterError, match=r"no_decay names 'bias', and no parameter is called so; did you mean '\d.bias'"):
        AdamW(model.named_parameters(), no_decay=["0.bias", "bias"])
    with pytest.raises(HyperparameterError, match="named_parameters"):
        AdamW(model.parameters(), no_decay=["0.bias"])
    with pytest.raises(HyperparameterError, match="neither a name nor a tensor"):
        AdamW(model.parameters(), no_decay=[1.0])


def test_options_are_chosen_when_the_optimizer_is_made() -> None:
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(HyperparameterError, match="clip_norm in group 0"):
        AdamW([{"params": [p], "clip_norm": 1.0}])
    optimizer = AdamW([p], clip_norm=2.0)
    assert (optimizer.clip_norm, optimizer.nonfinite, optimizer.skipped) == (2.0, "raise", 0)
    with pytest.raises(AttributeError, match="make another"):
        optimizer.clip_norm = 1.0
    optimizer.param_groups[0]["capturable"] = True
    p.grad = torch.ones(2)
    refuses(optimizer, optimizer.step, HyperparameterError, "capturable=True")


def test_settings_in_lists_are_read_at_every_step() -> None:
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = AdamW([p])
    optimizer.param_groups[0]["betas"] = [0.9, 0.999]
    optimizer.step()
    optimizer.param_groups[0]["betas"][0] = 7.0
    refuses(optimizer, optimizer.step, HyperparameterError, "betas of group 0")
    optimizer.param_groups[0]["betas"][0] = 0.5
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].tolist() == pytest.approx([0.5 * 0.1 + 0.5] * 2)


@each_engine
def test_norms_whose_squares_overflow_after_a_move(engine: str | None) -> None:
    p = torch.ones(4, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full((4,), 1e200, dtype=torch.float64)
    optimizer = AdamW([p], clip_norm=1.0, engine=engine)
    for _ in range(2):
        optimizer.step()
        assert optimizer.last_step.grad_norm == pytest.approx(2e200)
        p.data = p.data.clone()


def test_the_checkpoint_of_another_class_without_states() -> None:
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = begun(ADAM)
    other = torch.optim.SGD(params_of(optimizer), lr=0.1)
    refuses(optimizer, lambda: optimizer.load_state_dict(other.state_dict()), openadam.CheckpointMismatchError, "'betas'")


def test_the_help_tells_every_keyword() -> None:
    for name in CLASSES:
        text = getattr(openadam.torch, name).__doc__
        assert all(f"    {keyword}: " in text for keyword in ("clip_norm", "nonfinite", "no_decay", "threads", "sharded", "engine"))
