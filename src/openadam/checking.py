"""What a rule does with gradients of all kinds, before it is trusted with a model: its scale, its first step, its bounds, its memory, its rounding.

The rule is run as an optimizer runs it, at a learning rate of 1 on parameters that are 0, so that what a parameter becomes is the direction.
"""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays.optimizer import Optimizer
from .engine import Update, compiled
from .errors import GradientError
from .extras import module
from .language.arrays import evaluate
from .language.rule import Rule
from .ranges import Ranges

__all__ = ["Checked", "Row", "check"]

Array = npt.NDArray[Any]

STEPS = 100
LONGEST = 20_000  # steps that a rule is waited for
LARGE_STEP = 3.0  # learning rates
PRECISE = 64  # units in the last place
OCTAVES = 10  # by which gradients are scaled


@dataclass(frozen=True)
class Row:
    """One property: what was asked, what was found, and whether it is ``fine``, worth a ``look``, or an ``alarm``."""

    name: str
    verdict: str
    found: str
    value: float | None = None


@dataclass(frozen=True)
class Checked:
    """What `check` found of a rule; printed, it is a table."""

    rule: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def is_fine(self) -> bool:
        """Whether nothing is an alarm."""
        return all(row.verdict != "alarm" for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in self.settings.items())
        wide = max(len(row.name) for row in self.rows) + 2
        lines = [f"{self.rule}({settings})", ""]
        for row in self.rows:
            first, *more = textwrap.wrap(row.found, 80 - wide - 7) or [""]
            lines += [f"{row.verdict:<7}{row.name:<{wide}}{first}", *(" " * (wide + 7) + line for line in more)]
        return "\n".join(line.rstrip() for line in lines)


def check(rule: Rule, **settings: Any) -> Checked:
    """A report on a rule: what gradients that are zero, tiny, huge or sudden do to it, whether it minds their scale, and how far rounding carries it.

    Args:
        rule: One's own, or one of `openadam.rules`.
        settings: Hyperparameters that have no default, or another one; options.

    Raises:
        TypeError: It is no rule.
        HyperparameterError: A hyperparameter is missing or out of range.

    >>> import openadam
    >>> found = openadam.check(openadam.rules.adam, beta1=0.9, beta2=0.999, eps=1e-8)
    >>> found["scale of gradients"].found
    'the steps do not mind it'
    >>> found["largest step"].value
    7.27
    >>> print(found["eps"].found)
    counts below gradients of about 1e-08: there the steps are half as large
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"check takes a rule, a function decorated with @openadam.rule, not {rule!r:.80}")
    options = {name: settings.pop(name) for name in list(settings) if name in rule.options}
    trial = _Trial(rule, {**{name: value for name, value in rule.defaults.items() if name != "lr"}, **settings}, options)
    rows = [
        _scale(trial), _sign(trial), _first_step(trial), _at_rest(trial), _eps(trial), _huge(trial), _largest(trial), _after(trial), *_states(trial),
        _precision(trial), _foreseen(trial),
    ]  # fmt: skip
    return Checked(rule.name, {**trial.settings, **options}, tuple(rows))


class _Trial:
    """Runs a rule over many sequences of gradients at once: each element is one of its own."""

    def __init__(self, rule: Rule, settings: Mapping[str, Any], options: Mapping[str, str]) -> None:
        self.rule, self.settings, self.options = rule, dict(settings), dict(options)
        self.traced = rule.trace(**options)

    def optimizer(self, count: int, dtype: Any = np.float64, nonfinite: str = "propagate") -> Any:
        chosen: dict[str, Any] = {**self.settings, **self.options}
        return Optimizer({"p": np.zeros(count, dtype)}, rule=self.rule, lr=1.0, nonfinite=nonfinite, **chosen)

    def directions(self, gradients: Iterable[Any], count: int, dtype: Any = np.float64, see: Callable[[Any], None] | None = None) -> Array:
        """The direction of every step: steps x sequences."""
        optimizer, found = self.optimizer(count, dtype), []
        p = optimizer.params["p"]
        with np.errstate(all="ignore"):
            for g in gradients:
                p[...] = 0
                optimizer.step({"p": np.broadcast_to(np.asarray(g, dtype), (count,)).copy()})
                found.append(-p.astype(np.float64))
                if see is not None:
                    see(optimizer)
        return np.array(found)


def _noise(steps: int, count: int) -> Array:
    return np.random.default_rng(0).standard_normal((steps, count))


def _scale(trial: _Trial) -> Row:
    """By which power of the gradients' scale directions grow."""
    name = "scale of gradients"
    noise = _noise(STEPS, 64)
    found = {k: trial.directions(noise * 2.0**k, 64) for k in (-OCTAVES, 0, OCTAVES)}
    with np.errstate(all="ignore"):
        powers = np.concatenate([np.log2(abs(found[k] / found[0])).ravel() / k for k in (-OCTAVES, OCTAVES)])
    powers = powers[np.isfinite(powers)]
    if not powers.size:
        return Row(name, "alarm", "no step was finite, or all were 0")
    low, middle, high = (float(each) for each in np.percentile(powers, (5, 50, 95)))
    if high - low < 0.01 and abs(middle) < 0.005:
        return Row(name, "fine", "the steps do not mind it", 0.0)
    if high - low < 0.01:
        return Row(name, "fine", f"steps grow with its power {middle:.3g}, and the learning rate has to fall with it", round(middle, 3))
    return Row(name, "look", f"steps depend on it in no simple way: by powers from {low:.2g} to {high:.2g}", round(middle, 3))


