"""Studies: real experiments, each plain data from start to end. `frame` runs them; one file a study: `digits`, `gan`, `rl`, `nlp`.

A study of one's own is a `frame.Study`: settings, claims, and a function that returns a `frame.Cell`. In a file ``mine.py``, the command
``openadam study mine:STUDY`` runs it with all that the others have.

>>> from openadam.studies.frame import Cell, Claim, Setting, Study, judge, planned, run_cells
>>> import numpy as np, openadam
>>> def run(setting, seed, full):
...     x = np.random.default_rng(seed).standard_normal(5)
...     optimizer = openadam.Adam(x, **setting.hyperparameters)
...     for _ in range(50):
...         _ = optimizer.step(2 * x)
...     return Cell(setting.name, seed, {"distance": float(np.abs(x).max())})
>>> study = Study(
...     name="bowl", title="A bowl", metrics={"distance": "from the bottom after 50 steps"},
...     settings=[Setting("slow", {"lr": 0.001}), Setting("fast", {"lr": 0.1})],
...     claims=[Claim("a larger rate comes nearer", "nobody", "distance", "fast", "slow", "below")],
...     run=run, seeds=3, full_seeds=9,
... )
>>> cells = list(run_cells(study, planned(["slow", "fast"], seeds=8)))
>>> judge(study.claims[0], cells).verdict
'seen'
"""

from __future__ import annotations

from types import ModuleType

from ..extras import module

__all__ = ["demo_module", "module"]


def demo_module(name: str) -> ModuleType:
    """A module of the ``demo`` extra."""
    return module(name, "demo")
