"""Gradients that name their rows: what a step makes of these rows, what it leaves alone, the same bits everywhere, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, PLAIN, VARIANTS, Variant, place, same, spread, variant
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fingerprint, refuses

import openadam
from openadam import (
    AliasError,
    GradientDtypeError,
    GradientError,
    GradientShapeError,
    NonFiniteGradientError,
    NonFiniteStateError,
    Rows,
    RuleError,
    SparseGradientError,
)
from openadam.engine import native, native_isas
from openadam.row_sparse import NAMED, by_row, layout

Array = np.ndarray[Any, Any]
ISAS = native_isas()
natively = pytest.mark.skipif(not ISAS, reason="there is no native code")
SHAPES = ((1,), (70,), (3000,), (5, 0), (0, 3), (50, 1), (40, 15), (40, 16), (900, 33), (64, 3, 5), (7, 2100))
SURROUNDINGS: Mapping[str, dict[str, Any]] = {
    "plain": {}, "decay": {"weight_decay": 0.1}, "decoupled": {"weight_decay": 0.1, "coupling": "decoupled"},
    "bounded": {"clip_value": 0.05, "maximize": True}, "clipped": {"clip_norm": 0.5},
}  # fmt: skip


def draw_rows(random: np.random.Generator, shape: tuple[int, ...], count: int, dtype: Any) -> Rows:
    """A gradient of so many rows, named in any order and some of them twice."""
    return Rows(random.integers(0, shape[0], count), spread(random, (count, *shape[1:]), dtype))


def summed(gradient: Rows) -> dict[int, Array]:
    """The values by row, added one after the other."""
    sums: dict[int, Array] = {}
    for index, value in zip(np.asarray(gradient.indices).tolist(), gradient.values, strict=True):
        sums[index] = sums[index] + value if index in sums else value
    return dict(sorted(sums.items()))


def dense_on_rows(subject: Variant, optimizer: openadam.Optimizer, gradient: Rows, **options: Any) -> None:
    """What a lazy step is: the dense rule on a parameter that consists of the named rows, which are then put back."""
    sums = summed(gradient)
    rows = list(sums)
    state = optimizer.state_dict()
    own = state["state"]["0"]
    p = optimizer.params["0"]
    part = p[rows].copy()
    small = subject.make(part, engine="reference", **options)
    own_part = {key: value[rows] if isinstance(value, np.ndarray) else value for key, value in own.items()}
    small.load_state_dict({**small.state_dict(), "state": {"0": own_part}, "steps": state["steps"]})
    if rows:
        small.step(np.stack(list(sums.values())))
        p[rows] = part
        after = small.state_dict()["state"]["0"]
    else:
        zero = subject.make(np.zeros(1, p.dtype), engine="reference", **options)
        scalars = {key: np.zeros(1, p.dtype) if isinstance(value, np.ndarray) else value for key, value in own.items()}
        zero.load_state_dict({**zero.state_dict(), "state": {"0": scalars}, "steps": state["steps"]})
        zero.step(np.zeros(1, p.dtype))
        after = {key: value for key, value in zero.state_dict()["state"]["0"].items() if not isinstance(value, np.ndarray)}
    for key, value in after.items():
        if isinstance(own[key], np.ndarray):
            own[key][rows] = value
        else:
            own[key] = value
    optimizer.load_state_dict({**state, "steps": state["steps"] + 1})


def outcome(optimizer: openadam.Optimizer) -> dict[str, Any]:
    return {"p": optimizer.params["0"].copy(), **{key: np.array(value) for key, value in optimizer.state["0"].items()}}


# --- what a step makes of the rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("subject", VARIANTS, ids=str)
def test_the_dense_rule_on_the_named_rows(subject: Variant, engine: str, surroundings: str) -> None:
    """Of every member, bit for bit: parameter, states, scalar states and the number of the step, over several steps."""
    options = SURROUNDINGS[surroundings]
    for dtype in DTYPES:
        random = np.random.default_rng(3)
        values = spread(random, (9, 4), dtype)
        mine, other = (subject.make(values.copy(), engine=engine, **options) for _ in range(2))
        place(subject, mine, random, {"0": 3})
        other.load_state_dict(mine.state_dict())
        for count in (6, 0, 14, 1):
            gradient = draw_rows(random, (9, 4), count, dtype)
            mine.step(gradient)
            dense_on_rows(subject, other, gradient, **options)
            assert same(outcome(mine), outcome(other)), (dtype, count)
        assert mine.steps == 7


@pytest.mark.parametrize("engine", ENGINES)
def test_all_rows_are_a_dense_step(engine: str) -> None:
    for subject in PLAIN:
        random = np.random.default_rng(0)
        values, gradient = spread(random, (40, 30), np.float32), spread(random, (40, 30), np.float32)
        lazy, dense = (subject.make(values.copy(), engine=engine, weight_decay=0.1, clip_norm=1.0) for _ in range(2))
        order = random.permutation(40)
        reports = [optimizer.step(g, measure=True) for optimizer, g in ((lazy, Rows(order, gradient[order])), (dense, gradient))]
        assert reports[0] == reports[1]
        assert same(outcome(lazy), outcome(dense))


@pytest.mark.parametrize("engine", ENGINES)
def test_norm_clip_and_measures_see_the_sums(engine: str) -> None:
    p, other = np.zeros((5, 2)), np.zeros(2)
    optimizer = openadam.SGD({"p": p, "other": other}, lr=1.0, clip_norm=1.0, engine=engine)
    report = optimizer.step({"p": Rows([4, 1, 4], np.array([[1.0, 0], [0, 4], [2, 0]])), "other": np.array([0.0, 12])}, measure=True)
    assert report.grad_norm == 13.0
    assert report.measures is not None
    assert report.measures["p"]["grad_sum_squares"] == 25.0
    assert p.tolist() == pytest.approx(np.array([[0, 0], [0, -4 / 13], [0, 0], [0, 0], [-3 / 13, 0]]), rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_dense_and_lazy_steps_of_one_parameter(engine: str) -> None:
    """In turn, and beside others: there is one number of steps, and nothing of a lazy step stays with the next."""
    random = np.random.default_rng(1)
    found = []
    for lazily in (True, False):
        random = np.random.default_rng(1)
        p, q = spread(random, (300, 6), np.float32), spread(random, 5, np.float32)
        optimizer = openadam.Adagrad({"p": p, "q": q}, engine=engine)  # of whose zeros nothing comes
        for k in range(6):
            rows = draw_rows(random, (300, 6), 40, np.float32)
            dense = np.zeros((300, 6), np.float32)
            sums = summed(rows)
            dense[list(sums)] = list(sums.values())
            optimizer.step({"p": rows if lazily and k % 2 else dense, "q": None if k == 3 else np.ones(5, np.float32)})
        found.append(({"p": p, "q": q}, optimizer.state_dict()["state"]))
    assert same(found[0][0], found[1][0])
    assert all(same(found[0][1][name], found[1][1][name]) for name in "pq")


def test_the_order_of_what_is_added() -> None:
    for engine in ENGINES:
        for dtype, big in ((np.float32, 1e8), (np.float64, 1e17)):
            p = np.zeros((4, 1), dtype)
            optimizer = openadam.SGD(p, lr=1.0, engine=engine)
            optimizer.step(Rows(np.array([2, 2, 2, 0, 2], np.uint8), np.array([[big], [1], [-big], [3], [1]], dtype)))
            assert p.ravel().tolist() == [-3.0, 0.0, -1.0, 0.0]
            optimizer.step(Rows([1, 1], np.array([[-0.0], [-0.0]], dtype)))
            assert same(p, np.array([[-3.0], [0.0], [-1.0], [0.0]], dtype))


def test_float32_gradients_of_float64_parameters() -> None:
    p = np.zeros((3, 2))
    openadam.SGD(p, lr=1.0).step(Rows([1, 1], np.full((2, 2), 0.1, np.float32)))
    assert p[1].tolist() == [-2 * float(np.float32(0.1))] * 2


# --- the same bits everywhere ------------------------------------------------------------------------------------------


@natively
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_native_and_reference(data: st.DataObject) -> None:
    """Random shapes, strides, rows and surroundings, every instruction set, some numbers of threads."""
    subject = data.draw(st.sampled_from(VARIANTS), label="subject")
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    shape = data.draw(
        st.sampled_from([(1,), (70,), (3000,), (5, 0), (0, 3), (50, 1), (40, 15), (40, 16), (900, 33), (64, 3, 5), (7, 2100)]), label="shape"
    )
    counts = data.draw(st.lists(st.integers(0, 1500 if np.prod(shape[1:]) < 100 else 20), min_size=1, max_size=3), label="counts")
    lies = data.draw(st.sampled_from(["dense", "transposed", "strided", "reversed"]), label="lies")
    options = SURROUNDINGS[data.draw(st.sampled_from(list(SURROUNDINGS)), label="surroundings")]
    measure = data.draw(st.booleans(), label="measure")

    def run(**engine: Any) -> list[Any]:
        random = np.random.default_rng(7)
        values = spread(random, shape, dtype)
        if lies == "transposed":
            p = np.asfortranarray(values)
        elif lies == "strided":
            p = np.zeros((*shape[:-1], 3 * shape[-1]), dtype)[..., ::3]
        elif lies == "reversed":
            p = np.zeros(shape, dtype)[::-1]
        else:
            p = values.copy()
        p[...] = values
        optimizer = subject.make(p, **options, **engine)
        seen: list[Any] = []
        for count in counts:
            report = optimizer.step(draw_rows(random, shape, count if shape[0] else 0, dtype), measure=measure)
            seen.append(repr(report))
        return [seen, outcome(optimizer)]

    expected = run(engine="reference")
    isa = data.draw(st.sampled_from(ISAS), label="isa")
    for threads in (1, 3):
        found = run(engine="native", isa=isa, threads=threads)
        assert found[0] == expected[0]
        assert same(found[1], expected[1])


@natively
@given(
    indices=st.lists(st.integers(0, 60) | st.integers(0, 2**40), max_size=60),
    width=st.sampled_from([0, 1, 3, 40]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=100, deadline=None)
def test_rows_are_summed_alike(indices: list[int], width: int, dtype: Any) -> None:
    """Natively, in NumPy and in a plain loop."""
    named, values = np.array(indices, np.int64), spread(np.random.default_rng(0), (len(indices), width), dtype, -6, 6)
    expected = summed(Rows(named, values))
    for engine in ENGINES:
        with pytest.MonkeyPatch.context() as patch:
            if engine == "reference":
                patch.setattr("openadam.engine._native", None)
            rows, sums = by_row(named, values)
        assert rows.tolist() == list(expected)
        assert sums.dtype == dtype
        assert same(sums, np.array(list(expected.values()), dtype).reshape(len(expected), width))


def test_rules_of_ones_own() -> None:
    """The reference runs them, with scalar states and what they say of themselves."""

    @openadam.rule(lr=0.5, nonnegative=("n",))
    def counted(g: Any, s: Any, h: Any) -> openadam.Step:
        """Divides by the number of times that a row was named."""
        n = s.n + openadam.where(g == 0, 0, 1)
        return openadam.Step(g / n, n=n)

    p = np.zeros((4, 1))
    optimizer = openadam.Optimizer(p, rule=counted)
    for _ in range(2):
        optimizer.step(Rows([2, 2], np.ones((2, 1))))
    optimizer.step(Rows([1], np.ones((1, 1))))
    assert p.ravel().tolist() == [0.0, -0.5, -1.5, 0.0]
    assert optimizer.state["0"]["n"].ravel().tolist() == [0.0, 1.0, 2.0, 0.0]

    @openadam.rule(lr=0.5, nonnegative=("m",))
    def breaks(g: Any, s: Any, h: Any) -> openadam.Step:
        """Says what is not so."""
        return openadam.Step(g, m=s.m + g)

    optimizer = openadam.Optimizer({"p": np.zeros((4, 2))}, rule=breaks)
    refuses(optimizer, lambda: optimizer.step({"p": Rows([1, 3], np.array([[1.0, 1], [1, -1]]))}), RuleError, "flat index 7", "'m'")


# --- what is refused ---------------------------------------------------------------------------------------------------


def some(count: int = 2, width: int = 3, dtype: Any = np.float64) -> Array:
    return np.ones((count, width), dtype)


def _masked(values: Any) -> Any:
    return np.ma.MaskedArray(values, mask=np.arange(np.size(values)).reshape(np.shape(values)) == 0)


def _with(value: float) -> Array:
    values = some()
    values[1, 2] = value
    return values


BAD: Mapping[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "negative": (lambda: Rows([0, -1], some()), GradientError, ("names row -1, and there are 4",)),
    "out of range": (lambda: Rows([4, 0], some()), GradientError, ("names row 4, and there are 4", "numbered from 0")),
    "far out of range": (lambda: Rows(np.array([2**64 - 1, 0], np.uint64), some()), GradientError, (str(2**64 - 1),)),
    "float indices": (lambda: Rows([0.0, 1.0], some()), GradientDtypeError, ("float64", "integers")),
    "bool indices": (lambda: Rows(np.array([True, False]), some()), GradientDtypeError, ("bool",)),
    "no integers": (lambda: Rows(np.zeros(1), some(1)), GradientDtypeError, ("float64",)),
    "strings": (lambda: Rows(["a", "b"], some()), GradientDtypeError, ("integers",)),
    "None": (lambda: Rows(None, some()), GradientShapeError, ("shape ()",)),
    "indices of two axes": (lambda: Rows([[0], [1]], some()), GradientShapeError, ("(2, 1)", "one axis")),
    "one index": (lambda: Rows(0, some(1)), GradientShapeError, ("shape ()",)),
    "masked indices": (lambda: Rows(_masked([0, 1]), some()), GradientError, ("masked",)),
    "too few values": (lambda: Rows([0, 1], some(1)), GradientShapeError, ("(1, 3)", "(2, 3)")),
    "values of other rows": (lambda: Rows([0, 1], some(2, 4)), GradientShapeError, ("(2, 4)", "(2, 3)")),
    "values of one axis": (lambda: Rows([0, 1, 2], np.ones(3)), GradientShapeError, ("(3,)", "(3, 3)")),
    "values of another dtype": (lambda: Rows([0, 1], some(dtype=np.float16)), GradientDtypeError, ("float16",)),
    "values of integers": (lambda: Rows([0, 1], some(dtype=np.int64)), GradientDtypeError, ("int64",)),
    "values of the other byte order": (lambda: Rows([0, 1], some().astype(">f8")), GradientDtypeError, (">f8",)),
    "masked values": (lambda: Rows([0, 1], _masked(some())), GradientError, ("masked",)),
    "no array": (lambda: Rows([0, 1], "ab"), GradientDtypeError, ("'ab'",)),
    "rows in rows": (lambda: Rows([0, 1], Rows([0, 1], some())), GradientDtypeError, ("Rows",)),
    "NaN": (lambda: Rows([3, 1], _with(np.nan)), NonFiniteGradientError, ("nan at flat index 5", "1 non-finite")),
    "infinite": (lambda: Rows([1, 3], _with(-np.inf)), NonFiniteGradientError, ("-inf at flat index 11",)),
    "an infinite sum": (lambda: Rows([2, 2], some() * 1.7e308), NonFiniteGradientError, ("inf at flat index 6", "3 non-finite")),
    "too large": (lambda: Rows([1, 3], _with(1e200)), NonFiniteStateError, ("1e+200 at element 11",)),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("engine", ENGINES)
def test_bad_rows(engine: str, how: str) -> None:
    """Refused by the parameter's name; nothing has changed, also not of a parameter whose gradient is in order."""
    make, error, texts = BAD[how]
    optimizer = openadam.Adam({"first": np.ones((2, 2)), "w": np.arange(12.0).reshape(4, 3)}, engine=engine)
    fine = {"first": Rows([1], np.ones((1, 2))), "w": Rows([0, 3], some())}
    optimizer.step(fine)
    refuses(optimizer, lambda: optimizer.step({**fine, "w": make()}), error, "'w'", *texts)
    optimizer.step(fine)
    assert optimizer.steps == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_aliases(engine: str) -> None:
    """Values in the memory of what the step writes; also of rows that it leaves alone, which another parameter's gradient may not be."""
    w = np.arange(12.0).reshape(4, 3)
    optimizer = openadam.Adam({"w": w, "b": np.ones(3)}, engine=engine)
    for values in (w[:2], w[2:]):
        refuses(optimizer, lambda values=values: optimizer.step({"w": Rows([0, 1], values), "b": None}), AliasError, "'w'", "shares memory")
        optimizer.step({"w": Rows([0, 1], values.copy()), "b": None})
    refuses(optimizer, lambda: optimizer.step({"w": Rows([0], some(1)), "b": w[3]}), AliasError, "'b'", "'w'")
    optimizer.step({"w": Rows([1, 0], w[:2]), "b": None})  # what is put in order is a copy
    for state in (optimizer.state["w"]["exp_avg"], optimizer.state["w"]["exp_avg_sq"]):
        refuses(optimizer, lambda state=state: optimizer.step({"w": Rows([0], state[3:]), "b": None}), AliasError, "state of parameter 'w'")
    memory = np.ones(60)
    p, values = memory[:12].reshape(4, 3), memory[12:].reshape(16, 3)
    optimizer = openadam.Adam(p, engine=engine)
    optimizer.step(Rows([0, 1], values[:2]))
    optimizer.step(Rows([0, 1, 2], values[:3]))
    lies_before = memory[6:12].reshape(2, 3)
    refuses(optimizer, lambda: optimizer.step(Rows([0, 1], lies_before)), AliasError)


