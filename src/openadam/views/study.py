"""A study as people see it: what it will do, a table with its verdicts, JSON, and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._version import __version__
from ..studies import module
from ..studies.frame import Cell, Claim, Study, judge
from ..studies.rates import best
from .pictures import COLOURS, STYLES, WIDE_RANGE
from .terminal import new_console

__all__ = ["as_json", "picture", "print_results", "print_study", "print_sweep"]


# --- text --------------------------------------------------------------------------------------------------------------


def _table(*headings: str) -> Any:
    table = module("rich.table", "studies").Table(box=module("rich.box", "studies").SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    return table


def print_study(study: Study) -> None:
    """What a study will do: settings, numbers and claims."""
    console = new_console()
    console.print(f"\n[bold]{study.title}[/bold]: {len(study.settings)} settings, {study.seeds} seeds (--full: {study.full_seeds})\n")
    for setting in study.settings:
        console.print(f"  {setting.name}: {', '.join(f'{name}={value}' for name, value in setting.hyperparameters.items())}", soft_wrap=True)
    console.print("\nNumbers")
    for name, meaning in study.metrics.items():
        console.print(f"  {name}: {meaning}", soft_wrap=True)
    console.print("\nClaims")
    for claim in study.claims:
        console.print(f"  {claim.claim} ({claim.source}): {_comparison(claim)}", soft_wrap=True)


def _comparison(claim: Claim) -> str:
    quantity = f"{claim.metric} of {claim.setting}"
    if claim.against is not None:
        quantity += f" {'/' if claim.statistic == 'ratio' else '-'} that of {claim.against}"
    if claim.statistic == "ratio":
        quantity += " (geometric mean)"
    return f"{quantity} {claim.direction} {'±' if claim.direction == 'within' else ''}{claim.bound:.3g}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def print_sweep(study: Study, scores: Mapping[str, Mapping[float, float]]) -> None:
    """The score of every rate that was tried; * is the best."""
    rates = sorted({rate for own in scores.values() for rate in own})
    table = _table("", *(f"{rate:g}" for rate in rates))
    for name, own in scores.items():
        chosen = best(own)
        table.add_row(name, *("" if rate not in own else f"{own[rate]:.3f}{'*' if rate == chosen else ' '}" for rate in rates))
    console = new_console()
    console.print(f"\n[bold]{study.title}[/bold]: validation score by learning rate")
    console.print(table)


def _columns(study: Study, cells: Sequence[Cell]) -> list[str]:
    return [name for name in study.metrics if any(name in cell.metrics for cell in cells)]


def _values(cells: Iterable[Cell], setting: str, metric: str) -> list[float]:
    return [cell.metrics[metric] for cell in cells if cell.setting == setting and metric in cell.metrics]


def _settings(study: Study, cells: Sequence[Cell]) -> list[str]:
    run = {cell.setting for cell in cells}
    return [setting.name for setting in study.settings if setting.name in run]


def print_results(study: Study, cells: Sequence[Cell], files: Sequence[str]) -> None:
    """The numbers of every setting, and below them what became of the claims."""
    console = new_console()
    seeds = len({cell.seed for cell in cells})
    console.print(f"\n[bold]{study.title}[/bold], {_counted(seeds, 'seed')}")
    columns = _columns(study, cells)
    rows = [(setting, *(_spread(_values(cells, setting, name)) for name in columns)) for setting in _settings(study, cells)]
    headings = ("", *(name.replace("_", " ") for name in columns))
    if sum(max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)) <= console.width:
        table = _table(*headings)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:  # a number to a line rather than a number in two
        for setting, *values in rows:
            console.print(f"\n{setting}")
            for heading, value in zip(headings[1:], values, strict=True):
                if value:
                    console.print(f"  {heading}: {value}", soft_wrap=True)
        console.print()
    for name in columns:
        console.print(f"{name.replace('_', ' ')}: {study.metrics[name]}.", soft_wrap=not console.is_terminal)
    console.print("Means over the seeds, ± one standard deviation.")
    for setting in _settings(study, cells):
        own = [cell for cell in cells if cell.setting == setting]
        if refused := [cell for cell in own if cell.refused]:
            console.print(f"{setting} diverged in {len(refused)} of {len(own)} runs, which are in no number here: {refused[0].refused[:100]}")
    console.print("\n[bold]Claims[/bold], and what these runs say of them (effects paired by seed, with 95 % intervals)\n")
    for claim in study.claims:
        verdict = judge(claim, cells)
        if not verdict.seeds and not verdict.left_out:
            continue  # its settings were not run
        interval = ", and one seed has no interval" if verdict.interval is None else f", {verdict.interval[0]:.3g} to {verdict.interval[1]:.3g}"
        found = f"{verdict.effect:.3g}{interval}; {_counted(verdict.seeds, 'seed')}" if verdict.seeds else "no seed has both numbers"
        without = f" ({_counted(verdict.left_out, 'seed')} left out: no finite number)" if verdict.left_out else ""
        console.print(f"  [bold]{verdict.verdict}[/bold]: {claim.claim} ({claim.source})", soft_wrap=not console.is_terminal)
        console.print(f"      {_comparison(claim)}: {found}{without}", soft_wrap=not console.is_terminal)
    for note in study.notes:
        console.print(f"\n{note}", soft_wrap=not console.is_terminal)
    for file in files:
        console.print(f"\nWritten: {file}", soft_wrap=True)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, spread = _mean_and_spread(values)
    return f"{mean:.3g}" if math.isnan(spread) else f"{mean:.3g} ± {spread:.2g}"


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """NaN for the spread of one value, and where a value is not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


