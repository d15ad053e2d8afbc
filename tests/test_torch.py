"""openadam.torch beside torch.optim's for-loop: the same numbers, whatever the class, flags, dtype, layout and engine."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchfamily import (
    CLASSES,
    PLAIN,
    SIZES,
    STATEFUL,
    SUBJECTS,
    Subject,
    close,
    copies,
    each_class,
    each_with_state,
    equal,
    every,
    give,
    leaves,
    raw,
    same,
    states,
)

import openadam
from openadam import HyperparameterError, UnknownHyperparameterError

REALS = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
ADAM, ADAGRAD = PLAIN[CLASSES.index("Adam")], PLAIN[CLASSES.index("Adagrad")]


# --- the numbers -------------------------------------------------------------------------------------------------------


def compare(subject: Subject, dtype: torch.dtype, steps: int, **wrong: Any) -> None:
    """Every step from torch's own parameters and states: what is compared is one step, so that the bounds can be tight."""
    mine, theirs = leaves(SIZES, dtype), leaves(SIZES, dtype)
    a, b = subject.make(mine), subject.theirs(theirs, **wrong)
    for k in range(steps):
        before = [{**b.state.get(q, {}), "p": q.detach().clone()} for q in theirs]
        before = [{key: value.clone() for key, value in each.items() if isinstance(value, Tensor)} for each in before]
        give(mine, k, theirs)
        a.step()
        b.step()
        # In float32, as torch keeps it, mu_product alone makes an error that float64 must see.
        rounded = subject.name == "NAdam" and not k and dtype in (torch.float64, torch.complex128)
        for p, q, old in zip(mine, theirs, before, strict=True):
            what = f"{subject} {dtype} {tuple(p.shape)} step {k + 1}"
            own, torchs = a.state.get(p, {}), b.state.get(q, {})
            assert {key for key, value in torchs.items() if value is not None} == set(own), what
            units = 1e9 if rounded else 80 if subject.name == "RAdam" else 40  # torch's rho cancels where the rectification sets in
            close(p, q, what, relative=4, units=units, of=[q - old["p"]])
            for key, value in [*own.items()]:
                if key == "mu_product":
                    assert float(value) == pytest.approx(float(torchs[key]), rel=1.2e-7)
                    wide = torch.float64 if p.dtype in (torch.float64, torch.complex128) else torch.float32
                    assert value.dtype == (wide if k else torch.float32)
                    own[key], torchs[key] = value.to(wide), value.to(wide, copy=True)
                elif key == "step":
                    assert value.dtype == torchs[key].dtype == torch.float32
                    assert float(value) == float(torchs[key]) == k + 1
                else:
                    close(value, torchs[key], f"{what} {key}", relative=4, units=40, of=[torchs[key], *([old[key]] if key in old else [])])
                    value.copy_(torchs[key])
            with torch.no_grad():
                p.copy_(q)


@every
@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_a_step_is_torchs(subject: Subject, dtype: torch.dtype) -> None:
    compare(subject, dtype, 100 if dtype is torch.float32 else 30)


@every
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_a_step_of_complex_numbers_is_torchs(subject: Subject, dtype: torch.dtype) -> None:
    compare(subject, dtype, 8)


@pytest.mark.parametrize(
    ("subject", "wrong"),
    [(subject, {name: value}) for subject, name, value in [
        (ADAM, "betas", (0.9, 0.97001)), (ADAM, "betas", (0.90001, 0.97)), (ADAM, "eps", 1.01e-3), (ADAM, "lr", 0.0130001),
        (ADAGRAD, "lr_decay", 1e-5), (ADAGRAD, "weight_decay", 1e-4),
    ]],
)  # fmt: skip
@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_the_bounds_see_a_small_mistake(subject: Subject, wrong: dict[str, Any], dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError, match="times too far"):
        compare(subject, dtype, 5, **wrong)


