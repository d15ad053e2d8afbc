"""torch tensors as memory: which are nothing but memory, complex numbers as pairs of reals, new states, who shares a place."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import engine as engines
from ..memory import Piece, first_shared

__all__ = [
    "FRAMEWORK",
    "arithmetic_of",
    "array_over",
    "as_array",
    "can_be_filled",
    "dtype_name",
    "has_numbers",
    "is_memory",
    "make_state",
    "piece",
    "real",
    "scalar_dtype",
]

LARGE = 2**21  # bytes; from here on huge pages pay
_exchange: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
_no_dispatch = torch.Tensor.__torch_dispatch__


def is_memory(tensor: Any) -> bool:
    """Whether a tensor is nothing but numbers in memory: no subclass that answers operations itself (DTensor, FakeTensor, nested ones)."""
    return type(tensor).__torch_dispatch__ is _no_dispatch and tensor.layout is torch.strided


def has_numbers(tensor: Any) -> bool:
    """Whether a tensor has values at all; on the meta device and under `FakeTensorMode` there are none."""
    return tensor.device.type != "meta" and not any(kind.__name__ == "FakeTensor" for kind in type(tensor).__mro__)


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    """What a step computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


@contextlib.contextmanager
def operations() -> Iterator[None]:
    """For a step's own torch operations: no gradients, and numbers on the CPU whatever default device is active."""
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.no_grad(), torch.device("cpu") if elsewhere else contextlib.nullcontext():
        yield


def real(tensor: Tensor) -> Tensor:
    """A tensor's numbers as reals, complex ones as pairs, sharing its memory where that is possible."""
    return torch.view_as_real(tensor.resolve_conj()).resolve_neg() if tensor.is_complex() else tensor.resolve_neg()


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A copy of a tensor as an array; 16-bit numbers widened, complex ones as pairs."""
    tensor = real(tensor.detach())
    wide = torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype
    return tensor.to("cpu", wide, copy=True).numpy()


def array_over(tensor: Tensor) -> npt.NDArray[Any]:
    """The memory of a contiguous tensor as an array, while the tensor lives.

    ``tensor.numpy()`` would forbid for ever that its storage be resized.
    """
    dtype = np.dtype(dtype_name(tensor.dtype))
    if not tensor.numel():
        return np.zeros(tuple(tensor.shape), dtype)
    memory: Any = (ctypes.c_char * (tensor.numel() * dtype.itemsize)).from_address(tensor.data_ptr())
    array: npt.NDArray[Any] = np.frombuffer(memory, dtype)
    return array.reshape(tuple(tensor.shape))


def lies_within(tensor: Tensor) -> bool:
    """Whether all elements lie in the tensor's storage, which may have been made smaller under it."""
    if not is_memory(tensor) or not has_numbers(tensor) or not tensor.numel():
        return True
    reach = tensor.storage_offset() + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def can_be_filled(tensor: Tensor) -> bool:
    """Whether every element of a tensor can be overwritten: it is no inference tensor, lies in its storage, and no two share a place."""
    if tensor.is_inference() or tensor.layout is not torch.strided or not lies_within(tensor):
        return False
    return not is_memory(tensor) or first_shared([piece(tensor)[1]]) is None


def dtype_name(dtype: torch.dtype) -> str:
    """As NumPy writes it: ``float32``."""
    return str(dtype).removeprefix("torch.")


def piece(tensor: Tensor) -> tuple[str, Piece]:
    """Where a tensor lies: its device, and the memory there."""
    size = tensor.element_size()
    return str(tensor.device), Piece(tensor.data_ptr(), size, tuple(tensor.shape), tuple(size * stride for stride in tensor.stride()))


