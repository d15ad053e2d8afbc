"""PyTorch in several processes (DDP, FSDP2, ZeRO, DCP): the elements of one process, and one decision for all.

Each test runs in processes that speak over gloo; a refusal that one of them does not hear of would be a hang, and fails it.
Labels such as I9 are the case numbers of docs/faults.md.
"""
# ruff: noqa: E402 (where there is no torch, or none with gloo, nothing more can be imported)

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("no gloo here", allow_module_level=True)

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed import launch, processes
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import openadam.torch
from openadam import (
    GradientError,
    GradientShapeError,
    HyperparameterError,
    NonFiniteGradientError,
    NonFiniteStateError,
    ParameterError,
    RuleError,
    SparseGradientError,
    Step,
    sqrt,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about torch.jit
    from torch.distributed.optim import ZeroRedundancyOptimizer

MEMBERS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Adagrad", {"initial_accumulator_value": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
]
NAN = math.nan


def rank() -> int:
    return dist.get_rank()


def mesh(*shape: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def network(seed: int = 0) -> torch.nn.Module:
    """Uneven over any number of processes: of some tensors there is one row, or nothing, on some of them."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Tanh(), torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))


def loss(model: torch.nn.Module, step: int) -> Tensor:
    return (model(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))) ** 2).sum()


def whole(tensor: Any) -> Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else torch.as_tensor(tensor).detach()


def here(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def spread(full: Tensor, like: Tensor) -> Tensor:
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None) if isinstance(like, DTensor) else full.clone()


def feed(optimizer: torch.optim.Optimizer, step: int, scale: float = 1.0) -> None:
    """The same gradients whatever the parameters are spread over."""
    generator = torch.Generator().manual_seed(step)
    for p in parameters_of(optimizer):
        p.grad = spread(torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale, p)


def backward(optimizer: torch.optim.Optimizer, model: torch.nn.Module, step: int) -> None:
    optimizer.zero_grad()
    loss(model, step).backward()


def equal(optimizer: torch.optim.Optimizer, alone: torch.optim.Optimizer) -> None:
    """Parameters and states are those of one process, to the last bit."""
    for i, (p, q) in enumerate(zip(parameters_of(optimizer), parameters_of(alone), strict=True)):
        assert torch.equal(whole(p), q), f"parameter {i}: {whole(p)} and {q}"
        found, expected = optimizer.state[p], alone.state[q]
        assert found.keys() == expected.keys(), f"states of parameter {i}: {found.keys()} and {expected.keys()}"
        for key, value in expected.items():
            assert torch.equal(whole(found[key]), whole(value)), f"{key} of parameter {i}: {whole(found[key])} and {value}"


def agree(value: Any) -> None:
    """It is the same on every process."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    assert all(each == every[0] for each in every), every


def bits(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What lies in this process and a refused step must not change."""
    state = [(k, key, here(value).clone()) for k, own in enumerate(optimizer.state.values()) for key, value in own.items()]
    return [*(here(p).clone() for p in parameters_of(optimizer)), *state]


def unchanged(before: list[Any], optimizer: torch.optim.Optimizer) -> bool:
    after = bits(optimizer)
    return len(before) == len(after) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(before, after, strict=True)
    )


def refused(optimizer: torch.optim.Optimizer, *errors: type[Exception], text: str = "", inner: Any = None) -> list[str]:
    """The step is refused everywhere, twice, and changes nothing anywhere; what each process said."""
    before = bits(inner or optimizer)
    every: list[Any] = []
    for _ in range(2):
        with pytest.raises(errors) as caught:
            optimizer.step()
        assert unchanged(before, inner or optimizer)
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, str(caught.value))
    assert any(text in each for each in every), every
    return every


def spoil(p: Tensor, value: float, where: int) -> bool:
    """Write a value into the part of a gradient that one process holds."""
    local = here(p.grad)
    if rank() == where and local.numel():
        local.view(-1)[-1] = value
        return True
    return False


# --- DDP ---------------------------------------------------------------------------------------------------------------


@processes(4)
def test_ddp_is_one_process() -> None:
    torch.manual_seed(0)
    inner, single = network(), network()
    model = DistributedDataParallel(inner)
    optimizer, alone = (openadam.torch.AdamW(m.named_parameters(), lr=0.1, clip_norm=0.5) for m in (inner, single))
    for step in range(4):
        for each, m in ((optimizer, model), (alone, single)):
            backward(each, m, step)
            each.step()
        assert optimizer.last_step == alone.last_step
    equal(optimizer, alone)
    optimizer.zero_grad()
    (loss(model, 9) * (NAN if rank() == 1 else 1.0)).backward()  # DDP adds the gradients up, so all see it
    agree(refused(optimizer, NonFiniteGradientError, text="'0.weight'"))
    for each, m in ((optimizer, model), (alone, single)):
        backward(each, m, 5)
        each.step()
    equal(optimizer, alone)


# --- FSDP2 -------------------------------------------------------------------------------------------------------------


@processes(4)
def test_fsdp2_is_one_process_for_every_member() -> None:
    """Trained for real: every process sees the same batch, so the mean of four equal gradients is exact."""
    over = mesh()
    for name, settings in MEMBERS:
        model, single = network(), network()
        fully_shard(model[2], mesh=over)
        fully_shard(model, mesh=over)
        optimizer, alone = (getattr(openadam.torch, name)(m.parameters(), **settings) for m in (model, single))
        sizes: list[Any] = [None] * 4
        dist.all_gather_object(sizes, [here(p).numel() for p in model.parameters()])
        assert sizes[3][0] == 0  # an empty shard
        assert sizes[0][2] != sizes[3][2] > 0  # an uneven one
        for step in range(4):
            for each, m in ((optimizer, model), (alone, single)):
                backward(each, m, step)
                each.step()
            equal(optimizer, alone)
            assert optimizer.last_step.grad_norm == pytest.approx(alone.last_step.grad_norm, rel=1e-14), name
            agree(optimizer.last_step)
        assert all(isinstance(value, DTensor) for p in model.parameters() for key, value in optimizer.state[p].items() if value.dim())


@openadam.rule(nonnegative=("v",), beta1=0.9, beta2=0.99, eps=1e-8)
def belief(g: Any, s: Any, h: Any) -> Step:
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * (g - m) ** 2 + h.eps
    return Step(m / (1 - h.beta1**h.t) / (sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)


@openadam.rule(nonnegative=("a",))
def fragile(g: Any, s: Any, h: Any) -> Step:
    """Keeps its word, and finite, as long as no gradient is below 0 or near 7."""
    return Step(g + openadam.where(abs(g - 7) < 0.5, 1e30, 0.0) * 1e30 * g, a=s.a + g)


@processes(4)
def test_rules_of_ones_own_are_one_process() -> None:
    over = mesh()
    for engine in ("interpreter", "graph", None) if openadam.engine.native_isas() else ("graph", None):
        for wrap in (fully_shard, DistributedDataParallel):
            inner, single = network(), network()
            model = inner if wrap is fully_shard else wrap(inner)
            if wrap is fully_shard:
                fully_shard(inner[2], mesh=over)
                fully_shard(inner, mesh=over)
            settings: dict[str, Any] = {"rule": belief, "lr": 0.05, "weight_decay": 0.1, "coupling": "decoupled", "clip_norm": 0.5, "engine": engine}
            optimizer, alone = (openadam.torch.Optimizer(m.parameters(), **settings) for m in (inner, single))
            for step in range(4):
                for each, m in ((optimizer, model), (alone, single)):
                    backward(each, m, step)
                    each.step()
                for p, q in zip(parameters_of(optimizer), parameters_of(alone), strict=True):
                    assert torch.allclose(whole(p), q, rtol=1e-6, atol=1e-8)
                agree(optimizer.last_step)


@processes(3)
def test_what_a_rule_of_ones_own_would_leave_all_refuse() -> None:
    cases: list[tuple[float, tuple[type[Exception], ...], str]] = [
        (7.0, (NonFiniteStateError, GradientError), "would not be finite"),
        (-1.0, (RuleError, GradientError), "`nonnegative` has 'a'"),
    ]
    for value, errors, text in cases:
        model = network()
        fully_shard(model, mesh=mesh())
        optimizer = openadam.torch.Optimizer(model.named_parameters(), rule=fragile, lr=0.1)
        for p in model.parameters():
            p.grad = spread(torch.full(p.shape, 0.25), p)
        optimizer.step()
        spoil(next(model.parameters()), value, 1)
        refused(optimizer, *errors, text=text)
        for p in model.parameters():
            p.grad = spread(torch.full(p.shape, 0.25), p)
        optimizer.step()
        assert all(float(own["step"]) == 2 for own in optimizer.state.values())


@processes(3)
def test_fsdp2_with_tied_weights() -> None:
    """With shards uneven and weights tied, torch never moved the part of the last process (pytorch#176076)."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(7, 4)
            self.head = torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x))

    model, single = Tied(), Tied()
    fully_shard(model, mesh=mesh())
    optimizer, alone = (openadam.torch.AdamW(m.parameters(), lr=0.1) for m in (model, single))
    (p,) = model.parameters()
    before = here(p).clone()
    assert before.numel()
    for step in range(3):
        for each, m in ((optimizer, model), (alone, single)):
            each.zero_grad()
            (m(torch.arange(7)) ** 2).sum().backward()
        for q, g in zip(parameters_of(optimizer), parameters_of(alone), strict=True):
            q.grad = spread(g.grad, q)  # the mean over three processes is not exact
        optimizer.step()
        alone.step()
        equal(optimizer, alone)
        assert (here(p) != before).all(), f"process {rank()} stood still at step {step}"


@processes(4)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_fsdp2_in_other_dtypes(dtype: str) -> None:
    """The narrow ones go through torch operations."""
    model, single = (network().to(getattr(torch, dtype)) for _ in range(2))
    fully_shard(model, mesh=mesh())
    optimizer, alone = (openadam.torch.AdamW(m.named_parameters(), lr=0.1) for m in (model, single))
    for step in range(3):
        feed(optimizer, step)
        feed(alone, step)
        optimizer.step()
        alone.step()
    equal(optimizer, alone)
    assert alone.last_step.grad_norm == pytest.approx(optimizer.last_step.grad_norm, rel=1e-14)
    feed(optimizer, 5)
    spoil(next(model.parameters()), NAN, 0)
    agree(refused(optimizer, NonFiniteGradientError, text="'0.weight'"))
    feed(optimizer, 6)
    feed(alone, 6)
    optimizer.step()
    alone.step()
    equal(optimizer, alone)


# --- what is spread otherwise ------------------------------------------------------------------------------------------


def hybrid(m: torch.nn.Module) -> None:
    """HSDP: copies of a model, each in shards."""
    fully_shard(m, mesh=mesh(2, 2, names=("replicate", "shard")))


def mixed(m: torch.nn.Module) -> None:
    """Some tensors are spread, the others plain."""
    fully_shard(m[2], mesh=mesh())


def copied(m: torch.nn.Module) -> None:
    """DTensors that lie whole in every process, as norms do under tensor parallelism."""
    place(m, mesh(), [Replicate()])


def tiled(m: torch.nn.Module) -> None:
    """In both dimensions of a mesh: tensor parallelism and FSDP."""
    place(m, mesh(2, 2), [Shard(0), Shard(-1)])


def tiled_both(m: torch.nn.Module) -> None:
    """Rows cut twice, and a layer along the second dimension alone."""
    over = mesh(2, 2)
    place(m[0], over, [Shard(0), Shard(0)])
    place(m[2], over, [Replicate(), Shard(0)])
    place(m[4], over, [Shard(0), Replicate()])


def meshes(m: torch.nn.Module) -> None:
    """Each layer over another mesh: the rows of a grid, its columns, and all."""
    grid = mesh(2, 2, names=("a", "b"))
    place(m[0], grid["a"], [Shard(0)])
    place(m[2], grid["b"], [Shard(0)])
    place(m[4], mesh(), [Shard(0)])


def place(m: torch.nn.Module, over: DeviceMesh, placements: list[Any]) -> None:
    for module in m.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            where = [Shard(placement.dim % p.dim()) if isinstance(placement, Shard) else placement for placement in placements]
            setattr(module, name, torch.nn.Parameter(distribute_tensor(p.detach(), over, where, src_data_rank=None)))


def plainly(m: torch.nn.Module) -> None:
    fully_shard(m, mesh=mesh())


LAYOUTS: list[Callable[[torch.nn.Module], None]] = [plainly, hybrid, mixed, copied, tiled, tiled_both, meshes]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


@every_layout
@processes(4)
def test_layouts_are_one_process(layout: Callable[[torch.nn.Module], None]) -> None:
    """Elementwise to the last bit; with clipping, the factor is the same everywhere and that of one process but for its last bits."""
    model, single = network(), network()
    layout(model)
    for clip_norm in (None, 0.7):
        groups = [[{"params": list(m[0].parameters()), "lr": 0.02}, {"params": [*m[2].parameters(), *m[4].parameters()]}] for m in (model, single)]
        optimizer, alone = (openadam.torch.AdamW(each, lr=0.01, clip_norm=clip_norm) for each in groups)
        for step in range(4):
            feed(optimizer, step)
            feed(alone, step)
            optimizer.step()
            alone.step()
            ours, theirs = optimizer.last_step, alone.last_step
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-14)
            assert ours.clip_factor == pytest.approx(theirs.clip_factor, rel=1e-12)
            assert (ours.clip_factor < 1) == (clip_norm is not None)
            agree(ours)
            if clip_norm is None:
                equal(optimizer, alone)
        for p, q in zip(parameters_of(optimizer), parameters_of(alone), strict=True):
            torch.testing.assert_close(whole(p), q.detach(), rtol=1e-6, atol=1e-7)


