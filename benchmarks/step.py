"""How fast a step over NumPy arrays is, against named peers: interleaved in one run, equal threads, medians of ratios. Run with `make bench`."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from harness import MILLION, Bench, Run, Stream, interleaved, ratio, start
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

import openadam


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


def shapes(bench: Bench, case: str, count: int, size: int, bar_plain: float, bar_clipped: float, rounds: int) -> None:
    params, grads = arrays(count, size)
    plain = openadam.AdamW(params, nonfinite="propagate", threads=bench.threads)
    guarded_params, guarded_grads = arrays(count, size)
    guarded = openadam.AdamW(guarded_params, clip_norm=1.0, threads=bench.threads)
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
    if count * size >= 10 * MILLION:  # bound by memory
        stream = Stream(count * size)
        runs["stream"] = lambda: stream.run(bench.threads)
        runs["stream, checked"] = lambda: stream.run(bench.threads, check=True)
    seconds = interleaved(runs, rounds=bench.rounds(rounds))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    more = {f"seconds of {name}": value for name, value in median.items()}
    if "stream" in runs:
        gigabytes = 28 * count * size / 1e9
        print(f"{'':<34} 28 bytes per parameter; streaming limit of this run {gigabytes / median['stream']:.1f} GB/s,")
        print(f"{'':<34} ours {gigabytes / median['ours']:.1f} GB/s, torch fused {gigabytes / median['torch']:.1f} GB/s")
        reached = ratio(seconds, "stream", "ours")
        bench.report(case, "speed of a plain streaming loop (its time / ours)", reached, 0.9 if count == 1 else None, above=True)
        bench.report(case, "limit: the streaming loop / torch fused", ratio(seconds, "stream", "torch"), None)
        what = "limit: the streaming loop that looks at g first / (torch fused + clip)"
        bench.report(case, what, ratio(seconds, "stream, checked", "torch, clipped"), None)
    bench.report(case, "propagate: ours / torch fused", ratio(seconds, "ours", "torch"), bar_plain, **more)
    what = "protected and clipped: ours / (torch fused + clip)"
    bench.report(case, what, ratio(seconds, "ours, protected", "torch, clipped"), bar_clipped, **more)


def members(bench: Bench, size: int) -> None:
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
    adam = openadam.Adam([p], nonfinite="propagate", threads=bench.threads)
    for name, (ours, our_options, theirs, their_options, per_parameter) in peers.items():
        (q,), (h,) = arrays(1, size)
        member = ours([q], nonfinite="propagate", threads=bench.threads, **our_options)
        runs: dict[str, Run] = {"adam": lambda: adam.step([g]), "ours": lambda: member.step([h])}  # noqa: B023
        for way in ("foreach", "fused", "for-loop"):
            flags = {"foreach": {"foreach": True}, "fused": {"fused": True}, "for-loop": {"foreach": False}}[way]
            try:
                runs[f"torch {way}"] = theirs(tensors(1, size), **flags, **their_options).step
            except (TypeError, RuntimeError):
                continue  # torch has no fused kernel for this one
        seconds = interleaved(runs, rounds=bench.rounds(9), warm=7)  # RAdam is rectified from its sixth step on
        per_byte = ratio(seconds, "ours", "adam") * 28 / per_parameter
        bench.report(f"{name}, 1 x 20M", f"time per byte / our Adam's ({per_parameter} bytes per parameter)", per_byte, 1.15)
        fastest = min((way for way in runs if way.startswith("torch")), key=lambda way: statistics.median(seconds[way]))
        bench.report(f"{name}, 1 x 20M", f"ours / torch's fastest ({fastest[6:]})", ratio(seconds, "ours", fastest), None)


def textbooks(bench: Bench, size: int) -> None:
    (p,), (g,) = arrays(1, size)
    ours = openadam.Adam([p], nonfinite="propagate", threads=bench.threads)  # which check nothing, like the others here
    (o,), (f,) = arrays(1, size)
    protected = openadam.Adam([o], threads=bench.threads)
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
    stream = Stream(size)
    runs = {
        "ours": lambda: ours.step([g]),
        "ours, protected": lambda: protected.step([f]),
        "textbook": textbook,
        "sklearn": lambda: sklearn.update_params([r], [k]),
        "stream": lambda: stream.run(bench.threads),
        "stream, 1 thread": lambda: stream.run(1),
    }
    seconds = interleaved(runs, rounds=bench.rounds(41), warm=3)
    for peer, name in (("textbook", "a textbook NumPy Adam"), ("sklearn", "scikit-learn's Adam")):
        bench.report("1 x 1M", f"times faster than {name}", 1 / ratio(seconds, "ours", peer), 10, above=True)
        limit = max(1 / ratio(seconds, loop, peer) for loop in ("stream", "stream, 1 thread"))
        bench.report("1 x 1M", f"limit: times that a plain streaming loop is faster than {name}", limit, None)
        bench.report("1 x 1M", f"the same, protected: times faster than {name}", 1 / ratio(seconds, "ours, protected", peer), None)


def imports(bench: Bench) -> None:
    def run(module: str) -> Run:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    seconds = interleaved({"openadam": run("openadam"), "numpy": run("numpy")}, rounds=bench.rounds(11), repeats=1, warm=1)
    more = statistics.median(a - b for a, b in zip(seconds["openadam"], seconds["numpy"], strict=True))
    bench.report("import openadam", "seconds more than import numpy", more, 0.15)


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "large, shapes, members, textbooks, imports", "openadam-bench.json")
    if not wanted or "large" in wanted:
        shapes(bench, "1 x 20M", 1, 20 * MILLION, 1.0, 0.75, 25)
    if not wanted or "shapes" in wanted:
        shapes(bench, "200 x 100k", 200, 100_000, 0.8, 0.75, 25)
        shapes(bench, "2,000 x 500", 2_000, 500, 1 / 15, 0.75, 51)
        shapes(bench, "20,000 x 16", 20_000, 16, 1 / 15, 0.75, 9)
    if not wanted or "members" in wanted:
        members(bench, 20 * MILLION)
    if not wanted or "textbooks" in wanted:
        textbooks(bench, MILLION)
    if not wanted or "imports" in wanted:
        imports(bench)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
