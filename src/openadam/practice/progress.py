"""What has been answered: a line of JSON for each answer in a file of the user's data folder, without which everything works.

The file is only appended to, each line in one write, so that none is lost when several answers are checked at once.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..folders import data_folder
from .model import whole_seed

__all__ = ["answered", "keep", "progress_file"]

FORMAT = "openadam practice, format 2"
ALL_AT_ONCE = "openadam practice, format 1"  # an object of all answers, which may be followed by lines


def progress_file() -> Path | None:
    """Where progress is kept: ``OPENADAM_PRACTICE_FILE`` (empty for nowhere), or the platform's folder for a user's data."""
    given = os.environ.get("OPENADAM_PRACTICE_FILE")
    try:
        if given is not None:
            return Path(given).expanduser() if given else None
    except RuntimeError:  # nobody's home
        return None
    folder = data_folder()
    return folder / "practice.json" if folder is not None else None


def answered() -> dict[str, list[int]]:
    """By the names of practices, the seeds of the questions that were answered; nothing if it cannot be read."""
    path = progress_file()
    try:
        return {} if path is None else {name: sorted(seeds) for name, seeds in sorted(_read(path).items())}
    except (OSError, ValueError) as error:
        _warn(path, error)
        return {}


def keep(name: str, seed: int) -> None:
    """Remember that a question was answered; a warning if that cannot be done."""
    path = progress_file()
    if path is None:
        return
    try:
        if seed not in _read(path).get(name, ()):
            _append(path, {"format": FORMAT, "name": name, "seed": whole_seed(seed)})
    except (OSError, ValueError) as error:
        _warn(path, error)


def _read(path: Path) -> dict[str, set[int]]:
    done: dict[str, set[int]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return done
    except ValueError:
        text = "\0"
    for found in _values(text):
        match found:
            case {"format": fmt, "name": str(name), "seed": seed} if fmt == FORMAT and type(seed) is int:
                done.setdefault(name, set()).add(seed)
            case {"format": fmt, "answered": dict(all_of_them)} if fmt == ALL_AT_ONCE and all(map(_are_seeds, all_of_them.values())):
                for name, seeds in all_of_them.items():
                    done.setdefault(name, set()).update(seeds)
            case _:
                raise ValueError("it is not what this version writes and is left as it is; delete it to begin anew")
    return done


def _values(text: str) -> Iterator[Any]:
    """The values of JSON in a text, one after the other."""
    read, place, text = json.JSONDecoder().raw_decode, 0, text.strip()
    while place < len(text):
        try:
            found, place = read(text, place)
        except (ValueError, RecursionError):
            raise ValueError("it is damaged and is left as it is; delete it to begin anew") from None
        yield found
        while text[place : place + 1].isspace():
            place += 1


def _are_seeds(seeds: object) -> bool:
    return isinstance(seeds, list) and all(type(seed) is int for seed in seeds)


def _append(path: Path, content: object) -> None:
    """A line more, by a single write: others may append at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"{json.dumps(content)}\n".encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        written = os.write(descriptor, line)
        if written < len(line):  # the disk is full; half a line would spoil the file
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if end == os.fstat(descriptor).st_size:  # nobody has appended since
                os.ftruncate(descriptor, end - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _warn(path: Path | None, error: Exception) -> None:
    reason = error.strerror or error if isinstance(error, OSError) else error
    warnings.warn(f"progress is not kept: {path}: {reason}", UserWarning, stacklevel=3)
