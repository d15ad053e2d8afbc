"""What commands print and draw: results as JSON or in columns on stdout, complaints in one line on stderr, pictures in files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..views.text import printable

__all__ = [
    "assignments",
    "complain",
    "complain_of_picture",
    "discard_output",
    "draw",
    "print_columns",
    "print_json",
    "printable",
    "refuse_unwritable",
]


NARROWEST = 20  # a column that is narrower is not worth wrapping


def complain(message: str) -> None:
    """One line on stderr, if anybody can read it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"openadam: {printable(message)}", file=sys.stderr)


def discard_output() -> None:
    """Nobody can read what is still buffered, and Python would complain about that at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """The value as strict JSON."""
    print(json.dumps(value, indent=indent, allow_nan=False))


def print_columns(rows: Iterable[Sequence[object]]) -> None:
    """Left-aligned, two spaces apart; on a terminal the last column is wrapped to its width."""
    lines = [[printable(cell) for cell in row] for row in rows]
    *widths, _ = [max(map(len, column)) for column in zip(*lines, strict=True)]
    indent = sum(widths) + 2 * len(widths)
    room = shutil.get_terminal_size().columns - indent if sys.stdout is not None and sys.stdout.isatty() else 0
    for *cells, last in lines:
        parts = textwrap.wrap(last, room, break_on_hyphens=False) if room >= NARROWEST else [last]
        start = "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths, strict=True))
        for part in parts or [""]:
            print(f"{start}{part}".rstrip())
            start = " " * indent


def assignments(values: Mapping[str, Any]) -> str:
    """Names and values on one line: ``lr=0.001 beta1=0.9``."""
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())


# --- pictures ----------------------------------------------------------------------------------------------------------


def refuse_unwritable(path: Path, what: str = "picture") -> None:
    """Refuse now what could not be written after the work."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"is a directory, not a {what}", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(path))


def draw(path: Path, picture: Callable[[], bytes]) -> Exception | None:
    """Write a picture. What goes wrong, of the library, its settings or the disk, is returned: the results are worth printing all the same."""
    try:
        path.write_bytes(picture())
    except Exception as error:
        return error
    return None


def complain_of_picture(failure: Exception) -> None:
    """Say why there is no picture, once the results are out."""
    if isinstance(failure, OSError):
        raise failure
    complain(f"error: the picture could not be drawn ({type(failure).__name__}: {' '.join(str(failure).split())[:200]})")
