"""The rules evaluated with torch operations: for tensors that the native kernels do not reach (other devices, 16-bit dtypes)."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import engine as engines
from ..language.arrays import run
from ..language.program import Program
from ..measures import MEASURES, Measure
from ..rules import PREPARE
from .memory import arithmetic_of, array_over, as_array, dtype_name, has_numbers, is_memory
from .rows import Reached

__all__ = ["commit", "measured", "seen_inside", "stepped"]

Kernel = Callable[..., dict[str, Tensor]]


def _unchanged(x: Any) -> Any:
    return x


def _sqrt(x: Tensor) -> Tensor:
    """The square root rounded correctly, as everywhere else; torch's on a CPU (MKL's) misses it by a unit in places."""
    if x.device.type != "cpu" or type(x) is not Tensor:
        return torch.sqrt(x)
    with np.errstate(invalid="ignore"):
        return torch.as_tensor(np.sqrt(array_over(x.contiguous())))


EAGER = types.SimpleNamespace(abs=torch.abs, sqrt=_sqrt, where=torch.where, zeros=torch.zeros, finfo=torch.finfo, divide=torch.divide)


@functools.lru_cache(maxsize=256)
def _kernel(program: Program, compile: bool) -> Kernel:
    """A function of tensors of one dtype and shape: what a program makes of them. The scalars are tensors, so that none is built into the code."""
    module = torch if compile else EAGER

    def update(tensors: Mapping[str, Tensor], scalars: Sequence[Tensor], prepare: Sequence[Tensor] | None) -> dict[str, Tensor]:
        def number(value: Any) -> Tensor:
            """A constant as a tensor: torch has other roundings, and other dtypes, for numbers of Python's."""
            return value if isinstance(value, Tensor) else tensors["p"].new_full((), value)

        if prepare is not None:
            prepared = run(PREPARE, {"g": tensors["g"], "p": tensors["p"]}, prepare, module, number)["prepared"]
            tensors = {**tensors, "g": prepared}
        return run(program, tensors, scalars, module, number)

    return torch.compile(update, dynamic=True) if compile else update


def stepped(row: Reached, factor: float, clip_value: float, how: str) -> tuple[list[Tensor], list[float]]:
    """What the targets of a row would become, and its scalar states; nothing is written.

    Args:
        row: What is worked on.
        factor: What the gradient is multiplied by.
        clip_value: Largest magnitude of an element of it.
        how: ``graph``, in torch operations; ``compiled``, these under `torch.compile`; ``blocks``, where the row lies in this machine's
            memory by the NumPy reference, which keeps its intermediate values in the cache.
    """
    program = row.update.program
    once = row.update.once(row.steps + 1, factor, clip_value, row.memory)
    wide = arithmetic_of(row.parameter.dtype)
    *states, p = (row.touched(target).to(wide) for target in row.targets)
    if not p.numel():
        return [target if row.rows is None else target[row.rows.places] for target in row.targets], once.memory
    flat = is_memory(p)
    g, *others = (tensor.reshape(-1) if flat else tensor for tensor in (row.gradient.to(wide), p, *states))
    if how == "blocks" and all(map(_lies_here, (g, *others))):
        outputs = _in_blocks(program, [g, *others], once)
    else:
        outputs = _in_operations(program, {"g": g, **dict(zip(("p", *program.states), others, strict=True))}, once, compile=how == "compiled")
    values = []
    for target, name in zip(row.targets, (*program.states, "p"), strict=True):
        value = outputs[name].reshape(row.gradient.shape) if flat else outputs[name]
        values.append(torch.view_as_complex(value.contiguous()) if target.is_complex() else value)
    return values, once.memory


def _lies_here(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be read from this machine's memory."""
    return is_memory(tensor) and has_numbers(tensor) and tensor.device.type == "cpu" and tensor.data_ptr() != 0


def _in_blocks(program: Program, tensors: Sequence[Tensor], once: engines.Once) -> dict[str, Tensor]:
    held = [tensor.contiguous() for tensor in tensors]
    g, p, *states = map(array_over, held)
    with np.errstate(all="ignore"):
        return {name: torch.from_numpy(array) for name, array in engines.outcome(program, g, p, states, once).items()}


def _in_operations(program: Program, tensors: Mapping[str, Tensor], once: engines.Once, *, compile: bool) -> dict[str, Tensor]:
    p = tensors["p"]

    def placed(numbers: Sequence[float] | None) -> Sequence[Tensor] | None:
        if numbers is None:
            return None
        if is_memory(p):
            return torch.tensor(numbers, dtype=torch.float64, device="cpu").to(p.device, p.dtype).unbind()
        return [p.new_full((), number) for number in numbers]  # of the parameter's own kind

    with getattr(p, "fake_mode", None) or contextlib.nullcontext():  # fake tensors answer nothing outside of theirs
        return _kernel(program, compile)(tensors, placed(once.scalars), placed(once.prepare))


def commit(row: Reached, values: Sequence[Tensor], memory: Sequence[float]) -> None:
    """Write what `stepped` computed; where the tensors are plain memory, in one call that no signal handler can interrupt."""
    if row.rows is not None:
        put = functools.partial(torch.Tensor.index_put_, accumulate=False)
        placed = [value.to(target.dtype) for target, value in zip(row.targets, values, strict=True)]
        collections.deque(map(put, row.targets, itertools.repeat(row.rows.places), placed), maxlen=0)
    elif all(is_memory(target) and not target.is_neg() and not target.is_conj() for target in row.targets):
        torch._foreach_copy_(list(row.targets), list(values))
    else:
        for target, value in zip(row.targets, values, strict=True):
            target.copy_(value)
    row.commit_numbers(memory)


def seen_inside(row: Reached, factor: float, clip_value: float, measures: tuple[Measure, ...]) -> Any:
    """What measures see inside the step that a row is about to take."""
    if not has_numbers(row.parameter):
        return [math.nan] * len(measures)
    names = ("g", *row.update.program.states, "p")
    wide = np.dtype(dtype_name(arithmetic_of(row.parameter.dtype)))
    tensors = (row.gradient, *map(row.touched, row.targets))
    arrays = {name: as_array(tensor).reshape(-1).astype(wide, copy=False) for name, tensor in zip(names, tensors, strict=True)}
    with np.errstate(all="ignore"):
        return row.update.inside(measures, row.steps + 1, factor, clip_value, row.memory, arrays)


def measured(row: Reached, measures: Sequence[int], before: Tensor | None = None) -> list[float]:
    """What the measures see of a row: of its gradient and, once it has been stepped, of the parameter before and after."""
    if not has_numbers(row.parameter):
        return [0.0] * len(measures)
    if not row.gradient.numel():
        return [0.0] * len(measures)
    tensors = {"g": row.gradient}
    if before is not None:
        tensors |= {"p": before, "p_after": row.touched(row.parameter)}
    if all(map(_lies_here, tensors.values())):  # in the order of the native loop
        held = {name: tensor.to(arithmetic_of(tensor.dtype)).reshape(-1).contiguous() for name, tensor in tensors.items()}
        with np.errstate(all="ignore"):
            return engines.tally(measures, {name: array_over(tensor) for name, tensor in held.items()})
    wide = torch.float32 if row.parameter.device.type == "mps" else torch.float64
    tensors = {name: tensor.to(wide) for name, tensor in tensors.items()}
    seen = []
    for measure in map(MEASURES.__getitem__, measures):
        values = run(measure.program, tensors, [], torch, _unchanged)["value"]
        seen.append(float(values.sum() if measure.reduction == "sum" else values.amax()))
    return seen
