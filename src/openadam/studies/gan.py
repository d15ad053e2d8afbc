"""Generative adversarial networks: two players, each of whom moves the other's goal, and what the first moment's memory does to them.

- **Data**: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels scaled to -1..1.
- **Players**: generator 32-128-128-64 and discriminator 64-128-128-1, leaky rectified units, the non-saturating loss (Goodfellow et al., 2014),
  batches of 64; both with Adam at the same learning rate of 2e-4 and eps 1e-8; only the betas differ.
- **Looked at**: the Fréchet distance between 2,000 samples and the data, in pixels; how many of the ten digits a classifier (logistic regression
  on the data) finds in more than 1 % of the samples; and, read inside the step, in how many elements the gradient and the first moment disagree.
- **The toy** min over x, max over y of x*y, which players can only circle: how far they are from the saddle after 5,000 steps.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

from ..family import Adam
from . import module
from .frame import Cell, Claim, Setting, Study

__all__ = ["STUDY"]

STEPS, FULL_STEPS = 1500, 2500
SAMPLES = 2000
LOOK_EVERY = 10  # steps between two looks inside
SHEETS = (0.1, 0.3, 1.0)  # of the run, at which the generator shows what it can


def _network(torch: Any, *sizes: int) -> Any:
    layers: list[Any] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*layers[:-1])


@functools.cache
def _judges() -> tuple[Any, Any, Any, Any]:
    """The data, its mean and covariance, and a classifier of digits."""
    loaded = module("sklearn.datasets", "studies").load_digits()
    pixels = (loaded.data / 8 - 1).astype(np.float32)
    classifier = module("sklearn.linear_model", "studies").LogisticRegression(max_iter=2000).fit(pixels, loaded.target)
    return pixels, pixels.mean(axis=0), np.cov(pixels.T), classifier


def frechet_distance(samples: Any) -> float:
    """Between samples and the data, as Gaussians of pixels (Heusel et al., 2017, without their network)."""
    _, mean, covariance, _ = _judges()
    own = np.cov(samples.T)
    # The trace of the root of a product of two positive matrices is the sum of the roots of its eigenvalues.
    root = np.sqrt(np.maximum(np.linalg.eigvals(covariance @ own).real, 0)).sum()
    return float(((samples.mean(axis=0) - mean) ** 2).sum() + np.trace(covariance) + np.trace(own) - 2 * root)


def run(setting: Setting, seed: int, full: bool) -> Cell:
    """One pair of players, or the toy."""
    return _toy(setting, seed) if "beta1" in setting.hyperparameters else _players(setting, seed, FULL_STEPS if full else STEPS)


def _players(setting: Setting, seed: int, steps: int) -> Cell:
    torch = module("torch", "studies")
    from ..torch import Adam as TorchAdam

    pixels, *_, classifier = _judges()
    data = torch.from_numpy(pixels)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    generator = torch.nn.Sequential(_network(torch, 32, 128, 128, 64), torch.nn.Tanh())
    discriminator = _network(torch, 64, 128, 128, 1)
    players: dict[str, Any] = {
        name: TorchAdam(network.named_parameters(), **setting.hyperparameters)
        for name, network in (("generator", generator), ("discriminator", discriminator))
    }
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    real, fake = torch.ones(64, 1), torch.zeros(64, 1)
    places: list[float] = []
    disagreement: dict[str, list[float]] = {name: [] for name in players}
    images = {}

    def step(name: str, value: Any, look: bool) -> None:
        optimizer = players[name]
        optimizer.zero_grad()
        value.backward()
        optimizer.step(measure=look)
        if look:
            measures = optimizer.last_step.measures.values()
            disagreement[name].append(sum(seen["disagree"] for seen in measures) / sum(seen["sampled"] for seen in measures))

    for t in range(1, steps + 1):
        look = t % LOOK_EVERY == 0
        batch = data[torch.randint(len(data), (64,), generator=random)]
        made = generator(torch.randn(64, 32, generator=random))
        step("discriminator", loss(discriminator(batch), real) + loss(discriminator(made.detach()), fake), look)
        step("generator", loss(discriminator(made), real), look)
        if look:
            places.append(t)
        if t in {round(share * steps) for share in SHEETS}:
            with torch.no_grad():
                sheet = generator(torch.randn(20, 32, generator=torch.Generator().manual_seed(0)))
            images[f"step {t}"] = _sheet((sheet.numpy() + 1) / 2)
    with torch.no_grad():
        samples = generator(torch.randn(SAMPLES, 32, generator=random)).numpy()
    shares = np.bincount(classifier.predict(samples), minlength=10) / len(samples)
    metrics = {"frechet_distance": frechet_distance(samples), "classes": float((shares > 0.01).sum())}
    metrics |= {f"{name}_disagreement": float(np.mean(values)) for name, values in disagreement.items()}
    return Cell(setting.name, seed, metrics, {f"disagreement of the {name}": (places, values) for name, values in disagreement.items()}, images)


def _sheet(samples: Any) -> list[list[float]]:
    """Twenty images of 8 x 8 pixels, in two rows."""
    rows = [np.concatenate([np.pad(image.reshape(8, 8), 1) for image in samples[start : start + 10]], axis=1) for start in (0, 10)]
    return [[round(float(value), 2) for value in row] for row in np.concatenate(rows)]


def _toy(setting: Setting, seed: int) -> Cell:
    angle = math.pi / 4 + seed
    x, y = np.array([math.sqrt(2) * math.cos(angle)]), np.array([math.sqrt(2) * math.sin(angle)])
    down, up = Adam(x, **setting.hyperparameters), Adam(y, maximize=True, **setting.hyperparameters)
    places, radii = [], []
    for t in range(1, 5001):
        down.step(y.copy())
        up.step(x.copy())
        if t % 50 == 0:
            places.append(float(t))
            radii.append(math.hypot(x[0], y[0]))
    return Cell(setting.name, seed, {"radius": radii[-1]}, {"distance from the saddle": (places, radii)})


def _betas(beta1: float, beta2: float) -> Setting:
    return Setting(f"betas ({beta1:g}, {beta2:g})", {"lr": 2e-4, "betas": [beta1, beta2]})


def _memory(beta1: float) -> Setting:
    return Setting(f"xy, beta1 {beta1:g}", {"lr": 0.01, "beta1": beta1, "beta2": 0.9})


STUDY = Study(
    name="gan",
    title="Generative adversarial networks: two players on handwritten digits",
    metrics={
        "frechet_distance": "between 2,000 samples and the data, in pixels; small is good",
        "classes": "digits that a classifier finds in more than 1 % of the samples, of 10",
        "generator_disagreement": "share of the generator's elements whose gradient and first moment disagree, inside the step",
        "discriminator_disagreement": "the same of the discriminator",
        "radius": "distance from the saddle of x*y after 5,000 steps; from 1.41",
    },
    settings=[*(_betas(*each) for each in ((0.9, 0.999), (0.5, 0.999), (0.0, 0.9), (0.9, 0.9))), *map(_memory, (0.0, 0.5, 0.9, 0.99))],
    claims=[
        Claim(
            "without a first moment and with a short second one the samples are nearer to the data: less than 0.7 of the distance",
            "Gulrajani et al., 2017 (betas 0, 0.9); Karras et al., 2020 (0, 0.99)",
            "frechet_distance", "betas (0, 0.9)", "betas (0.9, 0.999)", "below", 0.7, "ratio",
        ),
        Claim("and the generator covers at least 7 of the digits", "this study", "classes", "betas (0, 0.9)", None, "above", 6.5),
        Claim("beta1 = 0.5 helps against 0.9", "Radford et al., 2016 (DCGAN)",
              "frechet_distance", "betas (0.5, 0.999)", "betas (0.9, 0.999)", "below", 1.0, "ratio"),
        Claim("the players' gradients persist: they disagree with the moment less than noise would (0.356 at beta1 = 0.9)",
              "Gidel et al., 2019", "generator_disagreement", "betas (0.9, 0.999)", None, "below", 0.356),
        Claim("in the game x*y without a first moment the players come to the saddle", "Gidel et al., 2019",
              "radius", "xy, beta1 0", None, "below", 0.1),
        Claim("with beta1 = 0.9 they spiral outwards", "Gidel et al., 2019", "radius", "xy, beta1 0.9", None, "above", math.sqrt(2)),
    ],
    run=run,
    seeds=8,
    full_seeds=16,
    needs=("torch", "sklearn.datasets", "scipy.stats"),
    notes=(
        "The players' learning rate is DCGAN's, the same for all betas and chosen by no sweep.",
        "The game x*y has no chance in it: its seeds are eight points from which it begins.",
    ),
)  # fmt: skip
