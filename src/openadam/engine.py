"""Native or reference: the two engines that run one step over a table of tensors, with the same bits.

A step is a table with a row per tensor. The native table (native/table.hpp) holds addresses; the reference evaluates the same programs
with NumPy over the rows of the arrays' host. Both check first, change nothing until nothing can fail any more, and then commit in one
call that no signal handler can interrupt.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .errors import HyperparameterError, NativeMissingWarning
from .language.arrays import compile_scalars, run, run_in_blocks
from .language.code import Code, Constants, encode
from .language.program import Program, together
from .language.rule import Traced
from .measures import BLOCK, GRAD_SUM_SQUARES, LANES, MEASURES, OCTAVES, Measure, other_measures, places, program_inside, sampled_pieces
from .rules import PREPARE, update_program

_native: Any
try:
    from openadam import _native
except ImportError:  # a source install without a compiler
    _native = None

__all__ = [
    "Engine",
    "ReferenceTable",
    "Update",
    "assign_all",
    "choose_engine",
    "compiled",
    "engine_of_environment",
    "native",
    "native_engine",
    "native_isas",
    "outcome",
    "resolve_threads",
    "tally",
    "warn_of_no_kernels",
    "zeros",
]

Array = npt.NDArray[Any]

# The columns of a row, as native/loop.hpp has them.
PARAMETER, GRADIENT, LENGTH, DTYPE, KERNEL, SCALARS, PREPARATION, LAYOUT, ACTIVE, STATES = range(10)
COLUMNS = STATES + 4
DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}
MAX_THREADS = 64
OWN = -1  # in the place of a kernel: a program that is interpreted, or was compiled where it is used

COMPILED: dict[tuple[str, str], list[int]] = {}
"""The addresses of what was compiled here, by the digest of a program and the instruction set; see `compiling`."""

ENGINES = ("native", "interpreter", "reference")
LOWEST = round(math.log2(OCTAVES[0]))
CHUNK = 16 * BLOCK  # elements; measures are joined lane by lane in a block, block by block in a chunk, chunk by chunk
PIECE = 8 * CHUNK  # elements that the reference measures together

_prepare_scalars = compile_scalars(PREPARE.scalars)


@functools.lru_cache(maxsize=256)
def compiled(traced: Traced) -> tuple[Program, Callable[[Mapping[str, float]], list[float]]]:
    """The program of a traced rule, and the function that computes its scalars and then its scalar states."""
    program = update_program(traced)
    return program, compile_scalars(program.once)


@functools.lru_cache(maxsize=256)
def _code(traced: Traced) -> tuple[Code, Code]:
    """What the interpreter runs: the update, and one that takes all measures but the norm on its way."""
    program = compiled(traced)[0]
    tensors = ("given", "g", "p", *program.states)
    constants = Constants(program)
    joined = {measure.name: (column, measure.reduction) for column, measure in enumerate(MEASURES[1:])}
    plain = encode(program, tensors, {}, constants)
    return plain, encode(together(program, other_measures(), {"p_after": "p"}), tensors, joined, constants)


@functools.lru_cache(maxsize=256)
def _code_inside(traced: Traced, measures: tuple[Measure, ...]) -> Code:
    begin = places(measures)
    reductions = {measure.name: (place, measure.reduction) for place, measure in zip(begin, measures, strict=False)}
    code = encode(program_inside(traced, measures), ("given", "g", "p", *compiled(traced)[0].states), reductions)
    for found, what, most in (
        (len(measures), "measures", _native.MAX_OUTPUTS),
        (begin[-1], "numbers", _native.MAX_COLUMNS),
        (code.slots, "values at once", _native.MAX_SLOTS),
    ):
        if found > most:
            raise HyperparameterError(f"measure: inside a step of {traced.name!r} {found} {what} are asked for, and {most} can be; give fewer")
    return code


@functools.lru_cache(maxsize=256)
def _scalars_inside(traced: Traced, measures: tuple[Measure, ...]) -> Callable[[Mapping[str, float]], list[float]]:
    return compile_scalars(program_inside(traced, measures).scalars)


class Once(NamedTuple):
    """What a step computes once for all tensors that agree in their class, their number of steps and their scalar states."""

    prepare: list[float] | None  # scalars of the gradient's preparation; None where it is used as it is
    scalars: list[float]
    memory: list[float]  # the scalar states after the step


@dataclass(eq=False)
class Update:
    """What moves the tensors of one class: a traced rule, how weight decay joins it, and its hyperparameters as they are now."""

    traced: Traced
    coupling: str
    kernel: int = 0  # of the native engine; 0: none, OWN: its program is interpreted
    values: dict[str, Any] = field(default_factory=dict)  # by the family's names, with weight_decay and maximize
    _inside: Any = None  # what looks inside it, as a native table was last told
    _placed: Any = None  # the table that knows its program

    @property
    def program(self) -> Program:
        return compiled(self.traced)[0]

    def _surrounded(self) -> dict[str, Any]:
        decay, coupled = self.values["weight_decay"], self.coupling == "coupled"
        return self.values | {"coupled_decay": decay if coupled else 0.0, "decoupled_decay": 0.0 if coupled else decay}

    def known(self, t: float, factor: float, clip_value: float) -> dict[str, Any]:
        """What the scalars of step t are computed from, by name; the scalar states come on top."""
        return self._surrounded() | {"t": t, "gradient_scale": -factor if self.values["maximize"] else factor, "clip_value": clip_value}

    def _told(self, t: float, factor: float, clip_value: float) -> tuple[dict[str, Any], list[float] | None]:
        """What the rule's scalars of step t are computed from, and those of the gradient's preparation, if it has one."""
        h = self.known(t, factor, clip_value)
        if clip_value == math.inf and h["coupled_decay"] == 0.0:
            return h, None
        return h | {"gradient_scale": 1.0}, _prepare_scalars(h)  # it has been applied

    def tell(self, table: Any, index: int) -> None:
        """Give a native table the hyperparameters in its kernel's order."""
        h = self._surrounded()
        self._tell(table, index, [h[name] for name in self.program.hyperparameters], h["coupled_decay"], bool(h["maximize"]))

    def introduce(self, table: Any, index: int) -> None:
        """Let a native table know of it before its hyperparameters are known."""
        self._tell(table, index, [0.0] * len(self.program.hyperparameters), 0.0, False)

    def _tell(self, table: Any, index: int, numbers: list[float], coupled_decay: float, maximize: bool) -> None:
        if self.kernel == OWN and self._placed is not table:
            (plain, measured), program = _code(self.traced), self.program
            sizes = len(program.hyperparameters), len(program.states), len(program.memory)
            slots = max(plain.slots, measured.slots)
            functions = COMPILED.get((program.digest, table.isa), [])
            table.set_program(index, plain.instructions, measured.instructions, measured.outputs, slots, measured.scalars, *sizes, functions)
            self._placed = table
        table.set_update(index, self.kernel, numbers if self.kernel else [], coupled_decay, maximize)

    def tell_inside(self, table: Any, index: int, measures: tuple[Measure, ...]) -> None:
        """Give a native table the code that looks inside, unless it has it.

        Raises:
            HyperparameterError: A measure cannot be computed, or they are more than can be taken at once.
        """
        told = (self.kernel, measures, dict(self.values))
        if told == self._inside:
            return
        program = program_inside(self.traced, measures)
        if self.kernel:
            h = self._surrounded()
            hyperparameters = [float(h[name]) for name in program.hyperparameters]
            table.set_observer(index, *_code_inside(self.traced, measures), hyperparameters, places(measures)[-1])
        self._inside = told

    def inside(
        self, measures: tuple[Measure, ...], t: float, factor: float, clip_value: float, memory: Sequence[float], arrays: Mapping[str, Array]
    ) -> Array:
        """What the measures see inside step t of a tensor, NaN where the rule lacks what one looks at.

        Args:
            measures: Those of a rule.
            t: The step, from 1.
            factor: What the gradient is multiplied by.
            clip_value: Largest magnitude of an element of it.
            memory: The scalar states before the step.
            arrays: ``g``, as given, ``p`` and the states, by the rule's names, before the step; flat, of one dtype.
        """
        program = program_inside(self.traced, measures)
        h, prepare = self._told(t, factor, clip_value)
        scalars = _scalars_inside(self.traced, measures)(h | dict(zip(self.program.memory, memory, strict=True)))
        result = np.concatenate([np.full(measure.width, 0.0 if measure.name in program.outputs else math.nan) for measure in measures])
        for _, pieces in itertools.groupby(sampled_pieces(arrays["g"].size), lambda piece: piece.start // CHUNK):
            which = list(pieces)
            given = {name: np.concatenate([array[piece] for piece in which]) for name, array in arrays.items()}
            given["given"] = given["g"]
            if prepare is not None:
                given["g"] = run(PREPARE, {"g": given["g"], "p": given["p"]}, prepare, np)["prepared"]
            values = run(program, given, scalars, np)
            for k, measure in zip(places(measures), measures, strict=False):
                if measure.name not in values:
                    continue
                seen = np.broadcast_to(values[measure.name], given["g"].shape)
                if measure.reduction == "octaves":
                    result[k : k + measure.width] += _octaves(seen)
                else:
                    joined = JOINS[measure.reduction]
                    result[k] = joined(result[k], np.float64(_fold(seen, joined)))
        return result

    def once(self, t: float, factor: float, clip_value: float, memory: Sequence[float]) -> Once:
        """The scalars of step t in float64, as the native table computes them.

        Args:
            t: The step, from 1.
            factor: What the gradient is multiplied by.
            clip_value: Largest magnitude of an element of it.
            memory: The scalar states before the step.
        """
        program, compute = compiled(self.traced)
        h, prepare = self._told(t, factor, clip_value)
        computed = compute(h | dict(zip(program.memory, memory, strict=True)))
        split = len(program.scalars)
        return Once(prepare, computed[:split], computed[split:])


class Engine(Protocol):
    """Makes tables, and knows which programs they can run."""

    name: str
    isa: str
    is_native: bool  # its tables hold addresses

    def kernel(self, program: Program) -> int | None:
        """The index of the program's kernel, or None where this engine has none."""

    def table(self, clip_value: float) -> Any:
        """A table without rows."""


class NativeEngine:
    """The generated kernels of one instruction set."""

    name = "native"
    is_native = True

    def __init__(self, index: int, team: int = 0) -> None:
        self.index = index
        self.team = team  # the address of a function by which a host's own threads do the work; 0: ours
        self.isa = _native.isas()[index]
        rows = _native.updates(index)
        self._kernels = {(name, digest): position for position, (name, digest, *_) in enumerate(rows)}
        seen = [(measure.name, measure.digest) for measure in MEASURES]
        self.current = (PREPARE.name, PREPARE.digest) in self._kernels and _native.measures(index) == seen

    def kernel(self, program: Program) -> int | None:
        return self._kernels.get((program.name, program.digest)) if self.current else None

    def mover(self, program: Program) -> int | None:
        """The kernel of a program, or `OWN` where it can be interpreted; None where it is neither."""
        fits = self.current and len(program.states) <= _native.MAX_STATES and len(program.memory) <= _native.MAX_MEMORY
        return NativeEngine.kernel(self, program) or (OWN if fits else None)

    def table(self, clip_value: float) -> Any:
        return _native.Table(self.index, self.team, clip_value)


class InterpreterEngine(NativeEngine):
    """The native table, with programs that are run instruction by instruction."""

    name = "interpreter"

    def kernel(self, program: Program) -> int | None:
        return OWN if self.mover(program) is not None else None

    def mover(self, program: Program) -> int | None:
        return OWN if super().mover(program) is not None else None


class ReferenceEngine:
    """The same programs, evaluated with NumPy: the specification, and the fallback where there is no native code."""

    name = "reference"
    isa = "numpy"
    is_native = False

    def kernel(self, program: Program) -> int | None:
        return None

    def table(self, clip_value: float) -> ReferenceTable:
        return ReferenceTable(clip_value)


class ReferenceTable:
    """What the native table does, over rows of arrays; each has ``update``, ``view``, ``states``, ``numbers``, ``gradient`` and ``named``."""

    def __init__(self, clip_value: float) -> None:
        self.clip_value = clip_value
        self.counts = np.zeros(2, np.int64)  # steps taken, steps skipped
        self.rows: Sequence[Any] = ()
        self.active: list[int] = []
        self._tallies = np.zeros((0, 0))
        self._observed = np.zeros((0, 0))
        self._computed: list[tuple[Any, Any, Any]] | None = None  # what is to be written: target, value, and which part of the target

    taken = property(lambda self: int(self.counts[0]), lambda self, value: self.counts.__setitem__(0, value))
    skipped = property(lambda self: int(self.counts[1]), lambda self, value: self.counts.__setitem__(1, value))

    @property
    def active_count(self) -> int:
        return len(self.active)

    def is_active(self, i: int) -> bool:
        return i in self.active

    def measure(self, threads: int) -> tuple[float, float]:
        self._tallies = np.zeros((len(self.rows), 1))
        with np.errstate(all="ignore"):
            for i in self.active:
                row = self.rows[i]
                self._tallies[i] = tally((0,), {"g": row.gradient.reshape(-1)})
        return self._total()

    def compute(self, factor: float, measures: Sequence[int], inside: tuple[Measure, ...] = ()) -> Iterator[tuple[int, str, Array, Array]]:
        """What a step would write; yields row, state (or ``p``), before and after of each, all flat. `update` then writes it."""
        self._tallies = np.zeros((len(self.rows), len(measures)))
        self._observed = np.full((len(self.rows), places(inside)[-1]), np.nan)
        writes: list[tuple[Any, Any, Any]] = []
        with np.errstate(all="ignore"):
            for i in self.active:
                row = self.rows[i]
                p = row.touched(row.view)
                t, *memory = row.numbers.tolist()
                once = row.update.once(t + 1, factor, self.clip_value, memory)
                states = [row.touched(state) for state in row.states]
                if inside:
                    arrays = {"g": row.gradient.reshape(-1), "p": p, **dict(zip(row.update.program.states, states, strict=True))}
                    self._observed[i] = row.update.inside(inside, t + 1, factor, self.clip_value, memory, arrays)
                outputs = outcome(row.update.program, row.gradient.reshape(-1), p, states, once)
                self._tallies[i] = tally(measures, {"g": row.gradient.reshape(-1), "p": p, "p_after": outputs["p"]})
                for target, before, name in zip((*row.states, row.view), (*states, p), (*row.update.program.states, "p"), strict=True):
                    after = np.broadcast_to(outputs[name], p.shape)
                    if row.named is None:
                        writes.append((target, after.reshape(target.shape), ...))
                    else:
                        writes.append((row.as_given(target), after.reshape(row.gradient.shape), row.named))
                    yield i, name, before, after
                numbers = np.array([t + 1, *once.memory])
                writes.append((row.numbers, numbers, ...))
                for k, name in enumerate(row.update.program.memory):
                    yield i, name, row.numbers[k + 1 : k + 2], numbers[k + 1 : k + 2]
        self._computed = writes

    def update(self, factor: float, measures: Sequence[int], threads: int, inside: tuple[Measure, ...] = ()) -> tuple[float, float]:
        if self._computed is None:
            collections.deque(self.compute(factor, measures, inside), maxlen=0)
        assert self._computed is not None
        writes, self._computed = self._computed, None
        latest = max((int(self.rows[i].numbers[0]) + 1 for i in self.active), default=0)
        writes.append((self.counts, np.array([max(self.taken + 1, latest), self.skipped]), ...))
        assign_all(*zip(*writes, strict=True))
        return self._total()

    def forget(self) -> None:
        self._computed = None

    def tallies(self) -> npt.NDArray[np.float64]:
        return self._tallies

    def observed(self) -> npt.NDArray[np.float64]:
        return self._observed

    def _total(self) -> tuple[float, float]:
        squares = self._tallies[:, 0] if self._tallies.shape[1] else np.zeros(0)
        if not squares.size:
            return 0.0, 0.0
        with np.errstate(all="ignore"):
            return float(np.add.accumulate(squares)[-1]), float(squares.max())


def tally(measures: Sequence[int], arrays: Mapping[str, Array]) -> list[float]:
    """What the measures see of a tensor: of its gradient ``g`` and, if they read them, of ``p`` and ``p_after``; all flat."""
    seen = []
    for measure in map(MEASURES.__getitem__, measures):
        chunks = [np.zeros(0)]
        for start in range(0, arrays["g"].size, PIECE):
            wide = np.float64 if measure is GRAD_SUM_SQUARES else arrays[measure.program.inputs[0]].dtype
            given = {name: arrays[name][start : start + PIECE].astype(wide, copy=False) for name in measure.program.inputs}
            chunks.append(join(run(measure.program, given, [], np)["value"], measure.reduction))
        seen.append(float(functools.reduce(JOINS[measure.reduction], np.concatenate(chunks), np.float64(0.0))))
    return seen


def outcome(program: Program, g: Array, p: Array, states: Sequence[Array], once: Once) -> dict[str, Any]:
    """What a tensor and its states would become, all flat; nothing is written."""
    prepare = (PREPARE, once.prepare) if once.prepare is not None else None
    arrays = {"g": g, "p": p, **dict(zip(program.states, states, strict=True))}
    return run_in_blocks(program, arrays, once.scalars, np, prepare)


JOINS: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum}