@every_layout
@processes(4)
def test_what_one_process_sees_all_refuse(layout: Callable[[torch.nn.Module], None]) -> None:
    """NaN, infinity, or a gradient too large for the state, in one process alone: copies included, which should not but may differ."""
    for nonfinite in ("raise", "skip"):
        model, single = network(), network()
        layout(model)
        optimizer, alone = (openadam.torch.AdamW(m.named_parameters(), lr=0.01, nonfinite=nonfinite) for m in (model, single))
        step = 0

        def go_on() -> None:
            nonlocal step
            step += 1
            for each in (optimizer, alone):
                feed(each, step)
                each.step()
            equal(optimizer, alone)

        for warm in range(2):
            for where in (0, 3):
                for value, error in ((NAN, NonFiniteGradientError), (-math.inf, NonFiniteGradientError), (1e30, NonFiniteStateError)):
                    feed(optimizer, 100)
                    spoil(dict(model.named_parameters())["2.weight"], value, where)
                    if nonfinite == "raise" or error is NonFiniteStateError:
                        agree(refused(optimizer, error, text="'2.weight'"))
                    else:
                        before = bits(optimizer)
                        optimizer.step()
                        assert optimizer.last_step.skipped
                        assert optimizer.last_step.step == step
                        assert unchanged(before, optimizer)
            for _ in range(2 - warm):
                go_on()


