"""Modules that come with an extra of this package: imported where they are needed, with one message where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["module"]


def module(name: str, extra: str) -> ModuleType:
    """A module of an extra; if it is missing, the ImportError says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = f"this needs {name.partition('.')[0]}, which cannot be imported ({error})"
        raise ImportError(f"{missing}: pip install 'openadam[{extra}]', or in a checkout pip install '.[{extra}]'") from error
