"""What is refused, and that a refusal leaves every byte as it was: parameters, gradients, hyperparameters, structures.

Labels such as A10 are the case numbers of docs/faults.md. Every refusal is tried twice: what was refused must not be trusted later.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, PLAIN, Variant, same, spread, variant
from support import fingerprint, refuses

import openadam
from openadam import (
    AliasError,
    GradientDtypeError,
    GradientError,
    GradientShapeError,
    HyperparameterError,
    NonFiniteGradientError,
    OpenAdamError,
    ParameterDtypeError,
    ParameterError,
    SparseGradientError,
    UnknownHyperparameterError,
)

Array = np.ndarray[Any, Any]
Make = Callable[..., openadam.Optimizer]


@pytest.fixture(params=ENGINES)
def adam(request: Any) -> Make:
    """Makes an Adam in the middle of a run, or at its beginning."""

    def make(params: Any, *, steps: int = 0, **settings: Any) -> openadam.Optimizer:
        optimizer = openadam.Adam(params, **{"lr": 0.1, "engine": request.param, **settings})
        for _ in range(steps):
            optimizer.step({name: np.ones_like(np.asarray(p)) for name, p in optimizer.params.items()})
        return optimizer

    return make


def pair(dtype: Any = np.float64) -> dict[str, Array]:
    """Two parameters, by name."""
    return {"w": np.arange(1, 7, dtype=dtype).reshape(2, 3), "b": np.array([0.5, -0.5], dtype)}


def ones(optimizer: openadam.Optimizer, **replaced: Any) -> dict[str, Any]:
    """Gradients of 1, with others in place of some."""
    return {name: np.ones_like(np.asarray(p)) for name, p in optimizer.params.items()} | replaced


# --- A1, A4, A5: gradients that are not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a1_the_last_of_fifty_gradients(adam: Make, value: float, dtype: Any) -> None:
    optimizer = openadam.Adam([np.ones((2, 3), dtype) for _ in range(50)], engine=adam(np.zeros(1))._engine.name)
    gradients = [np.ones((2, 3), dtype) for _ in range(50)]
    optimizer.step(gradients)
    gradients[49][1, 0] = gradients[49][1, 2] = value
    error = refuses(
        optimizer, lambda: optimizer.step(gradients), NonFiniteGradientError, "'49'", "index 3", str(value), "step 2", "2 non-finite", "skip"
    )
    assert isinstance(error, NonFiniteGradientError)
    assert (error.parameter, error.index, error.count, error.step) == ("49", 3, 2, 2)
    assert error.value == value or math.isnan(value)


def test_a1_wherever_it_is(adam: Make) -> None:
    """In every place of tensors of many lengths, in the first of several, and counted in the order of the axes as given."""
    for size in (1, 7, 16, 33):
        optimizer = adam({"a": np.zeros(size, np.float32), "b": np.zeros(size, np.float32)})
        for place in range(size):
            gradients = ones(optimizer)
            gradients["a"][place] = gradients["b"][0] = np.nan
            with pytest.raises(NonFiniteGradientError) as caught:
                optimizer.step(gradients)
            assert (caught.value.parameter, caught.value.index, caught.value.count) == ("a", place, 1)
    optimizer = adam({"w": np.asfortranarray(np.ones((3, 4)))})
    for order in "CF":
        gradient = np.ones((3, 4), order=order)
        gradient[1, 2] = np.inf
        with pytest.raises(NonFiniteGradientError, match="flat index 6,"):
            optimizer.step({"w": gradient})


def test_a1_finite_gradients_whose_squares_are_not(adam: Make) -> None:
    """In float64 the sum of squares leaves the range long before the norm does: that is no reason to refuse."""
    optimizer = adam({"w": np.zeros(2)}, steps=1)
    assert optimizer.step({"w": np.array([3e150, 4e150])}).grad_norm == pytest.approx(5e150)
    with pytest.raises(NonFiniteGradientError):
        optimizer.step({"w": np.array([3e150, np.nan])})


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a4_skip(adam: Make, value: float) -> None:
    skipping, calm = (adam(pair(), steps=2, nonfinite="skip", clip_norm=1.0) for _ in range(2))
    before = fingerprint(skipping, skipped=False)
    for count in (1, 2):
        report = skipping.step(ones(skipping, b=np.array([1.0, value])))
        assert (report.skipped, report.step, skipping.skipped, skipping.steps) == (True, 2, count, 2)
        assert fingerprint(skipping, skipped=False) == before
    for each in (skipping, calm):
        assert not each.step(ones(each)).skipped
    assert fingerprint(skipping, skipped=False) == fingerprint(calm, skipped=False)


def torch_optimizers() -> dict[str, Callable[..., Any]]:
    """The for-loops of torch that our members stand beside."""
    torch = pytest.importorskip("torch")
    optim = torch.optim
    return {
        "SGD": optim.SGD,
        "Momentum": lambda p, **k: optim.SGD(p, momentum=0.9, **k),
        "Adagrad": optim.Adagrad,
        "RMSProp": optim.RMSprop,
        "Adam": optim.Adam,
        "AdamW": optim.AdamW,
        "AMSGrad": lambda p, **k: optim.Adam(p, amsgrad=True, **k),
        "AdaMax": optim.Adamax,
        "NAdam": optim.NAdam,
        "RAdam": optim.RAdam,
    }


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adagrad", "RMSProp", "Adam", "AdamW", "AMSGrad", "AdaMax", "NAdam", "RAdam"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a5_propagate_as_torch(name: str, engine: str) -> None:
    """The same elements become NaN and infinite, and the others are untouched by them."""
    theirs = torch_optimizers()[name]
    import torch

    p = np.linspace(-1, 1, 41)
    gradients = [np.where(np.arange(41) % 3 == k, 1.0, [np.nan, np.inf, -np.inf, 0.0][k]) * np.ones(41) for k in range(3)]
    mine = openadam.MEMBERS[name.lower()](p.copy(), lr=0.01, nonfinite="propagate", engine=engine)
    tensor = torch.tensor(p, requires_grad=True)
    optimizer = theirs([tensor], lr=0.01, foreach=False)
    for g in gradients:
        report = mine.step(g)
        assert not report.skipped
        assert math.isnan(report.grad_norm) or math.isinf(report.grad_norm)
        tensor.grad = torch.tensor(g)
        optimizer.step()
        expected = tensor.detach().numpy()
        assert np.array_equal(np.isnan(mine.params["0"]), np.isnan(expected))
        assert np.array_equal(np.isinf(mine.params["0"]), np.isinf(expected))
    assert np.isnan(mine.params["0"]).any()


# --- A6 to A9: no gradients, no elements, no axes ----------------------------------------------------------------------


def test_a6_none_leaves_a_parameter_and_its_counter_alone(adam: Make) -> None:
    optimizer, alone = adam(pair(), steps=1), adam({"w": pair()["w"]}, steps=1)
    for _ in range(2):
        optimizer.step(ones(optimizer, b=None))
        alone.step(ones(alone))
    assert optimizer.state["b"]["step"] == 1
    assert same(optimizer.state["w"], alone.state["w"])
    optimizer.step(ones(optimizer))
    both = adam({"b": pair()["b"]}, steps=2)
    assert same(optimizer.state["b"], both.state["b"])
    assert same(optimizer.params["b"], both.params["b"])
    assert (optimizer.steps, optimizer.state["w"]["step"]) == (4, 4)


def test_a7_no_gradients_at_all(adam: Make) -> None:
    optimizer = adam(pair(), steps=1)
    before = fingerprint(optimizer)
    report = optimizer.step({"w": None, "b": None}, measure=True)
    assert report == (1, 0.0, 1.0, False, {}, None, None)
    assert fingerprint(optimizer) == before


def test_a7_an_empty_group_among_others(adam: Make) -> None:
    w = np.ones(2)
    optimizer = adam([{"params": []}, {"params": {}}, {"params": w, "lr": 1.0}])
    optimizer.step([[], {}, np.ones(2)])
    assert (w < 0.001).all()


@pytest.mark.parametrize(
    "nothing", [[], (), {}, [{"params": []}], [{"params": {}}, {"params": []}], iter(())], ids=lambda nothing: type(nothing).__name__
)
def test_a7_nothing_to_optimize(nothing: Any) -> None:
    with pytest.raises(ParameterError, match="empty parameter list"):
        openadam.Adam(nothing)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 5), ()], ids=str)
@pytest.mark.parametrize("subject", PLAIN, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_a8_a9_empty_tensors_and_single_numbers(subject: Variant, shape: Any, engine: str) -> None:
    p = np.ones(shape, np.float32)
    optimizer = subject.make({"w": p}, engine=engine, clip_norm=1.0)
    report = optimizer.step({"w": np.full(shape, 2.0, np.float32)}, measure=True)
    assert report.grad_norm == (0.0 if p.size == 0 else 2.0)
    assert p.shape == shape
    assert p.size == 0 or p < 1
    for state in optimizer.state["w"].values():
        assert not isinstance(state, np.ndarray) or state.shape == shape


# --- A10, A11, A16, A21, A22: gradients that do not fit ----------------------------------------------------------------

SHAPES = [((4,), (4, 1)), ((4,), (1,)), ((4,), ()), ((2, 3), (3, 2)), ((2, 3), (6,)), ((2, 3), (1, 2, 3)), ((), (1,)), ((0,), (0, 1)), ((1,), (0,))]


@pytest.mark.parametrize(("own", "given"), SHAPES, ids=str)
def test_a10_shapes_are_never_broadcast(adam: Make, own: Any, given: Any) -> None:
    optimizer = adam({"a": np.ones(3), "w": np.ones(own)}, steps=1)
    refuses(optimizer, lambda: optimizer.step(ones(optimizer, w=np.ones(given))), GradientShapeError, "'w'", str(own), str(given), "broadcast")


def strided(array: Array) -> dict[str, Array]:
    """The same numbers in other places of memory."""
    padded = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    padded[..., ::2] = array
    records = np.zeros(array.shape, [("pad", "u1"), ("x", array.dtype)])
    records["x"] = array
    return {
        "Fortran order": np.asfortranarray(array),
        "gaps": padded[..., ::2],
        "reversed": np.ascontiguousarray(array[::-1, ..., ::-1])[::-1, ..., ::-1],
        "middle axis first": np.ascontiguousarray(np.moveaxis(array, 1, 0)).transpose(1, 0, *range(2, array.ndim)),
        "field of records, misaligned": records["x"],
        "expanded": np.broadcast_to(array[:1, :1, :1], array.shape),
    }


@pytest.mark.parametrize("kind", strided(np.zeros((2, 2, 2))))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a11_any_strides_of_the_gradient(adam: Make, kind: str, dtype: Any) -> None:
    """As many elements as take more than one block of the native loop."""
    random = np.random.default_rng(0)
    g = spread(random, (7, 19, 23), dtype)
    p = spread(random, g.shape, dtype)
    gradient = strided(g)[kind]
    for own in ("C", "F"):
        plain, other = (adam({"w": p.copy(order=own)}) for _ in range(2))
        for _ in range(2):
            plain.step({"w": np.ascontiguousarray(gradient)})
            other.step({"w": gradient})
        assert fingerprint(plain) == fingerprint(other)


def test_a16_gradients_that_share_memory_with_what_is_written(adam: Make) -> None:
    buffer = np.ones(12)
    optimizer = adam({"w": buffer[:6], "b": np.ones((3, 2), order="F")}, steps=1)
    shared = {
        "itself": ("w", buffer[:6]),
        "overlapping": ("w", buffer[3:9]),
        "reversed": ("w", buffer[5::-1]),
        "strided": ("w", buffer[::2]),
        "another parameter": ("w", optimizer.params["b"].T.reshape(-1)),
        "transposed": ("b", optimizer.params["b"]),
        "state": ("w", optimizer.state["w"]["exp_avg"]),
        "another state": ("w", optimizer.state["b"]["exp_avg_sq"].T.reshape(-1)),
    }
    for name, gradient in shared.values():
        refuses(optimizer, lambda: optimizer.step(ones(optimizer, **{name: gradient})), AliasError, f"gradient of parameter {name!r}", "copy")
    beside = ones(optimizer, w=buffer[6:])
    beside["b"] = beside["w"].reshape(3, 2)  # two gradients may share
    optimizer.step(beside)
    assert optimizer.steps == 2


def test_a16_a_shared_gradient_that_begins_where_a_harmless_one_did() -> None:
    buffer = np.ones(20)
    optimizer = openadam.Adam(buffer[4:8])
    optimizer.step(buffer[3::5])  # elements 3, 8, 13 and 18: beside the parameter, not in it
    refuses(optimizer, lambda: optimizer.step(buffer[3:7]), AliasError, "shares memory")


def test_a16_interleaved_memory_is_not_shared(adam: Make) -> None:
    buffer = np.ones((4, 2))
    optimizer = adam({"w": buffer[:, 0]})
    optimizer.step({"w": buffer[:, 1]})
    assert (buffer[:, 1] == 1).all()
    assert (buffer[:, 0] < 1).all()


def test_a21_float32_gradients_of_float64_parameters_are_converted_exactly(adam: Make) -> None:
    g = np.array([0.1, -3e-39, 2e38], np.float32)
    single, double = adam({"w": np.ones(3)}), adam({"w": np.ones(3)})
    for _ in range(2):
        single.step({"w": g})
        double.step({"w": g.astype(np.float64)})
    assert fingerprint(single) == fingerprint(double)


FOREIGN = [
    np.float16, np.longdouble, np.int64, np.int32, np.bool_, np.complex64, np.complex128, np.object_, "U3", "S3", "M8[s]",
    [("x", "f4")], np.dtype(np.float32).newbyteorder(), np.dtype(np.float64).newbyteorder(),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.dtype(each) for each in FOREIGN], ids=str)
@pytest.mark.parametrize("own", DTYPES)
def test_a19_a20_a21_dtypes_of_gradients(adam: Make, dtype: Any, own: Any) -> None:
    optimizer = adam(pair(own), steps=1)
    gradients = ones(optimizer, b=np.zeros(2, dtype))
    refuses(optimizer, lambda: optimizer.step(gradients), GradientDtypeError, "'b'", str(dtype), np.dtype(own).name, "astype")


def test_a21_nothing_is_rounded(adam: Make) -> None:
    optimizer = adam(pair(np.float32), steps=1)
    gradients = ones(optimizer, w=np.ones((2, 3)))
    refuses(optimizer, lambda: optimizer.step(gradients), GradientDtypeError, "'w'", "float64", "float32", "astype")


class Series:
    """Something with numbers in it that is no array, as pandas has."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return np.array(self.values, dtype)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a22_other_kinds_of_gradients(adam: Make) -> None:
    optimizer, plain = adam(pair(), steps=1), adam(pair(), steps=1)
    masked = np.ma.masked_array(np.ones(2), mask=[False, True])
    refuses(optimizer, lambda: optimizer.step(ones(optimizer, b=masked)), GradientError, "'b'", "masked", "filled")
    for b in ([1.0, 1.0], 1.0, "11", object()):
        refuses(optimizer, lambda: optimizer.step(ones(optimizer, b=b)), GradientDtypeError, "'b'", type(b).__name__, "float64")
    for b in (np.ma.masked_array(np.ones(2)), Series([1.0, 1.0])):
        optimizer.step(ones(optimizer, b=b))
        plain.step(ones(plain))
    optimizer.step(ones(optimizer, w=np.asmatrix(np.ones((2, 3)))))
    plain.step(ones(plain))
    assert fingerprint(optimizer) == fingerprint(plain)