@processes(4)
def test_norms_beyond_the_range_of_squares() -> None:
    """In float64, where a square overflows on one process and underflows on another."""
    p = torch.nn.Parameter(distribute_tensor(torch.zeros(8, dtype=torch.float64), mesh(), [Shard(0)], src_data_rank=None))
    q = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
    for full in ([3e200, 0, 4e200, 0, 1e-300, 0, 0, 0], [3e-200, 0, 4e-200, 0, 0, 0, 0, 0]):
        for each in (p, q):
            each.grad = spread(torch.tensor(full, dtype=torch.float64), each)
        reports = []
        for each in (p, q):
            optimizer = openadam.torch.SGD([each], lr=0.1, clip_norm=1e-250)
            optimizer.step()
            reports.append(optimizer.last_step)
        assert reports[0].grad_norm == pytest.approx(max(full) * 1.25, rel=1e-14)
        assert reports[0].clip_factor == pytest.approx(reports[1].clip_factor, rel=1e-14)
        agree(reports[0])


@processes(4)
def test_gradients_that_are_spread_otherwise() -> None:
    """As sums still to be made (norms under sequence parallelism), or whole: they are brought where the parameter's parts are."""
    over = mesh()
    full = torch.arange(1.0, 8.0)
    parameters = [torch.nn.Parameter(distribute_tensor(torch.zeros(7), over, [where], src_data_rank=None)) for where in (Shard(0), Replicate())]
    plain = [torch.nn.Parameter(torch.zeros(7)) for _ in range(2)]
    optimizer, alone = (openadam.torch.AdamW(each, lr=0.1, clip_norm=5.0) for each in (parameters, plain))
    for step in range(3):
        for p in parameters:
            p.grad = DTensor.from_local(full / 4 * (step + 1), over, [Partial()])
        for q in plain:
            q.grad = full * (step + 1)
        optimizer.step()
        alone.step()
        assert optimizer.last_step.clip_factor == pytest.approx(alone.last_step.clip_factor, rel=1e-12)
        agree(optimizer.last_step)
    for p, q in zip(parameters, plain, strict=True):
        torch.testing.assert_close(whole(p), q.detach())
    optimizer = openadam.torch.AdamW(parameters, lr=0.1)
    for bad, value in ((1, NAN), (0, NAN), (0, 1e30)):
        for k, p in enumerate(parameters):
            p.grad = DTensor.from_local(full if k != bad or rank() != 2 else full * value, over, [Partial()])
        agree(refused(optimizer, NonFiniteGradientError, NonFiniteStateError, text=f"'{bad}'"))


