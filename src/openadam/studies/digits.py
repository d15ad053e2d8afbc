"""The main study: one small network learns real handwritten digits, once with each optimizer, all else being equal.

- **Data**: the 1,797 images (8 x 8 pixels, scaled to 0..1) of scikit-learn's ``load_digits``. Of every five images of a digit, in
  the order of the data set, the first is for testing, the second for validation, the others for training: 364, 362 and 1,071.
- **Network**: 64 pixels, 64 rectified units, 10 classes; softmax and cross-entropy; float32; He's initial weights.
- **Training**: batches of 32 in an order drawn anew for each epoch, at a constant learning rate.
- **Fairness**: a seed determines the initial weights and the batches, which are the same for all optimizers. Each runs at the
  learning rate that a sweep chose for it (`RATES`); everything else is its default.

The sweep and the curves look at the validation set; the test set is looked at once, at the end of a run.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import NonFiniteGradientError, NonFiniteStateError
from ..family import MEMBERS
from . import demo_module
from .frame import Cell, Claim, Setting, Study, planned, run_cells
from .rates import GRID, best, search

__all__ = [
    "BATCH", "EPOCHS", "EVERY", "LAYERS", "OPTIMIZERS", "RATES", "SEEDS", "STUDY", "SWEEP_SEEDS", "TARGET",
    "Comparison", "Data", "Images", "Run", "load_data", "sweep", "train",
]  # fmt: skip

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]

OPTIMIZERS = ("momentum", "adagrad", "rmsprop", "adam", "amsgrad", "adamw")
SEEDS = 8
EPOCHS = 40
BATCH = 32
LAYERS = (64, 64, 10)
EVERY = 10  # steps between two points of the curves
NO_CURVES = 1_000_000
TARGET = 0.95  # the validation accuracy to which steps are counted

# Chosen by `openadam compare digits --sweep`, which does it again: of the rates 1 and 3 times the powers of ten, from 0.0001 to 0.3
# and further out where the best was at an end, the one with the least mean validation loss after 40 epochs over five seeds that are
# used for nothing else. The test set had no part in it. On another machine rounding may decide a close call differently.
RATES = {
    "sgd": 1.0, "momentum": 0.1, "adagrad": 0.03, "rmsprop": 0.003, "adam": 0.003, "adamw": 0.01, "amsgrad": 0.003,
    "adamax": 0.01, "nadam": 0.003, "nadamw": 0.03, "radam": 0.01, "radamw": 0.01,
}  # fmt: skip
SWEEP_SEEDS = range(1000, 1005)


class Images(NamedTuple):
    """One part of the data: a row of 64 pixels per image, and the digit that it shows."""

    pixels: Array
    digits: npt.NDArray[np.int64]


class Data(NamedTuple):
    """The three parts of the data."""

    train: Images
    validation: Images
    test: Images


@functools.cache
def load_data() -> Data:
    """The digits in their fixed split. They come with scikit-learn; nothing is downloaded."""
    loaded = demo_module("sklearn.datasets").load_digits()
    pixels, digits = (loaded.data / 16).astype(np.float32), loaded.target.astype(np.int64)
    turn = np.zeros(len(digits), np.int64)
    for digit in range(10):
        shown = digits == digit
        turn[shown] = np.arange(shown.sum()) % 5
    test, validation, train = (Images(pixels[part], digits[part]) for part in (turn == 0, turn == 1, turn >= 2))
    return Data(train, validation, test)


# --- the network -------------------------------------------------------------------------------------------------------


def initial_weights(random: np.random.Generator) -> Weights:
    """He's initial weights, and biases of zero."""
    weights: Weights = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(LAYERS), 1):
        weights[f"W{layer}"] = (random.standard_normal((fan_in, fan_out)) * math.sqrt(2 / fan_in)).astype(np.float32)
        weights[f"b{layer}"] = np.zeros(fan_out, np.float32)
    return weights


def forward(weights: Mapping[str, Array], pixels: Array) -> tuple[Array, Array]:
    """The hidden units, and the logarithms of the probabilities of the ten digits."""
    hidden = np.maximum(pixels @ weights["W1"] + weights["b1"], 0)
    logits = hidden @ weights["W2"] + weights["b2"]
    logits -= logits.max(axis=1, keepdims=True)
    return hidden, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def gradients(weights: Mapping[str, Array], images: Images) -> Weights:
    """The gradient of the mean cross-entropy with respect to every weight."""
    hidden, log_probabilities = forward(weights, images.pixels)
    d_logits = np.exp(log_probabilities)
    d_logits[np.arange(len(images.digits)), images.digits] -= 1
    d_logits /= len(images.digits)
    d_hidden = (d_logits @ weights["W2"].T) * (hidden > 0)
    return {"W1": images.pixels.T @ d_hidden, "b1": d_hidden.sum(axis=0), "W2": hidden.T @ d_logits, "b2": d_logits.sum(axis=0)}


