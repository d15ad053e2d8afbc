"""Sparse gradients of torch: SparseAdam, Adagrad and SGD against torch's, bit for bit on all engines, and refused whole where they are wrong."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchfamily import close, copies, equal, fingerprint, params_of, raw, refuses, same, states

import openadam
import openadam.torch
from openadam import (
    AliasError,
    GradientDtypeError,
    GradientError,
    GradientShapeError,
    HyperparameterError,
    NonFiniteGradientError,
    NonFiniteStateError,
    SparseGradientError,
)
from openadam.engine import native_isas

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
DTYPES = (torch.float32, torch.float64)
ENGINES: tuple[str | None, ...] = (None, "graph")

CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "SparseAdam": ("SparseAdam", {"lr": 0.013, "betas": (0.9, 0.97), "eps": 1e-3}),
    "SparseAdam-maximize": ("SparseAdam", {"lr": 0.013, "betas": (0.0, 0.97), "eps": 1e-8, "maximize": True}),
    "Adagrad": ("Adagrad", {"lr": 0.013, "eps": 1e-3, "lr_decay": 0.07, "initial_accumulator_value": 0.11}),
    "Adagrad-maximize": ("Adagrad", {"lr": 0.013, "maximize": True}),
    "SGD": ("SGD", {"lr": 0.013}),
    "SGD-maximize": ("SGD", {"lr": 0.013, "maximize": True}),
    "SGD-momentum": ("SGD", {"lr": 0.013, "momentum": 0.87, "dampening": 0.3}),
    "SGD-nesterov": ("SGD", {"lr": 0.013, "momentum": 0.87, "nesterov": True}),
}
each_case = pytest.mark.parametrize("case", CASES)
each_engine = pytest.mark.parametrize("engine", ENGINES)


def ours(case: str, params: Any, **changes: Any) -> Any:
    name, settings = CASES[case]
    return getattr(openadam.torch, name)(params, **{**settings, **changes})


def theirs(case: str, params: Any, **changes: Any) -> Any:
    name, settings = CASES[case]
    return getattr(torch.optim, name)(params, **{**settings, **changes})


def parameters(dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = ((9, 5), (40, 24), (7,), (6, 3, 4)), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def sparse(indices: Any, values: Tensor, shape: Any) -> Tensor:
    indices = torch.as_tensor(indices, dtype=torch.int64)
    return torch.sparse_coo_tensor(indices[None] if indices.ndim == 1 else indices, values, tuple(shape), check_invariants=False)


def give(params: list[Tensor], seed: int, count: int = 12, axes: int = 1) -> None:
    """Gradients of some rows, some of them named twice; no row of every third parameter in turn."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for k, p in enumerate(params):
        named = 0 if (k + seed) % 3 == 2 else count
        along = min(axes, p.ndim)
        indices = torch.stack([torch.randint(0, size, (named,), generator=generator) for size in p.shape[:along]])
        values = torch.randn((named, *p.shape[along:]), generator=generator, dtype=p.dtype) * 10 ** (3 * k - 4)
        p.grad = sparse(indices, values, p.shape)


# --- against torch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_engine
@each_case
def test_against_torch(case: str, engine: str | None, dtype: torch.dtype, axes: int) -> None:
    """Parameters, states and counters over steps with rows named twice, never, and not at all."""
    mine, other = parameters(dtype), parameters(dtype)
    a, b = ours(case, mine, engine=engine), theirs(case, other)
    for seed in range(6):
        give(mine, seed, axes=axes)
        give(other, seed, axes=axes)
        a.step()
        b.step()
    for p, q in zip(mine, other, strict=True):
        close(p, q, "parameter", relative=40, units=40, of=[q])
        own, held = a.state_dict()["state"], b.state_dict()["state"]
        assert {k: set(v) for k, v in own.items()} == {k: set(v) for k, v in held.items()}
        for k in held:
            for key, value in held[k].items():
                if key == "step":
                    assert type(own[k][key]) is type(value)
                    assert float(own[k][key]) == float(value) == 6
                else:
                    value = value.to_dense()
                    close(own[k][key], value, key, relative=60, units=20, of=[value] if value.numel() else [])


