"""``openadam report``: a recording as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import UsageError, session_number
from .output import printable, refuse_unwritable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a recording")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="where to (default: beside the recording, with .html at its end)")
    parser.add_argument("--track", metavar="NAME", help="only this optimizer")
    parser.add_argument("--session", type=session_number, default=-1, metavar="N", help="from 0 as they were started; -1, the default, is the last")


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
