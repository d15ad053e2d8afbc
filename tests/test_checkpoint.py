"""Checkpoints: what is saved comes back in every bit, in any process; what is not as it was saved is refused and changes nothing.

Labels such as S5 or F7 are the case numbers of docs/faults.md.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from family import DTYPES, PLAIN, Variant, same

import openadam
from openadam import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, CheckpointVersionError, checkpoint

Array = np.ndarray[Any, Any]


# --- subjects ----------------------------------------------------------------------------------------------------------


def arrays(dtype: Any, fill: float | None = None) -> dict[str, Array]:
    """Parameters of every layout: plain, 0-d, empty, transposed, with gaps, reversed."""
    random = np.random.default_rng(5)
    result = {
        "plain": random.standard_normal((2, 3)).astype(dtype),
        "scalar": np.array(0.5, dtype),
        "empty": np.zeros((3, 0, 5), dtype),
        "transposed": random.standard_normal((3, 4)).astype(dtype).T,
        "gaps": random.standard_normal((4, 6)).astype(dtype)[::2, 1::3],
        "reversed": random.standard_normal(7).astype(dtype)[::-1],
    }
    if fill is not None:
        for array in result.values():
            array[...] = fill
    return result


def take_steps(optimizer: openadam.Optimizer, count: int) -> None:
    """Steps whose gradients depend on nothing but the number of the step."""
    for _ in range(count):
        random = np.random.default_rng([7, optimizer.steps])
        grads = {name: random.standard_normal(p.shape).astype(p.dtype) for name, p in optimizer.params.items()}
        optimizer.step([{name: grads[name] for name in group["params"]} for group in optimizer.groups] if optimizer._grouped else grads)


def small(fill: float = 0.25, steps: int = 3) -> openadam.Adam:
    """A small optimizer in the middle of a run, with both dtypes."""
    optimizer = openadam.Adam({"w": np.full((2, 2), fill, np.float32), "b": np.full(2, fill)}, lr=0.1)
    take_steps(optimizer, steps)
    return optimizer


def fingerprint(optimizer: openadam.Optimizer) -> str:
    """A digest of all that a load could change: parameters, states, counters, groups."""
    digest = hashlib.sha256()
    for name, array in optimizer.params.items():
        digest.update(repr((name, array.shape, array.dtype)).encode() + array.tobytes())
    for name, state in optimizer.state.items():
        for key, value in state.items():
            digest.update(repr((name, key)).encode() + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()))
    digest.update(repr((optimizer.steps, optimizer.skipped, optimizer.groups)).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def refused(optimizer: openadam.Optimizer, error: type[BaseException], match: str | None = None) -> Iterator[None]:
    """The block raises the error, and the optimizer is as before in every byte."""
    before = fingerprint(optimizer)
    with pytest.raises(error, match=match):
        yield
    assert fingerprint(optimizer) == before


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


# --- a way to write files that `save` would not ------------------------------------------------------------------------


def take_apart(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """A checkpoint's header, its JSON contents, and its tensors' bytes."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    return header, json.loads(header["__metadata__"]["openadam"].partition("\n")[2]), raw[end:]


