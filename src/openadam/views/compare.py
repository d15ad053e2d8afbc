"""A comparison of optimizers as people see it: progress while it runs, a table in the terminal, JSON, and a picture of the curves."""

from __future__ import annotations

import io
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import engine as engines
from .._version import __version__
from ..family import MEMBERS
from ..rules import update_program
from ..studies import demo_module
from ..studies.digits import BATCH, EPOCHS, EVERY, LAYERS, RATES, SWEEP_SEEDS, TARGET, Comparison, Run, load_data
from ..studies.rates import best
from .pictures import COLOURS, STYLES
from .terminal import new_console

__all__ = ["Summary", "as_json", "picture", "print_sweep", "print_table", "summarize"]


@dataclass(frozen=True)
class Summary:
    """An optimizer's runs in numbers; NaN where one diverged, or where one run alone has no spread."""

    optimizer: str
    lr: float
    runs: int
    diverged: int
    test_accuracy: float
    test_accuracy_std: float
    test_loss: float
    train_loss: float
    steps_to_target: float
    """The median; infinite unless more than half of the runs reached it."""
    microseconds: float

    @property
    def name(self) -> str:
        return MEMBERS[self.optimizer].__name__


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """One summary per optimizer, in the order of their first runs."""
    result = []
    for optimizer, own in _by_optimizer(runs).items():
        accuracies = [run.test_accuracy for run in own]
        result.append(
            Summary(
                optimizer=optimizer,
                lr=own[0].lr,
                runs=len(own),
                diverged=sum(run.diverged_at is not None for run in own),
                test_accuracy=statistics.fmean(accuracies),
                test_accuracy_std=statistics.stdev(accuracies) if len(own) > 1 else math.nan,
                test_loss=statistics.fmean(run.test_loss for run in own),
                train_loss=statistics.fmean(run.train_loss[-1] for run in own),
                steps_to_target=statistics.median_high(run.steps_to_target for run in own),
                microseconds=statistics.median(run.microseconds for run in own),
            )
        )
    return result


def _by_optimizer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    names = dict.fromkeys(run.optimizer for run in runs)
    return {name: [run for run in runs if run.optimizer == name] for name in names}


# --- tables ------------------------------------------------------------------------------------------------------------


WIDE = 78  # columns from which on tables are set with room between theirs


def _table(**settings: Any) -> Any:
    return demo_module("rich.table").Table(box=demo_module("rich.box").SIMPLE_HEAD, **settings)


def _print_titled(console: Any, title: str, table: Any, notes: Sequence[str]) -> None:
    console.print(f"\n[bold]{title}[/bold]", soft_wrap=not console.is_terminal)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=not console.is_terminal)


def print_table(comparison: Comparison, *, interrupted: bool = False) -> None:
    """The summaries as a table, and below it what the numbers are."""
    console = new_console()
    table = _table(padding=(0, 1) if console.width >= WIDE else 0)
    table.add_column("optimizer", no_wrap=True)
    for column in ("learning\nrate", "test\naccuracy %", "test\nloss", "training\nloss", f"steps to\n{100 * TARGET:g} %", "µs per\nstep"):
        table.add_column(column, justify="right", overflow="fold", min_width=max(map(len, column.split())))
    summaries = summarize(comparison.runs)
    for summary in summaries:
        spread = "" if math.isnan(summary.test_accuracy_std) else f" ± {100 * summary.test_accuracy_std:.1f}"
        table.add_row(
            summary.name,
            f"{summary.lr:g}",
            f"{100 * summary.test_accuracy:.1f}{spread}",
            *("diverged" if math.isnan(loss) else f"{loss:.3g}" for loss in (summary.test_loss, summary.train_loss)),
            "never" if math.isinf(summary.steps_to_target) else f"{summary.steps_to_target:.0f}",
            f"{summary.microseconds:.0f}",
        )
    _print_titled(console, _title(comparison), table, _notes(comparison, summaries, interrupted))


