"""Other modes and odd tensors: as torch, or refused by an error that has a name; never a crash."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchfamily import Subject, each_class, each_with_state, equal, give, leaves, params_of
from torchpairs import apart

import openadam
import openadam.errors
import openadam.torch
from openadam import OpenAdamError

ENGINES = (None, "graph")
each_engine = pytest.mark.parametrize("engine", ENGINES)


def run(optimizer: Any, steps: int = 3) -> Any:
    for k in range(steps):
        give(params_of(optimizer), k)
        optimizer.step()
    return optimizer


# --- modes -------------------------------------------------------------------------------------------------------------


def everything(optimizer: Any) -> Any:
    """What makes tensors, one after the other: steps, a load, a copy, a group, states made anew. Gradients are always on the CPU."""

    def go(**how: bool) -> None:
        for k in range(2):
            with torch.device("cpu"):
                give(params_of(optimizer), k)
            optimizer.step(**how)

    go()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go()
    _, optimizer = copy.deepcopy((params_of(optimizer), optimizer))
    with torch.device("cpu"):
        optimizer.add_param_group({"params": leaves([(5,)], torch.float32, 3)})
    optimizer.state.clear()
    go(measure=True)
    return optimizer


@each_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@each_with_state
def test_another_default_device(subject: Subject, dtype: torch.dtype, engine: str | None) -> None:
    """Everything an optimizer does has the same bits, on the same device, as without."""
    optimizers = []
    for device in ("cpu", "meta"):
        optimizer = subject.make(leaves([(4,), (2, 3)], dtype), engine=engine, clip_norm=10.0, clip_value=3.0)
        with torch.device(device):
            optimizers.append(everything(optimizer))
    assert equal(*optimizers)
    assert {value.device.type for own in optimizers[1].state.values() for value in own.values()} == {"cpu"}


@each_engine
@each_with_state
def test_another_default_dtype(subject: Subject, engine: str | None) -> None:
    """Counters are of the default dtype, as torch's; the bits of the others are those of their own dtype."""
    calm = run(subject.make(leaves([(4,), (2, 3)], torch.float32), engine=engine), 4)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        optimizer = run(subject.make(leaves([(4,), (2, 3)], torch.float32), engine=engine), 4)
        theirs = run(subject.theirs(leaves([(4,), (2, 3)], torch.float32)), 4)
    finally:
        torch.set_default_dtype(before)
    for p, q, r in zip(*map(params_of, (optimizer, calm, theirs)), strict=True):
        assert torch.allclose(p, q, rtol=1e-6)
        dtypes = [{key: value.dtype for key, value in o.state[x].items() if value is not None} for o, x in ((optimizer, p), (theirs, r))]
        assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"clip_value": 0.1}, {"nonfinite": "skip"}, {"nonfinite": "propagate"}], ids=str)
@each_class
def test_fake_tensors_with_what_comes_on_top(subject: Subject, options: dict[str, Any]) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        p = torch.nn.Parameter(torch.zeros(4, 3))
        optimizer = subject.make([p], **options)
        for _ in range(2):
            p.grad = torch.ones(4, 3)
            optimizer.step(measure=True)
        assert all(isinstance(value, FakeTensor) and value.shape in (p.shape, ()) for value in optimizer.state[p].values())


# --- tensors that are not memory, or not only ---------------------------------------------------------------------------


