"""What it costs to see inside a step, in every one and in every tenth, against separate passes in torch; and what a whole recording costs,
over arrays and in torch: measures, Python, buckets, and the thread that writes. In one run, by `make bench`.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import MILLION, Bench, Run, interleaved, ratio, start

import openadam
import openadam.torch
from openadam import record

SECONDS = 0.6  # that a run of a recorded optimizer takes at least, so that its thread writes in each


def separate_passes(tensors: list[torch.Tensor]) -> None:
    """As trainers log gradients, parameters and moments: the least, the largest, the mean and the norm of each."""
    for tensor in tensors:
        tensor.min().item(), tensor.max().item(), tensor.mean().item(), tensor.norm().item()


def histograms(tensors: list[torch.Tensor]) -> None:
    """As trainers log gradients: 64 bins of each."""
    for tensor in tensors:
        torch.histc(tensor, 64)


def case(bench: Bench, what: str, count: int, size: int, every: float, tenth: float | None) -> None:
    """Report the step that looks against the plain one, and what looking adds against what separate passes take."""
    random = np.random.default_rng(0)
    params = [random.standard_normal(size, dtype=np.float32) for _ in range(count)]
    grads = [random.standard_normal(size, dtype=np.float32) for _ in range(count)]
    optimizer = openadam.AdamW(params, lr=1e-5, threads=bench.threads)
    optimizer.step(grads)
    as_torch = [[torch.from_numpy(array) for array in arrays] for arrays in (params, grads)]
    moments = [torch.from_numpy(optimizer.state[name][key]) for name in optimizer.params for key in ("exp_avg", "exp_avg_sq")]
    torch.set_num_threads(bench.threads)

    def ten(measured: Callable[[int], bool]) -> None:
        for t in range(10):
            optimizer.step(grads, measure=measured(t))

    runs: dict[str, Run] = {
        "plain": lambda: ten(lambda t: False),
        "every step": lambda: ten(lambda t: True),
        "every tenth": lambda: ten(lambda t: t == 0),
        "min, max, mean, norm in torch": lambda: separate_passes([*as_torch[0], *as_torch[1], *moments]),
        "64-bin histograms in torch": lambda: histograms(as_torch[1]),
    }
    seconds = interleaved(runs, rounds=bench.rounds(9))
    median = {name: statistics.median(values) for name, values in seconds.items()}

    def median_of(ratio: Callable[..., float]) -> float:
        return statistics.median(map(ratio, *(seconds[name] for name in runs)))

    bench.report(what, "observed every step / plain", median_of(lambda plain, all_, *_: all_ / plain), every, seconds=median)
    bench.report(what, "observed every tenth / plain", median_of(lambda plain, _, tenth, *__: tenth / plain), tenth)
    bench.report(what, "what observing adds / passes in torch", median_of(lambda plain, all_, _, passes, __: (all_ - plain) / 10 / passes), 0.1)
    bench.report(what, "what observing adds / histograms", median_of(lambda plain, all_, _, __, bins: (all_ - plain) / 10 / bins), None)


def over_arrays(params: list[np.ndarray], grads: list[np.ndarray], threads: int, recorder: record.Recorder | None) -> Run:
    optimizer = openadam.AdamW(params, lr=1e-5, threads=threads, record=recorder)
    return functools.partial(optimizer.step, grads, loss=1.0)


def in_torch(params: list[np.ndarray], grads: list[np.ndarray], threads: int, recorder: record.Recorder | None) -> Run:
    torch.set_num_threads(threads)
    parameters = [torch.nn.Parameter(torch.from_numpy(array)) for array in params]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = torch.from_numpy(grad)
    optimizer = openadam.torch.AdamW(parameters, lr=1e-5, record=recorder)
    return lambda: optimizer.step(loss=1.0)


def recording(bench: Bench, what: str, count: int, size: int) -> None:
    """Report recorded steps against plain ones of the same tensors: by the usual schedule, after its first hundred steps, and every one."""
    random = np.random.default_rng(0)
    params, grads = ([random.standard_normal(size, dtype=np.float32) for _ in range(count)] for _ in range(2))
    for host, make in (("arrays", over_arrays), ("torch", in_torch)):
        with tempfile.TemporaryDirectory() as folder, record.Recorder(Path(folder, "usual.oadam")) as usual, record.Recorder(
            Path(folder, "every.oadam"), every=1
        ) as every:  # fmt: skip
            steps = {name: make(params, grads, bench.threads, recorder) for name, recorder in (("plain", None), ("usual", usual), ("every", every))}
            for step in steps.values():
                for _ in range(usual.dense + 1):
                    step()
            began = time.perf_counter()
            for _ in range(10):
                steps["plain"]()
            rounds_of_ten = max(1, round(SECONDS / (time.perf_counter() - began)))

            def run(step: Run, times: int = 10 * rounds_of_ten) -> None:
                for _ in range(times):
                    step()

            seconds = interleaved({name: functools.partial(run, step) for name, step in steps.items()}, rounds=bench.rounds(9), repeats=1, warm=1)
        bench.report(f"{what}, {host}", "recorded, as by default / plain", ratio(seconds, "usual", "plain"), None)
        bench.report(f"{what}, {host}", "recorded, every step / plain", ratio(seconds, "every", "plain"), None)


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "memory, cache, tensors, recording", "openadam-observe-bench.json")
    if not wanted or "memory" in wanted:
        case(bench, "20 M", 1, 20 * MILLION, 1.35, 1.04)
    if not wanted or "cache" in wanted:
        case(bench, "16 x 65,536", 16, 65_536, 2.0, None)
    if not wanted or "tensors" in wanted:
        case(bench, "200 x 10,000", 200, 10_000, 2.0, None)
    if not wanted or "recording" in wanted:
        for what, count, size in (("2 x 10 M", 2, 10 * MILLION), ("50 x 10,000", 50, 10_000), ("200 x 10,000", 200, 10_000)):
            recording(bench, what, count, size)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
