"""Memory is its owner's: what was dropped is given back at once, and nothing that a step has touched is changed in its kind."""

from __future__ import annotations

import copy
import gc
import math
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torchfamily import CLASSES, PLAIN, STATEFUL, Subject, each_with_state, params_of
from torchpairs import KINDS, Pair, kinds_of, laid, random, state_tensors

from openadam import NonFiniteGradientError

SHAPES = ((4, 3), (), (0,), (5,))
MANY = ((300, 3), (5,))
ENGINES = (None, "graph")
ADAM, SGD = (PLAIN[CLASSES.index(name)] for name in ("Adam", "SGD"))
NADAM = STATEFUL[CLASSES.index("NAdam")]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_engine = pytest.mark.parametrize("engine", ENGINES)


# --- memory that is given back -----------------------------------------------------------------------------------------


class Watched:
    """Whether tensors, and the memory that they had, are still held by anybody."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = [weakref.ref(tensor) for tensor in tensors]
        self.storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]

    @property
    def held(self) -> tuple[int, int]:
        """How many tensors, and how many storages."""
        return sum(ref() is not None for ref in self.tensors), sum(not ref.expired() for ref in self.storages)


def dropped(optimizer: Any, how: str, p: Tensor) -> None:
    own = optimizer.state[p]
    names = [name for name, value in own.items() if value.ndim]
    if how == "deleted":
        del optimizer.state[p]
    elif how == "popped":
        optimizer.state.pop(p)
    elif how == "cleared":
        own.clear()
    elif how == "all cleared":
        optimizer.state.clear()
    elif how == "another dict":
        optimizer.state[p] = {name: value.clone() for name, value in own.items()}
    elif how == "replaced":
        for name in own:
            own[name] = own[name].clone()
    elif how == "offloaded":
        for name in names:
            own[name] = own[name].to("meta")
    elif how == "loaded":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        optimizer.state = type(optimizer.state)(dict)


HOWS = ("deleted", "popped", "cleared", "all cleared", "another dict", "replaced", "offloaded", "loaded", "another state")


@pytest.fixture
def no_collector() -> Any:
    """Memory must be given back by its last owner, and not when the collector comes along."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@each_engine
@each_kind
@pytest.mark.parametrize("how", HOWS)
def test_states_are_given_back_at_once(how: str, kind: str, engine: str | None) -> None:
    """No step is needed."""
    for subject in (NADAM, STATEFUL[CLASSES.index("SGD")]):
        beside = Pair(subject, lambda: kinds_of(kind, MANY), engine=engine)
        beside.step(2)
        optimizer = beside.ours
        p = params_of(optimizer)[0]
        names = [name for name, value in optimizer.state[p].items() if value.ndim]
        watched = Watched([optimizer.state[p][name] for name in names])
        assert watched.held == (len(names), len(names))
        dropped(optimizer, how, p)
        assert watched.held == (0, 0)


@pytest.mark.usefixtures("no_collector")
@each_engine
@each_kind
@pytest.mark.parametrize("end", ["step", "refused", "skipped", "measured"])
def test_gradients_are_given_back_after_the_step(end: str, kind: str, engine: str | None) -> None:
    """Also after one that was refused."""
    optimizer = ADAM.make(kinds_of(kind, MANY), engine=engine, nonfinite="skip" if end == "skipped" else "raise")
    for again in range(2):
        for k, p in enumerate(params_of(optimizer)):
            p.grad = random(tuple(p.shape), p.dtype, k)
        if end in ("refused", "skipped"):
            params_of(optimizer)[1].grad[2] = math.nan  # type: ignore[index]
        watched = Watched([p.grad for p in params_of(optimizer) if p.grad is not None])
        try:
            optimizer.step(**({"measure": True} if end == "measured" else {}))
        except NonFiniteGradientError:
            assert end == "refused", again
        else:
            assert end != "refused", again
        for p in params_of(optimizer):
            p.grad = None
        assert watched.held == (0, 0)


@pytest.mark.usefixtures("no_collector")
@each_engine
@each_kind
@pytest.mark.parametrize("how", ["list", "new list", "group", "moved"])
def test_parameters_are_given_back_at_once(how: str, kind: str, engine: str | None) -> None:
    """Taken out of their group, with or without it; or their memory replaced."""
    params = kinds_of(kind, ((4, 3), (300, 2), (5,)))
    optimizer = NADAM.make([{"params": params[:1]}, {"params": params[1:]}], engine=engine)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    watched = Watched([params[2]])
    if how == "moved":
        params[2].data = torch.ones_like(params[2])
        assert watched.held == (1, 0)
        return
    del p, params
    if how == "group":
        for p in optimizer.param_groups.pop()["params"]:
            del optimizer.state[p]
    else:
        group = optimizer.param_groups[1]
        p = group["params"].pop() if how == "list" else group["params"][1]
        group["params"] = group["params"][:1]
        del optimizer.state[p]
    del p
    assert watched.held == (0, 0)
    for p in params_of(optimizer):
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.usefixtures("no_collector")
@each_engine
@each_with_state
def test_an_optimizer_is_given_back_at_once(subject: Subject, engine: str | None) -> None:
    """With its states, as torch's is."""
    for make in (subject.theirs, lambda params: subject.make(params, engine=engine)):
        optimizer = make(kinds_of("parameter", MANY))
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.step()
        watched = Watched(state_tensors(optimizer))
        here = weakref.ref(optimizer)
        del optimizer, p
        assert here() is None
        assert watched.held == (0, 0)


