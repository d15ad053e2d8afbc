"""Parameters that are spread over processes: their local parts, and what all who take a step together must agree on.

A DTensor (FSDP2, tensor parallelism) tells by its mesh and placements who holds the rest of it. A step over such parameters
exchanges three numbers with every other process of the mesh: the local norm, the largest sum of squares, and whether something
was refused; all processes then take the same decision. With ``sharded=True`` (ZeRO) the same goes for plain tensors and the default group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Shards", "is_distributed", "local_part", "with_layout_of"]


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def local_part(tensor: Any, like: Any = None) -> Tensor:
    """The part of a tensor that lies in this process, spread as ``like`` is; the tensor itself where it is not a DTensor."""
    if is_distributed(tensor):
        if like is not None and tuple(tensor.placements) != tuple(like.placements):
            tensor = tensor.redistribute(placements=like.placements)
        tensor = tensor.to_local()
    wait = getattr(tensor, "wait", None)  # of what a collective has not finished yet
    return (wait() if wait is not None else tensor).detach()  # type: ignore[no-any-return]


def with_layout_of(parameter: Any, local: Tensor) -> Tensor:
    """A local part as a tensor spread like the parameter."""
    if not is_distributed(parameter):
        return local
    from torch.distributed.tensor import DTensor

    made = DTensor.from_local(local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride())
    assert isinstance(made, Tensor)
    return made


class Shards:
    """Who holds the rest of which rows, and the exchange with them."""

    def __init__(self, parameters: Sequence[Any], *, plain_too: bool = False) -> None:
        # Rows that are spread over the same dimensions of the same mesh have one norm; None stands for plain tensors.
        self.sets: dict[Any, list[int]] = {}
        self._meshes: list[Any] = []
        self.of_plain_tensors = plain_too
        for i, parameter in enumerate(parameters):
            key = None
            if is_distributed(parameter):
                mesh = parameter.device_mesh
                spread = tuple(d for d, placement in enumerate(parameter.placements) if not placement.is_replicate())
                key = (mesh, spread)
                if all(mesh is not other and mesh != other for other in self._meshes):
                    self._meshes.append(mesh)
            self.sets.setdefault(key, []).append(i)
        if plain_too:
            self.sets.setdefault(None, [])

    def __bool__(self) -> bool:
        return bool(self._meshes) or (self.of_plain_tensors and torch.distributed.is_initialized())

    def _groups(self) -> Iterable[tuple[Any, str, Any]]:
        """Every group to speak with: itself, its device, and which sets are spread over it."""
        if self.of_plain_tensors and torch.distributed.is_initialized():
            group = torch.distributed.group.WORLD
            yield group, "cuda" if torch.distributed.get_backend(group) == "nccl" else "cpu", [key for key in self.sets if key is None]
        for mesh in self._meshes:
            for d in range(mesh.ndim):
                if mesh.size(d) > 1:
                    yield mesh.get_group(d), mesh.device_type, [key for key in self.sets if key is not None and key[0] == mesh and d in key[1]]

    def exchange(self, norms: dict[Any, float], largest: float, failed: bool) -> tuple[float, float, bool]:
        """The norm over all processes, the largest sum of squares, and whether anything failed anywhere."""
        keys = list(self.sets)
        for group, device, spread in self._groups():
            mine = torch.tensor([*(norms[key] for key in keys), largest, float(failed)], dtype=torch.float64, device=device)
            theirs = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
            torch.distributed.all_gather(theirs, mine, group=group)
            rows = torch.stack(theirs).tolist()  # in the order of ranks, so that all compute the same
            for k, key in enumerate(keys):
                norms[key] = math.hypot(*(row[k] for row in rows)) if key in spread else norms[key]
            largest = max((row[-2] for row in rows), key=lambda x: (x != x, x))
            failed = any(row[-1] for row in rows)
        return math.hypot(*(norms[key] for key in keys)), largest, failed

    def first_error(self, error: Exception | None) -> Exception | None:
        """The error of the first process that has one."""
        groups = [group for group, _, _ in self._groups()]
        for _ in range(1 if len(self._meshes) + self.of_plain_tensors <= 1 else len(groups)):
            for group in groups:
                errors: list[Exception | None] = [None] * torch.distributed.get_world_size(group)
                torch.distributed.all_gather_object(errors, error, group=group)
                error = next((each for each in errors if each is not None), None)
        return error
