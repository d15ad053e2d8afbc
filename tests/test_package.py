"""The package as it is installed: what importing it does and does not do, its public names, its settings from outside, and its size.

Labels such as I16 are the case numbers of docs/faults.md.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import ENGINES, PLAIN
from support import fingerprint, python

import openadam
from openadam import HyperparameterError, NativeMissingWarning, OpenAdamError, cli
from openadam import engine as engines

ROOT = Path(__file__).resolve().parent.parent

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


# --- I15, I16: importing -----------------------------------------------------------------------------------------------


def test_i15_importing_imports_numpy_only() -> None:
    script = """
import sys, numpy
before = set(sys.modules)
import openadam
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(roots - sys.stdlib_module_names - {"openadam", "numpy"}))
"""
    assert python(script) == "[]\n"


OPTIONAL = ("torch", "jax", "scipy", "sklearn", "rich", "matplotlib", "safetensors", "mpmath", "pandas", "joblib")

HIDDEN = """
import importlib.abc, sys


class Hide(importlib.abc.MetaPathFinder):
    "Lets the import of some packages fail, as if they were missing or broken."

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise FAILURE


sys.meta_path.insert(0, Hide())
"""


@pytest.mark.parametrize("failure", ["ModuleNotFoundError('hidden')", "RuntimeError('broken')"])
def test_i15_optional_packages_are_optional(failure: str) -> None:
    """Missing, or broken so that importing them raises: what needs none of them works."""
    script = (
        f"HIDDEN, FAILURE = {OPTIONAL!r}, {failure}\n{HIDDEN}"
        + """
import numpy as np
import openadam

for member in openadam.MEMBERS.values():
    w = np.ones(3)
    member(w, lr=0.1).step(np.ones(3))
    assert (w < 1).all()
openadam.trace("adam", [1.0, 2.0])
print("works")
"""
    )
    assert python(script) == "works\n"


def test_i15_what_needs_an_optional_package_names_the_extra() -> None:
    script = (
        f"HIDDEN, FAILURE = {OPTIONAL!r}, ModuleNotFoundError('hidden')\n{HIDDEN}"
        + """
import numpy as np
import openadam

try:
    openadam.Adam(np.ones(3)).save("never-written")
except ImportError as error:
    print(error)
"""
    )
    assert "openadam[files]" in python(script)


SIDE_EFFECTS = """
import ctypes, faulthandler, gc, locale, os, random, signal, sys, threading, warnings
import numpy as np


def snapshot():
    "What belongs to the process and not to a library."
    libm = ctypes.CDLL(None)
    return {
        "warning filters": list(warnings.filters),
        "random state": hash(random.getstate()),
        "NumPy's random state": hash(np.random.get_state()[1].tobytes()),
        "NumPy's error modes": np.geterr(),
        "NumPy's print options": repr(np.get_printoptions()),
        "rounding mode": libm.fegetround() if hasattr(libm, "fegetround") else None,
        "subnormal float64": bool(np.array([5e-324]) * 1.0 != 0),
        "subnormal float32": bool((np.array([1e-45], np.float32) * np.float32(1) != 0).all()),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") and not STEPPED else None,
        "signal handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []) if hasattr(signal, "pthread_sigmask") else None,
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile()),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "fault handler": faulthandler.is_enabled(),
        "locale": locale.setlocale(locale.LC_ALL),
        "path": list(sys.path),
    }


STEPPED = False
before = snapshot()
import openadam
assert (after := snapshot()) == before, {key: (before[key], after[key]) for key in before if before[key] != after[key]}
STEPPED = True  # a step may have helpers
before = snapshot()
w = np.ones(500_000)
optimizer = openadam.AdamW(w, threads=3, clip_norm=1.0)
optimizer.step(np.cos(w), measure=True)
try:
    optimizer.step(np.full_like(w, np.nan))
except openadam.NonFiniteGradientError:
    pass