def test_sparse_gradients(adam: Make) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    optimizer = adam(pair(), steps=1)
    refuses(optimizer, lambda: optimizer.step(ones(optimizer, w=sparse.csr_matrix(np.eye(2, 3)))), SparseGradientError, "'w'", "sparse", "dense")


def test_an_array_that_cannot_be_read(adam: Make) -> None:
    class Broken:
        def __array__(self, *_: Any, **__: Any) -> Array:
            raise OSError("gone")

    optimizer = adam(pair(), steps=1)
    refuses(optimizer, lambda: optimizer.step(ones(optimizer, b=Broken())), OSError, "gone")
    optimizer.step(ones(optimizer))


# --- A14, A17 to A20, A22: parameters that cannot be optimized ---------------------------------------------------------


def overlapping() -> Array:
    return np.lib.stride_tricks.as_strided(np.zeros(8), (4, 4), (8, 8))


READ_ONLY = np.zeros(3)
READ_ONLY.flags.writeable = False
MASKED = np.ma.masked_array(np.zeros(2), mask=[True, False])

PARAMETERS: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "A14 broadcast": (np.broadcast_to(np.zeros(1), (3,)), ParameterError, ("not writeable", "broadcast")),
    "A14 stride 0": (np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,)), AliasError, ("overlaps itself", "(3,)", "(0,)", "copy")),
    "A14 overlapping windows": (overlapping(), AliasError, ("overlaps itself", "(4, 4)", "(8, 8)", "copy")),
    "A18 read-only": (READ_ONLY, ParameterError, ("not writeable",)),
    "A22 masked": (MASKED, ParameterDtypeError, ("masked", "filled")),
    "A22 not an array": (Series([1.0]), ParameterDtypeError, ("Series", "not a NumPy array")),
    "a list": ([1.0, 2.0], ParameterDtypeError, ("list", "[1.0, 2.0]", "not a NumPy array")),
    "a number": (1.0, ParameterDtypeError, ("float", "not a NumPy array")),
    "a NumPy scalar": (np.float32(1.0), ParameterDtypeError, ("float32", "not a NumPy array")),
    "None": (None, ParameterDtypeError, ("NoneType", "not a NumPy array")),
    **{f"A19/A20 {np.dtype(d)}": (np.zeros(2, d), ParameterDtypeError, (str(np.dtype(d)), "float32 and float64")) for d in FOREIGN},
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_that_are_refused(adam: Make, case: str) -> None:
    value, error, texts = PARAMETERS[case]
    with pytest.raises(error) as caught:
        openadam.Adam({"fine": np.zeros(2), "bad one": value})
    assert isinstance(caught.value, OpenAdamError)
    for text in ("'bad one'", *texts):
        assert text in str(caught.value)
    optimizer = adam(pair(), steps=1)
    refuses(optimizer, lambda: optimizer.add_group({"params": {"bad one": value}}), error, *texts)
    optimizer.step(ones(optimizer))