def scalar_dtype() -> torch.dtype:
    """Of the counters, as torch chooses it."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def make_state(like: Tensor, dtype: torch.dtype, first: float) -> Tensor:
    """A new state beside a tensor: its shape, its order of elements, its device; a piece of memory of its own."""
    if not is_memory(like):
        return torch.full_like(like, first, dtype=dtype, requires_grad=False)
    made = torch.empty_like(like, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)
    size = made.numel() * made.element_size()
    native = engines.native()
    if native is not None and made.device.type == "cpu" and size >= LARGE:
        native.advise_huge_pages(made.data_ptr(), size)  # before anybody has touched it
    if made.device.type == "cpu" and first == 0 and size:
        ctypes.memset(made.data_ptr(), 0, size)  # torch's own way wakes threads, which after a fork are no more
    else:
        real(made).fill_(first)
    return made


def _anatomy() -> list[int]:
    """How a tensor object lies in memory, for the native reader.

    Where the object keeps its description; where in that the mark of showing other numbers than the memory holds, and the mark; where the
    storage; and where in that the address of the memory, its size, and the mark of being copied once somebody writes, and that mark; and where the
    counter of versions has its number, or 0. Offsets in bytes, found by looking for what tensors say of themselves, and by comparing tensors that
    differ in nothing else; empty where that does not lead to one place each, and then every tensor is asked by its methods.
    """
    try:
        usable = ctypes.CDLL(None).malloc_usable_size
    except (AttributeError, OSError):
        return []
    usable.restype, usable.argtypes = ctypes.c_size_t, [ctypes.c_void_p]

    def words(address: int, size: int | None = None) -> npt.NDArray[np.uint64]:
        size = min(usable(address), 512) if size is None else size
        return np.frombuffer(ctypes.string_at(address, size // 8 * 8), np.uint64)

    def places(where: npt.NDArray[np.uint64], value: int) -> set[int]:
        return set(np.flatnonzero(where == value).tolist())

    descriptions, marks, storages, memories, sizes = [], [], [], [], []
    numbers = np.zeros(7, np.float32)
    for size in (3, 5):  # twice, since what is so by chance is otherwise each time
        x, z = torch.zeros(size, device="cpu", dtype=torch.float32), torch.zeros(size, device="cpu", dtype=torch.complex64)
        pairs = ((x.view(-1), torch._neg_view(x)), (z.view(-1), z.conj()))
        for plain, lazy in pairs:
            before, after = words(plain._cdata), words(lazy._cdata)
            known = min(before.size, after.size)
            added = {k: int(before[k] ^ after[k]) for k in np.flatnonzero(before[:known] != after[:known]).tolist()}
            marks.append({k: bit for k, bit in added.items() if bit.bit_count() == 1 and not int(before[k]) & bit})
        for tensor in (*pairs[0], *pairs[1], torch.from_numpy(numbers)):  # the last one's memory belongs to somebody else
            storage = tensor.untyped_storage()
            descriptions.append(places(words(id(tensor), object.__sizeof__(tensor)), tensor._cdata))
            storages.append(places(words(tensor._cdata), storage._cdata))
            memories.append(places(words(storage._cdata), storage.data_ptr()))
            sizes.append(places(words(storage._cdata), storage.nbytes()))
    own, lazily = torch.zeros(4, device="cpu"), [x, torch._lazy_clone(x), z, torch._lazy_clone(z)]
    lazy_words = [words(tensor.untyped_storage()._cdata) for tensor in lazily]
    plain_words = words(own.untyped_storage()._cdata)
    known = min(map(len, (*lazy_words, plain_words)))
    shared = [k for k in range(known) if len({int(each[k]) for each in lazy_words}) == 1 and int(lazy_words[0][k]) != int(plain_words[k])]
    found = [set.intersection(*each) for each in (descriptions, map(set, marks), storages, memories, sizes)]
    if any(len(each) != 1 for each in found) or not shared:
        return []
    (description,), (mark,), (storage_at,), (memory,), (length,) = found
    return [
        8 * description,
        8 * mark,
        marks[0][mark] | marks[1][mark],
        8 * storage_at,
        8 * memory,
        8 * length,
        8 * shared[0],
        int(lazy_words[0][shared[0]].view(np.int64)),
        _version_at(words, storage_at),
    ]


def _version_at(words: Any, storage_at: int) -> int:
    """Where in the counter that stands behind the storage the number is by which a tensor's version is told."""
    tensor = torch.zeros(3, device="cpu")
    counter = int(words(tensor._cdata)[storage_at + 3])
    found = None
    for _ in range(3):
        tensor.add_(1)
        numbers = np.frombuffer(ctypes.string_at(counter, 24), np.uint32)
        here = set(np.flatnonzero(numbers == tensor._version).tolist())
        found = here if found is None else found & here
    return 4 * found.pop() if found is not None and len(found) == 1 else 0


def _framework() -> Any:
    native = engines.native()
    if native is None or _exchange is None:
        return None
    try:
        return native.Framework(_exchange, [torch.Tensor, torch.nn.Parameter], _anatomy())
    except ValueError:  # it speaks another version
        return None


FRAMEWORK = _framework()
"""The native reader of torch's tensors; None without native code, or where torch cannot be read."""

_known: list[type] = [torch.Tensor, torch.nn.Parameter]


def know_type(kind: type) -> None:
    """Let the native reader take tensors of a type for plain memory, too. Only a few: it looks through them for every tensor."""
    if kind not in _known and len(_known) < 8:
        _known.append(kind)
        FRAMEWORK.add_type(kind)