def _sign(trial: _Trial) -> Row:
    noise = _noise(STEPS, 64)
    up, down = trial.directions(noise, 64), trial.directions(-noise, 64)
    if not (np.isfinite(up) & np.isfinite(down)).any():
        return Row("direction", "alarm", "no step is finite")
    with np.errstate(all="ignore"):
        odd = np.nanmax(abs(up + down)) <= 1e-9 * np.nanmax(abs(up))
        descends = float(np.nanmean(up * noise))
    if not descends > 0:
        told = "the steps go uphill: what is returned is to have the sign of the gradient, and is subtracted"
        return Row("direction", "alarm", told, descends)
    told = "downhill, and turned with the gradient" if odd else "downhill, but another where the gradient is turned"
    return Row("direction", "fine" if odd else "look", told, descends)


def _first_step(trial: _Trial) -> Row:
    sizes = np.array([1e-3, 1.0, 1e3])
    found = abs(trial.directions([sizes], 3)[0])
    later = float(abs(trial.directions(np.ones((10 * STEPS, 1)), 1)[-1, 0]))
    value = float(found[1])
    told = f"{value:.3g} learning rates for a gradient of 1; {later:.3g} after many of the same sign"
    if not np.isfinite(found).all():
        return Row("first step", "alarm", "it is not finite", value)
    return Row("first step", "look" if value > LARGE_STEP * max(later, 1.0) else "fine", told, value)


def _at_rest(trial: _Trial) -> Row:
    """Without any gradient yet."""
    found = trial.directions(np.zeros((3, 1)), 1)
    if not np.isfinite(found).all():
        return Row("no gradient yet", "alarm", "the step is not finite: something is divided by 0, or a root is taken of less")
    if (found != 0).any():
        return Row("no gradient yet", "alarm", f"the parameter moves all the same, by {abs(found).max():.3g} learning rates", float(abs(found).max()))
    return Row("no gradient yet", "fine", "the parameter stays", 0.0)


def _eps(trial: _Trial) -> Row:
    """At which size of gradients the steps become half as large, or grow: in float32, whose squares end at 1e-45."""
    sizes = 10.0 ** np.arange(6, -45, -0.5)
    found = abs(trial.directions([sizes] * STEPS, len(sizes), np.float32)[-1])
    if not np.isfinite(found).all():
        bad = sizes[np.flatnonzero(~np.isfinite(found))[0]]
        return Row("eps", "alarm", f"gradients of {bad:.0e} make a step that is not finite", float(bad))
    if (power := _power(sizes, found)) is not None:
        return Row("eps", "fine", f"steps go with the size of gradients to the power {power:.3g}, whatever that is")
    with np.errstate(all="ignore"):
        share = found / found[12]  # of those of gradients of 1
    larger, half = np.flatnonzero((share > 2) & (sizes < 1)), np.flatnonzero(share < 0.5)
    if larger.size:
        at = larger[0]
        told = f"gradients of {sizes[at]:.0e} make steps {share[at]:.3g} times as large: their squares underflow, and eps is too small"
        return Row("eps", "alarm", told, float(sizes[at]))
    if not half.size:
        return Row("eps", "fine", "steps are the same down to the smallest gradients", 0.0)
    below = float(sizes[max(half[0] - 1, 0)])
    return Row("eps", "look" if below > 1e-5 else "fine", f"counts below gradients of about {below:.0e}: there the steps are half as large", below)


