"""How fast `openadam.torch` is against `torch.optim`, on the same tensors' shapes: interleaved in one run, equal threads. Run with `make bench`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from harness import MILLION, Bench, Run, Stream, interleaved, ratio, start, touching

import openadam.torch

Shapes = Sequence[tuple[int, ...]]


def gpt2_small() -> Shapes:
    """The parameter list of GPT-2 small: 124 M in 148 tensors, the output tied to the embedding."""
    width = 768
    shapes: list[tuple[int, ...]] = [(50257, width), (1024, width)]
    for _ in range(12):
        shapes += [(width,)] * 2 + [(3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [(width,)] * 2 + [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*shapes, (width,), (width,)]


def resnet50() -> Shapes:
    """The parameter list of ResNet-50: 25.6 M in 161 tensors."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inside = 64
    for blocks, planes in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for convolution in ((planes, inside, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)):
                shapes += [convolution, convolution[:1], convolution[:1]]
            if block == 0:
                shapes += [(4 * planes, inside, 1, 1), (4 * planes,), (4 * planes,)]
            inside = 4 * planes
    return [*shapes, (1000, 2048), (1000,)]


class Case(NamedTuple):
    """A list of shapes, and what we set out to reach over it; None for no bar."""

    shapes: Shapes
    rounds: int
    plain: float  # propagate, at most of torch fused
    protected: float | None = None  # at most of torch fused
    clipped: float | None = None  # protected and clipped, at most of torch fused + clip
    members: float | None = None  # at most of torch's fastest


CASES = {
    "1 x 20M": Case([(20 * MILLION,)], 15, 1.0, protected=1.15, members=0.2),
    "200 x 100k": Case([(100_000,)] * 200, 15, 1.0),
    "2,000 x 500": Case([(500,)] * 2_000, 25, 1 / 8, members=0.2),
    "20,000 x 16": Case([(16,)] * 20_000, 5, 1 / 10),
    "GPT-2 small": Case(gpt2_small(), 9, 0.9, protected=1.15, clipped=0.7, members=0.2),
    "ResNet-50": Case(resnet50(), 15, 1.0, members=0.2),
}


def tensors(shapes: Shapes) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [torch.randn(shape).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape)
    return params


def adamw(bench: Bench, case: str) -> None:
    """AdamW against torch's three ways, plain, clipped and scaled."""
    shapes, rounds, bar, bar_protected, bar_clipped, _ = CASES[case]
    ours, theirs = openadam.torch.AdamW, torch.optim.AdamW
    peers = tensors(shapes)
    clipped, scaled = theirs(peers, fused=True), theirs(peers, fused=True)

    def torch_clipped() -> None:
        torch.nn.utils.clip_grad_norm_(peers, 1.0)
        clipped.step()

    own = tensors(shapes)  # the optimizers of a side share parameters and gradients, as their states are what costs memory
    runs: dict[str, Run] = {
        "ours": ours(own, nonfinite="propagate").step,
        "ours, protected": ours(own).step,
        "ours, clipped": ours(own, clip_norm=1.0).step,
        "ours, scaled": with_scaler(ours(own), own),
        "torch fused": theirs(peers, fused=True).step,
        "torch fused + clip": torch_clipped,
        "torch fused, scaled": with_scaler(scaled, peers),
    }
    size = sum(map(torch.Size.numel, map(torch.Size, shapes)))
    if size < 100 * MILLION:  # else there is no memory for all at once
        runs["torch foreach"] = theirs(peers, foreach=True).step
        runs["torch default"] = theirs(peers).step
    if len(shapes) < 1000:  # bound by memory
        stream = Stream(size)
        runs["stream"] = lambda: stream.run(bench.threads)
        runs["stream, checked"] = lambda: stream.run(bench.threads, check=True)
    else:  # bound by the number of tensors
        reading = ours(own)
        reading.step()
        stepper = reading._stepper
        runs["touching"] = touching(reading)
        runs["reading"] = lambda: (stepper.read(reading.param_groups, reading.state, bench.threads), stepper.register(), stepper.forget())
    seconds = interleaved(runs, rounds=bench.rounds(rounds))
    more = {f"seconds of {name}": statistics.median(values) for name, values in seconds.items()}
    bench.report(case, "propagate: ours / torch fused", ratio(seconds, "ours", "torch fused"), bar, **more)
    bench.report(case, "protected: ours / torch fused", ratio(seconds, "ours, protected", "torch fused"), bar_protected)
    what = "protected and clipped: ours / (torch fused + clip)"
    bench.report(case, what, ratio(seconds, "ours, clipped", "torch fused + clip"), bar_clipped)
    bench.report(case, "with GradScaler: ours / torch fused", ratio(seconds, "ours, scaled", "torch fused, scaled"), None)
    if "stream" in runs:
        bench.report(case, "limit: a plain streaming loop / torch fused", ratio(seconds, "stream", "torch fused"), None)
        what = "limit: the streaming loop that looks at g first / (torch fused + clip)"
        bench.report(case, what, ratio(seconds, "stream, checked", "torch fused + clip"), None)
    else:
        what = "of it, looking where torch's tensors are / torch fused"
        bench.report(case, what, ratio(seconds, "reading", "torch fused"), None)
        what = "limit: a word in each line of the objects to look at / torch fused"
        bench.report(case, what, ratio(seconds, "touching", "torch fused"), None)
    for peer in ("torch foreach", "torch default"):
        if peer in runs:
            bench.report(case, f"propagate: ours / {peer}", ratio(seconds, "ours", peer), None)


