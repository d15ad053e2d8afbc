"""Checkpoint files: written whole or not at all, and read only if every byte that matters is as it was written.

A checkpoint is one safetensors file that any tool of that format can read; nothing in it is ever run. Its tensors are named
``parameters/NAME`` and ``state/NAME/STATE``, with names percent-encoded as in a URL. Everything that is not a tensor is one JSON
text in the file's metadata, under the key ``openadam``, after its own checksum:

    <SHA-256 of the rest, in hexadecimal>
    {"magic": "openadam checkpoint", "format": 1, "optimizer": {"rule": "adam", "steps": 7, "groups": […], …},
     "parameters": {NAME: {"sha256": …}, …}, "state": {NAME: {"step": 7, "exp_avg": {"sha256": …}, …}, …}}

The checksum of a tensor covers its dtype and shape too. Checksums find damage; they are no signatures. The same contents always give
the same bytes.

`save` streams: beside the arrays that it is given it holds one tensor at most. `load` holds the file and its tensors, twice the
data, and returns arrays of their own memory, so the file may be replaced while they are in use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from .errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointVersionError

__all__ = ["FORMAT", "inspect", "load", "save"]

Array = npt.NDArray[Any]

FORMAT = 1
MAGIC = "openadam checkpoint"
METADATA_KEY = "openadam"
HEADER_LIMIT = 100_000_000  # bytes; the safetensors library reads no longer ones
MAX_DIMENSIONS = 64  # of an array
LENGTH_BYTES = 8  # in front of the header: its length, little-endian
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write",
    b"\x80": "a pickle, which could run code",
    b"\x93NUMPY": "a .npy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
}


# --- saving ------------------------------------------------------------------------------------------------------------


def save(path: Any, state: Mapping[str, Any], parameters: Mapping[str, Array]) -> None:
    """Write a state dict and parameters to one file, atomically.

    The new file is complete and on disk before it takes the place of an old one; a link is followed, and the file that it points
    to is replaced. A new file's permissions follow the umask; one that replaces another never has more than that had. If two
    processes save to one path, the one that completes last wins. What a killed process left half-written beside the file
    (``.openadam-….tmp``) is removed by the next save to the same path.

    Raises:
        OSError: The file cannot be written, or the path is no regular file (IsADirectoryError, FileExistsError; FileNotFoundError for
            a link to nothing). An existing file is untouched.
        CheckpointCorruptError: The state holds a number that is not finite.
        ImportError: The safetensors library is missing.
    """
    library = _library()
    target, mode = _target(path)
    header, tensors = _lay_out(state, parameters)
    if len(header) > HEADER_LIMIT:
        raise OSError(errno.EFBIG, f"{len(tensors)} tensors and their names are more than a safetensors file can describe", target)
    _remove_abandoned(target)
    temporary, file = _create_beside(target, mode)
    try:
        with file:
            file.write(header)
            for tensor in tensors:
                file.write(_flat(tensor))
            file.flush()
            os.fsync(file.fileno())
            _check_readable(library, temporary, target)
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there; elsewhere it stays locked until it has been
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = target
        raise
    _sync_directory(target)


def _lay_out(state: Mapping[str, Any], parameters: Mapping[str, Array]) -> tuple[bytes, list[Array]]:
    """The header of the file with its length in front, and the tensors in the order in which they follow it."""
    tensors: dict[str, Array] = {}

    def recorded(key: str, tensor: Array) -> dict[str, str]:
        if tensor.dtype not in CODES:
            raise TypeError(f"{key} is {tensor.dtype.str} ({tensor.dtype}); a checkpoint holds float32 and float64 in little-endian order")
        tensors[key] = tensor
        return {"sha256": _checksum(CODES[tensor.dtype], tensor.shape, _flat(tensor))}

    content = {
        "magic": MAGIC,
        "format": FORMAT,
        "optimizer": {key: value for key, value in state.items() if key != "state"},
        "parameters": {name: recorded(_key("parameters", name), tensor) for name, tensor in parameters.items()},
        "state": {
            name: {key: recorded(_key("state", name, key), value) if isinstance(value, np.ndarray) else value for key, value in own.items()}
            for name, own in state["state"].items()
        },
    }
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError as error:
        raise CheckpointCorruptError("the state holds a number that is not finite; a checkpoint would not give it back") from error
    # Ordered as the library does, the widest dtype first, so that every tensor is aligned.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"}}
    end = 0
    for key, tensor in ordered.items():
        begin, end = end, end + tensor.nbytes
        header[key] = {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded, list(ordered.values())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a checkpoint cannot hold {value!r:.80} ({type(value).__name__})")


def _key(*parts: str) -> str:
    """The name of a tensor in the file: printable ASCII, different for different parts, whatever these contain."""
    return "/".join(urllib.parse.quote(part, safe="", errors="surrogatepass") for part in parts)


def _flat(tensor: Array) -> memoryview:
    return np.ascontiguousarray(tensor).reshape(-1).data


def _checksum(code: str, shape: Any, data: Any) -> str:
    checksum = hashlib.sha256(f"{code} {list(shape)}\n".encode())
    checksum.update(data)
    return checksum.hexdigest()


def _target(path: Any) -> tuple[str, int]:
    """The regular file to write, which need not exist, and its permissions before the umask."""
    target = os.fsdecode(path)
    if os.path.islink(target):
        target = os.path.realpath(target, strict=True)
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return target, 0o666
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory, not a file to save to", target)
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "not a regular file, so it is not replaced", target)
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, "an existing file that may not be written", target)
    return target, stat.S_IMODE(found.st_mode) & 0o666


def _temporary_prefix(name: str) -> str:
    # A digest, because the name itself may be as long as a name can be.
    return f".openadam-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}-"


def _create_beside(target: str, mode: int) -> tuple[str, BinaryIO]:
    """A new locked file in the target's directory. The lock says that its writer lives; it dies with the process."""
    directory, name = os.path.split(target)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    while True:
        temporary = os.path.join(directory, f"{_temporary_prefix(name)}{os.getpid()}-{os.urandom(8).hex()}.tmp")
        try:
            descriptor = os.open(temporary, flags, mode)
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from None
        _lock(descriptor, wait=True)
        if os.path.lexists(temporary):
            return temporary, os.fdopen(descriptor, "wb")
        os.close(descriptor)  # another process took it for abandoned before it was locked


