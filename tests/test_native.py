"""The native step against the reference, bit for bit, and the memory and modes it must not touch.

The same bits are asked of every rule variant, dtype, instruction set, thread count, length, alignment, layout and way of cutting. Where a
result is NaN, it is NaN in both; its sign and payload carry no meaning and are not compared. Labels such as N28 are the case numbers of
docs/faults.md.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import itertools
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import DTYPES, PLAIN, VARIANTS, Variant, spread, variant
from support import python

import openadam
from openadam import engine as engines
from openadam.engine import native_isas

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parent.parent
ISAS = native_isas()

pytestmark = pytest.mark.skipif(not ISAS, reason="no native kernels here")
every_variant = pytest.mark.parametrize("subject", VARIANTS, ids=str)
every_member = pytest.mark.parametrize("subject", PLAIN, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


# --- parity ------------------------------------------------------------------------------------------------------------


def alike(a: Any, b: Any) -> bool:
    """Whether two numbers, texts or arrays are the same in every bit, all NaNs being one."""
    if not isinstance(a, np.ndarray):
        return type(a) is type(b) and repr(a) == repr(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    x, y = (np.ascontiguousarray(array).view(f"u{array.itemsize}") for array in (a, b))
    return np.array_equal(x, y) or bool(((x == y) | (np.isnan(a) & np.isnan(b)).reshape(x.shape)).all())


def run(optimizer: openadam.Optimizer, steps: Iterable[Any], *, measure: bool = True) -> dict[Any, Any]:
    """Take the steps; what came of them, by name: reports with measures, parameters, states."""
    result: dict[Any, Any] = {("report", i): repr(optimizer.step(grads, measure=measure)) for i, grads in enumerate(steps)}
    result |= {(name, "p"): p for name, p in optimizer.params.items()}
    return result | {(name, key): value for name, state in optimizer.state.items() for key, value in state.items()}


def joined(result: Mapping[Any, Any]) -> dict[str, Any]:
    """The parameters, and each state, of all tensors put together; without the reports."""
    parts: dict[str, list[Any]] = {}
    for (name, key), value in result.items():
        if name != "report":
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0] for key, values in parts.items()}


def differing(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> list[Any]:
    """The names under which two results are not alike; short, where the results themselves are long."""
    assert found.keys() == expected.keys()
    return [key for key, value in found.items() if not alike(value, expected[key])]


def parity(
    subject: Variant, values: Sequence[Array], steps: Sequence[Any], *, threads: Sequence[int] = (1,), measure: bool = True, **settings: Any
) -> None:
    """The same run on the reference and on every instruction set, with every number of threads."""

    def outcome(**engine: Any) -> dict[Any, Any]:
        with np.errstate(all="ignore"):
            return run(subject.make([p.copy() for p in values], **settings, **engine), steps, measure=measure)

    expected = outcome(engine="reference")
    for isa, count in itertools.product(ISAS, threads):
        assert differing(outcome(engine="native", isa=isa, threads=count), expected) == [], (isa, count)


@functools.cache
def _drawn(size: int, dtype: Any, seed: int) -> Array:
    values = spread(np.random.default_rng(seed), size, dtype, -6, 3)
    values.flags.writeable = False  # it is kept for other tests
    return values


def draw(lengths: Iterable[int], dtype: Any, seed: int = 0) -> list[Array]:
    """Tensors of these lengths, of numbers of all sizes, to be read only; the same numbers however they are cut."""
    lengths = list(lengths)
    return np.split(_drawn(sum(lengths), dtype, seed), np.cumsum(lengths)[:-1])


def sparsely(gradients: list[Array]) -> list[Array | None]:
    """Without every third gradient, so that tensors come to be at different steps."""
    return [None if i % 3 == 1 else g for i, g in enumerate(gradients)]


def whole(subject: Variant, size: int, dtype: Any, steps: int, **settings: Any) -> dict[str, Any]:
    """What comes of the numbers of `draw` as one tensor, on the reference."""
    optimizer = subject.make([draw([size], dtype)[0].copy()], engine="reference", **settings)
    return joined(run(optimizer, [draw([size], dtype, seed) for seed in range(1, 1 + steps)], measure=False))


CUTS = {
    "every length": list(range(301)),  # so that vectors of every width and unrolling have every remainder
    "at blocks": [1024, 2048, 16_384, 16_384, 9_310],
    "beside blocks": [1023, 2049, 16_383, 16_385, 9_310],
    "halves": [22_575, 0, 0, 22_575],
}
SIZE = sum(CUTS["every length"])


@every_dtype
@every_variant
def test_every_length_and_way_of_cutting(subject: Variant, dtype: Any) -> None:
    """The same numbers as one tensor or as several have the same bits, on every instruction set."""
    expected = whole(subject, SIZE, dtype, 2, weight_decay=0.1)
    cuts = CUTS if subject in PLAIN else ["every length"]
    for isa, cut in itertools.product(ISAS, cuts):
        assert sum(CUTS[cut]) == SIZE
        pieces = subject.make([p.copy() for p in draw(CUTS[cut], dtype)], weight_decay=0.1, engine="native", isa=isa)
        found = run(pieces, [draw(CUTS[cut], dtype, seed) for seed in (1, 2)], measure=False)
        assert differing(joined(found), expected) == [], (isa, cut)


@every_dtype
def test_measures_of_every_length(dtype: Any) -> None:
    """And the norms that clip, which are sums that depend on how the numbers are cut."""
    for cut in CUTS.values():
        parity(variant(openadam.AdamW), draw(cut, dtype), [sparsely(draw(cut, dtype, 1)), draw(cut, dtype, 2)], threads=(1, 3), clip_norm=0.5)


@every_dtype
@every_variant
def test_every_number_of_threads(subject: Variant, dtype: Any) -> None:
    """Tensors of many chunks beside small ones; members as they come also with more, enough work for seven threads."""
    lengths, threads = [130_003, 5, 70_000, 0, 16_384, 16_385], [1, 2, 3]
    if subject in PLAIN:
        lengths, threads = [*lengths, 230_001], [*threads, 7]
    parity(subject, draw(lengths, dtype), [draw(lengths, dtype, 1)], threads=threads, measure=subject in PLAIN, weight_decay=0.1)


SURROUNDINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "decay": {"weight_decay": 0.3},
    "clip_norm": {"clip_norm": 0.7},
    "clip_value": {"clip_value": 0.01},
    "maximize": {"maximize": True},
    "everything": {"weight_decay": 0.3, "clip_norm": 0.7, "clip_value": 0.01, "maximize": True, "no_decay": ["3", "5"]},
    "schedules": {"lr": openadam.Cosine(0.5, 0.1, steps=3), "weight_decay": lambda t: 0.1 * (t - 1), "clip_norm": 0.7},
}


IN_ALL = (variant(openadam.Adam), variant(openadam.AdamW), variant(openadam.NAdam))


@every_dtype
@every_variant
def test_surroundings(subject: Variant, dtype: Any) -> None:
    """Clipping, decay of either coupling, ascent; and what the measures see of it."""
    lengths = [1, 0, 7, 15, 33, 1025, 16_390]
    gradients = [draw(lengths, dtype, seed) for seed in (1, 2)]
    for name in SURROUNDINGS if subject in IN_ALL else ["everything"]:
        parity(subject, draw(lengths, dtype), [sparsely(gradients[0]), gradients[1]], **SURROUNDINGS[name])


def special(dtype: Any) -> Array:
    """Numbers with which something may go wrong, of either sign."""
    about = np.finfo(dtype)
    tiny, least = about.smallest_normal, about.smallest_subnormal
    sizes = [0, least, tiny - least, tiny, 2 * tiny, np.sqrt(tiny), 1e-8, 1, 1.5, np.sqrt(about.max), about.max / 2, about.max, np.inf, np.nan]
    return np.array([*sizes, *np.negative(sizes)], dtype)


@every_dtype
@every_variant
def test_special_values(subject: Variant, dtype: Any) -> None:
    """NaN, infinity, zeros of either sign, subnormal and huge numbers, in parameters, gradients and states."""
    count, chosen = 4099, special(dtype)
    random = np.random.default_rng(0)
    p, *gradients = (random.choice(chosen, count) for _ in range(3))
    first = subject.make(p.copy(), nonfinite="propagate", engine="reference").state_dict()
    first["steps"] = first["state"]["0"]["step"] = 3
    for key, value in first["state"]["0"].items():
        if isinstance(value, np.ndarray):
            value[...] = random.choice(chosen, count)
            if subject.private(key) in subject.rule.nonnegative:
                np.abs(value, out=value)
        elif key != "step":
            first["state"]["0"][key] = 0.3
    results = []
    for settings in ({"engine": "reference"}, *({"engine": "native", "isa": isa} for isa in ISAS)):
        optimizer = subject.make(p.copy(), nonfinite="propagate", weight_decay=0.1, **settings)
        optimizer.load_state_dict(first)
        results.append(run(optimizer, gradients))
    for isa, found in zip(ISAS, results[1:], strict=True):
        assert differing(found, results[0]) == [], isa
    states = [np.asarray(value) for value in optimizer.state["0"].values()]
    assert not any(((state != 0) & (np.abs(state) < np.finfo(dtype).smallest_normal)).any() for state in states), "no subnormal state is kept"


def at_offset(array: Array, offset: int) -> Array:
    """A copy that starts so many bytes after a cache line."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    result: Array = np.ndarray(array.shape, array.dtype, raw.data, -raw.ctypes.data % 64 + offset)
    result[...] = array
    assert result.ctypes.data % 64 == offset
    return result


