"""torch tensors as memory: complex numbers as pairs of reals, arrays over them, and which of them share a place."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import AliasError

__all__ = ["Written", "as_array", "dtype_name", "real"]


def real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of reals, sharing memory where that is possible."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as an array, sharing memory where that is possible; 16-bit numbers widened."""
    tensor = real(tensor.detach()).resolve_neg()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.cpu().numpy()


def dtype_name(dtype: torch.dtype) -> str:
    """As NumPy writes it: ``float32``."""
    return str(dtype).removeprefix("torch.")


class Written:
    """Memory that torch operations write, by row; a step over the native rows knows its own."""

    def __init__(self) -> None:
        self._places: list[tuple[str, int, int, int, Tensor]] = []  # device, first byte, the one after the last, row, tensor; sorted
        self._longest = 0

    def add(self, row: int, names: list[str], tensor: Tensor) -> None:
        """Add a tensor of a row.

        Raises:
            AliasError: It overlaps itself, or memory of another row.
        """
        if tensor.device.type == "meta" or not tensor.numel():
            return
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            shape = f"shape {tuple(tensor.shape)} and strides {tensor.stride()}"
            raise AliasError(f"parameter {names[row]!r} of {shape} overlaps itself: elements share memory; copy it first")
        for other in self.rows_at(tensor):
            if other != row:
                raise AliasError(f"parameters {names[other]!r} and {names[row]!r} share memory; each step would move it twice")
        device, low, high = _extent(tensor)
        self._longest = max(self._longest, high - low)
        bisect.insort(self._places, (device, low, high, row, tensor), key=lambda place: place[:2])

    def rows_at(self, tensor: Tensor) -> Iterator[int]:
        """The rows that share memory with a tensor."""
        device, low, high = _extent(tensor)
        at = bisect.bisect_left(self._places, (device, high), key=lambda place: place[:2])
        while at > 0 and self._places[at - 1][0] == device and self._places[at - 1][1] > low - self._longest:
            at -= 1
            _, _, end, row, other = self._places[at]
            if end > low and _share(tensor, other):
                yield row


def _extent(tensor: Tensor) -> tuple[str, int, int]:
    """The device of a tensor, its first byte there and the one after its last."""
    low = tensor.data_ptr()
    if not tensor.numel():
        return str(tensor.device), low, low
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), low, low + (reach + 1) * tensor.element_size()


def _share(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors whose extents overlap share an element; where that cannot be told, they are taken to."""
    if a.device.type != "cpu":
        return True
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    first, second = (x.detach().view(integers[x.element_size()]).numpy() for x in (a, b))
    return np.shares_memory(first, second)
