"""The two that are compared: the same run with AdamW of openadam and of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import openadam.torch

OURS, TORCHS = openadam.torch.AdamW, torch.optim.AdamW
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.05}
RTOL = 1e-5  # of every loss of a run in float32: both round each step correctly to a few units in the last place, in another order
HALF_RTOL = 1e-2  # where activations are float16: the last bit of a weight may turn one of them over, and 24 steps make that grow


@dataclass
class Run:
    """What a run leaves behind."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)


def steps_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The step count of each parameter, in order."""
    return [float(optimizer.state[p]["step"]) for group in optimizer.param_groups for p in group["params"] if p in optimizer.state]


def agree(ours: Run, torchs: Run, *, rtol: float = RTOL, falls: bool = True) -> None:
    """The same course of losses and rates, the same counts, and (if it should) a loss that falls."""
    assert isinstance(ours.optimizer, OURS)
    assert type(torchs.optimizer) is TORCHS
    assert ours.losses == pytest.approx(torchs.losses, rel=rtol)
    assert ours.rates == torchs.rates
    assert ours.counts == torchs.counts
    assert steps_of(ours.optimizer) == steps_of(torchs.optimizer) != []
    if falls:
        assert sum(ours.losses[-3:]) < 0.9 * sum(ours.losses[:3])


def same(one: Run, other: Run) -> None:
    """Two runs that ended in the same bits: parameters, states, groups."""
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    mine, theirs = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    for index, state in mine["state"].items():
        assert state.keys() == theirs["state"][index].keys()
        for key, value in state.items():
            assert torch.equal(value, theirs["state"][index][key]), (index, key)
    assert one.rates[-len(other.rates) :] == other.rates
    assert one.losses[-len(other.losses) :] == other.losses


def teacher(examples: int = 64, features: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Data that a small network can learn."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(examples, features, generator=generator)
    return x, torch.tanh(x @ torch.randn(features, 1, generator=generator))


def network(features: int = 8) -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(features, 32), torch.nn.LayerNorm(32), torch.nn.GELU(), torch.nn.Linear(32, 1))


def both(run: Any, *arguments: Any, **keywords: Any) -> Iterable[Run]:
    """The same run with ours and with torch's."""
    return run(OURS, *arguments, **keywords), run(TORCHS, *arguments, **keywords)