@every_dtype
@every_variant
def test_every_alignment(subject: Variant, dtype: Any) -> None:
    """Parameters and gradients at every byte offset from a cache line, misaligned ones too."""
    lengths = range(30, 94)
    expected = whole(subject, sum(lengths), dtype, 1)
    for isa, shift in itertools.product(ISAS, (0, 21)):
        placed = [at_offset(p, offset) for offset, p in enumerate(draw(lengths, dtype))]
        gradients = [at_offset(g, (7 * offset + shift) % 64) for offset, g in enumerate(draw(lengths, dtype, 1))]
        found = run(subject.make(placed, engine="native", isa=isa), [gradients], measure=False)
        assert differing(joined(found), expected) == [], (isa, shift)


SHAPE = (3, 5, 7, 31)  # more than three blocks of elements


def laid_out(array: Array) -> dict[str, Array]:
    """Copies of an array in other places of memory, in buffers whose gaps hold 7."""

    def in_buffer(shape: Sequence[int], view: Callable[[Array], Array]) -> Array:
        result = view(np.full(shape, 7, array.dtype))
        result[...] = array
        return result

    a, b, c, d = array.shape
    records = np.zeros(array.shape, [("tag", "u1"), ("x", array.dtype)])
    records["x"] = array
    return {
        "dense": array.copy(),
        "Fortran order": array.copy(order="F"),
        "last axis first": in_buffer((d, a, b, c), lambda x: np.moveaxis(x, 0, -1)),
        "gaps within": in_buffer((a, b, c, 3 * d), lambda x: x[..., 1::3]),
        "gaps between": in_buffer((a, 2 * b, c, d + 1), lambda x: x[:, ::2, :, 1:]),
        "reversed": in_buffer(array.shape, lambda x: x[::-1, :, ::-1, ::-1]),
        "gaps and reversed": in_buffer((d, 2 * c, b, a + 1), lambda x: x[:, ::-2, :, 1:].T),
        "records": records["x"],
    }


