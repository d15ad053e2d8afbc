"""The frame of every study: settings x seeds, cells that return plain data, a file of finished cells, and claims with computed verdicts."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields, replace
from errno import EISDIR
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import NonFiniteGradientError, NonFiniteStateError, OpenAdamError
from . import module

__all__ = ["Cell", "CellFile", "Claim", "Setting", "Study", "StudyError", "Verdict", "judge", "planned", "run_cells"]


class StudyError(OpenAdamError, ValueError):
    """A study contradicts itself, or a file of cells is not that of this study."""


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
    """``below`` or ``above`` the bound, or ``within`` it in either direction from 0."""
    bound: float = 0.0
    statistic: str = "difference"
    """Or ``ratio``, of metrics that are positive; its mean is the geometric one."""

    def __post_init__(self) -> None:
        if self.direction not in ("below", "above", "within") or self.statistic not in ("difference", "ratio"):
            raise StudyError(f"{self.claim!r}: {self.direction!r} of a {self.statistic!r} is not below, above or within, of a difference or ratio")
        if (self.statistic == "ratio" or self.direction == "within") and not self.bound > 0:
            raise StudyError(f"{self.claim!r}: the bound of a ratio, or of what lies within it, is above 0, not {self.bound!r}")


@dataclass(frozen=True)
class Verdict:
    """A claim after the runs: ``seen``, ``not seen`` or ``within noise``, by where its 95 % interval lies."""

    claim: str
    source: str
    verdict: str
    effect: float
    interval: tuple[float, float] | None
    """None for fewer than two seeds, of which nothing can be told from noise."""
    seeds: int
    left_out: int = 0
    """Seeds that were run and have no finite number (or for a ratio, none above 0)."""


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
    across: str = "step"
    """What its curves are drawn over."""

    def __post_init__(self) -> None:
        names = [setting.name for setting in self.settings]
        if len(set(names)) < len(names):
            raise StudyError(f"the study {self.name} has two settings of one name: {'; '.join(names)}")
        for claim in self.claims:
            for name in filter(None, (claim.setting, claim.against)):
                self.setting(name)

    def setting(self, name: str) -> Setting:
        """The setting of this name.

        Raises:
            StudyError: There is none.
        """
        for setting in self.settings:
            if setting.name == name:
                return setting
        raise StudyError(f"the study {self.name} has no setting {name!r}; there are: {'; '.join(setting.name for setting in self.settings)}")


# --- running -----------------------------------------------------------------------------------------------------------


def planned(settings: Iterable[str], seeds: int) -> list[tuple[str, int]]:
    """The cells in their order: seed by seed, so that whenever it ends all settings have had about as many runs."""
    settings = list(settings)
    return [(setting, seed) for seed in range(seeds) for setting in settings]


def run_cells(study: Study, cells: Sequence[tuple[str, int]], *, full: bool = False, workers: int = 1) -> Iterator[Cell]:
    """Run cells, side by side in processes of their own where there are workers; yields each when it is done.

    Every cell has one thread, so that its numbers do not depend on how many run beside it.
    """
    if workers == 1 or len(cells) < 2:
        for name, seed in cells:
            yield _timed(study.run, study.setting(name), seed, full)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # the workers read it when they start
    waiting = iter(cells)
    running: set[Future[Cell]] = set()
    pool = ProcessPoolExecutor(min(workers, len(cells)), context, _end_with_parent)
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


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _timed(run: Callable[[Setting, int, bool], Cell], setting: Setting, seed: int, full: bool) -> Cell:
    begun = time.perf_counter()
    try:
        with module("threadpoolctl", "studies").threadpool_limits(1):
            cell = run(setting, seed, full)
    except (NonFiniteGradientError, NonFiniteStateError) as error:
        cell = Cell(setting.name, seed, {}, refused=str(error))
    return replace(cell, seconds=time.perf_counter() - begun)


class CellFile:
    """A file to which every finished cell is appended, so that a run which was interrupted can go on: JSON, a line a cell.

    Raises:
        FileExistsError: There is a file, and it is not to be gone on with.
        FileNotFoundError: There is none to go on with.
        StudyError: It is of another study, budget or version, or no such file; it is left as it is.
    """

    def __init__(self, path: Path, study: Study, *, full: bool, resume: bool) -> None:
        self.path = path
        self.cells: list[Cell] = []
        header = {"study": study.name, "full": full, "openadam": __version__}
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "is a directory, not a file of cells", str(path))
        if resume and not path.exists():
            raise FileNotFoundError(f"there is no {path} to go on with; leave --resume out to begin it")
        if not path.exists() or path.stat().st_size == 0:
            path.write_text(json.dumps(header) + "\n")
            return
        if not resume:
            raise FileExistsError(f"{path} is there already; give --resume to go on with it, or another name")
        content = path.read_bytes()
        *lines, rest = content.split(b"\n")
        found = _parsed(lines[0] if lines else rest)
        if not isinstance(found, dict) or found.keys() != header.keys() or {**found, "openadam": __version__} != header:
            what = f"the study {study.name}{' --full' if full else ''}"
            raise StudyError(f"{path} is not a file of cells of {what}: it begins with {content[:80]!r}")
        if found != header:
            raise StudyError(f"{path} was begun by openadam {found['openadam']}, this is {__version__}: cells of two versions do not belong together")
        for number, line in enumerate(lines[1:], 2):
            cell = _cell(_parsed(line))
            if cell is None:
                raise StudyError(f"line {number} of {path} is no cell of a study: {line[:80]!r}; delete the line to have it run anew")
            self.cells.append(cell)
        if rest:  # it was cut off while it was written
            os.truncate(path, len(content) - len(rest))

    def append(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.cells.append(cell)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(cell)) + "\n")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _cell(found: Any) -> Cell | None:
    """What a line says; None if that is no cell."""
    numbers = (int, float)
    if not isinstance(found, dict) or found.keys() != {each.name for each in fields(Cell)}:
        return None
    sound = (
        isinstance(found["setting"], str)
        and isinstance(found["seed"], int)
        and isinstance(found["seconds"], numbers)
        and isinstance(found["refused"], str)
        and all(isinstance(found[name], dict) for name in ("metrics", "curves", "images"))
        and (found["metrics"] or found["refused"])
        and all(isinstance(value, numbers) for value in found["metrics"].values())
        and all(isinstance(pair, list) and len(pair) == 2 and len(pair[0]) == len(pair[1]) for pair in found["curves"].values())
    )
    return Cell(**found) if sound else None


# --- verdicts ----------------------------------------------------------------------------------------------------------


def judge(claim: Claim, cells: Iterable[Cell]) -> Verdict:
    """What the cells say of a claim: by the 95 % interval (Student's t) of its effect, paired by seed.

    >>> claim = Claim("a is smaller", "nobody", "x", "a", "b", "below")
    >>> cells = [Cell(name, seed, {"x": seed + (name == "b")}) for name in "ab" for seed in range(3)]
    >>> judge(claim, cells)
    Verdict(claim='a is smaller', source='nobody', verdict='seen', effect=-1.0, interval=(-1.0, -1.0), seeds=3, left_out=0)
    """
    cells = list(cells)

    def values(setting: str) -> dict[int, float]:
        return {cell.seed: cell.metrics.get(claim.metric, math.nan) for cell in cells if cell.setting == setting}

    mine = values(claim.setting)
    ratio = claim.statistic == "ratio"
    other = values(claim.against) if claim.against is not None else dict.fromkeys(mine, float(ratio))
    effects = []
    for seed in sorted(mine.keys() & other.keys()):
        a, b = mine[seed], other[seed]
        if math.isfinite(a) and math.isfinite(b) and (not ratio or (a > 0 and b > 0)):
            effects.append(math.log(a / b) if ratio else a - b)
    left_out = len(mine.keys() & other.keys()) - len(effects)
    if not effects:
        return Verdict(claim.claim, claim.source, "within noise", math.nan, None, 0, left_out)
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
        low, high = interval
        above, below = low > claim.bound, high < claim.bound
        if claim.direction == "within":
            above, below = above or high < -claim.bound, below and low > -claim.bound
        if above or below:
            verdict = "seen" if above == (claim.direction == "above") else "not seen"
    return Verdict(claim.claim, claim.source, verdict, mean, interval, len(effects), left_out)