@processes(4)
def test_gradients_that_one_process_cannot_use() -> None:
    """Of another shape, sparse, over another mesh, or no DTensor where the parameter is one: nobody takes the step, and who refused says why."""
    over, grid = mesh(), mesh(2, 2)
    model = network()
    mixed(model)
    optimizer = openadam.torch.AdamW(model.named_parameters(), lr=0.1, nonfinite="skip")
    named = dict(model.named_parameters())
    for step in range(3):
        feed(optimizer, step)
        optimizer.step()
        for where in (0, 3):
            for error, name in ((GradientShapeError, "2.weight"), (SparseGradientError, "0.weight"), (GradientError, "2.bias"), (None, "2.weight")):
                feed(optimizer, 10 + step)
                spoil(named["4.weight"], NAN, 1)  # that it could be skipped elsewhere does not matter
                p = named[name]
                if rank() == where and error is GradientShapeError:
                    p.grad = DTensor.from_local(torch.ones(5, 3), over, p.placements, shape=p.shape, stride=p.stride(), run_check=False)
                elif rank() == where and error is SparseGradientError:
                    p.grad = torch.ones(p.shape).to_sparse()
                elif rank() == where and error is GradientError:
                    p.grad = torch.ones(p.shape)
                elif rank() == where:
                    p.grad = DTensor.from_local(here(p.grad), grid, [Replicate(), Shard(0)], shape=p.shape, stride=p.stride(), run_check=False)
                said = refused(optimizer, GradientError, text=f"'{name}'")
                assert [f"'{name}'" in each for each in said] == [k == where for k in range(4)]
                assert all("another process" in each for k, each in enumerate(said) if k != where)


