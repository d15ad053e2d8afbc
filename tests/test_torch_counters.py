"""Counters are the user's: the tensors in ``state`` are read before each step and written in it, whoever has put them there.

Beside torch's for-loop. What several processes share, each of them continues.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from torchfamily import CLASSES, PLAIN, STATEFUL, Subject, params_of, refuses
from torchpairs import KINDS, Pair, agree, apart, kinds_of, moved

import openadam.torch
from openadam import AliasError, GradientError, HyperparameterError, NonFiniteGradientError, NonFiniteStateError, OpenAdamError

ENGINES = (None, "graph")
COUNTING = tuple(subject for subject in PLAIN if subject.name != "SGD")
ADAM, ADAMW = (PLAIN[CLASSES.index(name)] for name in ("Adam", "AdamW"))
NADAM = STATEFUL[CLASSES.index("NAdam")]
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_that_counts = pytest.mark.parametrize("subject", COUNTING, ids=str)

EDITS: dict[str, Callable[[dict[str, Any], str, float], Any]] = {
    "filled": lambda own, key, value: own[key].fill_(value),
    "data": lambda own, key, value: setattr(own[key], "data", torch.full_like(own[key], value)),
    "set": lambda own, key, value: own[key].set_(torch.full_like(own[key], value)),
    "swapped": lambda own, key, value: torch.utils.swap_tensors(own[key], torch.full_like(own[key], value)),
    "another": lambda own, key, value: own.update({key: torch.full_like(own[key], value)}),
    "an axis": lambda own, key, value: own.update({key: torch.full((1,), value)}),
    "two axes": lambda own, key, value: own.update({key: torch.full((1, 1), value)}),
    "double": lambda own, key, value: own.update({key: torch.tensor(value, dtype=torch.float64)}),
    "an element of many": lambda own, key, value: own.update({key: torch.full((3, 5), value)[1, 2]}),
    "a copy": lambda own, key, value: own.update({key: own[key].clone()}),
    "shared": lambda own, key, value: own[key].share_memory_(),
    "its storage shared": lambda own, key, value: own[key].untyped_storage().share_memory_(),
    "a storage freed and filled": lambda own, key, value: moved(own[key], "storage"),
    "added to": lambda own, key, value: own[key].add_(value),
    "a parameter": lambda own, key, value: own.update({key: torch.nn.Parameter(own[key].clone(), requires_grad=False)}),
    "wanting a gradient": lambda own, key, value: own[key].requires_grad_(),
    "an array's": lambda own, key, value: own.update({key: torch.from_numpy(np.full((), value, np.float32))}),
}
WHOLE: dict[str, Callable[[dict[str, Any], str, float], Any]] = {
    "long": lambda own, key, value: own.update({key: own[key].long()}),
    "int": lambda own, key, value: own.update({key: own[key].int()}),
    "half": lambda own, key, value: own.update({key: own[key].half()}),
    "bfloat16": lambda own, key, value: own.update({key: own[key].bfloat16()}),
    "long of an axis": lambda own, key, value: own.update({key: own[key].long().reshape(1)}),
}


@each_engine
@each_that_counts
@pytest.mark.parametrize("how", [*EDITS, *WHOLE])
def test_edited_counters(how: str, subject: Subject, engine: str | None) -> None:
    """Of one parameter, then of all. The tensor that was put there stays there, in its dtype and shape, and shows the count."""
    edit = {**EDITS, **WHOLE}[how]
    beside = Pair(subject, lambda: kinds_of("parameter", ((4,), (2, 3), ())), engine=engine)
    beside.step(3)
    for which, value in ((slice(1, 2), 7.0), (slice(None), 2.0)):
        put = []
        for optimizer in beside.both:
            for p in params_of(optimizer)[which]:
                own = optimizer.state[p]
                edit(own, "step", value)
                put.append((own, own["step"], own["step"].dtype, own["step"].shape, int(own["step"].detach())))
        beside.step(2)
        for own, tensor, dtype, shape, count in put:
            assert own["step"] is tensor
            assert (tensor.dtype, tensor.shape, int(tensor.detach())) == (dtype, shape, count + 2)


@each_engine
@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("which", [[0], [1], [2], [0, 1, 2], [0, 2]], ids=str)
def test_an_edited_product_of_momenta_moves_its_own_row(which: list[int], how: str, engine: str | None) -> None:
    """Alone, and then with the counter."""
    beside = Pair(NADAM, lambda: kinds_of("parameter", ((2,), (2,), (2,))), engine=engine)
    beside.step(5)
    for also_step in (False, True):
        put = []
        for optimizer in beside.both:
            for k in which:
                own = optimizer.state[params_of(optimizer)[k]]
                EDITS[how](own, "mu_product", 0.125)
                put.append((own, own["mu_product"], own["mu_product"].dtype, own["mu_product"].shape))
                if also_step:
                    EDITS[how](own, "step", 4.0)
        beside.step(2)
        for own, tensor, dtype, shape in put:
            assert own["mu_product"] is tensor
            assert (tensor.dtype, tensor.shape) == (dtype, shape)


@each_engine
@pytest.mark.parametrize("kind", KINDS)
def test_edited_counters_of_every_kind_of_parameter(kind: str, engine: str | None) -> None:
    beside = Pair(NADAM, lambda: kinds_of(kind, ((4,), (2, 3), (), (0,))), engine=engine)
    beside.step(3)
    for how in ("data", "an axis", "double", "shared"):
        for optimizer in beside.both:
            for p in params_of(optimizer)[1::2]:
                EDITS[how](optimizer.state[p], "step", 6.0)
                EDITS[how](optimizer.state[p], "mu_product", 0.5)
        beside.step(2)


@each_that_counts
def test_states_made_beforehand(subject: Subject) -> None:
    """By the user, counter included, before any step; some in another dtype of counter."""
    beside = Pair(subject, lambda: kinds_of("parameter", ((4,), (2, 3))))
    beside.step()
    made = {key: [value.ndim, float(value.flatten()[0])] for key, value in beside.theirs.state[params_of(beside.theirs)[0]].items()}
    for count in (torch.zeros(()), torch.tensor([4.0]), torch.tensor(3), torch.tensor(9.0, dtype=torch.float64)):
        fresh = Pair(subject, lambda: kinds_of("parameter", ((4,), (2, 3))))
        for optimizer in fresh.both:
            for p in params_of(optimizer):
                own = {key: torch.full_like(p, 0.1, requires_grad=False) if ndim else torch.tensor(1.0) for key, (ndim, _) in made.items()}
                optimizer.state[p] = {**own, "step": count.clone()}
        fresh.step(3)


def test_a_counter_kept_outside_shows_every_step() -> None:
    optimizer = ADAM.make(kinds_of("parameter", ((3,), (3,))))
    p, q = params_of(optimizer)
    for k in range(1, 6):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q) if k % 2 else None
        optimizer.step()
        if k == 1:
            counts = [optimizer.state[x]["step"] for x in (p, q)]
        assert [float(count) for count in counts] == [k, (k + 1) // 2]


def test_numbers_in_place_of_tensors() -> None:
    """A checkpoint of old, put into the state by hand: counted on from there, as a tensor."""
    for number in (4, 4.0, np.float32(4), np.int64(4)):
        optimizer = ADAM.make(kinds_of("parameter", ((3,),)))
        (p,) = params_of(optimizer)
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.state[p]["step"] = number
        optimizer.step()
        assert float(optimizer.state[p]["step"]) == 5
        assert isinstance(optimizer.state[p]["step"], Tensor)


@each_engine
@pytest.mark.parametrize(
    "wrong", [torch.tensor(math.nan), torch.tensor(-1.0), torch.tensor(2.5), torch.tensor(math.inf), torch.zeros(2), torch.zeros(0)], ids=str
)
def test_counters_that_cannot_be(wrong: Tensor, engine: str | None) -> None:
    """However they came there."""
    for how in ("another", "data"):
        optimizer = ADAM.make(kinds_of("parameter", ((3,), (3,)), torch.float32), engine=engine)
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.step()
        own = optimizer.state[params_of(optimizer)[1]]
        if how == "another":
            own["step"] = wrong.clone()
        else:
            own["step"].data = wrong.clone()
        refuses(optimizer, optimizer.step, OpenAdamError, "step", "'1'")
        own["step"] = torch.tensor(1.0)
        optimizer.step()


# --- several processes -------------------------------------------------------------------------------------------------


def shared_optimizers(name: str) -> list[Any]:
    """Ours and torch's, with states made beforehand and put into shared memory, as A3C's SharedAdam has them."""
    optimizers = []
    for module in (openadam.torch, torch.optim):
        p = torch.nn.Parameter(torch.zeros(3).share_memory_())
        if name == "Adagrad":
            optimizer = module.Adagrad([p], lr=0.1, lr_decay=0.1)
            optimizer.share_memory()
            optimizer.state[p]["step"].share_memory_()
        else:
            optimizer = getattr(module, name)([p], lr=0.1, **({"momentum": 0.5} if name == "RMSprop" else {}))
            optimizer.state[p] = {
                "step": torch.zeros(()).share_memory_(),
                **({"mu_product": torch.ones(()).share_memory_()} if name == "NAdam" else {}),
                **{key: torch.zeros(3).share_memory_() for key in AVERAGES[name]},
            }
        optimizers.append(optimizer)
    return optimizers


AVERAGES = {
    "Adam": ("exp_avg", "exp_avg_sq"), "AdamW": ("exp_avg", "exp_avg_sq"), "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"), "Adamax": ("exp_avg", "exp_inf"), "RMSprop": ("square_avg", "momentum_buffer"),
}  # fmt: skip


def steps_under_a_lock(optimizers: list[Any], lock: Any, times: int) -> None:
    torch.set_num_threads(1)
    for _ in range(times):
        with lock:
            for optimizer in optimizers:
                for p in params_of(optimizer):
                    p.grad = torch.ones_like(p)
                optimizer.step()


def continued_by_forks(begun: bool) -> None:
    for name in ("Adagrad", *AVERAGES):
        optimizers = shared_optimizers(name)
        context = torch.multiprocessing.get_context("fork")
        lock = context.Lock()
        if begun:  # the children take over an optimizer that has stepped
            steps_under_a_lock(optimizers, lock, 2)
        children = [context.Process(target=steps_under_a_lock, args=(optimizers, lock, 5)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
            assert child.exitcode == 0
        counts = [float(optimizer.state[params_of(optimizer)[0]]["step"]) for optimizer in optimizers]
        assert counts == [10.0 + 2 * begun] * 2, name
        agree(*optimizers)
        steps_under_a_lock(optimizers, lock, 2)  # and their parent goes on from there
        agree(*optimizers)


@pytest.mark.parametrize("begun", [False, True])
def test_states_in_shared_memory_are_continued_by_forks(begun: bool) -> None:
    """Two processes, one lock, five steps each: they count to ten."""
    apart(continued_by_forks, begun)


def handed_to_a_spawned_process() -> None:
    optimizers = []
    for module in (openadam.torch, torch.optim):
        for name in ("AdamW", "NAdam", "Adagrad"):
            p = torch.nn.Parameter(torch.arange(4.0))
            optimizers.append(getattr(module, name)([p], lr=0.1))
    lock = threading.Lock()
    steps_under_a_lock(optimizers, lock, 2)
    context = torch.multiprocessing.get_context("spawn")
    its_lock = context.Lock()  # which must live until the child has it
    child = context.Process(target=steps_under_a_lock, args=(optimizers, its_lock, 3))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    for k in range(2):
        for mine, theirs in zip(optimizers[:3], optimizers[3:], strict=True):
            assert float(mine.state[params_of(mine)[0]]["step"]) == 5 + 2 * k
            agree(mine, theirs)
        steps_under_a_lock(optimizers, lock, 2)


def test_an_optimizer_handed_to_a_spawned_process() -> None:
    """Its tensors move into shared memory; what the child steps, its parent sees, and continues."""
    apart(handed_to_a_spawned_process)


# --- what a refused step leaves behind ---------------------------------------------------------------------------------


def overflow(optimizer: Any, p: Tensor) -> None:
    p.grad = torch.full_like(p, 1e25)


def not_finite(optimizer: Any, p: Tensor) -> None:
    p.grad = torch.full_like(p, math.nan)


def sparse(optimizer: Any, p: Tensor) -> None:
    p.grad = torch.ones_like(p).to_sparse()


def uphill(optimizer: Any, p: Tensor) -> None:
    optimizer.param_groups[0]["lr"] = -1.0


def aliased(optimizer: Any, p: Tensor) -> None:
    p.grad = p.detach()


def without_scale(optimizer: Any, p: Tensor) -> None:
    optimizer.grad_scale = torch.tensor(0.0)


REASONS: dict[Callable[..., None], type[Exception]] = {
    overflow: NonFiniteStateError, not_finite: NonFiniteGradientError, sparse: GradientError, uphill: HyperparameterError,
    aliased: AliasError, without_scale: HyperparameterError,
}  # fmt: skip


@each_engine
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_a_refused_step_leaves_no_scale_behind(reason: Callable[..., None], engine: str | None) -> None:
    """A GradScaler sets both before a step and takes them away after it; where it raises, the next step would be divided by them."""
    for by_scaler in (False, True):
        optimizer, calm = (ADAMW.make(kinds_of("parameter", ((3,),), torch.float32), engine=engine) for _ in range(2))
        (p,), (q,) = params_of(optimizer), params_of(calm)
        p.grad = torch.ones(3)
        lr = optimizer.param_groups[0]["lr"]
        if by_scaler:
            if reason in (not_finite, sparse, without_scale):
                continue  # a scaler looks for itself, or does not accept them
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            scaler.scale((p * 0).sum()).backward()
            reason(optimizer, p)
            with pytest.raises(REASONS[reason]):
                scaler.step(optimizer)
        else:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
            reason(optimizer, p)
            with pytest.raises(REASONS[reason]):
                optimizer.step()
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")
        optimizer.param_groups[0]["lr"] = lr
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        calm.step()
        assert torch.equal(p, q)