@each_engine
@each_case
def test_rows_that_are_not_named_stay(case: str, engine: str | None) -> None:
    """Byte for byte, but for a velocity, which goes on moving what it has moved."""
    (p,) = parameters(torch.float32, ((30, 4),))
    optimizer = ours(case, [p], engine=engine)
    p.grad = sparse(torch.arange(30), torch.ones(30, 4), p.shape)
    optimizer.step()
    kept = [(name, copy.deepcopy(value)) for name, value in [("p", p.detach()), *states(optimizer)]]
    named = torch.tensor([3, 29, 3])
    p.grad = sparse(named, torch.full((3, 4), 0.5), p.shape)
    optimizer.step()
    rest = torch.ones(30, dtype=torch.bool)
    rest[named] = False
    for (name, before), (_, after) in zip(kept, [("p", p.detach()), *states(optimizer)], strict=True):
        if before.ndim:
            assert same(before[rest], after[rest]) == ("momentum" not in str(CASES[case])), name
            assert not same(before[named], after[named])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.skipif(not native_isas(), reason="there is no native code")
def test_the_engines_agree(dtype: torch.dtype, threads: int) -> None:
    """Native, torch operations and the reference in every bit, with everything around the rule."""
    shapes = ((600, 70), (3000, 7), (50,), (6, 3, 4), (0, 4), (5, 0))
    for case in CASES:
        found: list[Any] = []
        for how in (None, "graph", "reference"):
            params = parameters(dtype, shapes)
            options = {"threads": threads, "clip_norm": 3.0, "clip_value": 0.2}
            with pytest.MonkeyPatch.context() as patch:
                if how == "reference":
                    patch.setenv("OPENADAM_ENGINE", "reference")
                optimizer = ours(case, params, engine=how if how == "graph" else None, **options)
                reports = []
                for seed in range(3):
                    give([p for p in params if p.numel()], seed, 1500)
                    for p in params:
                        if not p.numel():
                            p.grad = sparse(torch.zeros(0, dtype=torch.int64), torch.zeros(0, *p.shape[1:], dtype=dtype), p.shape)
                    optimizer.step(measure=seed == 1)
                    reports.append(optimizer.last_step)
            found.append((optimizer, reports))
        for other, reports in found[1:]:
            assert equal(found[0][0], other), case
            assert reports == found[0][1], case


def test_the_order_of_what_is_added() -> None:
    """A row that is named again and again has its values added one after the other, as they come."""
    values = torch.tensor([[1e8], [1.0], [-1e8], [3.0], [1.0]])
    for engine in ENGINES:
        p = torch.zeros(4, 1, requires_grad=True)
        p.grad = sparse([2, 2, 2, 0, 2], values, p.shape)
        openadam.torch.SGD([p], lr=1.0, engine=engine).step()
        assert p.flatten().tolist() == [-3.0, 0.0, -1.0, 0.0]


def test_what_is_narrower() -> None:
    """Parameters of 16 bits are worked on in float32, and added up there."""
    for dtype in (torch.bfloat16, torch.float16):
        p = torch.ones(6, 3, dtype=dtype, requires_grad=True)
        p.grad = sparse([4, 4, 1], torch.tensor([[1.0], [2**-9], [0.5]]).expand(3, 3).to(dtype), p.shape)
        optimizer = openadam.torch.SparseAdam([p], lr=0.25)
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype is torch.float32
        assert optimizer.state[p]["exp_avg"][4].tolist() == pytest.approx([0.1 * (1 + 2**-9)] * 3, rel=1e-6)
        assert p[:, 0].tolist() == [1.0, 0.75, 1.0, 1.0, 0.75, 1.0]


@each_engine
def test_any_strides(engine: str | None) -> None:
    """A parameter whose rows do not lie one after the other, and values that all lie in one place."""
    base = torch.arange(24.0).reshape(4, 6)
    found = []
    for make in (lambda: base.clone(), lambda: base.T.contiguous().T, lambda: torch.zeros(4, 12)[:, ::2].copy_(base)):
        p = make().requires_grad_()
        p.grad = sparse([3, 1, 3], torch.ones(1).expand(3, 6), p.shape)
        optimizer = openadam.torch.SparseAdam([p], lr=0.1, engine=engine)
        optimizer.step()
        found.append((p.detach().contiguous(), optimizer.state[p]["exp_avg"].contiguous(), optimizer.last_step.grad_norm))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_complex_numbers() -> None:
    """SGD takes them as pairs; a sum of squares of torch's Adagrad would be complex, and torch's SparseAdam refuses such parameters."""
    p, q = (torch.ones(5, 2, dtype=torch.complex64, requires_grad=True) for _ in range(2))
    for each in (p, q):
        each.grad = sparse([2, 2], torch.full((2, 2), 1 + 2j, dtype=torch.complex64), each.shape)
    openadam.torch.SGD([p], lr=0.5).step()
    torch.optim.SGD([q], lr=0.5).step()
    assert torch.equal(p, q)
    refuses(optimizer := openadam.torch.Adagrad([p]), optimizer.step, SparseGradientError, "complex", "'0'")
    with pytest.raises(ValueError, match="complex"):
        openadam.torch.SparseAdam([p])


