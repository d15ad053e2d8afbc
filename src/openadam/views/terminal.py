"""The terminal of whatever runs for a while: where its results go, and how far it has come."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from ..studies import demo_module

__all__ = ["Progress", "new_console"]


def new_console() -> Any:
    """What results are printed to: as wide as the terminal, wide in a file."""
    console = demo_module("rich.console").Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file has no width of its own
    return console


class Progress:
    """How much is done and how long the rest may take, on stderr: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, total: int) -> None:
        progress = demo_module("rich.progress")
        closed = {"file": io.StringIO()} if sys.stderr is None else {}  # not into the results
        console = demo_module("rich.console").Console(stderr=True, **closed)
        self.live, self.begun, self.told = console.is_interactive, time.monotonic(), 0.0
        columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()]
        columns += [progress.TimeRemainingColumn(), progress.TextColumn("left")]
        self.bar = progress.Progress(*columns, console=console, transient=True, disable=not self.live)
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def at(self, done: int, total: int, what: str) -> None:
        """So many are done, of so many as far as that is known; and what it is at."""
        self.bar.update(self.task, description=what[:40], completed=done, total=total)
        spent = time.monotonic() - self.begun
        if not self.live and sys.stderr is not None and done and (not self.told or spent - self.told > 10 or done == total):
            print(f"{done} of {total} done ({what}); about {spent / done * (total - done):.0f} s left", file=sys.stderr, flush=True)
            self.told = spent
