"""Studies: real experiments, each plain data from start to end. `digits` compares optimizers on handwritten digits."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["demo_module"]


def demo_module(name: str) -> ModuleType:
    """A module of the ``demo`` extra; if it is missing, the ImportError says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name.partition('.')[0]}, which cannot be imported ({error}): pip install 'openadam[demo]'") from error
