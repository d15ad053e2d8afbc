"""What a step over few or small tensors costs, where most of it is not arithmetic: against `torch.optim`, in one run. Run with `make bench`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Bench, Run, interleaved, start

import openadam
import openadam.torch

MLP = [(64, 4), (64,), (64, 64), (64,), (2, 64), (2,)]


def tensors(shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [torch.randn(shape).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape) * 1e-3
    return params


def compare(
    bench: Bench, case: str, runs: dict[str, Run], peer: str, bars: dict[str, float | None], *,
    repeats: int = 100, rounds: int = 25, per: int = 1, before: Run | None = None,
) -> None:  # fmt: skip
    """Report each run against the peer: the median over rounds of the ratio, and the shortest times."""
    least: dict[str, float] = {}
    seconds = interleaved(runs, rounds=bench.rounds(rounds), repeats=repeats, warm=20, before=before, least=least)
    for name, bar in bars.items():
        value = statistics.median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))
        times = {each: 1e6 * statistics.median(seconds[each]) / per for each in (name, peer)}
        shortest = {each: 1e6 * least[each] / per for each in (name, peer)}
        what = f"{name} / {peer}"
        bench.report(case, what, value, bar, microseconds=times, shortest=shortest)
        print(
            f"{'':<34} us: {times[name]:.1f} / {times[peer]:.1f}; "
            f"shortest {shortest[name]:.1f} / {shortest[peer]:.1f}, that is {shortest[name] / shortest[peer]:.3f}"
        )


def few(bench: Bench) -> None:
    """The networks that most people have on a CPU."""
    ours, theirs = openadam.torch, torch.optim
    values = [p.detach().numpy().copy() for p in tensors(MLP)]
    gradients = [p.grad.numpy().copy() for p in tensors(MLP)]  # type: ignore[union-attr]
    arrays = openadam.AdamW(values)
    runs: dict[str, Run] = {
        "ours": ours.AdamW(tensors(MLP)).step,
        "ours, propagate": ours.AdamW(tensors(MLP), nonfinite="propagate").step,
        "ours over arrays": lambda: arrays.step(gradients),
        "torch fused": theirs.AdamW(tensors(MLP), fused=True).step,
        "torch default": theirs.AdamW(tensors(MLP)).step,
    }
    compare(
        bench, "AdamW, MLP of 6 tensors", runs, "torch fused", {"ours": 0.7, "ours, propagate": 0.6, "ours over arrays": 0.4, "torch default": None}
    )
    for count, shapes in ((1, [(64,)]), (6, MLP)):
        runs = {"ours": ours.SGD(tensors(shapes)).step, "torch": theirs.SGD(tensors(shapes)).step}
        compare(bench, f"SGD, {count} tensor{'s' if count > 1 else ''}", runs, "torch", {"ours": 1.3})
    for size, name in ((10_000, "1 x 10k"), (1_000_000, "1 x 1M")):
        shapes = [(size,)]
        runs = {
            "ours": ours.AdamW(tensors(shapes)).step,
            "ours, propagate": ours.AdamW(tensors(shapes), nonfinite="propagate").step,
            "torch fused": theirs.AdamW(tensors(shapes), fused=True).step,
        }
        compare(bench, name, runs, "torch fused", {"ours": None, "ours, propagate": None})


def one_each(bench: Bench) -> None:
    """One optimizer per parameter, as they are stepped in backward hooks to save memory."""

    def stepping(make: Callable[[Any], Any]) -> Run:
        optimizers = [make([p]) for p in tensors([(64,)] * 200)]

        def run() -> None:
            for optimizer in optimizers:
                optimizer.step()

        return run

    runs = {
        "ours": stepping(openadam.torch.AdamW),
        "torch fused": stepping(lambda params: torch.optim.AdamW(params, fused=True)),
    }
    compare(bench, "one optimizer per parameter (200)", runs, "torch fused", {"ours": 0.7}, repeats=5, per=200)


def new_memory(bench: Bench) -> None:
    """Tensors whose memory is another one at every step."""
    sides = {"ours": openadam.torch.AdamW, "torch fused": lambda params: torch.optim.AdamW(params, fused=True)}
    for what in ("data", "states"):
        optimizers = {name: make(tensors([(64,)] * 500)) for name, make in sides.items()}

        def renew(what: str = what, optimizers: dict[str, Any] = optimizers) -> None:
            for optimizer in optimizers.values():
                for p in optimizer.param_groups[0]["params"]:
                    if what == "data":
                        p.data = p.data.clone()
                    for key, value in [*optimizer.state[p].items()] if what == "states" else ():
                        optimizer.state[p][key] = value.clone()

        runs = {name: optimizer.step for name, optimizer in optimizers.items()}
        compare(bench, f"500 tensors whose {what} are new each time", runs, "torch fused", {"ours": 1.0}, repeats=5, before=renew)


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "few, each, new", "openadam-small-bench.json")
    for name, cases in (("few", few), ("each", one_each), ("new", new_memory)):
        if not wanted or name in wanted:
            cases(bench)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