def test_a17_the_same_parameter_twice() -> None:
    w = np.zeros(6)
    for given in ([w, w], {"a": w, "b": w}, [{"params": {"a": w}}, {"params": {"b": w}}], {"a": w, "b": w[:]}, {"a": w, "b": w.view()}):
        with pytest.raises(ParameterError, match="are the same array; give it once"):
            openadam.Adam(given)
    for a, b in ((w[:4], w[3:]), (w, w[2:3]), (w[::2], w[2:4]), (w[::-1], w[:5]), (w.reshape(2, 3), w)):
        with pytest.raises(AliasError, match="parameters 'a' and 'b' share memory"):
            openadam.Adam({"a": a, "b": b})
    openadam.Adam({"a": w[::2], "b": w[1::2], "c": np.zeros(0), "d": w[:0]}).step({"a": np.ones(3), "b": None, "c": np.ones(0), "d": np.ones(0)})
    assert (w[1::2] == 0).all()


def test_a17_the_same_parameter_in_a_group_added_later(adam: Make) -> None:
    optimizer = adam(pair(), steps=1)
    w = optimizer.params["w"]
    refuses(optimizer, lambda: optimizer.add_group({"params": {"again": w}}), ParameterError, "'w' and 'again'", "once")
    refuses(optimizer, lambda: optimizer.add_group({"params": {"part": w[0]}}), AliasError, "'w' and 'part'")
    refuses(optimizer, lambda: optimizer.add_group({"params": {"w": np.zeros(2)}}), ParameterError, "two parameters are named 'w'")
    refuses(optimizer, lambda: optimizer.add_group({"params": {"state": optimizer.state["w"]["exp_avg"]}}), ParameterError, "'state'", "writeable")
    optimizer.add_group({"params": {"new": np.zeros(2)}})
    optimizer.step([{"w": None, "b": None}, {"new": np.ones(2)}])


