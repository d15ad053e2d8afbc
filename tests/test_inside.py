"""What is seen inside a step: the same bits by every engine, of the elements that the sample has, before anything is written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import DTYPES, ENGINES, VARIANTS, Variant, same

import openadam
from openadam import HyperparameterError, Rows
from openadam import engine as engine_module
from openadam.engine import native_isas
from openadam.language.code import encode
from openadam.measures import HISTOGRAMS, INSIDE, MEASURES, OCTAVES, Measure, count, one, places, program_inside, sampled_elements, sampled_pieces

LENGTHS = (0, 1, 15, 16, 17, 511, 512, 513, 1023, 1024, 1025, 2500, 16384, 16385, 40_000)
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "plain": {}, "clipped": {"clip_norm": 0.5}, "bounded": {"clip_value": 0.4}, "ascending": {"maximize": True},
    "coupled": {"weight_decay": 0.1, "coupling": "coupled"}, "decoupled": {"weight_decay": 0.1, "coupling": "decoupled", "clip_norm": 0.7},
}  # fmt: skip


def numbers(size: Any, dtype: Any, seed: int) -> Any:
    values = np.random.default_rng(seed).standard_normal(size).astype(dtype)
    values.reshape(-1)[::7] = 0
    return values


def taken(variant: Variant, shapes: Any, dtype: Any, *, steps: int = 3, measure: Any = True, **settings: Any) -> tuple[Any, Any, Any]:
    """The reports of some steps, the parameters and the states after them."""
    params = {str(k): numbers(shape, dtype, k) for k, shape in enumerate(shapes)}
    optimizer = variant.make(params, **settings)
    reports = [optimizer.step({name: numbers(p.shape, dtype, 100 + t) for name, p in params.items()}, measure=measure) for t in range(steps)]
    return reports, params, optimizer.state_dict()


# --- the same everywhere -----------------------------------------------------------------------------------------------


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_native_sees_what_the_reference_sees(variant: Variant, dtype: Any) -> None:
    for surroundings in SURROUNDINGS.values():
        expected = taken(variant, (3, 700, 2500), dtype, engine="reference", **surroundings)[0]
        for isa in native_isas():
            assert taken(variant, (3, 700, 2500), dtype, engine="native", isa=isa, **surroundings)[0] == expected


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_every_length_by_any_number_of_threads(dtype: Any) -> None:
    adam = VARIANTS[[str(each) for each in VARIANTS].index("Adam")]
    expected = taken(adam, LENGTHS, dtype, engine="reference")[0]
    for threads in (1, 2, 3):
        assert taken(adam, LENGTHS, dtype, engine="native", threads=threads)[0] == expected
    for name, seen in expected[-1].measures.items():
        assert seen["sampled"] == sampled_elements(LENGTHS[int(name)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_looking_changes_nothing(variant: Variant, engine: str) -> None:
    calm, watched = (taken(variant, (700, 1500), np.float32, engine=engine, measure=measure, weight_decay=0.1) for measure in (False, True))
    assert all(same(calm[1][name], watched[1][name]) for name in calm[1])
    assert repr(calm[2]) == repr(watched[2])


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_that_are_not_dense_and_named_rows_are_seen_alike(engine: str) -> None:
    base = numbers((60, 50), np.float64, 0)
    seen = []
    for place in (base.copy(), np.asfortranarray(base).copy(order="F"), np.zeros((120, 100))[::2, ::2]):
        place[...] = base
        report = openadam.Adam({"w": place}, engine=engine).step({"w": np.ascontiguousarray(numbers((60, 50), np.float64, 1))}, measure=True)
        seen.append(report.measures["w"])
    assert seen[0] == seen[2]
    assert seen[1]["sampled"] == seen[0]["sampled"]  # in another order of elements, so another sample
    rows = np.arange(60)[::-1]
    table = base.copy()
    lazy = openadam.Adam({"w": table}, engine=engine).step({"w": Rows(rows, numbers((60, 50), np.float64, 1)[rows])}, measure=True)
    assert lazy.measures["w"] == seen[0]


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_histograms_are_the_same_everywhere(variant: Variant, dtype: Any) -> None:
    shapes = (3, 700, 20_000)
    expected = taken(variant, shapes, dtype, engine="reference", clip_norm=0.7, measure=HISTOGRAMS)[0][-1].measures
    for isa in native_isas():
        for threads in (1, 2):
            found = taken(variant, shapes, dtype, engine="native", isa=isa, threads=threads, clip_norm=0.7, measure=HISTOGRAMS)[0][-1].measures
            assert found == expected
            assert all(same(found.histograms[name], expected.histograms[name]) for name in expected.histograms)
    assert list(expected.histograms) == ["v_root", "direction_abs", "rate"]
    for each in expected.histograms.values():
        assert all(row.sum() == sampled_elements(size) or np.isnan(row).all() for row, size in zip(each, shapes, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_counted_by_octave(dtype: Any, engine: str) -> None:
    """Each edge belongs to the bin above it; 0, subnormal numbers and what is below the first edge to the first, infinity and NaN to the last."""
    tiny = np.finfo(dtype).smallest_subnormal
    values = [0.0, tiny, OCTAVES[0] / 2, *OCTAVES, *(1.999 * edge for edge in OCTAVES), 1e30, np.inf, np.nan]
    g = np.array([sign * value for value in values for sign in (1, -1)], dtype)
    own = Measure("size", "octaves", lambda x: abs(x.g))
    optimizer = openadam.SGD({"w": np.zeros(g.shape, dtype)}, engine=engine, nonfinite="propagate")
    counts = optimizer.step({"w": g}, measure=own).measures.histograms["size"][0]
    edges = np.array([0.0, *OCTAVES[1:-1], np.inf])
    expected = np.histogram(np.abs(g[~np.isnan(g)]), edges)[0]
    expected[-1] += 2  # NaN
    assert counts.tolist() == expected.tolist()


# --- the truth ---------------------------------------------------------------------------------------------------------


def by_hand(g: Any, p: Any, m: Any, v: Any, t: int, lr: float, beta1: float, beta2: float, eps: float) -> dict[str, float]:
    """Adam as a loop would compute it, and what is to be seen of it."""
    m0, v0 = m, v
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    below = np.sqrt(v_hat) + eps
    u = m_hat / below
    v_hat_before = v0 / (1 - beta2 ** (t - 1)) if t > 1 else np.full_like(v, np.inf)
    after = p - lr * u
    return {
        "sampled": g.size, "zero_grad": np.sum(g == 0), "direction_sum_squares": np.sum(u**2), "direction_max_abs": np.max(np.abs(u)),
        "direction_sum_abs": np.sum(np.abs(u)), "direction_sum_abs_without_grad": np.sum(np.abs(u[g == 0])), "descent": np.sum(g * u),
        "seen_grad_sum_squares": np.sum(g**2), "param_dot_update": np.sum(p * (after - p)), "swallowed": np.sum((u != 0) & (after == p)),
        "gain_sum": np.sum(1 / below), "gain_max": np.max(1 / below), "damping_sum": np.sum(np.sqrt(v_hat) / below),
        "surprise_sum": np.sum(g**2 / np.maximum(v_hat, eps**2)), "spikes": np.sum(g**2 > 25 * v_hat_before),
        "huge_spikes": np.sum(g**2 > 5000 * v_hat_before), "stale_v": np.sum(g**2 < 0.01 * v_hat), "v_sum": np.sum(v), "v_before_sum": np.sum(v0),
        "eps_dominated": np.sum((v != 0) & (v_hat < eps**2)), "v_zero": np.sum(v == 0), "v_underflow": np.sum((g != 0) & (v == 0)),
        "v_frozen": np.sum((v == v0) & (np.abs(g**2 - v) > v / 100)), "disagree": np.sum(m * g < 0), "disagree_sum_abs": np.sum(np.abs(u[m * g < 0])),
        "m_before_dot_grad": np.sum(g * m0), "m_before_sum_squares": np.sum(m0**2), "m_hat_sum_squares": np.sum(m_hat**2), "v_hat_sum": np.sum(v_hat),
    }  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_adam_is_seen_as_it_is(engine: str, eps: float) -> None:
    """Every measure of every step by hand, over the sampled elements; some of them without a gradient, some with a sudden one."""
    size = 5000
    which = np.concatenate([np.arange(piece.start, piece.stop) for piece in sampled_pieces(size)])
    p, m, v = numbers(size, np.float64, 0), np.zeros(size), np.zeros(size)
    params = {"w": p.copy()}
    optimizer = openadam.Adam(params, lr=0.01, beta1=0.8, beta2=0.9, eps=eps, engine=engine)
    for t in range(1, 6):
        g = numbers(size, np.float64, t)
        g[::11] *= 40 if t == 4 else 1
        before = params["w"].copy()
        report = optimizer.step({"w": g}, measure=True)
        expected = by_hand(g[which], before[which], m[which], v[which], t, 0.01, 0.8, 0.9, eps)
        seen = report.measures["w"]
        assert set(expected) == {measure.name for measure in INSIDE} - {"decay_over_grad"}
        assert {name: seen[name] for name in expected} == pytest.approx(expected, rel=1e-9), t
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
    assert seen["spikes"] > 0
    assert seen["v_zero"] > 0
    assert seen["decay_over_grad"] == 0


def test_noise_is_seen_as_noise() -> None:
    """The readings that Adam gives of nothing but noise: rms(u) .229, disagreement .356, RMS_t 1, for beta1 = 0.9."""
    random = np.random.default_rng(0)
    optimizer = openadam.Adam(np.zeros(40_000, np.float32), beta1=0.9, beta2=0.99, lr=1e-4)
    seen: list[dict[str, float]] = []
    for t in range(400):
        report = optimizer.step(random.standard_normal(40_000).astype(np.float32), measure=t >= 380)
        seen += report.measures.values() if report.measures else []
    mean = {name: np.mean([each[name] / each["sampled"] for each in seen]) for name in seen[0]}
    assert math.sqrt(mean["direction_sum_squares"]) == pytest.approx(math.sqrt(0.1 / 1.9), rel=0.03)
    assert mean["disagree"] == pytest.approx(0.5 - math.asin(math.sqrt(1 - 0.9**2)) / math.pi, abs=0.01)
    assert math.sqrt(mean["surprise_sum"]) == pytest.approx(1.0, rel=0.03)
    assert mean["stale_v"] == pytest.approx(0.08, abs=0.01)
    assert mean["v_sum"] / mean["v_before_sum"] == pytest.approx(1.0, rel=0.01)
    assert mean["m_hat_sum_squares"] / mean["v_hat_sum"] == pytest.approx(0.1 / 1.9, rel=0.05)


def test_the_sample_meets_no_period() -> None:
    for length in (100, 600, 3000, 20_000, 300_000):
        places = np.concatenate([np.arange(piece.start, piece.stop) for piece in sampled_pieces(length)])
        assert (np.diff(places) > 0).all()
        assert places[-1] < length
        assert len(places) == sampled_elements(length) >= min(length, 256)
        for period in (64, 128, 1024, 4096):
            if length > 16 * period:
                assert len(np.unique(places % period)) >= min(period // 2, len(places) // 2)


# --- what one looks at oneself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_measures_of_ones_own(engine: str) -> None:
    own = [count("large", lambda x: abs(x.g) > 0.5), Measure("moment", "max", lambda x: abs(x.m)), Measure("rate", "max", lambda x: x.h.lr * x.gain)]
    own.append(Measure("not there", "sum", lambda x: x.g_mean))
    own.append(Measure("one", "sum", lambda x: one(x.p == x.p)))
    g = numbers(300, np.float32, 0)
    optimizer = openadam.Adam(np.ones(300, np.float32), lr=0.25, engine=engine)
    seen = optimizer.step(g, measure=own).measures["0"]
    assert seen["large"] == np.sum(np.abs(g) > 0.5)
    assert seen["moment"] == pytest.approx(0.1 * np.abs(g).max(), rel=1e-6)
    assert seen["rate"] == pytest.approx(0.25 / 1e-8, rel=1e-5)
    assert seen["one"] == 300
    assert "not there" not in seen
    assert set(seen) >= {measure.name for measure in MEASURES}
    assert optimizer.step(g).measures is None


def test_measures_that_are_none_are_refused() -> None:
    optimizer = openadam.Adam(np.ones(3))
    for wrong, says in (
        ([3], "neither True nor a list of openadam.Measure"), (7, "neither True"), ([count("spikes", lambda x: x.g == 0)], "two measures called")
    ):  # fmt: skip
        with pytest.raises(HyperparameterError, match=says):
            optimizer.step(np.ones(3), measure=wrong)
    with pytest.raises(ValueError, match="reduced by 'mean'"):
        Measure("x", "mean", lambda x: x.g)
    assert optimizer.steps == 0


IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "raises": (lambda x: 1 / 0, "ZeroDivisionError"), "a comparison": (lambda x: x.g > 0, r"it is a comparison; write one\(condition\)"),
    "exp": (lambda x: openadam.exp(x.g), "exp of a tensor is not in the language"),
    "power": (lambda x: x.g**x.p, "a tensor can be raised to 0.5 or to a whole number"), "a word": (lambda x: "g", "cannot stand in a rule"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_measure_that_cannot_be_taken_is_refused_by_name(what: str, engine: str) -> None:
    """Before anything is written; a step without it goes on."""
    expression, says = IMPOSSIBLE[what]
    p = np.ones(3)
    optimizer = openadam.Adam({"w": p}, engine=engine)
    with pytest.raises(HyperparameterError, match=f"the measure 'own' cannot be taken of 'adam': .*{says}"):
        optimizer.step({"w": np.ones(3)}, measure=[Measure("own", "sum", expression)])
    assert (optimizer.steps, p.tolist()) == (0, [1.0] * 3)
    assert optimizer.step({"w": np.ones(3)}).step == 1


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
def test_too_many_measures_are_refused() -> None:
    p = np.ones(3)
    optimizer = openadam.Adam({"w": p}, engine="native")
    own = [count(f"above {k}", lambda x, k=k: x.g > k) for k in range(100)]  # type: ignore[misc]
    with pytest.raises(HyperparameterError, match=f"{len(INSIDE) + 100} measures are asked for, and 96 can be; give fewer"):
        optimizer.step({"w": np.ones(3)}, measure=own)
    assert (optimizer.steps, p.tolist()) == (0, [1.0] * 3)
    most = own[: 96 - len(INSIDE)]
    seen = optimizer.step({"w": np.full(3, 9.5)}, measure=most).measures["w"]
    assert [seen[each.name] for each in most] == [3.0 * (k < 9.5) for k in range(len(most))]


def test_a_rule_of_ones_own_is_seen() -> None:
    @openadam.rule(lr=0.1, beta=0.9)
    def signum(g: Any, s: Any, h: Any) -> Any:
        m = h.beta * s.m + (1 - h.beta) * g
        return openadam.Step(openadam.sign(m), m=m)

    seen = openadam.Optimizer(np.ones(20), rule=signum).step(numbers(20, float, 3), measure=True).measures["0"]
    assert seen["direction_max_abs"] == 1.0
    assert seen["disagree"] == 0.0
    assert "v_sum" not in seen


def test_a_name_that_nothing_has_is_a_mistake_and_one_that_this_rule_lacks_is_none() -> None:
    optimizer = openadam.Adam({"w": np.ones(3)})
    for wrong, meant in (("gg", "g"), ("v_hta", "v_hat")):
        with pytest.raises(HyperparameterError, match=f"there is no '{wrong}' in any rule of this package, nor in this one; did you mean '{meant}'"):
            optimizer.step({"w": np.ones(3)}, measure=[count("mine", lambda x, wrong=wrong: abs(getattr(x, wrong)) > 1)])
    report = optimizer.step({"w": np.ones(3)}, measure=[count("mine", lambda x: x.u_max > 1)])
    assert report.measures is not None
    assert "mine" not in report.measures["w"]
    assert optimizer.steps == 1


# --- the code ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
def test_damaged_code_is_refused() -> None:
    """No number of a code, changed to anything, reads or writes where it must not: it is refused, or harmless."""
    from openadam import _native

    traced = VARIANTS[[str(each) for each in VARIANTS].index("Adam")].traced
    seen = INSIDE + HISTOGRAMS
    program = program_inside(traced, seen)
    joined = {measure.name: (k, measure.reduction) for k, measure in zip(places(seen), seen, strict=False)}
    code = encode(program, ("given", "g", "p", "m", "v"), joined)
    optimizer = openadam.Adam(np.ones(100, np.float32))
    optimizer.step(np.ones(100, np.float32), measure=True)
    table = optimizer._stepper.table
    hyperparameters = [0.5] * len(program.hyperparameters)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        instructions, outputs, slots, scalars, constants, roots = damaged([*code[:3], *code.scalars], random)
        try:
            table.set_observer(0, instructions, outputs, slots, (scalars, constants, roots), hyperparameters, places(seen)[-1])
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017 - either way is right
            refused += 1
        else:
            optimizer._stepper.updates[0]._inside = (optimizer._stepper.updates[0].kernel, seen, dict(optimizer._stepper.updates[0].values))
            optimizer.step(np.ones(100, np.float32), measure=HISTOGRAMS)
    assert refused > 1000
    assert _native is not None


def damaged(parts: list[Any], random: np.random.Generator) -> list[Any]:
    """One number changed to anything."""
    copied = [list(part) if isinstance(part, list) else part for part in parts]
    wrong = int(random.choice([-1, 1, 2, 7, 40, 200, 2**31, 2**40, -(2**40)]))
    which = int(random.choice([k for k, part in enumerate(copied) if part != [] and k != 4]))
    if isinstance(copied[which], list):
        copied[which][int(random.integers(len(copied[which])))] = wrong
    else:
        copied[which] = wrong
    return copied


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
def test_a_damaged_program_is_refused() -> None:
    traced = VARIANTS[[str(each) for each in VARIANTS].index("Adam")].traced
    plain, measured = engine_module._code(traced)
    program = engine_module.compiled(traced)[0]
    sizes = len(program.hyperparameters), len(program.states), len(program.memory)
    optimizer = openadam.Adam(np.ones(100, np.float32), engine="interpreter")
    optimizer.step(np.ones(100, np.float32))
    table = optimizer._stepper.table
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        one, other, outputs, slots, scalars, constants, roots = damaged(
            [plain.instructions, measured.instructions, measured.outputs, max(plain.slots, measured.slots), *measured.scalars], random
        )
        if constants != measured.scalars.constants:
            continue
        try:
            table.set_program(0, one, other, outputs, slots, (scalars, constants, roots), *sizes, [])
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017 - either way is right
            refused += 1
        else:
            optimizer.step(np.ones(100, np.float32), measure=bool(random.integers(2)))
    assert refused > 1000


def test_the_guide_names_every_measure_and_runs() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "measures.md").read_text()
    named = {name for row in re.findall(r"^\| (`[^|]*) \|", text, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {measure.name for measure in (*MEASURES, *INSIDE, *HISTOGRAMS)} | {"grad_nonfinite"}
    code: dict[str, Any] = {"opt": openadam.Adam({"w": np.ones(3)}), "grads": {"w": np.ones(3)}}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, code)
    assert code["opt"].steps == 3