optimizer.load_state_dict(optimizer.state_dict())
assert (after := snapshot()) == before, {key: (before[key], after[key]) for key in before if before[key] != after[key]}
print("unchanged")
"""


def test_i16_importing_and_stepping_leave_the_process_as_it_is() -> None:
    assert python(SIDE_EFFECTS) == "unchanged\n"


def test_i16_importing_twice_is_importing_once() -> None:
    script = "import openadam, sys; first = openadam.Adam; del sys.modules['openadam']; import openadam; print(openadam.MEMBERS['adam'].__name__)"
    assert python(script) == "Adam\n"


# --- public names ------------------------------------------------------------------------------------------------------


def test_public_names() -> None:
    assert len(set(openadam.__all__)) == len(openadam.__all__)
    namespace: dict[str, Any] = {}
    exec("from openadam import *", namespace)
    assert set(openadam.__all__) <= set(namespace)
    given = {name for name, value in vars(openadam).items() if not name.startswith("_") and not isinstance(value, types.ModuleType)}
    assert given <= set(openadam.__all__), "a name without an underscore that is not public"
    assert set(openadam.errors.__all__) <= set(openadam.__all__)
    assert {cls.__name__ for cls in openadam.MEMBERS.values()} <= set(openadam.__all__)


def test_every_error_has_its_place() -> None:
    """Under one base, and under the built-in exception that callers expect."""
    for name in openadam.errors.__all__:
        error = getattr(openadam, name)
        assert issubclass(error, UserWarning if name.endswith("Warning") else OpenAdamError)
        assert error is OpenAdamError or issubclass(error, (ValueError, TypeError, RuntimeError, UserWarning))
        assert error.__module__ == "openadam.errors"


@pytest.mark.parametrize("name", openadam.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """What one calls has an example or a reference; errors and modules say in a sentence what they are."""
    thing = getattr(openadam, name)
    if name == "MEMBERS":  # a plain dict
        return
    text = inspect.getdoc(thing) or ""
    assert text.split("\n")[0].rstrip().endswith((".", "``", "?"))
    if not isinstance(thing, types.ModuleType) and name not in openadam.errors.__all__:
        assert ">>>" in text or re.search(r"\b(19|20)\d\d\b", text)


@pytest.mark.parametrize("name", [name for name in dir(openadam.Optimizer) if not name.startswith("_")])
def test_every_public_method_is_documented(name: str) -> None:
    thing = inspect.getattr_static(openadam.Optimizer, name)
    if callable(thing) or isinstance(thing, property):
        assert inspect.getdoc(thing)


@pytest.mark.parametrize("member", openadam.MEMBERS.values(), ids=lambda member: member.__name__)
def test_members_show_their_arguments(member: type[openadam.Optimizer]) -> None:
    """Signature and docstring tell the hyperparameters, their defaults and the options' choices."""
    signature = inspect.signature(member)
    for name, default in member.defaults.items():
        assert signature.parameters[name].default == default
        assert f"    {name}: " in (member.__doc__ or "")
    for name, choices in member.rule.options.items():  # type: ignore[union-attr]
        assert all(choice in (member.__doc__ or "") for choice in choices), name
    assert "self" not in signature.parameters
    assert next(iter(signature.parameters)) == "params"


def test_it_is_typed_and_has_its_version() -> None:
    assert importlib.resources.files(openadam).joinpath("py.typed").is_file()
    assert importlib.metadata.version("openadam") == openadam.__version__


TESTS = Path(__file__).resolve().parent
FAULTS = TESTS.parent / "docs" / "faults.md"


@pytest.mark.skipif(not FAULTS.exists(), reason="the documents are not here")
def test_the_list_of_faults_is_true_to_the_tests() -> None:
    """Every test that docs/faults.md names exists, and every label in a test's name stands in it."""
    listed = FAULTS.read_text()
    rows = re.findall(r"^\| ([A-Z]\d+) \|.*\| (`.*`) \|$", listed, flags=re.MULTILINE)
    labels = [label for label, _ in rows]
    assert sorted(set(labels)) == sorted(labels)
    existing = {path.stem.removeprefix("test_"): re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE) for path in TESTS.glob("test_*.py")}
    for label, named in rows:
        for file, pattern in re.findall(r"`(\w+): (\w+\*?)`", named):
            assert fnmatch.filter(existing[file], pattern), f"{label}: {file}: {pattern}"
    used = {label.upper() for names in existing.values() for name in names for label in re.findall(r"(?<=_)[anscif]\d+(?=_)", name)}
    assert used <= set(labels)


# --- settings from outside ---------------------------------------------------------------------------------------------


def chosen() -> tuple[str, str]:
    engine = openadam.Adam(np.zeros(1))._engine
    return engine.name, engine.isa


