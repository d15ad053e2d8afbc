"""Runs with a disease, made to order, and healthy ones: what alarms and the doctor are tested and measured on (also by benchmarks/doctor.py).

Each patient is a function that records a run to a path; `SICK` says which rule should find what it has, `LIVE` where an alarm is raised, `HEALTHY`
have nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import openadam
from openadam import record
from openadam.errors import OpenAdamError
from openadam.measures import INSIDE, MEASURES
from openadam.studies import digits

Run = Callable[[Path], None]
SICK: dict[str, tuple[str, Run]] = {}
LIVE: dict[str, tuple[str, str | None, int]] = {}
"""Of these a recording raises an alarm while they go on: the rule, the tensor and the step."""
HEALTHY: dict[str, Run] = {}


def sick(id: str, name: str, live: int | None = None, *, tensor: str | None = "w") -> Callable[[Run], Run]:
    """A disease; ``live`` is the step at which it raises an alarm of this rule, in ``tensor``."""

    def register(run: Run) -> Run:
        SICK[name] = (id, run)
        if live is not None:
            LIVE[name] = (id, tensor, live)
        return run

    return register


def healthy(name: str) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        HEALTHY[name] = run
        return run

    return register


@contextlib.contextmanager
def recorded(path: Path, params: Any, member: Any = openadam.AdamW, **settings: Any) -> Iterator[Any]:
    with record.Recorder(path, every=1) as recorder:
        yield member(params, record=recorder, **settings)


def noise(t: int, shape: tuple[int, ...], scale: float = 1.0) -> Any:
    return np.random.default_rng(t).normal(0, scale, shape).astype(np.float32)


def matrix(scale: float = 1.0, shape: tuple[int, ...] = (20, 10)) -> dict[str, Any]:
    return {"w": noise(1000, shape, scale)}


def pull(params: Mapping[str, Any], t: int, scale: float = 1.0) -> dict[str, Any]:
    """Gradients of a bowl around 0, with noise."""
    return {name: scale * (p + noise(t, p.shape)) for name, p in params.items()}


def plain(path: Path, steps: int, gradient: Callable[[Mapping[str, Any], int], Any], member: Any = openadam.AdamW, **settings: Any) -> None:
    params = settings.pop("params", None) or matrix()
    with recorded(path, params, member, **settings) as optimizer:
        for t in range(1, steps + 1):
            optimizer.step(gradient(params, t))


# --- numbers ---------------------------------------------------------------------------------------------------------


def with_nan(params: Mapping[str, Any], t: int) -> dict[str, Any]:
    grads = pull(params, t)
    if t == 30:
        grads["w"][3, 2] = math.nan
    return grads


@sick("D01", "a gradient that is not finite, refused")
def refused(path: Path) -> None:
    with contextlib.suppress(OpenAdamError):
        plain(path, 60, with_nan)


@sick("D01", "a gradient that is not finite, skipped", 30)
def skipped(path: Path) -> None:
    plain(path, 60, with_nan, nonfinite="skip")


@sick("D02", "a poisoned state", 31)
def poisoned(path: Path) -> None:
    plain(path, 60, lambda p, t: {"w": noise(t, (20, 10)) * np.float32(math.nan if t == 30 else 1)}, nonfinite="propagate")


@sick("D04", "squares that underflow", 3)
def underflow(path: Path) -> None:
    plain(path, 40, lambda p, t: pull(p, t, 1e-20), lr=1e-6)


@sick("D07", "updates below half a unit in the last place", 5)
def swallowed(path: Path) -> None:
    plain(path, 60, lambda p, t: {"w": noise(t, (20, 10))}, params={"w": np.full((20, 10), 1000.0, np.float32)}, lr=1e-5, weight_decay=0)


@sick("D08", "a second moment in bfloat16")
def frozen(path: Path) -> None:
    synthetic(path, {"sampled": 512, "v_frozen": 490, "grad_sum_squares": 512, "grad_max_abs": 3})


def synthetic(path: Path, seen: Mapping[str, float] | Callable[[int], Mapping[str, float]], steps: int = 40) -> None:
    """A recording without an optimizer, of given measures: of what this package's own states cannot have."""
    names = [*(each.name for each in MEASURES), "grad_nonfinite", *(each.name for each in INSIDE)]
    about = {
        "optimizer": "AdamW", "rule": "adam", "coupling": "decoupled", "groups": [{"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}],
        "tensors": [{"name": "w", "shape": [32, 16], "elements": 512, "group": 0}], "measures": [{"name": name} for name in names],
    }  # fmt: skip
    usual = {"grad_nonfinite": 0, "zero_grad": 0, "v_underflow": 0, "v_frozen": 0}
    with record.Recorder(path, every=1) as recorder:
        track = recorder.track(about)
        for t in range(1, steps + 1):
            track.step(t, {"lr": 1e-3})
            now = {**usual, **(seen(t) if callable(seen) else seen)}
            track.observe(t, np.array([[now.get(name, math.nan) for name in names]]))


# --- steps -----------------------------------------------------------------------------------------------------------


@sick("D11", "a learning rate that is too large")
def too_large(path: Path) -> None:
    plain(path, 200, pull, params=matrix(0.1), lr=0.3)


@sick("D11", "a learning rate that is too small")
def too_small(path: Path) -> None:
    plain(path, 200, pull, lr=1e-6, params=matrix(1.0))


@sick("D11", "a first step larger than the weights")
def blown_up(path: Path) -> None:
    plain(path, 60, pull, params=matrix(0.1), lr=lambda t: 0.3 / t**3)


def with_losses(path: Path, loss: Callable[[int], float], steps: int = 120) -> None:
    """A healthy run that is told these losses."""
    params = matrix()
    with recorded(path, params) as optimizer:
        for t in range(1, steps + 1):
            optimizer.step({"w": pull(params, t)["w"]}, loss=loss(t))


@sick("D45", "one loss far above all others", 80, tensor=None)
def jumping(path: Path) -> None:
    with_losses(path, lambda t: 100.0 if t == 80 else 2 * 0.98**t)


@sick("D47", "a loss that is made larger", 114, tensor=None)
def rising(path: Path) -> None:
    with_losses(path, lambda t: 2.3 * 1.08**t)


@sick("D44", "a loss that is not finite", 80, tensor=None)
def undefined(path: Path) -> None:
    with_losses(path, lambda t: math.nan if t == 80 else 2 * 0.98**t)


@sick("D46", "a program that stops with an error of its own")
def stopped(path: Path) -> None:
    params = matrix()
    with contextlib.suppress(RuntimeError), record.Recorder(path, every=1) as recorder:
        optimizer = openadam.AdamW(params, record=recorder)
        for t in range(1, 101):
            if t == 60:
                raise RuntimeError("an error of the program's own")
            optimizer.step(pull(params, t))


@sick("D09", "gradients that grow by a tenth in each step", 84)
def growing(path: Path) -> None:
    plain(path, 100, lambda p, t: {"w": 1.1**t * (1 + noise(t, (20, 10), 0.1))}, lr=1e-4)


@sick("D13", "no bias correction")
def uncorrected(path: Path) -> None:
    plain(path, 60, pull, bias_correction="off")


@sick("D38", "no warm-up at a large rate")
def cold(path: Path) -> None:
    plain(path, 60, pull, params=matrix(0.02), lr=lambda t: 3e-3)


# --- moments -----------------------------------------------------------------------------------------------------------


@sick("D16", "one gradient, thirty times too large", 140)
def spike(path: Path) -> None:
    plain(path, 180, lambda p, t: pull(p, t, 30.0 if t == 140 else 1.0))


@sick("D17", "one bad batch", 140)
def bad_batch(path: Path) -> None:
    def gradient(params: Mapping[str, Any], t: int) -> dict[str, Any]:
        grads = {"w": noise(t, (20, 10))}
        if t == 140:
            grads["w"][:16] *= 10
        return grads

    plain(path, 180, gradient)


@sick("D10", "one element that wakes up")
def wakes(path: Path) -> None:
    def gradient(params: Mapping[str, Any], t: int) -> dict[str, Any]:
        grads = {"w": noise(t, (20, 10))}
        grads["w"][0, 0] = 1e-4 if t < 300 else 1.0
        return grads

    plain(path, 330, gradient, lr=1e-3)


@sick("D18", "gradients that fell by a hundred")
def fell(path: Path) -> None:
    plain(path, 300, lambda p, t: {"w": noise(t, (20, 10), 1.0 if t < 100 else 0.01)}, lr=1e-3)


@sick("D19", "the large gradients of some elements gone")
def gone(path: Path) -> None:
    size = np.where(np.arange(20) < 6, 1.0, 0.02).astype(np.float32)[:, None]
    plain(path, 300, lambda p, t: {"w": noise(t, (20, 10)) * (size if t < 100 else np.float32(0.02))}, lr=1e-3, weight_decay=0)


@sick("D20", "gradients below eps", 5)
def below_eps(path: Path) -> None:
    plain(path, 100, lambda p, t: pull(p, t, 1e-9))


@sick("D21", "gradients near eps")
def near_eps(path: Path) -> None:
    plain(path, 100, lambda p, t: pull(p, t, 2e-7))


@sick("D26", "the article's stale momentum", 21)
def stale_momentum(path: Path) -> None:
    """One gradient of 100, then -1: the steps go on against the gradient for 22 steps, and more."""
    plain(path, 100, lambda p, t: {"w": np.array([100.0 if t == 1 else -1.0])}, openadam.Adam, params={"w": np.zeros(1)}, lr=1e-3)


@sick("D14", "all tensors uphill after a jump", 170, tensor=None)
def jump(path: Path) -> None:
    def gradient(params: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {name: (100.0 if t == 150 else -1.0) + 0.1 * noise(t, p.shape) for name, p in params.items()}

    plain(path, 200, gradient, openadam.Adam, params={"w": noise(1, (20, 10)), "b": noise(2, (10,))}, lr=1e-4)


@sick("D24", "a large gradient in every eighth step against all others", 60)
def outweighed(path: Path) -> None:
    plain(path, 150, lambda p, t: {"w": (-1.0 if t % 8 else 10.0) + noise(t, (20, 10), 0.5)}, lr=1e-3)


@sick("D25", "full batches at the edge of stability")
def edge(path: Path) -> None:
    plain(path, 200, lambda p, t: {"w": 1.0 * (-1) ** t + noise(t, (20, 10), 0.5)}, lr=1e-3)


@sick("D27", "dense Adam over rows that are mostly absent")
def absent(path: Path) -> None:
    def gradient(params: Mapping[str, Any], t: int) -> dict[str, Any]:
        grads = np.zeros((200, 8), np.float32)
        rows = np.random.default_rng(t).integers(0, 200, 8)
        grads[rows] = noise(t, (8, 8))
        return {"embedding": grads}

    plain(path, 200, gradient, params={"embedding": noise(0, (200, 8))}, lr=1e-4)


@sick("D23", "a tensor without gradient")
def never(path: Path) -> None:
    params = {"w": noise(0, (20, 10)), "dead": noise(1, (20, 10))}
    plain(path, 60, lambda p, t: {"w": pull({"w": p["w"]}, t)["w"], "dead": np.zeros((20, 10), np.float32)}, params=params)


@sick("D23", "a tensor that is cut off in mid-run")
def cut_off(path: Path) -> None:
    params = {"w": noise(0, (20, 10)), "cut": noise(1, (20, 10))}
    plain(path, 120, lambda p, t: {**pull(p, t), **({"cut": None} if t > 50 else {})}, params=params)


@sick("D43", "a layer that lets nothing through any more", 60, tensor="below")
def died(path: Path) -> None:
    params = {"below": noise(0, (20, 10)), "above": noise(1, (20, 10))}
    plain(path, 120, lambda p, t: {"below": noise(t, (20, 10), 1e-5 if t > 40 else 1e-1), "above": noise(t + 500, (20, 10))}, params=params)


@sick("D39", "another task, marked")
def task(path: Path) -> None:
    params = matrix()
    with recorded(path, params, lr=1e-4) as optimizer:
        for t in range(1, 201):
            if t == 121:
                optimizer.mark("target sync")
            optimizer.step({"w": noise(t, (20, 10)) * (1 if t <= 120 else 6)})


# --- settings ----------------------------------------------------------------------------------------------------------


@sick("D32", "a decay that outweighs all")
def decay(path: Path) -> None:
    plain(path, 160, lambda p, t: {"w": noise(t, (20, 10))}, params=matrix(30.0), weight_decay=0.5, lr=1e-3)


@sick("D34", "L2 in Adam")
def l2(path: Path) -> None:
    plain(path, 60, pull, openadam.Adam, weight_decay=0.1)


@sick("D35", "a step count that was lost")
def lost_count(path: Path) -> None:
    first = openadam.AdamW(matrix())
    for t in range(1, 60):
        first.step({"w": noise(t, (20, 10))})
    state = first.state_dict()
    state["steps"] = 0
    for each in state["state"].values():
        each["step"] = 0
    with recorded(path, matrix()) as optimizer:
        optimizer.load_state_dict(state)
        for t in range(60, 100):
            optimizer.step({"w": noise(t, (20, 10))})


@sick("D35", "moments that were lost")
def lost_moments(path: Path) -> None:
    first = openadam.AdamW(matrix())
    for t in range(1, 600):
        first.step({"w": noise(t, (20, 10))})
    state = first.state_dict()
    for each in state["state"].values():
        each["exp_avg"], each["exp_avg_sq"] = np.zeros_like(each["exp_avg"]), np.zeros_like(each["exp_avg_sq"])
    with recorded(path, matrix()) as optimizer:
        optimizer.load_state_dict(state)
        for t in range(600, 640):
            optimizer.step({"w": noise(t, (20, 10))})


@sick("D36", "a first moment that remembers longer than the second")
def betas(path: Path) -> None:
    plain(path, 60, pull, beta1=0.9, beta2=0.5)


@sick("D40", "a clip that is always on")
def always_clipped(path: Path) -> None:
    plain(path, 100, pull, clip_norm=1e-3)


# --- the healthy -------------------------------------------------------------------------------------------------------


def learn_digits(path: Path, member: Any, epochs: int = 6, seed: int = 0, every: int = 1, **settings: Any) -> None:
    data, random = digits.load_data(), np.random.default_rng(seed)
    weights = digits.initial_weights(random)
    with record.Recorder(path, every=every) as recorder:
        optimizer = member(weights, record=recorder, **settings)
        for batch in digits.batches(random, len(data.train.digits), epochs):
            images = digits.Images(data.train.pixels[batch], data.train.digits[batch])
            optimizer.step(digits.gradients(weights, images), loss=0.0)


for _name in ("adam", "adamw", "amsgrad", "nadam", "nadamw", "radam", "rmsprop", "adamax"):

    def _digits(path: Path, name: str = _name) -> None:
        learn_digits(path, openadam.family.MEMBERS[name], lr=digits.RATES[name])

    healthy(f"digits, {_name} at its swept rate")(_digits)


@healthy("digits, adam with beta2 = 0.95, clipping and a linear warm-up")
def modern(path: Path) -> None:
    learn_digits(path, openadam.AdamW, 10, 1, lr=lambda t: 3e-3 * min(1, t / 40), beta2=0.95, clip_norm=1.0, weight_decay=0.1)


@healthy("digits, forty epochs, every tenth step, down to a rate of 0")
def long(path: Path) -> None:
    learn_digits(path, openadam.AdamW, 40, 2, 10, lr=lambda t: 3e-3 * max(0.0, 0.5 + 0.5 * math.cos(math.pi * t / 1320)))


@healthy("logistic regression in full batches")
def logistic(path: Path) -> None:
    x, y = noise(1, (200, 50)), (noise(1, (200, 50))[:, :5].sum(1) + noise(2, (200,)) > 0).astype(np.float32)
    params = {"w": np.zeros(50, np.float32), "b": np.zeros(1, np.float32)}

    def gradient(p: Mapping[str, Any], t: int) -> dict[str, Any]:
        off = 1 / (1 + np.exp(-(x @ p["w"] + p["b"]))) - y
        return {"w": x.T @ off / 200 + 1e-2 * p["w"], "b": np.array([off.mean()], np.float32)}

    plain(path, 600, gradient, params=params, lr=1e-2)


@healthy("a bowl of two parameters, until they are at its ground")
def bowl(path: Path) -> None:
    plain(path, 500, lambda p, t: {"w": 2 * p["w"]}, openadam.Adam, params={"w": np.array([2.0, -1.0])}, lr=lambda t: 0.05 * 0.99**t)


@healthy("one parameter and noise")
def walk(path: Path) -> None:
    plain(path, 2000, lambda p, t: {"w": np.random.default_rng(t).normal(0, 1, 1)}, openadam.Adam, params={"w": np.zeros(1)})


@healthy("noise with heavy tails")
def tails(path: Path) -> None:
    plain(path, 400, lambda p, t: {"w": np.random.default_rng(t).standard_t(3, (40, 30)).astype(np.float32)}, params=matrix(1.0, (40, 30)), lr=1e-3)


@healthy("regression by a network, with a bias that nothing depends on")
def cancelled(path: Path) -> None:
    """The mean over the batch is taken off, so that the gradient of the last bias is what rounding leaves of 0."""
    random = np.random.default_rng(3)
    params = {"W1": (random.standard_normal((16, 64)) / 4).astype(np.float32), "b1": np.zeros(64, np.float32),
              "W2": (random.standard_normal((64, 40)) / 8).astype(np.float32), "b2": np.zeros(40, np.float32)}  # fmt: skip
    goal = (random.standard_normal((16, 40)) / 4).astype(np.float32)

    def gradient(p: Mapping[str, Any], t: int) -> dict[str, Any]:
        x = np.random.default_rng(t).standard_normal((64, 16)).astype(np.float32)
        hidden = np.tanh(x @ p["W1"] + p["b1"])
        off = hidden @ p["W2"] + p["b2"] - x @ goal
        off = (off - off.mean(0)) / 64
        back = (off @ p["W2"].T) * (1 - hidden**2)
        return {"W1": x.T @ back, "b1": back.sum(0), "W2": hidden.T @ off, "b2": off.sum(0)}

    plain(path, 400, gradient, params=params, lr=1e-3)
