"""Ours and torch's for-loop over the same tensors: parameters of every kind, memory that moves under them, and when the two agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from support import python
from torch import Tensor
from torchfamily import Subject, params_of, unit

LAYOUTS = ("plain", "transposed", "column", "offset", "negated")
COUNTERS = ("step", "mu_product")
KINDS = {
    "parameter": ("plain", "parameter"), "a Parameter of the user's": ("plain", "subclass"), "tensor": ("plain", "tensor"),
    "complex": ("plain", "complex"), "column": ("column", "parameter"), "transposed": ("transposed", "parameter"),
    "offset": ("offset", "parameter"), "negated": ("negated", "parameter"),
}  # fmt: skip
"""How a parameter lies in memory, and what it is."""
MOVES = ("clone", "layout", "set_", "storage", "grown", "shared", "swapped")


class Weight(torch.nn.Parameter):
    """A Parameter of the user's own."""


# --- tensors -----------------------------------------------------------------------------------------------------------


def random(shape: tuple[int, ...], dtype: torch.dtype, number: int) -> Tensor:
    """The same values at every call with the same number."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(shape, generator=generator, dtype=dtype)


def laid(values: Tensor, layout: str) -> Tensor:
    """A copy of the values that lies in memory in a way of its own."""
    values = values.detach().clone()
    if layout == "transposed":
        return values.mT.contiguous().mT if values.ndim > 1 else values
    if layout == "column":
        return torch.zeros(*values.shape, 2, dtype=values.dtype)[..., 1].copy_(values)
    if layout == "offset":
        return torch.zeros(values.numel() + 1, dtype=values.dtype)[1:].view(values.shape).copy_(values)
    if layout == "negated" and not values.is_complex():
        return torch._neg_view(-values)
    if layout == "expanded":
        return values.reshape(-1)[:1].view((1,) * values.ndim).expand(values.shape) if values.numel() else values
    return values


def made(values: Tensor, layout: str, kind: str) -> Tensor:
    """A parameter of these values."""
    tensor = laid(values, layout)
    return tensor.requires_grad_() if kind == "tensor" else Weight(tensor) if kind == "subclass" else torch.nn.Parameter(tensor)


def kinds_of(kind: str, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Parameters of one of `KINDS`, the same at every call."""
    layout, what = KINDS[kind]
    wanted = dtype.to_complex() if what == "complex" else dtype
    return [made(random(shape, wanted, k), layout, what) for k, shape in enumerate(shapes)]


def moved(tensor: Tensor, how: str, layout: str = "plain") -> None:
    """The same object with the same values, in another place or laid out otherwise."""
    with torch.no_grad():
        if how == "clone":
            tensor.data = tensor.data.clone()
        elif how == "layout":
            tensor.data = laid(tensor, layout)
        elif how == "set_":
            tensor.set_(laid(tensor, layout if layout != "negated" else "plain"))
        elif how == "shared":
            tensor.share_memory_()
        elif how == "swapped":
            fresh = laid(tensor, layout)
            torch.utils.swap_tensors(tensor, fresh if type(tensor) is Tensor else type(tensor)(fresh))
        elif not tensor.is_shared():  # torch itself crashes where shared memory is freed and allocated again
            storage = tensor.untyped_storage()
            before, size = storage.clone(), storage.nbytes()
            storage.resize_(0 if how == "storage" else 4 * size)
            between = torch.ones(size, dtype=torch.uint8)  # where it was, perhaps
            storage.resize_(size)
            storage.copy_(before)
            del between


def state_tensors(optimizer: Any) -> list[Tensor]:
    """Every tensor that an optimizer keeps, counters among them."""
    return [value for own in optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]


# --- the two sides -----------------------------------------------------------------------------------------------------


class Pair:
    """An optimizer of ours and one of torch's; whatever is done to one is done to the other."""

    def __init__(self, subject: Subject, params: Callable[[], Any], **ours: Any) -> None:
        self.ours, self.theirs = subject.make(params(), **ours), subject.theirs(params())
        self.taken = 0

    @property
    def both(self) -> tuple[Any, Any]:
        return self.ours, self.theirs

    def step(self, times: int = 1, without: Iterable[int] = ()) -> None:
        """Steps over random gradients, which some parameters do not get; the two must agree after each."""
        for _ in range(times):
            for optimizer in self.both:
                for k, p in enumerate(params_of(optimizer)):
                    p.grad = None if k in without else random(tuple(p.shape), p.dtype, 1000 * self.taken + k)
            self.same_step()

    def same_step(self) -> None:
        """A step over the gradients that there are."""
        self.taken += 1
        for optimizer in self.both:
            optimizer.step()
        agree(self.ours, self.theirs)


def agree(ours: Any, theirs: Any) -> None:
    """The same parameters, states and counters, up to rounding; then ours are torch's."""
    for k, (p, q) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
        level(p, q, f"parameter {k}", type(theirs).__name__)
        own, other = ({key: x for key, x in o.state.get(w, {}).items() if x is not None} for o, w in ((ours, p), (theirs, q)))
        assert own.keys() == other.keys(), k
        for key, value in other.items():
            if key == "step":
                assert float(own[key].detach()) == float(value.detach()), f"step of parameter {k}"
            level(own[key], value, f"{key} of parameter {k}", type(theirs).__name__)


def level(mine: Tensor, theirs: Tensor, what: str, name: str) -> None:
    """They agree up to rounding; then mine is made equal, in place, so that rounding does not add up."""
    narrow = {torch.float32, torch.complex64}.intersection((mine.dtype, theirs.dtype))
    # A moment in which terms cancel is divided by its root and eps: what is lost is relative to the largest term, not to the result.
    rounding = 60 * unit(torch.float32 if narrow or name == "NAdam" else torch.float64)  # torch keeps NAdam's product of momenta in float32
    with torch.no_grad():
        a, b = (torch.view_as_real(t).double() if t.is_complex() else t.detach().resolve_neg().double() for t in (mine, theirs))
        assert a.numel() == b.numel(), what
        assert bool(torch.isfinite(b).all()), f"torch's own {what}"
        off = ((a.reshape(b.shape) - b).abs() / (rounding * (2 + b.abs()))).nan_to_num(nan=math.inf).reshape(-1)
        if off.numel() and float(off.max()) > 1:
            k = int(off.argmax())
            raise AssertionError(f"{what}, element {k}: ours is {a.reshape(-1)[k]}, torch's {b.reshape(-1)[k]}, {float(off[k]):.3g} times too far")
        mine.copy_(theirs.reshape(mine.shape))


def apart(function: Callable[..., Any], *given: Any, timeout: float = 90) -> Any:
    """What a function of a test module returns in a process of its own, which may crash or fork; arguments and result as JSON."""
    script = """
import importlib, json, sys, warnings
sys.path.insert(0, sys.argv[1])
function = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
if __name__ == "__main__":
    print("\\n" + json.dumps(function(*json.loads(sys.argv[4]))))
"""
    said = python(script, str(Path(__file__).parent), function.__module__, function.__name__, json.dumps(given), timeout=timeout)
    return json.loads(said.splitlines()[-1])