@pytest.mark.usefixtures("no_collector")
def test_what_was_loaded_is_given_back() -> None:
    """A state dict belongs to whoever read it."""
    optimizer = NADAM.make(kinds_of("parameter", MANY))
    for p in params_of(optimizer):
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    watched = Watched([value for own in saved["state"].values() for value in own.values()])
    optimizer.load_state_dict(saved)
    optimizer.step()
    del saved
    assert watched.held == (0, 0)


@each_with_state
def test_large_states_are_allocated_singly(subject: Subject) -> None:
    """So that each can be dropped, moved or resized alone."""
    p = torch.nn.Parameter(torch.zeros(1_000, 600))
    q = torch.nn.Parameter(torch.zeros(1_000, 600))
    optimizer = subject.make([p, q])
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    large = [value for value in state_tensors(optimizer) if value.ndim]
    assert len({value.untyped_storage().data_ptr() for value in large}) == len(large) >= 2
    for value in large:
        assert value.untyped_storage().nbytes() <= 1.01 * 2_400_000


@each_engine
@each_kind
@pytest.mark.parametrize("end", ["step", "refused", "measured", "loaded"])
def test_storages_can_be_resized_after_a_step(end: str, kind: str, engine: str | None) -> None:
    """Of parameters, gradients and states: growing embeddings, and memory that is freed and filled again."""
    for subject in (NADAM, SGD):
        optimizer = subject.make(kinds_of(kind, SHAPES), engine=engine)
        for again in range(2):
            for p in params_of(optimizer):
                p.grad = laid(torch.ones_like(p), KINDS[kind][0])
            if end == "refused" and again:
                params_of(optimizer)[3].grad[1] = math.inf  # type: ignore[index]
                with pytest.raises(NonFiniteGradientError):
                    optimizer.step()
            else:
                optimizer.step(**({"measure": True} if end == "measured" else {}))
        if end == "loaded":
            optimizer.load_state_dict(optimizer.state_dict())
        for tensor in [*params_of(optimizer), *(p.grad for p in params_of(optimizer)), *state_tensors(optimizer)]:
            storage = tensor.untyped_storage()
            assert storage.resizable()
            size = storage.nbytes()
            storage.resize_(size + 800)
            storage.resize_(size)
        if end != "refused":
            optimizer.step()


def test_a_state_dict_can_be_resized() -> None:
    """What is saved is the tensors themselves, as torch gives them."""
    optimizer = ADAM.make(kinds_of("parameter", MANY))
    for p in params_of(optimizer):
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = optimizer.state_dict()["state"]
    for k, p in enumerate(params_of(optimizer)):
        for name, value in optimizer.state[p].items():
            assert saved[k][name] is value


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_of_arrays(dtype: Any) -> None:
    """Parameters, gradients, states and counters that lie in arrays of the user's are read and written there."""
    arrays = {name: np.zeros(5, dtype) for name in ("p", "g", "exp_avg", "exp_avg_sq")}
    count = np.zeros((), np.float32)
    p = torch.nn.Parameter(torch.from_numpy(arrays["p"]))
    p.grad = torch.from_numpy(arrays["g"])
    optimizer = ADAM.make([p])
    optimizer.state[p] = {"step": torch.from_numpy(count), **{name: torch.from_numpy(arrays[name]) for name in ("exp_avg", "exp_avg_sq")}}
    alone = torch.nn.Parameter(torch.zeros_like(p))
    other = ADAM.make([alone])
    for k in range(3):
        arrays["g"][:] = k + np.arange(5)
        alone.grad = torch.from_numpy(arrays["g"].copy())
        optimizer.step()
        other.step()
        assert count == k + 1
        assert np.array_equal(arrays["p"], alone.detach().numpy())
        assert np.array_equal(arrays["exp_avg"], other.state[alone]["exp_avg"].numpy())


@pytest.mark.parametrize("script", ["import openadam.torch", "import torch, openadam.torch\nopenadam.torch.SGD([torch.zeros(1)]).step()"])
def test_a_program_ends_quietly(script: str) -> None:
    """Nothing is said about what the interpreter could not free at its end."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout + done.stderr == ""