@processes(4)
def test_what_one_process_cannot_start() -> None:
    """A learning rate that went wrong on one process, as of a schedule that follows its own loss, or a state that no longer fits."""
    model, single = network(), network()
    hybrid(model)
    optimizer, alone = (openadam.torch.AdamW(m.named_parameters(), lr=0.1) for m in (model, single))
    for step in range(2):
        step_all(step, optimizer, alone)
        equal(optimizer, alone)
        for where in (0, 3):
            feed(optimizer, 10)
            if rank() == where:
                optimizer.param_groups[0]["lr"] = NAN
            said = refused(optimizer, GradientError, HyperparameterError, text="another process")
            assert ["lr=nan" in each for each in said] == [k == where for k in range(4)]
            optimizer.param_groups[0]["lr"] = 0.1
            state = optimizer.state[parameters_of(optimizer)[0]]
            kept = state["exp_avg"]
            if rank() == where:
                state["exp_avg"] = torch.zeros(1)
            said = refused(optimizer, GradientError, ParameterError, text="another process")
            assert ["'exp_avg'" in each for each in said] == [k == where for k in range(4)]
            state["exp_avg"] = kept


@processes(2)
def test_nothing_is_exchanged_where_nothing_is_asked() -> None:
    """With ``nonfinite="propagate"`` and no clip, a step is this process's own: one can take it while the other does not."""
    model, single = network(), network()
    plainly(model)
    optimizer, alone = (openadam.torch.AdamW(m.parameters(), lr=0.1, nonfinite="propagate") for m in (model, single))
    for step in range(2):
        for each in (optimizer, alone):
            feed(each, step)
        if rank() == 0:
            optimizer.step()
            dist.barrier()
        else:
            dist.barrier()
            optimizer.step()
        alone.step()
    equal(optimizer, alone)


