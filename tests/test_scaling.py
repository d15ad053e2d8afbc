"""What docs/scaling.md shows is run, and its tables are those of benchmarks/scaling.py, whose numbers are those of real steps."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_the_script_prints() -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        load_script().main()
    assert output.getvalue() in PAGE.read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_bytes_of_the_tables_are_those_of_a_step(dtype: str) -> None:
    import openadam.torch

    script = load_script()
    for name, settings in script.MEMBERS:
        p = torch.nn.Parameter(torch.ones(8, dtype=getattr(torch, dtype)))
        p.grad = torch.ones_like(p)
        optimizer = getattr(openadam.torch, name)([p], **settings)
        optimizer.step()
        states = sum(value.nbytes for value in optimizer.state[p].values() if torch.is_tensor(value) and value.shape == p.shape)
        assert script.held(p.element_size(), script.states(name, settings)) == (p.nbytes // 8, p.grad.nbytes // 8, states // 8), name


def count_exchange() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    import openadam.torch

    script = load_script()
    received = []
    gather = dist.all_gather

    def counted(theirs: list[Any], mine: Any, **kwargs: Any) -> Any:
        received.append(mine.nbytes * (len(theirs) - 1))
        return gather(theirs, mine, **kwargs)

    dist.all_gather = counted
    for shape, lr in (((4,), 0.1), ((2, 2), 0.1), ((1, 4), 0.1), ((4,), 0.0)):
        full = torch.ones(5, 4)
        mesh = init_device_mesh("cpu", shape)
        where = [Shard(0)] * len(shape)
        parameters = [torch.nn.Parameter(distribute_tensor(full, mesh, where, src_data_rank=None)) for _ in range(3)]
        optimizer = openadam.torch.AdamW(parameters, lr=lr, clip_norm=1.0)
        for p in parameters:
            p.grad = distribute_tensor(full, mesh, where, src_data_rank=None)
        received.clear()
        optimizer.step()
        assert sum(received) == script.exchanged(*shape)
        assert len(received) == sum(size > 1 for size in shape)


def test_the_bytes_of_the_exchange_are_those_of_a_step() -> None:
    from distributed import launch

    launch(count_exchange, 4)


def run_page(folder: Path) -> None:
    os.chdir(folder)
    namespace: dict[str, Any] = {}
    for source in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        exec(compile(source, "scaling.md", "exec"), namespace)
    assert namespace["optimizer"].optim.last_step.step == 3
    assert (folder / "checkpoint" / ".metadata").exists()


def test_the_use_that_the_page_shows_works(tmp_path: Path) -> None:
    from distributed import launch

    launch(run_page, 2, folder=tmp_path)
