"""The run of docs/tutorial-dead-transformer.md: a small transformer that reads Python's help, character by character.

``--record dead.oadam`` records a run and prints its loss; without it, each setting of the tutorial's last table is trained with ``--seeds`` seeds.
"""

from __future__ import annotations

import argparse
import collections
import functools
import math
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openadam import record
from openadam.torch import AdamW

CONTEXT, WIDTH, HEADS, BATCH = 32, 64, 4, 16
TEXT = "\n".join(topics[name] for name in sorted(topics))
CHARACTERS = sorted(set(TEXT))
WINDOW = 25  # steps of which a mean loss is told


class Setting(NamedTuple):
    """What differs from run to run; the defaults are those of the run that dies."""

    layers: int = 8
    norm_first: bool = False
    lr: float = 5e-3
    warm_up: int = 0
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0


SETTINGS = {
    "the run that dies": Setting(),
    "warm-up over 100 steps": Setting(warm_up=100),
    "a fifth of the rate": Setting(lr=1e-3),
    "normalised before each layer": Setting(norm_first=True),
    "four layers": Setting(layers=4),
    "clip_norm 0.1 instead of 1": Setting(clip_norm=0.1),
    "beta1 0.5 instead of 0.9": Setting(beta1=0.5),
    "beta2 0.999 instead of 0.98": Setting(beta2=0.999),
}


class Model(nn.Module):
    def __init__(self, layers: int, norm_first: bool) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=norm_first) for _ in range(layers)
        )
        self.output = nn.Linear(WIDTH, len(CHARACTERS))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places.weight
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=True)
        return self.output(x)


@functools.cache
def text_in_numbers() -> Tensor:
    number = {character: k for k, character in enumerate(CHARACTERS)}
    return torch.tensor([number[character] for character in TEXT])


def train(setting: Setting, seed: int, steps: int, path: Path | str) -> list[float]:
    """Train on batches of 16 pieces, and record it; the loss of each batch."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    text, model = text_in_numbers(), Model(setting.layers, setting.norm_first)
    losses = []
    with record.Recorder(path) as recorder:
        optimizer = AdamW(model.named_parameters(), lr=setting.lr, betas=(setting.beta1, setting.beta2), clip_norm=setting.clip_norm, record=recorder)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / max(setting.warm_up, 1), total_iters=max(setting.warm_up - 1, 0))
        for _ in range(steps):
            starts = torch.randint(len(text) - CONTEXT, (BATCH,))
            pieces = text[starts[:, None] + torch.arange(CONTEXT + 1)]
            logits = model(pieces[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
            warm_up.step()
            losses.append(loss.item())
    return losses


def entropy() -> float:
    """The loss of whoever knows how often each character occurs, and nothing else."""
    return -sum(n / len(TEXT) * math.log(n / len(TEXT)) for n in collections.Counter(TEXT).values())


def show(losses: list[float]) -> None:
    print("steps         loss")
    for start in range(0, len(losses), WINDOW):
        part = losses[start : start + WINDOW]
        print(f"{start + 1:3} to {start + len(part):3}    {statistics.fmean(part):.2f}")
    print(f"frequencies   {entropy():.2f}")


def judged(name: str, seed: int, steps: int) -> tuple[str, float, dict[str, int | None]]:
    """The setting, the loss at the end, and the rules that alarm, each with the first step of its first finding."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.oadam")
        losses = train(SETTINGS[name], seed, steps, path)
        alarms: dict[str, int | None] = {}
        for finding in record.load(path).diagnose():
            if finding.severity != "hint":
                alarms[finding.id] = min(filter(None, (alarms.get(finding.id), finding.first_step)), default=None)
    return name, statistics.fmean(losses[-WINDOW:]), alarms


def compare(seeds: int, steps: int) -> None:
    names, numbers = zip(*((name, seed) for name in SETTINGS for seed in range(seeds)), strict=True)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:  # a fork would inherit the threads of torch
        results = list(pool.map(judged, names, numbers, [steps] * len(names)))
    print(f"{'setting':<30}{'loss at the end':<18}{'gradients died (D43)':<28}other alarms")
    for name in SETTINGS:
        own = [(loss, alarms) for each, loss, alarms in results if each == name]
        losses, first = [loss for loss, _ in own], [alarms["D43"] for _, alarms in own if alarms.get("D43") is not None]
        died = f"{sum('D43' in alarms for _, alarms in own)} of {seeds}" + (f", from step {min(first)} to {max(first)}" if first else "")
        others = sorted({id for _, alarms in own for id in alarms} - {"D43"})
        told = ", ".join(f"{id} in {sum(id in alarms for _, alarms in own)}" for id in others) or "none"
        print(f"{name:<30}{min(losses):.2f} to {max(losses):.2f}{'':<6}{died:<28}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="FILE", help="train once and record it here")
    parser.add_argument("--warm-up", type=int, default=0, metavar="STEPS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="200; 120 where nothing is recorded")
    parser.add_argument("--seeds", type=int, default=5, help="of each setting, where nothing is recorded")
    given = parser.parse_args()
    if given.record is None:
        compare(given.seeds, given.steps or 120)
    else:
        show(train(Setting(warm_up=given.warm_up), given.seed, given.steps or 200, given.record))


if __name__ == "__main__":
    main()
