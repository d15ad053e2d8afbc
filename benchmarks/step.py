"""How fast a step is, against named peers: interleaved in one run, equal threads, medians of ratios. Run with `make bench`."""

from __future__ import annotations

import argparse
import ctypes
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

import openadam
from openadam import engine

HERE = Path(__file__).resolve().parent
MILLION = 1_000_000
Run = Callable[[], Any]


REST = 0.02  # seconds; torch's OpenMP threads spin for some milliseconds after a step and would be charged to whoever comes next


def interleaved(runs: dict[str, Run], *, rounds: int, repeats: int = 5, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Every round takes all runs, in an order drawn anew. Each gets a short rest first, then runs ``repeats`` times in a row, of
    which the median counts: its caches are its own, as in a loop that does nothing else.
    """
    for run in runs.values():
        for _ in range(warm):
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
                start = time.perf_counter()
                runs[name]()
                taken.append(time.perf_counter() - start)
            seconds[name].append(statistics.median(taken))
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, peer: str) -> float:
    """The median over rounds of ours / peer."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True))


def arrays(count: int, size: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    params = [rng.standard_normal(size, dtype=np.float32) for _ in range(count)]
    grads = [rng.standard_normal(size, dtype=np.float32) for _ in range(count)]
    return params, grads


def tensors(count: int, size: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [torch.randn(size).requires_grad_() for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size)
    return params


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

    def shapes(self, case: str, count: int, size: int, bar_plain: float, bar_clipped: float, rounds: int) -> None:
        params, grads = arrays(count, size)
        plain = openadam.AdamW(params, nonfinite="propagate", threads=self.threads)
        guarded_params, guarded_grads = arrays(count, size)
        guarded = openadam.AdamW(guarded_params, clip_norm=1.0, threads=self.threads)
        peers, clipped = tensors(count, size), tensors(count, size)
        fused = torch.optim.AdamW(peers, fused=True)
        fused_clipped = torch.optim.AdamW(clipped, fused=True)

        def torch_clipped() -> None:
            torch.nn.utils.clip_grad_norm_(clipped, 1.0)
            fused_clipped.step()

        runs = {
            "ours": lambda: plain.step(grads),
            "ours, protected": lambda: guarded.step(guarded_grads),
            "torch": fused.step,
            "torch, clipped": torch_clipped,
        }
        if case == "1 x 20M":
            state = plain.state["0"]
            addresses = [a.ctypes.data for a in (params[0], grads[0], state["exp_avg"], state["exp_avg_sq"])]
            stream = load_stream()
            runs["stream"] = lambda: stream(*addresses, count * size, self.threads)
        seconds = interleaved(runs, rounds=self.rounds(rounds))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        more = {f"seconds of {name}": value for name, value in median.items()}
        if "stream" in runs:
            gigabytes = 28 * count * size / 1e9
            print(f"{'':<34} 28 bytes per parameter; streaming limit of this run {gigabytes / median['stream']:.1f} GB/s,")
            print(f"{'':<34} ours {gigabytes / median['ours']:.1f} GB/s, torch fused {gigabytes / median['torch']:.1f} GB/s")
            self.report(case, "speed of a plain streaming loop (its time / ours)", ratio(seconds, "stream", "ours"), 0.9, above=True)
        self.report(case, "propagate: ours / torch fused", ratio(seconds, "ours", "torch"), bar_plain, **more)
        what = "protected and clipped: ours / (torch fused + clip)"
        self.report(case, what, ratio(seconds, "ours, protected", "torch, clipped"), bar_clipped, **more)

    def members(self, size: int) -> None:
        """The other members of the family, per byte moved, against our Adam and against torch's fastest."""
        peers: dict[str, tuple[type, dict[str, Any], type, dict[str, Any], int]] = {
            # name: (ours, its options, torch's, its options, bytes per parameter)
            "NAdam": (openadam.NAdam, {}, torch.optim.NAdam, {}, 28),
            "RAdam": (openadam.RAdam, {}, torch.optim.RAdam, {}, 28),
            "AdaMax": (openadam.AdaMax, {}, torch.optim.Adamax, {}, 28),
            "RMSProp": (openadam.RMSProp, {}, torch.optim.RMSprop, {}, 20),
            "AMSGrad": (openadam.AMSGrad, {}, torch.optim.Adam, {"amsgrad": True}, 36),
        }
        (p,), (g,) = arrays(1, size)
        adam = openadam.Adam([p], nonfinite="propagate", threads=self.threads)
        for name, (ours, our_options, theirs, their_options, per_parameter) in peers.items():
            (q,), (h,) = arrays(1, size)
            member = ours([q], nonfinite="propagate", threads=self.threads, **our_options)
            runs: dict[str, Run] = {"adam": lambda: adam.step([g]), "ours": lambda: member.step([h])}  # noqa: B023
            for way in ("foreach", "fused", "for-loop"):
                flags = {"foreach": {"foreach": True}, "fused": {"fused": True}, "for-loop": {"foreach": False}}[way]
                try:
                    runs[f"torch {way}"] = theirs(tensors(1, size), **flags, **their_options).step
                except (TypeError, RuntimeError):
                    continue  # torch has no fused kernel for this one
            seconds = interleaved(runs, rounds=self.rounds(9), warm=7)  # RAdam is rectified from its sixth step on
            per_byte = ratio(seconds, "ours", "adam") * 28 / per_parameter
            self.report(f"{name}, 1 x 20M", f"time per byte / our Adam's ({per_parameter} bytes per parameter)", per_byte, 1.15)
            fastest = min((way for way in runs if way.startswith("torch")), key=lambda way: statistics.median(seconds[way]))
            self.report(f"{name}, 1 x 20M", f"ours / torch's fastest ({fastest[6:]})", ratio(seconds, "ours", fastest), None)

    def textbooks(self, size: int) -> None:
        (p,), (g,) = arrays(1, size)
        ours = openadam.Adam([p], nonfinite="propagate", threads=self.threads)  # which check nothing, like the others here
        (o,), (f,) = arrays(1, size)
        protected = openadam.Adam([o], threads=self.threads)
        (q,), (h,) = arrays(1, size)
        m, v, t = np.zeros_like(q), np.zeros_like(q), 0

        def textbook() -> None:
            nonlocal m, v, q, t
            t += 1
            m = 0.9 * m + 0.1 * h
            v = 0.999 * v + 0.001 * h**2
            q = q - 0.001 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

        (r,), (k,) = arrays(1, size)
        sklearn = AdamOptimizer([r])
        runs = {
            "ours": lambda: ours.step([g]),
            "ours, protected": lambda: protected.step([f]),
            "textbook": textbook,
            "sklearn": lambda: sklearn.update_params([r], [k]),
        }
        seconds = interleaved(runs, rounds=self.rounds(41), warm=3)
        for peer, name in (("textbook", "a textbook NumPy Adam"), ("sklearn", "scikit-learn's Adam")):
            self.report("1 x 1M", f"times faster than {name}", 1 / ratio(seconds, "ours", peer), 10, above=True)
            self.report("1 x 1M", f"the same, protected: times faster than {name}", 1 / ratio(seconds, "ours, protected", peer), None)

    def imports(self) -> None:
        def run(module: str) -> Run:
            return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

        seconds = interleaved({"openadam": run("openadam"), "numpy": run("numpy")}, rounds=self.rounds(11), repeats=1, warm=1)
        more = statistics.median(a - b for a, b in zip(seconds["openadam"], seconds["numpy"], strict=True))
        self.report("import openadam", "seconds more than import numpy", more, 0.15)


def load_stream() -> Any:
    """The streaming loop of stream.cpp, compiled for this machine."""
    library = Path(tempfile.mkdtemp()) / "stream.so"
    flags = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, str(HERE / "stream.cpp"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).stream
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int]
    return function


def machine() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown(path: str) -> str:
    """The table of the README, from the JSON of a run."""
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


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=engine.resolve_threads(None))
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of rounds")
    parser.add_argument("--only", default="", help="comma-separated: large, shapes, members, textbooks, imports")
    parser.add_argument("--json", default="openadam-bench.json", help="where the results go")
    parser.add_argument("--table", metavar="JSON", help="print the results of an earlier run as the README's table, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(arguments.table))
        return
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.threads, arguments.rounds)
    wanted = set(filter(None, arguments.only.split(",")))
    isa = openadam.AdamW(np.zeros(1, np.float32))._engine.isa
    about = {
        "machine": machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "isa": isa,
        "openadam": openadam.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("every ratio is the median over rounds in which ours and the peer ran one after the other\n")
    if not wanted or "large" in wanted:
        bench.shapes("1 x 20M", 1, 20 * MILLION, 1.0, 0.75, 25)
    if not wanted or "shapes" in wanted:
        bench.shapes("200 x 100k", 200, 100_000, 0.8, 0.75, 25)
        bench.shapes("2,000 x 500", 2_000, 500, 1 / 15, 0.75, 51)
        bench.shapes("20,000 x 16", 20_000, 16, 1 / 15, 0.75, 9)
    if not wanted or "members" in wanted:
        bench.members(20 * MILLION)
    if not wanted or "textbooks" in wanted:
        bench.textbooks(MILLION)
    if not wanted or "imports" in wanted:
        bench.imports()
    missed = [result for result in bench.results if result["reached"] is False]
    print(f"\n{len(bench.results)} results, {len(missed)} bars missed")
    assert all(math.isfinite(result["value"]) for result in bench.results)
    Path(arguments.json).write_text(json.dumps({"about": about, "results": bench.results}, indent=2) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