def _power(sizes: Array, found: Array) -> float | None:
    """The power of their size that steps go with; None where they do not."""
    there = (found > 0) & (sizes > 1e-15)
    if there.sum() < 5:
        return None
    x, y = np.log(sizes[there]), np.log(found[there])
    power, start = np.polyfit(x, y, 1)
    return float(power) if abs(power) > 0.1 and np.abs(y - start - power * x).max() < 0.01 else None


def _huge(trial: _Trial) -> Row:
    """Above which gradients a step is refused in float32."""
    refused = math.inf
    for exponent in range(38, 0, -1):
        optimizer = trial.optimizer(1, np.float32, "raise")
        try:
            for _ in range(2):
                optimizer.step({"p": np.full(1, 10.0**exponent, np.float32)})
        except GradientError:
            refused = 10.0**exponent
        else:
            break
    if refused == math.inf:
        return Row("huge gradients", "fine", "none is refused")
    told = f"of {refused:.0e} and more they are refused in float32: something overflows"
    return Row("huge gradients", "look" if refused < 1e12 else "fine", told, refused)


def _largest(trial: _Trial) -> Row:
    """The largest step that sudden, growing and steady gradients make."""
    spikes = 10.0 ** np.arange(1, 9)
    sudden = np.vstack([np.full((2 * STEPS, len(spikes)), 5e-3), np.tile(spikes, (3, 1)), np.zeros((2 * STEPS, len(spikes)))])
    # After so many steps without a gradient that the corrections of the beginning are over: steady ones, and ones that grow.
    rates = np.linspace(1.0, 2.0, 201)
    growing = np.vstack([np.zeros((LONGEST // 2, len(rates))), 1e-3 * rates ** np.arange(STEPS)[:, None]])
    after_spike, late = (abs(trial.directions(each, each.shape[1])) for each in (sudden, growing))
    if not (np.isfinite(after_spike).all() and np.isfinite(late).all()):
        return Row("largest step", "alarm", "a step was not finite")
    largest = after_spike.max(axis=0)
    power = float(np.polyfit(np.log(spikes[3:]), np.log(largest[3:]), 1)[0]) if (largest > 0).all() else 0.0
    if power > 0.1:
        told = f"has no bound: after quiet, a gradient ten times as large makes a step {10**power:.3g} times as large; clip"
        return Row("largest step", "look", told, math.inf)
    bound = float(f"{max(largest.max(), late.max()):.3g}")
    return Row("largest step", "fine" if bound < 100 else "look", f"{bound:g} learning rates, of sudden, growing and steady gradients", bound)


def _after(trial: _Trial) -> Row:
    """How long steps go on after the last gradient."""
    warm = _noise(2 * STEPS, 16)
    sizes: list[float] = []

    def gradients() -> Iterable[Any]:
        yield from warm
        for _ in range(LONGEST):
            if len(sizes) > len(warm) and sizes[-1] < 0.01 * before():
                return
            yield 0.0

    def before() -> float:
        return float(np.mean(sizes[len(warm) // 2 : len(warm)]))

    trial.directions(gradients(), 16, see=lambda optimizer: sizes.append(float(abs(optimizer.params["p"]).mean())))
    steps = len(sizes) - len(warm)
    if steps >= LONGEST:
        return Row("after the last gradient", "look", f"steps go on for more than {LONGEST} others", math.inf)
    return Row("after the last gradient", "fine" if steps < 1000 else "look", f"steps fall to a hundredth within {steps} others", float(steps))


def _states(trial: _Trial) -> list[Row]:
    """Of each state how soon it forgets."""
    names = [name for name in trial.traced.states if name in trial.traced.element_states]
    if not names:
        return [Row("memory", "fine", "it remembers nothing")]
    held: list[dict[str, float]] = []
    warm = _noise(2 * STEPS, 16)

    def see(optimizer: Any) -> None:
        held.append({name: float(abs(optimizer.state["p"][name]).mean()) for name in names})

    def gradients() -> Iterable[Any]:
        yield from warm
        for _ in range(LONGEST):
            if len(held) > len(warm) and all(held[-1][name] < 0.5 * held[len(warm) - 1][name] for name in names):
                return
            yield 0.0

    trial.directions(gradients(), 16, see=see)
    rows = []
    for name in names:
        start = held[len(warm) - 1][name]
        after = next((k for k, each in enumerate(held[len(warm) :], 1) if each[name] < 0.5 * start), None)
        told = f"half of it is forgotten after {after} steps without a gradient" if after is not None else "never forgets: steps only become smaller"
        rows.append(Row(f"state {name}", "fine" if after is not None else "look", told, math.inf if after is None else float(after)))
    return rows


def _precision(trial: _Trial) -> Row:
    """How far a step in float32 is from what exact arithmetic makes of the same states and gradients, in units of the last place of the largest
    step so far: where terms cancel, a step may well be next to nothing.
    """
    try:
        mp = module("mpmath", "check").mp.clone()
    except ImportError:
        return Row("float32", "look", "not checked: that needs mpmath, pip install 'openadam[check]'")
    mp.prec = 200
    exactly = np.frompyfunc(lambda x: mp.mpf(float(x)), 1, 1)
    root = np.frompyfunc(lambda x: mp.sqrt(x) if x >= 0 else mp.nan, 1, 1)

    def divide(a: Any, b: Any) -> Any:
        if not isinstance(b, np.ndarray):
            return a / b if b != 0 else mp.nan
        none = np.equal(b, 0)
        return np.where(none, mp.mpf(0), a / np.where(none, mp.mpf(1), b))

    functions: dict[str, Callable[..., Any]] = {
        "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": divide, "power": operator.pow, "negative": operator.neg,
        "absolute": abs, "sqrt": root, "exp": mp.exp, "expm1": mp.expm1, "log": mp.log, "sign": np.frompyfunc(mp.sign, 1, 1),
        "maximum": np.maximum, "minimum": np.minimum, "less": np.less, "less_equal": np.less_equal, "equal": np.equal,
        "where": lambda c, a, b: np.where(np.asarray(c, bool), a, b) if isinstance(c, np.ndarray) else a if c else b,
    }  # fmt: skip
    count, worst = 48, 0.0
    largest = np.full(count, 1e-30)
    random = np.random.default_rng(1)
    sizes = 10.0 ** random.uniform(-4, 3, count)
    optimizer = trial.optimizer(count, np.float32)
    p = optimizer.params["p"]
    h = {("scalar", name): mp.mpf(value) for name, value in optimizer.groups[0].items() if isinstance(value, (int, float))}
    for t in range(1, STEPS + 1):
        g = (random.standard_normal(count) * sizes).astype(np.float32)
        states = {("state", name): exactly(value) if np.ndim(value) else mp.mpf(float(value)) for name, value in optimizer.state["p"].items()}
        p[...] = 0
        optimizer.step({"p": g})
        values = {("tensor", "g"): exactly(g), ("scalar", "t"): mp.mpf(t), **h, **states}
        exact = np.broadcast_to(np.asarray(evaluate([trial.traced.direction], values, functions)[0], object), (count,))
        largest = np.fmax(largest, abs(exact.astype(np.float64)))
        there = np.isfinite(exact.astype(np.float64)) & np.isfinite(p)
        off = abs(exactly(-p[there]) - exact[there]).astype(np.float64)
        worst = max(worst, float(np.max(off / np.spacing(largest[there].astype(np.float32)), initial=0.0)))
    verdict = "fine" if worst <= PRECISE else "look" if worst < 1e4 else "alarm"
    return Row("float32", verdict, f"at most {worst:.2g} units in the last place from exact arithmetic", float(f"{worst:.3g}"))


def _foreseen(trial: _Trial) -> Row:
    """Whether it is known before each step that it stays finite."""
    optimizer = trial.optimizer(1, np.float32)
    values = {name: value for name, value in optimizer.groups[0].items() if isinstance(value, (int, float))}
    update = Update(trial.traced, "coupled", values=values | {"maximize": False})
    ranges = Ranges(update, np.dtype(np.float32), trial.rule.words)
    memory = [optimizer.state["p"][name] for name in compiled(trial.traced)[0].memory]
    known = 0
    with np.errstate(all="ignore"):
        for t in range(1, 3 * STEPS + 1):
            once = update.once(t, 1.0, math.inf, memory)
            memory = once.memory
            known += ranges.foresees(5.0, [once], [])
    share = known / (3 * STEPS)
    told = "every step is known to stay finite before it is taken" if share == 1 else f"of {1 - share:.0%} of the steps it must be tried out: slower"
    return Row("foreseen", "fine" if share > 0.9 else "look", told, share)