@natively
def test_aliases_that_grow() -> None:
    """Values that begin where others began that were in order, and reach farther."""
    memory = np.ones((9, 3))
    optimizer = openadam.Adam({"p": memory[3:5], "q": np.ones((20, 3))}, engine="native")
    of_p = Rows([0], np.ones((1, 3)))
    for _ in range(2):
        optimizer.step({"p": of_p, "q": Rows([0, 1, 2], memory[:3])})
        refuses(optimizer, lambda: optimizer.step({"p": of_p, "q": Rows([0, 1, 2, 3], memory[:4])}), AliasError, "'q'", "'p'")


def test_parameters_without_rows() -> None:
    optimizer = openadam.Adam({"scale": np.array(1.0)})
    refuses(optimizer, lambda: optimizer.step({"scale": Rows([0], np.ones(1))}), GradientShapeError, "'scale'", "single number")
    optimizer = openadam.Adam({"none": np.zeros((0, 3))})
    refuses(optimizer, lambda: optimizer.step({"none": Rows([0], np.ones((1, 3)))}), GradientError, "row 0, and there are 0")
    optimizer.step({"none": Rows([], np.ones((0, 3)))})
    assert optimizer.steps == 1


def test_a_rows_is_no_sequence() -> None:
    """It is one gradient, whatever the structure of the parameters."""
    for params in ([np.ones((2, 1)), np.ones((2, 1))], {"indices": np.ones((2, 1)), "values": np.ones((2, 1))}):
        optimizer = openadam.Adam(params)
        refuses(optimizer, lambda optimizer=optimizer: optimizer.step(Rows([0, 1], np.ones((2, 1)))), GradientError, "not Rows")


