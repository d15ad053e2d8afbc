"""``openadam export``: hand a recording on to another tool."""

from __future__ import annotations

import argparse
import sys

from .arguments import add_recording, one_of, refuse_no_track

__all__ = ["add_arguments", "run"]

FORMATS = ("csv", "jsonl", "parquet", "tensorboard", "wandb", "mlflow", "trackio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument("--as", dest="form", required=True, metavar="FORMAT", type=one_of("format", FORMATS), help=" | ".join(FORMATS))
    parser.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="file or folder; - is stdout; for mlflow also a tracking URI, for trackio a project"
    )


def run(given: argparse.Namespace) -> int:
    from .. import record

    session = record.load(given.file, given.session)
    refuse_no_track(session, given.track)
    output = sys.stdout if given.output == "-" and sys.stdout is not None else given.output
    record.export(session, given.form, output, track=given.track)
    return 0
