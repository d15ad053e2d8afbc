"""A study as people see it: what it will do, a table with its verdicts, JSON, and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..studies import module
from ..studies.frame import Cell, Study, judge
from ..studies.rates import best
from .pictures import COLOURS, STYLES
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


def _comparison(claim: Any) -> str:
    quantity = f"{claim.metric} of {claim.setting}"
    if claim.against is not None:
        quantity += f" {'/' if claim.statistic == 'ratio' else '-'} that of {claim.against}"
    return f"{quantity} {claim.direction} {claim.bound:.3g}"


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
    console.print(f"\n[bold]{study.title}[/bold], {seeds} seed{'s' if seeds != 1 else ''}")
    columns = _columns(study, cells)
    table = _table("", *(name.replace("_", " ") for name in columns))
    for setting in _settings(study, cells):
        table.add_row(setting, *(_spread(_values(cells, setting, name)) for name in columns))
    console.print(table)
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
        if verdict.seeds:
            interval = "" if verdict.interval is None else f", {verdict.interval[0]:.3g} to {verdict.interval[1]:.3g}"
            console.print(f"  [bold]{verdict.verdict}[/bold]: {claim.claim} ({claim.source})", soft_wrap=not console.is_terminal)
            console.print(f"      {_comparison(claim)}: {verdict.effect:.3g}{interval}; {verdict.seeds} seeds", soft_wrap=not console.is_terminal)
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


def as_json(study: Study, cells: Sequence[Cell], files: Sequence[str]) -> dict[str, Any]:
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
        settings.append({"name": name, "hyperparameters": dict(study.setting(name).hyperparameters), "metrics": metrics})
    claims = []
    for claim in study.claims:
        verdict = judge(claim, cells)
        interval = None if verdict.interval is None else [number(bound) for bound in verdict.interval]
        claims.append({
            "claim": claim.claim, "source": claim.source, "verdict": verdict.verdict,
            "effect": number(verdict.effect), "interval": interval, "seeds": verdict.seeds,
        })  # fmt: skip
    return {"study": study.name, "settings": settings, "claims": claims, "files": list(files)}


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
        figure.suptitle(study.title, fontsize=11)
        settings = _settings(study, cells)
        for axes, name in zip(np.atleast_1d(parts[0].subplots(1, columns)), names, strict=False):
            for k, setting in enumerate(settings):
                own = [cell.curves[name] for cell in cells if cell.setting == setting and name in cell.curves]
                if own:
                    axes.plot(own[0][0], np.mean([values for _, values in own], axis=0), color=COLOURS[k % 8], ls=STYLES[k % 4], label=setting)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("step")
            axes.legend(fontsize=7, frameon=False)
            axes.grid(alpha=0.25)
            if name.startswith("distance"):
                axes.set_yscale("log")
        for axes, (setting, name, image) in zip(np.ravel(parts[1].subplots(down, across)) if down else (), sheets, strict=False):
            axes.imshow(np.array(image), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            axes.set_title(f"{setting}, {name}", fontsize=7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=130)
    return buffer.getvalue()