def test_sparse_matrices_are_told_of_rows() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    optimizer = openadam.Adam(np.ones((3, 3)))
    refuses(optimizer, lambda: optimizer.step(sparse.csr_matrix(np.eye(3))), SparseGradientError, "openadam.Rows")


@pytest.mark.parametrize("engine", ENGINES)
def test_skipping_and_propagating(engine: str) -> None:
    p = np.ones((4, 2))
    skipping = openadam.Adam(p, nonfinite="skip", engine=engine)
    before = fingerprint(skipping, skipped=False)
    assert skipping.step(Rows([1], np.full((1, 2), np.nan))).skipped
    assert skipping.skipped == 1
    assert fingerprint(skipping, skipped=False) == before
    openadam.Adam(p, nonfinite="propagate", engine=engine).step(Rows([1, 2], np.array([[np.nan, 1], [1, 1]])))
    assert np.isnan(p).tolist() == [[False] * 2, [True, False], [False] * 2, [False] * 2]


# --- what stays, and what goes on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_and_round_trips(engine: str) -> None:
    random = np.random.default_rng(0)
    for subject in PLAIN:
        one = subject.make(spread(random, (9, 4), np.float64), engine=engine)
        gradients = [draw_rows(random, (9, 4), 5, np.float64) for _ in range(4)]
        for gradient in gradients[:2]:
            one.step(gradient)
        others = [copy.deepcopy(one), pickle.loads(pickle.dumps(one)), subject.make(one.params["0"].copy(), engine=engine)]
        others[2].load_state_dict(one.state_dict())
        for optimizer in (one, *others):
            for gradient in gradients[2:]:
                optimizer.step(gradient)
        for other in others:
            assert same(outcome(one), outcome(other))