@every_dtype
@every_member
def test_every_layout(subject: Variant, dtype: Any) -> None:
    """Parameters and gradients in any strides, each its own; nothing is written into the gaps."""
    random = np.random.default_rng(0)
    p, g = spread(random, SHAPE, dtype), spread(random, SHAPE, dtype)
    gradients = list(laid_out(g).values())
    expected = run(subject.make([p.copy()], weight_decay=0.1, engine="reference"), [[g]] * 2)
    for isa in ISAS:
        parameters = list(laid_out(p).values())
        bases = [np.asarray(each.base if each.base is not None else each) for each in parameters]
        gaps = [base.tobytes().count(np.full(1, 7, dtype).tobytes()) for base in bases]
        optimizer = subject.make(parameters, weight_decay=0.1, engine="native", isa=isa)
        for shift in (1, 2):
            optimizer.step([gradients[(i + shift) % len(gradients)] for i in range(len(parameters))])
        for name, state in optimizer.state.items():
            for key, value in {"p": optimizer.params[name], **state}.items():
                assert alike(value, expected["0", key]), (isa, name, key)
        assert [base.tobytes().count(np.full(1, 7, dtype).tobytes()) for base in bases] == gaps, "a gap was written"


def test_instruction_sets_are_what_they_say() -> None:
    """Each is chosen by its name, and no two kernels of one set are the same."""
    for index, isa in enumerate(ISAS):
        optimizer = openadam.Adam(np.zeros(1), isa=isa)
        assert (optimizer._engine.name, optimizer._engine.isa) == ("native", isa)
        assert isa in repr(optimizer)
        rows = engines._native.updates(index)
        assert len({(name, digest) for name, digest, _, _ in rows}) == len(rows)
        assert rows == engines._native.updates(0)
    assert openadam.Adam(np.zeros(1))._engine.isa == ISAS[0]


