"""Memory that moves under tensors, and memory that they share: a step asks where everything lies, and refuses what it would write twice.

Beside torch's for-loop, which sees the same; what can crash a process, or forks, runs in one of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchfamily import CLASSES, PLAIN, STATEFUL, Subject, each_with_state, params_of, refuses
from torchpairs import KINDS, MOVES, Pair, apart, kinds_of, moved, random, state_tensors

import openadam.torch
from openadam import AliasError, OpenAdamError

SHAPES = ((4, 3), (), (0,), (5,))
ENGINES = (None, "graph")
ADAM, SGD = (PLAIN[CLASSES.index(name)] for name in ("Adam", "SGD"))
NADAM = STATEFUL[CLASSES.index("NAdam")]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_move = pytest.mark.parametrize("how", MOVES)
each_engine = pytest.mark.parametrize("engine", ENGINES)


def pair(subject: Subject, kind: str, engine: str | None = None, shapes: Any = SHAPES) -> Pair:
    return Pair(subject, lambda: kinds_of(kind, shapes), engine=engine)


# --- memory that moves -------------------------------------------------------------------------------------------------


@each_engine
@each_kind
@pytest.mark.parametrize("layout", ["plain", "column", "negated"])
@each_move
def test_memory_moved_under_parameters(how: str, layout: str, kind: str, engine: str | None) -> None:
    """The same objects, in another place: once before the first step, once between steps, once for all and once for one."""
    for subject in (NADAM, SGD):
        beside = pair(subject, kind, engine)
        for at, which in enumerate([slice(None), slice(None), slice(0, 1), slice(3, 4)]):
            for optimizer in beside.both:
                for p in params_of(optimizer)[which]:
                    p.grad = None
                    moved(p, how, layout)
            beside.step(2 if at else 1)


@each_kind
@pytest.mark.parametrize("how", [how for how in MOVES if how != "swapped"])  # torch swaps no gradient
def test_memory_moved_under_gradients(how: str, kind: str) -> None:
    """The gradients are the same objects from step to step, as with ``zero_grad(set_to_none=False)``."""
    beside = pair(ADAM, kind)
    beside.step()
    for number, layout in enumerate(["plain", "column", "transposed", "negated"]):
        for optimizer in beside.both:
            for k, p in enumerate(params_of(optimizer)):
                assert p.grad is not None
                moved(p.grad, how, layout)
                p.grad.copy_(random(tuple(p.shape), p.dtype, 50 + 7 * number + k))
        beside.same_step()


@each_engine
@each_kind
@each_move
def test_memory_moved_under_states(how: str, kind: str, engine: str | None) -> None:
    """Counters among them. The moved tensor stays the one that the step writes."""
    for subject in (NADAM, STATEFUL[CLASSES.index("Adagrad")]):
        beside = pair(subject, kind, engine)
        beside.step()
        for layout in ("plain", "transposed"):
            held = [id(x) for x in state_tensors(beside.ours)]
            for x in [*state_tensors(beside.ours), *state_tensors(beside.theirs)]:
                moved(x, how, layout)
            beside.step(2)
            assert [id(x) for x in state_tensors(beside.ours)] == held


@each_with_state
def test_a_storage_that_is_shared_moves_all_of_its_views(subject: Subject) -> None:
    """Two columns of one buffer: sharing the first moves the second, whose object nobody has touched."""

    def params() -> list[Tensor]:
        buffer = random((6, 2), torch.float64, 1)
        return [torch.nn.Parameter(buffer[:, 0]), torch.nn.Parameter(buffer[:, 1])]

    beside = Pair(subject, params)
    beside.step(2)
    for optimizer in beside.both:
        params_of(optimizer)[0].share_memory_()
    beside.step(1, without=[0])
    beside.step(2)


def sent_through_a_queue(name: str, kind: str) -> None:
    beside = pair(STATEFUL[CLASSES.index(name)], kind)
    beside.step()
    queues = [torch.multiprocessing.get_context("fork").SimpleQueue() for _ in beside.both]
    received = []
    for queue, optimizer in zip(queues, beside.both, strict=True):
        for sent in (params_of(optimizer)[0].detach(), [value for value in state_tensors(optimizer) if value.ndim]):
            if not getattr(sent, "is_neg", bool)():  # torch does not send negated views
                queue.put(sent)
                received.append((sent, queue.get()))
    beside.step(3)
    for sent, got in received:
        for mine, theirs in zip(sent, got, strict=True):
            assert torch.equal(mine, theirs), "the receiver does not see the update"


def every_kind_sent_through_a_queue(name: str) -> None:
    for kind in KINDS:
        sent_through_a_queue(name, kind)


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_tensors_sent_through_a_queue(name: str) -> None:
    """Which moves their memory; afterwards whoever received them sees each step."""
    apart(every_kind_sent_through_a_queue, name)


@each_engine
def test_memory_that_was_taken_away(engine: str | None) -> None:
    """A storage of no bytes, or too few: torch crashes or writes beyond it. Without a gradient nobody needs it."""
    apart(all_taken_away, engine)


def all_taken_away(engine: str | None) -> None:
    for what in ("parameter", "gradient", "exp_avg", "step"):
        taken_away(what, engine)


def taken_away(what: str, engine: str | None) -> None:
    for left in (0, 7):
        p, q = torch.nn.Parameter(torch.zeros(50)), torch.nn.Parameter(torch.zeros(3))
        optimizer = ADAM.make([("first", p), ("second", q)], engine=engine)
        for x in (p, q):
            x.grad = torch.ones_like(x)
        optimizer.step()
        tensor = {"parameter": p, "gradient": p.grad, **optimizer.state[p]}[what]
        assert tensor is not None
        kept, storage = tensor.detach().clone(), tensor.untyped_storage()
        size, before = storage.nbytes(), q.detach().clone()
        storage.resize_(min(left, size - 1))
        for _ in range(2):
            with pytest.raises(OpenAdamError, match="first"):
                optimizer.step()
            assert torch.equal(q, before)
        if what == "parameter":
            given = p.grad
            p.grad = None
            optimizer.step()
            p.grad = given
        storage.resize_(size)
        with torch.no_grad():
            tensor.copy_(kept)
        optimizer.step()
        assert float(optimizer.state[p]["step"]) == 2


@pytest.mark.parametrize("what", ["parameter", "state"])
def test_lazy_copies_stay_what_they_were(what: str) -> None:
    """Copies that share memory until one of the two is written: a step must not write into the other, nor into memory that was left."""
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(20)]
    optimizer = ADAM.make(params)
    for k in range(12):
        for p in params:
            p.grad = torch.full((3,), 1.0 + k)
        optimizer.step()
        tensors = [p.detach() if what == "parameter" else optimizer.state[p]["exp_avg"] for p in params]
        if k < 3 or k % 2:  # the step before may have moved them, or not
            continue
        copies, before = [torch._lazy_clone(tensor) for tensor in tensors], [tensor.tolist() for tensor in tensors]
        optimizer.step()
        assert [each.tolist() for each in copies] == before
        after = [(p.detach() if what == "parameter" else optimizer.state[p]["exp_avg"]).tolist() for p in params]
        assert all(new != old for new, old in zip(after, before, strict=True))
        assert after == after[:1] * len(params)


# --- memory that is shared ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [SGD, ADAM], ids=str)
def test_a_gradient_where_a_parameter_was(subject: Subject) -> None:
    """A parameter moves into shared memory; a gradient gets the memory that it has left. They share nothing."""
    hits = 0
    for size in (30, 100_000):
        for of_state in (False, True):
            beside = pair(subject, "parameter", shapes=((size,), (size,), (3,)))
            beside.step()
            for optimizer in beside.both:
                p, q, _ = params_of(optimizer)
                p.grad = q.grad = None
                moving = optimizer.state[p].get("exp_avg", p) if of_state else p
                left = moving.data_ptr()
                moving.share_memory_()
                tries = [torch.ones(size, dtype=p.dtype) for _ in range(20)]
                there = [each for each in tries if each.data_ptr() == left]
                hits += len(there)
                q.grad = (there or tries)[0]
            beside.same_step()
            beside.step()
    assert hits, "no gradient came to lie where something had been"


@each_engine
@each_move
@pytest.mark.parametrize("what", ["parameter", "other parameter", "exp_avg", "exp_avg_sq"])
def test_gradients_that_share_memory_are_still_refused(what: str, how: str, engine: str | None) -> None:
    """After whatever moved, before anything changes."""
    optimizer = ADAM.make(kinds_of("parameter", ((4, 3), (4, 3)), torch.float32), engine=engine)
    p, q = params_of(optimizer)

    def gradients() -> None:
        p.grad, q.grad = torch.ones(4, 3), torch.ones(4, 3)

    gradients()
    optimizer.step()
    gradients()
    optimizer.step()
    tensor = {"parameter": p, "other parameter": q, **optimizer.state[p]}[what]
    p.grad = q.grad = None
    moved(tensor, how)
    gradients()
    p.grad = tensor.detach()
    refuses(optimizer, optimizer.step, AliasError, "'0'")
    gradients()
    optimizer.step()
    assert float(optimizer.state[p]["step"]) == 3


@each_engine
def test_parameters_that_come_to_share_memory(engine: str | None) -> None:
    """Two parameters, or a parameter and a state, that a step would write twice."""
    for subject in (ADAM, SGD):
        optimizer = subject.make(kinds_of("parameter", ((6,), (6,)), torch.float32), engine=engine)
        p, q = params_of(optimizer)

        def gradients(p: Tensor = p, q: Tensor = q) -> None:
            p.grad, q.grad = torch.ones(6), torch.ones(6)

        gradients()
        optimizer.step()
        kept = q.detach().clone()
        with torch.no_grad():
            q.set_(p.untyped_storage(), 0, (6,))
        gradients()
        refuses(optimizer, optimizer.step, AliasError, "'0'", "'1'")
        q.data = kept
        gradients()
        optimizer.step()
        if subject is ADAM:
            mine = optimizer.state[p]["exp_avg"]
            optimizer.state[p]["exp_avg"] = p.detach()
            refuses(optimizer, optimizer.step, AliasError, "'0'")
            optimizer.state[p]["exp_avg"] = optimizer.state[q]["exp_avg"]
            refuses(optimizer, optimizer.step, AliasError, "'0'", "'1'")
            optimizer.state[p]["exp_avg"] = mine
        optimizer.step()


@each_engine
def test_gradients_may_share_memory_with_each_other(engine: str | None) -> None:
    """They are only read. So may one share memory with a parameter that has none itself: this step does not write it."""
    beside = pair(ADAM, "parameter", engine, ((5,), (5,), (2,)))
    for optimizer in beside.both:
        p, q, r = params_of(optimizer)
        p.grad = q.grad = random((5,), torch.float64, 3)
        r.grad = p.grad[1:3]
    beside.same_step()
    for optimizer in beside.both:
        p, q, r = params_of(optimizer)
        p.grad, q.grad, r.grad = None, p.detach(), None
    beside.same_step()


@pytest.mark.parametrize("subject", [SGD, ADAM], ids=str)
def test_many_interleaved_parameters(subject: Subject) -> None:
    """2,000 columns of one buffer, then a group more: accepted, but for the one that overlaps."""
    count = 2_000

    def columns() -> list[Tensor]:
        buffer = random((8, count + 1), torch.float64, 2)
        return [torch.nn.Parameter(buffer[:, k]) for k in range(count)]

    beside = Pair(subject, columns)
    beside.step()
    for optimizer in beside.both:
        first = params_of(optimizer)[0]
        store = torch.empty(0, dtype=torch.float64).set_(first.untyped_storage(), 0, (8, count + 1))
        optimizer.add_param_group({"params": [torch.nn.Parameter(store[:, count])]})
    beside.step()
    overlapping = torch.nn.Parameter(store.detach()[2:4, 1234:1235])
    store = torch.empty(0, dtype=torch.float64).set_(params_of(beside.ours)[0].untyped_storage(), 0, (8, count + 1))
    overlapping.data = store[2:4, 1234:1235]
    beside.ours.add_param_group({"params": [overlapping]})
    for p in params_of(beside.ours):
        p.grad = torch.ones_like(p)
    refuses(beside.ours, beside.ours.step, AliasError, "'1234'", "'2001'")


def places(view: Tensor) -> list[int]:
    """The element of the storage that each element of a view is."""
    ranges = (range(0, size * stride, stride) if stride else [0] * size for size, stride in zip(view.shape, view.stride(), strict=True))
    return [view.storage_offset() + sum(at) for at in itertools.product(*ranges)]


VIEWS = st.lists(st.tuples(st.integers(0, 9), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=2)), min_size=1, max_size=3)


@settings(max_examples=150)
@given(views=VIEWS, of_gradient=st.booleans(), engine=st.sampled_from(ENGINES))
def test_exactly_those_that_overlap_are_refused(views: Any, of_gradient: bool, engine: str | None) -> None:
    """Any views of one buffer, the last one perhaps a gradient, beside the sets of their elements."""
    buffer = torch.zeros(64)
    tensors = [buffer.as_strided([size for size, _ in axes], [stride for _, stride in axes], offset) for offset, axes in views]
    written = [*map(places, tensors)]
    gradient, read = (tensors.pop(), set(written.pop())) if of_gradient else (None, set())
    params = [torch.nn.Parameter(tensor) for tensor in tensors]
    for p in params:
        p.grad = torch.ones(p.shape)
    if gradient is not None:
        other = torch.nn.Parameter(torch.zeros(gradient.shape))
        other.grad = gradient
        params.append(other)
    together = [each for where in written for each in where]
    overlap = len(together) > len(set(together)) or read.intersection(together)
    optimizer = SGD.make(params, engine=engine)
    if overlap:
        before = buffer.clone()
        with pytest.raises(AliasError):
            optimizer.step()
        assert torch.equal(buffer, before)
    else:
        optimizer.step()
        assert [k for k, value in enumerate(buffer.tolist()) if value] == sorted(together)


# --- states that cannot be written -------------------------------------------------------------------------------------


SPOILERS: dict[str, Callable[[dict[str, Any], Tensor], Any]] = {
    "sparse": lambda own, p: own.update(exp_avg=own["exp_avg"].to_sparse()),
    "meta": lambda own, p: own.update(exp_avg=own["exp_avg"].to("meta")),
    "meta counter": lambda own, p: own.update(step=own["step"].to("meta")),
    "zeros that nobody may write": lambda own, p: own.update(exp_avg=torch._efficientzerotensor((3,))),
    "expanded": lambda own, p: own.update(exp_avg=torch.zeros(1).expand(3)),
    "integers": lambda own, p: own.update(exp_avg=own["exp_avg"].long()),
    "two counters": lambda own, p: own.update(step=torch.ones(2)),
    "complex counter": lambda own, p: own.update(step=torch.tensor(1 + 0j)),
}


@each_engine
@pytest.mark.parametrize("how", SPOILERS)
def test_states_that_cannot_be_written(how: str, engine: str | None) -> None:
    """A named error, and neither this parameter nor the one before it has moved."""
    q, p = kinds_of("parameter", ((3,), (3,)), torch.float32)
    optimizer = ADAM.make([q, p], engine=engine)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    own = optimizer.state[p]
    kept = dict(own)
    SPOILERS[how](own, p)
    before = values_of([q, p, *optimizer.state[q].values()])
    for _ in range(2):
        with pytest.raises(OpenAdamError, match="'1'"):
            optimizer.step()
        assert values_of([q, p, *optimizer.state[q].values()]) == before
    own.update(kept)
    optimizer.step()
    assert float(own["step"]) == 2


def values_of(tensors: list[Tensor]) -> list[Any]:
    return [tensor.tolist() for tensor in tensors]


def in_layouts(values: Tensor) -> Iterator[Tensor]:
    """The same numbers in every order of two axes, in windows of larger memory, at another offset: each differs in few words of its description."""
    for i, j in itertools.combinations(range(values.dim()), 2):
        yield values.transpose(i, j).contiguous().transpose(i, j)
    for axis in range(values.dim()):
        shape = list(values.shape)
        shape[axis] *= 2
        wide = torch.zeros(shape, dtype=values.dtype)
        yield wide.narrow(axis, 0, values.shape[axis]).copy_(values)
        yield wide.narrow(axis, values.shape[axis], values.shape[axis]).copy_(values)
    yield torch.cat([torch.zeros(3, dtype=values.dtype), values.reshape(-1)])[3:].reshape(values.shape)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 2), (2, 3, 2, 2), (2, 2, 2, 3, 2), (2, 2, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("moved", ["parameter", "gradient", "state"])
def test_layouts_that_differ_in_few_words_are_told_apart(shape: tuple[int, ...], moved: str) -> None:
    values = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    optimizer, peer = openadam.torch.AdamW([ours], lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    for layout in [values.clone(), *in_layouts(values), values.clone()]:
        gradient = values.sin()
        theirs.grad, ours.grad = gradient.clone(), gradient.clone()
        if moved == "gradient":
            ours.grad = layout.copy_(gradient)
        elif moved == "parameter":
            ours.data = layout.copy_(ours.data)
            ours.grad = gradient.clone()
        elif optimizer.state:
            optimizer.state[ours]["exp_avg"] = layout.copy_(optimizer.state[ours]["exp_avg"])
        optimizer.step()
        peer.step()
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state[ours]["exp_avg"], peer.state[theirs]["exp_avg"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "other"), [((2, 3), (6,)), ((6,), (2, 3)), ((2, 3, 1), (2, 3)), ((2, 3), (1, 2, 3)), ((2, 3, 4, 5), (2, 3, 4, 5, 1))]
)
def test_a_state_with_other_dimensions_over_the_same_memory_is_refused(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    p = torch.ones(shape).requires_grad_()
    p.grad = torch.ones(shape)
    optimizer = openadam.torch.AdamW([p])
    for _ in range(3):
        optimizer.step()
    before = p.detach().clone()
    average = optimizer.state[p]["exp_avg"]
    average.data = average.data.view(other)
    with pytest.raises(OpenAdamError, match="exp_avg"):
        optimizer.step()
    assert torch.equal(p, before)