# --- JSON --------------------------------------------------------------------------------------------------------------


def as_json(study: Study, cells: Sequence[Cell], files: Sequence[str], *, full: bool = False) -> dict[str, Any]:
    """Everything as plain data; what is not a finite number is None."""

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    settings = []
    for name in _settings(study, cells):
        metrics = {}
        for metric in _columns(study, cells):
            if values := _values(cells, name, metric):
                mean, spread = _mean_and_spread(values)
                metrics[metric] = {"mean": number(mean), "std": number(spread), "values": [number(value) for value in values]}
        own = [cell for cell in cells if cell.setting == name]
        settings.append({
            "name": name, "hyperparameters": dict(study.setting(name).hyperparameters), "metrics": metrics,
            "seeds": [cell.seed for cell in own if not cell.refused],
            "diverged": [{"seed": cell.seed, "why": cell.refused} for cell in own if cell.refused],
        })  # fmt: skip
    claims = []
    for claim in study.claims:
        verdict = judge(claim, cells)
        interval = None if verdict.interval is None else [number(bound) for bound in verdict.interval]
        claims.append({
            "claim": claim.claim, "source": claim.source, "verdict": verdict.verdict,
            "effect": number(verdict.effect), "interval": interval, "seeds": verdict.seeds, "left_out": verdict.left_out,
            **{name: getattr(claim, name) for name in ("metric", "setting", "against", "statistic", "direction", "bound")},
        })  # fmt: skip
    about = {"openadam": __version__, "study": study.name, "full": full}
    return {**about, "settings": settings, "claims": claims, "files": list(files)}


# --- the picture -------------------------------------------------------------------------------------------------------


def picture(study: Study, cells: Sequence[Cell], suffix: str) -> bytes:
    """Every curve as the mean over the seeds, and what was drawn on the way, in one of the formats of `check_picture_format`."""
    matplotlib = module("matplotlib", "studies")
    figures = module("matplotlib.figure", "studies")
    names = list(dict.fromkeys(name for cell in cells for name in cell.curves))
    drawn = [cell for cell in cells if cell.images and cell.seed == min(other.seed for other in cells)]
    sheets = [(cell.setting, name, image) for cell in drawn for name, image in cell.images.items()]
    columns = max(len(names), 1)
    across = len({name for _, name, _ in sheets}) or 1
    down = len(drawn)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.usetex": False}):
        figure = figures.Figure(figsize=(max(5 * columns, 9), 4 + 0.9 * down), layout="constrained")
        parts = figure.subfigures(2 if down else 1, 1, height_ratios=[4, 0.9 * down] if down else None, squeeze=False)[:, 0]
        figure.suptitle(f"{study.title}\nlines are means over the seeds, bands their middle half", fontsize=11)
        settings = _settings(study, cells)
        labels: dict[str, Any] = {}
        for axes, name in zip(np.atleast_1d(parts[0].subplots(1, columns)), names, strict=False):
            for k, setting in enumerate(settings):
                own = [cell.curves[name] for cell in cells if cell.setting == setting and name in cell.curves]
                if own:
                    places, values = own[0][0], np.array([values for _, values in own])
                    axes.plot(places, values.mean(axis=0), color=COLOURS[k % 8], ls=STYLES[(k + k // 8) % 4], label=setting)
                    axes.fill_between(places, *np.percentile(values, [25, 75], axis=0), color=COLOURS[k % 8], alpha=0.13, lw=0)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel(study.across)
            axes.grid(alpha=0.25)
            drawn_values = np.concatenate([line.get_ydata() for line in axes.lines])
            if drawn_values.size and drawn_values.min() > 0 and drawn_values.max() > WIDE_RANGE * drawn_values.min():
                axes.set_yscale("log")
            labels |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        parts[0].legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
        for axes, (setting, name, image) in zip(np.ravel(parts[1].subplots(down, across)) if down else (), sheets, strict=False):
            axes.imshow(np.array(image), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            axes.set_title(f"{setting}, {name}", fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=130)
    return buffer.getvalue()
