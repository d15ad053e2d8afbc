"""What a type checker sees of openadam.torch: right calls pass, wrong ones are reported, and the stub says what is true at run time."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest

torch = pytest.importorskip("torch")
CLASSES = [name for name in importlib.import_module("openadam.torch").__all__ if name != "Optimizer"]  # which says its own

RIGHT = """
from typing import Any

import torch
import openadam
from openadam.torch import SGD, Adagrad, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop
from torch import Tensor
from typing_extensions import assert_type

model = torch.nn.Linear(2, 1)
p = torch.zeros(3, requires_grad=True)
Adam(model.parameters())
Adam(model.parameters(), 0.1, (0.9, 0.99), 1e-6, 0.1, True, maximize=True, foreach=False, fused=None, clip_norm=1)
groups: list[dict[str, Any]] = [{"params": [p], "lr": 0.1}, {"params": model.parameters()}]
Adam(groups, lr=torch.tensor(0.1), decoupled_weight_decay=True)
AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.1, no_decay="bias", nonfinite="skip")
AdamW(model.named_parameters(), no_decay=lambda name, p: p.ndim < 2 or name.endswith("bias"))
AdamW(params=[p], betas=(0.9, 0.999), no_decay=p)
NAdam([p], momentum_decay=0.01, threads=2, clip_value=None)
RAdam([p], decoupled_weight_decay=True, nonfinite="raise", no_decay=[p])
Adamax([p], 0.1, (0.8, 0.9), 1e-8, 0, None, sharded=True)
RMSprop([p], alpha=0.9, momentum=0.9, centered=True, engine="graph")
Adagrad([p], lr_decay=0.1, initial_accumulator_value=0.1, engine=None, nonfinite="propagate")
SGD([p], lr=0.1, momentum=0.9, dampening=0.1, nesterov=False, engine="native")

optimizer = AdamW(model.named_parameters(), clip_norm=1.0, clip_value=0.5, no_decay=["bias", p], engine="compiled")
as_torchs: torch.optim.AdamW = optimizer
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
scaler = torch.amp.GradScaler("cpu")
kinds: list[type[torch.optim.Optimizer]] = [Adam, AdamW, SGD]

def loss() -> Tensor:
    return model(torch.zeros(2)).sum()  # type: ignore[no-any-return]

def number() -> float:
    return float(loss())

optimizer.zero_grad(set_to_none=True)
optimizer.step()
optimizer.step(None, measure=True)
assert_type(optimizer.step(number), float)
assert_type(optimizer.step(loss, measure=False), Tensor)
scaler.step(optimizer)
optimizer.load_state_dict(optimizer.state_dict())
optimizer.add_param_group({"params": [p]})
assert_type(optimizer.last_step, openadam.StepReport | None)
if optimizer.last_step is not None:
    assert_type(optimizer.last_step.grad_norm, float)
    assert_type(optimizer.last_step.measures, openadam.reports.Measured | None)
assert_type(optimizer.skipped, int)
assert_type(optimizer.clip_norm, float | None)
assert_type(optimizer.clip_value, float | None)
assert_type(optimizer.threads, int | None)
assert_type(optimizer.sharded, bool)
policy: str = optimizer.nonfinite
engine: str = optimizer.engine or "native"

class Mine(SGD):
    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        super().__init__(model.named_parameters(), lr, momentum=0.9, clip_norm=1.0)

Mine(model, 0.1).step()
"""

WRONG = """
import torch
from openadam.torch import SGD, Adagrad, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop

p = torch.zeros(3, requires_grad=True)
AdamW()  # wrong
AdamW(3)  # wrong
AdamW([p], weigth_decay=0.1)  # wrong
AdamW([p], lr="x")  # wrong
AdamW([p], betas=(0.9, 0.99, 0.999))  # wrong
Adam([p], 0.1, 0.9)  # wrong
Adam([p], 0.1, (0.9, 0.99), 1e-8, 0, False, 1.0)  # wrong
NAdam([p], nonfinite="rise")  # wrong
RAdam([p], engine="fast")  # wrong
Adamax([p], clip_norm="1")  # wrong
RMSprop([p], clip_value=(1, 2))  # wrong
Adagrad([p], no_decay=3)  # wrong
SGD([p], no_decay=lambda p: p.ndim < 2)  # wrong
SGD([p], no_decay=[3])  # wrong
SGD([p], threads=1.5)  # wrong
SGD([p], sharded="yes")  # wrong
SGD([p], betas=(0.9, 0.99))  # wrong
SGD([p], fused=None, capturable=False)  # wrong

