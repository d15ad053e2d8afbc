"""The frame of every study: settings x seeds, cells that return plain data, a file of finished cells, and claims with computed verdicts."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import NonFiniteGradientError, NonFiniteStateError, OpenAdamError
from . import module

__all__ = ["Cell", "CellFile", "Claim", "Setting", "Study", "StudyError", "Verdict", "judge", "planned", "run_cells"]


class StudyError(OpenAdamError):
    """A file of cells is not that of this study."""


@dataclass(frozen=True)
class Setting:
    """One way of running: a name, and the hyperparameters that are its own."""

    name: str
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """What somebody says, as a comparison that is fixed before the runs.

    A seed's effect is ``metric`` of ``setting`` minus that of the setting ``against``, or for ``ratio`` their quotient; without ``against``
    the number itself.
    """

    claim: str
    source: str
    metric: str
    setting: str
    against: str | None
    direction: str
    """``below`` or ``above`` the bound."""
    bound: float = 0.0
    statistic: str = "difference"
    """Or ``ratio``, of metrics that are positive."""


@dataclass(frozen=True)
class Verdict:
    """A claim after the runs: ``seen``, ``not seen`` or ``within noise``, by where its 95 % interval lies."""

    claim: str
    source: str
    verdict: str
    effect: float
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True)
class Cell:
    """What one setting did with one seed."""

    setting: str
    seed: int
    metrics: Mapping[str, float]
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    """By name, the places and the values."""
    images: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    """By name, rows of grey values from 0 to 1."""
    seconds: float = 0.0
    refused: str = ""
    """Where a step was refused because the run had diverged: why. It has no numbers then."""


@dataclass(frozen=True)
class Study:
    """An experiment before it is run."""

    name: str
    title: str
    metrics: Mapping[str, str]
    """What each number that is shown is; cells may hold others."""
    settings: Sequence[Setting]
    claims: Sequence[Claim]
    run: Callable[[Setting, int, bool], Cell]
    """A setting, a seed, and whether with the full budget; a function at the top of its module."""
    seeds: int
    full_seeds: int
    needs: Sequence[str] = ()
    """Modules of the extra ``studies``."""
    sweep: Callable[[], Mapping[str, Mapping[float, float]]] | None = None
    """Chooses the learning rates anew: by setting, the validation score of each rate."""
    notes: Sequence[str] = ()

    def setting(self, name: str) -> Setting:
        """The setting of this name."""
        return next(setting for setting in self.settings if setting.name == name)


# --- running -----------------------------------------------------------------------------------------------------------


def planned(settings: Iterable[str], seeds: int) -> list[tuple[str, int]]:
    """The cells in their order: seed by seed, so that whenever it ends all settings have had about as many runs."""
    settings = list(settings)
    return [(setting, seed) for seed in range(seeds) for setting in settings]


def run_cells(study: Study, cells: Sequence[tuple[str, int]], *, full: bool = False, workers: int = 1) -> Iterator[Cell]:
    """Run cells, side by side in processes of their own where there are workers; yields each when it is done."""
    if workers == 1 or len(cells) < 2:
        for name, seed in cells:
            yield _timed(study.run, study.setting(name), seed, full)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # the workers read it when they start
    waiting = iter(cells)
    running: set[Future[Cell]] = set()
    pool = ProcessPoolExecutor(min(workers, len(cells)), context)
    try:
        while True:
            while len(running) < workers and (cell := next(waiting, None)) is not None:
                running.add(pool.submit(_timed, study.run, study.setting(cell[0]), cell[1], full))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    finally:
        for process in list((pool._processes or {}).values()) if running else ():
            process.terminate()  # interrupted: their cells would not be kept
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


ONE_THREAD = dict.fromkeys(("OPENADAM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _timed(run: Callable[[Setting, int, bool], Cell], setting: Setting, seed: int, full: bool) -> Cell:
    begun = time.perf_counter()
    try:
        cell = run(setting, seed, full)
    except (NonFiniteGradientError, NonFiniteStateError) as error:
        cell = Cell(setting.name, seed, {}, refused=str(error))
    return replace(cell, seconds=time.perf_counter() - begun)


class CellFile:
    """A file to which every finished cell is appended, so that a run which was interrupted can go on: JSON, a line a cell.

    Raises:
        FileExistsError: There is a file, and it is not to be gone on with.
        StudyError: It is of another study or budget, or no such file.
    """

    def __init__(self, path: Path, study: Study, *, full: bool, resume: bool) -> None:
        self.path = path
        self.cells: list[Cell] = []
        header = {"study": study.name, "full": full, "openadam": __version__}
        if not path.exists():
            path.write_text(json.dumps(header) + "\n")
            return
        if not resume:
            raise FileExistsError(f"{path} is there already; give --resume to go on with it, or another name")
        first, *lines = path.read_text().splitlines() or [""]
        found = _parsed(first)
        if not isinstance(found, dict) or {**found, "openadam": __version__} != header:
            raise StudyError(f"{path} is not a file of cells of the study {study.name}{' --full' if full else ''}: it begins with {first[:80]!r}")
        whole = [first]
        for line in lines:
            cell = _parsed(line)
            if cell is not None:
                self.cells.append(Cell(**cell))
                whole.append(line)
        path.write_text("\n".join(whole) + "\n")  # without a line that was cut off

    def append(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.cells.append(cell)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(cell)) + "\n")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


# --- verdicts ----------------------------------------------------------------------------------------------------------


def judge(claim: Claim, cells: Iterable[Cell]) -> Verdict:
    """What the cells say of a claim: by the 95 % interval (Student's t) of its effect, paired by seed.

    >>> claim = Claim("a is smaller", "nobody", "x", "a", "b", "below")
    >>> cells = [Cell(name, seed, {"x": seed + (name == "b")}) for name in "ab" for seed in range(3)]
    >>> judge(claim, cells)
    Verdict(claim='a is smaller', source='nobody', verdict='seen', effect=-1.0, interval=(-1.0, -1.0), seeds=3)
    """
    cells = list(cells)

    def values(setting: str) -> dict[int, float]:
        return {cell.seed: cell.metrics[claim.metric] for cell in cells if cell.setting == setting and claim.metric in cell.metrics}

    mine = values(claim.setting)
    ratio = claim.statistic == "ratio"
    other = values(claim.against) if claim.against is not None else dict.fromkeys(mine, float(ratio))
    effects = []
    for seed in sorted(mine.keys() & other.keys()):
        a, b = mine[seed], other[seed]
        if math.isfinite(a) and math.isfinite(b) and (not ratio or (a > 0 and b > 0)):
            effects.append(math.log(a / b) if ratio else a - b)
    if not effects:
        return Verdict(claim.claim, claim.source, "within noise", math.nan, None, 0)
    mean = statistics.fmean(effects)
    interval = None
    if len(effects) > 1:
        quantile = float(module("scipy.stats", "studies").t.ppf(0.975, len(effects) - 1))
        reach = quantile * statistics.stdev(effects) / math.sqrt(len(effects))
        interval = (mean - reach, mean + reach)
    if ratio:
        mean, interval = math.exp(mean), interval and (math.exp(interval[0]), math.exp(interval[1]))
    verdict = "within noise"
    if interval is not None:
        if interval[1] < claim.bound:
            verdict = "seen" if claim.direction == "below" else "not seen"
        elif interval[0] > claim.bound:
            verdict = "seen" if claim.direction == "above" else "not seen"
    return Verdict(claim.claim, claim.source, verdict, mean, interval, len(effects))