def _title(comparison: Comparison) -> str:
    network = "-".join(map(str, LAYERS))
    cut_short = len(comparison.runs) < len(comparison.optimizers) * comparison.seeds
    seeds = f"interrupted before {_count(comparison.seeds, 'seed')}" if cut_short else _count(comparison.seeds, "seed")
    return f"Handwritten digits, network {network}, {_count(comparison.epochs, 'epoch')}, {seeds}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _fairness(comparison: Comparison) -> str:
    if comparison.lr is not None:
        return f"All at the learning rate {comparison.lr:g}: NOT a fair comparison. Leave --lr out to run each at the rate that suits it."
    chosen = "the sweep above" if comparison.with_sweep else "a sweep (--sweep redoes it)"
    fair = f"Each at the learning rate that {chosen} chose for it by the loss on a validation set."
    if comparison.epochs != EPOCHS and not comparison.with_sweep:
        fair += f" These rates were chosen for {EPOCHS} epochs: at {comparison.epochs} the comparison is less fair."
    return fair


def _notes(comparison: Comparison, summaries: Sequence[Summary], interrupted: bool) -> list[str]:
    engine, threads = _engine(comparison), engines.resolve_threads(None)
    notes = [
        _fairness(comparison),
        "Means over the seeds, ± one standard deviation; a seed has the same initial weights and batches for all.",
        f"There are {len(load_data().test.digits)} test images: less than one point of test accuracy tells little.",
        f"Steps until validation accuracy reached {100 * TARGET:g} %: the median, looked at every {EVERY} steps.",
        f"µs: the median duration of the optimizer's step alone, on this machine ({engine.name}, {engine.isa}, {_count(threads, 'thread')}).",
    ]
    notes += [
        f"{summary.name} diverged in {summary.diverged} of {_count(summary.runs, 'run')}: its gradients were no longer finite."
        for summary in summaries
        if summary.diverged
    ]
    if interrupted:
        counts = ", ".join(f"{summary.name} {summary.runs}" for summary in summaries)
        notes.append(f"Interrupted: these are {len(comparison.runs)} of {len(comparison.optimizers) * comparison.seeds} runs ({counts}).")
    return notes


def _engine(comparison: Comparison) -> engines.Engine:
    rule = MEMBERS[comparison.optimizers[0]].rule
    assert rule is not None
    return engines.choose_engine(update_program(rule.trace()))


def print_sweep(comparison: Comparison) -> None:
    """The score of every rate that was tried, and which rates were chosen."""
    rates = sorted({lr for scores in comparison.sweeps.values() for lr in scores})
    title = f"The sweep: mean validation loss after {_count(comparison.epochs, 'epoch')}, {len(SWEEP_SEEDS)} seeds, by learning rate"
    rows = [["", *(f"{lr:g}" for lr in rates)]]
    for optimizer, scores in comparison.sweeps.items():
        cells = ["" if lr not in scores else "diverged " if math.isinf(scores[lr]) else f"{scores[lr]:.3f} " for lr in rates]
        winner = rates.index(best(scores))
        cells[winner] = f"[bold]{cells[winner].rstrip()}*[/bold]"
        rows.append([MEMBERS[optimizer].__name__, *cells])
    console = new_console()
    if console.width < WIDE:
        rows = [list(column) for column in zip(*rows, strict=True)]  # there are more rates than optimizers
    table = _table(padding=0)
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    chosen = {name: best(scores) for name, scores in comparison.sweeps.items()}
    other = ", ".join(f"{MEMBERS[name].__name__} {RATES[name]:g}" for name, lr in chosen.items() if RATES.get(name, lr) != lr)
    note = f"* chosen. Without --sweep, {f'other rates are used: {other}' if other else 'the same rates are used'}."
    _print_titled(console, title, table, [note])


# --- JSON --------------------------------------------------------------------------------------------------------------


