"""openadam.torch under FullyShardedDataParallel (FSDP1), whose parameters are plain tensors: the parts of one step, and one decision for all.

Each test runs in processes that speak over gloo; a refusal that one of them does not hear of would be a hang, and fails it.
"""
# ruff: noqa: E402 (where there is no torch, or none with gloo, nothing more can be imported)

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("no gloo here", allow_module_level=True)

import torch.distributed as dist
from distributed import processes
from test_torch_distributed import NAN, agree, backward, bits, network, parameters_of, rank, refused, unchanged
from torch.distributed.fsdp import FullOptimStateDictConfig, ShardingStrategy, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

import openadam.torch
from openadam import GradientError, HyperparameterError, NonFiniteGradientError, ParameterError

STRATEGIES = (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy.NO_SHARD)
WAYS = tuple(itertools.product(STRATEGIES, (True, False)))  # how it is spread, and whether its parameters keep their names
SPREAD = WAYS[:4]
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}), ("AdamW", {"lr": 0.1}))


def flatten(strategy: ShardingStrategy, original: bool, *, plain: bool = False, group: Any = None, seed: int = 0) -> Any:
    """The network in two units, one inside the other: the third layer, and all the rest; or the last layer is left as it is."""
    model: Any = network(seed)
    how = {"sharding_strategy": strategy, "use_orig_params": original, "device_id": torch.device("cpu"), "process_group": group}
    model[2] = FSDP(model[2], **how)
    return torch.nn.Sequential(FSDP(model[:4], **how), model[4]) if plain else FSDP(model, **how)


def near(model: Any, single: Any) -> None:
    """The parameters are those of one process, up to how means and norms were rounded."""
    with FSDP.summon_full_params(model, writeback=False):
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(flat, torch.cat([p.detach().flatten() for p in single.parameters()]), rtol=2e-5, atol=1e-6)


def trained(optimizer: Any, model: Any, steps: Iterable[int]) -> Any:
    for step in steps:
        backward(optimizer, model, step)
        optimizer.step()
    return optimizer


def spoilt(optimizer: Any, where: int) -> Iterable[str]:
    """The name of each parameter of which one process holds a part, with a NaN at the end of that part's gradient."""
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            box = [name if rank() == where and p.grad is not None and p.numel() else None]
            dist.broadcast_object_list(box, src=where)
            if box[0] is None:
                continue
            kept = None
            if rank() == where:
                kept = float(p.grad[..., -1])
                p.grad[..., -1] = NAN
            yield name
            if kept is not None:
                p.grad[..., -1] = kept


@processes(3)
def test_clipping_is_torchs_and_that_of_one_process() -> None:
    """Uneven: some processes hold nothing of some parameters."""
    for (strategy, original), (name, settings) in itertools.product(WAYS, KINDS):
        model, other, single = flatten(strategy, original), flatten(strategy, original), network()
        optimizer = getattr(openadam.torch, name)(model.parameters(), clip_norm=0.5, **settings)
        theirs = getattr(torch.optim, name)(other.parameters(), **settings)
        alone = getattr(openadam.torch, name)(single.parameters(), clip_norm=0.5, **settings)
        for step in range(3):
            for each, m in ((optimizer, model), (theirs, other), (alone, single)):
                backward(each, m, step)
            norm = other.clip_grad_norm_(0.5)
            for each in (optimizer, theirs, alone):
                each.step()
            report = optimizer.last_step
            assert report.clip_factor < 1
            assert report.grad_norm == pytest.approx(float(norm), rel=1e-5)
            assert report.grad_norm == pytest.approx(alone.last_step.grad_norm, rel=1e-5)
            agree(report)
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        near(model, single)


@processes(2)
def test_what_one_process_sees_all_refuse() -> None:
    """A NaN in any part that only one process holds, named there by its parameter; and a setting that is wrong on one alone."""
    for strategy, original in SPREAD:
        model, single = flatten(strategy, original), network()
        optimizer = openadam.torch.AdamW(model.named_parameters(), lr=0.1, clip_norm=0.5)
        alone = openadam.torch.AdamW(single.parameters(), lr=0.1, clip_norm=0.5)
        for step in range(2):
            for each, m in ((optimizer, model), (alone, single)):
                backward(each, m, step)
            found = {where: [refused(optimizer, NonFiniteGradientError, text=f"'{name}'") for name in spoilt(optimizer, where)] for where in (0, 1)}
            assert all(found.values())
            assert all(len(set(said)) == 1 for each in found.values() for said in each)
            if rank() == 1:
                optimizer.param_groups[0]["lr"] = NAN
            said = refused(optimizer, GradientError, HyperparameterError, text="another process")
            assert "lr=nan" in said[1]
            optimizer.param_groups[0]["lr"] = 0.1
            for each in (optimizer, alone):
                each.step()
        near(model, single)