def test_every_variant_has_a_kernel() -> None:
    for subject in VARIANTS:
        assert subject.make(np.zeros(1))._engine.name == "native", subject


# --- memory ------------------------------------------------------------------------------------------------------------

GUARDED = """
import ctypes, itertools, mmap, sys
import numpy as np
from openadam import _native, engine as e

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE
random = np.random.default_rng(0)


def guarded(nbytes, at_end):
    "Bytes that end where a forbidden page starts, or start where one ends."
    room = -(-nbytes // PAGE) * PAGE
    base = libc.mmap(None, room + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(base, PAGE, 0) == 0 and libc.mprotect(base + PAGE + room, PAGE, 0) == 0
    start = base + PAGE + (room - nbytes if at_end else 0)
    return np.frombuffer((ctypes.c_char * nbytes).from_address(start), np.uint8)


LENGTHS, TENSORS = range(1, 258), 2 + e.COLUMNS - e.STATES  # p, g and the most states that there can be


def tensors(dtype, end, memory):
    size = np.dtype(dtype).itemsize
    return [[memory(n * size, end).view(dtype) for _ in range(TENSORS)] for n in LENGTHS]


def step(isa, kernel, states, scalars, tensors, strided=False):
    measures = range(len(_native.measures(isa)))
    rows = np.zeros((len(tensors), e.COLUMNS), np.int64)
    numbers = []
    for row, (p, g, *own) in zip(rows, tensors):
        row[[e.PARAMETER, e.GRADIENT, e.LENGTH]] = p.ctypes.data, g.ctypes.data, p.size
        row[[e.DTYPE, e.KERNEL, e.PREPARATION, e.ACTIVE]] = e.DTYPES[p.dtype], kernel, len(scalars), 1
        row[e.STATES:e.STATES + states] = [state.ctypes.data for state in own[:states]]
        row[e.LAYOUT] = -1
        if strided:
            row[e.LAYOUT] = len(numbers)
            numbers += [1, 1, 1, p.size, p.strides[0], g.strides[0]]
    prepare = [0.5] * _native.updates(isa)[0][3]
    all_scalars = np.array([*scalars, *prepare])
    which = np.array(measures, np.int64)
    tallies = np.zeros((len(rows), len(which)))
    _native.run(isa, rows, all_scalars, np.array(numbers, np.int64), which, True, tallies, 2)
    return tallies


steps = 0
for dtype, end in itertools.product((np.float32, np.float64), (True, False)):
    values = np.split(random.random(258 * TENSORS).astype(dtype), TENSORS)
    inside, apart = tensors(dtype, end, guarded), tensors(dtype, end, lambda nbytes, end: np.zeros(nbytes, np.uint8))
    gaps = [guarded((2 * n - 1) * np.dtype(dtype).itemsize, end).view(dtype)[::2] for n in LENGTHS]
    for isa in range(len(_native.isas())):
        for kernel, (name, _, states, count) in enumerate(_native.updates(isa)[1:], 1):
            scalars = random.random(count).tolist()
            for own in (*inside, *apart):
                for array, value in zip(own[:2 + states], values):
                    array[...] = value[:array.size]
            assert np.array_equal(step(isa, kernel, states, scalars, inside), step(isa, kernel, states, scalars, apart), equal_nan=True)
            for own, other in zip(inside, apart):
                assert all(a.tobytes() == b.tobytes() for a, b in zip(own, other)), (name, len(own[0]))
            steps += 1
        step(isa, 1, 0, [0.5] * _native.updates(isa)[1][3], [[gap, own[1]] for gap, own in zip(gaps, inside)], strided=True)
        step(isa, 1, 0, [0.5] * _native.updates(isa)[1][3], [[own[0], gap] for gap, own in zip(gaps, inside)], strided=True)
print(steps)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected by Linux's calls")
def test_nothing_beside_the_arrays_is_read_or_written() -> None:
    """Every kernel, for every length from 1 to 257, on arrays that end or start at a page that must not be touched."""
    kernels = len(engines._native.updates(0)) - 1
    assert int(python(GUARDED, timeout=120)) == len(ISAS) * kernels * 4


HUGE = """
import ctypes, mmap, os
import numpy as np
import openadam

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
PIECE, COUNT = 2**22, 2**31 + 17
NORESERVE, FIXED = 0x4000, 0x10