def test_environment_chooses_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENGINES:
        monkeypatch.setenv("OPENADAM_ENGINE", name)
        assert chosen()[0] == name
        assert openadam.Adam(np.zeros(1), engine="reference")._engine.name == "reference"
    monkeypatch.setenv("OPENADAM_ENGINE", "")
    assert chosen()[0] == ENGINES[0]
    for garbage in ("Native", "cuda", "1", " native"):
        monkeypatch.setenv("OPENADAM_ENGINE", garbage)
        with pytest.raises(HyperparameterError, match=re.escape(garbage)):
            chosen()


@pytest.mark.skipif("native" not in ENGINES, reason="no native kernels here")
def test_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    isas = engines.native_isas()
    for isa in isas:
        monkeypatch.setenv("OPENADAM_ISA", isa)
        assert chosen() == ("native", isa)
        assert openadam.Adam(np.zeros(1), isa=isas[0])._engine.isa == isas[0]
    monkeypatch.setenv("OPENADAM_ISA", "")
    assert chosen()[1] == isas[0]
    monkeypatch.setenv("OPENADAM_ISA", "z80")
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"OPENADAM_ISA='z80' is none of {', '.join(isas)}; using {isas[0]}") as caught:
            openadam.Adam(np.zeros(1))
        assert caught[0].filename == __file__


def test_environment_in_a_process_of_its_own() -> None:
    """Read when an optimizer is made, so that a process may set it late; the garbage is named."""
    script = """
import warnings
import numpy as np
import openadam

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer = openadam.Adam(np.ones(2))
optimizer.step(np.ones(2))
print(optimizer._engine.name, optimizer._engine.isa, optimizer._threads, [str(each.message) for each in caught])
"""
    name, _, threads, *_ = python(script, OPENADAM_ENGINE=ENGINES[-1], OPENADAM_NUM_THREADS="3").split()
    assert (name, threads) == (ENGINES[-1], "3")
    said = python(script, OPENADAM_ISA="\N{SNOWMAN}", OPENADAM_NUM_THREADS="many")
    assert "OPENADAM_NUM_THREADS='many'" in said
    assert "\N{SNOWMAN}" in said or "native" not in ENGINES
    last = engines.native_isas()[-1] if engines.native_isas() else "numpy"
    assert python(script, OPENADAM_ISA=last).split()[1] == last


# --- metadata ----------------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place_and_links_lead_home() -> None:
    metadata = importlib.metadata.metadata("openadam")
    assert metadata["Version"] == openadam.__version__
    (home,) = metadata.get_all("Project-URL") or ()
    address = home.partition(", ")[2]
    text = str(metadata.get_payload() or metadata["Description"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 8
    for link in links:
        assert link.startswith((f"{address}/blob/main/", f"{address}/raw/main/", "#")), link
        file = re.sub(rf"^{re.escape(address)}/(?:blob|raw)/main/", "", link).partition("#")[0]
        assert (ROOT / file).exists(), link
    assert f"]({address}/raw/main/docs/digits.png)" in text
    exporters = {"check", "pandas", "parquet", "tensorboard", "wandb", "mlflow", "trackio"}
    assert set(metadata.get_all("Provides-Extra") or ()) == {"files", "demo", "torch", "studies", "integrations", "dev", *exporters}


def test_every_environment_variable_is_in_the_table() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "native").glob("*"), ROOT / "pyproject.toml"]
    found = {name for path in sources if path.is_file() for name in re.findall(r"OPENADAM_[A-Z_]+", path.read_text()) if not name.endswith("_")}
    for name in found:
        assert f"`{name}`" in page, name


# --- without native code -----------------------------------------------------------------------------------------------

WITHOUT = """
import sys, warnings
import numpy as np

sys.modules["openadam._native"] = None  # importing it fails
import openadam


def make(member):
    return member({"w": np.linspace(-1, 1, 40_000, dtype=np.float32).reshape(200, 200).T, "b": np.ones(3)}, weight_decay=0.1, clip_norm=1.0)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    for member in openadam.MEMBERS.values():
        optimizer = make(member)
        for _ in range(2):
            optimizer.step({"w": np.linspace(-3, 5, 40_000, dtype=np.float32).reshape(200, 200), "b": np.ones(3)}, measure=True)
        print(member.__name__, fingerprint(optimizer))
for each in caught:
    print(each.category.__name__, each.filename, each.lineno, each.message)
"""


