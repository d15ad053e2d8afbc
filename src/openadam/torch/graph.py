"""The rules evaluated with torch operations: for tensors that the native kernels do not reach (other devices, 16-bit dtypes)."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import engine as engines
from ..language.arrays import run
from ..language.program import Program
from ..measures import MEASURES
from ..rules import PREPARE

__all__ = ["GraphEngine", "arithmetic_of"]

Kernel = Callable[..., dict[str, Tensor]]


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    """What a step computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _unchanged(x: Any) -> Any:
    return x


def _sqrt(x: Tensor) -> Tensor:
    """The square root rounded correctly, as everywhere else; torch's on a CPU (MKL's) misses it by a unit in places."""
    if x.device.type != "cpu" or type(x) is not Tensor:
        return torch.sqrt(x)
    with np.errstate(invalid="ignore"):
        return torch.as_tensor(np.sqrt(x.numpy()))


EAGER = types.SimpleNamespace(abs=torch.abs, sqrt=_sqrt, where=torch.where, zeros=torch.zeros, finfo=torch.finfo)


@functools.lru_cache(maxsize=256)
def _kernel(program: Program, compile: bool) -> Kernel:
    """A function of flat tensors of one dtype: what a program makes of them. The scalars are tensors, so that none is built into the code."""
    module = torch if compile else EAGER

    def update(tensors: Mapping[str, Tensor], scalars: Tensor, prepare: Tensor | None) -> dict[str, Tensor]:
        if prepare is not None:
            prepared = run(PREPARE, {"g": tensors["g"], "p": tensors["p"]}, prepare.unbind(), module, _unchanged)["prepared"]
            tensors = {**tensors, "g": prepared}
        return run(program, tensors, scalars.unbind(), module, _unchanged)

    return torch.compile(update, dynamic=True) if compile else update


class GraphEngine:
    """A native (or, without kernels, the reference) engine that hands the rows it cannot reach to torch operations.

    Rows in `given` are these; `tensors` holds what belongs to them: the local part of the parameter and of its states, complex
    numbers as pairs of reals.
    """

    def __init__(self, base: engines.Engine, *, compile: bool = False) -> None:
        self.base = base
        self.name, self.isa = base.name, base.isa
        self.compile = compile
        self.given: list[int] = []
        self.gradients: dict[int, Tensor] = {}
        self.tensors: dict[int, tuple[Tensor, ...]] = {}  # the states, then the parameter

    def kernel(self, program: Program) -> int | None:
        return self.base.kernel(program)

    def measure(self, table: engines.Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        tallies = self.base.measure(table, measures, threads)
        self._tally(tallies, measures)
        return tallies

    def update(self, table: engines.Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        tallies = np.zeros((len(table.rows), len(measures)))
        self._tally(tallies, [m for m in measures if not MEASURES[m].reads_parameter])
        for i in self.given:
            outputs = self.outputs(table, i)
            for target, name in zip(self.tensors[i], (*table.programs[i].states, "p"), strict=True):
                target.copy_(outputs[name].reshape(target.shape))
        return tallies + self.base.update(table, measures, threads)

    def outputs(self, table: engines.Table, i: int) -> dict[str, Tensor]:
        """What row i would become, flat, in the arithmetic of the step; nothing is written."""
        program = table.programs[i]
        *states, p = self.tensors[i]
        dtype = arithmetic_of(p.dtype)
        tensors = {"g": self.gradients[i], "p": p, **dict(zip(program.states, states, strict=True))}
        flat = {name: tensor.reshape(-1).to(dtype) for name, tensor in tensors.items()}
        at, prepare_at = table.rows[i, engines.SCALARS], table.rows[i, engines.PREPARATION]
        scalars = torch.from_numpy(table.scalars)

        def placed(start: int, count: int) -> Tensor:
            return scalars[start : start + count].to(p.device, dtype)

        prepare = placed(prepare_at, len(PREPARE.scalars)) if prepare_at >= 0 else None
        if not p.numel():
            return flat
        return _kernel(program, self.compile)(flat, placed(at, len(program.scalars)), prepare)

    def _tally(self, tallies: npt.NDArray[np.float64], measures: Sequence[int]) -> None:
        """The measures of the gradient; one transfer for all rows."""
        if not self.given or not measures:
            return
        values = []
        for i in self.given:
            g = self.gradients[i].reshape(-1)
            wide = g.to(torch.float32 if g.device.type == "mps" else torch.float64)
            for index in measures:
                seen = run(MEASURES[index].program, {"g": wide}, [], torch, _unchanged)["value"]
                values.append((seen.sum() if MEASURES[index].reduction == "sum" else seen.amax()).to(self.gradients[self.given[0]].device))
        tallies[self.given, : len(measures)] = torch.stack(values).reshape(len(self.given), len(measures)).to(torch.float64).cpu().numpy()