def huge():
    "So many float32; all stretches of them but the last are one and the same piece of memory."
    size = -(-4 * COUNT // PIECE) * PIECE
    base = libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE, -1, 0)
    file = os.memfd_create("piece")
    os.ftruncate(file, 2 * PIECE)
    for at in range(0, size, PIECE):
        place = PIECE if at == size - PIECE else 0
        assert libc.mmap(base + at, PIECE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | FIXED, file, place) == base + at
    return np.frombuffer((ctypes.c_char * (4 * COUNT)).from_address(base), np.float32)


p, g = huge(), huge()
g[-1] = 2
report = openadam.SGD(p, lr=0.5, nonfinite="propagate", threads=1).step(g)
print(p.size, report.grad_norm, p[-1], np.count_nonzero(p[-17:]), np.count_nonzero(p[:2**20]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped by Linux's calls")
def test_n28_more_elements_than_32_bits_can_count() -> None:
    """The last of them is seen and updated, once, and no other."""
    assert python(HUGE).split() == [str(2**31 + 17), "2.0", "-1.0", "1", "0"]


def test_allocated_memory() -> None:
    """Zeroed, aligned to a cache line, writeable, on huge pages where it is large; refused where there is none."""
    for size in (0, 1, 63, 64, 4097, 2**21 - 1, 2**21, 2**21 + 1, 2**23 + 5):
        memory = engines._native.allocate(size)
        assert (memory.dtype, memory.shape) == (np.dtype(np.uint8), (size,))
        assert memory.ctypes.data % (64 if size < 2**21 else 2**21) == 0
        assert not memory.any()
        memory[...] = 1
    with pytest.raises(MemoryError):
        engines._native.allocate(2**62)
    with pytest.raises(TypeError):
        engines._native.allocate(-1)


# --- tables that are wrong ---------------------------------------------------------------------------------------------

# Each case makes one thing wrong in a table of two rows; it runs in a child process, since what it guards against is a crash.
BAD_TABLES = """
import json, os, signal, sys
import numpy as np
from openadam import _native, engine as e

MOST = 2**63 - 1
names = [name for name, *_ in _native.updates(0)]
ADAM = names.index("adam")
STATES, SCALARS = _native.updates(0)[ADAM][2:]
PREPARE_SCALARS = _native.updates(0)[0][3]


def call(change):
    tensors = [[np.full(8, 0.5, np.float32) for _ in range(2 + STATES)] for _ in range(2)]
    a = {
        "isa": 0, "rows": np.zeros((2, e.COLUMNS), np.int64), "scalars": np.full(SCALARS + PREPARE_SCALARS, 0.5), "layouts": np.zeros(0, np.int64),
        "measures": np.zeros(0, np.int64), "update": True, "tallies": np.zeros((2, 0)), "threads": 1,
    }
    for row, (p, g, *states) in zip(a["rows"], tensors):
        row[[e.PARAMETER, e.GRADIENT, e.LENGTH]] = p.ctypes.data, g.ctypes.data, 8
        row[[e.KERNEL, e.PREPARATION, e.LAYOUT, e.ACTIVE]] = ADAM, -1, -1, 1
        row[e.STATES:e.STATES + STATES] = [state.ctypes.data for state in states]
    before = [[array.tobytes() for array in own] for own in tensors]
    change(a, a["rows"][1])  # the second row: the first must not be stepped before it is looked at
    try:
        _native.run(**a)
        outcome = "accepted"
    except (ValueError, TypeError) as error:
        outcome = f"{type(error).__name__}: {error}"
    same = [[array.tobytes() for array in own] for own in tensors] == before
    return outcome if same else "written; " + outcome


def layout(*numbers, at=0, length=8):
    def change(a, row):
        a["layouts"] = np.array(numbers, np.int64)
        row[e.LAYOUT], row[e.LENGTH] = at, length
    return change


def put(column, value):
    return lambda a, row: row.__setitem__(column, value)


def give(**values):
    return lambda a, row: a.update(values)


def off(column, by):
    return lambda a, row: row.__setitem__(column, row[column] + by)


CASES = {
    "columns": lambda a, row: a.update(rows=np.ascontiguousarray(a["rows"][:, :-1])),
    "table dtype": lambda a, row: a.update(rows=a["rows"].astype(np.int32)),
    "table layout": lambda a, row: a.update(rows=np.asfortranarray(a["rows"])),
    "isa": give(isa=99), "isa negative": give(isa=-1),
    "dtype": put(e.DTYPE, 9), "dtype negative": put(e.DTYPE, -1),
    "kernel": put(e.KERNEL, len(names)), "kernel negative": put(e.KERNEL, -1), "kernel most": put(e.KERNEL, MOST),
    "kernel of the preparation": put(e.KERNEL, 0),
    "length negative": put(e.LENGTH, -1),
    "no parameter": put(e.PARAMETER, 0), "no gradient": put(e.GRADIENT, 0), "no state": put(e.STATES + 1, 0),
    "parameter misaligned": off(e.PARAMETER, 1), "gradient misaligned": off(e.GRADIENT, 2), "state misaligned": off(e.STATES, 3),
    "scalars": put(e.SCALARS, SCALARS + PREPARE_SCALARS), "scalars negative": put(e.SCALARS, -1), "scalars last": put(e.SCALARS, PREPARE_SCALARS + 1),
    "scalars most": put(e.SCALARS, MOST), "scalars nearly most": put(e.SCALARS, MOST - 3),
    "preparation": put(e.PREPARATION, SCALARS + 1), "preparation negative": put(e.PREPARATION, -2), "preparation most": put(e.PREPARATION, MOST),
    "no scalars": give(scalars=np.zeros(0)),
    "layout without layouts": put(e.LAYOUT, 0), "layout negative": put(e.LAYOUT, -2),
    "layout most": put(e.LAYOUT, MOST), "layout nearly most": put(e.LAYOUT, MOST - 2),
    "layout cut off": layout(1, 1, 1, 8, 4), "layout past the end": layout(1, 1, 1, 8, 4, 4, at=4),
    "layout dimensions": layout(65, 1, 1, *[1] * 195, length=1), "layout dimensions negative": layout(-1, 1, 1, 8, 4, 4),
    "layout dimensions most": layout(MOST, 1, 1, 8, 4, 4),
    "layout of another length": layout(1, 1, 1, 7, 4, 4), "layout of negative lengths": layout(2, 1, 1, -2, -4, 4, 4, 4, 4),
    "layout that overflows to the length": layout(2, 1, 1, 2**61 + 1, 8, 4, 4, 4, 4),
    "measure": give(measures=np.array([99]), tallies=np.zeros((2, 1))), "measure negative": give(measures=np.array([-1]), tallies=np.zeros((2, 1))),
    "tallies": give(measures=np.array([0]), tallies=np.zeros((1, 1))), "tallies of no measure": give(tallies=np.zeros((2, 1))),
    "threads 0": give(threads=0), "threads negative": give(threads=-1), "threads many": give(threads=65), "threads most": give(threads=2**31 - 1),
    "tallies read-only": lambda a, row: (give(measures=np.array([0]), tallies=np.zeros((2, 1)))(a, row), a["tallies"].setflags(write=False)),
}


def outcome(change):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(2)
        os.write(write, call(change).encode())
        os._exit(0)
    os.close(write)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(read) as stream:
        return stream.read() or f"crashed: signal {os.WTERMSIG(status)}"


assert call(lambda a, row: None) == "written; accepted"
print(json.dumps({name: outcome(change) for name, change in CASES.items()}))
"""


CASES = re.findall(r'"([a-z0-9 -]+)": (?:lambda|put|give|off|layout)', BAD_TABLES)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return json.loads(python(BAD_TABLES))


def test_all_wrong_tables_are_tried(outcomes: dict[str, str]) -> None:
    assert sorted(outcomes) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_wrong_tables_are_refused_before_anything_is_written(case: str, outcomes: dict[str, str]) -> None:
    assert re.match("ValueError: |TypeError: ", outcomes[case]), outcomes[case]


def test_a_table_checks_what_it_is_told() -> None:
    native = engines.native()
    table = native.Table(0, 0, np.inf)
    kernels = native.updates(0)
    adam = next(k for k, (name, *_) in enumerate(kernels) if name == "adam")
    for arguments in [(0, len(kernels), [], 0.0, False), (0, -2, [], 0.0, False), (0, -1, [], 0.0, False), (0, adam, [0.1], 0.0, False)]:
        with pytest.raises(ValueError, match=r"no such kernel|no program|another number of hyperparameters"):
            table.set_update(*arguments)
    table.set_update(0, adam, [0.1] * 5, 0.0, False)
    table.resize(2)
    for call in (
        lambda: table.set_row(2, 0, None),
        lambda: table.set_row(0, 1, 5, False),
        lambda: table.set_names(1, None, [], []),
        lambda: table.set_names(0, None, ["a", "b", "c", "d", "e"], []),
        lambda: table.is_active(2),
        lambda: native.read_arrays(table, [np.zeros(1)]),
        lambda: native.place_array(table, 2, 0, 0, [], None),
        lambda: native.set_memory(table, 0, 1, 0, [1, 2, 3, 4, 5], 0, 0),
        lambda: native.set_memory(table, 0, 1, 0, [], 0, 3),
        lambda: native.Table(99, 0, np.inf),
    ):
        with pytest.raises(ValueError, match=r"no such|too many|differ in length"):
            call()


def test_what_a_table_was_not_given_is_refused() -> None:
    """A row without addresses cannot be stepped over, whatever it is told."""
    native = engines.native()
    table = native.Table(0, 0, np.inf)
    table.set_update(0, 1, [0.1] * 2, 0.0, False)
    table.resize(1)
    table.set_row(0, 0, np.zeros(1))
    numbers = np.zeros(1)
    native.set_memory(table, 0, 1, 1, [], numbers.ctypes.data, 0)
    table.begin()
    native.place_array(table, 0, 0, 0, [], None)
    for call in (lambda: table.measure(1), lambda: table.update(1.0, [], 1), lambda: table.update(1.0, [99], 1), lambda: table.measure(0)):
        with pytest.raises(ValueError, match=r"null address|no such measure|threads"):
            call()
    assert not numbers.any()
    assert table.taken == 0


# --- the caller's floating-point mode ----------------------------------------------------------------------------------


@contextmanager
def rounding(mode: int) -> Iterator[Callable[[], int]]:
    """The C library's rounding mode for a while; gives a function that asks for it."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    before = libm.fegetround()
    if libm.fesetround(mode) != 0:
        pytest.skip("this processor has no such mode")
    try:
        yield libm.fegetround
    finally:
        libm.fesetround(before)


@contextmanager
def flushing() -> Iterator[None]:
    """Subnormal numbers count as zero for a while, in this thread."""
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


SIZES = (1000, 400_003)  # one for this thread alone, one for helpers as well


def subnormal(dtype: Any) -> tuple[list[Array], list[Array]]:
    """Parameters and gradients, one element in two subnormal."""
    values, gradients = ([array.copy() for array in draw(SIZES, dtype, seed)] for seed in (0, 1))
    for array in (*values, *gradients):
        array[::2] *= np.finfo(dtype).smallest_normal
    return values, gradients


@every_dtype
@pytest.mark.parametrize("subject", [variant(openadam.SGD), variant(openadam.AdamW), variant(openadam.RAdam)], ids=str)
def test_flushing_of_subnormal_numbers_by_the_caller(subject: Variant, dtype: Any) -> None:
    """The step keeps subnormal gradients and parameters, in every thread; the caller's mode is as it was."""
    values, gradients = subnormal(dtype)
    half = np.array([np.finfo(dtype).smallest_subnormal])

    def outcome() -> dict[Any, Any]:
        return run(subject.make([p.copy() for p in values], engine="native", threads=3), [gradients])

    expected = outcome()
    with flushing():
        assert (half * dtype(1) == 0).all()
        found = outcome()
        assert (half * dtype(1) == 0).all(), "the caller's mode was changed"
    assert (half * dtype(1) != 0).all()
    outcome()
    assert (half * dtype(1) != 0).all()
    assert differing(found, expected) == []


ROUNDING = {"down": 0x400, "up": 0x800, "to zero": 0xC00} if platform.machine() == "x86_64" and sys.platform == "linux" else {}


@pytest.mark.parametrize("mode", ROUNDING.values(), ids=ROUNDING)
@every_dtype
def test_rounding_mode_of_the_caller(mode: int, dtype: Any) -> None:
    """Kernels round to nearest whatever the caller does; the scalars of this rule are exact in any mode."""
    values, gradients = draw(SIZES, dtype), draw(SIZES, dtype, 1)

    def outcome() -> dict[Any, Any]:
        optimizer = openadam.Momentum(values_copied(values), lr=0.5, momentum=0.25, weight_decay=0.125, threads=3, nonfinite="propagate")
        result = run(optimizer, [gradients, gradients], measure=False)
        return {key: value for key, value in result.items() if key[0] != "report"}  # the norm is computed in Python

    expected = outcome()
    with rounding(mode) as current:
        found = outcome()
        assert current() == mode, "the caller's mode was changed"
    assert differing(found, expected) == []


def values_copied(values: Sequence[Array]) -> list[Array]:
    return [p.copy() for p in values]


# --- symbols -----------------------------------------------------------------------------------------------------------


def symbols(path: Path) -> list[tuple[str, str]]:
    """The kind and name of each symbol of an object."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    lines = subprocess.run([nm, "--demangle", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    return [(kind, name) for _, kind, name in (re.match(r"([0-9a-f]*)\s+(\S)\s+(.*)", line).groups() for line in lines)]  # type: ignore[union-attr]


OBJECTS = sorted(ROOT.glob("build/cp*/CMakeFiles/kernels_*.dir/kernels.cpp.o"))


@pytest.mark.skipif(not OBJECTS, reason="the build's objects are not here")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.parent.name)
def test_kernels_leave_no_symbol_that_a_linker_could_merge(path: Path) -> None:
    """A weak function compiled for a newer processor could be the one that an older one is given: there is none."""
    found = symbols(path)
    assert [name for kind, name in found if kind in "WVuwvC"] == []
    exported = [name for kind, name in found if kind in "TDBRGS"]
    assert len(exported) == 1
    assert re.fullmatch(r"_?openadam_kernels_\w+", exported[0])
    needed = {name for kind, name in found if kind == "U"}
    assert needed <= {"_GLOBAL_OFFSET_TABLE_", "memcpy", "memset", "memmove", "__stack_chk_fail", "sqrt", "sqrtf"}


def test_the_extension_exports_its_initialisation_only() -> None:
    nm = shutil.which("nm")
    if nm is None or sys.platform != "linux":
        pytest.skip("nm is not installed, or speaks otherwise")
    listed = subprocess.run([nm, "-D", "--defined-only", engines._native.__file__], capture_output=True, text=True, check=True).stdout
    kinds = {name: kind for _, kind, name in map(str.split, listed.splitlines())}
    assert [name for name, kind in kinds.items() if kind not in "WVu"] == ["PyInit__native"]  # the rest is the C++ library's own
    assert not any("openadam_kernels" in name for name in kinds)
