"""Parameters that are spread over processes: their local parts, and what all who take a step together must agree on.

A DTensor (FSDP2, tensor parallelism) tells by its mesh and placements who holds the rest of it. A step over such parameters
exchanges a few numbers with every other process of the mesh: the local norms, the worst of them, the largest sum of squares, and
flags such as whether something was refused; all processes then take the same decision. With ``sharded=True`` (ZeRO) the same goes for
plain tensors and the default group. A parameter that `FullyShardedDataParallel` (FSDP1) has flattened is a plain tensor with a mark; the
group that holds its other parts is known to the handle that flattened it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ParameterError

__all__ = ["Shards", "is_distributed", "is_flattened", "local_part", "with_layout_of"]


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

    def __init__(self, parameters: Sequence[Any], *, plain_too: bool = False, names: Sequence[str] = ()) -> None:
        # Rows that are spread over the same dimensions of the same mesh have one norm; None stands for plain tensors.
        self.sets: dict[Any, list[int]] = {}
        self._meshes: list[Any] = []
        self._flattened: list[Any] = []  # groups of FSDP1
        self.of_plain_tensors = plain_too
        handles = _handles() if any(map(is_flattened, parameters)) else {}
        for i, parameter in enumerate(parameters):
            key = None
            if is_flattened(parameter):
                key = _group_of(names[i] if names else str(i), parameter, handles)
                if key is not None and key not in self._flattened:
                    self._flattened.append(key)
            if is_distributed(parameter):
                mesh = parameter.device_mesh
                spread = tuple(d for d, placement in enumerate(parameter.placements) if not placement.is_replicate())
                key = (mesh, spread)
                if mesh not in self._meshes:
                    self._meshes.append(mesh)
            self.sets.setdefault(key, []).append(i)
        if plain_too:
            self.sets.setdefault(None, [])

    def __bool__(self) -> bool:
        return bool(self._meshes or self._flattened) or (self.of_plain_tensors and torch.distributed.is_initialized())

    def _groups(self) -> Iterable[tuple[Any, str, Any]]:
        """Every group to speak with: itself, its device, and which sets are spread over it."""
        if self.of_plain_tensors and torch.distributed.is_initialized():
            group = torch.distributed.group.WORLD
            yield group, _device_of(group), [key for key in self.sets if key is None]
        for group in self._flattened:
            yield group, _device_of(group), [group]
        for mesh in self._meshes:
            for d in range(mesh.ndim):
                if mesh.size(d) > 1:
                    yield mesh.get_group(d), mesh.device_type, [key for key in self.sets if isinstance(key, tuple) and key[0] == mesh and d in key[1]]

    def exchange(self, norms: dict[Any, float], largest: float, flags: Sequence[bool]) -> tuple[float, float, list[bool]]:
        """The norm over all processes, the largest sum of squares, and each flag that is set anywhere.

        Args:
            norms: Of the rows of each set, here.
            largest: The largest sum of squares here.
            flags: Whether this process refuses the step, is told by a scaler to skip it, has states to come, has states.
        """
        keys = list(self.sets)
        # A process may hold a copy that differs: what is not finite there must be known to those whose copies are finite, too.
        worst = _larger(norms.values())
        for group, device, spread in self._groups():
            mine = torch.tensor([*(norms[key] for key in keys), worst, largest, *flags], dtype=torch.float64, device=device)
            theirs = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
            torch.distributed.all_gather(theirs, mine, group=group)
            rows = torch.stack(theirs).tolist()  # in the order of ranks, so that all compute the same
            columns = list(zip(*rows, strict=True))
            for key, column in zip(keys, columns, strict=False):
                norms[key] = math.hypot(*column) if key in spread else norms[key]
            worst, largest = (_larger(column) for column in columns[len(keys) : len(keys) + 2])
            flags = [any(column) for column in columns[len(keys) + 2 :]]
        norm = math.hypot(*norms.values())
        return norm if math.isfinite(worst) else worst, largest, list(flags)

    def refuse(self) -> None:
        """Take part in the exchange of a step that this process will not take."""
        self.exchange(dict.fromkeys(self.sets, 0.0), 0.0, (True, False, False, False))

    def first_error(self, error: Exception | None) -> Exception | None:
        """The error of the first process that has one."""
        groups = [group for group, _, _ in self._groups()]
        for _ in range(1 if len(self._meshes) + len(self._flattened) + self.of_plain_tensors <= 1 else len(groups)):
            for group in groups:
                errors: list[Exception | None] = [None] * torch.distributed.get_world_size(group)
                torch.distributed.all_gather_object(errors, error, group=group)
                error = next((each for each in errors if each is not None), None)
        return error


def _device_of(group: Any) -> str:
    """Where what a group exchanges must lie."""
    return "cuda" if torch.distributed.get_backend(group) == "nccl" else "cpu"


def is_flattened(parameter: Any) -> bool:
    """Whether FSDP1 has made a parameter a part of a flat one, or it is such a flat one itself."""
    return getattr(parameter, "_fsdp_flattened", False) is True


def _handles() -> dict[int, Any]:
    """The handles of all parameters that FSDP1 has flattened, by the parameters' ids. Parameters do not know them, so they are looked for."""
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    found: dict[int, Any] = {}
    for handle in (each for each in gc.get_objects() if type(each) is FlatParamHandle):
        flat = getattr(handle, "flat_param", None)
        if flat is not None:
            found |= {id(p): handle for p in (flat, *(flat._params or ()))}
    return found


def _group_of(name: str, parameter: Any, handles: dict[int, Any]) -> Any:
    """The group whose processes hold the parts of a flattened parameter; None where each holds it whole."""
    handle = handles.get(id(parameter))
    if handle is None:
        raise ParameterError(
            f"parameter {name!r} belongs to a FullyShardedDataParallel model that is not to be found here; "
            "make the optimizer from model.parameters() of the wrapped model"
        )
    return handle.process_group if handle.uses_sharded_strategy else None


def _larger(numbers: Iterable[float]) -> float:
    """The largest; NaN if there is one."""
    return max(numbers, key=lambda x: (x != x, x), default=0.0)