def test_an_embedding_learns() -> None:
    """A model with two optimizers, as people have it; padding is never moved."""
    torch.manual_seed(0)
    table = torch.nn.EmbeddingBag(50, 8, sparse=True, mode="sum", padding_idx=0)
    head = torch.nn.Linear(8, 1)
    rows, dense = openadam.torch.SparseAdam(table.parameters(), lr=0.05), openadam.torch.Adam(head.parameters(), lr=0.05)
    before, losses = table.weight.detach().clone(), []
    for _ in range(60):
        words = torch.randint(0, 50, (32, 4))
        loss = (head(table(words)).squeeze() - (words % 2).sum(1)).square().mean()
        for optimizer in (rows, dense):
            optimizer.zero_grad()
        loss.backward()
        rows.step()
        dense.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert same(table.weight.detach()[0], before[0])


# --- what is refused ---------------------------------------------------------------------------------------------------


def _inf(p: Tensor) -> Tensor:
    values = torch.ones(3, *p.shape[1:])
    values[1, 2] = float("inf")
    return sparse([8, 2, 8], values, p.shape)


BAD: Mapping[str, tuple[Callable[[Tensor], Tensor], type[Exception], tuple[str, ...]]] = {
    "infinite": (_inf, NonFiniteGradientError, ("inf at flat index 12", "'1'")),
    "infinite sum": (lambda p: sparse([1, 1], torch.full((2, 5), 3e38), p.shape), NonFiniteGradientError, ("inf at flat index 5", "5 non-finite")),
    "too large": (lambda p: sparse([3], torch.full((1, 5), 1e25), p.shape), NonFiniteStateError, ("1e+25 at element 15",)),
    "out of range": (lambda p: sparse([1, 9], torch.ones(2, 5), p.shape), GradientError, ("row 9", "there are 9")),
    "negative": (lambda p: sparse([1, -1], torch.ones(2, 5), p.shape), GradientError, ("row -1",)),
    "out of range along an axis": (lambda p: sparse([[1, 2], [0, 5]], torch.ones(2), p.shape), GradientError, ("along axis 1 row 5",)),
    "of the parameter's memory": (lambda p: sparse([1, 2], p.detach()[:2], p.shape), AliasError, ("'1'", "shares memory with the parameter '1'")),
}  # fmt: skip


def begun(case: str, engine: str | None = None, **changes: Any) -> Any:
    params = parameters(torch.float32, ((9, 5), (9, 5)))
    optimizer = ours(case, params, engine=engine, **changes)
    give(params, 0)
    optimizer.step()
    give(params, 2)
    return optimizer


@pytest.mark.parametrize("how", BAD)
@each_engine
@pytest.mark.parametrize("case", ["SparseAdam", "Adagrad"])
def test_bad_gradients(case: str, engine: str | None, how: str) -> None:
    """Nothing is changed, also not of a first parameter, whose gradient is in order."""
    make, error, texts = BAD[how]
    optimizer = begun(case, engine)
    p = params_of(optimizer)[1]
    p.grad = make(p)
    refuses(optimizer, optimizer.step, error, *texts)
    p.grad = None
    optimizer.step()


@each_engine
def test_gradients_of_what_the_parameter_was(engine: str | None) -> None:
    """Torch lets nobody give a gradient of another shape or dtype, but does let the parameter change under it."""
    for case in ("SparseAdam", "Adagrad", "SGD"):
        optimizer = ours(case, [p := torch.ones(9, 5, dtype=torch.float64, requires_grad=True)], engine=engine)
        p.grad = sparse([3], torch.ones(1, 5, dtype=torch.float64), p.shape)
        p.data = torch.ones(8, 5, dtype=torch.float64)
        with pytest.raises(GradientShapeError, match=r"'0' has shape \(9, 5\), the parameter \(8, 5\)"):
            optimizer.step()
        p.data = torch.ones(9, 5)
        with pytest.raises(GradientDtypeError, match="float64"):
            optimizer.step()
        assert same(p.detach(), torch.ones(9, 5))


