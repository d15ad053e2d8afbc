"""``openadam report``: a recording as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import UsageError, add_recording
from .output import printable, refuse_unwritable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="where to (default: beside the recording, with .html at its end)")


def run(given: argparse.Namespace) -> int:
    from .. import record
    from ..views.report import report

    output = given.output or Path(given.file).with_suffix(".html")
    session = record.load(given.file, given.session)
    if output.exists() and output.samefile(given.file):
        raise UsageError(f"{output} is the recording: name another --output")
    refuse_unwritable(output, "report")
    output.write_text(report(session, given.track), encoding="utf-8", newline="\n")
    print(printable(output))
    return 0