def _remove_abandoned(target: str) -> None:
    """Remove the temporary files of saves to this target whose processes are gone."""
    directory, name = os.path.split(target)
    with contextlib.suppress(OSError), os.scandir(directory or ".") as entries:
        for entry in entries:
            if entry.name.startswith(_temporary_prefix(name)) and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    descriptor = os.open(entry.path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
                    try:
                        if _lock(descriptor, wait=False):
                            os.unlink(entry.path)
                    finally:
                        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the file is now locked; where files cannot be locked, none is ever taken for abandoned."""
    if sys.platform == "win32":
        return True  # an open file cannot be removed there
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _check_readable(library: ModuleType, temporary: str, target: str) -> None:
    """Nothing takes its place before the library has read its layout back."""
    try:
        with library.safe_open(temporary, framework="numpy"):
            pass
    except library.SafetensorError as error:
        raise OSError(errno.EIO, f"what was written cannot be read back ({error})", target) from error


def _sync_directory(target: str) -> None:
    """Put the new name on disk too. Some file systems cannot; the file itself is complete."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.dirname(target) or ".", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


# --- loading -----------------------------------------------------------------------------------------------------------


def load(path: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """The state dict and the parameters of a file that `save` wrote, every checksum verified.

    Raises:
        CheckpointCorruptError: The file is damaged, or is of another kind.
        CheckpointMismatchError: It is a safetensors file, but no openadam checkpoint.
        CheckpointVersionError: It was written by a newer, incompatible version.
        OSError: It cannot be read.
        ImportError: The safetensors library is missing.
    """
    library = _library()
    with _open_regular(path) as (shown, file, size):
        read = _read_header(shown, file, size)
        tensors = _read_tensors(library, shown, file, size, read)
    state = {
        name: {key: tensors[_key("state", name, key)] if isinstance(value, dict) else value for key, value in own.items()}
        for name, own in read.content["state"].items()
    }
    parameters = {name: tensors[_key("parameters", name)] for name in read.content["parameters"]}
    return {**read.content["optimizer"], "state": state}, parameters


def inspect(path: Any, *, verify: bool = False) -> dict[str, Any]:
    """What a checkpoint holds, as plain data that JSON can hold.

    Args:
        path: The file.
        verify: Also read the tensors and verify their checksums; else only the header is read, and its own checksum verified.

    Raises: as `load`.

    >>> import numpy as np, openadam, os, tempfile
    >>> opt = openadam.SGD({"w": np.zeros((2, 3))}, lr=0.5)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     opt.save(os.path.join(directory, "run.safetensors"))
    ...     seen = inspect(os.path.join(directory, "run.safetensors"))
    >>> seen["rule"], seen["steps"], seen["tensors"]
    ('sgd', 0, [{'name': 'parameters/w', 'dtype': 'float64', 'shape': [2, 3], 'bytes': 48}])
    """
    with _open_regular(path) as (shown, file, size):
        read = _read_header(shown, file, size)
        if verify:
            _read_tensors(_library(), shown, file, size, read)
    return {
        **dict.fromkeys(("rule", "coupling", "steps", "skipped", "groups")),
        **read.content["optimizer"],
        "format": read.content["format"],
        "bytes": size,
        "verified": verify,
        "tensors": [
            {"name": key, "dtype": DTYPES[code].name, "shape": list(shape), "bytes": math.prod(shape) * DTYPES[code].itemsize}
            for key, (code, shape) in read.tensors.items()
        ],
    }


class _Header(NamedTuple):
    content: dict[str, Any]
    checksums: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def _library() -> ModuleType:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("checkpoint files need the safetensors library: pip install 'openadam[files]'") from error
    return safetensors


def _corrupt(shown: str, what: str) -> NoReturn:
    raise CheckpointCorruptError(f"{shown} {what}; nothing was loaded") from None


@contextlib.contextmanager
def _open_regular(path: Any) -> Iterator[tuple[str, BinaryIO, int]]:
    """The path as messages show it, the open file, and its size; never waits, as opening a pipe would."""
    name = os.fsdecode(path)
    with open(name, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            _corrupt(repr(name), "is not an openadam checkpoint: it is not a regular file")
        yield repr(name), file, found.st_size


def _read_header(shown: str, file: BinaryIO, size: int) -> _Header:
    """Everything but the tensors' contents, checked in itself and against the size of the file."""
    start = file.read(LENGTH_BYTES + 1)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if size == 0:
        _corrupt(shown, "is not an openadam checkpoint: it is empty")
    if not 2 <= length <= min(size - LENGTH_BYTES, HEADER_LIMIT) or start[LENGTH_BYTES:] != b"{":
        kind = next((kind for magic, kind in OTHER_FILES.items() if start.startswith(magic)), "")
        _corrupt(
            shown, f"is not an openadam checkpoint: it looks like {kind}" if kind else "is not an openadam checkpoint, or its beginning is damaged"
        )
    try:
        header = json.loads(start[LENGTH_BYTES:] + file.read(length - 1), parse_float=_finite, parse_constant=_finite)
        entries = {key: value for key, value in header.items() if key != "__metadata__"}
        metadata = header.get("__metadata__", {})
        text = metadata.get(METADATA_KEY)
    except (ValueError, RecursionError, AttributeError):
        _corrupt(shown, "has a header that is no JSON text of the kind that safetensors files have")
    if not isinstance(text, str):
        raise CheckpointMismatchError(f"{shown} is a safetensors file, but not an openadam checkpoint; nothing was loaded")
    content = _read_content(shown, text)
    try:
        checksums = {_key("parameters", name): record["sha256"] for name, record in content["parameters"].items()}
        for name, own in content["state"].items():
            checksums |= {_key("state", name, key): record["sha256"] for key, record in own.items() if isinstance(record, dict)}
        tensors = {key: _read_entry(entry) for key, entry in entries.items()}
        _check_description(content["optimizer"])
    except (KeyError, TypeError, ValueError, AttributeError):
        _corrupt(shown, "is not laid out as a checkpoint")
    unmatched = sorted(set(checksums) ^ set(tensors))
    if unmatched:
        _corrupt(
            shown, f"is not laid out as a checkpoint: {unmatched[0]!r:.80} is {'no' if unmatched[0] in checksums else 'an unexpected'} tensor of it"
        )
    expected = LENGTH_BYTES + length + sum(math.prod(shape) * DTYPES[code].itemsize for code, shape in tensors.values())
    if size != expected:
        _corrupt(shown, f"has {size} bytes where {expected} belong: {'it was cut off' if size < expected else 'something was added'}")
    return _Header(content, checksums, tensors)


def _read_content(shown: str, text: str) -> dict[str, Any]:
    """The JSON text of a checkpoint, verified, and of a format that this version reads."""
    checksum, _, body = text.partition("\n")
    if hashlib.sha256(body.encode(errors="surrogatepass")).hexdigest() != checksum:
        _corrupt(shown, "is damaged: the checksum of its description is wrong")
    try:
        content = json.loads(body, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        _corrupt(shown, "has a description that is no JSON text")
    if not isinstance(content, dict) or content.get("magic") != MAGIC:
        raise CheckpointMismatchError(f"{shown} is a safetensors file, but not an openadam checkpoint; nothing was loaded")
    version = content.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        _corrupt(shown, f"has the format {version!r:.80}, which is no version number")
    if version > FORMAT:
        raise CheckpointVersionError(f"{shown} has format {version}; this version of openadam reads up to {FORMAT}: upgrade openadam")
    return content


def _check_description(optimizer: dict[str, Any]) -> None:
    """Whether what is shown of a checkpoint is of the kinds that are written; whether it fits an optimizer is asked where one takes it over."""
    groups = optimizer.get("groups", [])
    lists = [group["params"] for group in groups] if isinstance(groups, list) else None
    texts = [optimizer.get("rule", ""), optimizer.get("coupling", ""), *(name for names in lists or () for name in names)]
    counts = [optimizer.get("steps", 0), optimizer.get("skipped", 0)]
    if not all(isinstance(each, list) for each in [lists, *(lists or ())]) or not all(isinstance(each, str) for each in texts):
        raise ValueError
    if any(isinstance(each, bool) or not isinstance(each, int) for each in counts):
        raise ValueError


def _read_entry(entry: Any) -> tuple[str, tuple[int, ...]]:
    code, shape = entry["dtype"], tuple(entry["shape"])
    if code not in DTYPES or len(shape) > MAX_DIMENSIONS or any(type(length) is not int or not 0 <= length < 2**63 for length in shape):
        raise ValueError
    return code, shape


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _read_tensors(library: ModuleType, shown: str, file: BinaryIO, size: int, read: _Header) -> dict[str, Array]:
    """The tensors, verified, each in memory of its own."""
    file.seek(0)
    data = file.read(size)
    try:
        found = dict(library.deserialize(data))
    except library.SafetensorError as error:
        _corrupt(shown, f"is damaged: {error}")
    del data
    if set(found) != set(read.checksums):
        _corrupt(shown, "is damaged: its header changed while it was read")
    tensors: dict[str, Array] = {}
    for key, checksum in read.checksums.items():
        tensor = found.pop(key)
        code, shape, memory = tensor["dtype"], tensor["shape"], tensor["data"]
        if _checksum(code, shape, memory) != checksum:
            _corrupt(shown, f"is damaged: the checksum of the tensor {key!r} is wrong")
        try:
            tensors[key] = np.ndarray(shape, DTYPES[code], memory).copy()
        except (KeyError, ValueError, OverflowError):
            _corrupt(shown, f"has a tensor {key!r} of dtype {code} and shape {shape}, which no array can have")
    return tensors
