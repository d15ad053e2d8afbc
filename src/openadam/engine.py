"""Native or reference: the two engines that run one step over the table of all tensors, with the same bits.

A step is data: a `Table` with a row per tensor (addresses, lengths, where its scalars start), the scalars of the step, and
the arrays behind the addresses. The native engine reads the rows; the reference engine evaluates the same programs with
NumPy. Both check first, change nothing until nothing can fail any more, and then commit in one call that no signal
handler can interrupt.
"""

from __future__ import annotations

import collections
import functools
import operator
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import HyperparameterError, NativeMissingWarning
from .language.arrays import run
from .language.program import Program
from .measures import MEASURES
from .rules import PREPARE

_native: Any
try:
    from openadam import _native
except ImportError:  # a source install without a compiler
    _native = None

__all__ = [
    "Engine",
    "Table",
    "assign_all",
    "choose_engine",
    "native_isas",
    "native_or_reference",
    "read_gradients",
    "resolve_threads",
    "tensor_reader",
    "zeros",
]

Array = npt.NDArray[Any]

# The columns of a row, as native/loop.hpp reads them.
PARAMETER, GRADIENT, LENGTH, DTYPE, KERNEL, SCALARS, PREPARATION, LAYOUT, ACTIVE, STATES = range(10)
COLUMNS = STATES + 4
DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}
MAX_THREADS = 64

BLOCK = 1024  # elements; measures are joined lane by lane in a block, block by block in a chunk, chunk by chunk
CHUNK = 16 * BLOCK
LANES = 16