@every
def test_a_hundred_steps_stay_beside_torch(subject: Subject) -> None:
    """Nothing is put back between the steps here. NAdam's product is float32 in torch, so only the gap that this leaves is allowed."""
    mine, theirs = leaves(SIZES, torch.float64), leaves(SIZES, torch.float64)
    a, b = subject.make(mine), subject.theirs(theirs)
    for k in range(100):
        give(mine, k, theirs)
        a.step()
        b.step()
    bound = 1e-7 if subject.name == "NAdam" else 1e-12
    for p, q in zip(mine, theirs, strict=True):
        assert torch.allclose(p, q, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", REALS, ids=str)
@each_class
def test_large_tensors_and_threads(subject: Subject, dtype: torch.dtype) -> None:
    """Enough elements for several threads, whose number shows in no bit; beside torch within the rounding of three steps."""
    optimizers = []
    for threads in (1, 2, 3):
        params = leaves([(70_000,), (5,)], dtype)
        optimizer = subject.make(params, threads=threads)
        for k in range(3):
            give(params, k)
            optimizer.step()
        optimizers.append(optimizer)
    for other in optimizers[1:]:
        assert equal(optimizers[0], other)
    theirs = leaves([(70_000,), (5,)], dtype)
    torchs = subject.theirs(theirs)
    for k in range(3):
        give(theirs, k)
        torchs.step()
    for p, q in zip(params, theirs, strict=True):
        close(p, q, str(subject), relative=8, units=1e9 if subject.name == "NAdam" and dtype is torch.float64 else 64, of=[torch.ones(()) * 0.1])


# --- layouts -----------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.clone().to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "gaps": lambda x: _within(x, (..., slice(None, None, 2)), (*x.shape[:-1], 2 * x.shape[-1])),
    "column": lambda x: _within(x, (..., 1), (*x.shape, 3)),
    "offset": lambda x: _within(x, (slice(1, -1),), (x.shape[0] + 2, *x.shape[1:])),
    "transposed gaps": lambda x: _within(
        x.transpose(0, 1), (..., slice(None, None, 3)), (x.shape[1], x.shape[0], x.shape[2], 3 * x.shape[3])
    ).transpose(0, 1),
}  # fmt: skip


def _within(x: Tensor, place: Any, shape: tuple[int, ...]) -> Tensor:
    view = torch.full(shape, 7.0, dtype=x.dtype)[place]
    return view.copy_(x)


def around(view: Tensor) -> Tensor:
    """All of the storage that a view lies in."""
    return torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())


