"""What it costs to see inside a step, in every one and in every tenth, against separate passes in torch, in one run. Run with `make bench`."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from harness import MILLION, Bench, Run, interleaved, start

import openadam


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


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "memory, cache, tensors", "openadam-observe-bench.json")
    if not wanted or "memory" in wanted:
        case(bench, "20 M", 1, 20 * MILLION, 1.35, 1.04)
    if not wanted or "cache" in wanted:
        case(bench, "16 x 65,536", 16, 65_536, 2.0, None)
    if not wanted or "tensors" in wanted:
        case(bench, "200 x 10,000", 200, 10_000, 2.0, None)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