# --- ZeRO --------------------------------------------------------------------------------------------------------------


def zero(model: torch.nn.Module, **settings: Any) -> Any:
    return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=openadam.torch.AdamW, sharded=True, **settings)


def step_all(step: int, *optimizers: Any) -> None:
    for optimizer in optimizers:
        feed(optimizer, step)
        optimizer.step()


def equal_parameters(model: torch.nn.Module, single: torch.nn.Module, *, exactly: bool = True) -> None:
    for p, q in zip(model.parameters(), single.parameters(), strict=True):
        assert torch.equal(p, q) if exactly else torch.allclose(p, q, rtol=1e-6, atol=1e-7), f"{p} and {q}"


@processes(3)
def test_i9_zero_is_one_process() -> None:
    """Steps, clip, consolidation, loading on a process that has its state no longer, another group."""
    for clip_norm in (None, 0.5):
        model, single = network(), network()
        optimizer = zero(model, lr=0.1, clip_norm=clip_norm)
        alone = openadam.torch.AdamW(single.parameters(), lr=0.1, clip_norm=clip_norm)
        for step in range(3):
            step_all(step, optimizer, alone)
            equal_parameters(model, single, exactly=clip_norm is None)
            assert optimizer.optim.last_step.clip_factor == pytest.approx(alone.last_step.clip_factor, rel=1e-12)
            agree(optimizer.optim.last_step)
    model, single = network(), network()
    optimizer, alone = zero(model, lr=0.1), openadam.torch.AdamW(single.parameters(), lr=0.1)
    for step in range(2):
        step_all(step, optimizer, alone)
    optimizer.consolidate_state_dict(to=1)
    box = [optimizer.state_dict() if rank() == 1 else None]
    dist.broadcast_object_list(box, src=1)
    saved, expected = box[0], alone.state_dict()
    for key, state in expected["state"].items():
        assert all(torch.equal(saved["state"][key][name], value) for name, value in state.items())
    whole_again = openadam.torch.AdamW(network().parameters(), lr=0.1)
    whole_again.load_state_dict(saved)
    assert all(torch.equal(own["exp_avg"], other["exp_avg"]) for own, other in zip(whole_again.state.values(), alone.state.values(), strict=True))
    again = copy.deepcopy(model)
    optimizer = zero(again, lr=0.5)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    for step in range(2, 4):
        step_all(step, optimizer, alone)
        equal_parameters(again, single)
    more = [torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(2))]
    rest = [torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(2))]
    optimizer.add_param_group({"params": more, "lr": 0.3})
    alone.add_param_group({"params": rest, "lr": 0.3})
    for step in range(4, 6):
        step_all(step, optimizer, alone)
        equal_parameters(again, single)
        assert all(torch.equal(p, q) for p, q in zip(more, rest, strict=True))
    agree(optimizer.optim.last_step)