def _fold(values: Array, joined: np.ufunc) -> Any:
    """Reduce a block in the order of the native loop, in the arithmetic of its elements."""
    if values.size % LANES:
        values = np.concatenate([values, np.zeros(-values.size % LANES, values.dtype)])
    lanes = joined.reduce(values.reshape(-1, LANES), axis=0, initial=0.0)
    width = LANES // 2
    while width:
        lanes = joined(lanes[:width], lanes[width : 2 * width])
        width //= 2
    return lanes[0]


def _octaves(values: Array) -> Array:
    """How many elements there are of each octave, by the exponent in their bits."""
    single = values.dtype == np.float32
    bits: Any = np.ascontiguousarray(values).view(np.uint32 if single else np.uint64)
    exponents = (bits >> 23 & 0xFF).astype(np.int64) - 127 if single else (bits >> 52 & 0x7FF).astype(np.int64) - 1023
    bins = len(OCTAVES) - 1
    return np.bincount(np.clip(exponents - LOWEST, 0, bins - 1), minlength=bins)


def join(values: Array, reduction: str) -> Array:
    """Reduce each chunk in the fixed order of the native loop: 16 lanes in a block, then blocks one after the other, in float64."""
    joined = JOINS[reduction]
    chunks = -(-values.size // CHUNK)
    if values.size % CHUNK:
        values = np.concatenate([values, np.zeros(chunks * CHUNK - values.size, values.dtype)])
    lanes = joined.reduce(values.reshape(chunks, CHUNK // BLOCK, BLOCK // LANES, LANES), axis=2, initial=0.0)
    width = LANES // 2
    while width:
        lanes = joined(lanes[..., :width], lanes[..., width : 2 * width])
        width //= 2
    blocks = lanes[..., 0]
    partial = np.zeros(chunks)
    for block in range(CHUNK // BLOCK):
        partial = joined(partial, blocks[:, block])
    return partial


def assign_all(targets: Sequence[Any], values: Sequence[Any], keys: Sequence[Any] | None = None) -> None:
    """Replace the contents of arrays (by arrays) and lists, or of the part of each that ``keys`` says, in one call into C: no Python code runs
    in between, so no signal handler does.
    """
    assign: Callable[[Any, Any, Any], None] = operator.setitem
    keys = keys or [slice(None) if isinstance(target, list) else ... for target in targets]
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
    """The engine for a program: native where there is a kernel printed from this very program, else the interpreter, else the reference.

    ``OPENADAM_ENGINE`` (``native``, ``interpreter`` or ``reference``) and ``OPENADAM_ISA`` choose where the arguments do not.
    """
    given = f"engine={engine!r}" if engine else f"OPENADAM_ENGINE={os.environ.get('OPENADAM_ENGINE')!r}"
    engine = engine or engine_of_environment()
    if engine not in (None, *ENGINES):
        raise HyperparameterError(f"{given} is none of {', '.join(map(repr, ENGINES))}")
    if engine == "reference":
        return ReferenceEngine()
    native = _native_engine(isa)
    if native is None:
        if engine is not None:
            raise HyperparameterError(f"{given}: there is no native code here; leave it out to run on the reference")
        warn_of_no_kernels(stacklevel=4)
        return ReferenceEngine()
    if engine != "interpreter" and native.kernel(program) is not None:
        return native
    if engine == "native":
        raise HyperparameterError(f"{given}: there is no kernel for {program.name!r}; leave it out to run on the interpreter")
    interpreter = InterpreterEngine(native.index, native.team)
    if interpreter.kernel(program) is not None:
        return interpreter
    if engine == "interpreter":
        most = f"{_native.MAX_STATES} states and {_native.MAX_MEMORY} scalar ones"
        raise HyperparameterError(f"{given}: {program.name!r} has more than {most}; leave it out to run on the reference")
    return ReferenceEngine()


def engine_of_environment() -> str | None:
    """What ``OPENADAM_ENGINE`` says; None where it says nothing."""
    engine = os.environ.get("OPENADAM_ENGINE") or None
    if engine not in (None, *ENGINES):
        raise HyperparameterError(f"OPENADAM_ENGINE={engine!r} is none of {', '.join(map(repr, ENGINES))}")
    return engine


def warn_of_no_kernels(stacklevel: int) -> None:
    """Say, once for each place in the caller's program, that steps are slow here and what to do about it."""
    warnings.warn(
        "openadam has no native kernels here; steps run on the NumPy reference (slower, the same bits). "
        "Reinstall with a C++20 compiler, or set OPENADAM_ENGINE=reference to accept it.",
        NativeMissingWarning,
        stacklevel=stacklevel,
    )


def native() -> Any:
    """The native module; None without native code."""
    return _native


def native_engine(team: int = 0, *, interpreter: bool = False) -> NativeEngine | None:
    """The native engine, whatever kernels it has; None where there is none or ``OPENADAM_ENGINE`` says so.

    Args:
        team: The address of a host's ``GOMP_parallel``, if its threads are to do the work.
        interpreter: Interpret every program.
    """
    chosen = engine_of_environment()
    native = _native_engine(None) if chosen != "reference" else None
    if native is None:
        return None
    return InterpreterEngine(native.index, team) if interpreter or chosen == "interpreter" else _native_engine_at(native.index, team)


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