def test_dense_gradients_of_sparse_adam() -> None:
    """In torch's words; a step that would move the other parameter moves nothing."""
    for engine in ENGINES:
        optimizer = begun("SparseAdam", engine)
        p = params_of(optimizer)[1]
        p.grad = torch.ones_like(p)
        words = "SparseAdam does not support dense gradients, please consider Adam instead"
        assert isinstance(refuses(optimizer, optimizer.step, GradientError, words, "'1'"), RuntimeError)
        new = openadam.torch.SparseAdam([q := torch.ones(2, requires_grad=True)], engine=engine)
        q.grad = torch.ones(2)
        refuses(new, new.step, GradientError, words, "'0'")
        assert not new.state


@each_engine
def test_weight_decay(engine: str | None) -> None:
    """Refused as by torch; what decay leaves alone takes sparse gradients."""
    for case in ("Adagrad", "SGD", "SGD-momentum"):
        optimizer = begun(case, engine)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.1
        refuses(optimizer, optimizer.step, SparseGradientError, "weight_decay option is not compatible with sparse gradients", "'0'")
        (p,) = parameters(torch.float32, ((9, 5),))
        optimizer = ours(case, [("p", p)], weight_decay=0.1, no_decay=["p"], engine=engine)
        give([p], 0)
        optimizer.step()
    with pytest.raises(HyperparameterError, match="no_decay"):
        openadam.torch.SparseAdam(parameters(torch.float32), no_decay=["p"])
    with pytest.raises(TypeError, match="weight_decay"):
        openadam.torch.SparseAdam(parameters(torch.float32), weight_decay=0.1)  # type: ignore[call-arg]


def test_what_torch_refuses() -> None:
    """The constructor's errors are torch's own."""
    for settings in ({"lr": 0.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"lr": torch.ones(2)}):
        with pytest.raises(ValueError):
            openadam.torch.SparseAdam(parameters(torch.float32), **settings)
    with pytest.raises(ValueError, match="requires dense parameter tensors"):
        openadam.torch.SparseAdam([torch.eye(3).to_sparse()])


def test_skipping_and_clipping() -> None:
    """The norm is that of the sums; a step with a NaN is skipped whole and counted."""
    (p,) = parameters(torch.float32, ((9, 5),))
    optimizer = openadam.torch.SparseAdam([p], clip_norm=1.0, nonfinite="skip", max_skips=1)
    p.grad = sparse([4, 4], torch.full((2, 5), 1.5), p.shape)
    optimizer.step()
    assert optimizer.last_step.grad_norm == pytest.approx(3 * 5**0.5)
    assert optimizer.last_step.clip_factor == pytest.approx(1 / (3 * 5**0.5))
    before = fingerprint(optimizer)
    p.grad = sparse([4], torch.full((1, 5), float("nan")), p.shape)
    optimizer.step()
    assert optimizer.last_step.skipped
    assert optimizer.skipped == 1
    assert fingerprint(optimizer) == before
    with pytest.raises(openadam.TooManySkipsError):
        optimizer.step()


