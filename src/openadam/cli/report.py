"""``openadam report``: a recording as one HTML page, and its figures as files."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path
from typing import Any

from .arguments import UsageError, add_recording, refuse_no_track, whole
from .output import complain_of_picture, draw, printable, refuse_unwritable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="where to (default: beside the recording, with .html at its end)")
    parser.add_argument("--png", type=Path, metavar="DIR", help="draw the figures as PNG files into this directory, too (needs the extra demo)")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="the same as SVG files")
    parser.add_argument("--batch-size", type=whole(1, 10**9), metavar="N", help="samples in a batch, to tell the noise scale in samples too")


def run(given: argparse.Namespace) -> int:
    from .. import record
    from ..views.report import report

    output = given.output or Path(given.file).with_suffix(".html")
    folders = {kind: folder for kind in ("png", "svg") if (folder := getattr(given, kind)) is not None}
    session = record.load(given.file, given.session)
    refuse_no_track(session, given.track)
    if output.exists() and output.samefile(given.file):
        raise UsageError(f"{output} is the recording: name another --output")
    refuse_unwritable(output, "report")
    for folder in folders.values():
        _refuse_no_folder(folder)
    output.write_text(report(session, given.track, given.batch_size), encoding="utf-8", newline="\n")
    print(printable(output))
    return max((_draw(session, given.track, folder, kind) for kind, folder in folders.items()), default=0)


def _refuse_no_folder(folder: Path) -> None:
    """A directory that is missing is made; its parent must be there."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no directory for pictures", str(folder))
    refuse_unwritable(folder / "x" if folder.is_dir() else folder, "directory")


def _draw(session: Any, track: str | None, folder: Path, kind: str) -> int:
    """Every figure as a file; the exit code."""
    from ..views.plots import plots

    folder.mkdir(exist_ok=True)
    for name, picture in plots(session, track, kind):
        file = folder / f"{name}.{kind}"
        failure = draw(file, picture)
        if failure is not None:
            sys.stdout.flush()
            complain_of_picture(failure)
            return 1
        print(printable(file))
    return 0