def as_json(comparison: Comparison, picture: str | None, *, interrupted: bool = False) -> dict[str, Any]:
    """Everything as plain data: NaN, never and what there is not are None."""
    data, engine = load_data(), _engine(comparison)
    optimizers = []
    for summary, own in zip(summarize(comparison.runs), _by_optimizer(comparison.runs).values(), strict=True):
        runs = [
            {
                **{name: value for name, value in asdict(run).items() if not isinstance(value, tuple) and name not in ("optimizer", "lr")},
                "train_loss": run.train_loss[-1],
                "steps_to_target": run.steps_to_target,
            }
            for run in own
        ]
        means = {name: np.mean([getattr(run, name) for run in own], axis=0).tolist() for name in ("train_loss", "validation_accuracy")}
        optimizers.append({**asdict(summary), "runs": runs, "curves": {"steps": own[0].steps, **means}})
    report = {
        "openadam": __version__,
        "study": "digits",
        "machine": {
            "engine": engine.name,
            "isa": engine.isa,
            "threads": engines.resolve_threads(None),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "images": {part: len(images.digits) for part, images in data._asdict().items()},
        "layers": list(LAYERS),
        "batch": BATCH,
        "epochs": comparison.epochs,
        "seeds": comparison.seeds,
        "target": TARGET,
        "fair": comparison.lr is None and (comparison.with_sweep or comparison.epochs == EPOCHS),
        "fairness": _fairness(comparison),
        "interrupted": interrupted,
        "optimizers": optimizers,
        "sweep": {
            optimizer: {"chosen": best(scores), "validation_loss": [{"lr": lr, "mean": score} for lr, score in scores.items()]}
            for optimizer, scores in comparison.sweeps.items()
        },
        "picture": picture,
    }
    plain: dict[str, Any] = _finite(report)
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- the picture -------------------------------------------------------------------------------------------------------


def picture(comparison: Comparison, suffix: str) -> bytes:
    """Training loss and validation accuracy over the steps: the mean of the seeds as a line, their middle half as a band."""
    with demo_module("matplotlib").rc_context({"text.usetex": False}):  # whatever is set for other pictures
        return _drawn(comparison, suffix.lower().removeprefix("."))


def _drawn(comparison: Comparison, kind: str) -> bytes:
    figure = demo_module("matplotlib.figure").Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    lowest, (first, *_, last) = 0.8, comparison.runs[0].steps[1:]
    loss.set(title="training loss", xlabel="step", yscale="log", xlim=(0, last))
    accuracy.set(title="validation accuracy", xlabel="step (logarithmic)", xscale="log", xlim=(first, last))
    for place, (optimizer, own) in enumerate(_by_optimizer(comparison.runs).items()):
        look = {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place % len(STYLES)], "linewidth": 1.5, "zorder": 2 + place % len(STYLES)}
        label = f"{MEMBERS[optimizer].__name__}, lr {own[0].lr:g}"
        for axes, curves in ((loss, [run.train_loss for run in own]), (accuracy, [run.validation_accuracy for run in own])):
            values = np.array(curves)
            axes.plot(own[0].steps, values.mean(axis=0), label=label, **look)
            low, high = np.percentile(values, [25, 75], axis=0)
            axes.fill_between(own[0].steps, low, high, color=look["color"], alpha=0.13, linewidth=0)
        final = float(np.mean([run.validation_accuracy[-1] for run in own]))
        lowest = min(lowest, final - 0.05) if math.isfinite(final) else lowest
    accuracy.set_ylim(max(lowest, 0.0), 1.0)
    accuracy.axhline(TARGET, color="#777777", linewidth=0.8, zorder=0)
    for axes in (loss, accuracy):
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    rates = f"all at the learning rate {comparison.lr:g}" if comparison.lr is not None else "each at the learning rate that its sweep chose"
    figure.suptitle(f"{_title(comparison)}; {rates}", fontsize="medium")
    figure.supxlabel("Lines are means over the seeds, bands their middle half.", fontsize="small", color="#555555")
    file = io.BytesIO()
    title = "Title" if kind == "svg" else "Software" if kind == "png" else "Creator"
    figure.savefig(file, format=kind, metadata={title: "openadam compare"})
    return file.getvalue()