def test_without_native_code_everything_works_on_the_reference() -> None:
    """With the same bits, and one warning, which points to the caller's line."""
    source = f"import hashlib\n{inspect.getsource(fingerprint)}{WITHOUT}".replace("openadam.Optimizer, *", "object, *")
    *members, warning = python(source).splitlines()
    assert re.fullmatch(r"NativeMissingWarning <string> \d+ openadam has no native kernels here; .*OPENADAM_ENGINE=reference.*", warning)
    line = source.splitlines()[int(warning.split()[2]) - 1]
    assert "return member(" in line
    namespace: dict[str, Any] = {"np": np, "openadam": openadam}
    exec(WITHOUT[WITHOUT.index("def make") : WITHOUT.index("with warnings")], namespace)
    for said in members:
        name, digest = said.split()
        optimizer = namespace["make"](getattr(openadam, name))
        for _ in range(2):
            optimizer.step({"w": np.linspace(-3, 5, 40_000, dtype=np.float32).reshape(200, 200), "b": np.ones(3)}, measure=True)
        assert fingerprint(optimizer) == digest, name
    assert len(members) == len(PLAIN)


def test_without_native_code_and_told_so_there_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_native", None)
    with pytest.warns(NativeMissingWarning) as caught:
        openadam.Adam(np.zeros(1))
    assert caught[0].filename == __file__
    with pytest.raises(HyperparameterError, match="engine='native': there is no native code here"):
        openadam.Adam(np.zeros(1), engine="native")
    monkeypatch.setenv("OPENADAM_ENGINE", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        openadam.Adam(np.ones(1)).step(np.ones(1))
    assert engines.native_isas() == []


WITHOUT_OVER_TORCH = """
import sys, warnings
import torch

if "without" in sys.argv:
    sys.modules["openadam._native"] = None  # importing it fails
import openadam.torch

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("default")
    torch.manual_seed(0)
    dtype = getattr(torch, sys.argv[1])
    model = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 3)).to(dtype)
    for _ in range(3):
        optimizer = openadam.torch.AdamW(model.parameters(), lr=0.01, clip_norm=1.0)
    for _ in range(3):
        model(torch.linspace(-1, 1, 200, dtype=dtype)).square().sum().backward()
        optimizer.step(measure=True)
        print(optimizer.last_step)
print([p.detach().numpy().tobytes().hex() for p in model.parameters()])
print([(each.category.__name__, open(sys.argv[0]).read().splitlines()[each.lineno - 1].strip()) for each in caught])
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_native_code_torch_has_the_same_bits_and_one_warning(tmp_path: Path, dtype: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(WITHOUT_OVER_TORCH)
    outputs = [
        subprocess.run([sys.executable, str(script), dtype, *arguments], capture_output=True, text=True, check=True).stdout.splitlines()
        for arguments in ([], ["without"])
    ]
    assert outputs[0][:-1] == outputs[1][:-1]
    line = "optimizer = openadam.torch.AdamW(model.parameters(), lr=0.01, clip_norm=1.0)"
    warned = [("NativeMissingWarning", line)]
    assert outputs[1][-1] == repr(warned)
    assert outputs[0][-1] == (repr([]) if engines.native_isas() else repr(warned))


# --- I18, I19: how much of everything ----------------------------------------------------------------------------------


def instructions(action: Callable[[], Any]) -> int:
    """How many of the interpreter's instructions the package's code takes: time that is the same on every machine."""
    count = 0

    def trace(frame: types.FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if f"{os.sep}openadam{os.sep}" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(outer)
    return count


def tensors(count: int) -> None:
    optimizer = openadam.NAdam([np.ones(1) for _ in range(count)])
    for missing in (None, np.ones(1)):
        optimizer.step([missing, *(np.ones(1) for _ in range(count - 1))])
    optimizer.load_state_dict(optimizer.state_dict())


def groups(count: int) -> None:
    optimizer = openadam.NAdam([{"params": np.ones(1), "lr": 0.1 + i} for i in range(count)])
    for _ in range(2):
        optimizer.step([np.ones(1)] * count)
    optimizer.load_state_dict(optimizer.state_dict())


def exclusions(count: int) -> None:
    parameters = {str(i): np.ones(1) for i in range(count)}
    openadam.AdamW(parameters, no_decay=list(parameters)).step({name: np.ones(1) for name in parameters})


@pytest.mark.parametrize("work", [tensors, groups, exclusions])
def test_i18_twice_as_many_take_twice_as_long(work: Callable[[int], None]) -> None:
    work(1)  # what is done once
    few, many = (instructions(functools.partial(work, count)) for count in (60, 240))
    assert many < 5 * few, f"{few} instructions for 60, {many} for 240"


def test_i18_a_hundred_thousand_numbers() -> None:
    count = 100_000
    optimizer = openadam.Adam([np.ones(1, np.float32) for _ in range(count)], lr=0.5)
    gradients = [np.ones(1, np.float32)] * count
    assert optimizer.step(gradients).grad_norm == pytest.approx(count**0.5)
    assert sum(float(p[0]) for p in optimizer.params.values()) == pytest.approx(count * 0.5)


@linux
@pytest.mark.skipif("native" not in ENGINES, reason="the reference needs memory for what it computes")
def test_i18_memory_is_that_of_the_states() -> None:
    """Sixteen megabytes of parameters need thirty-two of states, and a few for everything else, clipping and checks included."""
    script = """
import re
import numpy as np
import openadam


def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1])


