"""The subjects of the tests of openadam.torch: every class with its flags, torch's for-loop beside it, and what must not change.

Adding a class or a flag to the adapter is one line in `SUBJECTS`; every test of torch's tensors then runs over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import openadam.torch

torch.set_num_threads(1)  # tests run side by side; those about threads say how many they want

BETAS = {"betas": (0.9, 0.97), "eps": 1e-3}
CLASSES = tuple(name for name in openadam.torch.__all__ if name not in ("SparseAdam", "Optimizer"))
"""Those that take dense gradients; of the others, see test_torch_sparse.py and test_torch_own_rules.py."""
SIZES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (7,), (3, 5), (16,), (17,), (10, 100), (4099,))
"""No axes, no elements, lengths around one and two vectors, and more than one block."""


@dataclass(frozen=True)
class Subject:
    """A class of openadam.torch with some of its flags, and hyperparameters in which a mistake must show."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def make(self, params: Any, **changes: Any) -> Any:
        """Our optimizer."""
        return getattr(openadam.torch, self.name)(params, **{**self.settings, **changes})

    def theirs(self, params: Any, **changes: Any) -> Any:
        """Torch's optimizer, as a for-loop."""
        return getattr(torch.optim, self.name)(params, **{"foreach": False, **self.settings, **changes})

    def __str__(self) -> str:
        hidden = ("lr", "betas", "eps", "alpha", "momentum_decay")
        flags = (key if value is True else f"{key}={value}" for key, value in self.settings.items() if key not in hidden)
        return "-".join([self.name, *flags])


def _subjects() -> Iterable[Subject]:
    plain: dict[str, dict[str, Any]] = {
        "Adam": BETAS, "AdamW": BETAS, "NAdam": {**BETAS, "momentum_decay": 0.05}, "RAdam": BETAS, "Adamax": BETAS,
        "RMSprop": {"alpha": 0.93, "eps": 1e-3}, "Adagrad": {"eps": 1e-3}, "SGD": {},
    }  # fmt: skip
    flags: dict[str, list[dict[str, Any]]] = {
        "Adam": [{"amsgrad": True}, {"decoupled_weight_decay": True, "weight_decay": 0.1}, {"amsgrad": True, "weight_decay": 0.1, "maximize": True}],
        "AdamW": [{"amsgrad": True, "maximize": True}, {"weight_decay": 0.0}],
        "NAdam": [{"decoupled_weight_decay": True, "weight_decay": 0.1}, {"maximize": True}],
        "RAdam": [{"decoupled_weight_decay": True, "weight_decay": 0.1}, {"maximize": True}],
        "Adamax": [{"maximize": True}],
        "RMSprop": [{"centered": True}, {"momentum": 0.87}, {"centered": True, "momentum": 0.87, "weight_decay": 0.1}, {"maximize": True}],
        "Adagrad": [{"initial_accumulator_value": 0.11}, {"lr_decay": 0.07}, {"maximize": True}],
        "SGD": [
            {"momentum": 0.87}, {"momentum": 0.87, "nesterov": True}, {"momentum": 0.87, "dampening": 0.3},
            {"momentum": 0.87, "nesterov": True, "weight_decay": 0.1, "maximize": True},
        ],
    }  # fmt: skip
    for name, settings in plain.items():
        for own in [{}, {"weight_decay": 0.1}, *flags[name]]:
            yield Subject(name, {"lr": 0.013, **settings, **own})


SUBJECTS = tuple(_subjects())
PLAIN = tuple(next(subject for subject in SUBJECTS if subject.name == name) for name in CLASSES)
"""Every class without flags."""
STATEFUL = tuple(next(s for s in SUBJECTS if s.name == name and (name != "SGD" or "momentum" in s.settings)) for name in CLASSES)
"""Every class with some state."""
every = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
each_class = pytest.mark.parametrize("subject", PLAIN, ids=str)
each_with_state = pytest.mark.parametrize("subject", STATEFUL, ids=str)


# --- data --------------------------------------------------------------------------------------------------------------