def test_a_scaler() -> None:
    """Unscales the sums inside the step, and skips a step in which a sum is not finite in any of its values."""
    (p,), (q,) = (parameters(torch.float32, ((9, 5),)) for _ in range(2))
    optimizer, plain = openadam.torch.SparseAdam([p]), openadam.torch.SparseAdam([q])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for value in (1.0, float("inf"), 0.5):
        scaler.scale(torch.zeros(1))
        p.grad, q.grad = (sparse([4, 2, 4], torch.full((3, 5), value * scale), p.shape) for scale in (scaler.get_scale(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        if value < 2:
            plain.step()
            assert optimizer.last_step == plain.last_step
    assert optimizer.skipped == 1
    assert equal(optimizer, plain)


def test_propagating() -> None:
    """What is not finite is let through, as torch does: to the rows that are named."""
    p, q = (parameters(torch.float32, ((9, 5),))[0] for _ in range(2))
    for each in (p, q):
        each.grad = sparse([4, 7], torch.tensor([[float("nan")], [1.0]]).expand(2, 5), each.shape)
    openadam.torch.SparseAdam([p], nonfinite="propagate").step()
    torch.optim.SparseAdam([q]).step()
    assert torch.equal(p.isnan(), q.isnan())
    close(p[7], q[7], "row 7", relative=4)


# --- state dicts and copies --------------------------------------------------------------------------------------------


@each_case
def test_state_dicts_both_ways(case: str) -> None:
    """Torch goes on with what we saved, and we with what torch saved, through a file."""
    for first, second in ((ours, theirs), (theirs, ours)):
        if first is ours and CASES[case][1].get("nesterov"):
            continue  # torch adds a sparse gradient to no velocity but a sparse one
        params = parameters(torch.float64)
        straight = copies(params)
        a, whole = first(case, params), theirs(case, straight)
        for seed in range(3):
            for own, optimizer in ((params, a), (straight, whole)):
                give(own, seed)
                optimizer.step()
        file = io.BytesIO()
        torch.save(a.state_dict(), file)
        file.seek(0)
        b = second(case, params)
        b.load_state_dict(torch.load(file, weights_only=True))
        for seed in range(3, 6):
            for own, optimizer in ((params, b), (straight, whole)):
                give(own, seed)
                optimizer.step()
        for p, q in zip(params, straight, strict=True):
            close(p, q, case, relative=60, units=60, of=[q])


def test_copies_and_round_trips() -> None:
    """A deep copy and a loaded optimizer go on in every bit."""
    for case in CASES:
        one = begun(case)
        two = copy.deepcopy(one)
        three = ours(case, copies(params_of(one)))
        three.load_state_dict(one.state_dict())
        for optimizer in (one, two, three):
            give(params_of(optimizer), 2)
            optimizer.step()
            give(params_of(optimizer), 3)
            optimizer.step()
        assert equal(one, two), case
        assert equal(one, three), case


def test_damaged_state_dicts() -> None:
    optimizer = begun("SparseAdam")
    for key, value in (("step", 1.5), ("step", -1), ("exp_avg", torch.ones(3)), ("exp_avg_sq", -torch.ones(9, 5))):
        state = optimizer.state_dict()
        state["state"][1] = {**state["state"][1], key: value}
        refuses(optimizer, lambda state=state: optimizer.load_state_dict(state), openadam.CheckpointError, key)
    q = torch.ones(2, requires_grad=True)
    foreign = openadam.torch.Adam([q], amsgrad=True)
    q.grad = torch.ones(2)
    foreign.step()
    mine = openadam.torch.SparseAdam([torch.ones(2, requires_grad=True)])
    with pytest.raises(openadam.CheckpointMismatchError, match="max_exp_avg_sq"):
        mine.load_state_dict(foreign.state_dict())


def test_the_counter_is_one_for_the_parameter() -> None:
    """Also a step without rows counts, and makes the states, as torch's does."""
    p = torch.ones(4, 2, requires_grad=True)
    optimizer = openadam.torch.SparseAdam([p])
    p.grad = sparse(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), p.shape)
    for _ in range(3):
        optimizer.step()
    assert {key: np.asarray(value).tolist() for key, value in optimizer.state_dict()["state"][0].items()} == {
        "step": 3, "exp_avg": [[0.0, 0.0]] * 4, "exp_avg_sq": [[0.0, 0.0]] * 4,
    }  # fmt: skip
    assert same(p.detach(), torch.ones(4, 2))
    assert optimizer.last_step.grad_norm == 0


def test_nothing_is_kept_of_a_gradient() -> None:
    """The caller's gradient is as it was, and free once it is replaced."""
    import gc
    import weakref

    (p,) = parameters(torch.float32, ((9, 5),))
    optimizer = openadam.torch.SparseAdam([p])
    p.grad = sparse([4, 7, 4], torch.ones(3, 5), p.shape)
    before = raw(p.grad._values()), raw(p.grad._indices())
    optimizer.step()
    assert (raw(p.grad._values()), raw(p.grad._indices())) == before
    assert not p.grad.is_coalesced()
    gone = weakref.ref(p.grad)
    p.grad = None
    gc.collect()
    assert gone() is None


def test_autograd_hears_of_it() -> None:
    (p,) = parameters(torch.float32, ((9, 5),))
    version = p._version
    p.grad = sparse([4], torch.ones(1, 5), p.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        openadam.torch.SparseAdam([p]).step()
    assert p._version > version