@pytest.mark.parametrize("engine", [None, "graph"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_layouts_show_in_no_bit(layout: str, dtype: torch.dtype, engine: str | None) -> None:
    """T1 and T2: every layout of the parameter, with gradients in the same or another; what lies between the elements stays."""
    for subject in STATEFUL:
        (plain,) = leaves([(4, 3, 5, 6)], dtype)
        laid = [LAYOUTS[layout](plain.detach()).requires_grad_() for _ in range(2)]
        expected = subject.make([plain])
        optimizers = [subject.make([p], engine=engine) for p in laid]
        for k in range(3):
            give([plain], k)
            assert plain.grad is not None
            for way, p in enumerate(laid):
                p.grad = LAYOUTS[layout](plain.grad) if way else plain.grad.clone()
            for optimizer in (expected, *optimizers):
                optimizer.step()
        for p, optimizer in zip(laid, optimizers, strict=True):
            assert same(p.detach(), plain.detach()), subject
            assert same(states(optimizer), states(expected)), subject
            inside = torch.zeros(around(p).shape, dtype=torch.bool)
            inside.as_strided(p.shape, p.stride(), p.storage_offset()).fill_(True)
            assert (around(p)[~inside] == 7).all(), subject


@pytest.mark.parametrize("place", LAYOUTS)
def test_gradients_in_other_layouts(place: str) -> None:
    """A plain parameter, whose gradients lie as they like, and differently at every step."""
    for subject in PLAIN:
        p, q = leaves([(4, 3, 5, 6)], torch.float32) * 2
        q = copies([p])[0]
        a, b = subject.make([p]), subject.make([q])
        for k in range(4):
            give([p], k, [q])
            if k % 2:
                q.grad = LAYOUTS[place](q.grad)
            a.step()
            b.step()
        assert equal(a, b)


def test_negated_and_conjugated_views() -> None:
    """Bits that torch keeps in the tensor and not in its numbers."""
    p = torch.randn(5, dtype=torch.complex64).requires_grad_()
    q = copies([p])[0]
    g = torch.randn(5, dtype=torch.complex64)
    p.grad, q.grad = g.conj(), g.conj().resolve_conj().clone()
    x = torch.randn(5).requires_grad_()
    y = copies([x])[0]
    x.grad, y.grad = g.conj().imag, g.conj().imag.resolve_neg().clone()
    assert p.grad.is_conj()
    assert x.grad.is_neg()
    for params in ([p, x], [q, y]):
        openadam.torch.Adam(params, lr=0.1).step()
    assert same([p, x], [q, y])


# --- engines and dtypes ------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [*REALS, torch.complex64], ids=str)
def test_the_graph_has_the_bits_of_the_kernels(subject: Subject, dtype: torch.dtype) -> None:
    params = leaves(SIZES, dtype)
    others = copies(params)
    a, b = subject.make(params), subject.make(others, engine="graph")
    for k in range(4):
        give(params, k, others)
        a.step()
        b.step()
        assert equal(a, b)
        assert a.last_step.grad_norm == pytest.approx(b.last_step.grad_norm, rel=1e-14)  # its sum has another order


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_compiled_beside_eager(dtype: torch.dtype) -> None:
    """torch.compile may contract and reorder; what that may change is stated here: a few units."""
    subject = STATEFUL[CLASSES.index("AdamW")]
    params = leaves([(17,), (300,)], dtype)
    others = copies(params)
    a, b = subject.make(params), subject.make(others, engine="compiled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, about itself
        for k in range(3):
            give(params, k, others)
            old = copies(params)
            a.step()
            b.step()
            for p, q, before in zip(params, others, old, strict=True):
                close(p, q, f"step {k}", relative=4, units=16, of=[p - before])
                with torch.no_grad():
                    q.copy_(p)
                for key, value in b.state[q].items():
                    close(value, a.state[p][key], key, relative=4, units=8, of=[value])
                    if key != "step":
                        value.copy_(a.state[p][key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every
def test_narrow_parameters_are_worked_on_in_float32(subject: Subject, dtype: torch.dtype) -> None:
    """The states are float32, and a step is that of a float32 parameter, rounded once."""
    narrow, wide = leaves(SIZES, dtype), leaves(SIZES, torch.float32)
    a, b = subject.make(narrow), subject.make(wide)
    for k in range(5):
        for p, q in zip(narrow, wide, strict=True):
            with torch.no_grad():
                q.copy_(p)
        give(narrow, k, wide)
        a.step()
        b.step()
        for p, q in zip(narrow, wide, strict=True):
            assert same(p.detach(), q.detach().to(dtype))
        assert same(states(a), states(b))
    assert all(value.dtype in (torch.float32, torch.float64) for _, value in states(a))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_class
def test_narrow_parameters_at_zero_gradients_and_default_eps(subject: Subject, dtype: torch.dtype) -> None:
    """T9: torch's own loop makes NaN of float16 here. T10: a small gradient underflows its second moment."""
    p = torch.ones(20, dtype=dtype).requires_grad_()
    optimizer = getattr(openadam.torch, subject.name)([p], lr=1e-2, weight_decay=0.0)
    for value in (0.0, 0.0, 1e-4, 1e-4):
        p.grad = torch.full_like(p, value)
        optimizer.step()
        assert torch.isfinite(p).all()
        if not value:
            assert (p == 1).all()
    assert ((p - 1).abs() < 0.25).all()


def test_the_second_moment_of_bfloat16_does_not_stall() -> None:
    """T11: after 800 gradients of 1 it is 1 - 0.995**800, where bfloat16 states would stay at 0.61."""
    p = torch.zeros(3, dtype=torch.bfloat16).requires_grad_()
    p.grad = torch.ones_like(p)
    optimizer = openadam.torch.Adam([p], lr=1e-6, betas=(0.9, 0.995))
    for _ in range(800):
        optimizer.step()
    assert optimizer.state[p]["exp_avg_sq"].tolist() == pytest.approx([1 - 0.995**800] * 3, rel=1e-4)


def test_mixed_dtypes_in_one_optimizer() -> None:
    """Each as it would be alone."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
    for subject in STATEFUL:
        params = [leaves([(19,)], dtype)[0] for dtype in dtypes]
        others = copies(params)
        together, alone = subject.make(params), [subject.make([q]) for q in others]
        for k in range(3):
            for p, q in zip(params, others, strict=True):
                give([p], k, [q])
            together.step()
            for optimizer in alone:
                optimizer.step()
        assert same(params, others)


def test_wider_gradients_are_refused_and_narrower_ones_taken_exactly() -> None:
    """A21."""
    for dtype, given in [(torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]:
        p = torch.ones(5, dtype=dtype).requires_grad_()
        p.grad_dtype = None
        p.grad = torch.full((5,), 0.1, dtype=given)
        q = torch.ones(5, dtype=torch.float64 if dtype is torch.float64 else torch.float32).requires_grad_()
        q.grad = p.grad.to(q.dtype)
        for each in (p, q):
            openadam.torch.Adagrad([each], lr=0.3).step()
        assert same(p.detach(), q.detach().to(dtype))
    p = torch.ones(5).requires_grad_()
    p.grad_dtype = None
    p.grad = torch.ones(5, dtype=torch.float64)
    with pytest.raises(openadam.GradientDtypeError, match="float64"):
        openadam.torch.Adam([p]).step()
    assert (p == 1).all()


# --- construction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_signature_and_defaults_are_torchs(name: str) -> None:
    ours, theirs = getattr(openadam.torch, name), getattr(torch.optim, name)
    assert issubclass(ours, theirs)
    own, torchs = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    assert list(own)[: len(torchs)] == list(torchs)
    assert all(own[key].default == torchs[key].default and own[key].kind == torchs[key].kind for key in torchs)
    assert all(own[key].kind is inspect.Parameter.KEYWORD_ONLY for key in list(own)[len(torchs) :])
    p = torch.zeros(1).requires_grad_()
    assert ours([p]).defaults == theirs([p]).defaults
    assert repr(ours([p])) == repr(theirs([p]))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"lr": float("nan")}, ValueError, "nan"), ({"lr": float("inf")}, HyperparameterError, "lr"), ({"lr": -1.0}, ValueError, "-1.0"),
        ({"lr": "1e-3"}, HyperparameterError, "1e-3"), ({"lr": None}, HyperparameterError, "None"), ({"lr": True}, HyperparameterError, "True"),
        ({"lr": 1e-3 + 0j}, HyperparameterError, "lr"), ({"lr": torch.ones(2)}, ValueError, "1-element"),
        ({"weight_decay": float("inf")}, HyperparameterError, "weight_decay"), ({"weight_decay": float("nan")}, ValueError, "weight_decay"),
        ({"clip_norm": -1.0}, HyperparameterError, "clip_norm"), ({"clip_norm": "1"}, HyperparameterError, "clip_norm"),
        ({"nonfinite": "ignore"}, HyperparameterError, "nonfinite"), ({"engine": "fast"}, HyperparameterError, "engine"),
        ({"threads": 0}, HyperparameterError, "threads"), ({"no_decay": 3}, HyperparameterError, "no_decay"),
        ({"weigth_decay": 0.1}, UnknownHyperparameterError, "weight_decay"), ({"differentiable": True}, HyperparameterError, "differentiable"),
    ],
    ids=repr,
)  # fmt: skip
def test_settings_that_are_refused(name: str, settings: dict[str, Any], error: type[Exception], text: str) -> None:
    """A26, A27, A30, T15."""
    with pytest.raises(error, match=text):
        getattr(openadam.torch, name)([torch.zeros(1).requires_grad_()], **settings)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax"])
@pytest.mark.parametrize(
    "betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, (float("nan"), 0.9), (0.9, float("nan")), ("0.9", 0.99), (True, 0.9), (-0.1, 0.9)], ids=repr
)
def test_betas_that_are_refused(name: str, betas: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(openadam.torch, name)([torch.zeros(1).requires_grad_()], betas=betas)
    assert "bet" in str(caught.value)


def test_numbers_that_are_taken() -> None:
    """NumPy's numbers become Python's, so that checkpoints can be loaded with weights_only; S23."""
    p = torch.zeros(1).requires_grad_()
    for lr in (np.float64(0.1), np.float32(0.1), np.array(0.1), 1, 0, -0.0, 5e-324):
        optimizer = openadam.torch.AdamW([p], lr=lr)
        assert type(optimizer.param_groups[0]["lr"]) in (float, int)
        assert type(optimizer.defaults["lr"]) in (float, int)
        assert optimizer.param_groups[0]["lr"] == lr
    openadam.torch.Adam([p], betas=(0.0, 0.0))
    openadam.torch.Adam([p], betas=(0.0, 1 - 2**-53))
    openadam.torch.Adam([p], betas=[0.9, 0.99])


def test_parameters_as_torch_takes_them() -> None:
    """A24, T16: generators, names, dictionaries of groups; not sets, not tensors."""
    p, q = leaves([(2,), (3,)], torch.float32)
    model = torch.nn.Linear(2, 3)
    make = openadam.torch.AdamW
    assert len(make(x for x in (p, q)).param_groups[0]["params"]) == 2
    assert make(model.named_parameters()).param_groups[0]["param_names"] == ["weight", "bias"]
    assert len(make([{"params": p}, {"params": (x for x in [q]), "lr": 1}]).param_groups) == 2
    refused: list[tuple[Any, type[Exception], str]] = [
        ({p, q}, TypeError, "ordered"), (p, TypeError, "iterable"), ([], ValueError, "empty parameter list"), ([p * 2], ValueError, "non-leaf"),
    ]  # fmt: skip
    for wrong, error, text in refused:
        with pytest.raises(error, match=text):
            make(wrong)
    for wrong in ([1.0], ["p"], [np.zeros(2)], [None]):
        with pytest.raises(TypeError, match="Tensor"):
            make(wrong)


def test_integers_are_left_alone_and_never_stepped() -> None:
    """A20: frozen quantized weights may lie among the parameters; one with a gradient is refused by name."""
    for dtype in (torch.int32, torch.uint8, torch.bool):
        frozen = torch.ones(3).to(dtype)
        (p,) = leaves([(2,)], torch.float32)
        optimizer = openadam.torch.AdamW([("w", p), ("q", frozen)], lr=0.1)
        p.grad = torch.ones(2)
        optimizer.step()
        assert (frozen == 1).all()
        frozen.grad = torch.ones(3).to(dtype)
        for _ in range(2):
            before = raw(p)
            with pytest.raises(openadam.OpenAdamError, match="'q'.*" + str(dtype).removeprefix("torch.")):
                optimizer.step()
            assert raw(p) == before


def test_memory_that_overlaps_is_refused() -> None:
    """T3 and A14: a parameter that overlaps itself; two that share memory."""
    expanded = torch.zeros(1).expand(4).detach().requires_grad_()
    expanded.grad = torch.ones(4)
    with pytest.raises(openadam.AliasError, match="overlaps itself"):
        openadam.torch.Adam([expanded]).step()
    assert raw(expanded) == bytes(16)
    store = torch.zeros(6)
    a, b = store[:4].requires_grad_(), store[2:].detach().requires_grad_()
    a.grad, b.grad = torch.ones(4), torch.ones(4)
    with pytest.raises(openadam.AliasError, match="share memory"):
        openadam.torch.Adam([a, b]).step()
    assert raw(store) == bytes(24)


def test_no_decay_by_name_tensor_and_predicate() -> None:
    for subject in [s for s in SUBJECTS if s.settings.get("weight_decay")]:
        results = []
        for way in range(4):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
            names, params = zip(*model.named_parameters(), strict=True)
            no_decay: Any = [
                ["0.bias", "1.weight", "1.bias"], [params[1], params[2], params[3]], lambda name, p: p.ndim < 2, (),
            ][way]  # fmt: skip
            groups: Any = list(model.named_parameters())
            if way == 3:
                groups = [{"params": [("0.weight", params[0])]}, {"params": list(zip(names[1:], params[1:], strict=True)), "weight_decay": 0.0}]
            optimizer = subject.make(groups, no_decay=no_decay)
            for k in range(3):
                give(params, k)
                optimizer.step()
            results.append([raw(p) for p in params])
        assert results[0] == results[1] == results[2] == results[3], subject
    p = leaves([(3,)], torch.float32)
    one = openadam.torch.AdamW(p, lr=0.1, weight_decay=0.5, no_decay=p[0])
    p[0].grad = torch.zeros(3)
    before = raw(p[0])
    one.step()
    assert raw(p[0]) == before
    p[0].grad = torch.ones(3)
    assert same(openadam.torch.AdamW([("w", p[0])], no_decay="w").param_groups[0]["weight_decay"], 0.01)


@each_with_state
def test_clip_norm_is_torchs_clip_and_then_the_step(subject: Subject) -> None:
    for bound in (0.5, 1e6):
        mine, theirs = leaves(SIZES, torch.float64), leaves(SIZES, torch.float64)
        a, b = subject.make(mine, clip_norm=bound), subject.make(theirs)
        for k in range(4):
            give(mine, k, theirs)
            untouched = [raw(p.grad) for p in mine]
            a.step()
            norm = float(torch.nn.utils.clip_grad_norm_(theirs, bound))
            b.step()
            assert a.last_step.grad_norm == pytest.approx(norm, rel=1e-13)
            assert a.last_step.clip_factor == pytest.approx(min(1.0, bound / (norm + 1e-6)), rel=1e-13)
            assert [raw(p.grad) for p in mine] == untouched
        for p, q in zip(mine, theirs, strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-12)
