"""Where a user's data and caches are kept, as the platform has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_folder", "data_folder"]


def data_folder() -> Path | None:
    """For what should not be lost; None where nobody's home is known."""
    return _folder("XDG_DATA_HOME", ".local/share", "Application Support")


def cache_folder() -> Path | None:
    """For what can be made anew; None where nobody's home is known."""
    return _folder("XDG_CACHE_HOME", ".cache", "Caches")


def _folder(variable: str, below_home: str, in_library: str) -> Path | None:
    try:
        if sys.platform == "win32":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / in_library
        else:
            folder = Path(os.environ.get(variable) or Path.home() / below_home)
    except RuntimeError:
        return None
    return folder / "openadam"
