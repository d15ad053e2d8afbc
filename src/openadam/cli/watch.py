"""``openadam watch``: follow a training run in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from .arguments import add_recording, refuse_no_track, whole
from .output import complain, printable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument("--once", action="store_true", help="show what is there, and leave")
    parser.add_argument("--wait", action="store_true", help="wait for the file, if it is not there yet")
    parser.add_argument("--every", type=whole(1, 10**9), metavar="N", help="where it is no terminal: a line every N steps (default: at each look)")
    parser.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two looks at the file (default 1)")


def run(given: argparse.Namespace) -> int:
    from .. import record
    from ..extras import module
    from ..views.watch import Findings, News, line, screen

    if given.wait:
        _await(given.file, given.interval)
    session = record.load(given.file, given.session)
    if given.once or session.is_over:  # else it may yet come
        refuse_no_track(session, given.track)
    if sys.stdout is None or not sys.stdout.isatty():
        news = News(given.track)
        for each, due in [(session, True)] if given.once else _apart(session.follow(given.interval), given.every):
            for text in news(each):
                print(text, flush=True)
            if due:
                print(printable(line(each, given.track)), flush=True)
        return 0
    console = module("rich.console", "demo").Console(highlight=False)

    findings = Findings(session)

    def view(each: Any) -> Any:
        return screen(each, given.track, console.width, console.height, findings())

    if given.once or session.is_over:
        console.print(view(session))
        return 0
    live = module("rich.live", "demo").Live(view(session), console=console, auto_refresh=False, screen=False, vertical_overflow="crop")
    with live:
        for each in session.follow(given.interval):
            live.update(view(each), refresh=True)
    return 0


def _await(file: str, seconds: float) -> None:
    """Until a recording has begun there; what else may be there is for who reads it to refuse."""
    if not _begun(file):
        complain(f"waiting for {file}")
        while not _begun(file):
            time.sleep(seconds)


def _begun(file: str) -> bool:
    try:
        return os.path.getsize(file) > 0
    except FileNotFoundError:
        return False


def _apart(looks: Iterable[Any], steps: int | None) -> Iterator[tuple[Any, bool]]:
    """The looks, and whether they are so many steps after the last that were; the first and that of the end always are."""
    seen = None
    for each in looks:
        taken = sum(track.steps for track in each.tracks.values())
        due = steps is None or seen is None or taken - seen >= steps or each.is_over
        seen = taken if due else seen
        yield each, due


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.05 to 3600")
    return seconds