def fake_gradient(module: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    p = torch.nn.Parameter(torch.zeros(3))
    with FakeTensorMode():
        gradient = torch.ones(3)
    p.grad = gradient
    return stepped(module, p)


def fake_tensors_after_their_mode(module: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
    stepped(module, p)
    return list(p.shape)


def a_step_inside_a_transform_of_gradients(module: Any) -> Any:
    def value(x: Tensor) -> Tensor:
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
        stepped(module, p)
        return (x * p.detach()).sum()

    return torch.func.grad(value)(torch.ones(3)).tolist()


def a_step_inside_vmap(module: Any) -> Any:
    def value(x: Tensor) -> Tensor:
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
        stepped(module, p)
        return x * p.detach()

    return torch.vmap(value)(torch.ones(2, 3)).tolist()


def a_gradient_from_inside(transform: Callable[[Callable[[Tensor], Tensor]], Any]) -> Callable[[Any], Any]:
    def case(module: Any) -> Any:
        p = torch.nn.Parameter(torch.zeros(3))

        def value(x: Tensor) -> Tensor:
            p.grad = x * 2
            stepped(module, p)
            return x.sum()

        try:
            transform(value)
        finally:
            p.grad = None
            assert p.tolist() == [0.0] * 3, "a refused step has moved it"
        return p.tolist()

    return case


def masked(module: Any) -> Any:
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.masked.masked_tensor(torch.ones(3), torch.tensor([True, False, True]))
    return stepped(module, p)


def zeros_without_memory(module: Any) -> Any:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch._efficientzerotensor((3,))
    return stepped(module, p)


def lazily_negated(module: Any) -> Any:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch._neg_view(torch.arange(3.0))
    return stepped(module, p)


def opaque(module: Any) -> Any:
    p = torch.nn.Parameter(torch.ones(3, 4).to_mkldnn())
    p.grad = torch.ones(3, 4).to_mkldnn()
    return stepped(module, p)


def of_two_parts(of_p: bool, of_g: bool) -> Callable[[Any], Any]:
    def case(module: Any) -> Any:
        from torch.testing._internal.two_tensor import TwoTensor

        p = torch.nn.Parameter(TwoTensor(torch.zeros(3), torch.zeros(3)) if of_p else torch.zeros(3))
        p.grad = TwoTensor(torch.ones(3), torch.ones(3)) if of_g else torch.ones(3)
        stepped(module, p)
        return [p.detach().a.tolist(), p.detach().b.tolist()] if of_p else p.tolist()

    return case


def answering(module: Any) -> Any:
    from torch.testing._internal.logging_tensor import LoggingTensor

    p = torch.nn.Parameter(LoggingTensor(torch.zeros(3)))
    p.grad = LoggingTensor(torch.ones(3))
    stepped(module, p)
    return p.detach().elem.tolist()


def watched(module: Any) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    p = torch.nn.Parameter(torch.zeros(3))
    with Watch():
        p.grad = torch.ones(3)
        return stepped(module, p)


def stepped(module: Any, p: Tensor) -> Any:
    optimizer = module.NAdam([p], lr=0.125, foreach=False)
    optimizer.step()
    return p.detach().tolist() if type(p.detach()) is Tensor and p.layout is torch.strided else None


ODD: dict[str, Callable[[Any], Any]] = {
    "a fake gradient": fake_gradient, "fake tensors after their mode": fake_tensors_after_their_mode,
    "a step inside torch.func.grad": a_step_inside_a_transform_of_gradients, "a step inside vmap": a_step_inside_vmap,
    "a gradient inside torch.func.grad": a_gradient_from_inside(lambda f: torch.func.grad(f)(torch.ones(3))),
    "a gradient inside vmap": a_gradient_from_inside(lambda f: torch.vmap(f)(torch.ones(2, 3))),
    "a masked gradient": masked, "zeros without memory": zeros_without_memory, "lazily negated": lazily_negated, "opaque": opaque,
    "two parts": of_two_parts(True, True), "two parts, plain gradient": of_two_parts(True, False), "a subclass of answers": answering,
    "under a mode that watches": watched,
}  # fmt: skip


def as_torch_or_named(which: str) -> str:
    """Whether ours gave what torch gave; or the name of our error."""
    try:
        theirs, failed = ODD[which](torch.optim), False
    except Exception:
        theirs, failed = None, True
    try:
        ours = ODD[which](openadam.torch)
    except OpenAdamError as error:
        return type(error).__name__
    except Exception as error:
        return f"not named: {type(error).__name__}: {error!s:.200}"
    if failed:
        return "torch refuses it, and ours has done something"
    same = torch.allclose(*(torch.tensor(x or [], dtype=torch.float64) for x in (theirs, ours)), rtol=1e-6, atol=1e-7)
    return "as torch" if same else f"ours is {ours}, torch's {theirs}"


def all_odd() -> dict[str, str]:
    warnings.simplefilter("ignore")
    return {which: as_torch_or_named(which) for which in ODD}


@functools.cache
def answers() -> dict[str, str]:
    return apart(all_odd)  # type: ignore[no-any-return]


@pytest.mark.parametrize("which", ODD)
def test_odd_tensors_are_as_torch_or_refused_by_name(which: str) -> None:
    """Never a crash, nor an error that does not say what to do."""
    answer = answers()[which]
    if which in ("lazily negated", "zeros without memory", "two parts", "a subclass of answers", "under a mode that watches"):
        assert answer == "as torch"
    else:
        assert answer == "as torch" or issubclass(getattr(openadam.errors, answer, Exception), OpenAdamError), answer


def test_an_operation_that_fails_in_one_row_leaves_the_others_too() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    class WithoutRoots(TwoTensor):
        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.sqrt.default:
                raise NotImplementedError("no roots here")
            return super().__torch_dispatch__(func, types, args, kwargs)

    narrow = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    plain = torch.nn.Parameter(torch.zeros(3))
    odd = torch.nn.Parameter(WithoutRoots(torch.zeros(3), torch.zeros(3)))
    narrow.grad, plain.grad, odd.grad = torch.ones_like(narrow), torch.ones(3), WithoutRoots(torch.ones(3), torch.ones(3))
    optimizer = openadam.torch.Adam([narrow, plain, odd])
    versions = [p._version for p in (narrow, plain)]
    with pytest.raises(openadam.GradientError, match=r"'param_0\.2'|no roots here"):
        optimizer.step()
    assert narrow.tolist() == plain.tolist() == [0.0] * 3
    assert [p._version for p in (narrow, plain)] == versions
    assert not optimizer.state
    odd.grad = None
    optimizer.step()
    assert plain.tolist() == pytest.approx([-0.001] * 3)
