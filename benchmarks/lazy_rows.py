"""What a step over some rows of a large table costs: against `torch.optim.SparseAdam` and against a dense step, in one run. Run with `make bench`."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from harness import MILLION, Bench, Run, interleaved, start
from torch import Tensor

import openadam
import openadam.torch

warnings.filterwarnings("ignore", message="Sparse invariant checks")


def gradients(rows: int, width: int, named: int, words: bool) -> Iterator[Tensor]:
    """Of an embedding: rows drawn at random, each once, or as words come in a text, a few of them again and again (by Zipf's law)."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(8):
        indices = (random.zipf(1.1, named) - 1) % rows if words else random.permutation(rows)[:named]
        values = torch.from_numpy(random.standard_normal((named, width)).astype(np.float32) * 1e-3)
        made.append(torch.sparse_coo_tensor(torch.from_numpy(indices)[None], values, (rows, width)))
    return itertools.cycle(made)


def case(bench: Bench, what: str, rows: int, width: int, named: int, *, words: bool = False, bar: float | None = 1 / 3, dense: bool = False) -> None:
    """Report our steps against torch's, and where asked to against our own step over all rows."""
    tables = [torch.nn.Parameter(torch.zeros(rows, width)) for _ in range(2)]
    ours, theirs = openadam.torch.SparseAdam(tables[:1], threads=bench.threads), torch.optim.SparseAdam(tables[1:])
    array = np.zeros((rows, width), np.float32)
    arrays = openadam.Adam(array, epsilon="hat", threads=bench.threads)
    given = gradients(rows, width, named, words)
    latest: list[openadam.Rows] = []

    def before() -> None:
        gradient = next(given)
        for p in tables:
            p.grad = gradient
        latest[:] = [openadam.Rows(gradient._indices()[0].numpy(), gradient._values().numpy())]

    runs: dict[str, Run] = {"ours": ours.step, "ours over arrays": lambda: arrays.step(latest[0]), "torch": theirs.step}
    peers = ["torch"]
    if dense:
        whole = torch.nn.Parameter(torch.zeros(rows, width))
        whole.grad = torch.full((rows, width), 1e-3)
        runs["ours, all rows"] = openadam.torch.Adam([whole], threads=bench.threads).step
        peers.append("ours, all rows")
    seconds = interleaved(runs, rounds=bench.rounds(15), repeats=5, before=before)
    for peer, name in itertools.product(peers, ("ours", "ours over arrays")):
        value = statistics.median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))
        microseconds = {each: 1e6 * statistics.median(seconds[each]) for each in (name, peer)}
        bench.report(what, f"{name} / {peer}", value, bar if peer == "torch" else None, microseconds=microseconds)
        print(f"{'':<34} us: {microseconds[name]:.0f} / {microseconds[peer]:.0f}")


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "distinct, words, narrow, few", "openadam-lazy-bench.json")
    if not wanted or "distinct" in wanted:
        case(bench, "1M x 64, 4,096 rows", MILLION, 64, 4096, dense=True)
    if not wanted or "words" in wanted:
        case(bench, "1M x 64, 4,096 words", MILLION, 64, 4096, words=True)
    if not wanted or "narrow" in wanted:
        case(bench, "1M x 8, 4,096 rows", MILLION, 8, 4096)
    if not wanted or "few" in wanted:
        case(bench, "10,000 x 64, 64 rows", 10_000, 64, 64, bar=None)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
