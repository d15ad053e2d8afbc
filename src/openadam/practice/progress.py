"""What has been answered: a small JSON file in the user's data folder, without which everything works."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

__all__ = ["answered", "keep", "progress_file"]

FORMAT = "openadam practice, format 1"


def progress_file() -> Path | None:
    """Where progress is kept: ``OPENADAM_PRACTICE_FILE`` (empty for nowhere), or the platform's folder for a user's data."""
    given = os.environ.get("OPENADAM_PRACTICE_FILE")
    if given is not None:
        return Path(given) if given else None
    try:
        if sys.platform == "win32":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / "Application Support"
        else:
            folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError:  # nobody's home
        return None
    return folder / "openadam" / "practice.json"


def answered() -> dict[str, list[int]]:
    """By the names of practices, the seeds of the questions that were answered; nothing if it cannot be read."""
    path = progress_file()
    try:
        return {} if path is None else _read(path)
    except (OSError, ValueError) as error:
        _warn(path, error)
        return {}


def keep(name: str, seed: int) -> None:
    """Remember that a question was answered; a warning if that cannot be done."""
    path = progress_file()
    if path is None:
        return
    try:
        done = _read(path)
        if seed not in done.setdefault(name, []):
            done[name] = sorted([*done[name], seed])
            _write(path, {"format": FORMAT, "answered": dict(sorted(done.items()))})
    except (OSError, ValueError) as error:
        _warn(path, error)


def _read(path: Path) -> dict[str, list[int]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise ValueError("it is damaged and is left as it is; delete it to begin anew") from None
    done = found.get("answered") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(done, dict) or not all(isinstance(seeds, list) and all(type(seed) is int for seed in seeds) for seeds in done.values()):
        raise ValueError("it is not what this version writes and is left as it is; delete it to begin anew")
    return done


def _write(path: Path, content: object) -> None:
    """The whole file or the old one: written beside it, and put in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _warn(path: Path | None, error: Exception) -> None:
    reason = error.strerror or error if isinstance(error, OSError) else error
    warnings.warn(f"progress is not kept: {path}: {reason}", UserWarning, stacklevel=3)
