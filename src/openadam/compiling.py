"""Rules of one's own compiled where they are used: the printed kernel, built once by the compiler that is there, and kept in the user's cache.

A kernel's file is called by what it is (the rule, the instruction set, what was printed and how it was compiled) and by the checksum of its own
bytes, which is looked at before it is loaded; it is written under another name first, so that processes that build at once do not meet, and read
from no folder or file that somebody else can write to.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from . import engine as engines
from ._version import __version__
from .errors import NativeMissingWarning
from .folders import cache_folder
from .language import cpp
from .language.program import Program
from .language.rule import Rule
from .measures import LANES, printed_with

__all__ = ["Kept", "compile_rule", "kept_kernels", "kernels_folder"]

FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti",
    "-fvisibility=hidden",
)  # fmt: skip
FUNCTIONS = ("run_float", "run_double", "measured_float", "measured_double")
SECONDS = 120
ENDING = ".dylib" if sys.platform == "darwin" else ".so"

EXPORTED = """
extern "C" {
#define EXPORTED __attribute__((visibility("default")))
EXPORTED void run_float(void* const* tensors, const double* scalars, std::int64_t n) { rule<float>(tensors, scalars, n); }
EXPORTED void run_double(void* const* tensors, const double* scalars, std::int64_t n) { rule<double>(tensors, scalars, n); }
EXPORTED void measured_float(void* const* tensors, const void* given, const double* scalars, std::int64_t n, void* joined) {
  rule_measured<float>(tensors, given, scalars, n, joined);
}
EXPORTED void measured_double(void* const* tensors, const void* given, const double* scalars, std::int64_t n, void* joined) {
  rule_measured<double>(tensors, given, scalars, n, joined);
}
}
"""


class Kept(NamedTuple):
    """A kernel in the cache."""

    rule: str
    isa: str
    bytes: int
    path: Path


class _CannotCompileError(Exception):
    """Why not."""


def compile_rule(rule: Rule) -> Rule:
    """Compile a rule, so that optimizers that are made from now on run it as fast as the members of the family.

    Where there is a C++ compiler (``CXX``, else ``c++``, ``g++``, ``clang++``), the rule's kernel is built, in some seconds, and kept in the
    user's cache (`openadam info` lists what is there); from then on it is only loaded. Where there is none, the rule is interpreted, and a
    warning says so once. What it computes is the same, to the bit.

    Args:
        rule: One's own; all of its options are compiled.

    Returns:
        The rule itself.

    Raises:
        TypeError: It is no rule.

    >>> import numpy as np, openadam
    >>> @openadam.rule(lr=0.5)
    ... def descent(g, s, h):
    ...     return openadam.Step(g)
    >>> w = np.ones(2)
    >>> _ = openadam.Optimizer(w, rule=openadam.compile(descent)).step(np.ones(2))
    >>> w
    array([0.5, 0.5])
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"compile takes a rule, a function decorated with @openadam.rule, not {rule!r:.80}")
    native = engines.native_engine()
    if native is None:
        engines.warn_of_no_kernels(stacklevel=2)
        return rule
    for traced in rule.traces():
        program = engines.compiled(traced)[0]
        key = program.digest, native.isa
        if native.kernel(program) is not None or key in engines.COMPILED or native.mover(program) is None:
            continue
        try:
            engines.COMPILED[key] = _functions(_built(rule.name, program, native.isa))
        except _CannotCompileError as error:
            _say_once(f"rule {rule.name!r} is interpreted, not compiled: {error}")
    return rule


def kernels_folder() -> Path | None:
    """Where they are kept."""
    folder = cache_folder()
    return folder / "kernels" if folder is not None else None


def kept_kernels() -> list[Kept]:
    """What is in the cache, by the rules' names."""
    folder = kernels_folder()
    found = []
    for path in sorted(folder.glob(f"*{ENDING}")) if folder is not None and folder.is_dir() else ():
        name, isa, *_ = path.name.split("-")
        found.append(Kept(name, isa, path.stat().st_size, path))
    return found


def _built(name: str, program: Program, isa: str) -> Path:
    """The file of a program's kernel: that in the cache, or a new one."""
    compiler, flags = _compiler(), [*FLAGS, *([f"-march={isa.replace('_', '-')}"] if isa.startswith("x86_64") else [])]
    source = _source(program)
    what = hashlib.sha256("\n".join([__version__, *compiler, *flags, source]).encode()).hexdigest()[:20]
    stem = f"{re.sub(r'[^0-9A-Za-z_]', '_', name)[:40]}-{isa}-{what}"
    folder = kernels_folder()
    if folder is None:
        raise _CannotCompileError("there is no folder for caches: no home is known")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_foreign(folder)
        for path in sorted(folder.glob(f"{stem}-*{ENDING}")):
            if _checksum(path) == path.name.removesuffix(ENDING).rpartition("-")[2] and _is_ours(path):
                return path
            path.unlink()  # damaged, or another's
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / f"made{ENDING}"
            _compile([*compiler, *flags, "-x", "c++", "-", "-o", str(made)], source)
            made.chmod(0o500)
            path = folder / f"{stem}-{_checksum(made)}{ENDING}"
            made.replace(path)
            return path
    except OSError as error:
        raise _CannotCompileError(f"the cache {str(folder)!r} cannot be used ({error.strerror or error})") from error


def _source(program: Program) -> str:
    renamed = replace(program, name="rule")
    arithmetic = (Path(__file__).with_name("arithmetic.hpp")).read_text()
    parts = [arithmetic, "namespace {", f"constexpr int kLanes = {LANES};", cpp.update(renamed), printed_with(renamed), "}  // namespace"]
    return "\n\n".join(parts) + EXPORTED


@functools.lru_cache(maxsize=1)
def _found_compiler(given: str | None) -> list[str] | None:
    """The command: as in a makefile, ``CXX`` may have arguments."""
    for program, *arguments in [shlex.split(given)] if given else [["c++"], ["g++"], ["clang++"]]:
        found = shutil.which(program)
        if found is not None:
            return [found, *arguments]
    return None


def _compiler() -> list[str]:
    if sys.platform == "win32":
        raise _CannotCompileError("on Windows rules are not compiled")
    given = os.environ.get("CXX", "").strip() or None
    try:
        found = _found_compiler(given)
    except ValueError:  # a quotation that does not end
        found = None
    if found is None:
        raise _CannotCompileError(f"CXX={given!r} is no program here" if given else "there is no C++ compiler here (c++, g++ or clang++, or CXX=…)")
    return found


def _compile(command: list[str], source: str) -> None:
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _CannotCompileError(f"{command[0]} did not do it ({type(error).__name__})") from error
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise _CannotCompileError(f"{command[0]} says {first[:200]}")


def _functions(path: Path) -> list[int]:
    """The addresses of a kernel's functions; it stays loaded as long as the process lives."""
    try:
        library = ctypes.CDLL(str(path))
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in FUNCTIONS]
    except (OSError, AttributeError) as error:
        raise _CannotCompileError(f"{path.name} cannot be loaded ({error})") from error
    return [address for address in addresses if address]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that somebody else owns or can write to, which could put there what it likes."""
    found = folder.stat()
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022):
        raise _CannotCompileError(f"others can write to the cache {str(folder)!r}; make it yours alone (chmod 700), or set XDG_CACHE_HOME")


def _is_ours(path: Path) -> bool:
    found = path.stat()
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022)


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, NativeMissingWarning, stacklevel=4)
