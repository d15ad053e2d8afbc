"""What rules of one's own cost: AdaBelief as a user writes it, interpreted and compiled, beside our Adam, in one run. Run with `make bench`."""

from __future__ import annotations

import itertools
import os
import tempfile
from typing import Any

import numpy as np
import torch
from harness import MILLION, Bench, Run, interleaved, ratio, start

import openadam
import openadam.torch
from openadam import Step, engine, sqrt


def belief(g: Any, s: Any, h: Any) -> Step:
    """Zhuang et al., 2020."""
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * (g - m) ** 2 + h.eps
    return Step(m / (1 - h.beta1**h.t) / (sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)


SETTINGS: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def made() -> openadam.rules.Rule:
    return openadam.rule(nonnegative=("v",))(belief)


def case(
    bench: Bench, what: str, count: int, elements: int, bars: tuple[float | None, float | None], *, rounds: int, reference: bool = False
) -> None:
    """Report the ratios to our own Adam, over arrays and over torch."""
    random = np.random.default_rng(0)
    params = [{str(k): random.standard_normal(elements).astype(np.float32) for k in range(count)} for _ in range(4)]
    grads = {name: random.standard_normal(elements).astype(np.float32) * np.float32(1e-3) for name in params[0]}
    tensors = [[torch.nn.Parameter(torch.zeros(elements)) for _ in range(count)] for _ in range(3)]
    for p in itertools.chain(*tensors):
        p.grad = torch.full((elements,), 1e-3)
    threads = bench.threads
    engine.COMPILED.clear()  # what was compiled for an earlier case is asked for anew
    arrays = {
        "adam": openadam.Adam(params[0], threads=threads),
        "interpreted": openadam.Optimizer(params[1], rule=made(), threads=threads, **SETTINGS),
    }
    theirs: dict[str, Any] = {
        "adam": openadam.torch.Adam(tensors[0], threads=threads),
        "interpreted": openadam.torch.Optimizer(tensors[1], rule=made(), threads=threads, **SETTINGS),
    }
    if reference:
        arrays["reference"] = openadam.Optimizer(params[3], rule=made(), engine="reference", **SETTINGS)
    for each in (*arrays.values(),):
        each.step(grads)
    for each in theirs.values():
        each.step()  # the programs are told to the tables in the first step
    compiled = openadam.compile(made())
    arrays["compiled"] = openadam.Optimizer(params[2], rule=compiled, threads=threads, **SETTINGS)
    theirs["compiled"] = openadam.torch.Optimizer(tensors[2], rule=compiled, threads=threads, **SETTINGS)
    runs: dict[str, Run] = {f"{name}, arrays": lambda each=each: each.step(grads) for name, each in arrays.items()}  # type: ignore[misc]
    runs |= {f"{name}, torch": each.step for name, each in theirs.items()}
    seconds = interleaved(runs, rounds=bench.rounds(rounds))
    for host, (way, bar) in itertools.product(("arrays", "torch"), zip(("interpreted", "compiled"), bars, strict=True)):
        bench.report(what, f"{way} / our Adam, {host}", ratio(seconds, f"{way}, {host}", f"adam, {host}"), bar)
    if reference:
        bench.report(what, "interpreted / the reference, arrays", ratio(seconds, "interpreted, arrays", "reference, arrays"), None)


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "memory, cache, tensors, small", "openadam-rules-bench.json")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        if not wanted or "memory" in wanted:
            case(bench, "20 M", 1, 20 * MILLION, (2.5, 1.05), rounds=9)
        if not wanted or "cache" in wanted:
            case(bench, "1 M", 1, MILLION, (None, None), rounds=15, reference=True)
        if not wanted or "tensors" in wanted:
            case(bench, "2,000 x 500", 2000, 500, (2.0, 1.05), rounds=15)
        if not wanted or "small" in wanted:
            case(bench, "64", 1, 64, (None, None), rounds=25, reference=True)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