@processes(3)
def test_i9_zero_what_one_process_sees_all_refuse() -> None:
    """Each process looks only at the gradients whose states it holds."""
    model, single = network(), network()
    optimizer, alone = zero(model, lr=0.1), openadam.torch.AdamW(single.parameters(), lr=0.1)
    for step in range(2):
        for where, error in ((0, NonFiniteGradientError), (2, NonFiniteGradientError), (1, NonFiniteStateError), (0, GradientError)):
            feed(optimizer, 50)
            mine = parameters_of(optimizer.optim)
            if rank() == where:
                if error is GradientError:
                    mine[0].grad = torch.ones(mine[0].shape).to_sparse()
                else:
                    mine[-1].grad.view(-1)[0] = NAN if error is NonFiniteGradientError else 1e30
            said = refused(optimizer, error, inner=optimizer.optim)
            if error is not GradientError:
                assert len(set(said)) == 1
        step_all(step, optimizer, alone)
        equal_parameters(model, single)


@processes(2)
def test_i9_zero_skips_everywhere() -> None:
    model = network()
    optimizer = zero(model, lr=0.1, nonfinite="skip")
    feed(optimizer, 0)
    if rank() == 1:
        parameters_of(optimizer.optim)[0].grad.fill_(NAN)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert optimizer.optim.last_step.skipped
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@processes(2)
def test_i9_zero_where_one_process_has_no_gradients_yet() -> None:
    """At a learning rate of 0, with which a warm-up may begin, and which torch.distributed.checkpoint uses to make states."""
    model, single = network(), network()
    optimizer, alone = zero(model, lr=0.0), openadam.torch.AdamW(single.parameters(), lr=0.0)
    held: list[Any] = [None, None]
    dist.all_gather_object(held, [i for i, p in enumerate(model.parameters()) if any(p is q for q in parameters_of(optimizer.optim))])
    for step, lr in enumerate((0.0, 0.0, 0.1, 0.1)):
        for each in (optimizer, alone):
            each.param_groups[0]["lr"] = lr
            feed(each, step)
            for i in held[1] if step == 0 else ():
                parameters_of(each)[i].grad = None
            each.step()
        equal_parameters(model, single)
        agree(optimizer.optim.last_step)


# --- checkpoints -------------------------------------------------------------------------------------------------------

SCHEDULE = {4: range(3), 2: range(3, 5), 3: range(5, 8), 1: range(8, 9)}
WAYS = {
    "plain": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),  # in the first process alone
}
WAYS_BACK = {**WAYS, "full": StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)}


def two_groups(m: torch.nn.Module, kind: Any, **settings: Any) -> Any:
    decayed = [p for p in m.parameters() if p.dim() > 1]
    plain = [p for p in m.parameters() if p.dim() <= 1]
    return kind([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0, "lr": 0.02}], lr=0.01, **settings)


def uninterrupted(until: int, name: str) -> Any:
    single = network()
    alone = two_groups(single, getattr(openadam.torch, name))
    for step in range(until):
        feed(alone, step)
        alone.step()
    return alone


def resume(folder: Path, way: str, name: str, jointly: bool) -> None:
    """Load what another number of processes has saved, train on, compare with the run that was never interrupted, save."""
    size, options, back = dist.get_world_size(), WAYS[way], WAYS_BACK[way]
    model = network(seed=size)  # other numbers, so that what is not loaded shows
    if size > 1:
        fully_shard(model[2], mesh=mesh())
        fully_shard(model, mesh=mesh())
    optimizer = two_groups(model, getattr(openadam.torch, name))
    steps = SCHEDULE[size]

    def read() -> tuple[Any, Any]:
        if jointly:
            return get_state_dict(model, optimizer, options=options)
        return get_model_state_dict(model, options=options), get_optimizer_state_dict(model, optimizer, options=options)

    if size == 4:
        model_state, _ = read()  # which makes states, and must not count as a step (pytorch#164929)
        assert all(float(state.get("step", 0)) == 0 for state in optimizer.state.values())
        set_model_state_dict(model, network().state_dict(), options=StateDictOptions(full_state_dict=True))
    else:
        model_state, state = read()
        loaded = {"model": model_state, "optimizer": state}
        dcp.load(loaded, checkpoint_id=folder / "saved")
        if jointly:
            set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"], options=back)
        else:
            set_model_state_dict(model, loaded["model"], options=back)
            set_optimizer_state_dict(model, optimizer, loaded["optimizer"], options=back)
        assert set(optimizer.state) <= set(model.parameters())  # and nothing under names, which the next save would take for the states
        equal(optimizer, uninterrupted(steps.start, name))
    for step in steps:
        feed(optimizer, step)
        optimizer.step()
    equal(optimizer, uninterrupted(steps.stop, name))
    if size > 1:
        model_state, state = read()
        dist.barrier()  # until all have loaded
        dcp.save({"model": model_state, "optimizer": state}, checkpoint_id=folder / "saved")


