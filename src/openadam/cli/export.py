"""``openadam export``: hand a recording on to another tool."""

from __future__ import annotations

import argparse

from .arguments import one_of, session_number

__all__ = ["add_arguments", "run"]

FORMATS = ("csv", "jsonl", "parquet", "tensorboard", "wandb", "mlflow", "trackio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a recording")
    parser.add_argument("--as", dest="form", required=True, metavar="FORMAT", type=one_of("format", FORMATS), help=" | ".join(FORMATS))
    parser.add_argument("--output", required=True, metavar="PATH", help="file or folder; for mlflow also a tracking URI, for trackio a project")
    parser.add_argument("--track", metavar="NAME", help="only this optimizer")
    parser.add_argument("--session", type=session_number, default=-1, metavar="N", help="from 0 as they were started; -1, the default, is the last")


def run(given: argparse.Namespace) -> int:
    from .. import record

    session = record.load(given.file, given.session)
    record.export(session, given.form, given.output, track=given.track)
    return 0