def text() -> str:
    return ""

optimizer = AdamW([p])
optimizer.step(measure=1.5)  # wrong
optimizer.step(None, True)  # wrong
optimizer.step(3)  # wrong
optimizer.step(lambda x: x)  # wrong
number: float = optimizer.step(text)  # wrong
optimizer.last_step.grad_norm  # wrong
optimizer.clip_norm = 1.0  # wrong
optimizer.nonfinite = "skip"  # wrong
optimizer.no_decay = []  # wrong
optimizer.skipped = 0  # wrong
optimizer.clip_nrom  # wrong
assert optimizer.last_step is not None
optimizer.last_step.gradient_norm  # wrong
optimizer.load_state_dict(3)  # wrong
optimizer.add_param_group([p])  # wrong
"""


def test_right_calls_pass_and_wrong_ones_are_reported(tmp_path: Path) -> None:
    """One run of mypy over two scripts of a user's, who has the package as it is installed."""
    api = pytest.importorskip("mypy.api")
    for name, script in (("right", RIGHT), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(script)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\nshow_error_codes = True\n")
    files = [str(tmp_path / name) for name in ("mypy.ini", "right.py", "wrong.py")]
    said, errors, _ = api.run(["--config-file", *files, "--python-executable", sys.executable, "--cache-dir", str(tmp_path / "cache")])
    assert not errors, errors
    found = [(name, int(line)) for name, line in re.findall(r"(\w+)\.py:(\d+): error:", said)]
    expected = [line for line, text in enumerate(WRONG.splitlines(), 1) if text.endswith("# wrong")]
    assert not [line for name, line in found if name == "right"], said
    assert sorted({line for name, line in found if name == "wrong"}) == expected, said
    assert len(found) == said.count(": error:"), said  # and nothing elsewhere


@pytest.fixture(scope="module")
def stub() -> Any:
    """The stub, which is Python, run: its classes beside those that it describes."""
    package = importlib.import_module("openadam.torch")
    path = Path(package.__file__ or "").with_suffix(".pyi")
    module = ModuleType("stub")
    module.__dict__["__package__"] = package.__name__
    sys.modules["stub"] = module
    try:
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules["stub"]


def test_the_stub_names_what_there_is(stub: Any) -> None:
    package = importlib.import_module("openadam.torch")
    assert stub.__all__ == package.__all__
    for name in CLASSES:
        assert getattr(stub, name).__bases__ == getattr(package, name).__bases__
        assert not [key for key in vars(getattr(stub, name)) if not key.startswith("_")]  # all else is said in the modules themselves


@pytest.mark.parametrize("name", CLASSES)
def test_the_stub_and_the_constructors_agree(stub: Any, name: str) -> None:
    """Names, order, kinds, defaults, and types: those of torch's for torch's arguments."""
    host = importlib.import_module("openadam.torch.host")
    *theirs, options = list(inspect.signature(getattr(stub, name).__init__).parameters.values())[1:]
    own = get_type_hints(stub._Options)
    assert options.kind is inspect.Parameter.VAR_KEYWORD
    found = list(inspect.signature(getattr(importlib.import_module("openadam.torch"), name)).parameters.values())
    assert [each.name for each in found] == [each.name for each in theirs] + list(own) == [each.name for each in theirs] + host.OPTIONS
    assert [(each.kind, each.default) for each in found[: len(theirs)]] == [(each.kind, each.default) for each in theirs]
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in found[len(theirs) :])
    hints, torchs, hosts = (get_type_hints(kind.__init__) for kind in (getattr(stub, name), getattr(torch.optim, name), host.Host))
    assert {each.name: hints[each.name] for each in theirs} == {each.name: torchs[each.name] for each in theirs}
    assert own == {key: hosts[key] for key in own}


def test_a_register_of_overloads_is_no_leak() -> None:
    """What typing keeps until the very end keeps the module alive in which it was defined; nothing is said of that at exit."""
    script = "import typing, openadam.torch\n@typing.overload\ndef f(optimizer: openadam.torch.Adam) -> None: ..."
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
