"""What every benchmark here has in common: interleaved rounds in one run, medians of ratios, bars, JSON, and the tables of docs/speed.md."""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import openadam
from openadam import engine

HERE = Path(__file__).resolve().parent
MILLION = 1_000_000
Run = Callable[[], Any]


REST = 0.02  # seconds; torch's OpenMP threads spin for some milliseconds after a step and would be charged to whoever comes next


def interleaved(
    runs: dict[str, Run], *, rounds: int, repeats: int = 5, warm: int = 2, before: Run | None = None, least: dict[str, float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Every round takes all runs, in an order drawn anew. Each gets a short rest first, then runs ``repeats`` times in a row, of
    which the median counts: its caches are its own, as in a loop that does nothing else. ``before`` is called before every single run,
    outside the time; ``least`` receives the shortest time of each.
    """
    before = before or (lambda: None)
    for run in runs.values():
        for _ in range(warm):
            before()
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            rested = time.perf_counter() + REST
            while time.perf_counter() < rested:  # busy, as between two steps of a training loop: sleeping would slow the processor down
                pass
            taken = []
            for _ in range(repeats):
                before()
                start = time.perf_counter()
                runs[name]()
                taken.append(time.perf_counter() - start)
            seconds[name].append(statistics.median(taken))
            if least is not None:
                least[name] = min(least.get(name, math.inf), *taken)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, peer: str) -> float:
    """The median over rounds of ours / peer."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True))


@functools.cache
def limits() -> ctypes.CDLL:
    """The functions of stream.cpp, compiled for this machine."""
    library = Path(tempfile.mkdtemp()) / "stream.so"
    flags = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, str(HERE / "stream.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def touching(optimizer: torch.optim.Optimizer) -> Run:
    """Reads one word in each cache line of the objects that a step must look at: parameters, gradients, states, and the dicts of these."""
    lines: list[int] = []
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        own = optimizer.state[p]
        for tensor in (p, p.grad, *own.values()):
            storage = tensor.untyped_storage()._cdata
            lines += [id(tensor), *(tensor._cdata + at for at in (0, 64, 128, 168)), storage, storage + 48]
        lines += [id(own), own["step"].data_ptr()]
    addresses = np.array(lines, np.int64)
    touch = limits().touch
    touch.argtypes, touch.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int64
    return lambda: touch(addresses.ctypes.data, addresses.size)


class Stream:
    """The streaming loop of stream.cpp, compiled for this machine, over arrays of its own."""

    def __init__(self, size: int) -> None:
        self.function = limits().stream
        self.function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int, ctypes.c_bool]
        # As our optimizer has them: its states in one piece of memory that begins on another line of a page than the arrays do.
        self.arrays = [np.ones(size, np.float32), np.full(size, 1e-30, np.float32), *np.ones((2, size), np.float32)]

    def run(self, threads: int, check: bool = False) -> None:
        """One pass; if it is to check, the gradient is read once more before."""
        self.function(*(array.ctypes.data for array in self.arrays), self.arrays[0].size, threads, check)


class Bench:
    """Collects results, prints them as they come, and remembers which bars were missed."""

    def __init__(self, threads: int, rounds: float) -> None:
        self.threads = threads
        self.scale = rounds
        self.results: list[dict[str, Any]] = []

    def rounds(self, count: int) -> int:
        return max(3, round(count * self.scale))

    def report(self, case: str, what: str, value: float, bar: float | None, *, above: bool = False, **more: Any) -> None:
        reached = None if bar is None else bool(value >= bar if above else value <= bar)
        self.results.append({"case": case, "what": what, "value": value, "bar": bar, "at_least": above, "reached": reached, **more})
        wanted = "" if bar is None else f"   bar {'>=' if above else '<='} {bar:.3g}   {'reached' if reached else 'MISSED'}"
        print(f"{case:<34} {what:<52} {value:8.3f}{wanted}", flush=True)

    def finish(self, path: str, about: Mapping[str, Any]) -> None:
        """Say what was missed, and write the results."""
        missed = [result for result in self.results if result["reached"] is False]
        print(f"\n{len(self.results)} results, {len(missed)} bars missed")
        assert all(math.isfinite(result["value"]) for result in self.results)
        Path(path).write_text(json.dumps({"about": about, "results": self.results}, indent=2) + "\n")
        print(f"written to {path}")


def machine() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown(path: str) -> str:
    """The table of docs/speed.md from the JSON of a run."""
    run = json.loads(Path(path).read_text())
    about = run["about"]
    lines = [
        f"{about['machine']}, {about['threads']} threads, kernels {about['isa']}; "
        f"torch {about['torch']}, NumPy {about['numpy']}, Python {about['python']}.",
        "",
        "| case | what | measured | bar |",
        "| --- | --- | ---: | ---: |",
    ]
    for result in run["results"]:
        bar = "" if result["bar"] is None else f"{'≥' if result['at_least'] else '≤'} {result['bar']:.3g}"
        lines.append(f"| {result['case']} | {result['what']} | {result['value']:.3g} | {bar} |")
    return "\n".join(lines)


def start(description: str, cases: str, path: str) -> tuple[Bench, set[str], str, dict[str, Any]]:
    """Read the command line; returns the bench, the cases that are wanted (none: all), where results go, and what the machine is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=engine.resolve_threads(None))
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of rounds")
    parser.add_argument("--only", default="", help=f"comma-separated: {cases}")
    parser.add_argument("--json", default=path, help="where the results go")
    parser.add_argument("--table", metavar="JSON", help="print the results of an earlier run as the table of docs/speed.md, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(arguments.table))
        sys.exit(0)
    torch.set_num_threads(arguments.threads)
    about = {
        "machine": machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "isa": openadam.AdamW(np.zeros(1, np.float32))._engine.isa,
        "openadam": openadam.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("every ratio is the median over rounds in which ours and the peer ran one after the other\n")
    return Bench(arguments.threads, arguments.rounds), set(filter(None, arguments.only.split(","))), arguments.json, about