def test_the_gradient_is_the_callers() -> None:
    """It is not written, and not kept."""
    for indices in ([3, 1, 3], [1, 2, 3]):
        named, values = np.array(indices), some(3)
        before = named.tobytes(), values.tobytes()
        for engine in ENGINES:
            optimizer = openadam.Adam(np.ones((4, 3)), engine=engine)
            optimizer.step(Rows(named, values))
            named.resize(3, refcheck=True)  # which NumPy refuses while another array is over it
        assert (named.tobytes(), values.tobytes()) == before


# --- the native part ---------------------------------------------------------------------------------------------------


@natively
def test_the_table_checks_named_rows() -> None:
    """A layout that would lead out of the parameter is refused before anything is touched."""
    subject = variant(openadam.SGD)
    module = native()
    names = [name for name, *_ in module.updates(0)]
    p, g = np.ones((4, 3)), np.ones((2, 3))

    def run(numbers: list[int], length: int = 6) -> None:
        row = np.zeros((1, module.COLUMNS), np.int64)
        row[0, :9] = [p.ctypes.data, g.ctypes.data, length, 1, names.index(subject.traced.name), 0, -1, 0, 1]
        module.run(0, row, np.full(9, 0.5), np.array(numbers, np.int64), np.zeros(0, np.int64), True, np.zeros((1, 0)), 1)

    rows = np.array([1, 3], np.int64)
    good = layout(rows, 3, 4)
    run(good)
    assert (p != 1).any(axis=1).tolist() == [False, True, False, True]
    before = p.copy()
    descending, beyond, negative, twice = (np.array(each, np.int64) for each in ([3, 1], [1, 4], [-1, 1], [1, 1]))
    bad = [
        good[:5],
        [NAMED, *good[1:5], -2],
        [NAMED, *good[1:5], 70],
        [*good[:5], 1, 3],
        layout(rows, 3, 4, [(3,), (24, 8), (24,)]),
        layout(rows, 3, 4, [(2,), (24, 8), (24, 8)]),
        layout(rows, 3, 4, [(0,), (24, 8), (24, 8)]),
        layout(rows, 2, 4),
        layout(rows, -3, 4),
        layout(rows, 3, -4),
        layout(rows, 3, 2**62),
        layout(rows, 3, 3),
        layout(descending, 3, 4),
        layout(beyond, 3, 4),
        layout(negative, 3, 4),
        layout(twice, 3, 4),
        [NAMED, 0, *good[2:]],
    ]
    for numbers in bad:
        with pytest.raises(ValueError, match="row 0 of the step's table"):
            run(numbers)
        assert same(p, before)
    with pytest.raises(ValueError, match="negative"):
        module.sum_rows(negative, g)
    with pytest.raises(ValueError, match="differ in length"):
        module.sum_rows(rows[:1], g)


def test_an_empty_batch_as_numpy_makes_it_names_no_rows() -> None:
    table = np.ones((4, 2))
    optimizer = openadam.Adam(table)
    optimizer.step(Rows(np.array([]), np.zeros((0, 2))))
    assert optimizer.steps == 1
    assert (table == 1).all()