def leaves(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Random parameters, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def copies(params: Iterable[Tensor]) -> list[Tensor]:
    """Parameters with the same values and strides, in memory of their own."""
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def give(params: Iterable[Tensor], seed: int, *others: Iterable[Tensor]) -> None:
    """Random gradients over two decades; the same ones, each in memory of its own, to every list of parameters."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for same in zip(params, *others, strict=True):
        p = same[0]
        size = 10 ** (2 * torch.rand(p.shape, generator=generator, dtype=torch.float32) - 1.5)
        gradient = (torch.randn(p.shape, generator=generator, dtype=p.dtype) * size).to(p.dtype)
        for each in same:
            each.grad = gradient.to(each.dtype, copy=True)


def states(optimizer: Any) -> list[tuple[str, Any]]:
    """Every state of an optimizer, by position of the parameter and name."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [(f"{k}.{key}", value) for k, p in enumerate(params) for key, value in sorted(optimizer.state.get(p, {}).items())]


# --- what must be equal, and what must not change ----------------------------------------------------------------------


def raw(tensor: Tensor) -> bytes:
    """The elements of a tensor, byte for byte."""
    flat = torch.view_as_real(tensor.detach()).reshape(-1) if tensor.is_complex() else tensor.detach().reshape(-1)
    return flat.contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def same(a: Any, b: Any) -> bool:
    """Whether two tensors, or structures of them, agree in every bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def equal(mine: Any, other: Any) -> bool:
    """Whether two optimizers hold the same parameters and states, bit for bit."""
    return same([group["params"] for group in mine.param_groups], [group["params"] for group in other.param_groups]) and same(
        states(mine), states(other)
    )


def fingerprint(optimizer: Any) -> str:
    """A digest of every byte that a step or a load may change: parameters, their gradients, states, settings, counters."""
    digest = hashlib.sha256()
    for group in optimizer.param_groups:
        digest.update(repr({key: value for key, value in group.items() if key != "params"}).encode())
        for p in group["params"]:
            digest.update(repr((p.dtype, p.shape, p.stride(), p.grad is None)).encode() + raw(p))
            if p.grad is not None and p.grad.layout is torch.strided:
                digest.update(raw(p.grad))
    for name, value in states(optimizer):
        digest.update(repr((name, value.dtype, value.shape)).encode() + raw(value) if isinstance(value, Tensor) else repr((name, value)).encode())
    digest.update(repr([key for key in optimizer.state if isinstance(key, str)]).encode())
    return digest.hexdigest()


def begun(make: Callable[..., Any], shapes: Iterable[tuple[int, ...]], steps: int, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """An optimizer in the middle of a run."""
    params = leaves(shapes, dtype)
    optimizer = make(params, **settings)
    for k in range(steps):
        give(params, k)
        optimizer.step()
    return optimizer


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def refuses(optimizer: Any, action: Callable[[], Any], error: type[Exception], *texts: str) -> Exception:
    """The action is refused, twice, by an error that holds these texts, and leaves every byte of the optimizer as it was."""
    before = fingerprint(optimizer)
    for _ in range(2):  # what was refused once must not be trusted the next time
        with pytest.raises(error) as caught:
            action()
        for text in texts:
            assert text in str(caught.value)
        assert fingerprint(optimizer) == before
    return caught.value


def unit(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def close(mine: Tensor, theirs: Tensor, what: str, *, relative: float, units: float = 0.0, of: Iterable[Tensor] = ()) -> None:
    """Each element within so many units of its own magnitude, and so many of the largest of what it was computed from."""
    assert mine.dtype == theirs.dtype, what
    assert mine.shape == theirs.shape, what
    if not mine.numel():
        return
    a, b = (torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in (mine, theirs))
    largest = sum(float(t.detach().abs().max()) for t in of)
    allowed = unit(a.dtype) * (units * largest + relative * b.abs())
    error = (a - b).abs()
    if not bool((error <= allowed).all()):
        worst = int((error / allowed).argmax())
        times = float((error / allowed).max())
        raise AssertionError(f"{what}: {a.reshape(-1)[worst]} is not {b.reshape(-1)[worst]}, which is {times:.3g} times too far")