@pytest.mark.parametrize(
    "groups",
    [
        [{"params": {"a": np.zeros(1)}}, {"params": {"a": np.zeros(1)}}],
        [{"params": [np.zeros(1)]}, {"params": {"0": np.zeros(1)}}],
    ],
)
def test_names_must_differ_between_groups(groups: Any) -> None:
    with pytest.raises(ParameterError, match="two parameters are named"):
        openadam.Adam(groups)


def test_a18_memory_maps(adam: Make, tmp_path: Path) -> None:
    path = tmp_path / "w"
    np.ones(4, np.float32).tofile(path)
    with pytest.raises(ParameterError, match="memory map opened for reading"):
        adam({"w": np.memmap(path, np.float32, "r")})
    mapped = np.memmap(path, np.float32, "r+")
    optimizer, plain = adam({"w": mapped}), adam({"w": np.ones(4, np.float32)})
    for each in (optimizer, plain):
        each.step({"w": np.arange(4, dtype=np.float32)})
    mapped.flush()
    assert np.fromfile(path, np.float32).tobytes() == plain.params["w"].tobytes()
    assert np.fromfile(path, np.float32)[3] == np.float32(0.9)


def placed(array: Array, offset: int) -> Array:
    """A copy that starts so many bytes after a cache line."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    result = raw[start : start + array.nbytes].view(array.dtype) if offset % array.itemsize == 0 else None
    if result is None:
        result = np.ndarray(array.shape, array.dtype, raw.data, start)
    result[...] = array
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_a19_misaligned_parameters_and_gradients(adam: Make, dtype: Any) -> None:
    """At every offset from a cache line, and as a field of records."""
    random = np.random.default_rng(0)
    p, g = spread(random, 37, dtype), spread(random, 37, dtype)
    plain = adam({"w": p.copy()})
    plain.step({"w": g})
    expected = (plain.params["w"].tobytes(), plain.state["w"]["exp_avg_sq"].tobytes())
    for offset in range(1, 64):
        optimizer = adam({"w": placed(p, offset)})
        optimizer.step({"w": placed(g, 63 - offset)})
        assert (optimizer.params["w"].tobytes(), optimizer.state["w"]["exp_avg_sq"].tobytes()) == expected, offset
    records = np.zeros(37, [("tag", "u1"), ("x", dtype), ("y", dtype)])
    records["x"], records["y"] = p, g
    optimizer = adam({"w": records["x"]})
    optimizer.step({"w": records["y"]})
    assert records["x"].tobytes() == expected[0]
    assert same(records["y"], g)
    assert not records["tag"].any()


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a22_a_matrix_is_an_array(adam: Make) -> None:
    matrix = np.asmatrix(np.ones((2, 2)))
    adam({"w": matrix}).step({"w": np.ones((2, 2))})
    assert np.allclose(np.asarray(matrix), 0.9)


# --- arrays that change after construction -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
@pytest.mark.parametrize("dense", [True, False])
def test_a_parameter_that_was_given_another_shape(adam: Make, dense: bool) -> None:
    """A gradient of the new shape must not be read by the strides of the old."""
    w = np.zeros(8)[:: 1 if dense else 2]
    optimizer = adam({"w": w}, steps=1)
    gradient = np.arange(64.0).reshape(8, 8)[: w.size // 2, :2]
    w.shape = (w.size // 2, 2)
    refuses(optimizer, lambda: optimizer.step({"w": gradient}), GradientShapeError, "'w'", str(w.shape), f"({w.size},)")


# --- A24: structures ---------------------------------------------------------------------------------------------------


def test_a24_every_structure_is_answered_in_kind(adam: Make) -> None:
    g = [np.full(2, 1.0), np.full(3, -2.0)]
    names = ["a", "b"]

    def arrays() -> list[Array]:
        return [np.zeros(2), np.zeros(3)]

    a, b = arrays()
    structures: list[tuple[Any, Any]] = [
        (arrays(), g),
        (arrays(), iter(g)),
        (tuple(arrays()), tuple(g)),
        ((p for p in arrays()), (each for each in g)),
        (dict(zip(names, arrays(), strict=True)).values(), dict(zip(names, g, strict=True)).values()),
        (dict(zip(names, arrays(), strict=True)), dict(zip(reversed(names), reversed(g), strict=True))),
        (types.MappingProxyType(dict(zip(names, arrays(), strict=True))), dict(zip(names, g, strict=True))),
        ([{"params": arrays()}], [g]),
        ({"params": arrays()}, [g]),
        ([{"params": a}, {"params": {"b": b}}], [g[0], {"b": g[1]}]),
    ]
    expected = None
    for params, gradients in structures:
        optimizer = adam(params)
        optimizer.step(gradients)
        found = [p.tobytes() for p in optimizer.params.values()]
        expected = expected or found
        assert found == expected
    single = adam(np.zeros(2))
    single.step(g[0])
    assert single.params["0"].tobytes() == expected[0]
    named = adam({"params": np.zeros(2)})  # a parameter of this name, not a group
    named.step({"params": g[0]})


@pytest.mark.parametrize(
    ("params", "texts"),
    [
        ({1, 2}, ("ordered", "set")),
        (frozenset(), ("ordered", "set")),
        ([{"params": {1, 2}}], ("ordered", "set")),
        ([np.zeros(1), {"params": np.zeros(2)}], ("arrays or groups",)),
        ([{"params": np.zeros(2)}, np.zeros(1)], ("arrays or groups",)),
        ([{"lr": 0.1}], ("'params'",)),
        ({1: np.zeros(1)}, ("string", "1")),
        ("weights", ("str",)),
        (None, ("NoneType",)),
        (3, ("int",)),
        ([{"params": None}], ("NoneType",)),
    ],
    ids=repr,
)
def test_a24_structures_that_are_refused(params: Any, texts: tuple[str, ...]) -> None:
    with pytest.raises(TypeError) as caught:
        openadam.Adam(params)
    for text in texts:
        assert text in str(caught.value)


G = np.ones(2)
STRUCTURES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "a name is missing": ({"a": np.zeros(2), "b": np.zeros(2)}, {"a": G}, ("missing ['b']", "None")),
    "a name too many": ({"a": np.zeros(2)}, {"a": G, "c": G}, ("unexpected ['c']",)),
    "another name": ({"a": np.zeros(2)}, {"A": G}, ("missing ['a']", "unexpected ['A']")),
    "a list for names": ({"a": np.zeros(2)}, [G], ("by name", "list")),
    "an array for names": ({"a": np.zeros(2)}, G, ("by name", "(2,)")),
    "None for all": ({"a": np.zeros(2)}, None, ("by name", "NoneType")),
    "too few": ([np.zeros(2), np.zeros(2)], [G], ("1 gradients for 2",)),
    "too many": ([np.zeros(2)], [G, G], ("2 gradients for 1",)),
    "an array for a list": ([np.zeros(2), np.zeros(2)], np.ones((2, 2)), ("list of 2", "(2, 2)")),
    "names for a list": ([np.zeros(2)], {"0": G}, ("list of 1", "dict")),
    "a set": ([np.zeros(2)], {1.0}, ("list of 1", "set")),
    "a string": ([np.zeros(2)], "G", ("list of 1", "str")),
    "None for a list": ([np.zeros(2)], None, ("list of 1", "NoneType")),
    "groups not in a list": ([{"params": np.zeros(2)}], G, ("1 group (", "(2,)")),
    "a group is missing": ([{"params": np.zeros(2)}, {"params": np.zeros(1)}], [G], ("2 groups", "list of 1")),
    "names for groups": ([{"params": np.zeros(2)}], {"0": G}, ("1 group (", "dict")),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_a24_gradients_in_another_structure(adam: Make, case: str) -> None:
    params, gradients, texts = STRUCTURES[case]
    optimizer = adam(params)
    refuses(optimizer, lambda: optimizer.step(gradients), GradientError, *texts)


# --- A26 to A30: hyperparameters ---------------------------------------------------------------------------------------

NUMBERS: list[tuple[str, Any, Any]] = [
    # name, value, what it is stored as, or a part of the message
    *[("lr", value, "out of range") for value in (math.nan, math.inf, -math.inf, -1, -1e-300, np.float32(-1), np.array(math.nan))],
    *[
        ("lr", value, "not a number")
        for value in ("1e-3", None, True, np.True_, 1e-3 + 0j, np.complex64(1), [1e-3], (1e-3,), np.array([1.0, 2.0]), b"1")
    ],
    ("lr", 10**400, "too large"),
    ("lr", -0.0, 0.0),
    ("lr", 0, 0.0),
    ("lr", 1, 1.0),
    ("lr", 5e-324, 5e-324),
    ("lr", np.float32(1e-3), float(np.float32(1e-3))),
    ("lr", np.float64(1e-3), 1e-3),
    ("lr", np.int8(1), 1.0),
    ("lr", np.array(1e-3), 1e-3),
    ("lr", np.array([1e-3]), 1e-3),
    *[(name, value, "from 0 up to, but not, 1") for name in ("beta1", "beta2") for value in (1.0, -0.1, math.nan, 1, np.nextafter(0, -1))],
    *[(name, value, value) for name in ("beta1", "beta2") for value in (0.0, 0.5, 1 - 2**-53)],
    *[("eps", value, "at least 0 and finite") for value in (math.nan, math.inf, -1e-8)],
    ("eps", 0, 0.0),
    ("weight_decay", -1, "at least 0 and finite"),
    ("weight_decay", math.inf, "at least 0 and finite"),
    ("weight_decay", True, "not a number"),
]


@pytest.mark.parametrize(("name", "value", "outcome"), NUMBERS, ids=lambda x: repr(x)[:30])
def test_a26_a27_a28_numbers(adam: Make, name: str, value: Any, outcome: Any) -> None:
    """Wherever a number is given: to the optimizer, in a group, in a group added later, between two steps, from a schedule."""
    optimizer = adam(pair(), steps=1)

    def between_steps() -> None:
        optimizer.groups[0][name] = value
        optimizer.step(ones(optimizer))

    given = {
        "optimizer": lambda: adam(pair(), **{name: value}).groups[0][name],
        "group": lambda: adam([{"params": np.zeros(2), name: value}]).groups[0][name],
    }
    if isinstance(outcome, float):
        assert all(type(each()) is float and each() == outcome and math.copysign(1, each()) == 1 for each in given.values())
        between_steps()
        assert type(optimizer.groups[0][name]) is float
        return
    for where, make in given.items():
        with pytest.raises(HyperparameterError) as caught:
            make()
        assert name in str(caught.value)
        assert outcome in str(caught.value)
        assert ("group 0" in str(caught.value)) == (where == "group" and outcome == "out of range") or outcome != "out of range"
    texts = (name, outcome)
    refuses(optimizer, lambda: optimizer.add_group({"params": {"c": np.zeros(2)}, name: value}), HyperparameterError, *texts)
    kept, optimizer.groups[0][name] = optimizer.groups[0][name], value
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), HyperparameterError, *texts)
    optimizer.groups[0][name] = lambda t: value
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), HyperparameterError, name)
    optimizer.groups[0][name] = kept
    optimizer.step(ones(optimizer))
    assert optimizer.steps == 2


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, "0.1", None, True, np.ones(2), 1j], ids=repr)
def test_schedules_that_return_what_is_no_value(adam: Make, value: Any) -> None:
    values = {1: 0.1, 2: value, 3: 0.1}
    optimizer = adam([{"params": {"w": np.ones(2)}}, {"params": {"b": np.ones(2)}, "lr": lambda t: values[t]}])
    optimizer.step([{"w": G}, {"b": G}])
    refuses(optimizer, lambda: optimizer.step([{"w": G}, {"b": G}]), HyperparameterError, "lr=")
    values[2] = 0.1
    optimizer.step([{"w": G}, {"b": G}])
    assert same(optimizer.params["w"], optimizer.params["b"])


def test_what_a_schedule_returned_is_named_with_its_step(adam: Make) -> None:
    optimizer = adam(pair(), lr=lambda t: 0.1 if t < 2 else -0.5)
    optimizer.step(ones(optimizer))
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), HyperparameterError, "lr=-0.5", "schedule", "t=2", "at least 0")


def test_a27_betas_of_zero_are_the_sign(adam: Make) -> None:
    optimizer = adam({"w": np.zeros(3)}, beta1=0.0, beta2=0.0, eps=0.0, lr=0.5)
    for _ in range(3):
        optimizer.step({"w": np.array([1e-9, -3.0, 0.0])})
    assert optimizer.params["w"].tolist() == [-1.5, 1.5, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subject", [each for each in PLAIN if "eps" in each.hyperparameters], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_a28_without_eps_nothing_becomes_nan(subject: Variant, dtype: Any, engine: str) -> None:
    """A coordinate that never had a gradient stays where it is; the others move."""
    w = np.array([1.0, 1.0], dtype)
    optimizer = subject.make(w, eps=0.0, initial_accumulator_value=0.0, engine=engine)
    for _ in range(7):
        optimizer.step(np.array([0.0, 1.0], dtype))
    assert w[0] == 1
    assert np.isfinite(w[1])
    assert w[1] < 1


def test_a28_an_eps_that_the_dtype_cannot_hold(adam: Make) -> None:
    assert adam({"w": np.zeros(1)}, eps=1e-300).groups[0]["eps"] == 1e-300
    with pytest.raises(HyperparameterError, match=r"eps=1e-300 in group 0 is 0 in float32, the dtype of parameter 'w'"):
        adam({"v": np.zeros(1), "w": np.zeros(1, np.float32)}, eps=1e-300)
    optimizer = adam(pair(np.float32), steps=1)
    optimizer.groups[0]["eps"] = 1e-300
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), HyperparameterError, "eps=1e-300", "float32", "'w'")


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
def test_a26_numbers_that_are_infinite_in_float32(adam: Make, name: str) -> None:
    with pytest.raises(HyperparameterError, match=rf"{name}=1e\+39 in group 0 .*float32, the dtype of parameter 'w'"):
        adam({"w": np.zeros(1, np.float32)}, **{name: 1e39}).step({"w": np.zeros(1, np.float32)})


def test_a28_a_schedule_of_eps_that_the_dtype_cannot_hold(adam: Make) -> None:
    optimizer = adam(pair(np.float32), eps=lambda t: 1e-300)
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), HyperparameterError, "eps=1e-300", "float32")


KEYWORDS: list[Any] = [
    ("weigth_decay", "did you mean 'weight_decay'?"),
    ("beta_1", "did you mean 'beta1'?"),
    ("betas", "beta1=…, beta2=…"),
    ("learning_rate", "lr=…"),
    ("amsgrad", "It takes"),
    ("form", "It takes"),
]


@pytest.mark.parametrize(("name", "text"), KEYWORDS)
def test_a30_unknown_keywords(adam: Make, name: str, text: str) -> None:
    with pytest.raises(UnknownHyperparameterError, match=name) as caught:
        adam(pair(), **{name: 0.1})
    assert text in str(caught.value)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnknownHyperparameterError, match=f"group 1 has no .*{name}"):
        adam([{"params": np.zeros(1)}, {"params": np.zeros(2), name: 0.1}])
    optimizer = adam(pair(), steps=1)
    refuses(optimizer, lambda: optimizer.add_group({"params": {"c": np.zeros(1)}, name: 0.1}), UnknownHyperparameterError, name, "group 1")


@pytest.mark.parametrize("name", ["lr", "beta1", "maximize"])
def test_a30_a_group_that_lost_a_setting(adam: Make, name: str) -> None:
    optimizer = adam(pair(), steps=1)
    value = optimizer.groups[0].pop(name)
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), HyperparameterError, "group 0", name)
    optimizer.groups[0][name] = value
    optimizer.step(ones(optimizer))


@pytest.mark.parametrize("name", ["weigth_decay", "learning_rate", "nesterov"])
def test_a30_a_setting_between_steps_that_nobody_reads(adam: Make, name: str) -> None:
    optimizer = adam(pair(), steps=1)
    optimizer.groups[0][name] = 0.5
    refuses(optimizer, lambda: optimizer.step(ones(optimizer)), UnknownHyperparameterError, "group 0", name)


CHOICES: list[Any] = [
    ({"epsilon": "root"}, "'outside', 'inside', 'hat'"),
    ({"coupling": "both"}, "'coupled' nor 'decoupled'"),
    ({"nonfinite": "ignore"}, "'raise', 'skip', 'propagate'"),
    ({"maximize": 1}, "True nor False"),
    ({"maximize": "yes"}, "True nor False"),
    ({"clip_norm": -1.0}, "clip_norm"),
    ({"clip_norm": math.nan}, "clip_norm"),
    ({"clip_norm": "1"}, "clip_norm"),
    ({"clip_value": -1.0}, "clip_value"),
    ({"clip_value": math.inf}, "clip_value"),
    ({"engine": "cuda"}, "none of 'native', 'interpreter', 'reference'"),
    ({"isa": "z80"}, "x86"),
]


@pytest.mark.parametrize(("settings", "text"), CHOICES, ids=repr)
def test_choices_that_do_not_exist(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(HyperparameterError) as caught:
        openadam.Adam(np.zeros(1), **settings)
    assert text in str(caught.value)
    assert next(iter(settings)) in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(HyperparameterError, match=r"needs lr=…, beta1=…, beta2=…, eps=…"):
        openadam.Optimizer(np.zeros(1), rule=openadam.rules.adam)
    for rule in (None, "adam", openadam.rules.adam.function):
        with pytest.raises(TypeError, match="rule=…"):
            openadam.Optimizer(np.zeros(1), rule=rule)


# --- the whole step or none of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", PLAIN, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_a1_a_bad_gradient_in_the_last_group_leaves_the_first_alone(subject: Variant, engine: str) -> None:
    optimizer = subject.make([{"params": np.ones(70_000)}, {"params": {"b": np.ones(5)}}], engine=engine, clip_norm=1.0)
    good, bad = np.ones(70_000), np.full(5, np.nan)
    optimizer.step([good, {"b": np.ones(5)}])
    refuses(optimizer, lambda: optimizer.step([good, {"b": bad}]), NonFiniteGradientError, "'b'")
    refuses(optimizer, lambda: optimizer.step([good, {"b": np.ones(4)}]), GradientShapeError, "'b'")
    refuses(optimizer, lambda: optimizer.step([good, {"b": np.ones(5, np.int64)}]), GradientDtypeError, "'b'")


def test_gradients_are_never_written_nor_kept(adam: Make) -> None:
    import gc
    import weakref

    class Watched(np.ndarray[Any, Any]):
        """An array that can be watched."""

    optimizer = adam(pair(), steps=1, clip_norm=0.1, clip_value=0.01, weight_decay=0.1)
    gradients = ones(optimizer)
    before = {name: g.tobytes() for name, g in gradients.items()}
    watched = gradients["b"] = gradients["b"].view(Watched)
    optimizer.step(gradients, measure=True)
    assert {name: g.tobytes() for name, g in gradients.items()} == before
    reference = weakref.ref(watched)
    del watched, gradients
    gc.collect()
    assert reference() is None


def test_the_state_cannot_be_written_through_its_views(adam: Make) -> None:
    optimizer = adam(pair(), steps=1)
    with pytest.raises(ValueError, match="read-only"):
        optimizer.state["w"]["exp_avg"][0] = 1.0


@pytest.mark.parametrize("member", [openadam.Adam, openadam.SGD, openadam.NAdam])
def test_floating_point_errors_that_the_caller_made_fatal(member: Any) -> None:
    """np.seterr(all="raise") is for the caller's own arithmetic; a step neither fails by it nor stops half-way."""
    for engine in ENGINES:
        for dtype, gradient in ((np.float32, [1e-40, 1e-20, 1e15]), (np.float64, [1e-320, 1e-200, 1e300])):
            runs = []
            for mode in ("raise", "ignore"):
                optimizer = variant(member).make({"w": np.ones(3, dtype)}, engine=engine, nonfinite="propagate", clip_norm=1e3)
                with np.errstate(all=mode):
                    optimizer.step({"w": np.array(gradient, dtype)}, measure=True)
                runs.append(fingerprint(optimizer))
            assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["lr", "weight_decay", "maximize", "clip_norm", "nonfinite", "threads", "no_decay"])
def test_settings_cannot_be_set_where_they_would_not_be_read(adam: Make, name: str) -> None:
    optimizer = adam(pair())
    with pytest.raises(AttributeError, match=rf"no attribute '{name}': it is (a setting of each group|chosen when)"):
        setattr(optimizer, name, 0.5)
    assert not hasattr(optimizer, name)


def test_what_weight_decay_leaves_alone_must_be_said_in_a_known_way(adam: Make) -> None:
    with pytest.raises(HyperparameterError, match="no_decay=3 is neither names"):
        adam(pair(), no_decay=3)
