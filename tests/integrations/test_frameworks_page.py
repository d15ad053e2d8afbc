"""What docs/frameworks.md shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from peers import OURS
from torch.optim.optimizer import register_optimizer_step_post_hook

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "frameworks.md").read_text()
SECTIONS = [part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:] if "```python" in part]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda part: part.splitlines()[0])
def test_the_example_runs(section):
    (source,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    namespace: dict = {"__name__": "example"}
    stepped: list = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: stepped.append(optimizer))
    try:
        exec(compile(source, "docs/frameworks.md", "exec"), namespace)
    finally:
        hook.remove()
    assert stepped
    assert {type(optimizer) for optimizer in stepped} == {namespace["AdamW"]} == {OURS}
    assert stepped[-1].last_step.step == len(stepped)
