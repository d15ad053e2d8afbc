"""Studies: real experiments, each plain data from start to end. `frame` runs them; one file a study: `digits`, `gan`, `rl`, `nlp`."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["demo_module", "module"]


def module(name: str, extra: str) -> ModuleType:
    """A module of an extra; if it is missing, the ImportError says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name.partition('.')[0]}, which cannot be imported ({error}): pip install 'openadam[{extra}]'") from error


def demo_module(name: str) -> ModuleType:
    """A module of the ``demo`` extra."""
    return module(name, "demo")