@pytest.mark.parametrize(
    ("way", "name", "jointly"), [("plain", "AdamW", True), ("flat", "AdamW", False), ("full", "NAdam", False), ("plain", "SGD", True)]
)
def test_i10_dcp_on_another_number_of_processes(tmp_path: Path, way: str, name: str, jointly: bool) -> None:
    """Saved on 4, trained on by 2, by 3, and by one alone: as if nothing had happened, to the last bit."""
    for size in (4, 2, 3, 1):
        launch(resume, size, folder=tmp_path, way=way, name=name, jointly=jointly)


@processes(2)
def test_i10_dcp_between_torch_and_here(tmp_path: Path) -> None:
    """A checkpoint of torch.optim.AdamW is one of ours, and the other way round."""
    kinds = {"torch": torch.optim.AdamW, "ours": openadam.torch.AdamW}
    for source, target in (("torch", "ours"), ("ours", "torch")):
        model = network()
        fully_shard(model, mesh=mesh())
        optimizer = two_groups(model, kinds[source])
        for step in range(3):
            feed(optimizer, step)
            optimizer.step()
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path / source)
        other = two_groups(model, kinds[target])
        other.zero_grad()  # where there are gradients, torch makes no states to load into
        loaded = {"optimizer": get_optimizer_state_dict(model, other)}
        dcp.load(loaded, checkpoint_id=tmp_path / source)
        set_optimizer_state_dict(model, other, loaded["optimizer"])
        equal(other, _whole(optimizer))
        before = [whole(p).clone() for p in model.parameters()]
        feed(other, 3)
        other.step()
        after = [whole(p).clone() for p in model.parameters()]
        with torch.no_grad():
            for p, value in zip(model.parameters(), before, strict=True):
                p.copy_(spread(value, p))
        feed(optimizer, 3)
        optimizer.step()
        for p, value in zip(model.parameters(), after, strict=True):
            torch.testing.assert_close(whole(p), value, rtol=1e-6, atol=1e-7)


def _whole(optimizer: torch.optim.Optimizer) -> Any:
    """An optimizer's parameters and states as those of one process."""

    class Stand:
        param_groups: list[dict[str, Any]]
        state: dict[Any, Any]

    stand = Stand()
    full = [[whole(p).clone() for p in group["params"]] for group in optimizer.param_groups]
    stand.param_groups = [{"params": group} for group in full]
    stand.state = {
        q: {key: whole(value).clone() for key, value in optimizer.state[p].items()}
        for group, own in zip(optimizer.param_groups, full, strict=True)
        for p, q in zip(group["params"], own, strict=True)
    }
    return stand


# --- GradScaler --------------------------------------------------------------------------------------------------------


@processes(4)
def test_i2_grad_scaler_over_dtensors() -> None:
    """Unscaled once, and an overflow on one process skips the step on all."""
    model, single = network(), network()
    plainly(model)
    optimizer, alone = (openadam.torch.AdamW(m.parameters(), lr=0.1) for m in (model, single))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        backward(alone, single, step)
        alone.step()
        equal(optimizer, alone)
    before = bits(optimizer)
    optimizer.zero_grad()
    scaler.scale(loss(model, 9)).backward()
    spoil(list(model.parameters())[2], math.inf, 3)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.last_step.skipped
    assert unchanged(before, optimizer)
    assert scaler.get_scale() == 2.0**9
    agree(optimizer.last_step.step)