openadam.Adam(np.ones(70_000), threads=2).step(np.ones(70_000))  # what is needed once
w, g = np.ones(4_000_000, np.float32), np.ones(4_000_000, np.float32)
before = peak()
optimizer = openadam.AdamW(w, threads=2, clip_norm=1.0, clip_value=0.5)
for _ in range(3):
    optimizer.step(g, measure=True)
print(peak() - before)
"""
    assert 30_000 < int(python(script)) < 38_000  # kilobytes


CYCLES = """
import ctypes, gc, os, sys
import numpy as np
import openadam


def resident():
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # what was freed may stay between blocks that were not
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cycle(count, size, member):
    for _ in range(count):
        w = np.ones(size, np.float32)
        optimizer = member({"w": w}, threads=2)
        optimizer.step({"w": w + 1})
        if size > 100_000:
            optimizer.load_state_dict(optimizer.state_dict())


members = [openadam.Adam, openadam.NAdam, openadam.SGD, openadam.RMSProp]
for size, count in ((10, 4500), (1_000_000, 20)):
    for member in members:
        cycle(count // 10, size, member)
    gc.collect()
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    for member in members:
        cycle(count, size, member)
    gc.collect()
    print(resident() - before, len(os.listdir("/proc/self/fd")) - files)
"""


@linux
def test_i19_optimizers_come_and_go() -> None:
    """Twenty thousand of them leave no memory and no files behind."""
    for line in python(CYCLES, timeout=120).splitlines():
        grown, files = map(int, line.split())
        assert grown < 2_000_000
        assert files == 0


# --- how the modules depend on each other ------------------------------------------------------------------------------


def package_modules() -> dict[str, Path]:
    """The files of the installed package by the names of their modules; that of the native part is its stub."""
    root = Path(openadam.__file__).parent
    files = [path for path in root.rglob("*.py*") if path.suffix in (".py", ".pyi")]
    return {".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported_modules(module: str, modules: dict[str, Path]) -> set[str]:
    """What a module of the package imports of the package, also in functions and for type checking only.

    A package that is run because something in it is imported does not count.
    """
    found = set()
    package = module if modules[module].stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(modules[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules else source for alias in node.names}
    return found & modules.keys()


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of modules of which each reaches every other."""
    reached = {}
    for module in imports:
        reached[module], pending = set(), [module]
        while pending:
            new = imports[pending.pop()] - reached[module]
            reached[module] |= new
            pending += new
    return {frozenset(other for other in reached[module] if module in reached[other]) for module in imports if module in reached[module]}


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}}) == {frozenset("bc"), frozenset("d")}


def test_no_modules_import_each_other() -> None:
    modules = package_modules()
    imports = {module: imported_modules(module, modules) for module in modules}
    imports["openadam.cli"] |= {f"openadam.cli.{command}" for command in cli.COMMANDS}  # imported by their names when they run
    assert "openadam.rules" in imports["openadam.step"]
    assert circles(imports) == set()