def evaluate(weights: Mapping[str, Array], images: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    _, log_probabilities = forward(weights, images.pixels)
    losses = -log_probabilities[np.arange(len(images.digits)), images.digits]
    return float(losses.mean(dtype=np.float64)), float((log_probabilities.argmax(axis=1) == images.digits).mean())


# --- one run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one optimizer did with one seed. Losses and curves are NaN where it had diverged."""

    optimizer: str
    lr: float
    seed: int
    steps: tuple[int, ...]
    """Where the curves have their points, from 0, before the first step."""
    train_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    validation_loss: float
    test_loss: float
    test_accuracy: float
    microseconds: float
    """Median duration of `Optimizer.step`, without the network's gradients."""
    diverged_at: int | None = None
    """The step whose gradients were no longer finite; the run ended before it."""

    @property
    def steps_to_target(self) -> float:
        """The first point at which validation accuracy had reached the target; infinite if none."""
        reached = (step for step, accuracy in zip(self.steps, self.validation_accuracy, strict=True) if accuracy >= TARGET)
        return next(reached, math.inf)


def batches(random: np.random.Generator, images: int, epochs: int) -> Iterator[npt.NDArray[np.int64]]:
    """Which images each step sees. The rest that does not fill a batch is left out, another one in each epoch."""
    for _ in range(epochs):
        yield from random.permutation(images)[: images // BATCH * BATCH].reshape(-1, BATCH)


def train(optimizer: str, lr: float, seed: int, epochs: int, data: Data, *, every: int = EVERY) -> Run:
    """Train the network once; the curves have a point ``every`` so many steps, and one at the end."""
    random = np.random.default_rng(seed)
    weights = initial_weights(random)
    opt = MEMBERS[optimizer](weights, lr=lr)
    total = len(data.train.digits) // BATCH * epochs
    steps = (*range(0, total, every), total)
    train_loss: list[float] = []
    accuracies: list[float] = []
    durations: list[int] = []
    diverged_at = None

    def look() -> None:
        train_loss.append(evaluate(weights, data.train)[0])
        accuracies.append(evaluate(weights, data.validation)[1])

    with np.errstate(over="ignore", invalid="ignore"), demo_module("threadpoolctl").threadpool_limits(1):  # the matrices are small
        for step, batch in enumerate(batches(random, len(data.train.digits), epochs)):
            if step % every == 0:
                look()
            grads = gradients(weights, Images(data.train.pixels[batch], data.train.digits[batch]))
            start = time.perf_counter_ns()
            try:
                opt.step(grads)
            except (NonFiniteGradientError, NonFiniteStateError):  # the step was refused
                diverged_at = step + 1
                break
            durations.append(time.perf_counter_ns() - start)
        else:
            look()
        validation_loss, _ = evaluate(weights, data.validation)
        test_loss, test_accuracy = evaluate(weights, data.test)
    missing = [math.nan] * (len(steps) - len(train_loss))
    converged = diverged_at is None
    return Run(
        optimizer, lr, seed, steps, (*train_loss, *missing), (*accuracies, *missing),
        validation_loss=validation_loss if converged else math.nan,
        test_loss=test_loss if converged else math.nan,
        test_accuracy=test_accuracy,
        microseconds=statistics.median(durations) / 1000 if durations else math.nan,
        diverged_at=diverged_at,
    )  # fmt: skip


# --- the sweep of learning rates ---------------------------------------------------------------------------------------


def sweep(
    optimizer: str,
    epochs: int,
    data: Data,
    *,
    seeds: Sequence[int] = SWEEP_SEEDS,
    grid: Iterable[int] = GRID,
    on_run: Callable[[str], None] = lambda rate: None,
) -> dict[float, float]:
    """The mean validation loss after training at each rate; `best` of it is the rate to use. ``on_run`` hears of every run."""

    def loss(lr: float, seed: int) -> float:
        on_run(f"{lr:g}")
        return train(optimizer, lr, seed, epochs, data, every=NO_CURVES).validation_loss

    return search(lambda lr: statistics.fmean(loss(lr, seed) for seed in seeds), grid)


# --- the comparison ----------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What was asked for, and what has been done of it."""

    optimizers: Sequence[str] = OPTIMIZERS
    seeds: int = SEEDS
    epochs: int = EPOCHS
    lr: float | None = None
    """One learning rate for all, which makes no fair comparison."""
    with_sweep: bool = False
    sweeps: dict[str, dict[float, float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def planned(self) -> int:
        """How many runs there will be, as far as that is known: a sweep may go further than its grid."""
        rates = sum(len(self.sweeps.get(optimizer, GRID)) for optimizer in self.optimizers) if self.with_sweep else 0
        return len(self.optimizers) * self.seeds + rates * len(SWEEP_SEEDS)

    def rate_of(self, optimizer: str) -> float:
        """The learning rate at which it runs."""
        if self.lr is not None:
            return self.lr
        return best(self.sweeps[optimizer]) if self.with_sweep else RATES[optimizer]

    def run(self, data: Data, doing: Callable[[str, str], None] = lambda stage, what: None) -> None:
        """Do it all. ``doing`` hears of every run before it starts. Interrupted, it leaves what is done in ``sweeps`` and ``runs``.

        The comparison goes seed by seed, so that whenever it ends, all optimizers have had about as many runs.
        """
        for optimizer in self.optimizers if self.with_sweep else ():
            stage = f"learning rates for {MEMBERS[optimizer].__name__}"
            self.sweeps[optimizer] = sweep(optimizer, self.epochs, data, on_run=functools.partial(doing, stage))
        settings = [Setting(name, {"lr": self.rate_of(name), "epochs": self.epochs}) for name in self.optimizers]
        cells = planned(self.optimizers, self.seeds)
        running = run_cells(replace(STUDY, settings=settings, claims=()), cells)
        for name, seed in cells:
            doing(f"seed {seed + 1} of {self.seeds}", MEMBERS[name].__name__)
            self.runs.append(_run(next(running), self.rate_of(name)))


# --- as a study of the frame -------------------------------------------------------------------------------------------

CURVES = ("training loss", "validation accuracy")
FULL_EPOCHS = 80


def cell(setting: Setting, seed: int, full: bool) -> Cell:
    """One run of an optimizer, as a cell."""
    settings = setting.hyperparameters
    run = train(setting.name, settings["lr"], seed, settings.get("epochs", FULL_EPOCHS if full else EPOCHS), load_data())
    metrics = {
        "test_accuracy": run.test_accuracy, "test_loss": run.test_loss, "training_loss": run.train_loss[-1], "steps_to_target": run.steps_to_target,
        "validation_loss": run.validation_loss, "microseconds": run.microseconds,
        "diverged_at": math.nan if run.diverged_at is None else run.diverged_at,
    }  # fmt: skip
    curves = dict(zip(CURVES, ((run.steps, run.train_loss), (run.steps, run.validation_accuracy)), strict=True))
    return Cell(setting.name, seed, metrics, curves)


def _run(cell: Cell, lr: float) -> Run:
    """The run that a cell was made from."""
    (steps, losses), (_, accuracies) = (cell.curves[name] for name in CURVES)
    diverged_at = cell.metrics["diverged_at"]
    return Run(
        cell.setting, lr, cell.seed, tuple(int(step) for step in steps), tuple(losses), tuple(accuracies),
        **{name: cell.metrics[name] for name in ("validation_loss", "test_loss", "test_accuracy", "microseconds")},
        diverged_at=None if math.isnan(diverged_at) else int(diverged_at),
    )  # fmt: skip


STUDY = Study(
    name="digits",
    title="Handwritten digits: one small network and six optimizers",
    metrics={
        "test_accuracy": "share of 364 images that were used for nothing else",
        "test_loss": "cross-entropy on them",
        "training_loss": "at the end",
        "steps_to_target": f"until validation accuracy reached {100 * TARGET:g} %, looked at every {EVERY} steps",
    },
    settings=[Setting(name, {"lr": RATES[name]}) for name in OPTIMIZERS],
    claims=[
        Claim("momentum and adaptive rates together learn faster than momentum alone: fewer steps to 95 %", "the article, The Core Idea",
              "steps_to_target", "adam", "momentum", "below"),
        Claim("Adagrad's steps become too small in the end: its training loss stays above Adam's", "Kingma and Ba, 2015, section 5",
              "training_loss", "adagrad", "adam", "above", 1.0, "ratio"),
        Claim("AMSGrad generalizes better than Adam", "Reddi et al., 2018", "test_loss", "amsgrad", "adam", "below"),
        Claim("AdamW generalizes better than Adam", "Loshchilov and Hutter, 2019", "test_loss", "adamw", "adam", "below"),
    ],
    run=cell,
    seeds=SEEDS,
    full_seeds=2 * SEEDS,
    needs=("sklearn.datasets", "scipy.stats"),
    notes=("The learning rates were chosen by the validation loss at the end, so that of speed this says: at the rate that serves the end best.",),
    sweep=lambda: {name: sweep(name, EPOCHS, load_data()) for name in OPTIMIZERS},
)  # fmt: skip