@dataclass
class Table:
    """Everything one step needs. Parameters, gradients and states share an axis order in which states are dense."""

    rows: npt.NDArray[np.int64]
    programs: list[Program] = field(default_factory=list)
    parameters: list[Array] = field(default_factory=list)
    gradients: list[Array | None] = field(default_factory=list)
    states: list[tuple[Array, ...]] = field(default_factory=list)
    scalars: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    layouts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    counters: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    counters_after: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    memory: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    memory_after: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class Engine(Protocol):
    """Measures and updates all active rows of a table; `update` also commits its counters."""

    name: str
    isa: str

    def kernel(self, program: Program) -> int | None:
        """The index of the program's kernel, or None where this engine has none."""

    def measure(self, table: Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        """Tallies (rows x measures) of the tensors as they are."""

    def update(self, table: Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        """One step; tallies of what was seen on the way."""


class NativeEngine:
    """The generated kernels of one instruction set."""

    name = "native"

    def __init__(self, index: int, team: int = 0) -> None:
        self.index = index
        self.team = team  # the address of a function by which a host's own threads do the work; 0: ours
        self.isa = _native.isas()[index]
        rows = _native.updates(index)
        self._kernels = {(name, digest): position for position, (name, digest, _, _) in enumerate(rows)}
        seen = [(measure.name, measure.digest) for measure in MEASURES]
        self.current = (PREPARE.name, PREPARE.digest) in self._kernels and _native.measures(index) == seen

    def kernel(self, program: Program) -> int | None:
        return self._kernels.get((program.name, program.digest)) if self.current else None

    def measure(self, table: Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        return self._run(table, measures, threads, update=False)

    def update(self, table: Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        return self._run(table, measures, threads, update=True)

    def _run(self, table: Table, measures: Sequence[int], threads: int, *, update: bool) -> npt.NDArray[np.float64]:
        which = np.array(measures, np.int64)
        tallies = np.zeros((len(table.rows), len(which)))
        counters, memory = (table.counters_after, table.memory_after) if update else (table.counters, table.memory)
        _native.run(
            self.index, table.rows, table.scalars, table.layouts, which, update, tallies, threads,
            table.counters, counters, table.memory, memory, self.team,
        )  # fmt: skip
        return tallies


class ReferenceEngine:
    """The same programs, evaluated with NumPy: the specification, and the fallback where there is no native code."""

    name = "reference"
    isa = "numpy"

    def kernel(self, program: Program) -> int | None:
        return 1

    def measure(self, table: Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        tallies = np.zeros((len(table.rows), len(measures)))
        with np.errstate(all="ignore"):
            for i in self._active(table):
                p = table.parameters[i].reshape(-1)
                self._tally(tallies[i], measures, table.gradients[i], p, p)
        return tallies

    def update(self, table: Table, measures: Sequence[int], threads: int) -> npt.NDArray[np.float64]:
        tallies = np.zeros((len(table.rows), len(measures)))
        targets: list[Array] = []
        values: list[Array] = []
        with np.errstate(all="ignore"):
            for i in self._active(table):
                p = table.parameters[i].reshape(-1)
                outputs = self.outputs(table, i)
                self._tally(tallies[i], measures, table.gradients[i], p, outputs["p"])
                names = [*table.programs[i].states, "p"]
                for target, name in zip((*table.states[i], table.parameters[i]), names, strict=True):
                    targets.append(target)
                    values.append(np.broadcast_to(outputs[name], p.shape).reshape(target.shape))
        targets += [table.counters, table.memory]
        values += [table.counters_after, table.memory_after]
        assign_all(targets, values)
        return tallies

    @staticmethod
    def outputs(table: Table, i: int) -> dict[str, Any]:
        """What row i would become, flat; nothing is written."""
        _, _, _, _, _, scalars_at, prepare_at, *_ = table.rows[i].tolist()
        program = table.programs[i]
        p = table.parameters[i].reshape(-1)
        gradient = table.gradients[i]
        assert gradient is not None
        g = gradient.reshape(-1)
        if prepare_at >= 0:
            prepare = table.scalars[prepare_at : prepare_at + len(PREPARE.scalars)]
            g = run(PREPARE, {"g": g, "p": p}, prepare.tolist(), np)["prepared"]
        arrays = {"g": g, "p": p, **{name: state.reshape(-1) for name, state in zip(program.states, table.states[i], strict=True)}}
        scalars = table.scalars[scalars_at : scalars_at + len(program.scalars)]
        return run(program, arrays, scalars.tolist(), np)

    @staticmethod
    def _active(table: Table) -> list[int]:
        return np.flatnonzero(table.rows[:, ACTIVE]).tolist()

    @staticmethod
    def _tally(tally: Array, measures: Sequence[int], gradient: Array | None, p: Array, p_after: Array) -> None:
        assert gradient is not None
        arrays = {"g": gradient.reshape(-1), "p": p, "p_after": p_after}
        arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
        for column, index in enumerate(measures):
            measure = MEASURES[index]
            tally[column] = join(run(measure.program, arrays, [], np)["value"], measure.reduction)


def join(values: Array, reduction: str) -> float:
    """Reduce in the fixed order of the native loop: 16 lanes in a block, blocks in a chunk, chunks in a row."""

    def joined(a: Any, b: Any) -> Any:
        return a + b if reduction == "sum" else np.where((a > b) | (a != a), a, b)

    chunks = -(-values.size // CHUNK)
    padded = np.zeros(chunks * CHUNK)
    padded[: values.size] = values
    groups = padded.reshape(chunks, CHUNK // BLOCK, BLOCK // LANES, LANES)
    lanes = np.zeros((chunks, CHUNK // BLOCK, LANES))
    for group in range(BLOCK // LANES):
        lanes = joined(lanes, groups[:, :, group])
    width = LANES // 2
    while width:
        lanes = joined(lanes[..., :width], lanes[..., width : 2 * width])
        width //= 2
    blocks = lanes[..., 0]
    partial = np.zeros(chunks)
    for block in range(CHUNK // BLOCK):
        partial = joined(partial, blocks[:, block])
    return float(functools.reduce(joined, partial, np.float64(0.0)))


def assign_all(targets: Sequence[Any], values: Sequence[Any]) -> None:
    """Replace the contents of arrays and lists in one call into C: no Python code runs in between, so no signal handler does."""
    assign: Callable[[Any, Any, Any], None] = operator.setitem
    keys = [slice(None) if isinstance(target, list) else ... for target in targets]
    collections.deque(map(assign, targets, keys, values), maxlen=0)


def native_isas() -> list[str]:
    """Instruction sets of the compiled kernels that this processor runs, the best first; empty without native code."""
    return list(_native.isas()) if _native is not None else []


def _native_engine(isa: str | None) -> NativeEngine | None:
    isas = native_isas()
    if isa is not None and isa not in isas:
        raise HyperparameterError(f"isa={isa!r} is none of those that run here: {', '.join(isas) or 'there is no native code'}")
    wanted = isa or os.environ.get("OPENADAM_ISA")
    if wanted and isas and wanted not in isas:
        warnings.warn(f"OPENADAM_ISA={wanted!r} is none of {', '.join(isas)}; using {isas[0]}", UserWarning, stacklevel=4)
        wanted = None
    return _native_engine_at(isas.index(wanted) if wanted else 0) if isas else None


@functools.cache
def _native_engine_at(index: int, team: int = 0) -> NativeEngine:
    return NativeEngine(index, team)


def choose_engine(program: Program, engine: str | None = None, isa: str | None = None) -> Engine:
    """The engine for a program: native where there is a kernel printed from this very program, else the reference.

    ``OPENADAM_ENGINE`` (``native`` or ``reference``) and ``OPENADAM_ISA`` choose where the arguments do not.
    """
    given = f"engine={engine!r}" if engine else f"OPENADAM_ENGINE={os.environ.get('OPENADAM_ENGINE')!r}"
    engine = engine or os.environ.get("OPENADAM_ENGINE") or None
    if engine not in (None, "native", "reference"):
        raise HyperparameterError(f"{given} is neither 'native' nor 'reference'")
    if engine == "reference":
        return ReferenceEngine()
    native = _native_engine(isa)
    if native is not None and native.kernel(program) is not None:
        return native
    if engine == "native":
        why = "there is no native code here" if native is None else f"there is no kernel for {program.name!r}"
        raise HyperparameterError(f"{given}: {why}; leave it out to run on the reference")
    if native is None:
        warnings.warn(
            "openadam has no native kernels here; steps run on the NumPy reference (slower, the same bits). "
            "Reinstall with a C++20 compiler, or set OPENADAM_ENGINE=reference to accept it.",
            NativeMissingWarning,
            stacklevel=3,
        )
    return ReferenceEngine()


def native_or_reference(team: int = 0) -> Engine:
    """The native engine if there is one and ``OPENADAM_ENGINE`` does not say otherwise, whatever kernels it has; else the reference.

    ``team`` is the address of a host's ``GOMP_parallel``, if its threads are to do the work.
    """
    native = _native_engine(None) if os.environ.get("OPENADAM_ENGINE") != "reference" else None
    return _native_engine_at(native.index, team) if native is not None else ReferenceEngine()


def tensor_reader() -> Any:
    """What reads tensors of another framework natively (`read_tensors` and its kin), or None without native code."""
    return _native


def resolve_threads(threads: int | None) -> int:
    """How many threads a step may use: the argument, ``OPENADAM_NUM_THREADS``, or the processors this process may run on."""
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= MAX_THREADS:
            raise HyperparameterError(f"threads={threads!r} is not a whole number from 1 to {MAX_THREADS}")
        return int(threads)
    given = os.environ.get("OPENADAM_NUM_THREADS")
    if given:
        if given.isdecimal() and 1 <= int(given) <= MAX_THREADS:
            return int(given)
        warnings.warn(f"OPENADAM_NUM_THREADS={given!r} is not a whole number from 1 to {MAX_THREADS}; ignored", UserWarning, stacklevel=3)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MAX_THREADS)


def zeros(count_bytes: int) -> Array:
    """Zeroed bytes for states: aligned to a cache line, on huge pages where there are many."""
    if _native is not None:
        return _native.allocate(count_bytes)  # type: ignore[no-any-return]
    raw = np.zeros(count_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count_bytes]


def read_gradients(
    gradients: list[Any],
    parameters: list[Any],
    rows: npt.NDArray[np.int64],
    protected: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    recheck: bool,
) -> tuple[Sequence[int], list[int]]:
    """Take over the addresses of plain gradients.

    Returns the rows that need a closer look, and those whose gradients are new (or all, to recheck) and may share memory with
    what a step writes. Without native code every row needs a closer look.
    """
    if _native is None:
        return range(len(gradients)), []
    return _native.read_gradients(gradients, parameters, rows, *protected, recheck)  # type: ignore[no-any-return]