@processes(2)
def test_what_one_process_sees_all_skip() -> None:
    for strategy, original in SPREAD:
        model, single = flatten(strategy, original), network()
        optimizer = openadam.torch.AdamW(model.named_parameters(), lr=0.1, nonfinite="skip")
        alone = openadam.torch.AdamW(single.parameters(), lr=0.1)
        for step in range(2):
            for each, m in ((optimizer, model), (alone, single)):
                backward(each, m, step)
            before, skipped = bits(optimizer), optimizer.skipped
            for where in (0, 1):
                for _ in spoilt(optimizer, where):
                    optimizer.step()
                    skipped += 1
                    assert optimizer.last_step.skipped
                    assert optimizer.skipped == skipped
                    assert unchanged(before, optimizer)
            agree(skipped)
            for each in (optimizer, alone):
                each.step()
            assert not optimizer.last_step.skipped
        near(model, single)


@processes(2)
def test_with_a_plain_part_beside_it() -> None:
    """Plain parameters are whole on every process, and count once; what is wrong with them on one process all refuse."""
    for strategy, original in SPREAD:
        model, single = flatten(strategy, original, plain=True), network()
        optimizer = openadam.torch.SGD(model.named_parameters(), lr=0.1, clip_norm=0.5)
        alone = openadam.torch.SGD(single.parameters(), lr=0.1, clip_norm=0.5)
        for step in range(3):
            for each, m in ((optimizer, model), (alone, single)):
                backward(each, m, step)
            if rank() == 0:
                model[1].bias.grad.fill_(NAN)
            agree(refused(optimizer, NonFiniteGradientError, text="'1.bias'"))
            model[1].bias.grad.copy_(single[4].bias.grad)
            for each in (optimizer, alone):
                each.step()
            agree(optimizer.last_step)
            assert optimizer.last_step.grad_norm == pytest.approx(alone.last_step.grad_norm, rel=1e-6)
        near(model, single)


@processes(4)
def test_the_norm_goes_over_those_who_hold_the_parts() -> None:
    """Two processes hold a model between them, and the other two hold a copy of it, or another model."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    mine, copies = groups[rank() // 2], across[rank() % 2]
    for strategy, group in ((ShardingStrategy.HYBRID_SHARD, (mine, copies)), (ShardingStrategy.FULL_SHARD, mine)):
        for original in (True, False):
            seed = 0 if isinstance(group, tuple) else rank() // 2
            model, single = flatten(strategy, original, group=group, seed=seed), network(seed)
            optimizer = openadam.torch.AdamW(model.parameters(), lr=0.1, clip_norm=0.5)
            alone = openadam.torch.AdamW(single.parameters(), lr=0.1, clip_norm=0.5)
            for step in range(2):
                for each, m in ((optimizer, model), (alone, single)):
                    trained(each, m, [step])
                assert optimizer.last_step.grad_norm == pytest.approx(alone.last_step.grad_norm, rel=1e-6)
            near(model, single)


@processes(2)
def test_without_the_model_that_holds_the_rest() -> None:
    """Nobody knows any more who holds the other parts: refused by name, again and again, with every engine."""
    for (strategy, original), engine in itertools.product(SPREAD[:2], (None, "graph")):
        model = flatten(strategy, original)
        named = [(name, p) for name, p in model.named_parameters() if p.numel()]
        del model
        gc.collect()
        for _, p in named:
            p.grad = torch.ones_like(p)
        optimizer = openadam.torch.AdamW(named, lr=0.1, engine=engine)
        said = refused(optimizer, ParameterError, text=f"'{named[0][0]}'")
        assert all("FullyShardedDataParallel" in each for each in said)


def whole_states(model: Any) -> Any:
    # By default torch moves states to the CPU; those that are there already, it mixes up (2.13, use_orig_params=True).
    config = FullOptimStateDictConfig(offload_to_cpu=False)
    return FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, optim_state_dict_config=config)


@processes(2)
def test_state_dicts_go_round() -> None:
    """Saved whole, they are the states of one process; loaded again, or into torch's optimizer or from it, training goes on as if nothing were."""
    kinds = {"ours": openadam.torch.AdamW, "torch": torch.optim.AdamW}
    for strategy, original in WAYS:
        others = (("torch", "ours"), ("ours", "torch")) if strategy is ShardingStrategy.FULL_SHARD else ()
        for source, target in (("ours", "ours"), *others):
            model, single = flatten(strategy, original), network()
            optimizer = trained(kinds[source](model.parameters(), lr=0.1), model, range(2))
            alone = trained(openadam.torch.AdamW(single.named_parameters(), lr=0.1), single, range(2))
            with whole_states(model):
                saved = FSDP.optim_state_dict(model, optimizer)
            names = alone.param_groups[0]["param_names"]
            assert set(saved["state"]) == set(names)
            for name, p in zip(names, parameters_of(alone), strict=True):
                found, expected = saved["state"][name], alone.state[p]
                assert set(found) == set(expected)
                for key in expected:
                    torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-7)
            other = kinds[target](model.parameters(), lr=0.5)
            with whole_states(model):
                other.load_state_dict(FSDP.optim_state_dict_to_load(model, other, saved))
            assert other.param_groups[0]["lr"] == 0.1
            trained(other, model, range(2, 4))
            trained(alone, single, range(2, 4))
            near(model, single)