def with_scaler(optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor]) -> Callable[[], None]:
    """A step under GradScaler, which looks for infinities in a pass of its own first."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1_000_000)
    scaler.scale(torch.zeros(()))  # makes it ready

    def run() -> None:
        scaler.step(optimizer)
        scaler.update()

    return run


def members(bench: Bench, case: str) -> None:
    """The members that torch has no fused kernel for, against the fastest way it has."""
    shapes, rounds, *_, bar = CASES[case]
    stream = Stream(sum(map(torch.Size.numel, map(torch.Size, shapes))))
    for name, states in (("NAdam", 2), ("RAdam", 2), ("Adamax", 2), ("RMSprop", 1)):
        ours, theirs = getattr(openadam.torch, name), getattr(torch.optim, name)
        own, peers = tensors(shapes), tensors(shapes)
        runs: dict[str, Run] = {
            "ours": ours(own, nonfinite="propagate").step,
            "torch foreach": theirs(peers, foreach=True).step,
            "torch for-loop": theirs(peers, foreach=False).step,
            "stream": lambda: stream.run(bench.threads),
        }
        seconds = interleaved(runs, rounds=bench.rounds(max(3, rounds // 3)), repeats=3, warm=7)  # RAdam is rectified from its sixth step on
        fastest = min(("torch foreach", "torch for-loop"), key=lambda way: statistics.median(seconds[way]))
        bench.report(f"{name}, {case}", f"propagate: ours / torch's fastest ({fastest[6:]})", ratio(seconds, "ours", fastest), bar)
        if len(shapes) < 1000:  # bound by memory
            limit = ratio(seconds, "stream", fastest) * (12 + 8 * states) / 28  # bytes: those of this rule over those of the loop
            bench.report(f"{name}, {case}", f"limit: as many bytes in a plain streaming loop / {fastest}", limit, None)


class Transformer(torch.nn.Module):
    """A small language model: 4 layers, 256 wide, 6.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8192, 256)
        layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = torch.nn.Linear(256, 8192)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token."""
        return self.head(self.layers(self.embedding(tokens)))


def training(bench: Bench) -> None:
    """A whole training loop: the share of the step, and whether forward and backward suffer from the threads of the step before."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 8192, (4, 65))
    seconds: dict[str, dict[str, list[float]]] = {}
    loops: dict[str, Run] = {}

    def loop(name: str, make: Callable[[Any], Any]) -> None:
        torch.manual_seed(0)
        model = Transformer()
        optimizer = make(model.parameters())
        taken = seconds[name] = {"model": [], "step": []}

        def run() -> None:
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            between = time.perf_counter()
            optimizer.step()
            taken["model"].append(between - started)
            taken["step"].append(time.perf_counter() - between)

        loops[name] = run

    loop("ours", lambda params: openadam.torch.AdamW(params))
    loop("ours, alone", lambda params: openadam.torch.AdamW(params, threads=1))
    loop("torch fused", lambda params: torch.optim.AdamW(params, fused=True))
    loop("torch default", lambda params: torch.optim.AdamW(params))
    interleaved(loops, rounds=bench.rounds(9), repeats=5)
    median = {name: {part: statistics.median(values) for part, values in parts.items()} for name, parts in seconds.items()}
    case = "transformer, 6.9M"
    for name in ("ours", "torch fused", "torch default"):
        parts = median[name]
        bench.report(case, f"share of the step in the loop: {name}", parts["step"] / (parts["step"] + parts["model"]), None)
    for peer in ("torch fused", "ours, alone"):
        bench.report(case, f"forward and backward: beside ours / beside {peer}", median["ours"]["model"] / median[peer]["model"], None)


def main() -> None:
    """Run every case, or those named, and write the results as JSON."""
    bench, wanted, path, about = start(__doc__ or "", "shapes, models, members, training", "openadam-torch-bench.json")
    for case in CASES:
        if not wanted or ("models" if case in ("GPT-2 small", "ResNet-50") else "shapes") in wanted:
            adamw(bench, case)
    for case, given in CASES.items():
        if given.members is not None and (not wanted or "members" in wanted):
            members(bench, case)
    if not wanted or "training" in wanted:
        training(bench)
    bench.finish(path, about)


if __name__ == "__main__":
    main()
