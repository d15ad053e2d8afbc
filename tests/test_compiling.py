"""Rules that are compiled where they are used: the same bits, a cache that can be trusted, and the interpreter where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam
from openadam import Step, cli, compiling, engine, sqrt
from openadam.engine import native_isas
from openadam.errors import NativeMissingWarning

pytestmark = [
    pytest.mark.skipif(not native_isas(), reason="no native code here"),
    pytest.mark.skipif(sys.platform == "win32", reason="on Windows rules are not compiled"),
    pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler here"),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing compiled yet."""
    for variable in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(engine, "COMPILED", {})
    compiling._say_once.cache_clear()
    compiling._found_compiler.cache_clear()
    yield tmp_path / "openadam" / "kernels" if sys.platform != "darwin" else tmp_path / "Library" / "Caches" / "openadam" / "kernels"
    compiling._found_compiler.cache_clear()


def belief(g: Any, s: Any, h: Any) -> Step:
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * (g - m) ** 2 + h.eps
    return Step(m / (1 - h.beta1**h.t) / (sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)


def drifting(g: Any, s: Any, h: Any) -> Step:
    drift = s.drift * (1 - h.rate)
    return Step(g + drift * s.asm, asm=s.asm + h.rate * (g - s.asm), drift=drift)  # a word of C++ as a name


def formed(g: Any, s: Any, h: Any, *, form: str) -> Step:
    return Step(s.a - s.b, a=s.b + g, b=s.a) if form == "swapped" else Step(g * abs(g))


def rules() -> dict[str, Any]:
    """Made anew: what is compiled is known by what it computes, and must not be known from another test."""
    return {
        "belief": openadam.rule(beta1=0.9, beta2=0.999, eps=1e-8, nonnegative=("v",))(belief),
        "drifting": openadam.rule(rate=0.1, initial={"drift": 0.5})(drifting),
        "formed": openadam.rule(options={"form": ("swapped", "square")})(formed),
        "lambda": openadam.rule(lambda g, s, h: Step(openadam.sign(g) * 2)),
    }


def steps(made: Any, size: int, dtype: Any, **settings: Any) -> Any:
    params = {"w": np.random.default_rng(0).normal(size=size).astype(dtype), "b": np.ones(3, dtype)}
    optimizer = openadam.Optimizer(params, rule=made, lr=0.01, weight_decay=0.1, coupling="coupled", clip_norm=1.0, **settings)
    seen = []
    for t in range(6):
        grads = {name: np.random.default_rng(t).normal(size=p.shape).astype(dtype) for name, p in params.items()}
        report = optimizer.step(grads, measure=t % 2 == 1)
        seen.append(None if report.measures is None else report.measures.table.tobytes())
    return [p.tobytes() for p in params.values()], seen, str(optimizer.state_dict()["state"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", rules())
def test_what_is_compiled_has_the_same_bits(name: str, dtype: Any, cache: Path) -> None:
    made = rules()[name]
    options = list(made.variants())
    expected = [[steps(made, size, dtype, engine="reference", **each) for size in (1, 17, 3000, 40_001)] for each in options]
    assert openadam.compile(made) is made
    assert len(engine.COMPILED) == len(options)
    for each, wanted in zip(options, expected, strict=True):
        assert [steps(made, size, dtype, **each) for size in (1, 17, 3000, 40_001)] == wanted
        assert steps(made, 40_001, dtype, threads=2, **each) == wanted[-1]


def test_the_compiled_code_is_what_runs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rules()["lambda"]
    printed = compiling.cpp.update
    monkeypatch.setattr(compiling.cpp, "update", lambda program: printed(program).replace("p_[i] = ", "p_[i] = T(1) + "))
    w = np.zeros(3)
    openadam.Optimizer(w, rule=openadam.compile(made), lr=0.5).step(np.ones(3))
    assert w.tolist() == [0.0] * 3, "1 - 2 * 0.5"


def test_over_torch_too(cache: Path) -> None:
    torch = pytest.importorskip("torch")
    from openadam.torch import Optimizer

    found = []
    for made in (rules()["belief"], openadam.compile(rules()["belief"])):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 4099))
        optimizer = Optimizer([p], rule=made, lr=0.01)
        for t in range(4):
            p.grad = torch.cos(p.detach() * (t + 1))
            optimizer.step()
        found.append(p.detach().numpy().tobytes())
    assert found[0] == found[1]


# --- the cache -------------------------------------------------------------------------------------------------------------


def test_a_kernel_is_built_once_and_then_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    openadam.compile(rules()["belief"])
    (kept,) = compiling.kept_kernels()
    assert (kept.rule, kept.isa, kept.path.parent) == ("belief", native_isas()[0], cache)
    assert [path.name for path in cache.iterdir()] == [kept.path.name], "nothing is left beside it"
    assert os.stat(cache).st_mode & 0o077 == 0
    engine.COMPILED.clear()
    monkeypatch.setattr(compiling, "_compile", lambda *given: pytest.fail("it is there already"))
    openadam.compile(rules()["belief"])
    assert len(engine.COMPILED) == 1
    assert cli.main(["info"]) == 0
    assert f"belief ({native_isas()[0]}): in {cache}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "changed", "another's"])
def test_a_file_that_is_not_as_it_was_is_built_anew(damage: str, cache: Path) -> None:
    openadam.compile(rules()["belief"])
    (kept,) = compiling.kept_kernels()
    before = kept.path.read_bytes()
    kept.path.chmod(0o722 if damage == "another's" else 0o700)
    if damage == "truncated":
        kept.path.write_bytes(before[: len(before) // 2])
    elif damage == "changed":
        kept.path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    # In a process of its own: here the library is loaded, and what is loaded must not be cut off.
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_compiling, openadam\n"
        "openadam.compile(test_compiling.rules()['belief'])\n"
        "print(test_compiling.steps(test_compiling.rules()['belief'], 17, 'float32') == "
        "test_compiling.steps(test_compiling.rules()['belief'], 17, 'float32', engine='reference'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
    (again,) = compiling.kept_kernels()
    assert again.path.stat().st_mode & 0o022 == 0
    assert again.path.name.rpartition("-")[2].removesuffix(compiling.ENDING) == compiling._checksum(again.path)


def test_a_cache_that_others_can_write_to_is_not_used(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.warns(NativeMissingWarning, match=r"'belief' is interpreted, not compiled: others can write to the cache .*chmod 700"):
        made = openadam.compile(rules()["belief"])
    assert engine.COMPILED == {}
    assert list(cache.iterdir()) == []
    assert steps(made, 17, np.float32) == steps(made, 17, np.float32, engine="reference")


def test_many_processes_build_at_once(cache: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_compiling, openadam\n"
        "openadam.compile(test_compiling.rules()['formed']); print(len(openadam.engine.COMPILED))"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for each in running:
        assert each.communicate(timeout=120) == ("2\n", "")
    assert {kept.rule for kept in compiling.kept_kernels()} == {"formed"}
    assert all(
        kept.path.name.rpartition("-")[2].removesuffix(compiling.ENDING) == compiling._checksum(kept.path) for kept in compiling.kept_kernels()
    )


# --- where it cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compiler", "says"),
    [("none-of-this-name", "CXX='none-of-this-name' is no program here"), ("false", "exit code 1"), ("broken", "says .*error: not today")],
)
def test_without_a_compiler_it_is_interpreted_and_said_once(compiler: str, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler == "broken":
        cache.parent.mkdir(parents=True)
        broken = cache.parent / "broken"
        broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: not today' >&2\nexit 1\n")
        broken.chmod(0o700)
        compiler = str(broken)
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(NativeMissingWarning, match=f"rule 'belief' is interpreted, not compiled: .*{says}"):
        made = openadam.compile(rules()["belief"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        openadam.compile(rules()["belief"])
    assert steps(made, 17, np.float32) == steps(made, 17, np.float32, engine="reference")
    assert compiling.kept_kernels() == []


def test_a_compiler_with_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    monkeypatch.setenv("CXX", f"{shutil.which('env')} LANG=C '{found}'")
    made = openadam.compile(rules()["belief"])
    assert len(engine.COMPILED) == 1
    assert steps(made, 17, np.float32) == steps(made, 17, np.float32, engine="reference")


def test_where_nobody_is_at_home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "cache_folder", lambda: None)
    with pytest.warns(NativeMissingWarning, match="no folder for caches"):
        openadam.compile(rules()["belief"])
    assert compiling.kept_kernels() == []


def test_by_the_decorator_and_of_what_needs_none(cache: Path) -> None:
    made = openadam.rule(compile=True, beta1=0.9, beta2=0.999, eps=1e-8)(belief)
    assert steps(made, 17, np.float32) == steps(made, 17, np.float32, engine="reference")
    assert len(engine.COMPILED) == 1, "when it was first used"
    openadam.compile(openadam.rules.adam)
    assert len(engine.COMPILED) == 1, "members of the family have kernels"
    with pytest.raises(TypeError, match="compile takes a rule"):
        openadam.compile(belief)  # type: ignore[arg-type]