def put_together(path: Path, header: dict[str, Any], content: Any, data: bytes) -> None:
    """A file of these parts, its checksum of the JSON text made right; text is taken as it is."""
    text = content if isinstance(content, str) else json.dumps(content)
    header["__metadata__"] = {"openadam": f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"}
    write_safetensors(path, header, data)


def write_safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


# --- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subject", PLAIN, ids=str)
def test_everything_comes_back(subject: Variant, dtype: Any, tmp_path: Path) -> None:
    original = subject.make(arrays(dtype), weight_decay=0.1)
    take_steps(original, 3)
    original.save(tmp_path / "file")
    other = subject.make(arrays(dtype, fill=0.0), weight_decay=0.2, lr=0.5)
    other.load(tmp_path / "file")
    assert fingerprint(other) == fingerprint(original)
    for optimizer in (original, other):
        take_steps(optimizer, 2)
    assert fingerprint(other) == fingerprint(original)


def test_groups_counters_and_schedules_come_back(tmp_path: Path) -> None:
    def make() -> openadam.Optimizer:
        groups = [
            {"params": {"a": np.ones(3)}, "lr": openadam.WarmUp(openadam.Cosine(0.1, 0.01, steps=9), steps=3), "maximize": True},
            {"params": {"b": np.ones(2, np.float32)}, "beta1": 0.1 + 0.2, "weight_decay": np.float32(0.1)},
        ]
        return openadam.AdamW(groups, nonfinite="skip")

    original = make()
    take_steps(original, 2)
    original.step([{"a": np.full(3, np.nan)}, {"b": np.ones(2, np.float32)}])
    original.step([{"a": None}, {"b": np.ones(2, np.float32)}])
    original.groups[1]["lr"] = 1 / 3
    original.save(tmp_path / "file")
    other = make()
    other.load(tmp_path / "file")
    assert (other.steps, other.skipped, other.state["a"]["step"]) == (3, 1, 2)
    for optimizer in (original, other):
        take_steps(optimizer, 3)
    assert fingerprint(other) == fingerprint(original)


def test_without_parameters_only_the_state_is_taken_over(tmp_path: Path) -> None:
    original, other = small(), small(fill=9.0, steps=1)
    original.save(tmp_path / "file", parameters=False)
    kept = {name: array.copy() for name, array in other.params.items()}
    other.load(tmp_path / "file")
    assert same(other.params, kept)
    assert same(other.state["w"], original.state["w"])


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    original = small()
    original.save(tmp_path / "first")
    original.save(tmp_path / "second")
    other = small(fill=9.0, steps=1)
    other.load(tmp_path / "first")
    other.save(tmp_path / "third")
    assert len({(tmp_path / name).read_bytes() for name in ("first", "second", "third")}) == 1


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    original = small()
    original.save(tmp_path / "file")
    read = safetensors.numpy.load_file(tmp_path / "file")
    assert set(read) == {"parameters/w", "parameters/b", *(f"state/{p}/{s}" for p in "wb" for s in ("exp_avg", "exp_avg_sq"))}
    assert same(read["parameters/w"], original.params["w"])
    assert same(read["state/b/exp_avg"], original.state["b"]["exp_avg"])


def test_tensors_in_the_file_are_aligned(tmp_path: Path) -> None:
    openadam.Adam({"a": np.zeros(3, np.float32), "b": np.zeros(2)}).save(tmp_path / "file")
    header, _, data = take_apart(tmp_path / "file")
    start = (tmp_path / "file").stat().st_size - len(data)
    for name, entry in header.items():
        if name != "__metadata__":
            assert (start + entry["data_offsets"][0]) % {"F32": 4, "F64": 8}[entry["dtype"]] == 0, name


NAMES = ("", " ", "a b", "a/b", "a", "a%2Fb", "b\n\t\x00", "__metadata__", "state", "parameters/a", "..", "-", "é", "e\u0301", "\udcff", "𝔸" * 300)


def test_different_tensors_have_different_names() -> None:
    assert len({checkpoint._key(*parts) for parts in (("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"), ("a", "b", "c"), ("", "abc"))}) == 5


def test_parameters_may_have_any_names(tmp_path: Path) -> None:
    def make(start: float) -> openadam.Optimizer:
        return openadam.Adam({name: np.full(1, start + i) for i, name in enumerate(NAMES)})

    original, other = make(0.0), make(100.0)
    take_steps(original, 2)
    original.save(tmp_path / "file")
    assert all(key["name"].isprintable() and key["name"].isascii() for key in checkpoint.inspect(tmp_path / "file")["tensors"])
    other.load(tmp_path / "file")
    assert fingerprint(other) == fingerprint(original)


@pytest.mark.parametrize(
    "name",
    ["a b", "new\nline", "e\u0301", "-r", "x" * 255, b"bytes\xff", "not\udcfeutf8", Path("path")],
    ids=["space", "newline", "nfd", "dash", "255", "bytes", "no-utf8", "pathlike"],
)
def test_f3_files_may_have_any_names(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original, other = small(), small(steps=1)
    original.save(name)
    original.save(name)
    assert os.listdir(b".") == [os.fsencode(name)]
    other.load(name)
    assert fingerprint(other) == fingerprint(original)


@pytest.mark.parametrize(("name", "error"), [("nul\0", ValueError), ("x" * 256, OSError), ("", FileNotFoundError), (3, TypeError), (None, TypeError)])
def test_f3_names_that_no_file_can_have(name: Any, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = small()
    for use in (optimizer.save, optimizer.load, checkpoint.inspect):
        with refused(optimizer, error):
            use(name)
    assert os.listdir() == []


def test_f3_messages_escape_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[31m\n"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointCorruptError) as caught:
        checkpoint.load(path)
    assert str(caught.value).isprintable()


RESUME = """
import hashlib, json, sys
import numpy as np, openadam
found = {}
for name, member in openadam.MEMBERS.items():
    params = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(4)}
    schedule = openadam.WarmUp(openadam.Cosine(0.1, 0.01, steps=15), steps=4)
    optimizer = member(params, lr=schedule, clip_norm=2.0)
    if sys.argv[1] != "0":
        optimizer.load(f"{sys.argv[2]}/{name}-{sys.argv[1]}")
    while optimizer.steps < 20:
        if sys.argv[1] == "0" and str(optimizer.steps) in sys.argv[3:]:
            optimizer.save(f"{sys.argv[2]}/{name}-{optimizer.steps}")
        random = np.random.default_rng([3, optimizer.steps])
        grads = {key: random.standard_normal(p.shape).astype(p.dtype) for key, p in params.items()}
        optimizer.step({**grads, "b": grads["b"] if optimizer.steps % 3 else None})
    arrays = [*params.values(), *(value for state in optimizer.state.values() for value in state.values())]
    found[name] = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()
print(json.dumps(found))
"""


def run(script: str, *arguments: Any) -> Any:
    """What a script prints, as JSON, in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=100).stdout)


def test_s1_a_new_process_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    points = (1, 6, 19)
    uninterrupted = run(RESUME, 0, tmp_path, *points)
    assert set(uninterrupted) == set(openadam.MEMBERS)
    for point in points:
        assert run(RESUME, point, tmp_path) == uninterrupted


# --- damage ------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    original = openadam.Adam({"w": np.full(2, 0.5, np.float32), "b": np.array(2.0)})
    take_steps(original, 1)
    original.save(path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    padding = range(len(whole[:end].rstrip()), end)
    assert len(padding) > 0  # else choose another name: flips of padding are the only ones that may pass
    other = openadam.Adam({"w": np.zeros(2, np.float32), "b": np.array(0.0)}, lr=0.5)
    start = other.state_dict(), copy.deepcopy(other.params)
    before = fingerprint(other)
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                try:
                    other.load(path)
                except CheckpointError:
                    assert fingerprint(other) == before, (position, bit)
                else:
                    assert position in padding, (position, bit)
                    assert fingerprint(other) == fingerprint(original), (position, bit)
                    other.load_state_dict(start[0])
                    for name, array in start[1].items():
                        other.params[name][...] = array
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert path.read_bytes() == whole


def test_every_truncation_and_any_addition_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    original, other = small(), small(steps=1)
    original.save(path)
    whole = path.read_bytes()
    before = fingerprint(other)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        with pytest.raises(CheckpointCorruptError):
            other.load(path)
        with pytest.raises(CheckpointCorruptError):
            checkpoint.inspect(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointCorruptError, match="something was added"):
        other.load(path)
    assert fingerprint(other) == before


def swap_data(header: dict[str, Any], content: Any, data: bytes) -> Any:
    header["state/w/exp_avg"], header["state/w/exp_avg_sq"] = header["state/w/exp_avg_sq"], header["state/w/exp_avg"]
    return header, content, data


def change_dtype(header: dict[str, Any], content: Any, data: bytes) -> Any:
    header["parameters/e"]["dtype"] = "F32"  # of no elements, so that nothing else changes
    return header, content, data


def change_shape(header: dict[str, Any], content: Any, data: bytes) -> Any:
    header["parameters/w"]["shape"] = [4]
    return header, content, data


def change_last_byte(header: dict[str, Any], content: Any, data: bytes) -> Any:
    return header, content, data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("tamper", [swap_data, change_dtype, change_shape, change_last_byte])
def test_f7_tensors_that_were_tampered_with_under_a_valid_header(tamper: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    params = {"w": np.ones((2, 2), np.float32), "e": np.zeros((3, 0))}
    original, optimizer = openadam.Adam(params), openadam.Adam(copy.deepcopy(params))
    take_steps(original, 2)
    original.save(path)
    optimizer.load(path)
    put_together(path, *tamper(*take_apart(path)))
    safetensors.numpy.load_file(path)  # valid as such
    checkpoint.inspect(path)
    with pytest.raises(CheckpointCorruptError, match="checksum of the tensor"):
        checkpoint.inspect(path, verify=True)
    with refused(optimizer, CheckpointCorruptError, "checksum of the tensor"):
        optimizer.load(path)


# --- files of other kinds ----------------------------------------------------------------------------------------------


class Exploit:
    """What it unpickles to is a file that must never appear."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploited",)


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("data.pkl", pickle.dumps(Exploit()))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def with_header(text: str, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text.encode()


FOREIGN = {
    "empty": (b"", CheckpointCorruptError, "it is empty"),
    "pickle": (pickle.dumps(Exploit()), CheckpointCorruptError, "looks like a pickle"),
    "old pickle": (pickle.dumps(Exploit(), 0), CheckpointCorruptError, "not an openadam checkpoint"),
    "zip": (archive(), CheckpointCorruptError, "looks like a zip archive"),
    "npy": (npy(), CheckpointCorruptError, r"looks like a \.npy file"),
    "gzip": (gzip.compress(b"x" * 99), CheckpointCorruptError, "looks like a gzip file"),
    "text": (b"not a checkpoint, but a text of some length", CheckpointCorruptError, "not an openadam checkpoint"),
    "zeros": (bytes(100), CheckpointCorruptError, "not an openadam checkpoint"),
    "header past the end": (with_header("{}", 3), CheckpointCorruptError, "not an openadam checkpoint"),
    "endless header": (with_header("{}", 2**64 - 1), CheckpointCorruptError, "not an openadam checkpoint"),
    "header is a list": (with_header("[]"), CheckpointCorruptError, "not an openadam checkpoint"),
    "header is no JSON": (with_header("{]"), CheckpointCorruptError, "no JSON text"),
    "header is no UTF-8": ((4).to_bytes(8, "little") + b'{"\xff"', CheckpointCorruptError, "no JSON text"),
    "header too deep": (with_header('{"a":' * 50_000), CheckpointCorruptError, "no JSON text"),
    "header with NaN": (with_header('{"a":NaN}'), CheckpointCorruptError, "no JSON text"),
    "metadata is a list": (with_header('{"__metadata__":[]}'), CheckpointCorruptError, "no JSON text of the kind"),
    "safetensors": (safetensors.numpy.save({"a": np.ones(2)}), CheckpointMismatchError, "safetensors file, but not an openadam checkpoint"),
    "safetensors of a peer": (safetensors.numpy.save({"a": np.ones(2)}, {"format": "pt"}), CheckpointMismatchError, "not an openadam checkpoint"),
    "safetensors with our key": (with_header('{"__metadata__":{"openadam":"yes"}}'), CheckpointCorruptError, "checksum of its description"),
    "metadata only": (with_header("{}"), CheckpointMismatchError, "not an openadam checkpoint"),
}


@pytest.mark.parametrize("use", ["load", "inspect", "verify"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_s22_files_of_other_kinds(kind: str, use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, error, text = FOREIGN[kind]
    Path("run.safetensors").write_bytes(data)
    optimizer = small()
    uses = {"load": optimizer.load, "inspect": checkpoint.inspect, "verify": lambda path: checkpoint.inspect(path, verify=True)}
    with refused(optimizer, error, text):
        uses[use]("run.safetensors")
    assert not Path("exploited").exists()


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:  # a hole of 200 MB, which the header claims to fill
        file.write((200_000_000 - 8).to_bytes(8, "little") + b"{")
        file.truncate(200_000_000)
    for use in (checkpoint.load, checkpoint.inspect):
        tracemalloc.start()
        with pytest.raises(CheckpointCorruptError):
            use(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@contextlib.contextmanager
def without_hanging(seconds: int = 20) -> Iterator[None]:
    """Interrupts what waits for ever."""
    before = signal.signal(signal.SIGALRM, failing(TimeoutError("it waits")))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("use", ["load", "inspect"])
def test_f1_paths_that_are_no_files(use: str, tmp_path: Path) -> None:
    optimizer = small()
    call = optimizer.load if use == "load" else checkpoint.inspect
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, error, text in [
        (tmp_path, IsADirectoryError, ""),
        (tmp_path / "missing", FileNotFoundError, "missing"),
        (tmp_path / "loop", OSError, "loop"),
        (tmp_path / "pipe", CheckpointCorruptError, "not a regular file"),
        (Path("/dev/zero"), CheckpointCorruptError, "not a regular file"),
        (Path("/dev/null"), CheckpointCorruptError, "not a regular file"),
    ]:
        with refused(optimizer, error, text or tmp_path.name), without_hanging():
            call(path)


@contextlib.contextmanager
def unprivileged(directory: Path) -> Iterator[None]:
    """In the directory, as a user whom permissions bind."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        os.chdir(directory)
        if os.geteuid() == 0:
            stack.callback(os.seteuid, 0)
            os.seteuid(65534)
        yield


def test_without_permission(tmp_path: Path) -> None:
    optimizer = small()
    for name, mode in (("secret", 0), ("shared", 0o444)):
        optimizer.save(tmp_path / name)
        os.chmod(tmp_path / name, mode)
    kept = (tmp_path / "shared").stat().st_ino
    os.chmod(tmp_path, 0o777)
    with unprivileged(tmp_path):
        for use, name in ((optimizer.load, "secret"), (checkpoint.inspect, "secret"), (optimizer.save, "secret"), (optimizer.save, "shared")):
            with refused(optimizer, PermissionError, name):
                use(name)
        checkpoint.inspect("shared")
    assert (tmp_path / "shared").stat().st_ino == kept
    os.chmod(tmp_path, 0o555)
    try:
        with unprivileged(tmp_path), refused(optimizer, PermissionError, "new"):
            optimizer.save("new")
    finally:
        os.chmod(tmp_path, 0o755)


# --- contents that cannot be ------------------------------------------------------------------------------------------


def setting(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def without(*keys: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    return change


W = ("state", "w")
AVG, SQ = (*W, "exp_avg"), (*W, "exp_avg_sq")
IMPOSSIBLE = {
    "step NaN": (setting(*W, "step", value=float("nan")), CheckpointCorruptError, "step of parameter 'w' is nan"),
    "step -1": (setting(*W, "step", value=-1), CheckpointCorruptError, "step of parameter 'w' is -1"),
    "step 2^60": (setting(*W, "step", value=2**60), CheckpointCorruptError, "step of parameter 'w'"),
    "step 3.5": (setting(*W, "step", value=3.5), CheckpointCorruptError, "3.5"),
    "step true": (setting(*W, "step", value=True), CheckpointCorruptError, "True"),
    "step text": (setting(*W, "step", value="3"), CheckpointCorruptError, "'3'"),
    "steps -1": (setting("steps", value=-1), CheckpointCorruptError, "steps is -1"),
    "skipped -1": (setting("skipped", value=-1), CheckpointCorruptError, "skipped is -1"),
    "v negative": (setting(*SQ, value=np.full((2, 2), -1e-30, np.float32)), CheckpointCorruptError, "'exp_avg_sq' of parameter 'w'.*negative"),
    "m infinite": (setting(*AVG, value=np.full((2, 2), np.inf, np.float32)), CheckpointCorruptError, "'exp_avg' of parameter 'w'.*not finite"),
    "m NaN": (setting(*AVG, value=np.full((2, 2), np.nan, np.float32)), CheckpointCorruptError, "'exp_avg' of parameter 'w'.*not finite"),
    "wrong dtype": (setting(*AVG, value=np.zeros((2, 2))), CheckpointMismatchError, "'exp_avg' of parameter 'w' is float64"),
    "wrong shape": (setting(*AVG, value=np.zeros(4, np.float32)), CheckpointMismatchError, r"'exp_avg' of parameter 'w' is float32 \(4,\)"),
    "broadcastable": (setting(*AVG, value=np.zeros((1, 2), np.float32)), CheckpointMismatchError, r"\(1, 2\)"),
    "no array": (setting(*AVG, value=0.0), CheckpointMismatchError, "'exp_avg' of parameter 'w' is float"),
    "state missing": (without(*AVG), CheckpointMismatchError, "state of parameter 'w'"),
    "state too many": (setting(*W, "max_exp_avg_sq", value=np.zeros((2, 2), np.float32)), CheckpointMismatchError, "max_exp_avg_sq"),
    "parameter missing": (without(*W), CheckpointMismatchError, r"lacks \['w'\]"),
    "parameter too many": (setting("state", "x", value={"step": 1}), CheckpointMismatchError, r"\['x'\]"),
    "another rule": (setting("rule", value="amsgrad"), CheckpointMismatchError, "rule 'amsgrad'"),
    "another coupling": (setting("coupling", value="decoupled"), CheckpointMismatchError, "coupling 'decoupled'"),
    "groups missing": (without("groups"), CheckpointCorruptError, "groups"),
    "group missing": (setting("groups", value=[]), CheckpointMismatchError, "0 groups"),
    "group of others": (setting("groups", 0, "params", value=["w", "x"]), CheckpointMismatchError, "group 0"),
    "unknown setting": (setting("groups", 0, "rho", value=0.9), CheckpointMismatchError, "rho"),
    "lr negative": (setting("groups", 0, "lr", value=-1.0), CheckpointCorruptError, "lr=-1.0"),
    "beta1 text": (setting("groups", 0, "beta1", value="0.9"), CheckpointCorruptError, "beta1='0.9'"),
    "maximize 1": (setting("groups", 0, "maximize", value=1), CheckpointCorruptError, "maximize=1"),
    "schedule lost": (setting("groups", 0, "lr", value={"schedule": "Cosine()"}), CheckpointMismatchError, "Cosine"),
    "newer": (setting("format", value=2), CheckpointVersionError, "upgrade openadam"),
    "format 0": (setting("format", value=0), CheckpointCorruptError, "format=0"),
    "format missing": (without("format"), CheckpointMismatchError, "not a state_dict"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_s5_s7_states_that_cannot_be(case: str, tmp_path: Path) -> None:
    change, error, text = IMPOSSIBLE[case]
    state = small().state_dict()
    change(state)
    optimizer = small(fill=3.0, steps=1)
    with refused(optimizer, error, text):
        optimizer.load_state_dict(state)
    try:
        checkpoint.save(tmp_path / "file", state, {})
    except CheckpointCorruptError:
        assert case == "step NaN"  # JSON has no such number
        assert os.listdir(tmp_path) == []
    else:
        with refused(optimizer, error, text):
            optimizer.load(tmp_path / "file")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"w": np.zeros((2, 2), np.float32)}, "holds the parameters"),
        ({"w": np.zeros((2, 2), np.float32), "c": np.zeros(2)}, "holds the parameters"),
        ({"w": np.zeros((2, 2)), "b": np.zeros(2)}, "'w' is float64"),
        ({"w": np.zeros(4, np.float32), "b": np.zeros(2)}, r"'w' is float32 \(4,\)"),
        ({"w": np.zeros((2, 2), np.float32), "b": np.zeros(1)}, r"'b' is float64 \(1,\)"),
    ],
)
def test_parameters_of_another_model(parameters: dict[str, Array], text: str, tmp_path: Path) -> None:
    optimizer = small()
    checkpoint.save(tmp_path / "file", small(steps=5).state_dict(), parameters)
    with refused(optimizer, CheckpointMismatchError, text):
        optimizer.load(tmp_path / "file")


ODD: tuple[Any, ...] = (None, True, -1, 0.5, 1e308, 10**400, "", "w", [], [[]], [None], [{}], {}, {"a": []}, {"schedule": []}, {"sha256": []})


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything within nested mappings and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def test_no_value_anywhere_does_more_than_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    original = openadam.NAdam({"w": np.zeros(2)})
    take_steps(original, 1)
    original.save(path)
    header, content, data = take_apart(path)
    optimizer = openadam.NAdam({"w": np.ones(2)})
    before = fingerprint(optimizer)
    accepted = []
    for place in places(content):
        for value in ODD:
            changed = copy.deepcopy(content)
            setting(*place, value=value)(changed)
            if changed == content:
                continue
            put_together(path, copy.deepcopy(header), changed, data)
            try:
                checkpoint.inspect(path, verify=True)
                optimizer.load(path)
            except CheckpointError:
                assert fingerprint(optimizer) == before, (place, value)
            else:
                accepted.append((place[-1], value))
                optimizer = openadam.NAdam({"w": np.ones(2)})
    # What is in range is taken: a number where a number belongs.
    assert {place for place, _ in accepted} <= {*original.groups[0], "mu_product"} - {"params"}
    assert all(isinstance(value, (bool, int, float)) for _, value in accepted)


def entry(shape: Any, dtype: Any = "F64", offsets: Any = (0, 0)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


EMPTY_STATE = {"format": 1, "rule": "sgd", "coupling": "coupled", "steps": 0, "skipped": 0, "groups": [], "state": {}}
LOOKS_FINE = ("dimensions too long together", "offsets backwards", "offsets past the end", "offsets missing")  # to who reads the header alone
FORGED = {  # the header's entry for a tensor of no bytes, whose checksum is made right
    "dimension too long": entry([2**63, 0]),
    "dimensions too long together": entry([2**62, 2**62, 0]),
    "too many dimensions": entry([0] * 65),
    "negative dimension": entry([-1, 0]),
    "dimension is a float": entry([0.0]),
    "dimension is true": entry([True, 0]),
    "shape is a number": entry(0),
    "shape is a text": entry("0"),
    "dtype of another kind": entry([0], "I8"),
    "dtype unknown": entry([0], "F7"),
    "dtype is a list": entry([0], ["F64"]),
    "offsets backwards": entry([0], offsets=(8, 0)),
    "offsets past the end": entry([0], offsets=(8, 8)),
    "offsets missing": {"dtype": "F64", "shape": [0]},
    "a number": 3,
    "nothing": None,
}


@pytest.mark.parametrize("kind", FORGED)
def test_headers_that_no_array_can_have(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.save(path, EMPTY_STATE, {"x": np.zeros(0)})
    header, content, data = take_apart(path)
    header["parameters/x"] = forged = FORGED[kind]
    if isinstance(forged, dict):
        content["parameters"]["x"] = {"sha256": hashlib.sha256(f"{forged['dtype']} {forged['shape']}\n".encode()).hexdigest()}
    put_together(path, header, content, data)
    with pytest.raises(CheckpointCorruptError):
        checkpoint.load(path)
    with pytest.raises(CheckpointCorruptError):
        checkpoint.inspect(path, verify=kind in LOOKS_FINE)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save(tmp_path / "file")
    monkeypatch.setattr(safetensors, "deserialize", lambda data: [])
    with pytest.raises(CheckpointCorruptError, match="changed while it was read"):
        checkpoint.load(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (setting("magic", value="other checkpoint"), CheckpointMismatchError, "not an openadam checkpoint"),
        (without("magic"), CheckpointMismatchError, "not an openadam checkpoint"),
        (setting("format", value=2), CheckpointVersionError, "format 2; this version of openadam reads up to 1: upgrade openadam"),
        (setting("format", value=10**400), CheckpointVersionError, "upgrade openadam"),
        (setting("format", value=0), CheckpointCorruptError, "format 0"),
        (setting("format", value=True), CheckpointCorruptError, "format True"),
        (setting("format", value="1"), CheckpointCorruptError, "format '1'"),
        (without("parameters"), CheckpointCorruptError, "not laid out"),
        (without("state"), CheckpointCorruptError, "not laid out"),
        (without("optimizer"), CheckpointCorruptError, "not laid out"),
        (without("parameters", "w"), CheckpointCorruptError, "'parameters/w' is an unexpected tensor"),
        (setting("parameters", "x", value={"sha256": ""}), CheckpointCorruptError, "'parameters/x' is no tensor"),
        (setting("optimizer", "steps", value=float("inf")), CheckpointCorruptError, "no JSON text"),
        (lambda content: content.clear(), CheckpointMismatchError, "not an openadam checkpoint"),
    ],
)
def test_s7_descriptions_of_other_versions_and_other_kinds(change: Callable[[Any], Any], error: type[Exception], text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    small().save(path)
    header, content, data = take_apart(path)
    change(content)
    put_together(path, header, content, data)
    optimizer = small(steps=1)
    with refused(optimizer, error, text):
        optimizer.load(path)
    with pytest.raises(error, match=text):
        checkpoint.inspect(path)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"a":1e999}', "[" * 50_000, "9" * 5000, "\ud800"])
def test_descriptions_that_are_no_description(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    header = {"__metadata__": {"openadam": f"{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}\n{text}"}}
    write_safetensors(path, header)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        without("skipped"),
        without("groups", 0, "maximize"),
        without("groups", 0, "eps"),
        setting("state", "w", "step", value=3.0),
        setting("made_by", value="a later version"),
    ],
    ids=["no skipped", "no maximize", "no eps", "step is a float", "a key of the future"],
)
def test_s7_older_and_newer_states_of_this_format(change: Callable[[Any], None], tmp_path: Path) -> None:
    original, by_dict, by_file = small(), small(steps=1), small(steps=1)
    state = original.state_dict()
    change(state)
    checkpoint.save(tmp_path / "file", state, original.params)
    by_file.load(tmp_path / "file")
    by_dict.load_state_dict(state)
    assert fingerprint(by_file) == fingerprint(original)
    assert type(by_file.state["w"]["step"]) is int
    assert same(by_dict.state["w"], original.state["w"])


def test_s6_parameters_are_matched_by_name(tmp_path: Path) -> None:
    original = openadam.Adam({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    take_steps(original, 2)
    original.save(tmp_path / "file")
    swapped = openadam.Adam({"b": np.zeros(2), "a": np.zeros(2)})
    swapped.load(tmp_path / "file")
    for name in "ab":
        assert same(swapped.params[name], original.params[name])
        assert same(swapped.state[name], original.state[name])


def test_numbers_that_are_not_finite_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "file"
    optimizer = small()
    optimizer.save(path)
    kept = path.read_bytes()
    optimizer.groups[0]["lr"] = float("inf")
    with pytest.raises(CheckpointCorruptError, match="lr=inf"):
        optimizer.save(path)
    assert path.read_bytes() == kept
    assert os.listdir(tmp_path) == ["file"]


def test_numpy_scalars_are_saved_as_the_numbers_they_are(tmp_path: Path) -> None:
    optimizer = small()
    optimizer.groups[0] |= {"lr": np.float32(0.1), "beta1": np.float64(0.1), "eps": np.int64(1), "maximize": np.bool_(True)}
    optimizer.save(tmp_path / "file")
    (group,) = checkpoint.inspect(tmp_path / "file")["groups"]
    assert {key: group[key] for key in ("lr", "beta1", "eps", "maximize")} == {"lr": float(np.float32(0.1)), "beta1": 0.1, "eps": 1, "maximize": True}
    assert group["maximize"] is True


def test_only_tensors_of_known_dtypes_can_be_saved(tmp_path: Path) -> None:
    for dtype in (">f8", "i8", "O"):
        with pytest.raises(TypeError, match="parameters/x"):
            checkpoint.save(tmp_path / "file", EMPTY_STATE, {"x": np.zeros(2, dtype)})
    with pytest.raises(TypeError, match="object"):
        checkpoint.save(tmp_path / "file", {**EMPTY_STATE, "steps": object()}, {})
    assert os.listdir(tmp_path) == []


# --- copies ------------------------------------------------------------------------------------------------------------


def scribble(state: dict[str, Any]) -> None:
    for own in state["state"].values():
        for value in own.values():
            if isinstance(value, np.ndarray):
                value[...] = 77.0
    state["groups"][0]["lr"] = 77.0
    state["groups"][0]["params"].append("77")


def test_s9_a_state_dict_and_its_optimizers_share_nothing() -> None:
    source, target = small(), small(steps=1)
    taken = source.state_dict()
    before = fingerprint(source)
    scribble(taken)
    assert fingerprint(source) == before
    given = source.state_dict()
    target.load_state_dict(given)
    before = fingerprint(target)
    scribble(given)
    assert fingerprint(target) == before
    take_steps(target, 1)
    assert same(given["state"]["w"]["exp_avg"], np.full((2, 2), 77.0, np.float32))


def test_s9_s18_loaded_arrays_are_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "file"
    original = small()
    original.save(path)
    state, parameters = checkpoint.load(path)
    found = [*parameters.values(), *(value for own in state["state"].values() for value in own.values() if isinstance(value, np.ndarray))]
    assert all(array.flags.owndata and array.flags.writeable and array.flags.aligned for array in found)
    path.write_bytes(bytes(path.stat().st_size))  # in place: a memory map would see it
    assert same(parameters, original.params)
    other = small(steps=1)
    checkpoint.save(path, state, parameters)
    other.load(path)
    other.save(path)
    other.load(path)
    assert fingerprint(other) == fingerprint(original)


def through_joblib(optimizer: Any, directory: Path) -> Any:
    joblib = pytest.importorskip("joblib")
    joblib.dump(optimizer, directory / "file")
    return joblib.load(directory / "file")


def through_cloudpickle(optimizer: Any, directory: Path) -> Any:
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(optimizer))


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    "deepcopy": lambda optimizer, directory: copy.deepcopy(optimizer),
    "pickle": lambda optimizer, directory: pickle.loads(pickle.dumps(optimizer)),
    "joblib": through_joblib,
    "cloudpickle": through_cloudpickle,
}


def single() -> openadam.Optimizer:
    return openadam.NAdam(np.ones((2, 3)).T, momentum_decay=0.05, epsilon="outside")


def listed() -> openadam.Optimizer:
    return openadam.AdamW([np.ones(2), np.ones(3, np.float32)], no_decay=["1"], clip_norm=0.5, clip_value=0.2, maximize=True, nonfinite="propagate")


def grouped() -> openadam.Optimizer:
    groups = [{"params": {"a": np.ones(2)}, "lr": openadam.Cosine(1.0, 0.0, steps=9)}, {"params": {"b": np.ones(1)}, "maximize": True, "rho": 0.5}]
    return openadam.RMSProp(groups, buffer="momentum", variance="centered")


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [small, single, listed, grouped])
def test_s14_copies_of_optimizers_go_on_alike_and_apart(make: Callable[[], openadam.Optimizer], way: str, tmp_path: Path) -> None:
    def advance(optimizer: openadam.Optimizer) -> None:
        grads = {name: np.full(p.shape, 0.3 * optimizer.steps - 0.5, p.dtype) for name, p in optimizer.params.items()}
        own = iter(grads.values())
        parts = [structure.build(own) for structure in optimizer._groups.structures]
        optimizer.step(parts if optimizer._grouped else parts[0])

    original = make()
    for _ in range(2):
        advance(original)
    before = fingerprint(original)
    twin = COPIES[way](original, tmp_path)
    assert type(twin) is type(original)
    assert fingerprint(twin) == before
    advance(twin)
    assert fingerprint(original) == before  # they share nothing
    after = fingerprint(twin)
    del twin
    advance(original)
    assert fingerprint(original) == after


def test_s14_what_cannot_be_pickled_says_so() -> None:
    optimizer = openadam.Adam(np.ones(2), lr=lambda t: 0.1 / t)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(optimizer)


# --- saving ------------------------------------------------------------------------------------------------------------


def directory(path: Path) -> None:
    path.mkdir()
    (path / "kept").touch()


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("occupy", "error"),
    [(directory, IsADirectoryError), (os.mkfifo, FileExistsError), (link_to_nothing, FileNotFoundError), (link_to_itself, OSError)],
)
def test_s17_targets_that_are_no_files(occupy: Callable[[Path], None], error: type[OSError], tmp_path: Path) -> None:
    path = tmp_path / "target"
    occupy(path)
    before = path.lstat()
    with pytest.raises(error, match=r"target|nothing"):
        small().save(path)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime) == (before.st_ino, before.st_mode, before.st_mtime)
    assert os.listdir(tmp_path) == ["target"]


def test_s17_a_missing_directory_is_named_by_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing/file"):
        small().save(tmp_path / "missing" / "file")


def test_links_are_followed(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    real = tmp_path / "there" / "real"
    small(steps=1).save(real)
    (tmp_path / "here" / "link").symlink_to("../there/real")
    small(steps=2).save(tmp_path / "here" / "link")
    assert (tmp_path / "here" / "link").is_symlink()
    assert not real.is_symlink()
    assert checkpoint.inspect(real)["steps"] == 2
    assert os.listdir(tmp_path / "here") == ["link"]
    assert os.listdir(tmp_path / "there") == ["real"]


@pytest.mark.parametrize(
    ("module", "name", "error", "expected"),
    [
        (os, "fsync", OSError(errno.ENOSPC, "No space left on device"), OSError),
        (os, "fsync", OSError(errno.EIO, "Input/output error"), OSError),
        (os, "replace", PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (os, "fsync", KeyboardInterrupt(), KeyboardInterrupt),
        (os, "fsync", MemoryError(), MemoryError),
        (safetensors, "safe_open", safetensors.SafetensorError("header too large"), OSError),
    ],
)
def test_s17_a_save_that_fails_leaves_everything_as_it_was(
    module: Any, name: str, error: BaseException, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    small(steps=1).save(path)
    kept = path.read_bytes()
    optimizer = small()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(error))
        for target in (path, tmp_path / "new"):
            with refused(optimizer, expected):
                optimizer.save(target)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == kept
    optimizer.save(path)


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    path = tmp_path / "file"

    def recorded(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*arguments: Any) -> Any:
            kind = "" if isinstance(arguments[0], str) else "directory " if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "file "
            done.append(f"{kind}{name}, {'with' if path.exists() else 'without'} its name")
            return original(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name))
    small().save(path)
    assert done == ["file fsync, without its name", "replace, without its name", "directory fsync, with its name"]


def test_s17_a_file_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "file"
    small(steps=1).save(path)
    kept = path.read_bytes()
    large = openadam.SGD(np.zeros(100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))
    try:
        with pytest.raises(OSError, match=r"large.*file"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == kept


def test_more_tensors_than_a_file_can_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "HEADER_LIMIT", 1000)
    with pytest.raises(OSError, match="6 tensors and their names are more"):
        small().save(tmp_path / "file")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("umask", "old", "mode"), [(0o022, None, 0o644), (0o077, None, 0o600), (0, None, 0o666), (0o022, 0o600, 0o600), (0, 0o640, 0o640)]
)
def test_f8_permissions_follow_the_umask_and_never_widen(umask: int, old: int | None, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.touch()
        path.chmod(old)
    before = os.umask(umask)
    try:
        small().save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_f8_temporary_files_have_new_names_and_no_planted_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[str] = []
    opened = os.open

    def record(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            created.append(str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", record)
    for _ in range(2):
        small().save(tmp_path / "file")
    assert len(set(created)) == 2
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    small().save(tmp_path / "file")
    kept = (tmp_path / "file").read_bytes()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.symlink(victim, created[2])
    with pytest.raises(FileExistsError):
        small(steps=5).save(tmp_path / "file")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == kept


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    import fcntl

    mine, others = (checkpoint._temporary_prefix(name) for name in ("file", "another"))
    kept = [f"{others}1-0.tmp", f"{mine}3-0.txt", f"x{mine}4-0.tmp", ".openadam-notes.tmp", "file.tmp"]
    for name in [f"{mine}1-0.tmp", f"{mine}2-0.tmp", *kept]:
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / f"{mine}2-0.tmp").open("rb") as alive:  # as if a process were writing it
        fcntl.flock(alive, fcntl.LOCK_EX)
        small().save(tmp_path / "file")
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, f"{mine}2-0.tmp", "file"])
    small().save(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "file"])


# Processes are forked in a process of their own: forking one that runs tests would take its threads along.
SAVERS = """
import json, os, random, signal, sys, time
import numpy as np, openadam
from openadam import checkpoint

path, task = sys.argv[1:]
optimizer = openadam.Adam({"w": np.zeros(50_000)})

def save(value):
    state = optimizer.state_dict()
    state["steps"] = value
    checkpoint.save(path, state, {"w": np.full(50_000, float(value))})

def child(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        sys.stderr.write(repr(error))
        os._exit(1)
    os._exit(0)

def read():
    state, parameters = checkpoint.load(path)
    values = set(parameters["w"].tolist())
    assert values == {float(state["steps"])}, values
    return state["steps"]

def left():
    return sum(name.startswith(".openadam-") for name in os.listdir(os.path.dirname(path)))

def forever(value, stride):
    while not os.path.exists(path + ".stop"):
        value += stride
        save(value)

save(0)
found = {"leftovers": 0, "values": [], "codes": []}
if task == "kill":
    start = time.perf_counter()
    save(0)
    two_saves = 2 * (time.perf_counter() - start)
    chance = random.Random(1)
    last = 0
    while len(found["values"]) < 30 or not (last and found["leftovers"]):
        pid = child(lambda: forever(last, 1))
        time.sleep(chance.uniform(0.0, two_saves))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found["leftovers"] += left()
        last = read()
        found["values"].append(last)
    save(0)
else:
    pids = [child(lambda first=first: forever(first, 2)) for first in (0, 1)]
    while len(found["values"]) < 40 or len({value % 2 for value in found["values"]}) < 2:
        found["values"].append(read())
    open(path + ".stop", "w").close()
    found["codes"] = [os.waitpid(pid, 0)[1] for pid in pids]
found["left"] = left()
print(json.dumps(found))
"""


def test_s16_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    found = run(SAVERS, tmp_path / "file", "kill")
    assert found["values"] == sorted(found["values"])
    assert found["values"][-1] > 0  # some saves completed
    assert found["leftovers"] > 0  # and some were cut off in the middle
    assert found["left"] == 0
    assert os.listdir(tmp_path) == ["file"]


def test_s19_of_two_processes_the_last_to_complete_wins_whole(tmp_path: Path) -> None:
    found = run(SAVERS, tmp_path / "file", "race")
    assert found["codes"] == [0, 0]
    assert {value % 2 for value in found["values"]} == {0, 1}  # what both wrote was read, each time whole
    assert found["left"] == 0
    checkpoint.inspect(tmp_path / "file", verify=True)


# --- inspecting, and the library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [False, True])
def test_inspect_shows_what_is_there_as_plain_data(verify: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    original = openadam.AdamW({"w": np.zeros((2, 3), np.float32), "b": np.array(1.0)}, lr=openadam.Linear(1.0, 0.0, steps=5), nonfinite="skip")
    take_steps(original, 2)
    original.step({"w": np.full((2, 3), np.nan, np.float32), "b": None})
    original.save(path)
    seen = checkpoint.inspect(path, verify=verify)
    assert json.loads(json.dumps(seen, allow_nan=False)) == seen
    tensors = [seen.pop("tensors"), original.state_dict()]
    sizes = {"w": ("float32", [2, 3], 24), "b": ("float64", [], 8)}
    names = [(f"parameters/{name}", name) for name in sizes] + [
        (f"state/{name}/{state}", name) for name in sizes for state in ("exp_avg", "exp_avg_sq")
    ]
    expected = [{"name": key, **dict(zip(("dtype", "shape", "bytes"), sizes[name], strict=True))} for key, name in names]
    assert sorted(tensors[0], key=lambda tensor: tensor["name"]) == sorted(expected, key=lambda tensor: tensor["name"])
    rest = {key: value for key, value in tensors[1].items() if key not in ("state", "format")}
    assert set(rest) >= {"rule", "coupling", "steps", "skipped", "groups"}
    assert seen == {**rest, "format": 1, "bytes": path.stat().st_size, "verified": verify}


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    optimizer = small()
    optimizer.save(path)
    kept = path.read_bytes()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for use in (optimizer.save, optimizer.load, lambda path: checkpoint.inspect(path, verify=True)):
        with refused(optimizer, ImportError, r"pip install 'openadam\[files\]'"):
            use(path)
    assert path.read_bytes() == kept
    assert checkpoint.inspect(path)["steps"] == 3  # the header needs no library


def test_importing_the_package_imports_neither() -> None:
    script = "import json, sys, openadam; print(json.dumps([name in sys.modules for name in ('openadam.checkpoint', 'safetensors')]))"
    assert run(script) == [False, False]
