"""``openadam study``: an experiment on real data, with claims that were made before it and verdicts that are computed after it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from .arguments import Parser, UsageError, near, one_of, whole
from .output import complain, complain_of_picture, draw, print_json, refuse_unwritable

__all__ = ["add_arguments", "run"]

STUDIES = ("digits", "gan", "rl", "nlp")


def add_arguments(parser: Parser) -> None:
    parser.epilog = "Interrupting it (Ctrl-C) keeps what is done; with --out it can be gone on with."
    parser.add_argument("study", metavar="STUDY", type=one_of("study", STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--list", action="store_true", help="print its settings, numbers and claims, and run nothing")
    parser.add_argument("--settings", metavar="NAMES", help="only these of its settings, joined by semicolons")
    parser.add_argument("--seeds", metavar="N", type=whole(1, 1000), help="how many times each setting is run")
    parser.add_argument("--full", action="store_true", help="with the full budget: longer runs, more seeds")
    parser.add_argument("--sweep", action="store_true", help="choose the learning rates anew, and print how")
    parser.add_argument("--out", metavar="FILE", type=Path, help="append every finished cell to a file, JSON lines")
    parser.add_argument("--resume", action="store_true", help="go on with the file of --out")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw it: .png, .pdf or .svg")
    parser.add_argument("--workers", metavar="N", type=whole(1, 64), help="cells side by side; default: the processors")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(given: argparse.Namespace) -> int:
    from ..studies import frame, module
    from ..views import pictures
    from ..views import study as view

    study: frame.Study = importlib.import_module(f"..studies.{given.study}", __package__).STUDY
    settings = [setting.name for setting in study.settings]
    if given.settings is not None:
        settings = [name.strip() for name in given.settings.split(";")]
        for name in settings:
            if name not in [setting.name for setting in study.settings]:
                raise UsageError(f"there is no setting {name!r}; {near(name, [setting.name for setting in study.settings])}")
    if given.resume and given.out is None:
        raise UsageError("--resume goes on with a file: name it with --out")
    module("rich", "studies")
    if given.list:
        view.print_study(study)
        return 0
    for needed in study.needs:
        module(needed, "studies")
    if given.sweep:
        if study.sweep is None:
            raise UsageError(f"the study {study.name} chooses no learning rates")
        view.print_sweep(study, study.sweep())
        return 0
    if given.picture is not None:
        try:
            pictures.check_picture_format(given.picture.suffix)
        except ValueError as error:
            raise UsageError(f"--picture {given.picture}: {error}") from error
        refuse_unwritable(given.picture)
    seeds = given.seeds or (study.full_seeds if given.full else study.seeds)
    workers = given.workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    cells, interrupted = _cells(frame, study, frame.planned(settings, seeds), given, workers)
    if not cells:
        return 130
    failure = draw(given.picture, lambda: view.picture(study, cells, given.picture.suffix)) if given.picture is not None else None
    files = [str(file) for file in (given.picture if failure is None else None, given.out) if file is not None]
    if given.json:
        print_json(view.as_json(study, cells, files), indent=None)
    else:
        view.print_results(study, cells, files)
    if failure is not None:
        sys.stdout.flush()
        complain_of_picture(failure)
        return 1
    return 130 if interrupted else 0


def _cells(frame: Any, study: Any, cells: list[tuple[str, int]], given: argparse.Namespace, workers: int) -> tuple[list[Any], bool]:
    """The finished cells, in the order in which they were planned; and whether there was an interrupt."""
    from ..views import terminal

    try:
        file = frame.CellFile(given.out, study, full=given.full, resume=given.resume) if given.out is not None else None
    except FileExistsError as error:
        raise UsageError(str(error)) from error
    done = {(cell.setting, cell.seed): cell for cell in (file.cells if file is not None else ()) if (cell.setting, cell.seed) in cells}
    left = [cell for cell in cells if cell not in done]
    interrupted = False
    with terminal.Progress(len(left)) as progress:
        running = frame.run_cells(study, left, full=given.full, workers=workers)
        try:
            for cell in running:
                done[cell.setting, cell.seed] = cell
                if file is not None:
                    file.append(cell)
                progress.at(len(done) - len(cells) + len(left), len(left), f"{cell.setting}, seed {cell.seed}")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                running.close()
    if interrupted:
        how = f"; go on with --out {given.out} --resume" if file is not None else ""
        complain(f"interrupted after {len(done)} of {len(cells)} cells{how}")
    sys.stderr.flush()
    return [done[cell] for cell in cells if cell in done], interrupted
